"""The summary of the demo in words. The numbers are from the acts, which count what they see."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from quiesce.examples.pageserver.source import Plan, Settings
from quiesce.examples.pageserver.view import print_text

_Found = Mapping[str, Any]


def describe(plan: Plan, settings: Settings) -> dict[str, Any]:
    """Return what was taken, of what."""
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


def taken_text(taken: dict[str, Any]) -> str:
    """Say what was taken, of what."""
    least = "" if taken["counted_completely"] else "at least "
    return (
        f"{taken['folder']}: taken are {taken['tenants']} tenants of {least}{taken['of_tenants']}, "
        f"{taken['files']} files of {least}{taken['of_files']}, "
        f"{_amount(taken['bytes'])} of {least}{_amount(taken['of_bytes'])} "
        f"(not counted: links, hidden files, caches, installed packages); "
        f"{taken['versions_per_file']} versions of each, the newest {taken['versions_kept']} kept"
    )


def _amount(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _counts(found: _Found) -> str:
    return ", ".join(f"{count} {what}" for what, count in found.items()) or "none"


def _load(found: _Found) -> str:
    return _counts(found)


def _killed(found: _Found) -> str:
    return (
        f"worker {found['pid']} ({found['runtime']}), and {sum(found['crashed'].values())} tasks "
        f"crashed with it ({_counts(found['crashed'])}); {found['tried_again']} tried again; "
        f"replaced by {found['replaced_by']} after {found['replaced_after_seconds']} s"
    )


def _detached(found: _Found) -> str:
    returned = "nothing came back" if found["stayed_away"] else "SOMETHING CAME BACK"
    return (
        f"{found['tenant']}; {found['tasks_stopped']} tasks stopped in {found['stop_seconds']} s "
        f"({_counts(found['outcomes'])}), {found['files_removed']} files removed, "
        f"{found['spawns_refused_meanwhile']} spawns refused meanwhile; {returned} in "
        f"{found['watched_seconds']} s, in which {found['requests_refused_since']} page requests "
        f"for it were refused"
    )


def _settled(found: _Found) -> str:
    return (
        f"{found['housekeeping_tasks_stopped_by_kind']} tasks stopped by their kind; "
        f"{found['compactions']} compactions, {found['versions_collected']} versions with "
        f"{found['records_collected']} records collected; {found['layers_only_remote']} of "
        f"{found['layers']} layers uploaded and dropped here"
    )


def _verified(found: _Found) -> str:
    return (
        f"{found['timelines']} of {found['of_timelines']} timelines; {found['versions']} versions "
        f"by sha256 ({found['equal_to_the_file']} the file itself), {found['pages']} pages; "
        f"{found['collected_versions_refused']} collected versions refused; "
        f"{found['waits_for_a_download']} page requests waited for "
        f"{found['download_tasks_waited_for']} downloads; {found['wrong']} wrong"
    )


def _tasks(found: _Found) -> str:
    return (
        f"of {found['kinds']} kinds in {found['runtimes']} runtimes; "
        f"seen to have ended: {found['ended']} ({_counts(found['outcomes'])})"
    )


def _stopped(found: _Found) -> str:
    return (
        f"exit status {found['exit_status']}; of {found['processes_seen']} processes "
        f"{found['processes_left']} are left"
    )


#: act -> what to say of what it found
_SENTENCES: dict[str, Callable[[_Found], str]] = {
    "killed": _killed,
    "detached": _detached,
    "page_requests_under_load": _load,
    "settled": _settled,
    "verified": _verified,
    "tasks": _tasks,
    "stopped": _stopped,
}


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print what was found; of an act that did not take place there is nothing to say."""
    for act, sentence in _SENTENCES.items():
        if act in summary:
            text = f"{act.replace('_', ' ')}: {sentence(summary[act])}"
            print_text(console, text)
    for text in summary["false"]:
        print_text(console, f"FALSE: {text}", "bold red")
    verdict = "FAILED" if summary["false"] else "all true"
    print_text(console, f"{verdict} after {summary['seconds']} s", "bold")
