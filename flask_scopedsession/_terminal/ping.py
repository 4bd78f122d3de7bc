"""What ``db-ping`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from .._databases.ping import PingResult
from .._format import duration
from .page import Page


def render_pings(results: Sequence[PingResult]) -> str:
    """Return a table with a row for each bind, and the errors below it."""
    page = Page()
    page.table(
        ("BIND", ">LATENCY", "VERSION", "DATABASE"),
        [
            [each.bind, duration(each.latency_s), each.version or "-", str(each.url)]
            for each in results
        ],
        below="DATABASE",
    )
    for each in results:
        if each.error is not None:
            page.parts(each.error.split(), style="red")
    return str(page)
