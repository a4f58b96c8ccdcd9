"""What the workers of a private pool load at their start, and nobody else does: it acts when it is imported.

They are to their owner what children of its own would be, so they have its `authkey`: proxies of a
`multiprocessing` manager that are handed to them find it. It lies in the pool's folder, which is the owner's alone.
"""

import multiprocessing.process
import os
from pathlib import Path

multiprocessing.process.current_process().authkey = Path(
    os.environ["QUIESCE_ADDRESS"].removeprefix("ipc://"), "..", "authkey"
).read_bytes()
