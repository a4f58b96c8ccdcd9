"""Runs the pages of docs/ as somebody would who follows them: files, `quiesce up`, commands and what they print.

Of the blocks of a page, in their order:

- ```python and ```toml name their file in the first line, `# jobs.py`; blocks of the same file go on.
- ```console has commands after "$ " and then what they print. `quiesce up` goes to the background until "^C".

All else is not looked at. What is printed is compared without regard to numbers, addresses and the width of
columns; "…" stands for anything in a line, a line "…" for any lines.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

DOCS = Path(__file__).parents[1] / "docs"
#: Seconds for each thing that is waited for.
PATIENCE = 30.0
#: Commands that only look: what they show may need a moment to become what the page says.
LOOKS = ("quiesce ps", "quiesce history", "quiesce stacks", "ls", "cat")

Block = tuple[str, str]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks: their language and their text."""
    found = re.findall(r"^```(\S+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found]


def named(page: Path, text: str) -> tuple[str, str]:
    """The name of its file, which a block begins with, and the rest."""
    first, _, rest = text.partition("\n")
    name = first.removeprefix("# ")
    assert re.fullmatch(r"\w+\.(py|toml)", name), f"{page.name}: this block names no file: {first}"
    return name, rest


def write_examples(page: Path, folder: Path) -> list[str]:
    """Writes all files of a page, and gives their names."""
    files: dict[str, list[str]] = {}
    for language, text in blocks(page):
        if language == "python":
            name, rest = named(page, text)
            files.setdefault(name, []).append(rest)
    for name, parts in files.items():
        (folder / name).write_text("\n\n".join(parts))
    return list(files)


def steps(text: str) -> list[tuple[str, list[str]]]:
    """Of a console: each command, and the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ ") or line == "^C":
            found.append((line.removeprefix("$ "), []))
        else:
            assert found, f"a console begins with a command, not with {line!r}"
            found[-1][1].append(line)
    return found


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"ipc:[^\s,]+", "ADDRESS", line)
    line = re.sub(r"\bprocess (\d+) on \S+", r"process \1 on HOST", line)
    line = re.sub(r"\d+(?:[.,:]\d+)*", "N", line)
    return " ".join(line.split())


def same(wanted: list[str], printed: str) -> bool:
    """Whether it was printed as the page says."""
    pattern = ""
    for line in wanted:
        if line.strip() == "…":
            pattern += r"(?:.*\n)*"
        elif line.strip():
            pattern += ".*".join(re.escape(plain(part)) for part in line.split("…")) + "\n"
    lines = [plain(line) for line in printed.splitlines() if line.strip()]
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


class Walk:
    """Somebody in a folder of their own, with a shell, and with an address and a state of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.address = f"ipc://{folder}/q"
        tools = folder / "bin"
        self.folder.mkdir()
        tools.mkdir()
        for name, words in (("python", ""), ("quiesce", "-P -m quiesce ")):
            tool = tools / name
            tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
            tool.chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "QUIESCE_ADDRESS": self.address,
            "QUIESCE_BROKER_STATE": str(folder / "state"),
            "COLUMNS": "160",
        }
        self._up: subprocess.Popen[bytes] | None = None
        self._log = folder / "log"
        self._seen = 0

    def __enter__(self) -> "Walk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._up is not None and self._up.poll() is None:
            self._up.send_signal(signal.SIGINT)
            try:
                self._up.wait(PATIENCE)
            finally:
                if self._up.poll() is None:
                    self._up.kill()
                    self._up.wait()

    def follow(self, page: Path) -> None:
        """Do all that the page says, in its order."""
        for language, text in blocks(page):
            if language in ("python", "toml"):
                name, rest = named(page, text)
                path = self.folder / name
                path.write_text(path.read_text() + "\n\n" + rest if path.exists() else rest)
            elif language == "console":
                for command, wanted in steps(text):
                    self.do(command, wanted)

    def do(self, command: str, wanted: list[str]) -> None:
        """One step of a console."""
        if command == "^C":
            assert self._up is not None
            self._up.send_signal(signal.SIGINT)
            assert self._up.wait(PATIENCE) == 0, self._log.read_text()
            self._until_printed(command, wanted, self._news)
        elif command.split()[:2] == ["quiesce", "up"]:
            self.up(*shlex.split(command)[2:])
            # What it prints and what is logged come on two ways, in any order.
            self._until_printed(command, [*wanted, "…"], self._news)
        elif command.startswith(LOOKS):
            self._until_printed(command, wanted, lambda: self.run(command, must=False))
        else:
            printed = self.run(command)
            assert same(wanted, printed), self._differs(command, wanted, printed)

    def up(self, *words: str) -> None:
        """Start `quiesce up`, and wait until it says that it is."""
        assert self._up is None or self._up.poll() is not None
        self._seen = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._up = subprocess.Popen(
                ["quiesce", "up", *words],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        while "quiesce is up" not in self._log.read_text()[self._seen :]:
            assert self._up.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def run(self, command: str, *, must: bool = True) -> str:
        """What a command prints; whether it must succeed."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        log = self._log.read_text() if self._log.exists() else ""
        assert done.returncode == 0 or not must, f"$ {command}\n{done.stdout}\nthe log:\n{log}"
        return done.stdout

    def _news(self) -> str:
        """What `quiesce up` has logged since the page was last told, as a terminal has it."""
        news = self._log.read_text()[self._seen :]
        return re.sub(r"^\S+ \S+ [A-Z]+ quiesce\.up ", "", news, flags=re.MULTILINE)

    def _until_printed(self, command: str, wanted: list[str], read: Callable[[], str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not same(wanted, printed := read()):
            assert time.monotonic() < deadline, self._differs(command, wanted, printed)
            time.sleep(0.1)
        if command == "^C" or command.startswith("quiesce up"):
            self._seen = self._log.stat().st_size

    @staticmethod
    def _differs(command: str, wanted: list[str], printed: str) -> str:
        return "\n".join([f"$ {command}", *wanted, "--- but it printed:", printed])
