"""Tables for people. All text comes from other processes: no markup, no escapes."""

from __future__ import annotations

import sys
import typing as t
from collections.abc import Iterable
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .snapshot import clean
from .snapshot import ConfiguredPool
from .snapshot import Holder
from .snapshot import PoolSnapshot
from .snapshot import SessionSnapshot
from .snapshot import Survey
from .snapshot import Waiter
from .snapshot import WorkerSnapshot

#: Healthy workers are one line beyond so many.
_COLLAPSE_BEYOND = 10

#: Groups of holders and waiters that are shown without ``--verbose``.
_GROUPS = 10

_STYLES = {
    "ok": "green",
    "saturated": "yellow",
    "wedged": "bold red",
    "stopped": "red",
    "unresponsive": "red",
    "gone": "dim",
    "idle in transaction": "yellow",
    "needs rollback": "red",
}


class _Page:
    """Standard output: as wide as it takes when it is no terminal."""

    def __init__(self) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        self._plain = not encoding.lower().replace("-", "").startswith("utf")
        self._console = Console(
            markup=False,
            highlight=False,
            emoji=False,
            soft_wrap=True,
            legacy_windows=False,
        )
        if not self._console.is_terminal:
            self._console = Console(
                markup=False, highlight=False, emoji=False, width=10_000
            )

    def line(self, text: str = "", style: str = "") -> None:
        self._console.print(
            Text(self._encodable(text), style=style), soft_wrap=True, no_wrap=True
        )

    def table(
        self,
        columns: Sequence[tuple[str, bool]],
        rows: Iterable[Sequence[str]],
        *,
        styled: int | None = None,
    ) -> None:
        """Print rows under columns of a name and whether numbers stand in them."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=False)
        for name, number in columns:
            table.add_column(
                Text(name, style="bold"),
                justify="right" if number else "left",
                overflow="fold",
                no_wrap=number,
            )
        for row in rows:
            style = "" if styled is None else _STYLES.get(row[styled], "")
            table.add_row(
                *(
                    Text(self._encodable(cell), style=style if at == styled else "")
                    for at, cell in enumerate(row)
                )
            )
        self._console.print(table)

    def _encodable(self, text: str) -> str:
        text = clean(text)
        if self._plain:
            text = text.replace("→", "->").replace("×", "x").replace("·", "|")
            text = text.encode("ascii", "replace").decode()
        return text


# -- pool-status ---------------------------------------------------------------


def render_pools(survey: Survey, *, verbose: bool = False) -> None:
    """Print ``pool-status``."""
    page = _Page()
    _header(page, survey)
    if not survey.workers and not survey.silent:
        _nobody(page, survey)
        return
    rows, healthy = _pool_rows(survey, verbose)
    columns = (
        *(("PID", True), ("STATE", False), ("BIND", False), ("POOL", False)),
        *(("USED/MAX", True), ("IDLE", True), ("WAITING", True), ("MAXWAIT", True)),
        *(("HOLD95", True), ("TIMEOUTS", True)),
    )
    if rows:
        page.table(columns, rows, styled=1)
    if healthy:
        page.line(f"{healthy} workers ok", style="green")
    _totals(page, survey)
    _problems(page, survey, verbose)


def _pool_rows(survey: Survey, verbose: bool) -> tuple[list[list[str]], int]:
    collapse = len(survey.workers) > _COLLAPSE_BEYOND and not verbose
    rows = []
    healthy = 0
    for worker in survey.workers:
        if collapse and worker.state == "ok" and not _needs_an_eye(worker):
            healthy += 1
            continue
        rows += [_pool_row(worker, pool) for pool in worker.pools]
    shown = {worker.id for worker in survey.workers}
    rows += [
        [str(s.pid), s.reason, *("-" for _ in range(8))]
        for s in survey.silent
        if s.id not in shown
    ]
    return rows, healthy


def _pool_row(worker: WorkerSnapshot, pool: PoolSnapshot) -> list[str]:
    most = "∞" if pool.unlimited else _number(pool.max)
    return [
        str(worker.pid),
        worker.state,
        pool.bind,
        pool.pool_class,
        f"{pool.used}/{most}",
        _number(pool.idle),
        _number(pool.pending),
        _seconds(pool.max_wait_s) if pool.pending else "-",
        _seconds(pool.hold_s.p95),
        _number(pool.timeouts_total),
    ]


def _totals(page: _Page, survey: Survey) -> None:
    if not survey.totals:
        return
    page.line()
    for total in survey.totals:
        most = "no limit" if total.max is None else f"at most {total.max}"
        waiting = f", {total.pending} waiting" if total.pending else ""
        plural = "" if total.workers == 1 else "s"
        page.line(
            f"{total.url}: {total.used} used, {_number(total.idle)} idle{waiting};"
            f" {total.workers} worker{plural} may open {most}"
        )


def _needs_an_eye(worker: WorkerSnapshot) -> bool:
    return any(p.pending or p.held_long or p.timeouts_60s for p in worker.pools)


def _problems(page: _Page, survey: Survey, verbose: bool) -> None:
    """Print, last and so nearest the prompt, what needs a person's eye."""
    holders: list[tuple[WorkerSnapshot, PoolSnapshot, Holder]] = []
    waiters: list[tuple[WorkerSnapshot, PoolSnapshot, Waiter]] = []
    for worker in survey.workers:
        for pool in worker.pools:
            crowded = bool(pool.pending) or bool(pool.held_long) or pool.wedged
            if verbose or crowded or worker.source == "last":
                holders += [(worker, pool, holder) for holder in pool.holders]
            waiters += [(worker, pool, waiter) for waiter in pool.waiters]
    _grouped_holders(page, holders, verbose)
    _grouped_waiters(page, waiters, verbose)
    _timeouts(page, survey)
    for silent in survey.silent:
        page.line(f"Worker {silent.pid} {_why_silent(silent.reason)}", style="red")
    if any(worker.truncated for worker in survey.workers):
        page.line("Some workers have more than they told; see --json.")


