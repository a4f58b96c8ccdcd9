"""Task bodies of the soak. Each has WIDTH slots of a witness; what it does in them is told by their order."""

import time
from typing import Any, Final

import quiesce
from quiesce.testing import bodies
from quiesce.testing.witness import opened

#: Slots of one task: two for what it does, one that counts how often it has begun, and those of its child.
WIDTH: Final = 6
BEGUN: Final = 2
CHILD: Final = 3
#: Seconds for which a stop that a task has made is watched.
_WATCH: Final = 0.1


def begin(path: str, slot: int) -> None:
    """The body begins, once more."""
    opened(path).tick(slot + BEGUN)


def run(path: str, slot: int, how: str) -> Any:
    """One of the synchronous bodies of `quiesce.testing.bodies`."""
    begin(path, slot)
    return getattr(bodies, how)(path, slot)


async def run_async(path: str, slot: int, how: str) -> Any:
    """One of the asynchronous ones."""
    begin(path, slot)
    return await getattr(bodies, how)(path, slot)


def short(path: str, slot: int) -> int:
    """Tick and return."""
    begin(path, slot)
    opened(path).tick(slot)
    return slot


def fail(path: str, slot: int) -> None:
    """Tick and raise."""
    begin(path, slot)
    opened(path).tick(slot)
    raise ValueError("on purpose")


def spawner(path: str, slot: int, runtime: str, tenant: str) -> Any:
    """Spawn a task of the same tenant that dozes, and doze."""
    begin(path, slot)
    quiesce.current_client().spawn(
        runtime,
        "attach",
        run,
        path,
        slot + CHILD,
        "doze",
        tenant_id=tenant,
        name=f"slot-{slot + CHILD}",
    )
    return bodies.doze(path, slot)


def stopper(path: str, slot: int, runtime: str, tenant: str) -> list[str]:
    """Stop what the own tenant has in a runtime; gives those of them, by name, that have run on."""
    begin(path, slot)
    witness = opened(path)
    witness.tick(slot)
    report = quiesce.current_client().shutdown_tasks(
        runtime=runtime, tenant_id=tenant, grace=0.2, reason="a task wants it"
    )
    instant = witness.now()
    end = time.monotonic() + _WATCH
    while time.monotonic() < end and not quiesce.wait_for_shutdown(0.01):
        pass
    return ran_on(path, (row.name for row in report.tasks), instant)


def ran_on(path: str, names: Any, instant_ns: int) -> list[str]:
    """Of these tasks, by name, those that have ticked after this instant."""
    witness = opened(path)
    late = []
    for name in names:
        first = slot_of(name)
        if first is not None and witness.ticked_after(instant_ns, range(first, first + 3)):
            late.append(name)
    return late


def slot_of(name: str) -> int | None:
    """The first slot of a task, by its name; None if it is none of the soak's."""
    word, _, digits = name.partition("slot-")
    return int(digits) if not word and digits.isdigit() else None
