"""What ``session-status`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .._format import amounts
from .._format import count
from .._format import duration
from .._format import number
from ..snapshot import LostWorkCount
from ..snapshot import SessionSnapshot
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot
from .charts import History
from .charts import style_of
from .page import Page
from .sections import absent_workers
from .sections import ago
from .sections import pids_of
from .sections import route_label
from .sections import start

#: The worst is last, nearest to the prompt.
_STATES = ("idle", "begun", "holding", "idle in transaction", "needs rollback")
STYLES = {"idle in transaction": "yellow", "needs rollback": "red"}
LOST_WORK = "Uncommitted changes that were rolled back"
GONE = "Last open in workers that are gone; these sessions have ended"
COLUMNS = (
    *(">PID", "SCOPE", "BIND", ">AGE", "STATE"),
    *(">CONN", ">STMTS", ">NEW/DEL", ">IDENTITY", ">IDLE-TX"),
)


def render_sessions(
    survey: Survey, *, verbose: bool = False, history: History | None = None
) -> str:
    """Return what ``session-status`` prints; with a history, charts of the pools."""
    page, found = start(survey)
    if not found:
        return str(page)
    if history is not None:
        _charts(page, survey, history)
    sessions = [(w, s) for w in survey.workers for s in w.sessions]
    sessions.sort(key=lambda each: rank(each[1]))
    ended = [each for each in sessions if each[0].state == "gone"]
    sessions = [each for each in sessions if each[0].state != "gone"]
    if ended:
        page.line(GONE, "bold")
        _table(page, ended, verbose)
        page.line()
    if sessions:
        _table(page, sessions, verbose)
    else:
        page.line("No session is open.")
    page.line()
    open_sessions(page, survey)
    lasting_contexts(page, sessions)
    _lost_work(page, survey)
    shared_sessions(page, survey)
    absent_workers(page, survey)
    return str(page)


def open_sessions(page: Page, survey: Survey) -> None:
    """Add how many sessions are open."""
    live = sum(len(worker.sessions) for worker in survey.live)
    page.line(f"{count(live, 'session')} open in {count(len(survey.live), 'worker')}")


def _charts(page: Page, survey: Survey, history: History) -> None:
    """Add how much of each database's pools is used, over all workers."""
    charts = history.charts(page.width)
    for total in survey.totals:
        most = f" of {total.max}" if total.max is not None else ""
        page.parts([str(total.url), f"· {total.used}{most} used"])
        chart = charts.total(total)
        page.line(f"  {chart}", style_of(chart))
    if survey.totals:
        page.line()


def _table(
    page: Page, found: Sequence[tuple[WorkerSnapshot, SessionSnapshot]], verbose: bool
) -> None:
    page.table(
        COLUMNS,
        [session_row(worker, session, verbose) for worker, session in found],
        styles=STYLES,
        spare=["IDENTITY", "NEW/DEL", "STMTS", "CONN", "IDLE-TX"],
        below="SCOPE",
    )


def rank(session: SessionSnapshot) -> tuple[bool, int, float]:
    """Sort sessions by their states and ages, the worst last."""
    state = _STATES.index(session.state)
    return session.thread_alive is False, state, session.age_s


def session_row(
    worker: WorkerSnapshot, session: SessionSnapshot, verbose: bool
) -> list[str]:
    """Return the row of one session."""
    scope = route_label(session)
    if session.requests is not None and session.requests > 1:
        among = "one of" if session.method is not None else "shared by"
        scope += f", {among} {session.requests} requests"
    if verbose and session.thread and session.thread not in scope:
        scope += f" (thread {session.thread})"
    if session.thread_alive is False:
        scope += ", its thread has ended"
    if worker.source == "last":
        scope += f" (worker {worker.state})"
    return [
        str(worker.pid),
        scope,
        session.name or "-",
        duration(session.age_s),
        session.state,
        ",".join(f"#{each}" for each in session.connections) or "-",
        number(session.statements),
        f"{number(session.new)}/{number(session.deleted)}",
        number(session.identity),
        duration(session.idle_in_transaction_s),
    ]


def lasting_contexts(
    page: Page, sessions: Sequence[tuple[WorkerSnapshot, SessionSnapshot]]
) -> None:
    """Add how many sessions are shared by requests, and how to end that."""
    workers = [worker for worker, session in sessions if (session.requests or 0) > 1]
    if workers:
        has, were, are = "have each", "their application contexts were", "are"
        if len(workers) == 1:
            has, were, are = "has", "its application context was", "is"
        page.parts(
            [
                f"{count(len(workers), 'session')} {has} served several requests:",
                f"{were} pushed before them and {are}",
                "never popped. Remove 'app.app_context().push()', and wrap only the",
                "code that needs a context in 'with app.app_context():'",
                f"· {pids_of(workers)}",
            ]
        )


def lost_work(survey: Survey) -> list[tuple[str, str, str, str]]:
    """Return the views that ended well without committing their changes.

    Each has its name, after how often that was; what was lost; when that was last; and
    the workers.
    """
    views: dict[str, list[tuple[WorkerSnapshot, LostWorkCount]]] = {}
    for worker in survey.workers:
        for lost in worker.lost_work:
            views.setdefault(route_label(lost), []).append((worker, lost))
    rows = []
    for view, found in views.items():
        objects: Counter[str] = Counter()
        for _, lost in found:
            objects.update(lost.objects)
        rows.append(
            (
                f"{sum(lost.scopes_total for _, lost in found)}× {view}",
                amounts(objects),
                f"last {ago(survey, max(lost.last_at for _, lost in found))}",
                pids_of(worker for worker, _ in found),
            )
        )
    return rows


def _lost_work(page: Page, survey: Survey) -> None:
    rows = lost_work(survey)
    if rows:
        page.title(LOST_WORK)
    for view, objects, last, workers in rows:
        page.parts([f"{view},", f"{objects},", last, f"· {workers}"], indent=2)


def shared_sessions(page: Page, survey: Survey) -> None:
    """Add the sessions that two threads used at the same time."""
    found = [(w, use) for w in survey.workers for use in w.recent_shared]
    if found:
        page.title("Sessions that two threads used at the same time")
    for worker, use in sorted(found, key=lambda each: each[1].at_time):
        threads = [
            thread.thread + (f" at {thread.at}" if thread.at else "")
            for thread in use.threads
        ]
        page.parts(
            [
                f"{route_label(use)},",
                f"{ago(survey, use.at_time)}:",
                *(f"{thread} and" for thread in threads[:-1]),
                *threads[-1:],
                "(the second was refused)" if use.refused else "(in one transaction)",
                f"· pid {worker.pid}",
            ],
            indent=2,
        )
