"""The structure of the repository and of what is shipped, as docs/design.md promises it."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from system import System

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "quiesce"
LINKED = ("broker", "cli", "client", "examples", "protocol", "registry", "workers")

#: An ignore of ruff, mypy or coverage, and after it the reason, in words.
IGNORE = re.compile(r"#\s*(?:ruff:\s*)?(?:noqa|type:\s*ignore|mypy:\s*ignore|pragma:)")
IGNORE_WITH_REASON = re.compile(
    r"#\s*(?:(?:ruff:\s*)?noqa:[A-Z0-9, ]+[- #]+|type:\s*ignore\[[\w, -]+\]\s+#|pragma:[\w ]+[-#])"
    r"\s*\S+ \S+"
)


def source_files(root: Path) -> Iterator[Path]:
    """All that is shipped below `root`, through its links, relative to it."""
    for folder, _, names in os.walk(root, followlinks=True):
        if Path(folder).name != "__pycache__":
            yield from (Path(folder, name).relative_to(root) for name in names)


def python_files() -> list[Path]:
    return sorted(path for path in source_files(PACKAGE) if path.suffix == ".py")


def run_python(code: str, cwd: Path) -> str:
    """The output of a fresh interpreter; `cwd` is on its path, so keep that off the repository."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- one name for each module


@pytest.mark.parametrize("name", LINKED)
def test_the_top_folders_are_linked_into_the_package(name: str) -> None:
    link = PACKAGE / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{name}"
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("name", [name for name in LINKED if name != "examples"])
def test_no_module_has_a_second_name(name: str) -> None:
    assert importlib.util.find_spec(name) is None, (
        f"`import {name}` works, so its modules can be loaded twice: "
        "run `pytest`, not `python -m pytest`, and keep the repository off sys.path"
    )


def test_tests_are_no_package() -> None:
    """Pytest would put the repository on sys.path, and every folder of it would be importable."""
    assert not (ROOT / "tests" / "__init__.py").exists()


# --- size and shape


def test_no_module_is_over_500_lines() -> None:
    sizes = {str(path): len((PACKAGE / path).read_text().splitlines()) for path in python_files()}
    assert {path: size for path, size in sizes.items() if size > 500} == {}


def test_only_those_above_it_import_the_face() -> None:
    """`from quiesce import Client` is for users: no import contract sees what a lazy name loads."""
    modules = {path.parts[0].removesuffix(".py") for path in python_files()}
    wrong = []
    for path in python_files():
        if path.parts[0] in ("examples", "testing", "joblib.py"):
            continue
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            match node:
                case ast.Import(names=names) if any(name.name == "quiesce" for name in names):
                    wrong.append(f"{path}:{node.lineno}")
                case ast.ImportFrom(module="quiesce", names=names) if any(
                    name.name != "__version__" and name.name not in modules for name in names
                ):
                    wrong.append(f"{path}:{node.lineno}")
    assert wrong == []


def test_every_ignore_has_its_reason() -> None:
    files = [PACKAGE / path for path in python_files()] + sorted(ROOT.glob("tests/**/*.py"))
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if IGNORE.search(line) and not IGNORE_WITH_REASON.search(line)
    ]
    assert wrong == []


# --- what is loaded


def test_the_face_is_lazy(tmp_path: Path) -> None:
    loaded = run_python("import sys, quiesce; print(*sys.modules)", tmp_path).split()
    ours = {name for name in loaded if name.startswith("quiesce.")}
    unwanted = {f"quiesce.{part}" for part in ("broker", "cli", "client", "protocol", "workers")}
    assert ours & unwanted == set()
    assert set(loaded) & {"dill", "msgpack", "multiprocess", "rich", "typer", "zmq"} == set()