def _why_silent(reason: str) -> str:
    if reason == "stopped":
        return "is stopped (SIGSTOP, or a debugger)"
    if reason == "unresponsive":
        return (
            "is unresponsive: it did not answer in time."
            " 'py-spy dump --pid' shows what it does"
        )
    return f"is silent: {reason}"


def _grouped_holders(
    page: _Page,
    found: list[tuple[WorkerSnapshot, PoolSnapshot, Holder]],
    verbose: bool,
) -> None:
    if not found:
        return
    page.line()
    page.line("Held connections, longest first", style="bold")
    groups: dict[t.Any, list[tuple[WorkerSnapshot, PoolSnapshot, Holder]]] = {}
    for worker, pool, holder in sorted(found, key=lambda item: -item[2].held_s):
        key: t.Any = (pool.bind, _who(holder), holder.at, _doing(holder))
        if verbose:
            key = (*key, worker.id, holder.connection, holder.held_s)
        groups.setdefault(key, []).append((worker, pool, holder))
    for members in list(groups.values())[: None if verbose else _GROUPS]:
        worker, pool, holder = members[0]
        where = f" {holder.at}" if holder.at else ""
        held = _seconds(holder.held_s)
        longest = f"longest {held}" if len(members) > 1 else f"held {held}"
        pids = sorted({str(worker.pid) for worker, _, _ in members})
        page.line(
            f"  {len(members)}× {_who(holder)}{where}, {longest}, {_doing(holder)}"
            f" · bind {pool.bind} · pid {_some(pids)}"
        )
        if verbose:
            _holder_details(page, holder)
    _more(page, len(groups), verbose)


def _holder_details(page: _Page, holder: Holder) -> None:
    known = [
        ("connection", holder.connection),
        ("backend pid", holder.backend_pid),
        ("session", holder.session),
        ("thread", holder.thread),
    ]
    page.line(
        "     " + ", ".join(f"{name} {value}" for name, value in known if value)
    )
    if holder.stack:
        page.line("     checked out at " + " < ".join(holder.stack))
    if holder.sql:
        page.line("     last statement: " + " ".join(holder.sql.split()))


def _doing(holder: Holder) -> str:
    state = "in transaction" if holder.in_transaction else "not in transaction"
    if holder.in_transaction is None:
        state = "transaction unknown"
    elif holder.idle_in_transaction_s is not None:
        state = "idle in transaction"
    if holder.thread_alive is False:
        state += ", its thread is dead"
    return state


def _grouped_waiters(
    page: _Page,
    found: list[tuple[WorkerSnapshot, PoolSnapshot, Waiter]],
    verbose: bool,
) -> None:
    if not found:
        return
    page.line()
    page.line("Waiting for a connection, longest first", style="bold")
    groups: dict[t.Any, list[tuple[WorkerSnapshot, PoolSnapshot, Waiter]]] = {}
    for worker, pool, waiter in sorted(found, key=lambda item: -item[2].waited_s):
        key: t.Any = (pool.bind, _who(waiter), waiter.at, waiter.self_deadlock)
        if verbose:
            key = (*key, worker.id, waiter.waited_s)
        groups.setdefault(key, []).append((worker, pool, waiter))
    for members in list(groups.values())[: None if verbose else _GROUPS]:
        worker, pool, waiter = members[0]
        where = f" {waiter.at}" if waiter.at else ""
        deadlock = (
            ", while its own thread holds one: a self-deadlock"
            if waiter.self_deadlock
            else ""
        )
        pids = sorted({str(worker.pid) for worker, _, _ in members})
        page.line(
            f"  {len(members)}× {_who(waiter)}{where},"
            f" waiting {_seconds(waiter.waited_s)}{deadlock}"
            f" · bind {pool.bind} · pid {_some(pids)}"
        )
    _more(page, len(groups), verbose)


def _timeouts(page: _Page, survey: Survey) -> None:
    for worker in survey.workers:
        for pool in worker.pools:
            if pool.timeouts_60s:
                page.line(
                    f"Worker {worker.pid}, bind {pool.bind}: {pool.timeouts_60s}"
                    " checkouts timed out in the last minute",
                    style="red",
                )


