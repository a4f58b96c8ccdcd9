"""A table that draws only the lines that are seen, and only when they have changed: no flicker, little CPU."""

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from quiesce.cli.top.views import Cell, Column, Row

#: Columns between two columns.
_GAP: Final = 2
#: Columns from this rank on tell one row from the other: they are cut last.
_TELLING: Final = 8


def fit(columns: Sequence[Column], wanted: Sequence[int], width: int) -> list[int]:
    """The width of each column, 0 for one that is left out.

    `wanted`: how wide its longest cell is; 0 leaves it out. Those of the lowest rank go next, until the others
    have their least, or what they want if that is less; what tells one row from the other, half of what it may
    have. What is left is given in the order of their ranks.
    """
    kept = [n for n in range(len(columns)) if wanted[n]]
    least = [min(wanted[n], column.least) for n, column in enumerate(columns)]
    needed = [
        max(least[n], min(wanted[n], (column.least + column.most) // 2))
        if column.rank >= _TELLING
        else least[n]
        for n, column in enumerate(columns)
    ]
    while len(kept) > 1 and sum(needed[n] + _GAP for n in kept) - _GAP > width:
        expendable = [n for n in kept if columns[n].rank < _TELLING]
        if not expendable:
            if needed == least:
                expendable = kept
            else:
                needed = least
                continue
        kept.remove(min(expendable, key=lambda n: columns[n].rank))
    widths = [0] * len(columns)
    for number in kept:
        widths[number] = least[number]
    left = width - sum(widths[n] + _GAP for n in kept) + _GAP
    for number in sorted(kept, key=lambda n: -columns[n].rank):
        column = columns[number]
        more = max(0, min(wanted[number], column.most) - widths[number])
        widths[number] += min(more, max(0, left))
        left -= min(more, max(0, left))
    for number in kept:
        if columns[number].stretch and left > 0:
            widths[number] += left
            break
    return widths


class Grid(ScrollView, can_focus=True):
    """Rows with a cursor, a head that stays, and a column that they are sorted by."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"grid--head", "grid--cursor"}
    DEFAULT_CSS = """
    Grid { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }
    Grid .grid--head { color: $text-muted; text-style: bold; }
    Grid .grid--cursor { background: $primary 25%; }
    Grid:focus .grid--cursor { background: $primary 60%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000)", "First", show=False),
        Binding("end", "move(1000000)", "Last", show=False),
        Binding("enter", "choose", "Details"),
    ]

    class Chosen(Message):
        """Enter, or a click on the row under the cursor."""

        def __init__(self, row: Row) -> None:
            super().__init__()
            self.row = row

    class HeadClicked(Message):
        """A click on a column's head."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    def __init__(self, name: str, *, cursor: bool = True, empty: str = "nothing to show") -> None:
        super().__init__(id=name)
        self.can_focus = cursor
        #: Said instead of rows.
        self.empty = empty
        self._columns: Sequence[Column] = ()
        self._rows: list[Row] = []
        #: Index of the row under the cursor; stays with its row when others come and go.
        self._at = 0
        self._widths: list[int] = []
        #: The widest cell of each column so far: columns don't jump from tick to tick.
        self._widest: list[int] = []
        self._sort: tuple[int, bool] | None = None

    # --- what is shown

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self._at] if self._rows else None

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order shown."""
        return self._rows

    def show(
        self,
        columns: Sequence[Column],
        rows: list[Row],
        *,
        sort: tuple[int, bool] | None = None,
    ) -> None:
        """These rows from now on. The cursor stays on its row; `sort`: the column and whether it is reversed."""
        if columns is not self._columns:
            self._columns = columns
            self._widest = [0] * len(columns)
            self._rows, self._at = [], 0
            self.scroll_to(y=0, animate=False, force=True)
        old, kept = self.current, self._at - self.scroll_offset.y
        before = self._seen()
        self._rows, self._sort = rows, sort
        for row in rows:
            for number, cell in enumerate(row.cells):
                length = len(cell.text)
                if length > self._widest[number]:
                    title = len(self._columns[number].title) + 1
                    self._widest[number] = max(title, cell_len(cell.text))
        found = None
        if old is not None:
            found = next((n for n, row in enumerate(rows) if row.key == old.key), None)
        if found is None:  # it has gone: the cursor stays on its line
            self._at = max(0, min(self._at, len(rows) - 1))
            kept = self._at - self.scroll_offset.y
        else:
            self._at = found
        self._resize()
        if rows and self._at - self.scroll_offset.y != kept:
            self._scroll_so_that(kept)
        if self._seen() != before:
            self.refresh()

    def _seen(self) -> tuple[Any, ...]:
        """All that what is on the screen depends on."""
        top = self.scroll_offset.y
        lines = [row.cells for row in self._rows[top : top + self.size.height]]
        return (self._columns, tuple(self._widths), self._at, self._sort, lines)

    def _resize(self) -> None:
        width = self.scrollable_content_region.width or self.size.width
        self._widths = fit(self._columns, self._widest, width)
        self.virtual_size = Size(width, len(self._rows) + 1)

    def on_resize(self, event: events.Resize) -> None:
        """Columns come and go."""
        self._resize()
        self._scroll_to_cursor()
        self.refresh()

    # --- the cursor

    def action_move(self, by: int) -> None:
        """Down or up."""
        if self._rows:
            self._at = max(0, min(self._at + by, len(self._rows) - 1))
            self._scroll_to_cursor()
            self.refresh()

    def action_page(self, by: int) -> None:
        """A screen down or up."""
        self.action_move(by * max(1, self.size.height - 2))

    def action_choose(self) -> None:
        """Enter."""
        if self.current is not None:
            self.post_message(self.Chosen(self.current))

    def _scroll_to_cursor(self) -> None:
        top, lines = self.scroll_offset.y, max(1, self.size.height - 1)
        if self._at < top:
            self.scroll_to(y=self._at, animate=False, force=True)
        elif self._at >= top + lines:
            self.scroll_to(y=self._at - lines + 1, animate=False, force=True)

    def _scroll_so_that(self, line: int) -> None:
        """Others came or went above: what is looked at stays where it is."""
        lines = max(1, self.size.height - 1)
        line = max(0, min(line, lines - 1))
        self.scroll_to(y=max(0, self._at - line), animate=False, force=True)

    def on_click(self, event: events.Click) -> None:
        """On the head: sort; on a row: put the cursor there, then choose it."""
        if event.y == 0:
            x = 0
            for number, width in enumerate(self._widths):
                if width and x <= event.x < x + width + _GAP:
                    self.post_message(self.HeadClicked(number))
                x += width + _GAP if width else 0
            return
        index = self.scroll_offset.y + event.y - 1
        if not self.can_focus or index >= len(self._rows):
            return
        if index == self._at:
            self.action_choose()
        self._at = index
        self.refresh()

    # --- lines

    def render_line(self, y: int) -> Strip:
        """The head, a row, or nothing."""
        width = self.size.width
        if y == 0:
            return self._line(self._head(), width, self.get_component_rich_style("grid--head"))
        index = self.scroll_offset.y + y - 1
        if index < len(self._rows):
            cursor = self.can_focus and index == self._at
            name = "grid--cursor" if cursor else ""
            base = self.get_component_rich_style(name) if name else self.rich_style
            return self._line(self._rows[index].cells, width, base)
        text = f"  {self.empty}" if not self._rows and y == 1 else ""
        return self._line_of([Segment(text, Style(dim=True) + self.rich_style)], width)

    def _head(self) -> tuple[Cell, ...]:
        cells = []
        for number, column in enumerate(self._columns):
            mark = ""
            if self._sort is not None and self._sort[0] == number:
                mark = "▾" if self._sort[1] else "▴"
            cells.append(Cell(column.title + mark, "underline" if mark else ""))
        return tuple(cells)

    def _line(self, cells: Sequence[Cell], width: int, base: Style) -> Strip:
        segments: list[Segment] = []
        for column, cell, room in zip(self._columns, cells, self._widths, strict=True):
            if not room:
                continue
            if segments:
                segments.append(Segment(" " * _GAP, base))
            text, length = cell.text, cell_len(cell.text)
            if length > room:
                text = set_cell_size(text, room - 1) + "…"
            elif column.right:
                text = " " * (room - length) + text
            else:
                text += " " * (room - length)
            segments.append(Segment(text, base + Style.parse(cell.style) if cell.style else base))
        return self._line_of(segments, width, base)

    def _line_of(self, segments: list[Segment], width: int, base: Style | None = None) -> Strip:
        return Strip(segments).adjust_cell_length(width, base or self.rich_style)
