"""What `quiesce top` lays over the tables: a text, a choice, a question."""

from collections.abc import Callable
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static

HELP: Final = """\
1 2 3 4 5   tasks, tenants, kinds, workers, stops
arrows      move; page up and down, home and end too
Enter       a task's stack; the tasks of a tenant, kind or worker; what a stop waits for
s S         sort by the next column; turn the order round (or click on the head)
/           show only some tasks: tenant=acme kind=compaction state=stopping nightly
t k r       only those of the same tenant, kind, runtime as the marked one; again: all
Esc         all tasks again
x           stop: the marked task, its tenant, its kind, ... - asks first, and says what would stop
o           reopen a scope that stayed closed
p           pause; the picture stays as it is
+ -         ask the broker less or more often
q Ctrl-C    quit: stops that were begun go on

LOOKED is how long ago a task last asked whether it should stop (by sampling, so up to three seconds late).
A stop in progress stands in yellow above the table, with what it waits for.
"""


class TextScreen(ModalScreen[None]):
    """A text to read; `again` fetches it anew."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "app.pop_screen", "Close"),
        Binding("r", "again", "Again"),
    ]

    def __init__(
        self, title: str, text: str, again: "Callable[[TextScreen], None] | None" = None
    ) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._again = again

    def compose(self) -> ComposeResult:
        """A box with the text."""
        with Vertical(classes="box wide"):
            yield Static(Text(self._title), classes="title")
            with VerticalScroll():
                yield Static(Text(self._text), id="text")
            keys = "r again   Esc close" if self._again is not None else "Esc close"
            yield Static(keys, classes="keys")

    def on_mount(self) -> None:
        """Scrolled by the arrows at once."""
        self.query_one(VerticalScroll).focus()
        self.action_again()

    def action_again(self) -> None:
        """Fetch it anew."""
        if self._again is not None:
            self._again(self)

    def put(self, text: str) -> None:
        """What came."""
        if self.is_mounted:
            self.query_one("#text", Static).update(Text(text))
            if self._again is not None:  # of a stack the last lines matter
                self.call_after_refresh(self.query_one(VerticalScroll).scroll_end, animate=False)


class ChoiceScreen(ModalScreen[int | None]):
    """Gives the number of what was chosen, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss(None)", "Close")]

    def __init__(self, title: str, choices: list[str]) -> None:
        super().__init__()
        self._title = title
        self._choices = choices

    def compose(self) -> ComposeResult:
        """A box with the list."""
        with Vertical(classes="box"):
            yield Static(Text(self._title), classes="title")
            yield OptionList(*map(Text, self._choices))
            yield Static("Enter choose   Esc go back", classes="keys")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """That one."""
        self.dismiss(event.option_index)


class Answer:
    """How a question was answered with yes. `kept`: the scope is to stay closed."""

    def __init__(self, *, kept: bool, reason: str) -> None:
        self.kept = kept
        self.reason = reason


class ConfirmScreen(ModalScreen[Answer | None]):
    """A question that names what will happen. Nothing happens but by "y" or the button."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "Yes"),
        Binding("n,escape,q", "dismiss(None)", "No"),
        Binding("k", "keep", "Keep closed"),
    ]

    def __init__(self, title: str, text: str, yes: str, *, of_scope: bool = False) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._yes = yes
        self._of_scope = of_scope
        self._kept = False

    def compose(self) -> ComposeResult:
        """A box with the question, a reason, and two buttons."""
        with Vertical(classes="box"):
            yield Static(Text(self._title), classes="title")
            yield Static(Text(self._text))
            if self._of_scope:
                yield Static(self._keep_text(), id="keep")
            yield Input(placeholder="reason (the tasks see it)", id="reason", compact=True)
            with Horizontal(classes="buttons"):
                yield Button(f"{self._yes} (y)", id="yes", variant="warning", compact=True)
                yield Button("No (n)", id="no", variant="primary", compact=True)

    def on_mount(self) -> None:
        """Enter alone does nothing."""
        self.query_one("#no", Button).focus()

    def _keep_text(self) -> Text:
        mark = "x" if self._kept else " "
        return Text(f"[{mark}] keep it closed afterwards, until it is reopened (k)")

    def action_keep(self) -> None:
        """Toggle."""
        if self._of_scope:
            self._kept = not self._kept
            self.query_one("#keep", Static).update(self._keep_text())

    def action_yes(self) -> None:
        """Do it."""
        reason = self.query_one("#reason", Input).value.strip()
        self.dismiss(Answer(kept=self._kept, reason=reason))

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """As the keys."""
        if event.button.id == "yes":
            self.action_yes()
        else:
            self.dismiss(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The reason is written: back to the question."""
        self.query_one("#yes", Button).focus()


class FilterScreen(ModalScreen[str | None]):
    """One line to type the filter into."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Close")]

    def __init__(self, text: str, check: Callable[[str], Any]) -> None:
        super().__init__()
        self._text = text
        self._check = check

    def compose(self) -> ComposeResult:
        """A line above the keys."""
        with Vertical(classes="line"):
            yield Input(
                self._text,
                placeholder="tenant=… kind=… runtime=… state=… or any word",
                compact=True,
                select_on_focus=False,
            )
            yield Static("Enter show those   Esc go back   empty: all", id="said", classes="keys")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """If it says something."""
        try:
            self._check(event.value)
        except ValueError as error:
            self.query_one("#said", Static).update(Text(str(error), style="bold red"))
        else:
            self.dismiss(event.value)
