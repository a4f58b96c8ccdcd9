"""What the client session machine knows, and how it is frozen. The transitions are in `session`."""

from typing import Any, Final, Self

from quiesce.client.steps import CONTROL, DATA, ManyWanted, Request
from quiesce.protocol import from_client
from quiesce.registry.rows import ResultRow, SpawnRow

DOWN: Final = "down"
WAITING: Final = "waiting"
GREETING: Final = "greeting"
READY: Final = "ready"

#: Groups (spawn_many) and single spawns, as they are kept for resending.
Kept = SpawnRow | ManyWanted


class SessionState:
    """The attributes are for reading; only the machine writes them."""

    def __init__(self, *, session: bytes, pid: int, host: str, worker: int = 0) -> None:
        self.session = session
        self.pid = pid
        self.host = host
        self.worker = worker
        self.epoch = 0
        self.payload_limit = 0
        #: State of each channel (data is GREETING or READY only while control is READY), and where this
        #: session was ever welcomed.
        self.channels: dict[str, str] = {CONTROL: DOWN, DATA: DOWN}
        self.welcomed: set[str] = set()
        self.left = False
        #: Keys up to here have been given out, have been sent at least once, are all answered.
        self.last_key = 0
        self.sent_through = 0
        self.answered_through = 0
        #: Number on the wire = key - base.
        self.base = 0
        #: All and only the spawns without an answer, in order: single ones by key, groups by first key.
        self.unanswered: dict[int, Kept] = {}
        #: For each member of an unanswered group, the group's first key; and by that, members not answered.
        self.member_of: dict[int, int] = {}
        self.group_left: dict[int, set[int]] = {}
        #: By task id, the keys of all and only the answered spawns whose task's end has not arrived.
        self.live: dict[int, tuple[int, ...]] = {}
        #: Ended tasks that an answer still to come may name (out of order, or through a unique key), each
        #: with the last key given out by then: later spawns can't get an ended task.
        self.late: dict[int, tuple[int, ResultRow]] = {}
        #: Keys of unanswered or live spawns that have a unique key.
        self.unique: set[int] = set()
        #: Ends that arrived and are to be acknowledged.
        self.taken: list[int] = []
        self.last_request = 0
        self.request_base = 0
        #: All and only the requests without an answer that someone waits for, by key, in order.
        self.requests: dict[int, Request] = {}
        self.subscribed = False
        #: Events may have gone astray: the subscribers are told once control is READY again.
        self.cut_off = False

    def freeze(self) -> tuple[Any, ...]:
        """All of the state as plain tuples; `thaw` is the inverse."""
        return (
            (self.session, self.pid, self.host, self.worker),
            (self.epoch, self.payload_limit, self.left, self.subscribed, self.cut_off),
            (self.last_key, self.sent_through, self.answered_through, self.base),
            (self.last_request, self.request_base),
            (self.channels[CONTROL], self.channels[DATA]),
            tuple(sorted(self.welcomed)),
            tuple(
                (key, tuple(kept), ())
                if isinstance(kept, SpawnRow)
                else (key, tuple(kept.common), tuple(kept.arguments))
                for key, kept in self.unanswered.items()
            ),
            tuple((first, tuple(sorted(left))) for first, left in self.group_left.items()),
            tuple(self.live.items()),
            tuple((key, last, tuple(row)) for key, (last, row) in self.late.items()),
            tuple(sorted(self.unique)),
            tuple(self.taken),
            tuple((key, type(item).__name__, tuple(item)) for key, item in self.requests.items()),
        )

    @classmethod
    def thaw(cls, frozen: tuple[Any, ...]) -> Self:
        """The machine that `freeze` was called on."""
        who, flags, keys, requests, channels, welcomed, kept, groups, live, late, *rest = frozen
        unique, taken, outstanding = rest
        self = cls(session=who[0], pid=who[1], host=who[2], worker=who[3])
        self.epoch, self.payload_limit, self.left, self.subscribed, self.cut_off = flags
        self.last_key, self.sent_through, self.answered_through, self.base = keys
        self.last_request, self.request_base = requests
        self.channels = {CONTROL: channels[0], DATA: channels[1]}
        self.welcomed = set(welcomed)
        for key, row, arguments in kept:
            common = SpawnRow(*row)
            if not arguments:
                self.unanswered[key] = common
                continue
            self.unanswered[key] = ManyWanted(common, list(arguments))
            self.member_of.update(dict.fromkeys(range(key, key + len(arguments)), key))
        self.group_left = {first: set(left) for first, left in groups}
        self.live = dict(live)
        self.late = {key: (last, ResultRow(*row)) for key, last, row in late}
        self.unique = set(unique)
        self.taken = list(taken)
        self.requests = {
            key: getattr(from_client, name)(*fields) for key, name, fields in outstanding
        }
        return self
