"""Text for a terminal or a pipe: lines, and tables that fit.

Most of the text comes from other processes. It is printed without markup and without
anything that could control a terminal.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import typing as t
from collections.abc import Sequence

from ..snapshot._json import clean

if t.TYPE_CHECKING:
    from rich.text import Text

#: ASCII replacements for the few other characters that we write.
_ASCII = str.maketrans(
    {"→": "->", "×": "x", "·": "|", "∞": "inf", "…": "...", "░": "."}
    | dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True))
)


class Page:
    """The output of one command, laid out for standard output as it is now.

    On a terminal it has styles, and tables and sentences fit the width. In a pipe
    every line is printed in full.
    """

    def __init__(self) -> None:
        # Here and below, and not above: the dashboard prints nothing, so that workers
        # which serve it need not load rich.
        from rich.console import Console

        stream = sys.stdout
        encoding = (getattr(stream, "encoding", None) or "ascii").lower()
        self._unicode = encoding.replace("-", "").startswith("utf")
        # None: the caller has closed it, and wants only the exit code.
        terminal = stream is not None and stream.isatty()
        self.width = shutil.get_terminal_size().columns if terminal else None
        self._console = Console(
            file=io.StringIO(),
            width=100_000,  # this class breaks the lines, not the console
            force_terminal=terminal and not os.environ.get("NO_COLOR"),
            legacy_windows=False,
        )

    def __str__(self) -> str:
        return t.cast(io.StringIO, self._console.file).getvalue()

    def line(self, text: str = "", style: str = "") -> None:
        """Add one line, however long."""
        from rich.text import Text

        self._print(Text(self._plain(text), style))

    def title(self, text: str) -> None:
        """Add an empty line and a heading."""
        self.line()
        self.line(text, "bold")

    def parts(
        self, parts: Sequence[str], *, indent: int = 0, hang: int = 4, style: str = ""
    ) -> None:
        """Add a sentence that can be broken only between its parts."""
        from rich.cells import cell_len
        from rich.text import Text

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
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        styles: t.Mapping[str, str] | None = None,
        spare: Sequence[str] = (),
        below: str | None = None,
    ) -> None:
        """Add a table. No cell is ever cut.

        :param columns: The headings; ``>`` in front of one aligns its column right.
        :param styles: The style of each cell with exactly this text.
        :param spare: Columns that a narrow terminal leaves out, in this order.
        :param below: Column that a narrow terminal moves to a line of its own, which
            can be broken before an arrow. It is moved when its turn in `spare` comes,
            or before any column is left out.
        """
        from rich.cells import cell_len
        from rich.text import Text

        names = [column.lstrip(">") for column in columns]
        right = [column.startswith(">") for column in columns]
        plain = [[self._plain(cell) for cell in row] for row in (names, *rows)]
        widths = [max(map(cell_len, column)) for column in zip(*plain, strict=True)]
        shown, gap = self._choose(names, widths, spare, below)
        moved = None
        if below in names and names.index(below) not in shown:
            moved = names.index(below)
        for original, row in zip((None, *rows), plain, strict=True):
            cell_styles = ["bold"] * len(names)
            if original is not None:
                cell_styles = [(styles or {}).get(cell, "") for cell in original]
            cells = [Text.styled(row[i], cell_styles[i]) for i in shown]
            for i, cell in zip(shown, cells, strict=True):
                cell.align("right" if right[i] else "left", widths[i])
            self._print(Text(" " * gap).join(cells))
            if moved is not None and original is not None:
                before, arrow, after = original[moved].rpartition(" → ")
                parts = [before, f"→ {after}"] if arrow else [after]
                self.parts(parts, indent=widths[0] + gap, style=cell_styles[moved])

    def _choose(
        self,
        names: Sequence[str],
        widths: Sequence[int],
        spare: Sequence[str],
        below: str | None,
    ) -> tuple[list[int], int]:
        """Return the columns that fit, and the space between them."""
        order = [*([below] if below and below not in spare else []), *spare]
        shown, gap = list(range(len(names))), 2
        for most in range(len(order) + 1):
            shown = [i for i, name in enumerate(names) if name not in order[:most]]
            for gap in (2, 1):
                if self._fits(sum(widths[i] for i in shown) + gap * (len(shown) - 1)):
                    return shown, gap
        return shown, gap

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


def commas(parts: Sequence[str], mark: str = ",") -> list[str]:
    """Return the parts of a sentence with a comma after each but the last."""
    return [*(f"{part}{mark}" for part in parts[:-1]), *parts[-1:]]


def fold(text: str, width: int) -> list[Text]:
    """Return the lines of a page; lines wider than the screen are broken."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=width, legacy_windows=False)
    lines: list[Text] = []
    for line in map(Text.from_ansi, text.splitlines()):
        indent = len(line.plain) - len(line.plain.lstrip())
        if line.cell_len <= width or indent >= width // 2:
            indent = 0
        for part in line[indent:].wrap(console, width - indent, overflow="fold"):
            part.pad_left(indent)
            lines.append(part)
    return lines
