"""What the dashboard shows: the facts and words of the status commands, as tables."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from .._advice.recommend import advise
from .._advice.report import Advice
from .._advice.report import Aims
from .._format import count
from .._format import duration
from .._format import UNRECORDED
from .._terminal import advice as advice_page
from .._terminal import pools as pools_page
from .._terminal import sessions as sessions_page
from .._terminal.load import last_minute
from .._terminal.load import merged_views
from .._terminal.load import view_row
from .._terminal.load import VIEW_USE
from .._terminal.page import Page
from .._terminal.pools import Entry
from .._terminal.sections import by_bind
from .._terminal.sections import header
from .._terminal.sections import label
from .._terminal.sections import no_workers
from .._terminal.sections import nobody_answered
from .._terminal.sections import pids_of
from .._terminal.sections import place_of
from ..cli.check import check
from ..cli.check import CRIT_DEFAULT
from ..cli.check import EXIT_CRITICAL
from ..cli.check import EXIT_NO_PERMISSION
from ..cli.check import EXIT_OK
from ..cli.check import EXIT_PARTIAL
from ..cli.check import EXIT_UNAVAILABLE
from ..cli.check import EXIT_WARNING
from ..cli.check import parse_thresholds
from ..cli.check import WARN_DEFAULT
from ..cli.options import POOL_HELP
from ..cli.options import SESSION_HELP
from ..snapshot import Histogram
from ..snapshot import Holder
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot
from ._drawings import draw
from ._drawings import Drawing

#: Rows of a table. The commands have no limit, but a page that is sent every two
#: seconds needs one.
_MOST_ROWS = 100

#: Connections of a group of holders that are described one by one.
_MOST_MEMBERS = 20

_VERDICTS = {
    EXIT_OK: ("ok", "All is well"),
    EXIT_WARNING: ("warning", "Warning"),
    EXIT_CRITICAL: ("critical", "Critical"),
    EXIT_PARTIAL: ("warning", "Not all workers have answered"),
    EXIT_UNAVAILABLE: ("warning", "No worker has answered"),
    EXIT_NO_PERMISSION: ("critical", "No permission"),
}
_WARN, _CRIT = parse_thresholds(WARN_DEFAULT), parse_thresholds(CRIT_DEFAULT)

_HOLDERS = ("VIEW", "LINE", ">HELD", "STATE", "BIND", "PID")
_WAITERS = ("VIEW", "LINE", ">WAITING", "STATE", "BIND", "PID")
_LOST = ("VIEW", "LOST", "WHEN", "PID")


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
        self.found.append(_table("printed", caption, columns, rows))


@dataclass(frozen=True)
class Use:
    """A database: the pools of all live workers for it."""

    url: str
    said: tuple[str, ...]
    series: Series


@dataclass(frozen=True)
class Distributions:
    """How long checkouts of one bind waited and held, over all live workers."""

    bind: str
    drawings: tuple[tuple[str, Drawing, Drawing], ...]
    """What was measured; in the last minute, and since the start."""


@dataclass(frozen=True)
class Advised:
    """The advice on the pools of one bind."""

    title: str
    said: tuple[str, ...]
    settings: Table | None
    to_paste: tuple[str, ...]
    variables: tuple[str, ...]
    warnings: tuple[str, ...]


class Content:
    """What the page shows of a survey.

    :param survey: The answers of the workers.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        verdict = check(survey, _WARN, _CRIT)
        self.level, self.verdict = _VERDICTS[verdict.code]
        self.reasons = verdict.reasons[:_MOST_ROWS]
        self.facts = _facts(survey)
        if self.level == "ok" and self.facts:
            self.level, self.verdict = "warning", "Needs attention"

    @cached_property
    def at(self) -> float:
        """When the workers were asked, as :func:`time.time` has it."""
        moment = datetime.fromisoformat(self.survey.collected_at.replace("Z", "+00:00"))
        return moment.timestamp()

    @cached_property
    def header(self) -> list[Line | Table]:
        """What was asked, where and when."""
        page = Recorder()
        header(page, self.survey)
        return page.found

    @cached_property
    def nobody(self) -> list[Line | Table]:
        """Why no worker has answered, if so."""
        page = Recorder()
        if nobody_answered(self.survey):
            no_workers(page, self.survey)
        return page.found

    @cached_property
    def notes(self) -> list[Line | Table]:
        """What happened in the last minute, and which workers are absent."""
        page = Recorder()
        last_minute(page, self.survey, advice=False)
        pools_page.problems(page, self.survey)
        return page.found

    # -- pools -----------------------------------------------------------------

    @cached_property
    def uses(self) -> list[Use]:
        """Each database, over all live workers."""
        return [
            Use(
                str(total.url),
                tuple(pools_page.parts_of_total(total, self.survey)),
                Series(str(total.url), total.used, total.pending or 0, total.max),
            )
            for total in self.survey.totals
        ]

    @cached_property
    def pools(self) -> Table | None:
        """One row for each worker and bind, the worst first; healthy ones if few."""
        healthy = self._collapsed
        workers = [w for w in self.survey.workers if w.id not in healthy]
        rows = _pool_rows(workers)
        for pid, state, *rest in pools_page.silent_rows(self.survey):
            rows.append([pid, state, *rest[:2], "-", *rest[2:]])
        # The commands have the worst last, nearest to the prompt.
        rows.sort(key=lambda row: -pools_page.STATES.index(str(row[1])))
        return self._pool_table("pools", "Pools of each worker", rows)

    @cached_property
    def healthy(self) -> Table | None:
        """The pools of healthy workers, if there are too many of them."""
        healthy = self._collapsed
        rows = _pool_rows([w for w in self.survey.workers if w.id in healthy])
        return self._pool_table("healthy", f"{count(len(healthy), 'worker')} ok", rows)

    @cached_property
    def _collapsed(self) -> set[str]:
        found = {
            worker.id
            for worker in self.survey.workers
            if worker.state == "ok" and not pools_page.is_in_trouble(worker)
        }
        return found if len(found) > pools_page.COLLAPSE_BEYOND else set()

    def _pool_table(
        self, key: str, caption: str, rows: Sequence[Sequence[str | Cell]]
    ) -> Table | None:
        columns = [*pools_page.COLUMNS[:4], "LAST 2 MIN", *pools_page.COLUMNS[4:]]
        return _table(key, caption, columns, rows, pools_page.STYLES) if rows else None

    # -- holders and waiters ---------------------------------------------------

    @cached_property
    def leaks(self) -> Table | None:
        """Connections whose request is over, or whose thread has ended."""
        found = [each for each in self._holders(is_gone=False) if _is_leaked(each)]
        caption = "Leaked: the request is over, or the thread has ended"
        return _entries("leaks", caption, _HOLDERS, found)

    @cached_property
    def holders(self) -> Table | None:
        """All others that are checked out."""
        found = [each for each in self._holders(is_gone=False) if not _is_leaked(each)]
        caption = pools_page.TITLES[False][0]
        return _entries("holders", caption, _HOLDERS, found)

    @cached_property
    def waiters(self) -> Table | None:
        """Threads that wait for a connection."""
        caption = pools_page.TITLES[False][1]
        return _entries("waiters", caption, _WAITERS, self._waiters(is_gone=False))

    @cached_property
    def gone(self) -> list[Table]:
        """What workers that are gone held, and what waited in them."""
        held, waiting = pools_page.TITLES[True]
        found = (
            _entries("gone", held, _HOLDERS, self._holders(is_gone=True)),
            _entries("gone-waiters", waiting, _WAITERS, self._waiters(is_gone=True)),
        )
        return [table for table in found if table is not None]

    def _holders(self, *, is_gone: bool) -> list[Entry]:
        return [
            (worker, pool, holder)
            for worker in self._workers(is_gone=is_gone)
            for pool in worker.pools
            for holder in pool.holders
        ]

    def _waiters(self, *, is_gone: bool) -> list[Entry]:
        return [
            (worker, pool, waiter)
            for worker in self._workers(is_gone=is_gone)
            for pool in worker.pools
            for waiter in pool.waiters
        ]

    def _workers(self, *, is_gone: bool) -> list[WorkerSnapshot]:
        return [w for w in self.survey.workers if (w.state == "gone") is is_gone]

    # -- measurements ----------------------------------------------------------

    @cached_property
    def distributions(self) -> list[Distributions]:
        """Waits, holds and connects of each bind."""
        found = []
        for bind, each in by_bind(self.survey).items():
            pools = [pool for _, pool in each]
            measures = (
                ("Wait for a connection", [(p.wait_60s, p.wait_s) for p in pools]),
                ("Hold a connection", [(p.hold_60s, p.hold_s) for p in pools]),
                (
                    "Connect to the database",
                    [(p.create_60s, p.create_s) for p in pools],
                ),
            )
            found.append(
                Distributions(
                    bind,
                    tuple(
                        (
                            name,
                            draw("Last minute", _merged(minute for minute, _ in pairs)),
                            draw("Since the start", _merged(ever for _, ever in pairs)),
                        )
                        for name, pairs in measures
                    ),
                )
            )
        return found

    @cached_property
    def views(self) -> Table | None:
        """The views that used the pools most."""
        rows = [
            view_row(view, bind)
            for bind, pools in by_bind(self.survey).items()
            for view in merged_views(pool for _, pool in pools)
        ]
        caption = "Views, by their share of the hold time in the last minute"
        return _table("views", caption, VIEW_USE, rows) if rows else None

    # -- sessions --------------------------------------------------------------

    @cached_property
    def sessions(self) -> Table | None:
        """Open sessions, the worst first."""
        return self._session_table("sessions", "Open sessions", is_gone=False)

    @cached_property
    def ended_sessions(self) -> Table | None:
        """Sessions that were open in workers that are gone."""
        return self._session_table("ended", sessions_page.GONE, is_gone=True)

    def _session_table(self, key: str, caption: str, *, is_gone: bool) -> Table | None:
        found = [(w, s) for w in self._workers(is_gone=is_gone) for s in w.sessions]
        found.sort(key=lambda each: (sessions_page.rank(each[1]), each[1].age_s))
        rows = [sessions_page.session_row(w, s, True) for w, s in reversed(found)]
        columns, styles = sessions_page.COLUMNS, sessions_page.STYLES
        return _table(key, caption, columns, rows, styles) if rows else None

    @cached_property
    def sessions_said(self) -> list[Line | Table]:
        """Sessions that outlive requests, or were used by two threads."""
        page = Recorder()
        live = sum(len(worker.sessions) for worker in self.survey.live)
        workers = count(len(self.survey.live), "worker")
        page.line(f"{count(live, 'session')} open in {workers}")
        found = [(w, s) for w in self._workers(is_gone=False) for s in w.sessions]
        sessions_page.lasting_contexts(page, found)
        sessions_page.shared_sessions(page, self.survey)
        return page.found

    @cached_property
    def lost(self) -> Table | None:
        """Views whose changes were never committed."""
        rows = [
            (view, amounts, last, pids.removeprefix("pid "))
            for view, amounts, last, pids in sessions_page.lost_work(self.survey)
        ]
        caption = sessions_page.LOST_WORK
        return _table("lost", caption, _LOST, rows) if rows else None

    # -- advice ----------------------------------------------------------------

    @cached_property
    def advice(self) -> tuple[list[Advised], list[Line | Table]]:
        """What ``pool-advise`` says of each bind, and of each server."""
        report = advise(self.survey, Aims())
        page = Recorder()
        for total in report.servers:
            advice_page.server_total(page, total, report.silent)
        return [_advised(advice) for advice in report.advice], page.found

    # -- explanations ----------------------------------------------------------

    @cached_property
    def pool_terms(self) -> list[tuple[str, str]]:
        """What the columns of the pools mean."""
        return _terms(POOL_HELP, 1)

    @cached_property
    def view_terms(self) -> list[tuple[str, str]]:
        """What the columns of the views mean."""
        return [term for term in _terms(POOL_HELP, 2) if term[0] == "Share60"]

    @cached_property
    def session_terms(self) -> list[tuple[str, str]]:
        """What the columns of the sessions mean."""
        return _terms(SESSION_HELP, 1)


