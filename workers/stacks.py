"""The Python stacks of one attempt, as texts: one for each thread that runs its code, and each coroutine."""

import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from quiesce.protocol.sizes import cut_within
from quiesce.workers.scope import Scope, name_of

if TYPE_CHECKING:
    import asyncio  # see `loop`

#: Characters of one stack.
LONGEST: Final = 32 * 1024


def stacks_of(
    scope: Scope, loop: "asyncio.AbstractEventLoop | None", loop_ident: int, room: int
) -> list[str]:
    """Taken while it runs: a coroutine may move on between two frames. So many characters in all, roughly; the last
    says how many more there are.
    """
    found: list[str] = []
    texts = _texts(scope, loop, loop_ident)
    for text in texts:
        if room <= 0:
            found.append(f"and {1 + sum(1 for _ in texts)} more\n")
            break
        found.append(cut_within(text, LONGEST))
        room -= len(found[-1])
    return found


def _texts(
    scope: Scope, loop: "asyncio.AbstractEventLoop | None", loop_ident: int
) -> Iterator[str]:
    frames = sys._current_frames()
    for ident, name in list(scope.threads.items()):
        if ident in frames:
            yield f"thread {name!r} ({ident}):\n" + _format(frames[ident])
    now = None
    if loop is not None:
        import asyncio

        now = asyncio.current_task(loop)
    for task in list(scope.tasks):
        if task is now and loop_ident in frames:
            yield f"coroutine {name_of(task.get_coro())}, running:\n" + _format(frames[loop_ident])
        else:
            yield f"coroutine {name_of(task.get_coro())}:\n" + _chain(task.get_coro())


def _format(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame))


def _chain(coro: Any) -> str:
    """What a suspended coroutine awaits, outermost first."""
    lines: list[str] = []
    while coro is not None and len(lines) < 100:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None)
        if frame is None:
            lines.append(f"  awaiting {coro!r:.200}\n")
            break
        summary = traceback.StackSummary.extract([(frame, frame.f_lineno)])
        lines += traceback.format_list(summary)
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None)
    return "".join(lines)
