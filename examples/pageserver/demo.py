"""What `quiesce demo` runs: a page server on four runtimes, on any folder."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console

from quiesce import Client
from quiesce.errors import QuiesceError
from quiesce.examples.pageserver.acts import (
    attach_tenants,
    detach_busy_tenant,
    start_services,
)
from quiesce.examples.pageserver.finale import (
    ask_status,
    finish_streams,
    look_back,
    settle,
    stop_system,
    verify_all,
)
from quiesce.examples.pageserver.interrupts import Interrupts
from quiesce.examples.pageserver.killing import kill_worker
from quiesce.examples.pageserver.source import (
    Limits,
    NoSourceError,
    Plan,
    Settings,
    default_folder,
    scan,
)
from quiesce.examples.pageserver.stage import FalsityError, Stage
from quiesce.examples.pageserver.summary import describe, print_summary, taken_text
from quiesce.examples.pageserver.system import System, SystemFailedError
from quiesce.examples.pageserver.tenant_paths import Work
from quiesce.examples.pageserver.view import View, print_text

#: The broker's sockets lie below the work folder, and their paths must not exceed 107 bytes.
_LONGEST_BASE = 60


def run_demo(
    folder: Path | None,
    *,
    json: bool = False,
    keep: Path | None = None,
    console: Console | None = None,
    limits: Limits | None = None,
    settings: Settings | None = None,
) -> int:
    """Run the whole demo and return its exit status: 0 iff everything that was checked is true.

    `folder` is the tree that is served; by default the running Python's standard library. It is
    only read. With `json`, one JSON object goes to stdout, and nothing else. `keep` is a folder,
    not there yet, to which the work folder is moved at the end. An interrupt (SIGINT, SIGTERM,
    SIGHUP) stops the system, removes the work folder and returns 130.
    """
    console = console or Console(stderr=json)
    settings = settings or Settings()
    if keep is not None and keep.exists():
        print_text(
            console, f"{keep} is there already. Name a folder to keep the files in that is not."
        )
        return 1
    started = time.monotonic()
    false: list[str] = []
    summary: dict[str, Any] = {}
    try:
        with Interrupts() as interrupts, _work_folder(keep, interrupts) as root:
            plan = scan(folder or default_folder(), limits)
            summary["taken"] = describe(plan, settings)
            if not json:
                print_text(console, taken_text(summary["taken"]))
            view = View(None if json else console)
            _run(plan, settings, System(root), view, interrupts, summary, false)
    except KeyboardInterrupt:
        print_text(console, "interrupted", "yellow")
        return 130
    except NoSourceError as error:
        if not json:
            print_text(Console(stderr=True), f"error: {error}")
            return 1
        false.append(str(error))
    if keep is not None:
        summary["kept"] = str(keep)
    summary["seconds"] = round(time.monotonic() - started, 1)
    summary["false"] = false
    summary["ok"] = not false
    if json:
        print(dumps(summary, indent=2))
    else:
        print_summary(console, summary)
    return 1 if false else 0


def _run(
    plan: Plan,
    settings: Settings,
    system: System,
    view: View,
    interrupts: Interrupts,
    summary: dict[str, Any],
    false: list[str],
) -> None:
    """Run the acts. What is found goes to `summary`, what is not true to `false`."""
    work = Work(system.root)
    work.create(plan, settings)
    try:
        with view:
            with interrupts.held():
                system.start()
            system.wait_ready()
            with Client(system.address, timeout=15.0) as client:
                stage = Stage(client, system, work, plan, settings, view)
                stage.summary, stage.false = summary, false
                with stage.load:
                    _play(stage)
            stop_system(stage, system)
    except (FalsityError, SystemFailedError) as error:
        false.append(str(error))
    except (QuiesceError, OSError) as error:
        # What the acts expect they handle themselves, so this is a promise that was not kept.
        false.append(f"{type(error).__name__}: {error}\n{system.tail()}")
    finally:
        with interrupts.held():
            system.destroy()


def _play(stage: Stage) -> None:
    stage.system.note_processes(stage.client)
    start_services(stage)
    attach_tenants(stage)
    stage.load.start()
    kill_worker(stage)
    # With a single tenant there would be nothing left to verify: then it is detached last.
    if len(stage.plan.tenants) > 1:
        detach_busy_tenant(stage)
    finish_streams(stage)
    settle(stage)
    verify_all(stage)
    ask_status(stage)
    if not stage.detached:
        detach_busy_tenant(stage)
    look_back(stage)


@contextlib.contextmanager
def _work_folder(keep: Path | None, interrupts: Interrupts) -> Iterator[Path]:
    """Make a work folder with a short path; at the end, move it to `keep`, or remove it."""
    base = tempfile.gettempdir()
    if len(base) > _LONGEST_BASE:
        base = "/tmp"
    with contextlib.ExitStack() as cleaning:
        with interrupts.held():
            root = Path(tempfile.mkdtemp(prefix="qps-", dir=base))
            cleaning.callback(_put_away, root, keep, interrupts)
        yield root


def _put_away(root: Path, keep: Path | None, interrupts: Interrupts) -> None:
    with interrupts.held():
        if keep is None:
            shutil.rmtree(root)
        else:
            shutil.move(root, keep)
