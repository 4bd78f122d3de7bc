"""Text for a terminal or a pipe: lines, and tables that fit.

Most of the text comes from other processes. It is shown without markup and without
anything that could steer a terminal.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import typing as t
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from .._format import count
from .._format import duration
from .._format import number
from .._format import some
from ..snapshot._json import clean

#: With the words that a page is made of.
__all__ = ["Column", "Page", "count", "duration", "number", "some"]

#: What ASCII has instead of the few other characters that we write.
_ASCII = str.maketrans(
    {"→": "->", "×": "x", "·": "|", "∞": "inf", "…": "...", "░": "."}
    | dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True))
)


class Column(t.NamedTuple):
    """One column of a table."""

    name: str
    number: bool = False
    """Numbers stand on the right."""


class Page:
    """What one command prints; made for standard output as it is now.

    A terminal gets styles, and tables and sentences that fit its width. A pipe gets
    everything in full, one line each.
    """

    def __init__(self) -> None:
        stream = sys.stdout
        encoding = (getattr(stream, "encoding", None) or "ascii").lower()
        self._unicode = encoding.replace("-", "").startswith("utf")
        terminal = stream.isatty()
        self.width = shutil.get_terminal_size().columns if terminal else None
        self._console = Console(
            file=io.StringIO(),
            # It does no layout, and looks at no terminal: that is done here.
            width=100_000,
            force_terminal=terminal and not os.environ.get("NO_COLOR"),
            legacy_windows=False,
        )

    def __str__(self) -> str:
        return t.cast(io.StringIO, self._console.file).getvalue()

    def line(self, text: str = "", style: str = "") -> None:
        """Add one line, however long."""
        self._print(Text(self._plain(text), style))

    def parts(
        self, parts: Sequence[str], *, indent: int = 0, hang: int = 4, style: str = ""
    ) -> None:
        """Add a sentence that may be broken between its parts, and only there."""
        line = " " * indent
        empty = True
        for part in map(self._plain, parts):
            if not empty and not self._fits(cell_len(line) + 1 + cell_len(part)):
                self._print(Text(line, style))
                line, empty = " " * (indent + hang), True
            line += part if empty else f" {part}"
            empty = False
        self._print(Text(line, style))

    def table(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        *,
        styles: t.Mapping[str, str] | None = None,
        spare: Sequence[str] = (),
        below: str | None = None,
    ) -> None:
        """Add a table. No cell is ever cut.

        :param styles: How a cell of exactly this text looks.
        :param spare: Columns that a narrow terminal goes without, in this order.
        :param below: The column that a narrow terminal has on a line of its own, which
            may be broken before an arrow; when its turn comes in `spare`, else first.
        """
        plain = [[self._plain(cell) for cell in row] for row in rows]
        widths = [
            max(cell_len(cell) for cell in column)
            for column in zip([c.name for c in columns], *plain, strict=True)
        ]
        shown, gap = self._choose(columns, widths, spare, below)
        under = next((i for i, c in enumerate(columns) if c.name == below), None)
        if under in shown:
            under = None
        names = [self._plain(c.name) for c in columns]
        self._row(names, columns, widths, shown, gap, ["bold"] * len(columns))
        for row, original in zip(plain, rows, strict=True):
            looks = [(styles or {}).get(cell, "") for cell in original]
            self._row(row, columns, widths, shown, gap, looks)
            if under is not None:
                before, arrow, after = original[under].rpartition(" → ")
                parts = [before, f"→ {after}"] if arrow else [after]
                self.parts(parts, indent=widths[0] + gap, style=looks[under])

    def _choose(
        self,
        columns: Sequence[Column],
        widths: Sequence[int],
        spare: Sequence[str],
        below: str | None,
    ) -> tuple[list[int], int]:
        """Return the columns that fit, and the space between them."""
        first = [below] if below is not None and below not in spare else []
        order = [*first, *spare]
        shown, gap = list(range(len(columns))), 2
        for names in (order[:most] for most in range(len(order) + 1)):
            shown = [i for i, c in enumerate(columns) if c.name not in names]
            for gap in (2, 1):
                if self._fits(sum(widths[i] for i in shown) + gap * (len(shown) - 1)):
                    return shown, gap
        return shown, gap

    def _row(
        self,
        cells: Sequence[str],
        columns: Sequence[Column],
        widths: Sequence[int],
        shown: Sequence[int],
        gap: int,
        styles: Sequence[str],
    ) -> None:
        line = Text()
        for index in shown:
            cell = cells[index]
            space = " " * (widths[index] - cell_len(cell))
            line.append(" " * gap if index != shown[0] else "")
            line.append(space if columns[index].number else "")
            line.append(cell, styles[index])
            line.append("" if columns[index].number else space)
        self._print(line)

    def _print(self, line: Text) -> None:
        line.rstrip()
        self._console.print(line, soft_wrap=True)

    def _fits(self, width: int) -> bool:
        return self.width is None or width <= self.width

    def _plain(self, text: str) -> str:
        text = clean(text)
        if self._unicode:
            return text
        return text.translate(_ASCII).encode("ascii", "replace").decode()


def fold(text: str, width: int) -> list[str]:
    """Return the lines of a page, those broken that are wider than a screen."""
    lines: list[str] = []
    for line in text.splitlines():
        styled = Text.from_ansi(line)
        if cell_len(styled.plain) <= width:
            lines.append(line)
            continue
        indent = len(styled.plain) - len(styled.plain.lstrip())
        indent = indent if indent < width // 2 else 0
        console = Console(
            file=io.StringIO(),
            width=width - indent,
            # What has no styles shall have none.
            force_terminal=line != styled.plain,
            legacy_windows=False,
        )
        console.print(styled[indent:], overflow="fold")
        folded = t.cast(io.StringIO, console.file).getvalue()
        lines.extend(" " * indent + part.rstrip() for part in folded.splitlines())
    return lines


def unstyled(text: str) -> str:
    """Return what is to be read of a page."""
    return Text.from_ansi(text).plain
