"""How durations, amounts and lists are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence

#: How many items of a list are written.
_FEW = 5

#: How the live view's names of async binds begin.
ASYNC = "async:"


def duration(value: float | None) -> str:
    """Write a duration, given in seconds: ``3 ms``, ``4.1 s``, ``41 s``, ``2 min``."""
    if value is None:
        return "-"
    if value < 0.0095:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 119.5:
        return f"{value:.0f} s"
    if value < 7170:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.0f} h"


def number(value: int | None) -> str:
    """Write a number, or a dash if it is unknown."""
    return "-" if value is None else str(value)


def count(amount: int, noun: str) -> str:
    """Write an amount with its noun: ``1 worker``, ``2 workers``."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def amounts(changes: Mapping[str, int]) -> str:
    """List amounts by name: ``2 Order, 1 User``."""
    return ", ".join(f"{amount} {name}" for name, amount in sorted(changes.items()))


def some(items: Sequence[str]) -> str:
    """List the first few items, and how many more there are."""
    shown = ", ".join(items[:_FEW])
    rest = len(items) - _FEW
    return f"{shown} and {rest} more" if rest > 0 else shown


_PLACES = {"checkout": "checked out at ", "view": "defined at "}

#: Explains "defined at".
UNRECORDED = (
    "After a view's first leak, a worker records where the view checks connections out;"
    " with SCOPEDSESSION_STACKS=True, always."
)


def place(at: str, at_is: str | None) -> str:
    """Write a holder's line, and what it is unless its thread is there now."""
    return _PLACES.get(at_is or "", "") + at


def percent(share: float) -> str:
    """Write a share of 1 in percent; a tiny share is not written as 0: ``2.1 %``."""
    value = 100.0 * share
    if 0 < value < 0.1:
        return "less than 0.1 %"
    return f"{value:.1f} %" if value < 10 else f"{value:.0f} %"


def number_of(value: float) -> str:
    """Write a number with about two significant digits: ``0.31``, ``12.4``."""
    if value < 0.095:
        return f"{value:.2g}"
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}"


#: What a statement may have values in: comments and strings, which may have no end, and
#: numbers. What is in double quotes can be a string in MySQL and SQLite, except where
#: only a name can be.
_VALUES = (
    r"(?is)--[^\n]*|/\*.*?(?:\*/|$)"
    r"|(?P<name>(?:\.|\b(?:from|join|into|update|table|as)\s+)\"[^\"]*\""
    r'|"[^"]*"(?=\s*\.)|`[^`]*`)'
    r"|(?P<value>'(?:[^']|'')*(?:'|$)|\"[^\"]*(?:\"|$)"
    r"|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|$)"
    r"|(?<![\w$:])(?:0x[0-9a-f]+|\d+(?:\.\d*)?(?:e[+-]?\d+)?)\b)"
)

#: Most characters of a statement that are shown.
_LONGEST_SQL = 300


def sql_shown(text: str) -> str:
    """Return a statement on one line, without any value that is written in it."""
    if "\\" in text:
        # It depends on the server whether that escapes a quote.
        text = re.split(r"""['"$]""", text, maxsplit=1)[0] + " ..."
    shown = " ".join(re.sub(_VALUES, _without_value, text).split())
    if len(shown) > _LONGEST_SQL:
        half = _LONGEST_SQL // 2
        shown = f"{shown[:half].rstrip()} ... {shown[-half:].lstrip()}"
    return shown


def _without_value(found: re.Match[str]) -> str:
    return found["name"] or (" " if found["value"] is None else "?")
