"""A real broker in a folder of its own, with a small configuration: for peers that mean it no good."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from quiesce import Client
from quiesce.broker.settings import BrokerSettings
from quiesce.protocol.addresses import endpoints
from quiesce.registry.limits import KindLimits, RuntimeLimits


class House:
    """One broker process and nobody else. Its log is in `log`."""

    def __init__(
        self, folder: Path, *, address: str | None = None, descriptors: int = 0, **changes: Any
    ) -> None:
        self.folder = folder
        self.address = address or f"ipc://{folder}/run"
        self.log = folder / "log"
        self.descriptors = descriptors
        where = endpoints(self.address)
        values: dict[str, Any] = {
            "address": self.address,
            "control": where.control,
            "data": where.data,
            "state": str(folder / "state"),
            "lock_path": str(folder / "broker.lock"),
            "runtimes": (RuntimeLimits(name="background", slots=4),),
            "kinds": (KindLimits(name="compaction"),),
            "parent_pid": os.getpid(),
            "log_level": "INFO",
        }
        self.settings = BrokerSettings(**{**values, **changes})
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """A broker process."""
        limit = self.descriptors

        def narrow() -> None:
            if limit:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4 * limit))

        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quiesce.broker.serve"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                preexec_fn=narrow,  # noqa: PLW1509 - it sets a limit, and takes no lock
            )
        assert self.process.stdin is not None
        self.process.stdin.write(self.settings.to_json().encode() + b"\n")
        self.process.stdin.close()
        return self.process

    def client(self, timeout: float = 20.0) -> Client:
        """A well-behaved client."""
        return Client(self.address, timeout=timeout)

    def kill(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """In order."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the broker did not end; its log:\n{self.text()}") from None

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def memory(self) -> int:
        """Bytes that are its own (PSS)."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no Pss")

    def cpu(self) -> float:
        """Seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_descriptors(self) -> int:
        """How many."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def counters(client: Client) -> dict[str, Any]:
    """What the broker has counted."""
    found: dict[str, Any] = client.statistics()["broker"]
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # of a plain dict
