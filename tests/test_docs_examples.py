"""The examples of docs/ and of the README run as they stand there."""

import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import quiesce
import quiesce.testing
from docs_pages import DOCS, Walk, blocks, named, write_examples
from quiesce.cli.verbs import VERBS

#: Pages to be followed from top to bottom.
WALKS = [
    "tutorial.md",
    "listeners.md",
    "blocking.md",
    "service.md",
    "fault-tests.md",
    "executor.md",
    "from-processpool.md",
    "from-celery.md",
]
#: The tree is tested, and what is installed beside it may know of no plugin.
PLUGIN = [] if entry_points(group="pytest11", name="quiesce") else ["-p", "quiesce.testing.plugin"]
#: A small system, for pages that say nothing of it.
SMALL = """
[broker]
default_runtimes = false
[runtimes.background]
processes = 2
slots = 16
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", WALKS)
def test_what_a_page_says_comes_true(page: str, run_folder: Path) -> None:
    with Walk(run_folder) as walk:
        walk.env["PYTEST_ADDOPTS"] = " ".join(["-p", "no:cacheprovider", *PLUGIN])
        if not any(language == "toml" for language, _ in blocks(DOCS / page)):
            (walk.folder / "quiesce.toml").write_text(SMALL)
        walk.follow(DOCS / page)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_programs_of_other_pages(run_folder: Path) -> None:
    """Those of pages that tell what they do, and not what they print. One system serves them all."""
    with Walk(run_folder) as walk:
        (walk.folder / "quiesce.toml").write_text(SMALL)
        walk.up()

        names = write_examples(DOCS / "stopping.md", walk.folder)
        assert names == ["tasks.py", "remove.py", "out_of_time.py", "closed.py"]
        assert "1 completed" in walk.run("python remove.py")
        assert walk.run("python out_of_time.py").startswith("['sleep']\n[ClosedScope(")
        assert "moved away" in walk.run("python closed.py")
        every_task = """
            import time
            import quiesce
            import tasks

            def main():
                calls = [
                    (tasks.count, "turns"), (tasks.hash_all, "."), (tasks.serve,), (tasks.fetch_all, ["a"]),
                    (tasks.listen,), (tasks.run, "sleep", "1000"), (tasks.watch_in_a_thread,), (tasks.unpack,),
                ]
                with quiesce.Client() as client:
                    for call in calls:
                        client.spawn("background", "compaction", *call, tenant_id="all")
                    while len(client.tasks(state="running")) < len(calls):
                        time.sleep(0.05)
                    report = client.shutdown_tasks(tenant_id="all", grace=60, timeout=30)
                    assert {str(task.evidence) for task in report.tasks} == {"RETURNED"}, report

            main()
        """
        (walk.folder / "every_task.py").write_text(textwrap.dedent(every_task))
        walk.run("python every_task.py")

        assert write_examples(DOCS / "observing.md", walk.folder) == ["show_progress.py"]
        printed = walk.run("python show_progress.py")
        assert "Progress(done=3" in printed, printed

        assert write_examples(DOCS / "index.md", walk.folder) == ["detach.py"]
        (walk.folder / "tenants" / "acme").mkdir(parents=True)
        walk.run("python detach.py")
        assert not (walk.folder / "tenants" / "acme").exists()

        readme = DOCS.parent / "README.md"
        jobs = next(text for language, text in blocks(readme) if language == "python")
        (walk.folder / "jobs.py").write_text(jobs)
        assert walk.run("python jobs.py").endswith("['globex']\n")


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "reference.md").read_text()
    shown = set(re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.MULTILINE))
    public = {*quiesce.__all__, *quiesce.testing.__all__} - {"__version__"}
    assert shown == public


def test_the_page_of_the_command_line_has_every_verb() -> None:
    shown = re.findall(r"^```\{quiesce-help\} (\w+)$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert shown == [verb.__name__ for verbs in VERBS.values() for verb in verbs]


def test_every_python_example_names_its_file() -> None:
    """So that none can be there which nobody runs."""
    pages = {page.name for page in DOCS.glob("*.md") if "```python\n" in page.read_text()}
    others = {"stopping.md", "observing.md", "index.md", "testing.md"}
    assert pages == {*WALKS, *others}
    for page in pages:
        for language, text in blocks(DOCS / page):
            if language == "python":
                named(DOCS / page, text)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_of_testing(tmp_path: Path) -> None:
    names = write_examples(DOCS / "testing.md", tmp_path)
    assert names == ["jobs.py", "test_jobs.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *PLUGIN, "-q", "-W", "error"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    examples = (tmp_path / "test_jobs.py").read_text().count("\ndef test_")
    assert examples > 15
