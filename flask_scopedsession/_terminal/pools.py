"""What ``pool-status`` prints."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Sequence

from .._format import count
from .._format import duration
from .._format import number
from .._format import UNRECORDED
from .._pools.explanations import states_of
from ..snapshot import DatabaseTotal
from ..snapshot import Histogram
from ..snapshot import Holder
from ..snapshot import PoolSnapshot
from ..snapshot import Survey
from ..snapshot import Waiter
from ..snapshot import WorkerSnapshot
from .charts import Charts
from .charts import History
from .charts import style_of
from .load import last_minute
from .load import measurements
from .page import commas
from .page import Page
from .sections import absent_workers
from .sections import by_bind
from .sections import label
from .sections import not_shown
from .sections import pids_of
from .sections import place_of
from .sections import start

#: More healthy workers than this are counted in one line.
_MOST_HEALTHY = 10

#: Groups of holders and of waiters that are shown without ``--verbose``.
_GROUPS = 10

#: The worst is last, nearest to the prompt.
STATES = ("ok", "gone", "saturated", "stopped", "unresponsive", "wedged")
STYLES = {
    "ok": "green",
    "saturated": "yellow",
    "wedged": "bold red",
    "stopped": "red",
    "unresponsive": "red",
    "gone": "dim",
}
COLUMNS = (
    *(">PID", "STATE", "BIND", "POOL", ">USED/MAX", ">IDLE", ">WAITING"),
    *(">MAXWAIT", ">HOLD95", ">TIMEOUTS"),
)

#: The headings of holders and waiters: of workers that are gone, and of the others.
TITLES = {
    True: (
        "Last held by workers that are gone; these connections are closed",
        "Last waiting in workers that are gone",
    ),
    False: (
        "Held connections, longest first",
        "Waiting for a connection, longest first",
    ),
}

#: A holder or waiter, with its worker and pool.
Entry = tuple[WorkerSnapshot, PoolSnapshot, "Holder | Waiter"]


def render_pools(
    survey: Survey,
    *,
    verbose: bool = False,
    history: History | None = None,
    advice: bool = True,
) -> str:
    """Return what ``pool-status`` prints.

    :param history: Shows charts in place of the column POOL, and the totals on top.
    :param advice: Add the recommended size of pools with waiters.
    """
    page, found = start(survey)
    if not found:
        return str(page)
    charts = history.charts(page.width) if history is not None else None
    if charts:
        # On a screen that is too small, the end of the page is shown.
        totals(page, survey, charts)
        page.line()
    healthy = set() if verbose else collapsed(survey)
    if healthy:
        page.line(f"{count(len(healthy), 'worker')} ok", "green")
    workers = [w for w in survey.workers if w.id not in healthy]
    _table(page, _rows(workers, survey, charts), charts)
    if survey.totals and not charts:
        page.line()
        totals(page, survey)
    if verbose:
        measurements(page, survey)
    last_minute(page, survey, advice=advice)
    for is_gone, titles in TITLES.items():
        pools = [
            (worker, pool)
            for worker in survey.workers
            if (worker.state == "gone") is is_gone
            for pool in worker.pools
        ]
        _holders_and_waiters(page, pools, titles, verbose)
    problems(page, survey)
    return str(page)


def collapsed(survey: Survey) -> set[str]:
    """Return the ids of the healthy workers, if there are too many for a row each."""
    found = {w.id for w in survey.workers if w.state == "ok" and not _in_trouble(w)}
    return found if len(found) > _MOST_HEALTHY else set()


def _in_trouble(worker: WorkerSnapshot) -> bool:
    """Whether a worker that is ok needs a row of its own among many."""
    return any(
        p.pending
        or p.held_long
        or p.timeouts_60s
        or p.invalidated_60s
        or any(h.is_leaked for h in p.holders)
        for p in worker.pools
    )


# -- the table and the totals --------------------------------------------------


def _table(page: Page, rows: list[list[str]], charts: Charts | None) -> None:
    if not rows:
        return
    chart = charts.title if charts else "POOL"
    columns = [chart if column == "POOL" else column for column in COLUMNS]
    styles = {**{row[3]: style_of(row[3]) for row in rows if charts}, **STYLES}
    spare = ["POOL", "HOLD95", "TIMEOUTS", "IDLE", chart, "MAXWAIT", "WAITING"]
    below = chart if charts else None
    page.table(columns, rows, styles=styles, spare=spare, below=below)


def _rows(
    workers: Iterable[WorkerSnapshot], survey: Survey, charts: Charts | None
) -> list[list[str]]:
    rows = [
        *(
            pool_row(worker, pool, charts)
            for worker in workers
            for pool in worker.pools
        ),
        *silent_rows(survey),
    ]
    rows.sort(key=lambda row: STATES.index(row[1]))
    return rows


def silent_rows(survey: Survey) -> list[list[str]]:
    """Return a row for each worker of which nothing but its silence is known."""
    reported = {worker.id for worker in survey.workers}
    unknown = ["-"] * (len(COLUMNS) - 2)
    return [
        [
            str(silent.pid),
            "stopped" if silent.reason == "stopped" else "unresponsive",
            *unknown,
        ]
        for silent in survey.silent
        if silent.id not in reported
    ]


def pool_row(
    worker: WorkerSnapshot, pool: PoolSnapshot, charts: Charts | None = None
) -> list[str]:
    """Return the row of one pool."""
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
    """Return the state of one pool; a worker's state is the worst of its pools'."""
    if worker.source == "last":
        return worker.state
    if pool.wedged:
        return "wedged"
    return "saturated" if _is_full(pool) else "ok"


def _is_full(pool: PoolSnapshot) -> bool:
    return pool.max is not None and pool.used >= pool.max


def totals(page: Page, survey: Survey, charts: Charts | None = None) -> None:
    """Add a line for each database, with the most that its workers may open."""
    for total in survey.totals:
        page.parts(
            [str(total.url), *(f"· {part}" for part in parts_of_total(total, survey))]
        )
        if charts:
            chart = charts.total(total)
            page.line(f"  {chart}", style_of(chart))


def parts_of_total(total: DatabaseTotal, survey: Survey) -> list[str]:
    """Say what a database's workers have open, and what they may open."""
    now = [f"{total.used} used"]
    if total.idle is not None:
        now.append(f"{total.idle} idle")
    if total.pending:
        now.append(f"{total.pending} waiting")
    most = count(total.workers, "worker")
    if total.max is not None:
        most += f" may open at most {total.max}"
    elif any(p.unlimited for w in survey.live for p in w.pools if p.url == total.url):
        most += " may open any number"
    return [", ".join(now), most]


