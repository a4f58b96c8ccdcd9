"""The options of a spawn, for the signatures that type checkers see. What they mean: `Client.spawn`."""

from typing import Literal, TypeAlias, TypedDict

from quiesce.client.progress import Show
from quiesce.registry.states import State

#: After which ends of its attempts a task is run again.
Restart: TypeAlias = Literal["never", "on-failure", "always"]
#: Where a task is in its life, as a word or a member of State.
AnyState: TypeAlias = Literal["queued", "assigned", "running", "ended"] | State


class SpawnOptions(TypedDict, total=False):
    """All may be left out. Beside these there is `kwargs`, which the signatures name themselves."""

    tenant_id: str | None
    timeline_id: str | None
    name: str | None
    shutdown_process_on_error: bool
    retries: int
    restart: Restart
    timeout: float | None
    unique_key: str | None
    progress: Show
