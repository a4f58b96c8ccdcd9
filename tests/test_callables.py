"""Functions, arguments, results and exceptions as bytes, within a process and between two."""

import asyncio
import functools
import importlib
import operator
import os
import pickle
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quiesce.errors import ShutdownRequested, TaskCrashedError
from quiesce.protocol import callables
from quiesce.protocol.callables import (
    is_async,
    known_function,
    load_function,
    pack_arguments,
    pack_exception,
    pack_function,
    pack_value,
    unpack_arguments,
    unpack_exception,
    unpack_function,
    unpack_value,
)
from quiesce.protocol.frames import Frame


def double(value: int) -> int:
    return 2 * value


async def double_later(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


class Multiplier:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, value: int) -> int:
        return self.factor * value

    def multiply(self, value: int) -> int:
        return self.factor * value

    @classmethod
    def by_three(cls, value: int) -> int:
        return cls(3).multiply(value)

    @staticmethod
    def by_two(value: int) -> int:
        return 2 * value


class AsyncCallable:
    async def __call__(self) -> None:
        pass

    async def method(self) -> None:
        pass

    def plain(self) -> None:
        pass


def and_back(fn: Callable[..., Any]) -> Callable[..., Any]:
    return unpack_function(pack_function(fn))


def adder(number: int) -> Callable[[int], int]:
    def add(value: int) -> int:
        return value + number

    return add


# --- functions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "reference"),
    [
        (double, b"Rtest_callables:double"),
        (Multiplier.multiply, b"Rtest_callables:Multiplier.multiply"),
        (Multiplier.by_two, b"Rtest_callables:Multiplier.by_two"),
        (Multiplier, b"Rtest_callables:Multiplier"),
        (len, b"Rbuiltins:len"),
        (operator.add, b"R_operator:add"),
        (os.path.join, b"Rposixpath:join"),
    ],
)
def test_what_can_be_imported_travels_by_name(fn: Callable[..., Any], reference: bytes) -> None:
    assert pack_function(fn) == reference
    assert unpack_function(reference) is fn


@pytest.mark.parametrize(
    ("fn", "arguments", "result"),
    [
        (lambda value: value + 1, (1,), 2),
        (adder(3), (1,), 4),
        (functools.partial(double, 4), (), 8),
        (functools.partial(lambda a, b: a - b, 4), (1,), 3),
        (Multiplier(5).multiply, (2,), 10),
        (Multiplier(5), (2,), 10),
        (Multiplier.by_three, (2,), 6),
        (operator.attrgetter("real"), (7,), 7),
        ([1, 2, 3].index, (2,), 1),
        (functools.lru_cache(double), (2,), 4),
    ],
)
def test_all_others_travel_by_value(fn: Any, arguments: tuple[Any, ...], result: Any) -> None:
    assert pack_function(fn)[:1] != b"R"
    assert and_back(fn)(*arguments) == result


def test_a_closure_is_packed_anew_each_time() -> None:
    count = 0

    def current() -> int:
        return count

    count = 1
    first = pack_function(current)
    count = 2
    second = pack_function(current)
    assert (unpack_function(first)(), unpack_function(second)()) == (1, 2)


def test_a_function_behind_another_of_its_name_travels_by_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = double
    monkeypatch.setitem(globals(), "double", lambda value: 0)
    assert pack_function(original)[:1] != b"R"
    assert and_back(original)(2) == 4


@pytest.mark.parametrize("thing", [None, 3, "double", double_later.__name__, [double]])
def test_what_is_not_callable_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="expected a function or another callable, got"):
        pack_function(thing)


def test_a_call_in_place_of_a_function_is_refused() -> None:
    coroutine = double_later(1)
    with pytest.raises(TypeError, match="pass the function itself and its arguments apart"):
        pack_function(coroutine)  # type: ignore[arg-type]  # the usual mistake
    coroutine.close()


def test_a_function_that_holds_what_cannot_travel() -> None:
    numbers = iter(number for number in range(3))
    with pytest.raises(TypeError, match=r"lambda.*can't be sent to a worker: .*generator"):
        pack_function(lambda: next(numbers))


