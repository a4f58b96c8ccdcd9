"""A virtual environment for each peer, made when it is first needed and kept in `.bench/envs`."""

import fcntl
import os
import subprocess
import sys
import venv
from pathlib import Path

import peerlist

ROOT = Path(__file__).resolve().parents[1]
#: Seconds to install one peer.
PATIENCE = 900

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from redis_server import find as find_redis  # noqa: E402 - the drivers' own folder is no package


class MissingError(Exception):
    """Why something can't be measured here; its text is for the report."""


def cache() -> Path:
    """The folder for what is made: environments, logs."""
    return Path(os.environ.get("QUIESCE_BENCH_CACHE") or ROOT / ".bench").absolute()


def python_of(kind: peerlist.Kind, *, install: bool) -> str:
    """The interpreter for a driver. Raises MissingError."""
    if kind.redis and find_redis() is None:
        raise MissingError("there is no redis-server in PATH, and REDIS_SERVER names none")
    if not kind.environment:
        return sys.executable
    return environment(kind.environment, kind.requirements, install=install)


def environment(name: str, requirements: tuple[str, ...], *, install: bool) -> str:
    """The interpreter of an environment with these requirements. Raises MissingError."""
    folder = cache() / "envs" / name
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = f"{sys.version_info[:2]} {' '.join(requirements)}\n"
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return str(python)
    if not install:
        raise MissingError("it is not installed, and --no-install was given")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once must not install into one folder
        print(f"setting up: installing {' '.join(requirements)} into {folder} ...", file=sys.stderr)
        try:
            venv.create(folder, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
            subprocess.run(
                [*command, "--disable-pip-version-check"],
                check=True,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=PATIENCE,
            )
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().splitlines()[-1:] or ["no reason given"]
            raise MissingError(f"pip could not install it: {last[0]}") from None
        except (subprocess.TimeoutExpired, OSError) as error:
            raise MissingError(f"it could not be installed: {error}") from None
        stamp.write_text(wanted)
    return str(python)
