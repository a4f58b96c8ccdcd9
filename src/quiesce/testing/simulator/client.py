"""A client process: the real session machine, what it was asked to do, and what it has been told.

Whatever it is told is judged at once. `acts` draws what it does next; `nested` is the client in a worker.
"""

from typing import TYPE_CHECKING, Any, Final

from quiesce.broker.peers import Channel
from quiesce.client.session import ClientSession
from quiesce.client.session_state import READY
from quiesce.client.steps import (
    DATA,
    Answered,
    Arrived,
    Connected,
    Disconnected,
    Event,
    HeartbeatDue,
    ManyWanted,
    Rejected,
    Replied,
    RequestWanted,
    ResultsGone,
    Send,
    SessionGiven,
    SessionWanted,
    SpawnsUnknown,
    SpawnsWanted,
    TasksEnded,
    TurnEnded,
)
from quiesce.protocol import from_client, to_client
from quiesce.registry.ids import SpawnNumber
from quiesce.registry.rows import SpawnRow
from quiesce.registry.scope import Scope
from quiesce.testing.simulator.engine import Violation
from quiesce.testing.simulator.network import Link
from quiesce.testing.simulator.process import Clock, Process
from quiesce.testing.simulator.truths import Call, Labels

if TYPE_CHECKING:
    from quiesce.testing.simulator.world import World

#: Seconds between heartbeats, as the real driver's.
HEARTBEAT: Final = 5.0
_TURN: Final = TurnEnded()


class Spawned:
    """One spawn, as its client knows it."""

    __slots__ = ("labels", "parent", "retries", "task_id")

    def __init__(self, labels: Labels, parent: Any = None) -> None:
        self.labels = labels
        #: 0 until it is answered.
        self.task_id = 0
        #: The attempt that waits for the answer.
        self.parent = parent