@pytest.mark.parametrize(
    "data", [b"Rno_such_module_here:task", b"Rno_such_module_here.part:task", b"Ros:no_such_task"]
)
def test_a_function_that_is_not_here(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("/folder/of/workers")
    with pytest.raises(ImportError) as caught:
        unpack_function(data)
    text = str(caught.value)
    assert data[1:].decode().replace(":", ".") in text
    assert "/folder/of/workers" in text
    assert os.path.dirname(os.__file__) not in text
    assert "quiesce up" in text
    assert "app_dir" in text
    assert "by value" in text


def test_a_module_that_fails_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_on_import.py").write_text("raise ValueError('a broken setting')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):  # a failure is not remembered
        with pytest.raises(ImportError, match="ValueError: a broken setting") as caught:
            unpack_function(b"Rfails_on_import:task")
        assert isinstance(caught.value.__cause__, ValueError)


def test_what_unpacks_to_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a function, got 3"):
        unpack_function(pack_value(3))


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (double_later, True),
        (functools.partial(double_later, 1), True),
        (functools.partial(functools.partial(double_later), 1), True),
        (AsyncCallable(), True),
        (functools.partial(AsyncCallable()), True),
        (AsyncCallable().method, True),
        (AsyncCallable.method, True),
        (AsyncCallable, False),
        (AsyncCallable().plain, False),
        (double, False),
        (functools.partial(double, 1), False),
        (lambda: double_later(1), False),
        (Multiplier(1), False),
        (len, False),
    ],
)
def test_is_async(fn: Any, expected: bool) -> None:
    assert is_async(fn) is expected
    assert is_async(and_back(fn)) is expected
    assert load_function(pack_function(fn))[1] is expected


def test_what_was_imported_by_name_is_known() -> None:
    """What travels by value is not: to unpickle it runs its code, each time."""
    packed = pack_function(shlex.quote)
    assert known_function(packed) is None
    assert load_function(packed) == (shlex.quote, False)
    assert known_function(packed) == (shlex.quote, False)
    by_value = pack_function(lambda: 1)
    load_function(by_value)
    assert known_function(by_value) is None
    assert known_function(Frame(packed)) is None


# --- arguments and results -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1, "two", b"three", None, 4.5, [6], {"7": 8}), {}),
        ((), {"key": "value"}),
        ((1,), {"args": 2, "kwargs": 3}),
        (("__main__",), {"__mp_main__": b"__main__"}),
    ],
)
def test_arguments_and_back(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert unpack_arguments(pack_arguments(args, kwargs)) == (args, kwargs)


def test_no_arguments_cost_nothing() -> None:
    assert pack_arguments(()) == pack_arguments([], None) == b""
    assert unpack_arguments(b"") == ((), {})


def test_arguments_that_only_dill_can() -> None:
    (function,), _ = unpack_arguments(pack_arguments([lambda: 3]))
    assert function() == 3


def test_the_argument_that_cannot_travel_is_named() -> None:
    generator = (number for number in range(3))
    with pytest.raises(TypeError, match=r"argument number 2, a generator, can't be sent"):
        pack_arguments((1, generator), {"other": 2})
    with (
        socket.socket() as ours,
        pytest.raises(TypeError, match=r"argument link, a socket\.socket"),
    ):
        pack_arguments((1,), {"link": ours})


@pytest.mark.parametrize(
    "value", [None, 0, "", b"D", b"R", [None], {"a": (1, 2)}, double, "__main__"]
)
def test_a_result_and_back(value: Any) -> None:
    assert unpack_value(pack_value(value)) == value


def test_a_result_that_cannot_travel() -> None:
    with pytest.raises(TypeError, match="the result, a generator, can't be pickled"):
        pack_value(number for number in range(3))


def test_a_local_class_is_itself_again() -> None:
    class Local:
        limit = 1

    (sent,), _ = unpack_arguments(pack_arguments([Local()]))
    assert type(sent) is Local
    assert unpack_value(pack_value(Local)) is Local
    assert and_back(lambda value: isinstance(value, Local))(sent)


def test_a_class_made_of_the_members_of_a_travelled_one_is_another() -> None:
    class Local:
        pass

    pack_value(Local)
    other = type("Local", (), dict(vars(Local)))
    assert unpack_value(pack_value(other)) is other
    assert unpack_value(pack_value(Local)) is Local


# --- exceptions ----------------------------------------------------------------------------------


class PlainError(Exception):
    pass


class TwoArgumentsError(Exception):
    """Hands one argument on: pickle calls it with that one, and fails."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


class KeywordError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__("keyword")
        self.code = code


class WrappingError(Exception):
    """Unpickles without complaint, but to another text."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name} here")


