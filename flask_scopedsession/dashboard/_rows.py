"""Rows about pools, holders and waiters."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence

from .._format import duration
from .._format import UNRECORDED
from .._terminal import pools as pools_page
from .._terminal.pools import Entry
from .._terminal.sections import label
from .._terminal.sections import pids_of
from .._terminal.sections import place_of
from ..snapshot import Holder
from ..snapshot import WorkerSnapshot
from ._tables import Cell
from ._tables import Line
from ._tables import Recorder
from ._tables import Series
from ._tables import Table
from ._tables import table_of

#: Connections of a group of holders that are described one by one.
_MOST_MEMBERS = 20


def pool_rows(workers: Iterable[WorkerSnapshot]) -> list[list[str | Cell]]:
    """Return a row for each pool, with a cell for its chart."""
    rows = []
    for worker in workers:
        for pool in worker.pools:
            row: list[str | Cell] = [*pools_page.pool_row(worker, pool)]
            series = Series(
                f"{worker.id} {pool.bind}", pool.used, pool.pending or 0, pool.max
            )
            is_live = worker.source == "live"
            row.insert(4, Cell("", series=series) if is_live else "-")
            rows.append(row)
    return rows


def is_leaked(entry: Entry) -> bool:
    """Whether an entry is a connection that nobody will return."""
    return isinstance(entry[2], Holder) and entry[2].is_leaked


def entries(
    key: str, caption: str, columns: Sequence[str], found: list[Entry]
) -> Table | None:
    """Return a table of holders or waiters, grouped by view and line."""
    rows: list[list[str | Cell]] = []
    note = ""
    for members in pools_page.groups_of(found):
        _, pool, one = members[0]
        several = len(members) > 1
        longest = "longest " if several else ""
        states = " ".join(pools_page.parts_of(one, several=several)[1:])
        if getattr(one, "at_is", None) == "view":
            note = UNRECORDED
        rows.append(
            [
                Cell(f"{len(members)}× {label(one)}", more=_connections(members)),
                place_of(one) or "-",
                longest + duration(pools_page.seconds_of(one)),
                states or "waiting",
                pool.bind,
                pids_of(worker for worker, _, _ in members).removeprefix("pid "),
            ]
        )
    return table_of(key, caption, columns, rows, note=note)


def _connections(members: Sequence[Entry]) -> tuple[str, ...]:
    """Describe each connection of a group, as --verbose does."""
    said = []
    for worker, _, one in members[:_MOST_MEMBERS]:
        if isinstance(one, Holder):
            page = Recorder()
            pools_page.connection_numbers(page, one)
            texts = [line.text for line in page.found if isinstance(line, Line)]
            said.append(f"pid {worker.pid}: {'; '.join(texts)}")
    if said and len(members) > _MOST_MEMBERS:
        said.append(f"and {len(members) - _MOST_MEMBERS} more")
    return tuple(said)
