"""What goes into the client session machine (events) and what comes out (effects).

Spawns and requests are named by *keys* here: they count from 1 for the client's whole life, while the
numbers on the wire start again at 1 with each session.
"""

from typing import Final, NamedTuple

from quiesce.protocol import from_client, to_client
from quiesce.protocol.frames import Payload
from quiesce.registry.rows import ResultRow, SpawnAnswer, SpawnRow

CONTROL: Final = "control"
DATA: Final = "data"

#: What carries a request number and is answered once.
Request = (
    from_client.Stop
    | from_client.Release
    | from_client.Reopen
    | from_client.ListTasks
    | from_client.GetTask
    | from_client.GetStatistics
    | from_client.GetWorkers
    | from_client.GetBroker
    | from_client.GetClosed
    | from_client.GetStops
    | from_client.GetStacks
    | from_client.GetHistory
    | from_client.Subscribe
    | from_client.Unsubscribe
)
Answer = (
    to_client.StopReport
    | to_client.Tasks
    | to_client.Statistics
    | to_client.Workers
    | to_client.Broker
    | to_client.Closed
    | to_client.Stops
    | to_client.Stacks
    | to_client.History
    | to_client.Done
    | to_client.Refused
)

# --- events --------------------------------------------------------------------------------------


class Connected(NamedTuple):
    """The transport of this channel is up (again): whoever is at its other end has heard nothing yet."""

    channel: str


class Disconnected(NamedTuple):
    """The transport of this channel is down: what was sent may not have arrived."""

    channel: str


class Arrived(NamedTuple):
    """A message from the broker, of `protocol.to_client`."""

    channel: str
    message: tuple[object, ...]


class SpawnsWanted(NamedTuple):
    """Spawns, each for itself. They get the keys after `last_key`, in this order."""

    rows: list[SpawnRow]


class ManyWanted(NamedTuple):
    """All or none. They get the keys after `last_key`, in this order."""

    common: SpawnRow
    arguments: list[Payload]


class RequestWanted(NamedTuple):
    """A control request; it gets the key after `last_request`. The machine fills in its numbers."""

    message: Request


class RequestAbandoned(NamedTuple):
    """Nobody waits for this request any more: don't send it (again)."""

    key: int


class TurnEnded(NamedTuple):
    """All that had arrived has been handled: time to acknowledge it."""


class HeartbeatDue(NamedTuple):
    """Several seconds have passed since the last one."""


class SessionGiven(NamedTuple):
    """Answers SessionWanted; both transports are new as well, and not connected."""

    session: bytes


class LeaveWanted(NamedTuple):
    """Say goodbye. Nothing may follow."""


Event = (
    Connected
    | Disconnected
    | Arrived
    | SpawnsWanted
    | ManyWanted
    | RequestWanted
    | RequestAbandoned
    | TurnEnded
    | HeartbeatDue
    | SessionGiven
    | LeaveWanted
)

# --- effects -------------------------------------------------------------------------------------


class Send(NamedTuple):
    """Send this message, of `protocol.from_client`, after all sent before it on this channel."""

    channel: str
    message: tuple[object, ...]


class Ready(NamedTuple):
    """The broker has welcomed this client on both channels."""

    epoch: int
    payload_limit: int


class Answered(NamedTuple):
    """What became of spawns: a task id, or (task_id 0) a refusal. The numbers in these rows are keys."""

    rows: list[SpawnAnswer]


class TasksEnded(NamedTuple):
    """These tasks have ended, each with the keys of its spawns: more than one where they shared a unique key."""

    ends: list[tuple[tuple[int, ...], ResultRow]]


class Replied(NamedTuple):
    """The answer to a request. It may have been abandoned.

    `ends`, of a stop's report: the keys of the spawns whose tasks it calls ended, or may (those without an
    answer), and whose ends have yet to arrive on the other channel.
    """

    key: int
    message: Answer
    ends: tuple[int, ...] = ()


class SpawnsUnknown(NamedTuple):
    """The broker has forgotten this session: nobody can tell whether these spawns were registered."""

    keys: tuple[int, ...]


class ResultsGone(NamedTuple):
    """The broker has forgotten this session: the tasks of these spawns go on, their results won't come."""

    keys: tuple[int, ...]


class SessionWanted(NamedTuple):
    """The broker has forgotten this session: drop both transports, open new ones, give SessionGiven."""


class EventArrived(NamedTuple):
    """For the subscribers."""

    message: to_client.Event


class EventsMissed(NamedTuple):
    """For the subscribers: the broker was out of reach, and nobody knows how many events have gone meanwhile."""


class BrokerLeaving(NamedTuple):
    """The broker goes away, for this reason. It may come back."""

    reason: str


class Rejected(NamedTuple):
    """The broker won't have this client at all; `error` names a class of `quiesce.errors`."""

    error: str
    text: str


Effect = (
    Send
    | Ready
    | Answered
    | TasksEnded
    | Replied
    | SpawnsUnknown
    | ResultsGone
    | SessionWanted
    | EventArrived
    | EventsMissed
    | BrokerLeaving
    | Rejected
)
