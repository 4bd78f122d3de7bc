"""What ``pool-status`` prints."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from dataclasses import dataclass

from ..snapshot import Holder
from ..snapshot import PoolSnapshot
from ..snapshot import Survey
from ..snapshot import Waiter
from ..snapshot import WorkerSnapshot
from .charts import Charts
from .charts import History
from .charts import style_of
from .load import died
from .load import measures
from .load import strained
from .page import Column
from .page import count
from .page import duration
from .page import number
from .page import Page
from .page import some
from .sections import absent
from .sections import doer
from .sections import header
from .sections import nobody
from .sections import pids_of

#: Healthy workers are one line beyond so many.
_COLLAPSE_BEYOND = 10

#: Groups of holders and waiters that are shown without ``--verbose``.
_GROUPS = 10

#: From what needs no eye to what needs it most, which stands nearest the prompt.
_STATES = ("ok", "gone", "saturated", "stopped", "unresponsive", "wedged")
_STYLES = {
    "ok": "green",
    "saturated": "yellow",
    "wedged": "bold red",
    "stopped": "red",
    "unresponsive": "red",
    "gone": "dim",
}
_COLUMNS = (
    *(Column("PID", True), Column("STATE"), Column("BIND"), Column("POOL")),
    *(Column("USED/MAX", True), Column("IDLE", True), Column("WAITING", True)),
    *(Column("MAXWAIT", True), Column("HOLD95", True), Column("TIMEOUTS", True)),
)

One = t.TypeVar("One", bound="Holder | Waiter")


@dataclass(frozen=True)
class _Found(t.Generic[One]):
    """A holder or waiter, and where it was found."""

    worker: WorkerSnapshot
    pool: PoolSnapshot
    one: One


def render_pools(
    survey: Survey, *, verbose: bool = False, history: History | None = None
) -> str:
    """Return what ``pool-status`` prints; with a history, charts in place of POOL."""
    page = Page()
    charts = history.charts(page.width) if history is not None else None
    header(page, survey)
    if not survey.workers and not survey.silent:
        nobody(page, survey)
        return str(page)
    if charts:
        # Where a screen is too small, its end is shown.
        _totals(page, survey, charts)
        page.line()
    healthy = [w for w in survey.workers if w.state == "ok" and not _in_trouble(w)]
    shown = survey.workers
    if len(healthy) > _COLLAPSE_BEYOND and not verbose:
        page.line(f"{count(len(healthy), 'worker')} ok", "green")
        fine = {worker.id for worker in healthy}
        shown = tuple(w for w in survey.workers if w.id not in fine)
    _table(page, _rows(shown, survey, charts), charts)
    if not charts:
        _totals(page, survey)
    if verbose:
        measures(page, survey)
    strained(page, survey)
    _holders(page, survey, verbose)
    _waiters(page, survey, verbose)
    _troubles(page, survey)
    return str(page)


def _in_trouble(worker: WorkerSnapshot) -> bool:
    return any(
        p.pending or p.held_long or p.timeouts_60s or p.invalidated_60s
        for p in worker.pools
    )


def _table(page: Page, rows: list[list[str]], charts: Charts | None) -> None:
    if not rows:
        return
    chart = charts.title if charts else None
    columns = [Column(chart) if chart and c.name == "POOL" else c for c in _COLUMNS]
    styles = {**{row[3]: style_of(row[3]) for row in rows if chart}, **_STYLES}
    spare = ["POOL", "HOLD95", "TIMEOUTS", "IDLE", chart or "", "MAXWAIT", "WAITING"]
    page.table(columns, rows, styles=styles, spare=spare, below=chart)


def _rows(
    workers: Iterable[WorkerSnapshot], survey: Survey, charts: Charts | None
) -> list[list[str]]:
    rows = [_row(worker, pool, charts) for worker in workers for pool in worker.pools]
    told = {worker.id for worker in survey.workers}
    for silent in survey.silent:
        if silent.id not in told:
            state = "stopped" if silent.reason == "stopped" else "unresponsive"
            rows.append([str(silent.pid), state, *"--------"])
    rows.sort(key=lambda row: _STATES.index(row[1]))
    return rows


def _row(
    worker: WorkerSnapshot, pool: PoolSnapshot, charts: Charts | None
) -> list[str]:
    most = "∞" if pool.unlimited else number(pool.max)
    return [
        str(worker.pid),
        _state(worker, pool),
        pool.bind,
        charts.pool(worker, pool) if charts else pool.pool_class,
        f"{pool.used}/{most}",
        number(pool.idle),
        number(pool.pending),
        duration(pool.max_wait_s) if pool.pending else "-",
        duration(pool.hold_s.p95),
        number(pool.timeouts_total),
    ]


def _state(worker: WorkerSnapshot, pool: PoolSnapshot) -> str:
    """Return the state of one pool; a worker's own is that of its worst."""
    if worker.source == "last":
        return worker.state
    if pool.wedged:
        return "wedged"
    return "saturated" if _full(pool) else "ok"


