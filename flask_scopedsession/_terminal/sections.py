"""What ``session-status`` and ``db-ping`` print, and what all commands have."""

from __future__ import annotations

import typing as t
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import datetime

from .._databases.ping import PingResult
from ..snapshot import ConfiguredPool
from ..snapshot import SessionSnapshot
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot
from .charts import History
from .charts import style_of
from .page import Column
from .page import count
from .page import duration
from .page import number
from .page import Page
from .page import some

#: From what needs no eye to what needs it most, which stands nearest the prompt.
_SESSION_STATES: tuple[str, ...] = (
    *("idle", "begun", "holding", "idle in transaction", "needs rollback"),
)
_SESSION_STYLES = {"idle in transaction": "yellow", "needs rollback": "red"}
_SESSION_COLUMNS = (
    *(Column("PID", True), Column("SCOPE"), Column("BIND"), Column("AGE", True)),
    *(Column("STATE"), Column("CONN", True), Column("NEW", True), Column("DEL", True)),
    *(Column("IDENTITY", True), Column("IDLE-TX", True)),
)
_CONFIGURED_COLUMNS = (
    *(Column("BIND"), Column("POOL"), Column("SIZE", True), Column("MAX", True)),
    *(Column("TIMEOUT", True), Column("DATABASE")),
)
_PING_COLUMNS = (
    *(Column("BIND"), Column("LATENCY", True), Column("VERSION"), Column("DATABASE")),
)


def render_sessions(
    survey: Survey, *, verbose: bool = False, history: History | None = None
) -> str:
    """Return what ``session-status`` prints; with a history, charts of the pools."""
    page = Page()
    header(page, survey)
    if not survey.workers and not survey.silent:
        nobody(page, survey)
        return str(page)
    if history is not None:
        _pools(page, survey, history)
    found = [(w, s) for w in survey.workers for s in w.sessions]
    found.sort(key=lambda item: (_rank(item[1]), item[1].age_s))
    if found:
        page.table(
            _SESSION_COLUMNS,
            [_session_row(worker, session, verbose) for worker, session in found],
            styles=_SESSION_STYLES,
            spare=["IDENTITY", "NEW", "DEL", "CONN", "IDLE-TX"],
            below="SCOPE",
        )
    else:
        page.line("No session is open.")
    page.line()
    live = sum(len(worker.sessions) for worker in survey.live)
    page.line(f"{count(live, 'session')} open in {count(len(survey.live), 'worker')}")
    _lost_work(page, survey)
    _shared(page, survey)
    absent(page, survey)
    return str(page)


def _lost_work(page: Page, survey: Survey) -> None:
    """Tell which views ended well without committing what they had changed."""
    found = [(w, lost) for w in survey.workers for lost in w.lost_work]
    if not found:
        return
    page.line()
    page.line("Changes that were never committed, and so rolled back", "bold")
    for who in dict.fromkeys(responsible(lost) for _, lost in found):
        mine = [(w, lost) for w, lost in found if responsible(lost) == who]
        objects: Counter[str] = Counter()
        for _, lost in mine:
            objects.update(lost.objects)
        kinds = ", ".join(
            f"{amount} {kind}" for kind, amount in sorted(objects.items())
        )
        last = ago(survey, max(lost.last_at for _, lost in mine))
        page.parts(
            [
                f"{sum(lost.scopes_total for _, lost in mine)}× {who},",
                f"{kinds},",
                f"last {last}",
                f"· pid {some(pids_of(worker for worker, _ in mine))}",
            ],
            indent=2,
        )


def _shared(page: Page, survey: Survey) -> None:
    """Tell which sessions two threads used at the same time."""
    found = [(w, use) for w in survey.workers for use in w.recent_shared]
    if not found:
        return
    page.line()
    page.line("Sessions that two threads used at the same time", "bold")
    for worker, use in sorted(found, key=lambda each: each[1].at_time):
        places = [
            place.thread + (f" at {place.at}" if place.at else "")
            for place in use.threads
        ]
        page.parts(
            [
                f"{responsible(use)},",
                f"{ago(survey, use.at_time)}:",
                " and ".join(places),
                "(the second was refused)" if use.refused else "(in one transaction)",
                f"· pid {worker.pid}",
            ],
            indent=2,
        )


def _pools(page: Page, survey: Survey, history: History) -> None:
    """Add how much of each database's pools is used, over all workers."""
    charts = history.charts(page.width)
    for total in survey.totals:
        most = f" of {total.max}" if total.max is not None else ""
        page.parts([str(total.url), f"· {total.used}{most} used"])
        chart = charts.total(total)
        page.line(f"  {chart}", style_of(chart))
    if survey.totals:
        page.line()


def _rank(session: SessionSnapshot) -> tuple[bool, int]:
    return session.thread_alive is False, _SESSION_STATES.index(session.state)


def _session_row(
    worker: WorkerSnapshot, session: SessionSnapshot, verbose: bool
) -> list[str]:
    scope = responsible(session)
    if verbose and session.thread and session.thread not in scope:
        scope += f" (thread {session.thread})"
    if session.thread_alive is False:
        scope += ", its thread is dead"
    if worker.source == "last":
        scope += f" (worker {worker.state})"
    return [
        str(worker.pid),
        scope,
        session.name or "-",
        duration(session.age_s),
        session.state,
        ",".join(map(str, session.connections)) or "-",
        number(session.new),
        number(session.deleted),
        number(session.identity),
        duration(session.idle_in_transaction_s),
    ]


