"""A scope: which tasks a stop, a listing or a closure speaks of."""

from typing import NamedTuple


class Scope(NamedTuple):
    """(kind, tenant_id, timeline_id, runtime); None matches anything.

    A task without a tenant (or timeline) never matches a scope that names one.
    """

    kind: str | None = None
    tenant_id: str | None = None
    timeline_id: str | None = None
    runtime: str | None = None

    def matches(
        self,
        kind: str | None,
        tenant_id: str | None,
        timeline_id: str | None,
        runtime: str | None,
    ) -> bool:
        """Whether a task with these labels is in the scope."""
        return (
            (self.kind is None or self.kind == kind)
            and (self.tenant_id is None or self.tenant_id == tenant_id)
            and (self.timeline_id is None or self.timeline_id == timeline_id)
            and (self.runtime is None or self.runtime == runtime)
        )

    def covers(self, other: "Scope") -> bool:
        """Whether every task that `other` can match is in this scope too."""
        return self.matches(*other)

    def __str__(self) -> str:
        parts = [
            f"{field}={value}"
            for field, value in zip(self._fields, self, strict=True)
            if value is not None
        ]
        return " ".join(parts) or "everything"
