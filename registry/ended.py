"""What the registry remembers of a task that has ended, changed by nobody any more."""

from quiesce.registry.records import Task


class EndedTask:
    """A task in the bounded history: what a listing shows of it, without its payloads."""

    __slots__ = (
        "ask_reason",
        "attempt",
        "created_at",
        "ended_at",
        "evidence",
        "exit_status",
        "host",
        "id",
        "kind",
        "name",
        "outcome",
        "progress",
        "runtime",
        "started_at",
        "stopping",
        "tenant_id",
        "timeline_id",
        "worker_pid",
    )

    def __init__(
        self,
        task: Task,
        outcome: str,
        evidence: str,
        exit_status: int | None,
        started_at: float | None,
        ended_at: float,
        host: str,
        worker_pid: int | None,
    ) -> None:
        self.id = task.id
        self.attempt = task.attempt
        spawn = task.spawn
        self.kind = spawn.kind
        self.name = spawn.name
        self.runtime = spawn.runtime
        self.tenant_id = task.tenant_id
        self.timeline_id = task.timeline_id
        ask = task.ask
        self.stopping = ask is not None
        self.ask_reason = ask.reason if ask else ""
        self.created_at = task.created_at
        self.started_at = started_at
        self.ended_at = ended_at
        self.outcome = outcome
        self.evidence = evidence
        self.exit_status = exit_status
        self.progress = task.progress
        self.host = host
        self.worker_pid = worker_pid
