"""The demo behind `quiesce demo`: a page server on four runtimes, on any folder, in about half a minute."""

import contextlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from json import dumps
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from quiesce import Client
from quiesce.errors import QuiesceError
from quiesce.examples.pageserver.acts import (
    attach_tenants,
    detach_busy_tenant,
    kill_worker,
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
from quiesce.examples.pageserver.source import (
    Limits,
    NoSourceError,
    Plan,
    Settings,
    default_folder,
    scan,
)
from quiesce.examples.pageserver.stage import FalsityError, Stage
from quiesce.examples.pageserver.system import System, SystemFailedError
from quiesce.examples.pageserver.tenant_paths import Work
from quiesce.examples.pageserver.view import View

#: The broker's sockets lie below the work folder, and their paths must not exceed 107 bytes.
_LONGEST_ROOT = 60


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

    `folder` is the tree that is served; by default the running Python's standard library. It is only
    read. With `json`, one JSON object goes to stdout, and nothing else. `keep` is a folder, not there yet,
    to which the work folder is moved at the end. An interrupt (SIGINT, SIGTERM, SIGHUP) stops the system,
    removes the work folder and returns 130.
    """
    console = console or Console(stderr=json)
    settings = settings or Settings()
    if keep is not None and keep.exists():
        console.print(f"{keep} is there already. Give a folder for --keep that is not.", markup=False)
        return 1
    started = time.monotonic()
    false: list[str] = []
    summary: dict[str, Any] = {}
    try:
        with _interruptible(), _work_folder(keep) as root:
            plan = scan(folder or default_folder(), limits)
            summary["taken"] = _describe(plan, settings)
            if not json:
                console.print(_taken_text(summary["taken"]), markup=False, highlight=False)
            _run(plan, settings, root, None if json else console, summary, false)
    except KeyboardInterrupt:
        console.print("interrupted; the system was stopped", style="yellow")
        return 130
    except NoSourceError as error:
        false.append(str(error))
    if keep is not None:
        summary["kept"] = str(keep)
    summary["seconds"] = round(time.monotonic() - started, 1)
    summary["false"] = false
    summary["ok"] = not false
    if json:
        print(dumps(summary, indent=2))  # noqa: T201 - the output that was asked for
    else:
        _print_summary(console, summary)
    return 1 if false else 0


def _run(
    plan: Plan,
    settings: Settings,
    root: Path,
    console: Console | None,
    summary: dict[str, Any],
    false: list[str],
) -> None:
    """Run the acts. What is found goes to `summary`, what is not true to `false`; no process stays."""
    work = Work(root)
    work.create(plan, settings)
    system = System(root)
    try:
        with View(console) as view:
            system.start()
            system.wait_ready()
            with Client(system.address, timeout=30.0) as client:
                stage = Stage(client, system, work, plan, settings, view)
                stage.summary, stage.false = summary, false
                with stage.load:
                    _play(stage)
            stop_system(stage, system)
    except (FalsityError, SystemFailedError) as error:
        false.append(str(error))
    except (QuiesceError, OSError) as error:
        # Not expected here at all: the demo's own claims are checked, so this is one more that failed.
        false.append(f"{type(error).__name__}: {error}\n{system.tail()}")
    finally:
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
def _work_folder(keep: Path | None) -> Iterator[Path]:
    """Make a work folder with a short path; at the end, move it to where it is kept, or remove it."""
    base = tempfile.gettempdir()
    root = Path(tempfile.mkdtemp(prefix="qps-", dir=base if len(base) < _LONGEST_ROOT else "/tmp"))
    try:
        yield root
    finally:
        if keep is None:
            shutil.rmtree(root)
        else:
            shutil.move(root, keep)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the signals that end a program into KeyboardInterrupt, so that nothing stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Once is enough: what comes while the system is being stopped must not leave it half stopped.
        for other in previous:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        previous[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _describe(plan: Plan, settings: Settings) -> dict[str, Any]:
    return {
        "folder": plan.folder,
        "tenants": len(plan.tenants),
        "of_tenants": plan.found.tenants,
        "files": len(plan.files),
        "of_files": plan.found.files,
        "bytes": plan.size,
        "of_bytes": plan.found.size,
        "counted_completely": plan.found.complete,
        "versions_per_file": settings.versions,
        "versions_kept": min(settings.retained, settings.versions),
        "page_size": settings.page_size,
    }


def _taken_text(taken: dict[str, Any]) -> str:
    least = "" if taken["counted_completely"] else "at least "
    return (
        f"{taken['folder']}: taken are {taken['tenants']} tenants of {least}{taken['of_tenants']}, "
        f"{taken['files']} files of {least}{taken['of_files']}, "
        f"{taken['bytes'] / 1e6:.1f} MB of {least}{taken['of_bytes'] / 1e6:.1f} MB "
        f"(not counted: links, hidden files, caches, installed packages); "
        f"{taken['versions_per_file']} versions of each, the newest {taken['versions_kept']} are kept"
    )


def _print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print what was found; of an act that did not take place there is nothing to say."""
    lines = []
    if load := summary.get("page_requests_under_load"):
        answers = ", ".join(f"{count} {what}" for what, count in load.items() if what != "wrong")
        lines.append(f"page requests under load: {answers}; {load['wrong']} wrong")
    if killed := summary.get("killed"):
        crashed = sum(killed["crashed"].values())
        lines.append(
            f"killed: worker {killed['pid']} ({killed['runtime']}); {crashed} tasks crashed, "
            f"{killed['tried_again']} tried again; replaced by {killed['replaced_by']} "
            f"after {killed['replaced_after_seconds']} s"
        )
    if detached := summary.get("detached"):
        lines.append(
            f"detached: {detached['tenant']}; {detached['tasks_stopped']} tasks stopped in "
            f"{detached['stop_seconds']} s, {detached['files_removed']} files removed, "
            f"{detached['spawns_refused_meanwhile']} spawns refused meanwhile; nothing came back in "
            f"{detached['watched_seconds']} s, "
            f"{detached.get('requests_refused_since', 0)} page requests were refused since"
        )
    if settled := summary.get("settled"):
        lines.append(
            f"housekeeping: {settled['compactions']} compactions, {settled['versions_collected']} "
            f"versions collected, {settled['layers_only_remote']} of {settled['layers']} layers were "
            f"only remote before verification"
        )
    if verified := summary.get("verified"):
        lines.append(
            f"verified: {verified['timelines']} of {verified['of_timelines']} timelines, "
            f"{verified['versions']} versions by sha256 ({verified['equal_to_the_file']} equal to the "
            f"file itself), {verified['pages']} pages; {verified['collected_versions_refused']} collected "
            f"versions refused; {verified['waits_for_a_download']} requests waited for "
            f"{verified['download_tasks_waited_for']} downloads; {verified['wrong']} wrong"
        )
    if tasks := summary.get("tasks"):
        lines.append(
            f"tasks: {tasks['kinds']} kinds in {tasks['runtimes']} runtimes; ended, as far as was seen: "
            + ", ".join(f"{count} {outcome}" for outcome, count in tasks["outcomes"].items())
        )
    if stopped := summary.get("stopped"):
        lines.append(
            f"stopped: exit status {stopped['exit_status']}, {stopped['processes_left']} of "
            f"{stopped['processes_seen']} processes left"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False)
    for text in summary["false"]:
        console.print(f"FALSE: {text}", style="bold red", markup=False, highlight=False)
    verdict = "FAILED" if summary["false"] else "all true"
    console.print(f"{verdict} after {summary['seconds']} s", style="bold", markup=False)