# -- holders and waiters -------------------------------------------------------


def _is_listed(worker: WorkerSnapshot, pool: PoolSnapshot, holder: Holder) -> bool:
    """Whether a holder is shown without ``--verbose``: a leak always is."""
    crowded = pool.pending or pool.held_long or _is_full(pool)
    return bool(crowded) or worker.source == "last" or holder.is_leaked


def _holders_and_waiters(
    page: Page,
    pools: Sequence[tuple[WorkerSnapshot, PoolSnapshot]],
    titles: tuple[str, str],
    verbose: bool,
) -> None:
    listed: list[Entry] = [
        (worker, pool, holder)
        for worker, pool in pools
        for holder in pool.holders
        if verbose or _is_listed(worker, pool, holder)
    ]
    _entries(page, titles[0], listed, verbose)
    rest = sum(len(pool.holders) for _, pool in pools) - len(listed)
    if listed and rest:
        are, them = ("is", "it") if rest == 1 else ("are", "them")
        page.line(f"  {rest} more {are} in use; --verbose lists {them}")
    waiters: list[Entry] = [(w, p, waiter) for w, p in pools for waiter in p.waiters]
    _entries(page, titles[1], waiters, verbose)


def _entries(page: Page, title: str, found: list[Entry], verbose: bool) -> None:
    """Add holders or waiters: grouped by view and line, or each if `verbose`."""
    groups = groups_of(found, verbose)
    if groups:
        page.title(title)
    shown = groups[: None if verbose else _GROUPS]
    for members in shown:
        _, pool, one = members[0]
        view = f"{len(members)}× {label(one)}"
        page.parts(
            [
                *([view, f"{place_of(one)},"] if one.at else [f"{view},"]),
                *parts_of(one, several=len(members) > 1),
                f"· bind {pool.bind}",
                f"· {pids_of(worker for worker, _, _ in members)}",
            ],
            indent=2,
        )
        if verbose and isinstance(one, Holder):
            connection_numbers(page, one)
    not_shown(page, len(groups) - len(shown))
    if any(getattr(one, "at_is", None) == "view" for ((_, _, one), *_) in shown):
        page.parts(UNRECORDED.split(), indent=2)


