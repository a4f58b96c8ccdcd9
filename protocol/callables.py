"""How functions, arguments, results and exceptions become bytes; for client and worker alone.

Unpickling runs code: whoever may spawn tasks may run anything in a worker, and a worker in its
client. The broker never does it.

The first byte tells the formats apart: R, a reference `module:qualname`; D, dill; else a pickle.
What belongs to `__main__` travels by value, with dill: the other side has another `__main__`.
Classes that do are marked with an id, so that a process has one copy of each at most, and a class
that comes home is the one that went: `isinstance` and `except` hold on both sides.
"""

import collections
import enum
import functools
import importlib
import inspect
import io
import os
import pickle
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

_REFERENCE: Final = b"R"
_DILL: Final = b"D"
_PROTOCOL: Final = 5
#: In both `__main__` and `__mp_main__`.
_MAIN: Final = b"_main_"
_NO_ARGUMENTS: Final = b""
_NONE: Final = pickle.dumps(None, _PROTOCOL)
#: Of an exception and all that it was raised from or while handling, so many travel.
CHAIN_LIMIT: Final = 32


# --- functions -----------------------------------------------------------------------------------


def pack_function(fn: Callable[..., Any]) -> bytes:
    """By reference where a worker can import it, else by value.

    TypeError: it is not callable, or holds what can't be pickled.
    """
    if not callable(fn):
        raise TypeError(
            f"expected a function or another callable, got {fn!r:.80}; "
            "pass the function itself and its arguments apart"
        )
    # Not cached: this costs less than a cache that stays right when modules are patched.
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and not _is_main(module):
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is fn:
            return _REFERENCE + f"{module}:{name}".encode()
    try:
        return _dumps(fn, strict=False)
    except Exception as error:
        raise TypeError(
            f"{fn!r:.200} can't be sent to a worker: {error}. Functions of an importable module "
            "travel by name; all others with what they refer to, which must be picklable"
        ) from error


def unpack_function(data: bytes) -> Callable[..., Any]:
    """The function. ImportError, with what to do about it, if its module can't be imported here."""
    if data[:1] == _REFERENCE:
        return _import_function(data)
    fn = _loads_in_worker(data, "the function")
    if not callable(fn):
        raise TypeError(f"expected a function, got {fn!r:.80}")
    return fn  # type: ignore[no-any-return]  # nothing more is known of a callable


@functools.lru_cache(maxsize=4096)
def _import_function(data: bytes) -> Callable[..., Any]:
    module, _, name = data[1:].decode().partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise _not_here(f"{module}.{name}", error) from error
    return found  # type: ignore[return-value]  # pack_function saw that it is callable


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling `fn` gives a coroutine: async functions, their methods and partials, and
    objects whose `__call__` is async."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(type(fn), "__call__", None)  # noqa: B004 - it is not about whether it is callable
    )


# --- arguments and results -----------------------------------------------------------------------


def pack_arguments(args: Iterable[Any], kwargs: Mapping[str, Any] | None = None) -> bytes:
    """Positional and keyword arguments. TypeError names the one that can't be pickled."""
    args, kwargs = tuple(args), dict(kwargs or {})
    if not args and not kwargs:
        return _NO_ARGUMENTS
    try:
        return _dumps((args, kwargs))
    except Exception as error:
        named = {**{f"number {i}": value for i, value in enumerate(args, 1)}, **kwargs}
        for name, value in named.items():
            try:
                _dumps(value)
            except Exception as own:
                raise TypeError(
                    f"argument {name}, a {_type_name(value)}, can't be sent to a worker: {own}. "
                    "Make what belongs to one process (files, sockets, generators) inside the task"
                ) from own
        raise TypeError(f"the arguments can't be sent to a worker: {error}") from error


def unpack_arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments. ImportError, with what to do about it, if a module can't be imported here."""
    if not data:
        return (), {}
    args, kwargs = _loads_in_worker(data, "the arguments")
    return args, kwargs


def pack_value(value: Any) -> bytes:
    """A result. TypeError if it can't be pickled."""
    if value is None:
        return _NONE
    try:
        return _dumps(value)
    except Exception as error:
        raise TypeError(f"the result, a {_type_name(value)}, can't be pickled: {error}") from error


