"""Clients as data: their real session, and a small program that spawns, stops and waits."""

from typing import Any, Final, NamedTuple

from quiesce.client import session as sessions
from quiesce.client.session_state import GREETING, READY, WAITING
from quiesce.client.steps import (
    Answered,
    Arrived,
    Connected,
    Disconnected,
    Event,
    HeartbeatDue,
    Replied,
    RequestAbandoned,
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
from quiesce.registry.ids import AttemptKey, SpawnNumber
from quiesce.registry.rows import SpawnRow
from quiesce.testing.explorer.rules import BrokenRule
from quiesce.testing.explorer.scenario import (
    FUNCTION,
    RUNTIME,
    Await,
    Batch,
    Scenario,
    Spawn,
    Step,
    Stop,
)
from quiesce.testing.explorer.store import Memo, Store

CHANNELS: Final = ("control", "data")
#: What a client knows of a spawn of its own.
ASKED: Final = 1
KNOWN: Final = 2
ENDED: Final = 3
REFUSED: Final = 4
UNKNOWN: Final = 5


class Asked(NamedTuple):
    """A stop that the program has asked for. `before`: the spawns that it must not leave behind, by number."""

    request: int
    place: int
    before: tuple[int, ...]
    answered: bool


class Client(NamedTuple):
    """`inside`: the attempt that it lives in. `known`: of each spawn, in order, its number and what is known."""

    frozen: tuple[Any, ...]
    steps: tuple[Step, ...]
    place: int
    known: tuple[tuple[int, int], ...]
    asked: tuple[Asked, ...]
    inside: AttemptKey | None
    generation: int


class Result(NamedTuple):
    """`sent`: (channel, message). `anew`: it wants both connections anew."""

    state: int
    sent: tuple[tuple[int, int], ...]
    anew: bool


class ClientView(NamedTuple):
    """What a client can do next, as far as it depends on itself. `step`: of its program, if it is not waiting."""

    step: Step | None
    over: bool
    unanswered: bool
    silent: bool


class Clients:
    """All steps of clients. States and messages are digests in the store."""

    def __init__(self, scenario: Scenario, store: Store) -> None:
        self._scenario = scenario
        self._store = store
        self._numbers = {spawn.name: number for number, spawn in enumerate(scenario.spawns)}
        self.memo = Memo()

    def new(
        self, name: bytes, steps: tuple[Step, ...], worker: int, inside: AttemptKey | None
    ) -> int:
        """A client that is not connected yet."""
        session = sessions.ClientSession(session=name, pid=77, host="here", worker=worker)
        return self._store.put(Client(session.freeze(), steps, 0, (), (), inside, 0))

    def receive(self, state: int, channel: int, message: int) -> Result:
        """A message of the broker, and the end of the turn of its loop."""

        def make() -> Result:
            arrived = Arrived(CHANNELS[channel], self._store[message])
            return self._handled(self._store[state], arrived, TurnEnded())

        return self.memo((state, channel, message), make)  # type: ignore[no-any-return]  # of a memo

    def connected(self, state: int, channel: int) -> Result:
        """A connection is there."""
        return self._event(state, Connected(CHANNELS[channel]))

    def lost(self, state: int, channel: int) -> Result:
        """A connection is gone."""
        return self._event(state, Disconnected(CHANNELS[channel]))

    def beat(self, state: int) -> Result:
        """It is time for a heartbeat."""
        return self._event(state, HeartbeatDue())

    def _event(self, state: int, event: Event) -> Result:
        return self.memo((state, event), lambda: self._handled(self._store[state], event))  # type: ignore[no-any-return]  # of a memo

    def go_on(self, state: int, before: tuple[int, ...]) -> Result:
        """The next step of its program. `before`: for a stop, what must have ended when it is reported."""

        def make() -> Result:
            client: Client = self._store[state]
            step = client.steps[client.place]
            match step:
                case Spawn() | Batch():
                    spawns = step.spawns if isinstance(step, Batch) else (step,)
                    known = [(self._numbers[spawn.name], ASKED) for spawn in spawns]
                    rows = [self._row(client, spawn) for spawn in spawns]
                    client = client._replace(place=client.place + 1, known=(*client.known, *known))
                    return self._handled(client, SpawnsWanted(rows))
                case Stop():
                    request = client.frozen[3][0] + 1
                    asked = (*client.asked, Asked(request, client.place, before, False))
                    client = client._replace(asked=asked)
                    task = self._task(client, step.task) if step.task else None
                    return self._handled(client, RequestWanted(_stop(client, step, task)))
                case _:
                    raise ValueError(f"{step} is no step that is taken")

        return self.memo((state, "go on", before), make)  # type: ignore[no-any-return]  # of a memo

    def abandon(self, state: int) -> Result:
        """The task that it lives in is asked to stop: its blocking call ends."""

        def make() -> Result:
            client: Client = self._store[state]
            open_ = [each.request for each in client.asked if not each.answered]
            asked = tuple(each._replace(answered=True) for each in client.asked)
            client = client._replace(place=len(client.steps), asked=asked)
            return self._handled(client, *[RequestAbandoned(request) for request in open_])

        return self.memo((state, "abandon"), make)  # type: ignore[no-any-return]  # of a memo

    def view(self, state: int) -> ClientView:
        """What this client can do."""

        def make() -> ClientView:
            client: Client = self._store[state]
            machine = sessions.ClientSession.thaw(client.frozen)
            channels = machine.channels.values()
            waits = any(not asked.answered for asked in client.asked)
            step = None
            if client.place < len(client.steps) and not waits:
                step = client.steps[client.place]
                if isinstance(step, Await) or (
                    isinstance(step, Stop) and step.task and self._knows(client, step.task) != KNOWN
                ):
                    step = None
            unanswered = any(known == ASKED for _, known in client.known)
            done = client.place == len(client.steps) and not waits
            over = done and all(known in (ENDED, REFUSED, UNKNOWN) for _, known in client.known)
            silent = GREETING in channels or (WAITING in channels and READY in channels)
            return ClientView(step, over, unanswered, silent)

        return self.memo(("view", state), make)  # type: ignore[no-any-return]  # of a memo

    def is_done(self, state: int) -> bool:
        """Whether its program is at its end, and all of its spawns are answered."""
        client: Client = self._store[state]
        waits = any(not asked.answered for asked in client.asked)
        unanswered = any(known == ASKED for _, known in client.known)
        return client.place == len(client.steps) and not waits and not unanswered

    # --- parts ------------------------------------------------------------------------------------

    def _row(self, client: Client, spawn: Spawn) -> SpawnRow:
        return SpawnRow(
            SpawnNumber(0),
            RUNTIME,
            spawn.kind,
            spawn.tenant,
            spawn.timeline,
            spawn.name,
            False,
            spawn.retries,
            "never",
            None,
            spawn.unique,
            client.inside,
            FUNCTION,
            b"",
        )

    def _handled(self, client: Client, *events: Event) -> Result:
        machine = sessions.ClientSession.thaw(client.frozen)
        sent: list[tuple[int, int]] = []
        anew = False
        queue = list(events)
        while queue:
            for effect in machine.handle(queue.pop(0)):
                match effect:
                    case Send(channel, message):
                        sent.append((CHANNELS.index(channel), self._store.put(message)))
                    case SessionWanted():
                        anew = True
                        sent = []
                        client = client._replace(generation=client.generation + 1)
                        name = machine.session[:-1] + bytes([client.generation])
                        queue.append(SessionGiven(name))
                    case Answered(rows):
                        for row in rows:
                            state = KNOWN if row.task_id else REFUSED
                            client = _known(client, row.number, state)
                    case TasksEnded(ends):
                        for key in (key for keys, _ in ends for key in keys):
                            client = _known(client, key, ENDED)
                    case SpawnsUnknown(keys) | ResultsGone(keys):
                        for key in keys:
                            client = _known(client, key, UNKNOWN)
                    case Replied(key, message):
                        client = self._replied(client, key, message)
        client = client._replace(frozen=machine.freeze())
        while client.place < len(client.steps):
            step = client.steps[client.place]
            waits_for = step.name if isinstance(step, Await) else None
            if isinstance(step, Stop) and all(each.place != client.place for each in client.asked):
                waits_for = step.task
            if not waits_for or self._knows(client, waits_for) not in (ENDED, REFUSED, UNKNOWN):
                break
            client = client._replace(place=client.place + 1)
        return Result(self._store.put(client), tuple(sent), anew)

    def _task(self, client: Client, name: str) -> int:
        """The id of a live task of its own."""
        key = [number for number, _ in client.known].index(self._numbers[name]) + 1
        live = sessions.ClientSession.thaw(client.frozen).live
        return next(task_id for task_id, keys in live.items() if key in keys)

    def _knows(self, client: Client, name: str) -> int:
        return dict(client.known).get(self._numbers[name], ASKED)

    def _replied(self, client: Client, key: int, message: Any) -> Client:
        asked = tuple(
            each._replace(answered=True, before=()) if each.request == key else each
            for each in client.asked
        )
        if type(message) is not to_client.StopReport:
            raise BrokenRule("a stop is answered by its report", f"{message}")
        if all(each.answered for each in asked) and client.place < len(client.steps):
            client = client._replace(place=client.place + 1)
        return client._replace(asked=asked)


def _known(client: Client, key: int, what: int) -> Client:
    """More is known of the spawn with this key."""
    number, before = client.known[key - 1]
    if before in (ENDED, REFUSED) or (what == KNOWN and before != ASKED):
        text = f"spawn {key} was {before}, and is told to be {what}"
        raise BrokenRule("a spawn is answered once, and its task ends once", text)
    known = (*client.known[: key - 1], (number, what), *client.known[key:])
    return client._replace(known=known)


def _stop(client: Client, step: Stop, task: int | None) -> from_client.Stop:
    return from_client.Stop(
        request=0,
        scope=(step.kind, step.tenant, step.timeline, None),
        task_id=task,
        grace=step.grace,
        timeout=step.timeout,
        keep_closed=step.keep_closed,
        hold=False,
        reason="",
        last_spawn=0,
        caller=client.inside,
    )