def _full(pool: PoolSnapshot) -> bool:
    return pool.max is not None and pool.used >= pool.max


def _totals(page: Page, survey: Survey, charts: Charts | None = None) -> None:
    """Add one line for each database, with the worst case."""
    if survey.totals and not charts:
        page.line()
    unlimited = {p.url for w in survey.live for p in w.pools if p.unlimited}
    for total in survey.totals:
        now = [f"{total.used} used"]
        if total.idle is not None:
            now.append(f"{total.idle} idle")
        if total.pending:
            now.append(f"{total.pending} waiting")
        most = count(total.workers, "worker")
        if total.max is not None:
            most += f" may open at most {total.max}"
        elif total.url in unlimited:
            most += " may open any number"
        page.parts([str(total.url), "· " + ", ".join(now), "· " + most])
        if charts:
            chart = charts.total(total)
            page.line(f"  {chart}", style_of(chart))


# -- holders and waiters -------------------------------------------------------


def _holders(page: Page, survey: Survey, verbose: bool) -> None:
    """Add who holds connections, where that matters or all is wanted."""
    found = [
        _Found(worker, pool, holder)
        for worker in survey.workers
        for pool in worker.pools
        if verbose or _crowded(worker, pool)
        for holder in pool.holders
    ]
    found.sort(key=lambda each: -each.one.held_s)
    _groups(
        page,
        "Held connections, longest first",
        found,
        lambda each: (doer(each.one), each.one.at, _doing(each.one)),
        _holder_parts,
        verbose,
    )


def _crowded(worker: WorkerSnapshot, pool: PoolSnapshot) -> bool:
    return bool(
        pool.pending or pool.held_long or _full(pool) or worker.source == "last"
    )


def _holder_parts(members: list[_Found[Holder]]) -> list[str]:
    holder = members[0].one
    held = duration(holder.held_s)
    parts = [f"longest {held}," if len(members) > 1 else f"held {held},"]
    since = holder.running_s or holder.idle_in_transaction_s
    state, *more = _doing(holder).split(", ", 1)
    parts.append(f"{state} for {duration(since)}" if since else state)
    return parts if not more else [*parts[:-1], f"{parts[-1]},", *more]


def _doing(holder: Holder) -> str:
    if holder.running_s is not None:
        state = "running a statement"
    elif holder.in_transaction is None:
        state = "transaction unknown"
    elif not holder.in_transaction:
        state = "not in transaction"
    elif holder.idle_in_transaction_s is not None:
        state = "idle in transaction"
    else:
        state = "in transaction"
    if holder.request_over:
        state += ", its request is over"
    if holder.thread_alive is False:
        return f"{state}, its thread is dead"
    return f"{state}, its thread is alive" if holder.request_over else state


