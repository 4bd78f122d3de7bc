"""Draw a terminal's output, with its colors, as an SVG that loads nothing."""

from __future__ import annotations

import io
import re

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

#: What Rich fills in. Its own format loads a font from another host.
FORMAT = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""

#: Rich draws the end of each line, too.
LINE_END = re.compile(r"<text [^>]*>\n</text>")


def _color(text: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(text)
    return red, green, blue


def _theme(back: str, front: str, *normal: str) -> TerminalTheme:
    return TerminalTheme(_color(back), _color(front), [_color(each) for each in normal])


#: The background, the foreground and the eight colors of a terminal, black to white.
THEMES = {
    "light": _theme(
        *("f6f8fa", "1f2328"),
        *("24292f", "cf222e", "116329", "7d4e00"),
        *("0550ae", "8250df", "1b7c83", "57606a"),
    ),
    "dark": _theme(
        *("161b22", "e6edf3"),
        *("484f58", "ff7b72", "3fb950", "d29922"),
        *("58a6ff", "bc8cff", "39c5cf", "b1bac4"),
    ),
}


def picture(ansi: str, theme: str) -> str:
    """Return the SVG of an output: one text element for each run of one style."""
    text = Text.from_ansi(ansi.rstrip())
    width = max(line.cell_len for line in text.split()) + 1  # a margin on the right
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(text)
    drawn = console.export_svg(
        title="", theme=THEMES[theme], code_format=FORMAT, unique_id="t"
    )
    return LINE_END.sub("", drawn)
