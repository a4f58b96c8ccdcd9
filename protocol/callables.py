"""How functions, arguments, results and exceptions become bytes; for client and worker alone.

Unpickling runs code: whoever may spawn tasks may run anything in a worker, and a worker in its
client. The broker never does it.

The first byte tells the formats apart: R, a reference `module:qualname`; D, dill; else a pickle.
What belongs to `__main__` travels by value, with dill: the other side has another `__main__`.
Classes that do are marked with an id, so that a process has one copy of each at most, and a class
that comes home is the one that went: `isinstance` and `except` hold on both sides.
"""

import functools
import importlib
import inspect
import pickle
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from quiesce.protocol.by_value import dumps, is_main, loads

_REFERENCE: Final = b"R"
_DILL: Final = b"D"
_PROTOCOL: Final = 5
#: In both `__main__` and `__mp_main__`.
_MAIN: Final = b"_main_"
_NO_ARGUMENTS: Final = b""
_NONE: Final = pickle.dumps(None, _PROTOCOL)
#: A function, and whether it `is_async`.
Loaded = tuple[Callable[..., Any], bool]
#: What was imported by name, by that; so many at most.
_known: Final[dict[bytes, Loaded]] = {}
_MOST_KNOWN: Final = 4096
#: Of an exception and all that it was raised from or while handling, so many travel.
CHAIN_LIMIT: Final = 32


# --- functions -----------------------------------------------------------------------------------


class Reference(NamedTuple):
    """Where an importable function is found: in the module, by names from attribute to attribute."""

    module: str
    names: tuple[str, ...]

    def leads_to(self, fn: Callable[..., Any]) -> bool:
        """Whether this is found there now: modules are patched."""
        found: Any = sys.modules.get(self.module)
        for name in self.names:
            found = getattr(found, name, None)
        return found is fn


def reference_to(fn: Callable[..., Any]) -> Reference | None:
    """How a worker can import it; None: it can't."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and not is_main(module):
        reference = Reference(module, tuple(name.split(".")))
        if reference.leads_to(fn):
            return reference
    return None


def pack_function(fn: Callable[..., Any]) -> bytes:
    """By reference where a worker can import it, else by value.

    TypeError: it is not callable, or holds what can't be pickled.
    """
    if not callable(fn):
        raise TypeError(
            f"expected a function or another callable, got {fn!r:.80}; "
            "pass the function itself and its arguments apart"
        )
    reference = reference_to(fn)
    if reference is not None:
        return _REFERENCE + f"{reference.module}:{'.'.join(reference.names)}".encode()
    try:
        return dumps(fn, strict=False)
    except Exception as error:
        raise TypeError(
            f"{fn!r:.200} can't be sent to a worker: {error}. Functions of an importable module "
            "travel by name; all others with what they refer to, which must be picklable"
        ) from error


def unpack_function(data: bytes) -> Callable[..., Any]:
    """The function. ImportError, with what to do about it, if its module can't be imported here."""
    if data[:1] == _REFERENCE:
        return load_function(data)[0]
    fn = _loads_in_worker(data, "the function")
    if not callable(fn):
        raise TypeError(f"expected a function, got {fn!r:.80}")
    return fn  # type: ignore[no-any-return]  # nothing more is known of a callable


def load_function(data: bytes) -> Loaded:
    """The function, as `unpack_function`, and whether it `is_async`."""
    if data[:1] != _REFERENCE:
        fn = unpack_function(data)
        return fn, is_async(fn)
    known = _known.get(data)
    if known is None:
        fn = _import_function(data)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[data] = fn, is_async(fn)
    return known


def known_function(data: object) -> Loaded | None:
    """What `load_function` would give, if that is known already: then nobody's code runs for it."""
    return _known.get(data) if isinstance(data, bytes) else None


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
    if not args and not kwargs:
        return _NO_ARGUMENTS
    args, kwargs = tuple(args), dict(kwargs or {})
    try:
        return dumps((args, kwargs))
    except Exception as error:
        named = {**{f"number {i}": value for i, value in enumerate(args, 1)}, **kwargs}
        for name, value in named.items():
            try:
                dumps(value)
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
        return dumps(value)
    except Exception as error:
        raise TypeError(f"the result, a {_type_name(value)}, can't be pickled: {error}") from error


