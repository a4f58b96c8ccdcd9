"""Names that nobody has declared: refused with the nearest that somebody has.

A scope of an unknown kind or runtime is refused too: found empty, a typo would pass for "nothing runs".
"""

from collections.abc import Iterable
from difflib import get_close_matches

from quiesce.registry.scope import Scope
from quiesce.registry.state import State

#: The name of a class in `quiesce.errors`, and the text.
Refusal = tuple[str, str]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The text of an unknown name: the nearest known, if any is near, and all of them."""
    known = sorted(known)
    name = name[:100]  # the comparison is quadratic, and a peer may say anything
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown {what} {name!r}{hint} Known: {', '.join(known)}"


def undeclared(state: State, kind: str | None, runtime: str | None) -> Refusal | None:
    """Why these names can't be used, or None. Those that are None are not named at all."""
    if runtime is not None and runtime not in state.runtimes:
        return "UnknownRuntimeError", unknown("runtime", runtime, state.runtimes)
    if kind is not None and kind not in state.kinds:
        return "UnknownKindError", unknown("kind", kind, state.kinds)
    return None


def undeclared_in(state: State, scope: Scope) -> Refusal | None:
    """The same for a scope. A name of live tasks is known, even if the configuration has lost it since."""
    kind = None if state.index.has(kind=scope.kind) else scope.kind
    runtime = None if state.index.has(runtime=scope.runtime) else scope.runtime
    return undeclared(state, kind, runtime)