def _facts(survey: Survey) -> list[tuple[str, str]]:
    """Say what is wrong now: without numbers, and with them."""
    pools = [pool for worker in survey.live for pool in worker.pools]
    waiting = sum(pool.pending or 0 for pool in pools)
    leaked = sum(holder.is_leaked for pool in pools for holder in pool.holders)
    wedged = sum(pool.wedged for pool in pools)
    late = sum(pool.timeouts_60s or 0 for pool in pools)
    lost = sum(pool.invalidated_60s for pool in pools)
    gone = sum(worker.state == "gone" for worker in survey.workers)
    found = (
        (waiting, "threads wait", f"{count(waiting, 'thread')} waiting"),
        (leaked, "connections leaked", f"{count(leaked, 'connection')} leaked"),
        (wedged, "a pool is wedged", f"{count(wedged, 'pool')} wedged"),
        (
            *(late, "checkouts timed out"),
            f"{count(late, 'checkout')} timed out in the last minute",
        ),
        (
            *(lost, "connections were invalidated"),
            f"{count(lost, 'connection')} invalidated in the last minute",
        ),
        (gone, "a worker is gone", f"{count(gone, 'worker')} gone (killed)"),
        (
            *(len(survey.silent), "a worker did not answer"),
            f"{count(len(survey.silent), 'worker')} did not answer",
        ),
    )
    return [(kind, fact) for amount, kind, fact in found if amount]


