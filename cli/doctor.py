"""`quiesce doctor`: whether the broker's journal is whole, and going on with what is left of a damaged one."""

import errno
import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quiesce.cli.options import ConfigFile, Json
from quiesce.cli.output import counted, print_error, print_json, size
from quiesce.errors import QuiesceError

if TYPE_CHECKING:
    from quiesce.broker.journal_check import Examination, Repair

State = Annotated[
    Path | None,
    typer.Argument(
        metavar="STATE",
        help="The broker's state folder. Default: that of the configuration.",
        show_default=False,
    ),
]
Mend = Annotated[
    bool,
    typer.Option(
        "--repair",
        help="Put a damaged journal aside, and go on with everything up to the damage.",
    ),
]
#: What a broker does with a journal from which something may be missing.
_WAITS = "it answers no stop before every lease has run out"


def doctor(
    state: State = None, config: ConfigFile = None, repair: Mend = False, json: Json = False
) -> None:
    """Say whether the journal of a broker that does not run is whole, and what it holds.

    Exits 0 if it is (or is after the repair), 1 if it is damaged, of a newer quiesce, or in use.
    """
    from quiesce.broker.locks import AlreadyLockedError

    folder = _folder(state, config)
    try:
        with _locked(folder):
            code = _examine(folder, repair, json, named=state is not None)
    except AlreadyLockedError as error:
        print_error("AlreadyLockedError", str(error), as_json=json)
        code = 1
    raise typer.Exit(code)


def _folder(state: Path | None, config: str | None) -> Path:
    if state is None:
        from quiesce.cli.config import load_config
        from quiesce.cli.settings import state_path
        from quiesce.cli.system_verbs import check_path

        check_path(config)
        folder = Path(state_path(load_config(config), None))
        if not folder.is_dir():
            raise typer.BadParameter(
                f"there is no folder {folder} of a broker with this configuration; name one",
                param_hint="STATE",
            )
        return folder
    if config is not None:
        raise typer.BadParameter("goes without STATE", param_hint="--config")
    if not state.is_dir():
        raise typer.BadParameter(f"there is no folder {state}", param_hint="STATE")
    return state


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No broker and no `quiesce up` uses it in this block; AlreadyLockedError if one does."""
    from quiesce.broker.locks import AlreadyLockedError, Lock

    try:
        lock = Lock(folder / "lock", f"the state folder {folder}")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise QuiesceError(
                f"the state folder {folder} can't be locked against a broker that starts: {error.strerror}. "
                "Run it as the user of the broker, or copy the folder, as a whole, and name the copy"
            ) from None
        if error.errno != errno.EROFS:
            raise
        # SQLite can't read there either what a killed broker has left.
        raise QuiesceError(
            f"the state folder {folder} is on a read-only file system: copy it, as a whole, to where it "
            "can be written, and name the copy"
        ) from None
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise AlreadyLockedError(
                f"a `quiesce up` uses the state folder {folder}: stop it first"
            ) from None
        finally:
            os.close(fd)
    finally:
        lock.release()


def _examine(folder: Path, mend: bool, as_json: bool, *, named: bool) -> int:
    from quiesce.broker import journal_check
    from quiesce.broker.boot import boot_id

    boot = boot_id()
    seen, found = journal_check.examine(folder, boot)
    if named and not seen.exists and not seen.epoch:
        # A mistyped path must not pass for a journal that is whole.
        raise typer.BadParameter(
            f"{folder} is no state folder of a broker: no broker has run on it; name that of [broker] state",
            param_hint="STATE",
        )
    mended: Repair | None = None
    if mend and not seen.whole and seen.mendable:
        mended = journal_check.repair(found, boot)
        seen, _ = journal_check.examine(folder, boot)
    if as_json:
        print_json({"journal": seen, "repair": mended})
    else:
        for line in (*_told_repair(mended), *_told(seen)):
            print(line)
    return 0 if seen.whole else 1


def _told_repair(mended: "Repair | None") -> list[str]:
    if mended is None:
        return []
    return [
        "repaired:",
        f"  the damaged files are in {mended.saved}",
        f"  kept: {mended.kept}",
        f"  given up: {mended.given_up}",
        f"  The next broker takes the journal as incomplete: {_WAITS}.",
    ]


def _told(seen: "Examination") -> list[str]:
    if not seen.whole:
        state = "of a newer quiesce" if seen.newer else "DAMAGED"
        lines = [f"{seen.folder}: the journal is {state}", f"  {seen.trouble}"]
        if seen.trouble_from and seen.beyond is not None:
            rows, facts = seen.beyond
            why = "this version reads nothing" if seen.newer else "nothing counts"
            lines.append(
                f"  from row {seen.trouble_from} on {why}: {counted(rows, 'row')} "
                f"with {counted(facts, 'fact')} can still be seen there"
            )
    elif not seen.exists:
        return [f"{seen.folder}: there is no journal (last epoch {seen.epoch})"]
    else:
        lines = [f"{seen.folder}: the journal is whole"]
    end = "in order" if seen.ended_in_order else "by a crash or a kill"
    lines.append(f"  last epoch {seen.epoch}, durability {seen.durability}, ended {end}")
    if seen.whole and not seen.complete:
        lines.append(
            f"  what was acknowledged may be missing from it: the next broker {_WAITS[3:]}"
        )
    lines.append("  " + ", ".join(f"{name} {size(count)}" for name, count in seen.sizes.items()))
    good = "" if seen.whole else "good: "
    tail = (
        f"{counted(seen.facts, 'fact')} in {counted(seen.rows, 'row')}, up to row {seen.last_row}"
    )
    if seen.snapshot_row is not None:
        tail = (
            f"a snapshot as of row {seen.snapshot_row} ({size(seen.snapshot_bytes)}), then {tail}"
        )
    lines.append(f"  {good}{tail}")
    lines.append(f"  {counted(seen.payloads, 'large payload')}, {size(seen.payload_bytes)}")
    if seen.counts is not None:
        counts = seen.counts
        lines.append(
            f"  {good}{counted(counts.live_tasks, 'live task')}, "
            f"{counted(counts.open_stops, 'open stop')}, "
            f"{counted(counts.closures, 'closed scope')}, {counted(counts.sessions, 'session')}"
        )
    if not seen.whole:
        lines.append(f"  {_way_on(seen)}")
    return lines


def _way_on(seen: "Examination") -> str:
    """What to do with a journal on which a broker does not start."""
    from quiesce.broker.journal_read import NEWER

    if seen.newer:
        return f"Nothing is to be repaired: {NEWER}"
    repair = f"`{shlex.join(('quiesce', 'doctor', seen.folder, '--repair'))}`"
    if seen.mendable:
        return f"{repair} puts it aside and goes on with what is good"
    return (
        f"{repair} can't help: no part of it would be right to leave out. To begin with nothing, "
        "all tasks and closed scopes forgotten, name another state folder"
    )
