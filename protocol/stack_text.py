"""Stacks as texts, cut to what says where a task is: the innermost frames.

A worker's own text has the innermost frame last, as tracebacks do; faulthandler's has it first, and threads apart,
each under a line of its own.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

#: Frames of each thread or coroutine, and how many of these of one task.
FRAMES: Final = 5
PARTS: Final = 3

_FRAME: Final = re.compile(r"^ *File ")
_THREAD: Final = re.compile(r"^(Current thread|Thread) 0x.*\(most recent call first\):$")
#: Where the machinery's own threads wait, and where it calls tasks from.
_CALLS: Final = re.compile(r'File "[^"]*/quiesce/workers/runner\.py"')
_OURS: Final = re.compile(r'File "[^"]*/(quiesce/workers|zmq)/')


def innermost(texts: Iterable[str], frames: int = FRAMES, parts: int = PARTS) -> list[str]:
    """The last `frames` frames of each text, innermost last; of at most `parts` threads and coroutines."""
    found: list[str] = []
    for text in texts:
        lines = text.rstrip().splitlines()
        if any(map(_THREAD.match, lines)):
            found += _of_process(lines, frames, parts)
        else:
            found.append("\n".join(_of_one(lines, frames)))
    hidden = len(found) - parts
    return [*found[:parts], f"… and {hidden} more"] if hidden > 0 else found


def _of_one(lines: Sequence[str], frames: int) -> list[str]:
    """A head, then the frames, each with the lines of its source; without how the worker came to call the task."""
    starts = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    calls = [place for place, at in enumerate(starts) if _CALLS.search(lines[at])]
    theirs = calls[-1] + 1 if calls and calls[-1] + 1 < len(starts) else 0
    first = max(theirs, len(starts) - frames)
    if not first:
        return list(lines)
    return [*lines[: starts[0]], *(["  …"] if first > theirs else []), *lines[starts[first] :]]


def _of_process(lines: Sequence[str], frames: int, parts: int) -> list[str]:
    """By faulthandler: the head goes with the first thread. Threads of the machinery are left out if it can be."""
    heads = [number for number, line in enumerate(lines) if _THREAD.match(line)]
    blocks = [list(lines[a:b]) for a, b in zip(heads, [*heads[1:], len(lines)], strict=True)]
    wanted = [block for block in blocks if not (len(block) > 1 and _OURS.search(block[1]))]
    cut = []
    for block in (wanted or blocks)[:parts]:
        inner = [line for line in block[1:] if _FRAME.match(line)][:frames]
        while len(inner) > 1 and _OURS.search(inner[-1]):
            inner.pop()
        head = block[0].replace("most recent call first", "most recent call last")
        cut.append([head, *reversed(inner)])
    cut[0] = [*lines[: heads[0]], *cut[0]]
    return ["\n".join(block) for block in cut]
