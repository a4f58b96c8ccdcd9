"""What a broker needs to know, as plain values: built by the command line, handed over as JSON."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quiesce.registry.limits import KindLimits, RuntimeLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerSettings:
    """The settings of the broker. Times in seconds, sizes in bytes.

    `address` as users write it; `control` and `data` the two endpoints it stands for. `lock_path`: the file
    that is locked before binding, so that a second broker refuses. `shutdown_order`: kinds, in the order in
    which a stop of the whole system asks them; all others come after "*". `parent_pid`: 0, or whose death
    must end the broker. `run` names the `quiesce up` that starts the broker, "" if none does; `swept`: the
    runs before it of which nothing lives any more. `stopping`: not "", and the broker begins the stop of the
    whole system with this reason as soon as it has started, unless it is stopping already: the broker before
    it had been asked to, and died. `busy_poll`: see `vigil`. `lease`, `lease_bound`, `clock_drift` and `kill_delay`
    are L, Lb, rho and K of `registry.leases`. `why_fd`: where to write why it can't start or go on, besides
    standard error; -1: nowhere.
    """

    address: str
    control: str
    data: str
    state: str
    lock_path: str
    runtimes: tuple[RuntimeLimits, ...]
    kinds: tuple[KindLimits, ...]
    shutdown_order: tuple[str, ...] = ()
    stop_timeout: float = 30.0
    lease: float = 30.0
    lease_bound: float = 33.0
    clock_drift: float = 0.03
    kill_delay: float = 1.0
    durability: str = "crash"
    payload_limit: int = 64 * 1024 * 1024
    session_timeout: float = 300.0
    history: int = 10_000
    busy_poll: float = 0.0004
    log_level: str = "INFO"
    log_file: str = ""
    log_format: str = "console"
    parent_pid: int = 0
    run: str = ""
    swept: tuple[str, ...] = ()
    stopping: str = ""
    why_fd: int = -1

    @property
    def socket_files(self) -> list[Path]:
        """Of the endpoints that are ipc ones."""
        return [
            Path(endpoint.removeprefix("ipc://"))
            for endpoint in (self.control, self.data)
            if endpoint.startswith("ipc://")
        ]

    def to_json(self) -> str:
        """As one line of JSON; infinities as the string "inf"."""

        def plain(value: object) -> object:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return "inf" if value == math.inf else value

        return json.dumps(plain(asdict(self)))

    @classmethod
    def from_json(cls, text: str) -> "BrokerSettings":
        """The inverse of `to_json`."""

        def revive(item: dict[str, Any]) -> dict[str, Any]:
            return {key: math.inf if value == "inf" else value for key, value in item.items()}

        values = json.loads(text)
        values["runtimes"] = tuple(RuntimeLimits(**revive(item)) for item in values["runtimes"])
        values["kinds"] = tuple(KindLimits(**revive(item)) for item in values["kinds"])
        values["shutdown_order"] = tuple(values["shutdown_order"])
        values["swept"] = tuple(values["swept"])
        return cls(**values)
