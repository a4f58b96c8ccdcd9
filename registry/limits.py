"""What a configuration says of runtimes and kinds, as the registry needs it."""

import math
from dataclasses import dataclass
from typing import Final

#: Characters of one label: a name, a tenant, a key. Labels are kept in histories and reports, and payloads are not.
LABEL_LIMIT: Final = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeLimits:
    """One runtime. `slots`: tasks at once in one process. `stop_grace` None: that of the kind counts."""

    name: str
    slots: int = 16
    max_queue: int = 100_000
    kill_neighbours: bool = False
    stop_grace: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KindLimits:
    """One kind. `stop_grace`: seconds from the request to stop until force; inf: never.
    None for the other two: no limit."""

    name: str
    stop_grace: float = 10.0
    max_running: int | None = None
    max_running_per_tenant: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether a task of this kind may have to wait for others of it to end."""
        return self.max_running is not None or self.max_running_per_tenant is not None

    def __post_init__(self) -> None:
        if math.isnan(self.stop_grace) or self.stop_grace < 0:
            raise ValueError(f"stop_grace of kind {self.name!r} must be 0 or more")
