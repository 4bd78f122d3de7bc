"""What ``pool-status --server`` adds."""

from __future__ import annotations

from collections.abc import Sequence

from .._format import count
from .._format import duration
from .._format import number
from ..snapshot._servers import ConnectionLimit
from ..snapshot._servers import LockWait
from ..snapshot._servers import ServerConnection
from ..snapshot._servers import ServerView
from ..snapshot._servers import Unclaimed
from .page import Page
from .sections import label
from .sections import not_shown
from .sections import place_of

#: Dialects of databases whose server can be asked.
_SERVERS = frozenset({"postgresql", "mysql", "mariadb"})

_COLUMNS = (
    *(">PID", ">BACKEND", "VIEW", "STATE", "WAIT", ">TX", ">QUERY", "BLOCKED BY"),
)
_STYLES = {"idle in transaction": "yellow", "idle in transaction (aborted)": "red"}

#: Groups of unclaimed connections, and lock waits, shown without ``--verbose``.
_MOST = 10


def render_servers(views: Sequence[ServerView], *, verbose: bool = False) -> str:
    """Return what the servers report, with the problems of each last."""
    page = Page()
    for view in views:
        page.line()
        version = f" {view.version}" if view.version else ""
        page.parts(
            [f"Server{version} of {view.url}", f"· bind {', '.join(view.binds)}"]
        )
        if view.error is not None:
            # Not an error where there is no server to ask, as with SQLite.
            asked = view.url.drivername.partition("+")[0] in _SERVERS
            page.line(f"  {view.error}", "red" if asked else "")
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
    idle = [each for each in view.connections if each.holder is None]
    # A connection that is idle in the pool should be idle at the server, too.
    odd = [each for each in idle if each.state not in ("idle", None)]
    shown = sorted(
        view.connections if verbose else [*held, *odd],
        key=lambda each: (each.transaction_s or 0.0, each.backend_pid),
    )
    if view.joined:
        page.line(
            f"  {count(len(held), 'connection')} checked out and {len(idle)} idle"
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


def _row(each: ServerConnection) -> list[str]:
    return [
        number(each.pid),
        str(each.backend_pid),
        " ".join(filter(None, [label(each.holder), place_of(each.holder)]))
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
    page.title("Connections of this app that no live worker on this host has open")
    shown = found if verbose else found[:_MOST]
    for each in shown:
        state = f", {each.state}" if each.state else ""
        page.parts(
            [
                f"{each.count}× {each.application_name or 'unnamed'}",
                f"from {each.client or 'a hidden address'},",
                f"longest {duration(each.oldest_s)}{state}",
            ],
            indent=2,
        )
    not_shown(page, sum(each.count for each in found[len(shown) :]))


# -- limits --------------------------------------------------------------------

_LIMITS = {
    "server": "the server's {} connections",
    "database": "the database's CONNECTION LIMIT of {}",
    "role": "the role's CONNECTION LIMIT of {}",
}


def _limit(page: Page, limit: ConnectionLimit, joined: bool) -> None:
    page.line()
    accepted = _LIMITS[limit.scope].format(limit.limit - limit.reserved)
    if not joined or limit.left is None:
        page.line(f"  {limit.in_use} of {accepted} are in use")
        return
    may = number(limit.may_open) if limit.may_open is not None else "an unknown number"
    if limit.unlimited:
        may = "any number"
    over = bool(limit.workers) and (
        limit.unlimited or (limit.may_open or 0) > limit.left
    )
    parts = [
        f"{count(limit.workers, 'worker')} may open {may};",
        f"{limit.left} of {accepted} are left",
        f"({limit.others} used by others)",
    ]
    if over:
        parts[-1] += ":"
        parts += ["lower pool_size,", "max_overflow", "or the number of workers"]
        parts.append(f"(at most {limit.left // limit.workers} for each worker fit)")
    page.parts(parts, style="red" if over else "")


# -- lock waits ----------------------------------------------------------------


def _waits(page: Page, waits: Sequence[LockWait], verbose: bool) -> None:
    if not waits:
        return
    page.title("Lock waits, longest first")
    shown = waits if verbose else waits[:_MOST]
    for wait in shown:
        parts = [*_name(wait.waiting), "waits for a lock held by"]
        for index, blocker in enumerate(wait.blockers):
            if index:
                parts[-1] += ","
                parts.append("and by")
            parts += _blocker(blocker)
        began = f"(the waiting statement began {duration(wait.waiting.query_s)} ago)"
        page.parts([*parts, began], indent=2, style="red")
    not_shown(page, len(waits) - len(shown))


def _name(each: ServerConnection) -> list[str]:
    """Name a connection by worker, view and line, or by what the server knows."""
    pid = f"pid {each.pid} " if each.pid is not None else ""
    if each.holder is not None:
        parts = [pid + label(each.holder), *filter(None, [place_of(each.holder)])]
    elif each.pid is not None:
        parts = [f"{pid}in its pool"]
    elif each.backend_pid == 0:
        return ["a prepared transaction"]
    elif each.kind is not None:
        parts = [each.kind]
    else:
        parts = [each.application_name or "an unnamed connection"]
        parts += [f"from {each.client}"] if each.client else []
    return [*parts, f"(backend {each.backend_pid})"]


def _blocker(each: ServerConnection) -> list[str]:
    """Name the connection that holds a lock, and what it does meanwhile."""
    *parts, last = _name(each)
    if each.blocked_by:
        return [*parts, f"{last},", "which is waiting itself"]
    if each.state is None:
        return [*parts, last]
    age = each.query_s if each.state == "active" else each.state_s
    return [*parts, f"{last},", f"{each.state} for {duration(age)}"]