def unpack_value(data: bytes) -> Any:
    """A result, back home. Raises what unpickling raises."""
    return _loads(data)


# --- exceptions ----------------------------------------------------------------------------------

#: One exception of a chain: its bytes (empty if it can't travel), whether these are its parts, the
#: places of its cause and context in the chain, and whether the context is suppressed.
_Link = tuple[bytes, bool, int | None, int | None, bool]


def pack_exception(exc: BaseException) -> bytes:
    """The exception with its notes, its causes and contexts, but no traceback. Never raises.

    Of the causes and contexts, those that can't be pickled and unpickled again are left out. If
    that is `exc` itself, the result is empty. The trial also finds those that unpickle to something
    else, as many whose `__init__` takes other arguments than it hands on; these travel in parts,
    and are put together again without `__init__`.
    """
    chain = [exc]

    def place(other: BaseException | None) -> int | None:
        if other is None:
            return None
        for index, known in enumerate(chain):
            if known is other:
                return index
        if len(chain) == CHAIN_LIMIT:
            return None
        chain.append(other)
        return len(chain) - 1

    links: list[_Link] = []
    for each in chain:  # grows
        data, in_parts = _pack_one(each)
        if not data and each is exc:
            return b""
        cause, context = place(each.__cause__), place(each.__context__)
        links.append((data, in_parts, cause, context, each.__suppress_context__))
    return pickle.dumps(links, _PROTOCOL)


def unpack_exception(data: bytes) -> BaseException | None:
    """The exception, back home; None if there is none or it can't be rebuilt here. Never raises."""
    if not data:
        return None
    try:
        links: list[_Link] = pickle.loads(data)
        chain = [_unpack_one(link[0], in_parts=link[1]) for link in links]
        for exc, (_, _, cause, context, suppress) in zip(chain, links, strict=True):
            if exc is not None:
                exc.__cause__ = None if cause is None else chain[cause]
                exc.__context__ = None if context is None else chain[context]
                exc.__suppress_context__ = suppress
        return chain[0]
    except Exception:  # whatever it is, the caller has the text of the traceback as well
        return None


def _pack_one(exc: BaseException) -> tuple[bytes, bool]:
    usable: tuple[bytes, bool] | None = None
    for in_parts in (False, True):
        try:
            data = _dumps((type(exc), exc.args, vars(exc)) if in_parts else exc)
            copy = _unpack_one(data, in_parts=in_parts)
            if copy is None or type(copy).__qualname__ != type(exc).__qualname__:
                continue
            if str(copy) == str(exc):
                return data, in_parts
            usable = usable or (data, in_parts)
        except Exception:  # user code may raise anything: then it can't travel this way
            continue
    return usable or (b"", False)


def _unpack_one(data: bytes, *, in_parts: bool) -> BaseException | None:
    try:
        exc = _loads(data)
        if in_parts:
            kind, args, state = exc
            exc = kind.__new__(kind, *args)
            exc.args = args
            exc.__dict__.update(state)
        return exc if isinstance(exc, BaseException) else None
    except Exception:  # user code may raise anything: then it can't be rebuilt
        return None


# --- bytes ---------------------------------------------------------------------------------------


def _dumps(value: Any, *, strict: bool = True) -> bytes:
    """`strict`: refuse what dill would copy though it means something in one process only."""
    try:
        data = pickle.dumps(value, _PROTOCOL)
    except Exception:  # user code may raise anything; dill's error tells more
        pass
    else:
        if _MAIN not in data:
            return data
    make_pickler, _ = _dill()
    file = io.BytesIO()
    file.write(_DILL)
    pickler = make_pickler(file, protocol=_PROTOCOL, byref=False, recurse=True)
    pickler.strict = strict
    pickler.dump(value)
    return file.getvalue()


def _loads(data: bytes) -> Any:
    if data[:1] != _DILL:
        return pickle.loads(data)
    _, unpickler = _dill()
    return unpickler(io.BytesIO(memoryview(data)[1:]), ignore=True).load()


def _loads_in_worker(data: bytes, what: str) -> Any:
    try:
        return _loads(data)
    except (AttributeError, ImportError) as error:
        raise _not_here(what, error) from error


# --- by value ------------------------------------------------------------------------------------


