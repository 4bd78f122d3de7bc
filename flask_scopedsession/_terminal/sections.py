"""What all pages share: the header, absent workers, and how requests are named."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from .._format import count
from .._format import duration
from .._format import number
from .._format import place
from .._format import some
from ..snapshot import Holder
from ..snapshot import Origin
from ..snapshot import PoolSnapshot
from ..snapshot import Survey
from ..snapshot import Waiter
from ..snapshot import WorkerSnapshot
from .page import Page

_CONFIGURED = ("BIND", "POOL", ">SIZE", ">MAX", ">TIMEOUT", "DATABASE")

#: Why a worker did not answer, with a gap for "is" or "are".
_REASONS = {
    "gone": "{} gone (killed)",
    "stopped": "{} stopped (by SIGSTOP or a debugger)",
    "unresponsive": "did not answer in time",
}


def start(survey: Survey) -> tuple[Page, bool]:
    """Return a page with its header, and whether there are workers to show on it."""
    page = Page()
    header(page, survey)
    page.line()
    found = bool(survey.workers or survey.silent)
    if nobody_answered(survey):
        no_workers(page, survey)
        if found:
            page.line()
    return page, found


def nobody_answered(survey: Survey) -> bool:
    """Whether no worker has answered, and none that lives is known."""
    # Last snapshots are no answer. With --pid, the workers that answered are left out.
    found = survey.workers or survey.silent
    return not found or bool(survey.configured and not survey.silent)


def header(page: Page, survey: Survey) -> None:
    """Say what was asked, where and when."""
    app = f"{survey.app} on " if survey.app else ""
    at = _moment(survey.collected_at)
    time = at.strftime("%Y-%m-%d %H:%M:%S UTC") if at else survey.collected_at
    page.parts([f"{app}{survey.host}", f"· {time}", "· this host only"], style="dim")
    pids: dict[int, list[str]] = {}
    for worker in survey.workers:
        pids.setdefault(worker.uid or 0, []).append(str(worker.pid))
    if len(pids) > 1:
        for uid, found in sorted(pids.items()):
            page.line(f"uid {uid}: {count(len(found), 'worker')}, pid {some(found)}")


def no_workers(page: Page, survey: Survey) -> None:
    """Say that no worker has answered, why, and how to start one."""
    places = [searched.dir for searched in survey.searched if searched.dir]
    page.parts(
        ["No worker has answered", f"(looked in {', '.join(places) or 'nowhere'})."]
    )
    for searched in survey.searched:
        if searched.error:
            several = searched.dir and len(places) > 1
            place = [f"{searched.dir}:"] if several else []
            page.parts([*place, *searched.error.split()], indent=2)
    page.line()
    page.line(
        "A worker answers after its first request, and only to its own user and root."
    )
    page.line(
        "Start one and request a page:   flask run   or   gunicorn 'app:create_app()'"
    )
    page.line(
        "A process without requests, such as a job, must call db.serve_control()."
    )
    if survey.configured:
        page.title("Configured pools (this process does not use them):")
        rows = [
            [
                pool.bind,
                pool.pool_class,
                number(pool.size),
                "∞" if pool.unlimited else number(pool.max),
                duration(pool.pool_timeout),
                str(pool.url),
            ]
            for pool in survey.configured
        ]
        page.table(_CONFIGURED, rows, below="DATABASE")


def absent_workers(page: Page, survey: Survey) -> None:
    """Say which workers did not answer, why, and how old their last snapshots are."""
    ages: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for worker in survey.workers:
        if worker.source == "last" and (age := ago(survey, worker.snapshot_at)):
            ages[worker.id] = f" (as of {age})"
        if worker.state == "gone":
            pid = f"{worker.pid}{ages.get(worker.id, '')}"
            groups.setdefault("gone", []).append(pid)
    for silent in survey.silent:
        pid = f"{silent.pid}{ages.get(silent.id, '')}"
        groups.setdefault(silent.reason, []).append(pid)
    for reason, pids in groups.items():
        if known := _REASONS.get(reason):
            said = known.format("is" if len(pids) == 1 else "are")
        else:
            said = reason  # another process wrote it
        parts = [f"{count(len(pids), 'worker')} {said}:", f"pid {some(pids)}"]
        page.parts(parts, style="red")
        if reason == "gone":
            _how_to_clear(page, survey)
        if reason == "unresponsive":
            page.line("  'py-spy dump --pid PID' shows what such a worker is doing.")


def _how_to_clear(page: Page, survey: Survey) -> None:
    """Say for how long dead workers are shown, and which files make them appear."""
    names = [f"{worker.id}.json" for worker in survey.workers if worker.state == "gone"]
    places = [each.dir for each in survey.searched if each.dir and not each.error]
    its, is_ = ("its", "is") if len(names) == 1 else ("their", "are")
    until = f"Shown for an hour after {its} end, or until {some(names)} {is_} removed"
    page.parts([*until.split(), f"from {' or '.join(places)}"], indent=2)


def ago(survey: Survey, time: str) -> str:
    """Return how long before the survey a time was; empty if it is not a time."""
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


def route_label(reading: Origin) -> str:
    """Name the request with its route and view; the command, the job, or the thread."""
    if reading.rule is not None or reading.endpoint is not None:
        return f"{reading.method} {reading.rule} → {reading.endpoint}"
    return label(reading)


def label(reading: Origin) -> str:
    """Name the view, the command, the job or the thread."""
    if reading.endpoint is not None:
        return reading.endpoint
    if reading.method is not None:
        return f"{reading.method} (no rule matched)"
    if reading.job is not None:
        return reading.job
    if reading.command is not None:
        return f"command {reading.command}"
    # A sum over several threads has no thread.
    thread = getattr(reading, "thread", "")
    return "others" if thread == "" else f"thread {thread or 'unknown'}"


def not_shown(page: Page, amount: int) -> None:
    """Say how many entries of a list are left out, if any."""
    if amount:
        page.line(f"  and {amount} more; --verbose lists them")


def place_of(one: Holder | Waiter) -> str | None:
    """Return a holder's or waiter's line, and what it is."""
    return one.at and place(one.at, getattr(one, "at_is", None))


def pids_of(workers: Iterable[WorkerSnapshot]) -> str:
    """List the process ID of each worker once, with its state if it is not live."""
    found = {(w.pid, "" if w.source == "live" else f" ({w.state})") for w in workers}
    return "pid " + some([f"{pid}{state}" for pid, state in sorted(found)])


def by_bind(survey: Survey) -> dict[str, list[tuple[WorkerSnapshot, PoolSnapshot]]]:
    """Return the pools of all live workers, each with its worker, by bind."""
    grouped: dict[str, list[tuple[WorkerSnapshot, PoolSnapshot]]] = {}
    for worker in survey.live:
        for pool in worker.pools:
            grouped.setdefault(pool.bind, []).append((worker, pool))
    return grouped