class HoldingError(Exception):
    """Can't be pickled."""

    def __init__(self) -> None:
        super().__init__("holding")
        self.held = (number for number in range(3))


class RefusingError(Exception):
    """Can be pickled, but neither made again nor put together."""

    def __new__(cls, *args: Any) -> "RefusingError":
        if args != ("only", "so"):
            raise RuntimeError("can't be made so")
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()


def exception_and_back(exc: BaseException) -> BaseException:
    back = unpack_exception(pack_exception(exc))
    assert back is not None
    assert type(back) is type(exc)
    assert str(back) == str(exc)
    assert repr(back.args) == repr(exc.args)  # the exceptions of a group equal no others
    assert vars(back) == vars(exc)
    return back


def raised(make: Callable[[], BaseException]) -> BaseException:
    try:
        raise make()
    except BaseException as exc:
        return exc


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("wrong", 3),
        PlainError,
        lambda: KeyError("key"),
        lambda: OSError(2, "no such file", "/path"),
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        KeyboardInterrupt,
        lambda: SystemExit(3),
        lambda: ShutdownRequested("why"),
        asyncio.CancelledError,
        lambda: TaskCrashedError("crashed", -9),
        lambda: TwoArgumentsError(3, "reason"),
        lambda: KeywordError(code=3),
        lambda: WrappingError("thing"),
        lambda: ExceptionGroup("several", [ValueError(1), TypeError(2)]),
    ],
    ids=lambda make: repr(make()),
)
def test_an_exception_and_back(make: Callable[[], BaseException]) -> None:
    back = exception_and_back(raised(make))
    assert back.__traceback__ is None
    assert back.__cause__ is back.__context__ is None


def test_notes_travel() -> None:
    exc = TwoArgumentsError(1, "why")
    exc.add_note("a note")
    assert exception_and_back(exc).__notes__ == ["a note"]


def test_causes_and_contexts_travel() -> None:
    try:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise TwoArgumentsError(2, "second")  # noqa: B904 - a context is wanted
        except TwoArgumentsError as error:
            raise PlainError("third") from error
    except PlainError as exc:
        back = exception_and_back(exc)
    assert isinstance(back.__cause__, TwoArgumentsError)
    assert back.__cause__ is back.__context__
    assert back.__suppress_context__
    assert isinstance(back.__cause__.__context__, KeyError)
    assert not back.__cause__.__suppress_context__
    assert back.__cause__.__cause__ is None


def test_only_what_cannot_travel_is_left_out_of_a_chain() -> None:
    exc, held, reason = PlainError("last"), HoldingError(), KeyError("first")
    exc.__cause__, exc.__context__ = held, reason
    back = exception_and_back(exc)
    assert back.__cause__ is None
    assert isinstance(back.__context__, KeyError)


class CountedGroup(ExceptionGroup[Exception]):
    """Is made of the members alone."""

    def __new__(cls, members: list[Exception]) -> "CountedGroup":
        group = super().__new__(cls, f"{len(members)} of them", members)
        group.count = len(members)
        return group

    count: int