class Client(Process):
    """Speaks to the broker; says nothing of its own accord but what keeps its session."""

    kind = "client"

    def __init__(self, world: "World", host: str, clock: Clock, worker: int = 0) -> None:
        super().__init__(world, host, clock)
        self.judge = world.judge
        self.session = ClientSession(
            session=self.new_name(), pid=self.pid, host=host, worker=worker
        )
        self.judge.sessions[self.session.session] = self
        #: By key: all and only the spawns that are not over.
        self.spawned: dict[int, Spawned] = {}
        #: By key: the requests that have no answer.
        self.calls: dict[int, Call] = {}
        #: Blocks to be released: stop ids.
        self.blocks: list[int] = []
        self.unknown = 0
        self.open_links()
        self.engine.after(HEARTBEAT * (0.5 + 0.5 * self.engine.random.random()), self.beat)

    def new_name(self) -> bytes:
        """Names a session."""
        return self.engine.random.getrandbits(128).to_bytes(16, "big")

    def open_links(self) -> None:
        """Both sockets, new."""
        network = self.world.network
        self.control = Link(network, self, "control", self.host, immediate=True)
        self.data = Link(network, self, "data", self.host, immediate=True)
        self.links = [self.control, self.data]

    # --- for its links ----------------------------------------------------------------------------

    def hear(self, channel: Channel, message: Any) -> None:
        """A message of the broker."""
        if not self.alive:
            return
        if self.engine.trace is not None:
            self.engine.note(f"{self} hears {message!r:.300}")
        self.handle(Arrived(channel, message))

    def heard(self) -> None:
        """All that has arrived is acknowledged."""
        if self.alive and self.session.taken:
            self.handle(_TURN)

    def lost(self, channel: Channel) -> None:
        """As its monitors say."""
        if self.alive:
            self.handle(Disconnected(channel))

    def back(self, channel: Channel) -> None:
        """Likewise."""
        self.handle(Connected(channel))

    def beat(self) -> None:
        """Time for a heartbeat."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.beat)
            return
        self.handle(HeartbeatDue())
        self.engine.after(HEARTBEAT, self.beat)

    # --- the session ------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Tell the session, and do what it wants done."""
        for effect in self.session.handle(event):
            kind = type(effect)
            if kind is Send:
                link = self.data if effect.channel == DATA else self.control  # type: ignore[union-attr]  # narrowed by kind
                link.send(effect.message)  # type: ignore[union-attr]  # narrowed by kind
            elif kind is Answered:
                self._answered(effect)  # type: ignore[arg-type]  # narrowed by kind
            elif kind is TasksEnded:
                self._ended(effect)  # type: ignore[arg-type]  # narrowed by kind
            elif kind is Replied:
                self._replied(effect)  # type: ignore[arg-type]  # narrowed by kind
            else:
                self._apply(effect)

    def _apply(self, effect: Any) -> None:
        match effect:
            case SpawnsUnknown(keys) | ResultsGone(keys):
                self.judge.may_forget(self.session.session)
                for key in keys:
                    self.unknown += 1
                    self.engine.counts["spawns reported as unknown"] += 1
                    self._settle(self.spawned.pop(key))
            case SessionWanted():
                for link in self.links:
                    link.close()
                name = self.new_name()
                self.judge.sessions[name] = self
                self.blocks.clear()
                self.open_links()
                self.handle(SessionGiven(name))
            case Rejected(error, text):
                raise Violation(f"{self} is rejected: {error}: {text}")

    def _answered(self, effect: Answered) -> None:
        for row in effect.rows:
            spawned = self.spawned.get(row.number)
            if spawned is None or spawned.task_id:
                raise Violation(f"{self}: spawn {row.number} is answered a second time: {row}")
            if row.task_id:
                spawned.task_id = row.task_id
                self._settle(spawned)
            else:
                self.engine.counts[f"refused: {row.error}"] += 1
                self._settle(self.spawned.pop(row.number))

    def _settle(self, spawned: Spawned) -> None:
        """Whoever waits for the answer of a nested spawn goes on."""
        parent, spawned.parent = spawned.parent, None
        if parent is not None:
            parent.unanswered -= 1
            if not parent.unanswered and parent.over is not None:
                parent.worker.finish(parent)

    def _ended(self, effect: TasksEnded) -> None:
        for keys, row in effect.ends:
            for key in keys:
                spawned = self.spawned.pop(key, None)
                if spawned is None:
                    raise Violation(f"{self}: spawn {key} ends a second time: {row}")
                if spawned.task_id != row.task_id:
                    raise Violation(f"{self}: spawn {key} of task {spawned.task_id} gets {row}")
            self.judge.result(row)

    def _replied(self, effect: Replied) -> None:
        call = self.calls.pop(effect.key, None)
        if call is None:
            return  # sent again, and answered again: its caller has had the first answer
        message = effect.message
        self.judge.has_reopened(call)
        if type(message) is to_client.StopReport:
            self.judge.report(self, call, message)
            if call.hold and not message.timed_out:
                self.blocks.append(message.stop_id)
        elif type(message) is to_client.Refused:
            self.engine.counts[f"refused: {message.error}"] += 1
        self.told(call)

    def told(self, call: Call) -> None:
        """A request is answered."""

    # --- what it wants ----------------------------------------------------------------------------

    def spawn(self, rows: list[SpawnRow], parent: Any = None) -> None:
        """Each for itself."""
        key = self.session.last_key
        for row in rows:
            key += 1
            labels = (row.kind, row.tenant_id, row.timeline_id, row.runtime)
            self.spawned[key] = Spawned(labels, parent)
        self.engine.counts["spawns"] += len(rows)
        self.handle(SpawnsWanted(rows))

    def spawn_many(self, common: SpawnRow, count: int) -> None:
        """All or none."""
        labels = (common.kind, common.tenant_id, common.timeline_id, common.runtime)
        for key in range(self.session.last_key + 1, self.session.last_key + 1 + count):
            self.spawned[key] = Spawned(labels)
        self.engine.counts["spawns"] += count
        self.handle(ManyWanted(common, [b""] * count))

    def stop(
        self,
        scope: Scope,
        *,
        task_id: int | None = None,
        grace: float | None = None,
        timeout: float | None = None,
        keep_closed: bool = False,
        hold: bool = False,
        attempt: Any = None,
    ) -> None:
        """shutdown_tasks."""
        call = Call(scope, task_id, hold=hold, keep=keep_closed, attempt=attempt)
        self.calls[self.session.last_request + 1] = call
        self.engine.counts["stops called"] += 1
        self.judge.stop_is_called(call)
        caller = None if attempt is None else (int(attempt.key[0]), int(attempt.key[1]))
        message = from_client.Stop(
            0, (*scope,), task_id, grace, timeout, keep_closed, hold, "", 0, caller
        )
        self.handle(RequestWanted(message))

    def reopen(self, scope: Scope) -> None:
        """Forget kept and timed-out closures."""
        call = self.calls[self.session.last_request + 1] = Call(scope, None)
        self.judge.reopens(call)
        self.handle(RequestWanted(from_client.Reopen(0, (*scope,))))

    def release(self, stop_id: int) -> None:
        """A block has ended."""
        self.blocks.remove(stop_id)
        self.calls[self.session.last_request + 1] = Call(Scope(), None)
        self.judge.releases(stop_id)
        self.handle(RequestWanted(from_client.Release(0, stop_id)))

    def what_is_left(self) -> list[str]:
        """What it waits for."""
        left = [f"{self} waits for the answer to {call.scope}" for call in self.calls.values()]
        left += [f"{self} waits for spawn {key}" for key in self.spawned]
        left += [f"{self} has results to acknowledge"] if self.session.taken else []
        return left

    def end(self, status: int, *, orderly: bool = False) -> None:
        """What it has said may still arrive."""
        for call in self.calls.values():
            self.engine.after(4 * self.world.plan.lease, self.judge.has_reopened, call)
        super().end(status, orderly=orderly)

    @property
    def ready(self) -> bool:
        """Whether the broker has welcomed it."""
        return self.session.channels[DATA] == READY


def row(
    labels: Labels,
    *,
    retries: int = 0,
    restart: str = "never",
    timeout: float | None = None,
    unique_key: str | None = None,
    parent: Any = None,
    function: bytes = b"",
) -> SpawnRow:
    """One spawn."""
    kind, tenant, timeline, runtime = labels
    return SpawnRow(
        SpawnNumber(0),
        runtime,
        kind,
        tenant,
        timeline,
        "f",
        False,
        retries,
        restart,
        timeout,
        unique_key,
        parent,
        function,
        b"",
    )