def render_pings(results: Sequence[PingResult]) -> str:
    """Return what ``db-ping`` prints."""
    page = Page()
    rows = [
        [each.bind, duration(each.latency_s), each.version or "-", str(each.url)]
        for each in results
    ]
    page.table(_PING_COLUMNS, rows, spare=["DATABASE"])
    for each in results:
        if each.error is not None:
            page.line(each.error, "red")
    return str(page)


# -- what all commands have ----------------------------------------------------


def header(page: Page, survey: Survey) -> None:
    """Say whose pools these are, where and when."""
    app = f"{survey.app} on " if survey.app else ""
    at = _moment(survey.collected_at)
    time = at.strftime("%Y-%m-%d %H:%M:%S UTC") if at else survey.collected_at
    page.parts([f"{app}{survey.host}", f"· {time}", "· this host only"], style="dim")
    owners = sorted({worker.uid or 0 for worker in survey.workers})
    if len(owners) > 1:
        for uid in owners:
            pids = [str(w.pid) for w in survey.workers if (w.uid or 0) == uid]
            page.line(f"uid {uid}: {count(len(pids), 'worker')}, pid {some(pids)}")
    page.line()


def nobody(page: Page, survey: Survey) -> None:
    """Say that no worker has answered, why, and how to have one that does."""
    places = [searched.dir for searched in survey.searched if searched.dir]
    where = ", ".join(places) or "nowhere"
    page.parts(["No worker has answered", f"(looked in {where})."])
    for searched in survey.searched:
        if searched.error:
            several = searched.dir and len(places) > 1
            place = [f"{searched.dir}:"] if several else []
            page.parts([*place, searched.error], indent=2)
    page.line()
    page.line(
        "A worker answers from its first request on, to its own user and to root."
    )
    page.line(
        "Start one, and visit a page:   flask run   or   gunicorn 'app:create_app()'"
    )
    page.line("A process without requests, as a job, calls db.serve_control().")
    if survey.configured:
        page.line()
        page.line(
            "Pools as they are configured; this process uses none of them:", "bold"
        )
        page.table(
            _CONFIGURED_COLUMNS,
            [_configured_row(pool) for pool in survey.configured],
            spare=["DATABASE"],
        )


def _configured_row(pool: ConfiguredPool) -> list[str]:
    return [
        pool.bind,
        pool.pool_class,
        number(pool.size),
        "∞" if pool.unlimited else number(pool.max),
        duration(pool.pool_timeout),
        str(pool.url),
    ]


_ABSENT = {
    "gone": ("is gone, killed", "are gone, killed"),
    "stopped": (
        "is stopped, by SIGSTOP or a debugger",
        "are stopped, by SIGSTOP or a debugger",
    ),
    "unresponsive": ("did not answer in time", "did not answer in time"),
}


def absent(page: Page, survey: Survey) -> None:
    """Say which workers gave no answer, and how old their last snapshots are."""
    ages = {
        worker.id: _age(survey, worker)
        for worker in survey.workers
        if worker.source == "last"
    }
    groups: dict[str, list[str]] = {}
    for worker in survey.workers:
        if worker.state == "gone":
            groups.setdefault("gone", []).append(f"{worker.pid}{ages[worker.id]}")
    for silent in survey.silent:
        pid = f"{silent.pid}{ages.get(silent.id, '')}"
        groups.setdefault(silent.reason, []).append(pid)
    for reason, pids in groups.items():
        one, many = _ABSENT.get(reason, (reason, reason))
        said = one if len(pids) == 1 else many
        page.parts(
            [f"{count(len(pids), 'worker')} {said}:", f"pid {some(pids)}"], style="red"
        )
        if reason == "unresponsive":
            page.line("  'py-spy dump --pid PID' shows what such a worker does.")


def _age(survey: Survey, worker: WorkerSnapshot) -> str:
    """Say how old a worker's last snapshot is."""
    age = ago(survey, worker.snapshot_at)
    return f" (as of {age})" if age else ""


def ago(survey: Survey, time: str) -> str:
    """Say how long before the survey something was; nothing if that is nonsense."""
    now, then = _moment(survey.collected_at), _moment(time)
    if now is None or then is None:
        return ""
    return f"{duration(max(0.0, (now - then).total_seconds()))} ago"


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


class Doer(t.Protocol):
    """What tells of a view, a command, or else a thread."""

    @property
    def endpoint(self) -> str | None: ...
    @property
    def method(self) -> str | None: ...
    @property
    def rule(self) -> str | None: ...
    @property
    def command(self) -> str | None: ...


def responsible(one: Doer) -> str:
    """Name the request with its view, the command or the thread."""
    if one.rule is not None or one.endpoint is not None:
        return f"{one.method} {one.rule} → {one.endpoint}"
    return doer(one)


def doer(one: Doer) -> str:
    """Name the view, the command or the thread."""
    if one.endpoint is not None:
        return one.endpoint
    if one.method is not None:
        return f"{one.method} (no rule matched)"
    if one.command is not None:
        return f"command {one.command}"
    # What is added up over threads has none.
    thread = getattr(one, "thread", "")
    return "others" if thread == "" else f"thread {thread or 'unknown'}"


def pids_of(workers: Iterable[WorkerSnapshot]) -> Sequence[str]:
    """Return the process ids of some workers, each once, and who is not there."""
    found = {(w.pid, "" if w.source == "live" else f" ({w.state})") for w in workers}
    return [f"{pid}{absence}" for pid, absence in sorted(found)]