def test_members_of_a_group_travel_one_by_one() -> None:
    odd, plain = TwoArgumentsError(3, "odd"), PlainError("plain")
    odd.add_note("a note")
    plain.__cause__ = KeyError("why")
    inner = BaseExceptionGroup("inner", [odd, KeyboardInterrupt()])
    back = exception_and_back(BaseExceptionGroup("outer", [plain, inner, odd]))
    assert isinstance(back, BaseExceptionGroup)
    first, second, third = back.exceptions
    assert isinstance(first, PlainError)
    assert isinstance(first.__cause__, KeyError)
    assert isinstance(second, BaseExceptionGroup)
    assert second.exceptions[0] is third
    assert isinstance(third, TwoArgumentsError)
    assert (str(third), third.code, third.__notes__) == ("odd (3)", 3, ["a note"])


def test_a_group_loses_only_the_members_that_cannot_travel() -> None:
    group = CountedGroup([PlainError("plain"), HoldingError(), TwoArgumentsError(1, "odd")])
    back = unpack_exception(pack_exception(group))
    assert isinstance(back, CountedGroup)
    assert [type(member) for member in back.exceptions] == [PlainError, TwoArgumentsError]
    assert (back.message, back.count) == ("3 of them", 3)
    assert pack_exception(ExceptionGroup("all", [HoldingError(), HoldingError()])) == b""


@pytest.mark.parametrize("make", [PlainError, lambda n: TwoArgumentsError(n, "odd")])
def test_a_group_of_many(make: Callable[[int], Exception]) -> None:
    """All of them as one, if that is possible; else those for which a chain has room."""
    back = unpack_exception(pack_exception(ExceptionGroup("many", list(map(make, range(1000))))))
    assert isinstance(back, ExceptionGroup)
    count = 1000 if make is PlainError else callables.CHAIN_LIMIT - 1
    assert [str(member) for member in back.exceptions] == [str(make(n)) for n in range(count)]


def test_a_long_chain_and_one_with_a_circle() -> None:
    first = exc = PlainError(0)
    for number in range(1, 1000):
        exc.__cause__ = PlainError(number)
        exc = exc.__cause__
    length = 0
    back: BaseException | None = exception_and_back(first)
    while back is not None:
        length, back = length + 1, back.__cause__
    assert length == callables.CHAIN_LIMIT

    one, other = PlainError("one"), PlainError("other")
    one.__cause__, other.__cause__ = other, one
    back = exception_and_back(one)
    assert back.__cause__ is not None
    assert back.__cause__.__cause__ is back


@pytest.mark.parametrize("exc", [HoldingError(), RefusingError("only", "so")])
def test_an_exception_that_cannot_travel(exc: BaseException) -> None:
    assert pack_exception(exc) == b""


class Hostile:
    def __reduce__(self) -> Any:
        return operator.truediv, (1, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"nonsense",
        b"Dnonsense",
        pickle.dumps(None),
        pickle.dumps([]),
        pickle.dumps([(pickle.dumps(3), False, None, None, False, ())]),
        pickle.dumps([(pickle.dumps(3), True, None, None, False, ())]),
        pickle.dumps([(pickle.dumps(ValueError()), False, 7, None, False, ())]),
        pickle.dumps([(pickle.dumps(Hostile()), False, None, None, False, ())]),
        pickle.dumps(
            [(pickle.dumps((ExceptionGroup, "itself", {})), False, None, None, False, (0,))]
        ),
        pickle.dumps(
            [(pickle.dumps((ExceptionGroup, "no member", {})), False, None, None, False, (1,))]
        ),
    ],
)
def test_an_exception_that_cannot_be_rebuilt_here(data: bytes) -> None:
    assert unpack_exception(data) is None


# --- between two processes -----------------------------------------------------------------------

WORKER = """
import sys
from quiesce.protocol.callables import *
from quiesce.protocol import callables as c

def run(function, arguments):
    args, kwargs = c.unpack_arguments(arguments)
    try:
        return True, c.pack_value(c.unpack_function(function)(*args, **kwargs))
    except BaseException as error:
        return False, c.pack_exception(error)

import pickle
for function, arguments in iter(lambda: pickle.load(sys.stdin.buffer), None):
    pickle.dump(run(function, arguments), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""

#: Runs as `__main__`; `call` runs a function in another process.
SCRIPT = """
import abc, collections, concurrent.futures, dataclasses, enum, functools, pickle, subprocess, sys
import threading, typing
from quiesce.protocol import callables as c

