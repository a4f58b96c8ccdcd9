"""What the workers of a private pool load at their start, and nobody else does: it acts when it is imported.

They are to their owner what children of its own would be: they import from where it does and have its filters of
warnings; and they have its `authkey`, so that proxies of a `multiprocessing` manager that are handed to them find
it. All of that lies in the pool's folder, which is the owner's alone. What the environment says of imports and
flags is for this pool's own processes: those that a task starts get what the owner has there.
"""

import json
import multiprocessing.process
import os
import sys
import warnings
from pathlib import Path

_owner = json.loads(
    Path(os.environ["QUIESCE_ADDRESS"].removeprefix("ipc://"), "..", "owner.json").read_text()
)
multiprocessing.process.current_process().authkey = bytes.fromhex(_owner["authkey"])
sys.path[:] = _owner["path"]
for _name, _value in _owner["environment"].items():
    if _value is None:
        os.environ.pop(_name, None)
    else:
        os.environ[_name] = _value
if _owner["warnings"] != sys.warnoptions:
    sys.warnoptions[:] = _owner["warnings"]
    # As an interpreter does with -W at its start; `warnings` has no public name for it.
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]  # it is private
