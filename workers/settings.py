"""What a pool needs to know, as plain values: built by the command line, handed over as JSON."""

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSettings:
    """The settings of one pool. Times in seconds.

    `control` and `data` are the broker's two endpoints as ZeroMQ addresses. `client_factory` is
    "module:function": called as `function(address, worker_incarnation)` in a worker on the first use of
    `current_client()`; workers do not import the client themselves. `table_fd`: an inherited descriptor of
    the shared table's memory, so that whoever started the supervisor can read it after its death; -1: the
    supervisor makes its own. `parent_pid`: 0, or whose death must end the supervisor.
    `log_file`: for our own log records; "": they go to standard error, as what tasks log always does.
    `run` names the `quiesce up` that starts the supervisor, "" if none does.
    `predecessor`: None, or a JSON-able account of the reaped predecessor (fields of from_supervisor.Predecessor).
    """

    runtime: str
    address: str
    control: str
    data: str
    processes: int = 2
    slots: int = 16
    app_dir: str = ""
    preload: tuple[str, ...] = ()
    title: str = ""
    client_factory: str = "quiesce.client.nested:open_client"
    stop_timeout: float = 30.0
    payload_limit: int = 64 * 1024 * 1024
    log_level: str = "INFO"
    log_file: str = ""
    log_format: str = "console"
    table_fd: int = -1
    parent_pid: int = 0
    run: str = ""
    predecessor: dict[str, object] | None = None
    env: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PoolSettings":
        """The inverse of `to_json`."""
        values = json.loads(text)
        values["preload"] = tuple(values["preload"])
        return cls(**values)
