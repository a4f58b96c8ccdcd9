"""The application of `quiesce top`: the tables, the keys, and what they do. What may wait is done in threads."""

import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.message import Message
from textual.widgets import Footer, Static

from quiesce.cli.output import age, clean, counted
from quiesce.cli.top import filters, head, screens, style, targets, views
from quiesce.cli.top.ending import end_by_signals
from quiesce.cli.top.feeder import Call, Feeder
from quiesce.cli.top.filters import Filter
from quiesce.cli.top.grid import Grid
from quiesce.cli.top.source import Snapshot, Trend
from quiesce.cli.top.views import Cell, Column, Row
from quiesce.cli.watching import how_it_gets_on
from quiesce.protocol.stack_text import innermost
from quiesce.registry.scope import Scope
from quiesce.values import ClosedScope, TaskInfo, WorkerInfo

if TYPE_CHECKING:
    from quiesce.client import Client
    from quiesce.values import ShutdownReport

VIEWS: Final = ("tasks", "tenants", "kinds", "workers", "stops")
COLUMNS: Final = {
    "tasks": views.TASKS,
    "tenants": views.TENANTS,
    "kinds": views.KINDS,
    "workers": views.WORKERS,
    "stops": views.STOPS,
}
#: By view: the column that sorts at first, and whether the largest come first.
_SORTED: Final = {
    "tasks": (0, False),
    "tenants": (1, True),
    "kinds": (0, False),
    "workers": (1, False),
    "stops": (0, False),
}
#: Seconds between two questions to the broker.
_INTERVALS: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
#: Runtimes that stand above the table.
_RUNTIMES: Final = 8
#: Lines below which the runtimes are left out.
_ROOM: Final = 12
#: Frames of a stack, and threads and coroutines of a task.
_FRAMES: Final = 100


class News(Message):
    """What the feeder brings."""

    def __init__(self, what: Snapshot | Exception) -> None:
        super().__init__()
        self.what = what


class Ended(Message):
    """A stop that this `top` asked for has ended, or could not be begun."""

    def __init__(self, target: targets.Target, how: "ShutdownReport | Exception") -> None:
        super().__init__()
        self.target = target
        self.how = how


class Came(Message):
    """What a screen asked for."""

    def __init__(self, screen: screens.TextScreen, text: str) -> None:
        super().__init__()
        self.screen = screen
        self.text = text


