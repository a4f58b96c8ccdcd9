"""What the parts are told of the configuration: the settings of the broker and of each pool."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from quiesce.broker.settings import BrokerSettings
from quiesce.cli.config import Config
from quiesce.errors import ConfigurationError
from quiesce.protocol.addresses import endpoints
from quiesce.registry import leases
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.workers.settings import PoolSettings

_ADVICE: Final = "name a folder that can be written: [broker] state or QUIESCE_BROKER_STATE"


def state_folder(config: Config, env: Mapping[str, str] | None = None) -> str:
    """The folder of the journal, made if it is missing (0700). ConfigurationError if it can't be used."""
    folder = state_path(config, env)
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the broker's state folder {folder} can't be made: {error.strerror}; {_ADVICE}"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"the broker's state folder {folder} can't be written; {_ADVICE}")
    return folder


def missing_folders(config: Config, env: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What `state_folder` would make now, deepest first."""
    path = Path(state_path(config, env))
    return tuple(str(each) for each in (path, *path.parents) if not os.path.exists(each))


def state_path(config: Config, env: Mapping[str, str] | None) -> str:
    """The folder of the journal, there or not. ConfigurationError if nothing says which."""
    env = os.environ if env is None else env
    if config.broker.state:
        return config.broker.state
    base = env.get("XDG_STATE_HOME", "")
    home = env.get("HOME", "")
    if Path(base).is_absolute():
        return str(Path(base, "quiesce"))
    if Path(home).is_absolute():
        return str(Path(home, ".local", "state", "quiesce"))
    raise ConfigurationError(
        f"no folder for the broker's state: neither XDG_STATE_HOME nor HOME is set; {_ADVICE}"
    )


def broker_settings(
    config: Config, *, parent_pid: int = 0, run: str = "", env: Mapping[str, str] | None = None
) -> BrokerSettings:
    """What the broker is to be told. Makes the state folder; ConfigurationError if it can't be used."""
    broker = config.broker
    where = endpoints(broker.address)
    state = state_folder(config, env)
    order = broker.shutdown_order
    bound = broker.lease_bound
    if bound is None:
        bound = leases.default_bound(broker.lease, broker.clock_drift, broker.kill_delay)
    return BrokerSettings(
        address=broker.address,
        control=where.control,
        data=where.data,
        state=state,
        lock_path=os.path.join(where.folder or state, "lock"),
        runtimes=tuple(
            RuntimeLimits(
                name=runtime.name,
                slots=runtime.slots,
                max_queue=runtime.max_queue,
                kill_neighbours=runtime.kill_neighbours,
                stop_grace=runtime.stop_grace,
            )
            for runtime in config.runtimes
        ),
        kinds=tuple(
            KindLimits(
                name=kind.name,
                stop_grace=kind.stop_grace,
                max_running=kind.max_running,
                max_running_per_tenant=kind.max_running_per_tenant,
            )
            for kind in config.kinds
        ),
        shutdown_order=order if "*" in order else (*order, "*"),
        stop_timeout=broker.stop_timeout,
        lease=broker.lease,
        lease_bound=bound,
        clock_drift=broker.clock_drift,
        kill_delay=broker.kill_delay,
        durability=broker.durability,
        payload_limit=broker.payload_limit,
        session_timeout=broker.session_timeout,
        history=broker.history,
        busy_poll=broker.busy_poll,
        log_level=broker.log_level,
        log_file=broker.log_file,
        log_format=broker.log_format,
        parent_pid=parent_pid,
        run=run,
    )


def pool_settings(
    config: Config,
    runtime: str,
    *,
    parent_pid: int = 0,
    table_fd: int = -1,
    run: str = "",
    predecessor: dict[str, object] | None = None,
) -> PoolSettings:
    """What the supervisor of this runtime is to be told."""
    pool = config.runtime(runtime)
    broker = config.broker
    where = endpoints(broker.address)
    return PoolSettings(
        runtime=runtime,
        address=broker.address,
        control=where.control,
        data=where.data,
        processes=pool.processes,
        slots=pool.slots,
        app_dir=broker.app_dir,
        preload=pool.preload,
        title=pool.title,
        stop_timeout=broker.stop_timeout,
        payload_limit=broker.payload_limit,
        log_level=broker.log_level,
        log_file=broker.log_file,
        log_format=broker.log_format,
        table_fd=table_fd,
        parent_pid=parent_pid,
        run=run,
        predecessor=predecessor,
    )