class _TravelledClasses:
    """The living classes that went or came by value, by the id that each carries."""

    #: The attribute that holds the id.
    MARK: Final = "__quiesce_class__"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: All and only the marked classes that were made here, or came in from somewhere else.
        self._own: weakref.WeakValueDictionary[bytes, type] = weakref.WeakValueDictionary()
        self._copies: weakref.WeakValueDictionary[bytes, type] = weakref.WeakValueDictionary()

    def mark(self, cls: type) -> bytes:
        """Called before `cls` goes out."""
        with self._lock:
            known: bytes = cls.__dict__.get(self.MARK, b"")
            # Another class may have its marked members: made of them by a decorator, say.
            if cls is not self._own.get(known) and cls is not self._copies.get(known):
                known = os.urandom(16)
                type.__setattr__(cls, self.MARK, known)
                self._own[known] = cls
            return known

    def receive(self, mark: bytes, members: Mapping[str, Any], make: Callable[[], type]) -> type:
        """The class with this id: our own, else the copy, brought up to date, else a new copy."""
        own = self._own.get(mark)
        if own is not None:
            return own
        copy = self._copies.get(mark)
        if copy is None:
            copy = make()
            type.__setattr__(copy, self.MARK, mark)
            with self._lock:
                copy = self._copies.setdefault(mark, copy)
        else:
            self.update(copy, members)
        return copy

    def update(self, cls: type, members: Mapping[str, Any]) -> None:
        """Set `members`, unless `cls` is our own: that one knows better."""
        if self.is_own(cls):
            return
        for name, value in members.items():
            try:
                type.__setattr__(cls, name, value)
            except (AttributeError, TypeError):  # what a class has of itself, such as __dict__
                pass

    def is_own(self, cls: object) -> bool:
        if not isinstance(cls, type):
            return False
        return self._own.get(cls.__dict__.get(self.MARK, b"")) is cls


#: Module-level for the same reason as sys.modules: a process has each class once.
_classes: Final = _TravelledClasses()


#: What dill copies, but a copy of which is not the same: a lock that is held, an open file.
_BOUND: Final = (type(threading.Lock()), type(threading.RLock()), io.IOBase)


@functools.cache
def _dill() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A pickler and an unpickler. Late: importing dill takes long, and most never need it."""
    import dill

    class Pickler(dill.Pickler):  # type: ignore[misc]  # dill is untyped
        """Marks classes, and helps with those of which dill makes references or loses methods."""

        __module__ = dill.Pickler.__module__  # by which dill knows its own

        def reducer_override(self, obj: Any) -> Any:
            if self.strict and isinstance(obj, _BOUND):
                raise TypeError(
                    f"cannot pickle {type(obj).__name__!r} object: it belongs to its process"
                )
            if isinstance(obj, TypeVar) and _has_no_name(obj):
                flags = (obj.__bound__, obj.__covariant__, obj.__contravariant__)
                return _make_type_variable, (obj.__name__, obj.__constraints__, *flags)
            if not isinstance(obj, type) or not _has_no_name(obj):
                return NotImplemented
            try:
                mark = _classes.mark(obj)
            except TypeError:  # built in under a name of its own; dill knows these
                return NotImplemented
            if isinstance(obj, enum.EnumMeta):
                members: Mapping[str, enum.Enum] = obj.__members__
                values = {name: member._value_ for name, member in members.items()}
                return _reduce_class(obj, _make_enum, mark, obj.__name__, obj.__bases__, values)
            if obj.__bases__ == (tuple,) and hasattr(obj, "_field_defaults"):
                named: Any = obj
                fields, defaults = named._fields, tuple(named._field_defaults.values())
                return _reduce_class(obj, _make_named_tuple, mark, obj.__name__, fields, defaults)
            return NotImplemented

    class Unpickler(dill.Unpickler):  # type: ignore[misc]  # dill is untyped
        """Gives known classes where dill would make more copies of them."""

        def find_class(self, module: str, name: str) -> Any:
            match module, name:
                case ("dill._dill", "_create_type"):
                    return _create_type
                case ("types", "new_class"):
                    return _new_class
                case ("builtins", "setattr"):
                    return _set_attribute
            return super().find_class(module, name)

    return Pickler, Unpickler


def _has_no_name(obj: Any) -> bool:
    """Whether no other process finds this class or type variable by its module and name."""
    module = obj.__module__
    found: Any = None if module is None or _is_main(module) else sys.modules.get(module)
    for part in getattr(obj, "__qualname__", obj.__name__).split("."):
        found = getattr(found, part, None)
    return found is not obj


def _create_type(kind: Any, *args: Any) -> Any:
    """In place of dill's function, for classes without generic bases."""
    members = args[2] if len(args) == 3 else {}
    if _classes.MARK not in members:
        return kind(*args)
    return _classes.receive(members[_classes.MARK], members, lambda: kind(*args))


