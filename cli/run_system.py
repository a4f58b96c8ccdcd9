"""A system or a part of it in the foreground, from its configuration to its exit status."""

import logging
import os
import sys

from quiesce import logs
from quiesce.cli.config import Config
from quiesce.cli.output import print_error, print_json
from quiesce.cli.up import Up, say
from quiesce.errors import BrokerUnavailableError, QuiesceError


def run_system(
    config: Config,
    as_json: bool,
    runtimes: tuple[str, ...] | None = None,
    with_broker: bool = True,
) -> int:
    """Run it until it ends; gives the exit status. ConfigurationError if nothing could be started.

    Args:
        config: of the system.
        as_json: says on stdout that it is up, and on stderr why it is not, as one document.
        runtimes: whose pools to start; None: all of them.
        with_broker: start it, too.
    """
    for warning in config.warnings:
        say(config, f"warning: {warning}", logging.WARNING)
    on_ready = _announce_json if as_json else None
    system = Up(config, runtimes=runtimes, with_broker=with_broker, on_ready=on_ready)
    code = system.run()
    if code and as_json:
        kind = QuiesceError if system.ready else BrokerUnavailableError
        print_error(kind.__name__, system.trouble, as_json=True)
    return code


def _announce_json(ready: Up) -> None:
    try:
        _print_ready(ready)
    except (
        OSError
    ):  # whoever wanted to know is gone, or its disk is full; the system is up all the same
        logs.flush(sys.stdout)


def _print_ready(ready: Up) -> None:
    print_json(
        {
            "pid": os.getpid(),
            "broker_pid": ready.broker.pid if ready.broker else None,
            "address": ready.config.broker.address,
            "runtimes": {
                pool.runtime: {"processes": pool.processes, "slots": pool.slots}
                for pool in ready.pools
            },
        }
    )
