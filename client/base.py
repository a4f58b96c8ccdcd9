"""What Client and AsyncClient share: all that does not wait."""

import math
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from quiesce.client import checks, outcomes, requests
from quiesce.client.driver import Driver
from quiesce.client.records import Look, Reply, SpawnRecord
from quiesce.client.waiting import raise_if_asked
from quiesce.context import current_context
from quiesce.errors import BrokerUnavailableError, ConfigurationError, QuiesceError
from quiesce.protocol.addresses import endpoints, refuse_unsafe, resolve
from quiesce.protocol.frames import Payload
from quiesce.registry.ids import Attempt, TaskId
from quiesce.registry.rows import SpawnRow

T = TypeVar("T")

#: Seconds that closing may take beyond the wait for answers.
CLOSING: Final = 5.0
#: Makes a row of a tuple: half of what its constructor costs.
_new: Final = tuple.__new__


class _NotEntered:
    """In the place of a driver until there is one."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # who only looks what this is
            raise AttributeError(name)
        raise RuntimeError(
            "this AsyncClient has not been entered, so it is not connected: "
            "`async with AsyncClient() as client:`"
        )


class BaseClient:
    """Address, timeout and driver. Not made by users."""

    #: How users name another broker, for error texts; the command line has its own words.
    _another = "address= or QUIESCE_ADDRESS"

    _driver: Driver = _NotEntered()  # type: ignore[assignment]  # all that is done with it raises
    _finalizer: "weakref.finalize[[], BaseClient]"

    def __init__(self, address: str | None, key: object, timeout: float) -> None:
        if key is not None:
            raise ConfigurationError(
                "key: CURVE over tcp is not built yet; use ipc://, or tcp:// on this machine, without a key"
            )
        if address is not None and not isinstance(address, str):
            raise TypeError(f"address must be a string or None, not {address!r}")
        limit = checks.seconds("timeout", timeout, positive=True)
        #: Seconds that bound each wait for the broker's answer.
        self.timeout: float = math.inf if limit is None else limit
        self._rows = checks.Rows()
        #: Where the broker is.
        self.address: str = resolve(address)
        refuse_unsafe(self.address)

    def _start(self, worker: int) -> None:
        """Begin to connect. The driver refers to nothing of the client, so that the client can go."""
        self._driver = Driver(self.address, worker)
        self._finalizer = weakref.finalize(self, self._driver.retire)
        self._finalizer.atexit = False  # the driver sees to that itself
        self._driver.start()  # last of all: an interrupt must not leave it to nobody

    def __repr__(self) -> str:
        driver = vars(self).get("_driver")
        state = "not connected" if driver is None else "closed" if driver.closing else "open"
        return f"<{type(self).__name__} of {self.address}, {state}>"

    # --- spawning ------------------------------------------------------------------------------

    def _prepared(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        asked: checks.Asked,
        parent: tuple[TaskId, Attempt] | None = None,
    ) -> SpawnRecord:
        """All of a spawn but the last step. `parent`: the attempt for which a thread of ours makes it.

        `asked`: the arguments of `checks.spawn_row`.
        """
        row = self._rows.get(asked)
        if args or kwargs is not None:
            row = _new(SpawnRow, (*row[:-1], checks.packed_arguments(args, kwargs)))
        if parent is not None:
            row = row._replace(parent=parent)
        return SpawnRecord(row, row)

    def _hand_over(self, record: SpawnRecord) -> SpawnRecord:
        """The last step."""
        row = record.row
        assert row is not None, "taken by nobody yet"
        driver = self._driver
        if len(row.function) + len(row.arguments) <= driver.payload_limit:
            driver.spawn(record)
        else:  # never handed over, so it takes no number
            trouble = checks.too_large(row, row.arguments, driver.payload_limit)
            driver.refuse([record], ("PayloadTooLargeError", trouble))
        return record

    def _spawn_many(
        self, items: Iterable[Any], kwargs: Mapping[str, Any] | None, asked: checks.Asked
    ) -> list[SpawnRecord]:
        """The same for several."""
        arguments: list[Payload] = [
            checks.packed_arguments(item if isinstance(item, tuple) else (item,), kwargs)
            for item in items
        ]
        row = self._rows.get(asked)
        if not arguments:
            return []
        look = Look()
        records = [SpawnRecord(row, None, look) for _ in arguments]
        trouble = checks.batch_too_large(row, arguments, self._driver.payload_limit)
        if trouble is None:
            self._driver.spawn_many(row, arguments, records)
        else:
            self._driver.refuse(records, ("PayloadTooLargeError", trouble))
        return records

    # --- answers -------------------------------------------------------------------------------

    def _read(self, ask: requests.Ask[T], reply: Reply) -> T:
        """What the answer says; raises its refusal."""
        if reply.trouble is not None:
            raise outcomes.refusal(*reply.trouble)
        return ask.convert(reply.answer)

    def _raise_if_asked(self) -> None:
        raise_if_asked(current_context())

    # --- errors --------------------------------------------------------------------------------

    def _unreachable(self, ready: Reply) -> QuiesceError:
        """Why there is no connection after the timeout."""
        if ready.trouble is not None:
            return outcomes.refusal(*ready.trouble)
        folder = endpoints(self.address).folder
        if folder is None:
            found = ""
        elif closed := checks.closed_folder(folder):
            found = f" {closed} A broker is reached only by the user who runs it."
        elif Path(folder, "control").exists():
            found = " Its socket file is there: the broker hangs, or has died and left it."
        else:
            found = f" There is no socket in {folder}."
        return BrokerUnavailableError(
            f"no broker answered at {self.address} within {self.timeout:g} s.{found} Start one with "
            f"`quiesce up`, or name another with {self._another}"
        )

    def _unavailable(self, verb: str, more: str = "") -> BrokerUnavailableError:
        """An answer that did not come. `more`: what else may be the reason."""
        said = f" It said goodbye: {self._driver.leaving}." if self._driver.leaving else ""
        return BrokerUnavailableError(
            f"the broker at {self.address} has not answered {verb} in time (the client's timeout is "
            f"{self.timeout:g} s).{said} Whether it was done is unknown. See `quiesce up`, `quiesce ps`{more}"
        )

    def _unanswered_spawn(self, name: str) -> BrokerUnavailableError:
        """The same of a spawn, which may also wait behind a task."""
        more = ". One with a unique_key waits while a task that has the key is stopping"
        return self._unavailable(f"the spawn of {name}", more)

    def _unanswered(self, count: int) -> BrokerUnavailableError:
        """Spawns without an answer at the end."""
        return BrokerUnavailableError(
            f"the broker at {self.address} has not answered {count} spawn{'s' * (count != 1)} within "
            f"{self.timeout:g} s; the client is closed, and whether they were registered is unknown"
        )