def test_a_worker_loads_neither_client_nor_command_line(run_folder: Path) -> None:
    def loaded() -> list[str]:
        return list(sys.modules)

    system = System(run_folder)
    try:
        with system.client() as client:
            modules = set(client.spawn("background", "attach", loaded).result(60))
    finally:
        system.stop()
    parts = {name.split(".")[1] for name in modules if name.startswith("quiesce.")}
    assert parts & {"broker", "cli", "client", "examples", "joblib"} == set()
    assert modules & {"rich", "tomllib", "typer", "sqlite3"} == set()
    assert "quiesce.workers" in modules
    assert "asyncio" not in modules  # it takes long: the first coroutine brings it


@pytest.mark.parametrize(
    ("what", "unwanted"),
    [
        # All of them take longer to load than the rest, and would stay in memory as long as the system runs.
        ("quiesce.cli.main, quiesce.cli.run_system", {"asyncio", "rich", "typer", "zmq"}),
        (
            "quiesce.workers.supervisor",
            {"asyncio", "quiesce.context", "quiesce.workers.worker", "typer"},
        ),
        ("quiesce.broker.serve", {"asyncio", "typer"}),
    ],
)
def test_what_lives_long_loads_little(tmp_path: Path, what: str, unwanted: set[str]) -> None:
    """Of `up`, supervisors and the broker. A system is as quick to start as this is little."""
    loaded = set(run_python(f"import sys, {what}; print(*sys.modules)", tmp_path).split())
    assert loaded & unwanted == set()


#: Seconds beyond those of bare Python, for the face alone. It takes about 10 ms.
IMPORT_TIME = 0.05


def test_the_face_is_imported_fast(tmp_path: Path) -> None:
    code = "import time; began = time.perf_counter(); import quiesce; print(time.perf_counter() - began)"
    deadline = time.monotonic() + 60
    seen = [float(run_python(code, tmp_path))]
    while min(seen) > IMPORT_TIME and time.monotonic() < deadline:  # a busy machine proves nothing
        seen.append(float(run_python(code, tmp_path)))
    assert min(seen) <= IMPORT_TIME, seen


def test_the_broker_loads_nothing_that_unpickles_tasks(tmp_path: Path) -> None:
    """The import contracts say so of the code; this says it of the running interpreter."""
    code = """if True:
        import importlib, pkgutil, sys, quiesce.broker
        for module in pkgutil.walk_packages(quiesce.broker.__path__, "quiesce.broker."):
            importlib.import_module(module.name)
        print(*sys.modules)
    """
    loaded = set(run_python(code, tmp_path).split())
    unwanted = {"dill", "multiprocess", "quiesce.context", "quiesce.protocol.callables"}
    assert loaded & unwanted == set()


# --- what is shipped


def test_the_installed_package_is_this_tree() -> None:
    spec = importlib.util.find_spec("quiesce")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    advice = "run the tests with scripts/test, which installs the tree first"
    assert set(source_files(installed)) == set(source_files(PACKAGE)), advice
    for path in source_files(PACKAGE):
        assert (installed / path).read_bytes() == (PACKAGE / path).read_bytes(), (path, advice)


@pytest.mark.slow
def test_sdist_and_wheel_hold_the_whole_package(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", *LINKED):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
    expected = {f"quiesce/{path}" for path in source_files(tree / "src" / "quiesce")}
    assert "quiesce/py.typed" in expected

    wheel = build("wheel", tree, tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel_files(wheel) == expected

    with tarfile.open(build("sdist", tree, tmp_path)) as sdist:
        sdist.extraction_filter = getattr(tarfile, "data_filter", None)  # None: before 3.11.4
        sdist.extractall(tmp_path)
        unpacked = tmp_path / sdist.getnames()[0]
    assert wheel_files(build("wheel", unpacked, unpacked)) == expected


def build(what: str, tree: Path, target: Path) -> Path:
    """Calls the build backend as pip does, without an environment of its own: no network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{what}({str(target)!r}))"
    return target / run_python(code, tree).splitlines()[-1]


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}