def _waiters(page: Page, survey: Survey, verbose: bool) -> None:
    """Add who waits; that always matters."""
    found = [
        _Found(worker, pool, waiter)
        for worker in survey.workers
        for pool in worker.pools
        for waiter in pool.waiters
    ]
    found.sort(key=lambda each: -each.one.waited_s)
    _groups(
        page,
        "Waiting for a connection, longest first",
        found,
        lambda each: (
            doer(each.one),
            each.one.at,
            each.one.self_deadlock,
            each.one.holds_from,
        ),
        _waiter_parts,
        verbose,
    )


def _waiter_parts(members: list[_Found[Waiter]]) -> list[str]:
    waiter = members[0].one
    waited = duration(waiter.waited_s)
    parts = [f"longest {waited}" if len(members) > 1 else f"for {waited}"]
    if waiter.self_deadlock:
        parts[-1] += ","
        own = f" from {waiter.holds_from}" if waiter.holds_from else ""
        parts.append(f"while its own thread holds one{own}: a self-deadlock")
    return parts


def _groups(
    page: Page,
    title: str,
    found: list[_Found[One]],
    kind: Callable[[_Found[One]], Hashable],
    describe: Callable[[list[_Found[One]]], list[str]],
    verbose: bool,
) -> None:
    """Add those of one view and line as one entry; all of them when `verbose`."""
    if not found:
        return
    groups: dict[Hashable, list[_Found[One]]] = {}
    # Who is gone holds nothing any more: last, and counted apart.
    found.sort(key=_is_gone)
    for index, each in enumerate(found):
        gone = _is_gone(each)
        key = (index,) if verbose else (each.pool.bind, gone, kind(each))
        groups.setdefault(key, []).append(each)
    page.line()
    page.line(title, "bold")
    shown = list(groups.values())[: None if verbose else _GROUPS]
    for members in shown:
        first = members[0]
        at = [f"{first.one.at},"] if first.one.at else []
        who = f"{len(members)}× {doer(first.one)}" + ("" if at else ",")
        pids = some(pids_of(each.worker for each in members))
        whereabouts = [f"· bind {first.pool.bind}", f"· pid {pids}"]
        page.parts([who, *at, *describe(members), *whereabouts], indent=2)
        if verbose and isinstance(first.one, Holder):
            _details(page, first.one)
    if len(groups) > len(shown):
        page.line(f"  and {len(groups) - len(shown)} more: --verbose")


def _is_gone(found: _Found[t.Any]) -> bool:
    return found.worker.state == "gone"


def _details(page: Page, holder: Holder) -> None:
    known = (
        ("connection", holder.connection),
        ("backend pid", holder.backend_pid),
        ("session", holder.session),
        ("thread", holder.thread),
    )
    parts = [f"{name} {value}" for name, value in known if value is not None]
    page.parts([f"{part}," for part in parts[:-1]] + parts[-1:], indent=6)
    if holder.stack:
        page.parts(["checked out at", *holder.stack], indent=6)
    if holder.sql:
        page.line("      last statement: " + " ".join(holder.sql.split()))


# -- nearest the prompt --------------------------------------------------------


def _troubles(page: Page, survey: Survey) -> None:
    timeouts: dict[str, list[tuple[WorkerSnapshot, int]]] = {}
    for worker in survey.live:
        for pool in worker.pools:
            if pool.timeouts_60s:
                found = timeouts.setdefault(pool.bind, [])
                found.append((worker, pool.timeouts_60s))
    cut = [worker for worker in survey.workers if worker.truncated]
    deaths = any(p.invalidated_60s for w in survey.live for p in w.pools)
    absent_some = survey.silent or len(survey.live) < len(survey.workers)
    if timeouts or cut or deaths or absent_some:
        page.line()
    for bind, found in timeouts.items():
        total = count(sum(amount for _, amount in found), "checkout")
        pids = some(pids_of(worker for worker, _ in found))
        page.parts(
            [
                f"{total} timed out in the last minute",
                f"· bind {bind}",
                f"· pid {pids}",
            ],
            style="red",
        )
    died(page, survey)
    if cut:
        page.line(f"Not all is shown: pid {some(pids_of(cut))} had too much to tell.")
    absent(page, survey)
