"""Tables, which the dashboard's templates draw."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence
from dataclasses import dataclass

from .._terminal.page import Page

#: Rows of a table. The commands have no limit, but a page that is sent every two
#: seconds needs one.
MOST_ROWS = 100


@dataclass(frozen=True)
class Series:
    """What a chart shows of one pool, or of one database over all workers."""

    key: str
    used: int
    waiting: int
    most: int | None


@dataclass(frozen=True)
class Cell:
    """A cell of a table, with more that can be unfolded."""

    text: str
    style: str = ""
    more: tuple[str, ...] = ()
    series: Series | None = None


@dataclass(frozen=True)
class Column:
    """A column, whose numbers are aligned right."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    key: str
    """What it is about, by which the page knows it again."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A line of what a command prints."""

    text: str
    style: str = ""
    title: bool = False


class Recorder(Page):
    """Collects what a command would print."""

    def __init__(self) -> None:
        self.width = None
        self.found: list[Line | Table] = []

    def line(self, text: str = "", style: str = "") -> None:
        """Add a line, unless it is empty."""
        if text:
            self.found.append(Line(text.strip(), style))

    def title(self, text: str) -> None:
        """Add a heading."""
        self.found.append(Line(text, title=True))

    def parts(
        self,
        parts: Sequence[str],
        *,
        indent: int = 0,  # noqa: ARG002
        hang: int = 4,  # noqa: ARG002
        style: str = "",
    ) -> None:
        """Add a sentence."""
        self.line(" ".join(parts), style)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], **_: t.Any
    ) -> None:
        """Add a table; the heading before it is its caption."""
        caption = t.cast("Line", self.found.pop()).text
        if (printed := table_of("printed", caption, columns, rows)) is not None:
            self.found.append(printed)


def table_of(
    key: str,
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    styles: t.Mapping[str, str] | None = None,
    note: str = "",
) -> Table | None:
    """Return a table, or ``None`` if there are no rows.

    :param key: What the page knows it again by.
    :param columns: The headings; ``>`` in front of one aligns its column right.
    :param styles: The style of each cell with exactly this text.
    """
    if not rows:
        return None
    if len(rows) > MOST_ROWS:
        note = f"{len(rows) - MOST_ROWS} more rows are not shown. {note}".strip()
    return Table(
        key,
        caption,
        tuple(Column(name_of(each), each.startswith(">")) for each in columns),
        tuple(_row(row, styles or {}) for row in rows[:MOST_ROWS]),
        note,
    )


def _row(row: Sequence[str | Cell], styles: t.Mapping[str, str]) -> Row:
    cells = tuple(
        cell if isinstance(cell, Cell) else Cell(cell, styles.get(cell, ""))
        for cell in row
    )
    found = next((cell.series for cell in cells if cell.series is not None), None)
    # Not by its numbers, which change; but views may have several lines.
    return Row(found.key if found else f"{_stem(cells[0])} {cells[1].text}", cells)


def _stem(cell: Cell) -> str:
    """Return the text of a cell without the number before it."""
    return cell.text.rpartition("× ")[2]


def name_of(column: str) -> str:
    """Return the name of a column of the commands, which write it in capitals."""
    name = column.lstrip(">")
    return name if name == "PID" else name.capitalize()