class TopApp(App[None]):
    """The client stays the caller's, who closes it after `run`: that ends all threads."""

    CSS = style.CSS
    TITLE = "quiesce top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"view('{name}')", show=False) for n, name in enumerate(VIEWS, 1)),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("S", "turn", "Turn", show=False),
        Binding("x", "stop", "Stop"),
        Binding("o", "reopen", "Reopen"),
        Binding("p", "pause", "Pause"),
        Binding("t", "same('tenant')", show=False),
        Binding("k", "same('kind')", show=False),
        Binding("r", "same('runtime')", show=False),
        Binding("escape", "all", show=False),
        Binding("plus,equals_sign", "pace(1)", show=False),
        Binding("minus", "pace(-1)", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(
        self, client: "Client", *, interval: float = 1.0, wanted: Filter | None = None
    ) -> None:
        super().__init__()
        self.client = client
        self.feeder = Feeder(client, interval, lambda what: self.post_message(News(what)))
        self.snapshot: Snapshot | None = None
        #: Why there is no newer snapshot; since when (monotonic).
        self.trouble: Exception | None = None
        self._since = 0.0
        self.view = "tasks"
        self.wanted = wanted or Filter()
        self.paused = False
        #: Stops that this `top` asked for and that go on.
        self.going_on: list[targets.Target] = []
        #: Their reports, newest last.
        self.reports: list[tuple[targets.Target, str]] = []
        self._trend = Trend()
        #: What stands in each line, and how.
        self._lines: dict[str, tuple[Text, list[Any]]] = {}
        self._sorted = dict(_SORTED)

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Static(id="title")
        yield Static("asking the broker …", id="summary")
        yield Grid("runtimes", cursor=False, empty="")
        yield Static(id="stops")
        yield Static(id="tabs")
        yield Grid("main")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to ask."""
        self.query_one("#main", Grid).focus()
        self.feeder.start()
        end_by_signals(self)
        self.set_interval(1.0, self._tick)

    def on_unmount(self) -> None:
        """Ask no more."""
        self.feeder.stop()

    # --- news

    def on_news(self, message: News) -> None:
        """A snapshot, or why there is none."""
        if isinstance(message.what, Snapshot):
            if self.trouble is not None:
                broker = message.what.statistics
                pid = broker["broker"]["pid"]
                self.notify(f"the broker is back: epoch {broker['epoch']}, pid {pid}")
            self.trouble = None
            self._trend.add(message.what)
            if not self.paused or self.snapshot is None:
                self.snapshot = message.what
        elif self.trouble is None:
            self.trouble, self._since = message.what, time.monotonic()
        if len(self.screen_stack) == 1:  # what lies under a question stands still
            self._draw()

    def on_resize(self) -> None:
        """Lines are cut and filled to the width."""
        self._draw()

    def _draw(self) -> None:
        try:
            self._draw_all()
        except NoMatches:
            pass  # not begun yet, or ending: some of the widgets are not there

    def _draw_all(self) -> None:
        if not self.screen_stack:
            return
        self.screen_stack[0].set_class(self.trouble is not None, "stale")
        self._draw_title()
        if self.snapshot is None:
            if self.trouble is not None:
                self._put("#summary", Text(clean(self.trouble), style="bold red"))
            return
        self._put("#summary", head.summary(self.snapshot, self._trend, self.size.width - 2))
        rows = views.runtimes(self.snapshot, self._trend)
        runtimes = self._at("#runtimes", Grid)
        height = 1 + min(len(rows), _RUNTIMES)
        runtimes.display = self.size.height >= height + _ROOM
        if runtimes.display and runtimes.size.height != height:
            runtimes.styles.height = height
        runtimes.show(views.RUNTIMES, rows)
        self._draw_stops(self.snapshot)
        self._draw_main(self.snapshot)

    def _at(self, selector: str, kind: type[Any]) -> Any:
        """A widget of the first screen, whatever lies over it."""
        return self.screen_stack[0].query_one(selector, kind)

    def _put(self, selector: str, line: Text) -> None:
        """One line, if it is another one now."""
        if self._lines.get(selector) != (line, line.spans):
            self._lines[selector] = (line, line.spans)
            self._at(selector, Static).update(line, layout=False)

    def _tick(self) -> None:
        if len(self.screen_stack) == 1 and self.screen_stack[0].query("#title"):
            self._draw_title()

    def _draw_title(self) -> None:
        if len(self.screen_stack) != 1 or not self.is_running:
            return
        away = None if self.trouble is None else age(self._since, time.monotonic())
        line = head.title(
            self.client.address, self.snapshot, away, self.size.width, paused=self.paused
        )
        self._put("#title", line)

    def _draw_stops(self, snapshot: Snapshot) -> None:
        panel = self._at("#stops", Static)
        if snapshot.stops:
            panel.update(head.stops(snapshot, self.size.width - 2))
        panel.display = bool(snapshot.stops)

    def _draw_main(self, snapshot: Snapshot) -> None:
        rows = self._rows(snapshot)
        sort = self._sorted[self.view]
        if self.view != "stops":
            rows.sort(key=lambda row: row.order[sort[0]], reverse=sort[1])
        main = self._at("#main", Grid)
        main.empty = self._why_empty(snapshot)
        main.show(COLUMNS[self.view], rows, sort=sort if self.view != "stops" else None)
        line = head.tabs(VIEWS, self.view, self.wanted, snapshot, len(rows), self.size.width)
        self._put("#tabs", line)

    def _rows(self, snapshot: Snapshot) -> list[Row]:
        if self.view == "tasks":
            return views.tasks(snapshot, self.wanted)
        if self.view == "tenants":
            return views.tenants(snapshot)
        if self.view == "kinds":
            return views.kinds(snapshot, self._trend)
        if self.view == "workers":
            return views.workers(snapshot, self._trend)
        rows = views.stops(snapshot)
        for number, (target, report) in reversed(list(enumerate(self.reports))):
            cells = (Cell("ended", "green"), Cell(clean(target), "bold"), Cell(""), Cell(""))
            head = Cell(clean(report.partition("\n")[0]), "green")
            rows.append(Row(("report", number), (*cells, Cell(""), head), (), report))
        return rows

    def _why_empty(self, snapshot: Snapshot) -> str:
        if self.view == "tasks" and self.wanted and snapshot.tasks:
            return "no task matches the filter; Esc shows all"
        return {"stops": "no stop is in progress"}.get(self.view, f"no {self.view}")

    # --- keys: what is shown

    def action_view(self, name: str) -> None:
        """Another table."""
        self.view = name
        self._draw()

    def action_sort(self) -> None:
        """By the next column that is shown."""
        column, _ = self._sorted[self.view]
        count = len(COLUMNS[self.view])
        self._sort_by((column + 1) % count)

    def _sort_by(self, column: int) -> None:
        shown: tuple[Column, ...] = COLUMNS[self.view]
        was, turned = self._sorted[self.view]
        # Numbers begin with the largest, texts with "a"; once more turns them round.
        self._sorted[self.view] = (column, not turned if was == column else shown[column].right)
        self._draw()

    def action_turn(self) -> None:
        """The other way round."""
        self._sort_by(self._sorted[self.view][0])

    def on_grid_head_clicked(self, message: Grid.HeadClicked) -> None:
        """Sort by it."""
        if self.view != "stops":
            self._sort_by(message.column)

    def action_same(self, name: str) -> None:
        """Only the tasks that have this in common with the marked one."""
        row = self._current()
        of = None if row is None else row.of
        if isinstance(of, TaskInfo):
            value = getattr(of, filters.FIELDS[name])
            if value is not None:
                self.wanted = self.wanted.toggled(name, str(value))
                self._draw()

    def action_all(self) -> None:
        """No filter."""
        self.wanted = Filter()
        self._draw()

    def action_filter(self) -> None:
        """Ask for one."""

        def use(text: str | None) -> None:
            if text is not None:
                self.wanted = filters.parse(text)
                self.view = "tasks"
                self._draw()

        self.push_screen(screens.FilterScreen(str(self.wanted), filters.parse), use)

    def action_pause(self) -> None:
        """The picture stays, or goes on."""
        self.paused = not self.paused
        self.feeder.hurry()
        self._draw()

    def action_pace(self, by: int) -> None:
        """Ask less often, or more."""
        near = min(_INTERVALS, key=lambda each: abs(each - self.feeder.interval))
        index = max(0, min(_INTERVALS.index(near) + by, len(_INTERVALS) - 1))
        self.feeder.interval = _INTERVALS[index]
        self.feeder.hurry()
        self.notify(f"every {self.feeder.interval:g} s", timeout=2)

    def action_help(self) -> None:
        """The keys."""
        self.push_screen(screens.TextScreen("quiesce top", screens.HELP))

    def _current(self) -> Row | None:
        row: Row | None = self._at("#main", Grid).current
        return row

    # --- Enter

    def on_grid_chosen(self, message: Grid.Chosen) -> None:
        """Look closer."""
        row = message.row
        of = row.of
        if isinstance(of, TaskInfo):
            self._show_task(of)
        elif isinstance(of, WorkerInfo):
            self._show_those(Filter((("pid", str(of.pid)),)))
        elif self.view == "tenants" and of is not None:
            self._show_those(Filter((("tenant", of),)))
        elif self.view == "kinds":
            self._show_those(Filter((("kind", of[0]), ("runtime", of[1]))))
        elif isinstance(of, str) and self.view == "stops":
            self.push_screen(screens.TextScreen("the report", of))
        elif self.view == "stops" and not isinstance(of, ClosedScope):
            lines = [
                f"  {task.id} {task.kind} {task.name}: {how_it_gets_on(task)}" for task in of.tasks
            ]
            left = of.remaining - len(of.tasks)
            lines += [f"  and {left} more"] if left else []
            head = f"stop {of.stop_id} of [{of.scope}] waits for {counted(of.remaining, 'task')}"
            self.push_screen(screens.TextScreen(clean(head), "\n".join(map(clean, lines))))

    def _show_those(self, wanted: Filter) -> None:
        self.wanted = wanted
        self.view = "tasks"
        self._draw()

    def _show_task(self, task: TaskInfo) -> None:
        labels = "/".join(each for each in (task.tenant_id, task.timeline_id) if each is not None)
        head = f"task {task.id}.{task.attempt} {task.kind} {task.name} {labels}"

        def ask(screen: screens.TextScreen) -> None:
            Call(
                lambda: _closer(self.client, task),
                lambda text: self.post_message(Came(screen, text)),
                lambda error: self.post_message(Came(screen, str(error))),
            ).start()

        self.push_screen(screens.TextScreen(clean(head), "asking its worker …", ask))

    def on_came(self, message: Came) -> None:
        """The text of a screen."""
        message.screen.put(message.text)

    # --- stop and reopen

    def action_stop(self) -> None:
        """Choose what, ask, do it."""
        snapshot = self.snapshot
        if snapshot is None:
            return
        found = targets.of_row(self.view, self._current(), self.wanted)
        if not found:
            self.notify("mark a task, a tenant, a kind or a worker first", severity="warning")
        elif len(found) == 1:
            self._confirm_stop(found[0], snapshot)
        else:

            def chosen(number: int | None) -> None:
                if number is not None:
                    self._confirm_stop(found[number], snapshot)

            lines = [target.line(snapshot) for target in found]
            self.push_screen(screens.ChoiceScreen("stop what?", lines), chosen)

    def _confirm_stop(self, target: targets.Target, snapshot: Snapshot) -> None:
        def answered(answer: screens.Answer | None) -> None:
            if answer is not None:
                self._stop(target, answer)

        title = f"stop {target}?"
        text = target.question(self.snapshot or snapshot)
        question = screens.ConfirmScreen(
            clean(title), text, "Stop it", of_scope=target.task_id is None
        )
        self.push_screen(question, answered)

    def _stop(self, target: targets.Target, answer: screens.Answer) -> None:
        self.going_on.append(target)
        reason = answer.reason or "asked for in quiesce top"
        Call(
            lambda: target.stop(self.client, kept=answer.kept, reason=reason),
            lambda report: self.post_message(Ended(target, report)),
            lambda error: self.post_message(Ended(target, error)),
        ).start()
        self.feeder.hurry()

    def on_ended(self, message: Ended) -> None:
        """Say what came of it; the whole report is among the stops."""
        if message.target in self.going_on:
            self.going_on.remove(message.target)
        text = clean(str(message.how).partition("\n")[0])
        if isinstance(message.how, Exception):
            self.notify(
                text, title=f"{message.target} was not stopped", severity="error", markup=False
            )
        else:
            self.reports.append((message.target, str(message.how)))
            self.notify(text, markup=False)
        self.feeder.hurry()

    def action_reopen(self) -> None:
        """Choose which, ask, do it."""
        snapshot = self.snapshot
        if snapshot is None:
            return
        found = [each for each in snapshot.closed if each.holder in ("kept", "timed-out")]
        if not found:
            self.notify("no scope is kept closed, or stayed so after a stop that timed out")
            return
        lines = [
            clean(f"[{each.scope}], {each.holder} for {age(each.since, snapshot.at)} {each.reason}")
            for each in found
        ]

        def chosen(number: int | None) -> None:
            if number is not None:
                self._confirm_reopen(found[number])

        self.push_screen(screens.ChoiceScreen("reopen which scope?", lines), chosen)

    def _confirm_reopen(self, closed: ClosedScope) -> None:
        scope = Scope(closed.kind, closed.tenant_id, closed.timeline_id, closed.runtime)
        text = f"Spawns into [{scope}] are accepted again, and so are those into scopes within it."
        if closed.waiting_for:
            text += f"\n{closed.waiting_for}"

        def answered(answer: screens.Answer | None) -> None:
            if answer is not None:
                Call(
                    lambda: self.client.reopen(*scope),
                    lambda _: self.notify(clean(f"[{scope}] is open"), markup=False),
                    lambda error: self.notify(clean(error), severity="error", markup=False),
                ).start()
                self.feeder.hurry()

        title = clean(f"reopen [{scope}]?")
        self.push_screen(screens.ConfirmScreen(title, clean(text), "Reopen it"), answered)


def _closer(client: "Client", task: TaskInfo) -> str:
    """How a task gets on now, and its stacks."""
    now = client.task(task.id)
    lines = [how_it_gets_on(now)]
    if now.reason:
        lines.append(f"asked to stop: {now.reason}")
    if now.worker_pid is not None:
        lines.append(f"process {now.worker_pid} on {now.host}")
    for found in client.stacks(task_ids=[task.id]) if now.state != "ended" else ():
        for text in innermost(found.stacks, _FRAMES, _FRAMES) or ["no stack came"]:
            lines += ["", *text.splitlines()]
    return "\n".join(map(clean, lines))
