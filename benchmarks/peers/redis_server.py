"""A redis-server of one's own, for the peers that need one: a socket in a folder, nothing on disk."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path


def find() -> str | None:
    """The program: what REDIS_SERVER names, or the one in PATH."""
    return os.environ.get("REDIS_SERVER") or shutil.which("redis-server")


class Redis:
    """Running until `close`."""

    def __init__(self) -> None:
        program = find()
        if program is None:
            raise RuntimeError("no redis-server in PATH, and REDIS_SERVER names none")
        self.folder = Path(tempfile.mkdtemp(prefix="r-"))
        self.path = self.folder / "s"
        words = f"--port 0 --unixsocket {self.path} --dir {self.folder} --appendonly no --save"
        self.process = subprocess.Popen(
            [program, *words.split(), ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not self.path.exists():
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.close()
                raise RuntimeError("redis-server did not start")
            time.sleep(0.005)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
