"""What ``pool-status --server`` adds."""

from __future__ import annotations

from collections.abc import Sequence

from ..snapshot._servers import ConnectionLimit
from ..snapshot._servers import LockWait
from ..snapshot._servers import ServerConnection
from ..snapshot._servers import ServerView
from ..snapshot._servers import Unclaimed
from .page import Column
from .page import count
from .page import duration
from .page import number
from .page import Page
from .sections import doer

_COLUMNS = (
    *(Column("PID", True), Column("BACKEND", True), Column("VIEW"), Column("STATE")),
    *(Column("WAIT"), Column("TX", True), Column("QUERY", True), Column("BLOCKED BY")),
)
_STYLES = {"idle in transaction": "yellow", "idle in transaction (aborted)": "red"}

#: Groups of unclaimed connections, and lock waits, that are shown by default.
_MOST = 10


def render_servers(views: Sequence[ServerView], *, verbose: bool = False) -> str:
    """Return what the servers say, what needs an eye last."""
    page = Page()
    for view in views:
        page.line()
        version = f" {view.version}" if view.version else ""
        page.parts(
            [f"Server{version} of {view.url}", f"· bind {', '.join(view.binds)}"]
        )
        if view.error is not None:
            # That there is none to ask is no trouble.
            page.line(f"  {view.error}", "" if view.error.startswith("no") else "red")
            continue
        for note in view.notes:
            page.line(f"  {note}")
        _connections(page, view, verbose)
        _unclaimed(page, view.unclaimed, verbose)
        for limit in view.limits:
            _limit(page, limit, view.joined)
        _waits(page, view.waits, verbose)
    return str(page)


# -- connections ---------------------------------------------------------------


def _connections(page: Page, view: ServerView, verbose: bool) -> None:
    held = [each for each in view.connections if each.holder is not None]
    resting = [each for each in view.connections if each.holder is None]
    shown = list(view.connections) if verbose else [*held, *filter(_restless, resting)]
    shown.sort(key=lambda each: (each.transaction_s or 0.0, each.backend_pid))
    if view.joined:
        page.line(
            f"  {count(len(held), 'connection')} held, and {len(resting)} resting"
            " in the pools of the live workers"
        )
    if shown:
        page.table(
            _COLUMNS,
            [_row(each) for each in shown],
            styles=_STYLES,
            spare=["QUERY", "WAIT"],
            below="VIEW",
        )


def _restless(each: ServerConnection) -> bool:
    """Whether a connection rests in the pool, and not at the server."""
    return each.state not in ("idle", None)


def _row(each: ServerConnection) -> list[str]:
    return [
        number(each.pid),
        str(each.backend_pid),
        " ".join(filter(None, [doer(each.holder), each.holder.at]))
        if each.holder is not None
        else "in the pool",
        each.state or "-",
        each.wait_event or "-",
        duration(each.transaction_s),
        duration(each.query_s),
        ",".join(map(str, each.blocked_by)) or "-",
    ]


def _unclaimed(page: Page, found: Sequence[Unclaimed], verbose: bool) -> None:
    if not found:
        return
    total = sum(each.count for each in found)
    page.line()
    page.line("Of this app, but open in no live worker of this host", "bold")
    shown = found if verbose else found[:_MOST]
    for each in shown:
        state = f", {each.state}" if each.state else ""
        page.parts(
            [
                f"{each.count}× {each.application_name or 'without a name'}",
                f"from {each.client or 'an address that is not shown'},",
                f"the longest for {duration(each.oldest_s)}{state}",
            ],
            indent=2,
        )
    if len(found) > len(shown):
        rest = total - sum(each.count for each in shown)
        page.line(f"  and {count(rest, 'more connection')}: --verbose")


# -- limits --------------------------------------------------------------------

_SCOPES = {
    "server": "the server has",
    "database": "the database's CONNECTION LIMIT is",
    "role": "the role's CONNECTION LIMIT is",
}


def _limit(page: Page, limit: ConnectionLimit, joined: bool) -> None:
    page.line()
    usable = limit.limit - limit.reserved
    if not joined or limit.left is None:
        page.line(
            f"  {_SCOPES[limit.scope]} {usable}, of which {limit.in_use} are in use"
        )
        return
    if limit.may_open is not None:
        may = str(limit.may_open)
    else:
        may = "any number" if limit.unlimited else "an unknown number"
    workers = count(limit.workers, "worker") if limit.workers else "no worker"
    parts = [
        f"{workers} may open {may},",
        f"{_SCOPES[limit.scope]} {usable}",
        f"- {limit.others} used by others = {limit.left} left",
    ]
    over = limit.unlimited or (limit.may_open or 0) > limit.left
    if over and limit.workers:
        parts[-1] += ":"
        parts += ["lower pool_size,", "max_overflow", "or the number of workers"]
        parts.append(f"(at most {limit.left // limit.workers} for each worker fit)")
    page.parts(parts, style="red" if over and limit.workers else "")


# -- lock waits ----------------------------------------------------------------


def _waits(page: Page, waits: Sequence[LockWait], verbose: bool) -> None:
    if not waits:
        return
    page.line()
    page.line("Lock waits, longest first", "bold")
    shown = waits if verbose else waits[:_MOST]
    for wait in shown:
        parts = [*_party(wait.waiting), "waits for a lock held by"]
        for index, blocker in enumerate(wait.blockers):
            if index:
                parts[-1] += ","
                parts.append("and by")
            parts += _blocker(blocker)
        began = f"(its statement began {duration(wait.waiting.query_s)} ago)"
        page.parts([*parts, began], indent=2, style="red")
    if len(waits) > len(shown):
        page.line(f"  and {len(waits) - len(shown)} more: --verbose")


def _party(each: ServerConnection) -> list[str]:
    """Name the worker, the view and its line; a stranger by what the server knows."""
    pid = f"pid {each.pid} " if each.pid is not None else ""
    if each.holder is not None:
        parts = [pid + doer(each.holder), *filter(None, [each.holder.at])]
    elif each.pid is not None:
        parts = [f"{pid}in its pool"]
    elif each.backend_pid == 0:
        return ["a prepared transaction"]
    elif each.kind is not None:
        parts = [each.kind]
    else:
        parts = [each.application_name or "a connection without a name"]
        parts += [f"from {each.client}"] if each.client else []
    return [*parts, f"(backend {each.backend_pid})"]


def _blocker(each: ServerConnection) -> list[str]:
    """Say who holds a lock, and what it does meanwhile."""
    *parts, last = _party(each)
    if each.blocked_by:
        return [*parts, f"{last},", "which waits itself"]
    if each.state is None:
        return [*parts, last]
    age = each.query_s if each.state == "active" else each.state_s
    return [*parts, f"{last},", f"{each.state} for {duration(age)}"]