worker = subprocess.Popen(
    [sys.executable, "-W", "error", "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)

def call(fn, *args, **kwargs):
    pickle.dump((c.pack_function(fn), c.pack_arguments(args, kwargs)), worker.stdin)
    worker.stdin.flush()
    good, data = pickle.load(worker.stdout)
    if good:
        return c.unpack_value(data)
    error = c.unpack_exception(data)
    assert error is not None
    raise error

FACTOR = 3
T = typing.TypeVar("T")

def helper(value):
    return value * FACTOR

def task(value):
    return helper(value) + 1

def recursive(value):
    return 1 if value == 0 else value * recursive(value - 1)

class Base(abc.ABC):
    def __init__(self, value):
        self.value = value

    @abc.abstractmethod
    def name(self): ...

class Thing(Base):
    limit = 1

    def __init__(self, value):
        super().__init__(value)

    def name(self):
        return f"thing {self.value}"

    def doubled(self):
        return Thing(self.value * 2)

    class Part:
        pass

@dataclasses.dataclass(frozen=True)
class Data:
    number: int
    thing: "Thing | None" = None

class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

class Color(enum.Enum):
    RED = 1
    ROUGE = 1
    BLUE = enum.auto()

    def shout(self):
        return self.name + "!"

class Planet(enum.Enum):
    EARTH = (5, 6)

    def __init__(self, mass, radius):
        self.mass = mass

class Flags(enum.Flag):
    A = enum.auto()
    B = enum.auto()

class Level(int, enum.Enum):
    LOW = 1

Pair = collections.namedtuple("Pair", "a b", defaults=[2])

class Named(typing.NamedTuple):
    a: int
    b: str = "b"

    def both(self):
        return f"{self.a}{self.b}"

class Box(typing.Generic[T]):
    def __init__(self, value: T):
        self.value = value

class MyError(Exception):
    def __init__(self, code, *, why):
        super().__init__(f"{why} ({code})")
        self.code = code

def fail():
    try:
        {}["key"]
    except KeyError as error:
        failure = MyError(3, why="because")
        failure.add_note("a note")
        raise failure from error

class Lazy:
    def __init__(self, value):
        self.value = value

    @functools.cached_property
    def square(self):
        return self.value ** 2

    @functools.cached_property
    def other(self):
        return Lazy(self.square)

LOCK, RLOCK, CONDITION = threading.Lock(), threading.RLock(), threading.Condition()

def take(*locks):
    return [lock.acquire(blocking=False) and lock.release() for lock in (LOCK, RLOCK, CONDITION, *locks)]

def local():
    class Local:
        pass
    return Local()

assert call(task, 2) == 7
assert call(lambda value: task(value) + 1, 2) == 8
assert call(functools.partial(task, 2)) == 7
assert call(recursive, 5) == 120

# A class is one class on either side, in whatever it travels.
assert call(lambda thing: type(thing) is Thing and isinstance(thing, Base), Thing(1))
thing = call(Thing.doubled, Thing(2))
assert type(thing) is Thing and thing.value == 4 and thing.name() == "thing 4"
assert type(call(Thing(3).doubled)) is Thing
assert type(call(Thing.Part)) is Thing.Part
assert call(lambda: Thing) is Thing
assert call(lambda data: data == Data(1, None), Data(1))
(data,) = call(lambda: [Data(1, Thing(2))])
assert type(data) is Data and type(data.thing) is Thing
assert call(lambda slots: slots.value, Slots(3)) == 3
assert type(call(Slots, 4)) is Slots
assert type(call(Box, 5)) is Box and call(lambda box: isinstance(box, Box) and box.value, Box(6)) == 6
assert type(call(local)).__name__ == "Local"

# What is changed here is seen there, and what is changed there is not seen here.
Thing.limit = 5
assert call(lambda: Thing.limit) == 5
def change():
    Thing.limit, Thing.__qualname__, Color.shout = 7, "Renamed", None
    return Thing(1), Color.RED
thing, color = call(change)
assert type(thing) is Thing and Thing.limit == 5 and Thing.__qualname__ == "Thing"
assert color is Color.RED and color.shout() == "RED!"

assert call(lambda color: (color is Color.RED, color.shout()), Color.RED) == (True, "RED!")
assert call(lambda: [Color.BLUE, Color.ROUGE]) == [Color.BLUE, Color.RED]
assert call(lambda planet: (planet is Planet.EARTH, planet.mass), Planet.EARTH) == (True, 5)
assert call(lambda flags: flags == Flags.A | Flags.B and flags, Flags.A | Flags.B) == Flags.A | Flags.B
assert call(lambda level: level + Level.LOW, Level.LOW) == 2
assert call(lambda: Level.LOW) is Level.LOW

assert call(lambda pair: type(pair) is Pair and pair.b, Pair(1)) == 2
assert type(call(Pair, 1)) is Pair
assert call(lambda named: named.both(), Named(1)) == "1b"
assert type(call(Named, 1)) is Named

assert call(lambda lazy: (lazy.square, lazy.other.square), Lazy(2)) == (4, 16)
assert call(lambda: Lazy(3).other.value) == 9
assert type(call(Lazy, 4)) is Lazy and call(Lazy, 4).square == 16

# Nobody over there holds what a function finds around it, whether or not it is held here.
assert call(take) == [None] * 3
with LOCK, RLOCK, CONDITION:
    assert call(take) == [None] * 3
future = concurrent.futures.Future()
future.set_result(5)
assert (lambda given: call(lambda: given.result(0)))(future) == 5

try:
    call(fail)
except MyError as error:
    assert error.code == 3 and str(error) == "because (3)" and error.__notes__ == ["a note"]
    assert type(error.__cause__) is KeyError
else:
    raise AssertionError("nothing raised")

import importable
assert c.pack_function(importable.task) == b"Rimportable:task"
try:
    call(importable.task)
except ImportError as error:
    assert "importable.task" in str(error) and "quiesce up" in str(error)
else:
    raise AssertionError("nothing raised")
try:
    call(lambda: importable.task())
except ImportError as error:
    assert "the function" in str(error) and "app_dir" in str(error)
else:
    raise AssertionError("nothing raised")

pickle.dump(None, worker.stdin)
worker.stdin.close()
worker.stdout.close()
assert worker.wait() == 0
print("done")
"""


def test_what_a_script_defines_runs_elsewhere_and_comes_home(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "importable.py").write_text("def task(): pass")
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(tmp_path / "script.py"), WORKER],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert ended.stdout == "done\n", ended.stderr
    assert ended.returncode == 0


def test_dill_is_not_loaded_unless_needed() -> None:
    code = """
import os, sys
from quiesce.protocol.callables import *
unpack_function(pack_function(os.getpid))
unpack_arguments(pack_arguments((1,), {"a": 2}))
unpack_value(pack_value([3]))
unpack_exception(pack_exception(ValueError(4)))
assert "dill" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


HELPER = """
import struct
import threading

lock = threading.Lock()
unpicklable = struct.Struct("I")
counter = 0


def bump():
    global counter
    counter += 1
    return counter
"""


def test_a_module_that_is_not_installed_travels_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its variables stay what they are over there: they are neither sent nor set back."""
    (tmp_path / "helper_of_the_user.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    helper = importlib.import_module("helper_of_the_user")
    namespace: dict[str, Any] = {"__name__": "__main__", "helper": helper}
    exec("def work():\n    with helper.lock:\n        return helper.bump()", namespace)
    try:
        with helper.lock:
            data = pack_function(namespace["work"])
        assert b"counter" not in data
        assert [unpack_function(data)() for _ in range(3)] == [1, 2, 3]
        assert helper.counter == 3
    finally:
        del sys.modules["helper_of_the_user"]
