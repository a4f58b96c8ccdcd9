"""What of the tasks `quiesce top` shows: words as people type them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quiesce.cli.options import ScopeOptions

if TYPE_CHECKING:
    from quiesce.values import TaskInfo

#: What may stand before the `=` of a word, and the field of a task that it is compared with.
FIELDS: Final = {
    "tenant": "tenant_id",
    "timeline": "timeline_id",
    "kind": "kind",
    "runtime": "runtime",
    "state": "state",
    "pid": "worker_pid",
}


class FilterError(ValueError):
    """The text is no filter; it says why."""


@dataclass(frozen=True, slots=True)
class Filter:
    """`fields`: what must be equal. `words`: what must occur, in any case, in the id, name, kind or labels."""

    fields: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.fields or self.words)

    def __str__(self) -> str:
        return " ".join((*(f"{name}={value}" for name, value in self.fields), *self.words))

    def get(self, name: str) -> str | None:
        """The value that this field must have, if any."""
        return dict(self.fields).get(name)

    def toggled(self, name: str, value: str) -> "Filter":
        """With this field, or without it where it was so already."""
        others = tuple(each for each in self.fields if each[0] != name)
        if self.get(name) == value:
            return Filter(others, self.words)
        return Filter((*others, (name, value)), self.words)

    def matches(self, task: "TaskInfo") -> bool:
        """Whether to show it. "stopping" and "lingering" are states, too."""
        for name, value in self.fields:
            found = getattr(task, FIELDS[name])
            if name == "state" and value in ("stopping", "lingering"):
                if not getattr(task, value):
                    return False
            elif found is None or str(found) != value:
                return False
        if not self.words:
            return True
        labels = (str(task.id), task.name, task.kind, task.tenant_id or "", task.timeline_id or "")
        text = "\n".join(labels).lower()
        return all(word.lower() in text for word in self.words)

    def scope(self) -> ScopeOptions | None:
        """The scope that matches the same tasks; None where there is none."""
        if self.words or any(name in ("state", "pid") for name, _ in self.fields):
            return None
        return ScopeOptions(*map(self.get, ("kind", "tenant", "timeline", "runtime")))


def parse(text: str) -> Filter:
    """`tenant=acme kind=compaction nightly`. FilterError for a field that there is not."""
    fields: dict[str, str] = {}
    words = []
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals:
            words.append(word)
        elif name not in FIELDS:
            raise FilterError(f"there is no field {name!r}; there are {', '.join(FIELDS)}")
        elif not value:
            raise FilterError(f"{word} needs a value")
        else:
            fields[name] = value
    return Filter(tuple(fields.items()), tuple(words))
