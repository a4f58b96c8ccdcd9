"""What belongs to other users, or to everybody, and what the system refuses: each is said with a way on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_system import BACKGROUND, CommandSystem
from quiesce import Client
from quiesce.broker.serve import why_not_ours
from quiesce.client import checks
from quiesce.errors import BrokerUnavailableError

#: Whose things these are: of a user that no process of ours is.
OTHER = 65534
#: Root without its right to enter, read and write everything: capabilities that an exec does not give back.
WITHOUT_RIGHTS = """if True:
    import ctypes, os, sys
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
    os.execv(sys.executable, [sys.executable, "-m", "quiesce", *sys.argv[1:]])
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have things of others")


@pytest.fixture
def system(run_folder: Path) -> Iterator[CommandSystem]:
    made = CommandSystem(run_folder, BACKGROUND)
    yield made
    made.close()


def run_without_rights(
    folder: Path, *words: str, code: int = 1, **env: str
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_RIGHTS, *words],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def of_another(folder: Path, mode: int = 0o700) -> Path:
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, OTHER, OTHER)
    return folder


# --- the broker of another user


@needs_root
def test_a_broker_of_another_user_is_said_to_be_one(system: CommandSystem) -> None:
    of_another(system.folder / "q")
    said = run_without_rights(system.folder, "ps").stderr
    assert f"You may not enter {system.folder}/q: it belongs to user " in said
    assert ", and you are user root. A broker is reached only by the user who runs it. " in said


@needs_root
def test_a_broker_below_a_closed_folder_is_said_to_be(system: CommandSystem) -> None:
    closed = of_another(system.folder / "closed")
    said = run_without_rights(system.folder, "ps", "--address", f"ipc://{closed}/in/q").stderr
    assert f"You may not enter {closed}: it belongs to user " in said


def test_a_folder_that_is_closed_to_its_owner(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do anything
    run_folder.chmod(0o600)
    with pytest.raises(BrokerUnavailableError, match="which is yours: it has mode 0600"):
        Client(f"ipc://{run_folder}", timeout=0.1)
    run_folder.chmod(0o700)


def test_a_folder_that_is_open_or_missing_is_not_closed(run_folder: Path) -> None:
    assert checks.closed_folder(str(run_folder)) == ""
    assert checks.closed_folder(str(run_folder / "missing")) == ""


# --- the folder of the address


def test_chmod_is_advised_for_what_is_ours_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name in ("control", ".control.shut", "data", "lock"):
        (tmp_path / name).touch()
    assert why_not_ours(tmp_path).endswith(", or run chmod 700 on it")
    (tmp_path / "theirs").touch()
    assert why_not_ours(tmp_path).endswith("exist yet (the broker makes it)")
    (tmp_path / "theirs").unlink()
    tmp_path.chmod(0o1777)
    assert "run chmod" not in why_not_ours(tmp_path)


@needs_root
def test_a_folder_that_can_not_be_made_is_said_to_be_one(system: CommandSystem) -> None:
    closed = of_another(system.folder / "closed")
    said = run_without_rights(
        system.folder,
        "up",
        QUIESCE_ADDRESS=f"ipc://{closed}/q",
        QUIESCE_BROKER_STATE=str(system.folder / "theirs"),
    ).stderr
    assert (
        f"the folder {closed}/q of the address can't be made: Permission denied. Name a folder that"
        in said
    )


# --- what may be read, but not written or entered


@needs_root
def test_a_state_folder_of_another_user_is_not_examined_unlocked(system: CommandSystem) -> None:
    state = of_another(system.folder / "state", 0o755)
    said = run_without_rights(system.folder, "doctor", str(state)).stderr
    assert f"the state folder {state} can't be locked against a broker that starts: Perm" in said
    assert "Run it as the user of the broker, or copy the folder" in said


@needs_root
def test_a_current_folder_that_may_not_be_entered(system: CommandSystem) -> None:
    closed = of_another(system.folder / "closed")
    said = run_without_rights(closed, "up").stderr
    assert said.startswith("error: you may not enter the current folder, so whether quiesce.toml")
    said = run_without_rights(
        system.folder, "up", "--config", str(closed / "x.toml"), code=2
    ).stderr
    assert "configuration " in said
    assert "can't be read: Permission denied" in said


# --- too few descriptors


def test_too_few_descriptors_start_nothing(system: CommandSystem) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh", sys.executable, "-m", "quiesce", "up"],
        cwd=system.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done
    assert done.stderr.startswith(
        "error: a process may have 24 files open, and this system needs 52 at least: 2 for each"
    )
    assert not (system.folder / "state").exists()