def groups_of(found: list[Entry], verbose: bool = False) -> list[list[Entry]]:
    """Group holders or waiters by view and line, the longest first; or none."""
    found.sort(key=lambda each: -seconds_of(each[2]))
    groups: dict[Hashable, list[Entry]] = {}
    for index, each in enumerate(found):
        one = each[2]
        kind = (each[1].bind, label(one), one.at, *details_of(one))
        groups.setdefault(index if verbose else kind, []).append(each)
    return list(groups.values())


def seconds_of(one: Holder | Waiter) -> float:
    """Return for how long a connection has been held, or a thread has waited."""
    return one.held_s if isinstance(one, Holder) else one.waited_s


def parts_of(one: Holder | Waiter, *, several: bool) -> list[str]:
    """Say for how long, and what a holder does meanwhile."""
    seconds = "held" if isinstance(one, Holder) else "for"
    parts = [
        f"{'longest' if several else seconds} {duration(seconds_of(one))}",
        *details_of(one),
    ]
    if isinstance(one, Holder):
        since = one.running_s or one.idle_in_transaction_s
        parts[1] += f" for {duration(since)}" if since else ""
    return commas(parts)


def details_of(one: Holder | Waiter) -> list[str]:
    """Say what a holder does with its connection, or whether a waiter can go on."""
    if isinstance(one, Waiter):
        if not one.self_deadlock:
            return []
        place = [f"checked out at {one.holds_from}"] if one.holds_from else []
        return ["self-deadlock: its own thread holds a connection", *place]
    return states_of(one)


def connection_numbers(page: Page, holder: Holder) -> None:
    """Add what helps to find a connection in the database and in the code."""
    known = (
        ("connection", holder.connection),
        ("backend pid", holder.backend_pid),
        ("session", holder.session),
        ("thread", holder.thread),
    )
    parts = [f"{name} {value}" for name, value in known if value is not None]
    page.parts(commas(parts), indent=6)
    if holder.stack:
        page.parts(["checked out at", *holder.stack], indent=6)
    if holder.sql:
        page.line("      last statement: " + " ".join(holder.sql.split()))


# -- nearest to the prompt -----------------------------------------------------


def problems(page: Page, survey: Survey) -> None:
    """Add what happened in the last minute, and which workers are absent."""
    lines = []
    for bind, found in by_bind(survey).items():
        late = [(w, p) for w, p in found if p.timeouts_60s]
        if late:
            total = count(sum(p.timeouts_60s or 0 for _, p in late), "checkout")
            said = [f"{total} timed out in the last minute", f"· bind {bind}"]
            lines.append([*said, f"· {pids_of(worker for worker, _ in late)}"])
    for bind, found in by_bind(survey).items():
        lost = [(w, p) for w, p in found if p.invalidated_60s]
        if lost:
            total = count(sum(p.invalidated_60s for _, p in lost), "connection")
            ages = Histogram.merged(p.invalidated_age_s for _, p in lost)
            said = [f"{total} invalidated in the last minute", f"· bind {bind}"]
            said.append(f"· at most {duration(ages.max)} old")
            lines.append([*said, f"· {pids_of(worker for worker, _ in lost)}"])
    cut = [worker for worker in survey.workers if worker.truncated]
    if lines or cut or survey.silent or len(survey.live) < len(survey.workers):
        page.line()
    for parts in lines:
        page.parts(parts, style="red")
    if cut:
        page.line(f"Not all is shown: the answer of {pids_of(cut)} was cut short.")
    absent_workers(page, survey)