def _more(page: _Page, groups: int, verbose: bool) -> None:
    if groups > _GROUPS and not verbose:
        page.line(f"  and {groups - _GROUPS} more: --verbose")


# -- session-status ------------------------------------------------------------


def render_sessions(survey: Survey, *, verbose: bool = False) -> None:
    """Print ``session-status``."""
    page = _Page()
    _header(page, survey)
    if not survey.workers and not survey.silent:
        _nobody(page, survey)
        return
    found = [(w, s) for w in survey.workers for s in w.sessions]
    # Within a worker the oldest is told first; what needs an eye goes to the end.
    rows = [_session_row(worker, session, verbose) for worker, session in found]
    columns = (
        *(("PID", True), ("SCOPE", False), ("BIND", False), ("AGE", True)),
        *(("STATE", False), ("CONN", False), ("NEW", True), ("DEL", True)),
        *(("IDENTITY", True), ("IDLE-TX", True)),
    )
    if rows:
        page.table(columns, rows, styled=4)
    else:
        page.line("No session is open.")
    page.line()
    page.line(f"{len(found)} open in {len(survey.live)} workers")
    for silent in survey.silent:
        page.line(f"Worker {silent.pid} {_why_silent(silent.reason)}", style="red")


def _session_row(
    worker: WorkerSnapshot, session: SessionSnapshot, verbose: bool
) -> list[str]:
    dead = " (dead thread)" if session.thread_alive is False else ""
    thread = f" [{session.thread}]" if verbose and session.thread else ""
    return [
        str(worker.pid),
        _who(session) + thread + dead,
        session.name or "-",
        _seconds(session.age_s),
        session.state,
        ",".join(map(str, session.connections)) or "-",
        _number(session.new),
        _number(session.deleted),
        _number(session.identity),
        _seconds(session.idle_in_transaction_s),
    ]


# -- db-ping -------------------------------------------------------------------


def render_pings(rows: list[dict[str, t.Any]]) -> None:
    """Print ``db-ping``."""
    page = _Page()
    columns = (("BIND", False), ("DATABASE", False), ("LATENCY", True), ("VERSION", False))
    cells = [
        [
            row["bind"],
            str(row["url"]),
            _seconds(row.get("latency_s")),
            row.get("version") or "-",
        ]
        for row in rows
    ]
    page.table(columns, cells)
    for row in rows:
        if "error" in row:
            page.line(row["error"], style="red")


# -- shared --------------------------------------------------------------------


def _header(page: _Page, survey: Survey) -> None:
    app = f"{survey.app} on " if survey.app else ""
    page.line(f"{app}{survey.host} · {survey.collected_at} · this host only", "dim")
    if len({worker.uid for worker in survey.workers}) > 1:
        for uid in sorted({worker.uid or 0 for worker in survey.workers}):
            pids = [str(w.pid) for w in survey.workers if (w.uid or 0) == uid]
            page.line(f"uid {uid}: {len(pids)} workers, pid {_some(pids)}", "dim")


def _nobody(page: _Page, survey: Survey) -> None:
    where = ", ".join(s.dir for s in survey.searched if s.dir) or "nowhere"
    page.line(f"No worker has answered (looked in {where}).")
    for searched in survey.searched:
        if searched.error:
            place = f"{searched.dir}: " if searched.dir else ""
            page.line(f"  {place}{searched.error}")
    page.line(
        "A worker answers once it has served a request, as the same user on the same"
        " host; one that serves none calls db.serve_control()."
    )
    page.line("Start one with: gunicorn 'yourapp:create_app()'")
    if survey.configured:
        page.line()
        page.line("Pools as this process is configured (not in use)", "bold")
        columns = (
            *(("BIND", False), ("POOL", False), ("SIZE", True), ("MAX", True)),
            *(("TIMEOUT", True), ("DATABASE", False)),
        )
        page.table(columns, [_configured_row(pool) for pool in survey.configured])


def _configured_row(pool: ConfiguredPool) -> list[str]:
    return [
        pool.bind,
        pool.pool_class,
        _number(pool.size),
        "∞" if pool.unlimited else _number(pool.max),
        _seconds(pool.pool_timeout),
        str(pool.url),
    ]


def _who(one: Holder | Waiter | SessionSnapshot) -> str:
    """Name the request, command or thread that is responsible."""
    if one.rule is not None or one.endpoint is not None:
        return f"{one.method} {one.rule} → {one.endpoint}"
    if one.method is not None:
        return f"{one.method} (no rule matched)"
    if one.command is not None:
        return f"command {one.command}"
    return f"thread {one.thread}"


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:5])
    return shown if len(items) <= 5 else f"{shown} and {len(items) - 5} more"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _seconds(value: float | None) -> str:
    """Write a duration as people say it: ``3 ms``, ``4.1 s``, ``2 min``, ``3 h``."""
    if value is None:
        return "-"
    if value < 0.0095:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    if value < 5400:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"
