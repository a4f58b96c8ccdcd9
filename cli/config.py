"""The configuration: defaults, quiesce.toml and the environment, checked as a whole before anything starts.

An environment variable wins over the file, the file over the default. All that is wrong is said at once,
each with its place and the nearest valid name.

    runtimes   Tables named like the four default runtimes change these. A runtime of another name declares a
               house of its own: then exactly the runtimes of the file exist. `[broker] default_runtimes` says
               otherwise: true keeps the four in any case, false never adds one that the file does not name.
    kinds      Tables change the sixteen default kinds or add to them.
"""

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

from quiesce.cli import keys
from quiesce.cli.keys import Key, RefusedError, nearest
from quiesce.cli.paths import here, why_not_writable
from quiesce.cli.sources import File, find_file, read_file, variable, variables
from quiesce.errors import ConfigurationError
from quiesce.protocol.addresses import default_address, endpoints, refuse_unsafe
from quiesce.registry import leases
from quiesce.task_info import TaskKind

#: The runtimes of the default configuration, with the titles of their processes.
DEFAULT_RUNTIMES: Final[Mapping[str, str]] = {
    "compute-request": "compute request worker",
    "mgmt-request": "mgmt request worker",
    "walreceiver": "walreceiver worker",
    "background": "background op worker",
}
DEFAULT_KINDS: Final = tuple(kind.value for kind in TaskKind)
#: A stop of the whole system: who serves goes first, what saves data late, the status page last.
DEFAULT_SHUTDOWN_ORDER: Final = (
    TaskKind.LIBPQ_ENDPOINT_LISTENER.value,
    TaskKind.PAGE_REQUEST_HANDLER.value,
    "*",
    TaskKind.REMOTE_UPLOAD_TASK.value,
    TaskKind.HTTP_ENDPOINT_LISTENER.value,
)
_TABLES: Final = {"broker": keys.BROKER, "runtimes": keys.RUNTIME, "kinds": keys.KIND}
#: Variables that are no keys: the short one of the address, and those that only the command reads.
_SHORT_ADDRESS: Final = "QUIESCE_ADDRESS"
_OTHER_VARIABLES: Final = (_SHORT_ADDRESS, "QUIESCE_CONFIG", "QUIESCE_DEBUG")


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerConfig:
    """[broker]. Times in seconds, sizes in bytes. The folders are absolute; `state` "" = the default one.

    `lease_bound` None: the least safe one, rounded up (`registry.leases.default_bound`). `metrics`: HOST:PORT, ""
    for none; `metrics_public`: other machines may reach it.
    """

    address: str
    state: str = ""
    lease: float = leases.LEASE
    lease_bound: float | None = None
    clock_drift: float = leases.DRIFT
    kill_delay: float = leases.KILL_DELAY
    durability: str = "crash"
    stop_timeout: float = 30.0
    payload_limit: int = 64 * 1024 * 1024
    session_timeout: float = 300.0
    history: int = 10_000
    busy_poll: float = 0.0004
    app_dir: str = ""
    log_level: str = "INFO"
    log_file: str = ""
    log_format: str = "console"
    metrics: str = ""
    metrics_public: bool = False
    shutdown_order: tuple[str, ...] = DEFAULT_SHUTDOWN_ORDER
    default_runtimes: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """[runtimes.NAME]. `stop_grace` None: that of the task's kind counts."""

    name: str
    processes: int = 2
    slots: int = 16
    max_queue: int = 100_000
    kill_neighbours: bool = False
    stop_grace: float | None = None
    preload: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindConfig:
    """[kinds.NAME]. None: no limit."""

    name: str
    stop_grace: float = 10.0
    max_running: int | None = None
    max_running_per_tenant: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All of it, checked. `source`: the file it came from. `warnings`: what is valid but looks like a slip."""

    broker: BrokerConfig
    runtimes: tuple[RuntimeConfig, ...]
    kinds: tuple[KindConfig, ...]
    source: Path | None = None
    warnings: tuple[str, ...] = ()

    def runtime(self, name: str) -> RuntimeConfig:
        """The runtime of this name; ConfigurationError names the nearest if there is none."""
        for runtime in self.runtimes:
            if runtime.name == name:
                return runtime
        names = tuple(runtime.name for runtime in self.runtimes)
        raise ConfigurationError(
            f"there is no runtime {name!r}{nearest(name, names)} (runtimes: {', '.join(names)})"
        )


def load_config(
    path: str | Path | None = None, env: Mapping[str, str] | None = None, *, to_run: bool = False
) -> Config:
    """The configuration of `path`, QUIESCE_CONFIG or the current folder, changed by the environment.

    `to_run`: of whoever will run it, and so must be able to write `log_file`; others only ask where the broker is.
    Raises ConfigurationError that lists all that is wrong, one line each.
    """
    env = os.environ if env is None else env
    found = find_file(path, env)
    loader = _Loader(read_file(found) if found else None, variables(env), to_run)
    return loader.load()


@dataclass
class _Loader:
    file: File | None
    variables: dict[str, str]
    to_run: bool
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    #: By path, the line or variable that a value came from; those that came from a default are not here.
    places: dict[tuple[str, ...], str] = field(default_factory=dict)

    def load(self) -> Config:
        named = self._read_file()
        own = [name for name in named["runtimes"] if name not in DEFAULT_RUNTIMES]
        self._read_variables(named, own)
        broker = self._broker(named["broker"].get("", {}))
        keep = not own if broker.default_runtimes is None else broker.default_runtimes
        defaults = tuple(DEFAULT_RUNTIMES) if keep else ()
        runtime_names = tuple(dict.fromkeys((*defaults, *named["runtimes"])))
        kind_names = tuple(dict.fromkeys((*DEFAULT_KINDS, *named["kinds"])))
        if not runtime_names:
            self._wrong(("broker", "default_runtimes"), "false, but no [runtimes.NAME] is declared")
        self._check_order(broker.shutdown_order, kind_names)
        if self.problems:
            raise ConfigurationError("\n".join(self.problems))
        return Config(
            broker=broker,
            runtimes=tuple(
                RuntimeConfig(
                    name=name,
                    **{"title": DEFAULT_RUNTIMES.get(name, f"{name} worker")}
                    | named["runtimes"].get(name, {}),
                )
                for name in runtime_names
            ),
            kinds=tuple(
                KindConfig(name=name, **named["kinds"].get(name, {})) for name in kind_names
            ),
            source=self.file.path if self.file else None,
            warnings=tuple(self.warnings),
        )

    # --- the file

    def _read_file(self) -> dict[str, dict[str, dict[str, Any]]]:
        """table -> name -> key -> value; the broker's only name is ""."""
        named: dict[str, dict[str, dict[str, Any]]] = {"broker": {}, "runtimes": {}, "kinds": {}}
        if self.file is None:
            return named
        for table, body in self.file.table.items():
            if table not in _TABLES:
                text = f"there is no table {self.file.header(table)}{nearest(table, _TABLES)}"
                if not isinstance(body, dict):
                    text = f"there is no key {table!r} here"
                    if table in keys.BROKER:
                        text += f"; did you mean {self.file.header('broker')} {table}?"
                self._at((table,), f"{text} (tables: {', '.join(_TABLES)})")
            elif not isinstance(body, dict):
                self._at((table,), f"{table}: expected a table, got {keys.shown(body)}")
            elif table == "broker":
                named[table][""] = self._read_table((table,), body, keys.BROKER)
            else:
                for name, inner in body.items():
                    self._read_named(table, name, inner, named[table])
        return named

    def _read_named(
        self, table: str, name: str, body: object, named: dict[str, dict[str, Any]]
    ) -> None:
        assert self.file is not None
        path = (table, name)
        header = self.file.header(*path)
        if not isinstance(body, dict):
            text = f"expected a table {self.file.header(table, 'NAME')}"
            self._at(path, f"{self.file.header(table)} {name}: {text}, got {keys.shown(body)}")
        elif not re.fullmatch(keys.NAME, name):
            self._at(
                path,
                f"{header}: the name of a {table[:-1]} has 1 to 64 letters, digits, '-', '_' and '.', "
                "and begins and ends with a letter or digit",
            )
        else:
            named[name] = self._read_table(path, body, _TABLES[table])
            self._warn_of_slip(path, header)

    def _warn_of_slip(self, path: tuple[str, ...], header: str) -> None:
        assert self.file is not None
        known = tuple(DEFAULT_RUNTIMES) if path[0] == "runtimes" else DEFAULT_KINDS
        name = path[1]
        if name in known:
            return
        for other in known:
            alike = SequenceMatcher(None, name, other).ratio() > 0.85
            if alike and name.rstrip("0123456789-_") != other:
                self.warnings.append(
                    f"{self.file.place(*path)}: {header} declares a new {path[0][:-1]}; "
                    f"did you mean {other!r}?"
                )

    def _read_table(
        self, path: tuple[str, ...], body: dict[str, Any], known: Mapping[str, Key]
    ) -> dict[str, Any]:
        assert self.file is not None
        header = self.file.header(*path)
        values = {}
        for name, value in body.items():
            key = known.get(name)
            place = (*path, name)
            if key is None:
                text = f"{header} has no key {name!r}{nearest(name, known)}"
                self._at(place, f"{text} (keys: {', '.join(known)})")
                continue
            self.places[place] = f"{self.file.place(*place)}: {header} {name}"
            try:
                values[name] = key.check(value)
            except RefusedError as refused:
                self._wrong(place, str(refused))
        return values

    # --- the environment

    def _read_variables(self, named: dict[str, dict[str, dict[str, Any]]], own: list[str]) -> None:
        names = {
            "broker": [""],
            "runtimes": list(dict.fromkeys((*DEFAULT_RUNTIMES, *named["runtimes"]))),
            "kinds": list(dict.fromkeys((*DEFAULT_KINDS, *named["kinds"]))),
        }
        places: dict[str, list[tuple[str, str, str]]] = {}
        for table, known in _TABLES.items():
            for name in names[table]:
                for key in known:
                    path = (table, name, key) if name else (table, key)
                    places.setdefault(variable(*path), []).append((table, name, key))
        if _SHORT_ADDRESS in self.variables:
            self._read_variable(_SHORT_ADDRESS, ("broker", "", "address"), named)
        for given in self.variables:
            found = places.get(given, [])
            if len(found) > 1:
                both = " and ".join(f"[{table}.{name}] {key}" for table, name, key in found)
                self.problems.append(f"environment: {given} may mean {both}; use a file instead")
            elif found:
                self._read_variable(given, found[0], named)
            elif given not in _OTHER_VARIABLES:
                self._refuse_variable(given, tuple(places))
        if own and "default_runtimes" not in named["broker"].get("", {}):
            self._refuse_replaced(own, named)

    def _read_variable(
        self, given: str, place: tuple[str, str, str], named: dict[str, dict[str, dict[str, Any]]]
    ) -> None:
        table, name, key = place
        path = (table, name, key) if name else (table, key)
        self.places[path] = f"environment: {given}"
        known = _TABLES[table][key]
        try:
            value = known.check(keys.from_text(self.variables[given], known.form))
        except RefusedError as refused:
            self._wrong(path, str(refused))
        else:
            named[table].setdefault(name, {})[key] = value

    def _refuse_variable(self, given: str, valid: tuple[str, ...]) -> None:
        """One that looks like none of ours may belong to somebody else, unless it begins like a table."""
        ours = given.startswith(("QUIESCE_BROKER_", "QUIESCE_RUNTIMES_", "QUIESCE_KINDS_"))
        hint = nearest(given, (*valid, *_OTHER_VARIABLES))
        key = given.removeprefix("QUIESCE_").lower()
        if key in keys.BROKER:  # as QUIESCE_ADDRESS, but that is the only short one
            ours, hint = True, f"; did you mean {variable('broker', key)!r}?"
        close = any(
            SequenceMatcher(None, given, each).ratio() > 0.8 for each in (*valid, *_OTHER_VARIABLES)
        )
        if ours or close:
            self.problems.append(
                f"environment: {given} names no key{hint} (a variable can set the keys of runtimes "
                "and kinds that the defaults or the file declare)"
            )

    def _refuse_replaced(self, own: list[str], named: dict[str, dict[str, dict[str, Any]]]) -> None:
        """A variable of a default runtime that the file's own runtimes have replaced must not bring it back."""
        for name in list(named["runtimes"]):
            file_table = self.file.table.get("runtimes", {}) if self.file else {}
            if name not in file_table:
                given = self.places[("runtimes", name, next(iter(named["runtimes"][name])))]
                self.problems.append(
                    f"{given}: there is no runtime {name!r}: the file declares its own ({', '.join(own)})"
                )

    # --- what belongs together

    def _broker(self, values: dict[str, Any]) -> BrokerConfig:
        values = dict(values)
        values.setdefault("address", default_address())
        try:
            endpoints(values["address"])
            refuse_unsafe(values["address"])
        except ConfigurationError as error:
            self._wrong(("broker", "address"), str(error))
        for key in ("state", "app_dir", "log_file"):
            if key in values:
                values[key] = self._folder(("broker", key), values[key])
        if "app_dir" not in values:
            values["app_dir"] = str(here())
        if not Path(values["app_dir"]).is_dir():
            self._wrong(("broker", "app_dir"), f"there is no folder {values['app_dir']}")
        if "log_file" in values:
            self._check_log_file(values["log_file"])
        broker = BrokerConfig(**values)
        self._check_bound(broker, values)
        self._check_metrics(broker)
        return broker

    def _check_log_file(self, path: str) -> None:
        folder = Path(path).parent
        if not folder.is_dir():
            self._wrong(("broker", "log_file"), f"there is no folder {folder}")
        elif self.to_run and (why := why_not_writable(path)):
            self._wrong(("broker", "log_file"), f"{why}; name a file that can be, or leave it out")

    def _check_metrics(self, broker: BrokerConfig) -> None:
        """Whoever can reach it may read it: that is to be said twice."""
        if not broker.metrics or broker.metrics_public:
            return
        host, _ = keys.host_and_port(broker.metrics)
        if not ipaddress.ip_address(host).is_loopback:
            self._wrong(
                ("broker", "metrics"),
                f"{broker.metrics} can be reached from other machines, and whoever reaches it may read it: use "
                "127.0.0.1, or add metrics_public = true",
            )

    def _check_bound(self, broker: BrokerConfig, values: Mapping[str, Any]) -> None:
        """A supervisor must not be declared dead while it may still run."""
        rule = ("lease", "clock_drift", "kill_delay")
        if broker.lease_bound is None or any(
            ("broker", key) in self.places and key not in values for key in rule
        ):
            return  # the default is safe; or what it depends on is wrong itself
        terms = (broker.lease, broker.clock_drift, broker.kill_delay)
        if not leases.is_safe(broker.lease_bound, *terms):
            least = math.ceil(leases.safe_bound(*terms) * 1000) / 1000
            given = ", ".join(f"{key} {term:g}" for key, term in zip(rule, terms, strict=True))
            self._wrong(
                ("broker", "lease_bound"),
                f"{broker.lease_bound:g} s is not safe with {given}: a supervisor could still run when it is "
                f"declared dead. The least is {least:g} s = (1 + clock_drift) * (lease / (1 - clock_drift) + "
                "kill_delay); leave the key out to get it",
            )

    def _folder(self, path: tuple[str, ...], given: str) -> str:
        """Absolute. In a file relative to the file, in the environment to the current folder."""
        try:
            folder = Path(given).expanduser()
        except RuntimeError:
            self._wrong(path, f"{given!r}: the home folder is not known")
            return given
        from_file = self.file is not None and not self.places[path].startswith("environment")
        # A pipe is nowhere: /dev/fd is no place for a state folder.
        file = self.file.path if self.file and from_file and self.file.path.is_file() else None
        base = here() if file is None else file.absolute().parent
        return os.path.normpath(base / folder)

    def _check_order(self, order: tuple[str, ...], kinds: tuple[str, ...]) -> None:
        for kind in order:
            if kind != "*" and kind not in kinds:
                self._wrong(
                    ("broker", "shutdown_order"), f"there is no kind {kind!r}{nearest(kind, kinds)}"
                )

    # --- what is wrong

    def _wrong(self, path: tuple[str, ...], text: str) -> None:
        """A value is wrong, wherever it came from."""
        place = self.places.get(path, f"default of [{'.'.join(path[:-1])}] {path[-1]}")
        self.problems.append(f"{place}: {text}")

    def _at(self, path: tuple[str, ...], text: str) -> None:
        """Something in the file is wrong."""
        assert self.file is not None
        self.problems.append(f"{self.file.place(*path)}: {text}")