def _pool_rows(workers: Iterable[WorkerSnapshot]) -> list[list[str | Cell]]:
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


def _is_leaked(entry: Entry) -> bool:
    return isinstance(entry[2], Holder) and entry[2].is_leaked


def _entries(
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
    return _table(key, caption, columns, rows, note=note) if rows else None


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


def _merged(found: Iterable[Histogram | None]) -> Histogram | None:
    known = [each for each in found if each is not None]
    return Histogram.merged(known) if known else None


def _advised(advice: Advice) -> Advised:
    found = advice.recommended
    settings: Table | None = None
    to_paste: list[str] = []
    variables: list[str] = []
    if found is not None:
        to_paste = advice_page.lines_to_paste(advice.bind, found)
        variables = advice_page.variables_to_paste(advice.bind, found)
        values = advice_page.values_of(found).items()
        rows = [
            (name, str(value), reason)
            for (name, value), reason in zip(values, found.reasons, strict=True)
        ]
        columns = ("SETTING", ">VALUE", "WHY")
        settings = _table(f"advice-{advice.bind}", "Recommended", columns, rows)
    return Advised(
        title=" ".join(advice_page.title_of(advice)),
        said=tuple(advice_page.basis_of(advice)),
        settings=settings,
        to_paste=tuple(to_paste),
        variables=tuple(variables),
        warnings=tuple(f"Warning: {warning.text}" for warning in advice.warnings),
    )


def _table(
    key: str,
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    styles: t.Mapping[str, str] | None = None,
    note: str = "",
) -> Table:
    if len(rows) > _MOST_ROWS:
        note = f"{len(rows) - _MOST_ROWS} more rows are not shown. {note}".strip()
    return Table(
        key,
        caption,
        tuple(Column(_name(each), each.startswith(">")) for each in columns),
        tuple(_row(row, styles or {}) for row in rows[:_MOST_ROWS]),
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


def _name(column: str) -> str:
    """Return the name of a column of the commands, which write it in capitals."""
    name = column.lstrip(">")
    return name if name == "PID" else name.capitalize()


def _terms(help_text: str, block: int) -> list[tuple[str, str]]:
    """Return the columns that a block of a command's help explains."""
    text = help_text.split("\b\n")[block].split("\n\n", maxsplit=1)[0]
    found = re.findall(r"^(\S+) +(.*(?:\n +.*)*)", text, re.MULTILINE)
    return [(_name(name), " ".join(meaning.split())) for name, meaning in found]