def _new_class(name: str, bases: Any, keywords: Any, body: Any) -> Any:
    """In place of types.new_class, of which dill makes classes with generic bases."""
    members = getattr(body, "keywords", {}).get("source", {})
    if _classes.MARK not in members:
        return types.new_class(name, bases, keywords, body)
    mark = members[_classes.MARK]
    return _classes.receive(mark, members, lambda: types.new_class(name, bases, keywords, body))


def _set_attribute(target: Any, name: str, value: Any) -> None:
    """In place of setattr, with which dill completes classes."""
    if not _classes.is_own(target):
        setattr(target, name, value)


def _reduce_class(cls: type, make: Callable[..., type], mark: bytes, *args: Any) -> Any:
    """How pickle shall write `cls`: made by `make`, then completed with what that does not give."""
    bare = make(b"", *args)
    members = {
        name: value
        for name, value in cls.__dict__.items()
        if name not in bare.__dict__
        or name in ("__doc__", "__module__", "__qualname__")
        or _is_main(getattr(value, "__module__", None) or "")
    }
    members["__qualname__"] = cls.__qualname__
    parts = {}
    if isinstance(cls, enum.EnumMeta):
        member: Any
        for name, member in cls.__members__.items():
            members.pop(name, None)
            parts[name] = {k: v for k, v in vars(member).items() if k != "__objclass__"}
    return make, (mark, *args), (members, parts), None, None, _complete_class


def _complete_class(cls: Any, state: tuple[dict[str, Any], dict[str, dict[str, Any]]]) -> None:
    members, parts = state
    _classes.update(cls, members)
    if not _classes.is_own(cls):
        for name, attributes in parts.items():
            vars(cls[name]).update(attributes)


def _make_enum(mark: bytes, name: str, bases: tuple[Any, ...], values: dict[str, Any]) -> type:
    def make() -> type:
        kind = type(bases[-1])
        body = kind.__prepare__(name, bases)
        for each, value in values.items():
            body[each] = value
        made: type = kind(name, bases, body)
        return made

    return _classes.receive(mark, {}, make) if mark else make()


def _make_named_tuple(
    mark: bytes, name: str, fields: tuple[str, ...], defaults: tuple[Any, ...]
) -> type:
    def make() -> type:
        return collections.namedtuple(name, fields, defaults=defaults)

    return _classes.receive(mark, {}, make) if mark else make()


def _make_type_variable(
    name: str, constraints: tuple[Any, ...], bound: Any, covariant: bool, contravariant: bool
) -> Any:
    return TypeVar(
        name, *constraints, bound=bound, covariant=covariant, contravariant=contravariant
    )


# --- words ---------------------------------------------------------------------------------------


def _not_here(what: str, error: Exception) -> ImportError:
    folders = ", ".join(_own_folders()) or "none besides those of Python"
    return ImportError(
        f"{what} can't be loaded in this worker: {type(error).__name__}: {error}. Workers look for "
        f"modules in: {folders}. Start `quiesce up` in the folder that holds the module, or set "
        "app_dir in the configuration, or pass a function of `__main__` or a lambda, which travels "
        "by value",
        name=getattr(error, "name", None),
    )


def _own_folders() -> list[str]:
    """The folders of sys.path that are not Python's own."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    pythons = tuple(sysconfig.get_path(kind) for kind in kinds)
    entries = [entry or str(Path.cwd()) for entry in sys.path]
    return [
        entry for entry in entries if not entry.startswith(pythons) and not entry.endswith(".zip")
    ]


def _is_main(module: str) -> bool:
    return module in ("__main__", "__mp_main__")


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
