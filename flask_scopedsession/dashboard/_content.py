"""What the dashboard shows: the facts and words of the status commands, as tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from .._advice.recommend import advise
from .._advice.report import Aims
from .._format import count
from .._terminal import advice as advice_page
from .._terminal import pools as pools_page
from .._terminal import sessions as sessions_page
from .._terminal.load import last_minute
from .._terminal.load import view_rows
from .._terminal.load import VIEW_USE
from .._terminal.pools import Entry
from .._terminal.sections import by_bind
from .._terminal.sections import header
from .._terminal.sections import no_workers
from .._terminal.sections import nobody_answered
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
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot
from ._advised import Advised
from ._advised import advised
from ._drawings import draw
from ._drawings import Drawing
from ._rows import entries
from ._rows import is_leaked
from ._rows import pool_rows
from ._tables import Cell
from ._tables import Line
from ._tables import MOST_ROWS
from ._tables import name_of
from ._tables import Recorder
from ._tables import Series
from ._tables import Table
from ._tables import table_of

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


class Content:
    """What the page shows of a survey.

    :param survey: The answers of the workers.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        verdict = check(survey, _WARN, _CRIT)
        self.level, self.verdict = _VERDICTS[verdict.code]
        self.reasons = verdict.reasons[:MOST_ROWS]
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
        rows = pool_rows(workers)
        for pid, state, *rest in pools_page.silent_rows(self.survey):
            rows.append([pid, state, *rest[:2], "-", *rest[2:]])
        # The commands have the worst last, nearest to the prompt.
        rows.sort(key=lambda row: -pools_page.STATES.index(str(row[1])))
        return self._pool_table("pools", "Pools of each worker", rows)

    @cached_property
    def healthy(self) -> Table | None:
        """The pools of healthy workers, if there are too many of them."""
        healthy = self._collapsed
        rows = pool_rows([w for w in self.survey.workers if w.id in healthy])
        return self._pool_table("healthy", f"{count(len(healthy), 'worker')} ok", rows)

    @cached_property
    def _collapsed(self) -> set[str]:
        return pools_page.collapsed(self.survey)

    def _pool_table(
        self, key: str, caption: str, rows: Sequence[Sequence[str | Cell]]
    ) -> Table | None:
        columns = [*pools_page.COLUMNS[:4], "LAST 2 MIN", *pools_page.COLUMNS[4:]]
        return table_of(key, caption, columns, rows, pools_page.STYLES)

    # -- holders and waiters ---------------------------------------------------

    @cached_property
    def leaks(self) -> Table | None:
        """Connections whose request is over, or whose thread has ended."""
        found = [each for each in self._holders(is_gone=False) if is_leaked(each)]
        caption = "Leaked: the request is over, or the thread has ended"
        return entries("leaks", caption, _HOLDERS, found)

    @cached_property
    def holders(self) -> Table | None:
        """All others that are checked out."""
        found = [each for each in self._holders(is_gone=False) if not is_leaked(each)]
        caption = pools_page.TITLES[False][0]
        return entries("holders", caption, _HOLDERS, found)

    @cached_property
    def waiters(self) -> Table | None:
        """Threads that wait for a connection."""
        caption = pools_page.TITLES[False][1]
        return entries("waiters", caption, _WAITERS, self._waiters(is_gone=False))

    @cached_property
    def gone(self) -> list[Table]:
        """What workers that are gone held, and what waited in them."""
        held, waiting = pools_page.TITLES[True]
        found = (
            entries("gone", held, _HOLDERS, self._holders(is_gone=True)),
            entries("gone-waiters", waiting, _WAITERS, self._waiters(is_gone=True)),
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
        caption = "Views, by their share of the hold time in the last minute"
        return table_of("views", caption, VIEW_USE, view_rows(self.survey))

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
        found.sort(key=lambda each: sessions_page.rank(each[1]))
        rows = [sessions_page.session_row(w, s, True) for w, s in reversed(found)]
        columns, styles = sessions_page.COLUMNS, sessions_page.STYLES
        return table_of(key, caption, columns, rows, styles)

    @cached_property
    def sessions_said(self) -> list[Line | Table]:
        """Sessions that outlive requests, or were used by two threads."""
        page = Recorder()
        sessions_page.open_sessions(page, self.survey)
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
        return table_of("lost", caption, _LOST, rows)

    # -- advice ----------------------------------------------------------------

    @cached_property
    def advice(self) -> tuple[list[Advised], list[Line | Table]]:
        """What ``pool-advise`` says of each bind, and of each server."""
        report = advise(self.survey, Aims())
        page = Recorder()
        for total in report.servers:
            advice_page.server_total(page, total, report.silent)
        return [advised(advice) for advice in report.advice], page.found

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


def _merged(found: Iterable[Histogram | None]) -> Histogram | None:
    known = [each for each in found if each is not None]
    return Histogram.merged(known) if known else None


def _terms(help_text: str, block: int) -> list[tuple[str, str]]:
    """Return the columns that a block of a command's help explains."""
    text = help_text.split("\b\n")[block].split("\n\n", maxsplit=1)[0]
    found = re.findall(r"^(\S+) +(.*(?:\n +.*)*)", text, re.MULTILINE)
    return [(name_of(name), " ".join(meaning.split())) for name, meaning in found]