def unpack_value(data: bytes) -> Any:
    """A result, back home. Raises what unpickling raises."""
    return None if data == _NONE else loads(data)


# --- exceptions ----------------------------------------------------------------------------------

#: One exception of a chain: its bytes (empty if it can't travel), whether these are its parts, the
#: places of its cause and context in the chain, whether the context is suppressed, and the places of its
#: members, if it is a group whose bytes are without them.
_Link = tuple[bytes, bool, int | None, int | None, bool, tuple[int, ...]]


def pack_exception(exc: BaseException) -> bytes:
    """The exception with its notes, its causes, contexts and members, but no traceback. Never raises.

    Of the causes, contexts and members, those that can't be pickled and unpickled again are left out. If
    that is `exc` itself, or all of its members, the result is empty. The trial also finds those that
    unpickle to something else, as many whose `__init__` takes other arguments than it hands on; these
    travel in parts, and are put together again without `__init__`.
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
        cause, context = place(each.__cause__), place(each.__context__)
        data, in_parts = b"", False
        members: tuple[int, ...] = ()
        parts = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        if parts and len(chain) + len(parts) <= CHAIN_LIMIT:
            data, members = _pack_group(each), _placed(map(place, parts))
        if not data:
            (data, in_parts), members = _pack_one(each), ()
        if not data and parts:  # at least those for which there is room
            members = _placed(map(place, parts))
            data = _pack_group(each) if members else b""
        if not data and each is exc:
            return b""
        links.append((data, in_parts, cause, context, each.__suppress_context__, members))
    packed = pickle.dumps(links, _PROTOCOL)
    if links[0][-1] and unpack_exception(packed) is None:
        return b""
    return packed


def _placed(places: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(place for place in places if place is not None)


def unpack_exception(data: bytes) -> BaseException | None:
    """The exception, back home; None if there is none or it can't be rebuilt here. Never raises."""
    if not data:
        return None
    try:
        links: list[_Link] = pickle.loads(data)
        built: dict[int, BaseException | None] = {}

        def build(place: int) -> BaseException | None:
            if place not in built:
                data, in_parts, *_, members = links[place]
                if members:  # a group is made of them, so they come first
                    built[place] = _unpack_group(data, [build(member) for member in members])
                else:
                    built[place] = _unpack_one(data, in_parts=in_parts)
            return built[place]

        chain = [build(place) for place in range(len(links))]
        for exc, (_, _, cause, context, suppress, _) in zip(chain, links, strict=True):
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
            data = dumps((type(exc), exc.args, vars(exc)) if in_parts else exc)
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
        exc = loads(data)
        if in_parts:
            kind, args, state = exc
            exc = kind.__new__(kind, *args)
            exc.args = args
            exc.__dict__.update(state)
        return exc if isinstance(exc, BaseException) else None
    except Exception:  # user code may raise anything: then it can't be rebuilt
        return None


def _pack_group(group: BaseException) -> bytes:
    """Without its members; empty if it can't travel this way."""
    assert isinstance(group, BaseExceptionGroup)
    try:
        data = dumps((type(group), group.message, vars(group)))
        copy = _unpack_group(data, group.exceptions)
        return data if copy is not None and str(copy) == str(group) else b""
    except Exception:  # user code may raise anything: then it can't travel this way
        return b""


def _unpack_group(data: bytes, members: Iterable[BaseException | None]) -> BaseException | None:
    """The group of those members that are there, put together without its own `__new__` and `__init__`."""
    try:
        kind, message, state = loads(data)
        found = [member for member in members if member is not None]
        group: BaseException = BaseExceptionGroup.__new__(kind, message, found)
        group.__dict__.update(state)
        return group
    except Exception:  # user code may raise anything: then it can't be rebuilt
        return None


def _loads_in_worker(data: bytes, what: str) -> Any:
    try:
        return loads(data)
    except (AttributeError, ImportError) as error:
        raise _not_here(what, error) from error


# --- by value ------------------------------------------------------------------------------------


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


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
