"""The options of a spawn, for the signatures that type checkers see. What they mean: `Client.spawn`."""

from typing import TypedDict

from quiesce.client.progress import Show


class SpawnOptions(TypedDict, total=False):
    """All may be left out. Beside these there is `kwargs`, which the signatures name themselves."""

    tenant_id: str | None
    timeline_id: str | None
    name: str | None
    shutdown_process_on_error: bool
    retries: int
    restart: str
    timeout: float | None
    unique_key: str | None
    progress: Show
