"""What pickle sends by reference only, sent by value: whatever belongs to `__main__`, lambdas, closures.

`dumps` and `loads` are pickle's where that is enough, else dill's, with help where dill makes one class
into two. The first byte tells them apart: D, dill; else a pickle.
"""

import collections
import enum
import functools
import importlib
import io
import os
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

_DILL: Final = b"D"
_PROTOCOL: Final = 5
#: In both `__main__` and `__mp_main__`.
_MAIN: Final = b"_main_"


def dumps(value: Any, *, strict: bool = True) -> bytes:
    """`strict`: refuse what dill would copy though it means something in one process only.

    Else a lock becomes another, which nobody holds.
    """
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


def loads(data: bytes) -> Any:
    if data[:1] != _DILL:
        return pickle.loads(data)
    _, unpickler = _dill()
    return unpickler(io.BytesIO(memoryview(data)[1:]), ignore=True).load()


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


_LOCK: Final = type(threading.Lock())
_RLOCK: Final = type(threading.RLock())
#: What dill copies, but a copy of which is not the same: a lock that is held, an open file.
_BOUND: Final = (_LOCK, _RLOCK, io.IOBase)


@functools.cache
def _dill() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A pickler and an unpickler. Late: importing dill takes long, and most never need it."""
    import dill

    class Pickler(dill.Pickler):  # type: ignore[misc]  # dill is untyped
        """Marks classes, and helps with those of which dill makes references or loses methods."""

        __module__ = dill.Pickler.__module__  # by which dill knows its own

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, _BOUND):
                if self.strict:
                    raise TypeError(
                        f"cannot pickle {type(obj).__name__!r} object: it belongs to its process"
                    )
                # Nobody over there holds what is held here. dill's copies are held like the original, and those
                # of an RLock always: by nobody, so that who takes one waits for ever.
                if isinstance(obj, _LOCK):
                    return threading.Lock, ()
                if isinstance(obj, _RLOCK):
                    return threading.RLock, ()
            if isinstance(obj, functools.cached_property) and type(vars(obj).get("lock")) is _RLOCK:
                state = {name: value for name, value in vars(obj).items() if name != "lock"}
                return _make_cached_property, (type(obj),), state
            if isinstance(obj, types.ModuleType) and not is_main(obj.__name__):
                # dill would send the variables of a module that is not installed, and put them into the
                # living module of the worker: its state lost, its locks replaced.
                return importlib.import_module, (obj.__name__,)
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
    found: Any = None if module is None or is_main(module) else sys.modules.get(module)
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
        or is_main(getattr(value, "__module__", None) or "")
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


def _make_cached_property(kind: Any) -> Any:
    """Without its function, which comes as state, since that may refer to the class that holds the property.

    The lock that Python 3.11 has in each is no part of what a class means, so it travels even strictly.
    """
    made = kind.__new__(kind)
    made.lock = threading.RLock()
    return made


def _make_type_variable(
    name: str, constraints: tuple[Any, ...], bound: Any, covariant: bool, contravariant: bool
) -> Any:
    return TypeVar(
        name, *constraints, bound=bound, covariant=covariant, contravariant=contravariant
    )


# --- words ---------------------------------------------------------------------------------------


def is_main(module: str) -> bool:
    return module in ("__main__", "__mp_main__")
