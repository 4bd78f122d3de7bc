"""The readings of pools, sessions and workers, and what ``db.workers()`` returns."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from dataclasses import dataclass

from ._histogram import Histogram
from ._json import Reading

SCHEMA = 1

WorkerState = t.Literal["ok", "saturated", "wedged", "stopped", "unresponsive", "gone"]
Role = t.Literal["web", "job", "shell", "command", "test"]
SessionState = t.Literal[
    "idle", "begun", "holding", "idle in transaction", "needs rollback"
]
HolderPlace = t.Literal["now", "checkout", "view"]


@dataclass(frozen=True, slots=True)
class DatabaseURL(Reading):
    """The parts of a database URL that are safe to show, and no others."""

    drivername: str
    """Dialect and driver, such as ``postgresql+psycopg``."""
    host: str | None = None
    """Null if the URL names none."""
    port: int | None = None
    """Null if the URL names none."""
    database: str | None = None
    """The database's name, or the path of a SQLite file; null if the URL has none."""

    def __str__(self) -> str:
        port = f":{self.port}" if self.port is not None else ""
        return f"{self.drivername}://{self.host or ''}{port}/{self.database or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(Reading):
    """The request, command or job behind a reading.

    A request has an endpoint, a method and a rule; a command or job has a name. All
    are null for other work, such as a thread of the application's own.
    """

    endpoint: str | None = None
    """The endpoint of the view, such as ``orders.show``."""
    method: str | None = None
    """The HTTP method, such as ``GET``."""
    rule: str | None = None
    """The URL rule, such as ``/orders/<int:id>``; never the path itself."""
    command: str | None = None
    """The name of the command, without its arguments."""
    job: str | None = None
    """What a library runs: ``task orders.send`` of Celery, ``job nightly`` of
    APScheduler, ``event join`` of Flask-SocketIO."""

    @property
    def who(self) -> str | None:
        """The endpoint, the job or the command."""
        return self.endpoint or self.job or self.command


@dataclass(frozen=True, slots=True)
class Holder(Origin):
    """A connection that is checked out, and the :class:`Origin` that holds it."""

    connection: int | None
    """The connection's number within its worker."""
    backend_pid: int | None
    """The process or thread ID at the database server; null if the driver does not
    say."""
    held_s: float
    """Seconds since it was checked out."""
    thread: str | None = None
    """The name of the thread that checked it out."""
    thread_alive: bool | None = None
    """Whether that thread still runs."""
    request_over: bool | None = None
    """Whether the request, command or context that checked it out has ended. If so,
    the connection is leaked."""
    in_transaction: bool | None = None
    """Whether a transaction is open; null if no statement was seen, as on a raw
    driver connection."""
    idle_in_transaction_s: float | None = None
    """Seconds since its last statement ended; null if a statement is running or no
    transaction is open."""
    running_s: float | None = None
    """Seconds since the running statement was sent; null if none is running."""
    at: str | None = None
    """``path:line function``, in the application's own code and relative to its root.
    Null if unknown."""
    at_is: HolderPlace | None = None
    """What ``at`` is: ``now``, where the thread is now; ``checkout``, where the
    connection was checked out; ``view``, where the view is defined. Null if ``at``
    is."""
    stack: tuple[str, ...] | None = None
    """Lines of the application from which it was checked out, innermost first; null
    unless ``SCOPEDSESSION_STACKS`` is on, or its view has leaked one before."""
    session: int | None = None
    """The number of the session that uses it, see :class:`SessionSnapshot`; null if
    none does."""
    sql: str | None = None
    """The text of its last statement, without parameters; null unless
    ``SCOPEDSESSION_SHOW_SQL`` is on."""

    @property
    def is_leaked(self) -> bool:
        """Whether its request is over or its thread has ended.

        To find the leaks of this process::

            pools = db.snapshot().pools
            [it.at for pool in pools for it in pool.holders if it.is_leaked]
        """
        return bool(self.request_over) or self.thread_alive is False


@dataclass(frozen=True, slots=True)
class Waiter(Origin):
    """A thread that waits for a connection, and its :class:`Origin`."""

    waited_s: float
    """Seconds since it asked for the connection."""
    thread: str | None = None
    """The thread's name."""
    at: str | None = None
    """Where the thread is, as in :class:`Holder`; null if unknown."""
    self_deadlock: bool = False
    """Whether this thread holds a connection of the same pool while it waits."""
    holds_from: str | None = None
    """Where it checked that connection out; null if not recorded."""


@dataclass(frozen=True, slots=True)
class PoolTimeout(Reading):
    """A checkout that timed out, and the holders at that moment."""

    at_time: str
    """When it timed out, RFC 3339 in UTC."""
    waited_s: float
    """Seconds that it waited."""
    endpoint: str | None = None
    """The endpoint of the view that waited; null outside a request."""
    holders: tuple[Holder, ...] = ()
    """The connections that were checked out then, longest first."""


@dataclass(frozen=True, slots=True)
class ViewUse(Origin):
    """How much of a pool's time one view, command or job (its :class:`Origin`) used."""

    checkouts_total: int
    """Checkouts since the worker's start."""
    held_s: float
    """Seconds for which it held connections, since the worker's start."""
    share: float | None
    """Its part of the seconds of all views, from 0 to 1; null if nothing was held."""
    checkouts_60s: int
    """Checkouts in the last minute."""
    held_60s: float
    """Seconds for which it held connections, in the last minute."""
    share_60s: float | None
    """Its part of these, from 0 to 1; null if nothing was held in the last minute."""
    statements_total: int | None = None
    """Statements that it sent since the worker's start; null from a worker that does
    not count them."""
    statements_60s: int | None = None
    """Statements on connections that it returned in the last minute or still holds;
    null likewise."""


@dataclass(frozen=True, slots=True)
class BusyMinute(Reading):
    """The minute since the worker's start in which a pool was used most."""

    at: str
    """When that minute ended, RFC 3339 in UTC."""
    span_s: float
    """Its length in seconds; less than 60 if the worker is younger."""
    checkouts: int
    """Checkouts in it."""
    held_s: float
    """The sum of the holds that ended in it, in seconds."""
    waited_s: float
    """The sum of the waits that ended in it, in seconds."""
    timeouts: int
    """Checkouts that timed out in it."""


@dataclass(frozen=True, slots=True)
class PoolSnapshot(Reading):
    """One reading of the pool of one bind."""

    bind: str
    """The name of the bind."""
    pool_class: str
    """The name of SQLAlchemy's pool class, such as ``QueuePool``."""
    url: DatabaseURL
    """Where the database is."""
    size: int | None
    """``pool_size``; null if the class has none."""
    max: int | None
    """The most connections that it may open; null if unlimited or unknown."""
    unlimited: bool | None
    """Whether it may open any number of connections; null if unknown."""
    pool_timeout: float | None
    """Seconds after which a waiting checkout times out; null if the class has no such
    limit."""
    open: int
    """Open connections, whether checked out or idle."""
    used: int
    """Checked out connections."""
    idle: int | None
    """Open connections in the pool, ready to be checked out."""
    overflow: int | None
    """Open connections beyond ``size``; null if the class has no overflow."""
    pending: int | None
    """Threads that wait for a connection; null if the pool cannot tell."""
    used_pct: float | None
    """``used`` as a percentage of ``max``; null without a ``max``."""
    max_wait_s: float | None
    """Seconds for which the longest current waiter has waited, 0 without waiters;
    null if the pool cannot tell."""
    held_long: int
    """Connections that have been checked out for longer than
    ``SCOPEDSESSION_HELD_LONG_AFTER``."""
    checkouts_total: int
    """Checkouts since the worker's start, without those that timed out."""
    connects_total: int
    """Connections opened since the worker's start."""
    timeouts_total: int | None
    """Checkouts that timed out since the worker's start; null if the pool cannot
    tell."""
    timeouts_60s: int | None
    """Checkouts that timed out in the last 60 seconds; null if the pool cannot
    tell."""
    invalidated_total: int
    """Connections invalidated since the worker's start, as they were broken."""
    wait_s: Histogram | None
    """How long checkouts waited, since the worker's start; null if the pool cannot
    tell."""
    hold_s: Histogram
    """How long connections were checked out, since the worker's start. A connection
    counts when it is returned."""
    create_s: Histogram
    """How long it took to open connections, since the worker's start."""
    window_s: float = 0.0
    """The exact length in seconds of the minute that ``_60s`` stands for: up to 70,
    in intervals of ten."""
    wait_60s: Histogram | None = None
    """``wait_s`` of the last minute; null if the pool cannot tell."""
    hold_60s: Histogram | None = None
    """``hold_s`` of the last minute; null from a worker that does not measure it."""
    create_60s: Histogram | None = None
    """``create_s`` of the last minute; null from a worker that does not measure it."""
    invalidated_60s: int = 0
    """Connections invalidated in the last minute."""
    invalidated_age_s: Histogram | None = None
    """How old connections were when they were invalidated, since the worker's start;
    null from a worker that does not measure it."""
    used_max: int = 0
    """The most that were checked out at a time, since the worker's start."""
    used_max_60s: int = 0
    """The most that were checked out at a time, in the last minute."""
    pending_max: int | None = None
    """The most threads that waited at a time, since the worker's start; null if the
    pool cannot tell waiting from connecting."""
    pending_max_60s: int | None = None
    """The same, in the last minute."""
    busiest: BusyMinute | None = None
    """The busiest minute; null in a worker's first ten seconds."""
    wedged: bool = False
    """Whether a thread has waited for 2 seconds or longer, and no connection was
    returned meanwhile."""
    holders: tuple[Holder, ...] = ()
    """The connections that are checked out, longest first."""
    waiters: tuple[Waiter, ...] = ()
    """The threads that wait, longest first."""
    recent_timeouts: tuple[PoolTimeout, ...] = ()
    """The last five checkouts that timed out."""
    views: tuple[ViewUse, ...] = ()
    """The views, commands and jobs that used most of its time, since the start or in
    the last minute, at most 20; then at most 5 others that sent most statements."""
    backend_pids: tuple[int, ...] = ()
    """The process or thread IDs at the server of all open connections, as far as the
    driver says."""
    leaked: int | None = None
    """Connections that are checked out although their request is over or their thread
    has ended; null from a worker that does not count them."""


@dataclass(frozen=True, slots=True)
class ConfiguredPool(Reading):
    """A pool as this process would make it, shown when no worker has answered.

    The fields mean the same as in :class:`PoolSnapshot`.
    """

    bind: str
    """The name of the bind."""
    pool_class: str
    """The name of SQLAlchemy's pool class."""
    url: DatabaseURL
    """Where the database is."""
    size: int | None
    """``pool_size``; null if the class has none."""
    max: int | None
    """The most connections that it may open; null if unlimited or unknown."""
    unlimited: bool | None
    """Whether it may open any number of connections; null if unknown."""
    pool_timeout: float | None
    """Seconds after which a checkout times out; null if the class has no such
    limit."""


@dataclass(frozen=True, slots=True)
class SessionSnapshot(Origin):
    """One open session, and the :class:`Origin` that opened it."""

    session: int
    """The session's number within its worker."""
    name: str
    """The bind that it was asked for: ``default`` for ``db.session``; empty for one
    that ``db.sessionmaker`` made."""
    scope: str
    """What it belongs to: ``app context``, ``thread``, ``custom`` (a ``scopefunc``),
    or ``none`` for one that ``db.sessionmaker`` made."""
    thread: str | None = None
    """The name of the thread that opened it."""
    thread_alive: bool | None = None
    """Whether that thread still runs."""
    age_s: float = 0.0
    """Seconds since its scope first needed a session or a connection."""
    state: SessionState = "idle"
    """``idle``, no transaction; ``begun``, a transaction without a connection;
    ``holding``, it has a connection, and a statement is running or no transaction is
    open at the database; ``idle in transaction``, one is open and no statement runs;
    ``needs rollback``, a flush failed."""
    statements: int | None = None
    """Statements sent so far in this session's scope; null where not counted."""
    connections: tuple[int, ...] = ()
    """The numbers of the connections that it holds, see :class:`Holder`."""
    new: int | None = None
    """Objects that are added but not flushed; null if they could not be counted while
    its thread changed them."""
    deleted: int | None = None
    """Objects that are marked as deleted but not flushed; null likewise."""
    identity: int | None = None
    """Objects in its identity map; null likewise."""
    idle_in_transaction_s: float | None = None
    """Seconds since its last statement ended; null if a statement is running or no
    transaction is open."""
    requests: int | None = None
    """Requests that have shared this session, because they ran inside an application
    context that was active before; null if none did."""


@dataclass(frozen=True, slots=True)
class LostWorkCount(Origin):
    """Changes never committed by one view, command or job (its :class:`Origin`)."""

    scopes_total: int
    """Scopes that ended well but with uncommitted changes, since the worker's
    start."""
    objects: Mapping[str, int]
    """How many changes were lost, by model or table."""
    last_at: str
    """When that happened last, RFC 3339 in UTC."""


@dataclass(frozen=True, slots=True)
class ThreadPlace(Reading):
    """A thread, and the line of the application's code that it was at."""

    thread: str
    """The thread's name."""
    at: str | None = None
    """``path:line function``, relative to the application's root; null if unknown."""


@dataclass(frozen=True, slots=True)
class SharedUse(Origin):
    """Two threads that used one session at the same time, and its :class:`Origin`."""

    at_time: str
    """When that was noticed, RFC 3339 in UTC."""
    refused: bool
    """Whether the second thread got an error. If not, the two share a transaction."""
    threads: tuple[ThreadPlace, ...]
    """The two threads."""


@dataclass(frozen=True, slots=True)
class WorkerSnapshot(Reading):
    """One process: its pools and its open sessions."""

    id: str
    """The worker's ID, unique on its host: the process ID and random characters."""
    pid: int
    """The process ID."""
    ppid: int
    """The process ID of its parent; 0 where the system has no such thing."""
    role: Role
    """``web`` serves requests; the others are given to ``serve_control()``."""
    state: WorkerState
    """``ok``; ``saturated``, all connections of a pool are checked out; ``wedged``, a
    thread waits and no connection is returned; ``stopped`` by a signal;
    ``unresponsive``, alive without an answer; ``gone``, ended."""
    started_at: str
    """When it started, RFC 3339 in UTC."""
    age_s: float
    """Seconds since its start."""
    server: str | None
    """The WSGI server, such as ``gunicorn/23.0``; null if it does not say."""
    source: t.Literal["live", "last"]
    """``live`` for an answer of now, ``last`` for the last snapshot that a worker
    wrote before it ended or became unresponsive."""
    snapshot_at: str
    """When the snapshot was taken, RFC 3339 in UTC."""
    pools: tuple[PoolSnapshot, ...]
    """Its pools, one for each bind."""
    sessions: tuple[SessionSnapshot, ...]
    """Its open sessions, oldest first."""
    lost_work: tuple[LostWorkCount, ...] = ()
    """Which views lost changes, the latest first; at most 20."""
    recent_shared: tuple[SharedUse, ...] = ()
    """The last five sessions that two threads used at the same time."""
    truncated: bool = False
    """Whether some pools, holders, waiters or sessions were left out."""
    sessions_open: int | None = None
    """Open sessions, those that were left out included; null if tracking is off."""
    lost_work_total: int | None = None
    """Scopes that ended well but with uncommitted changes, since the worker's start,
    in all views; null if ``SCOPEDSESSION_LOST_WORK`` is ``"ignore"``."""
    scope_s: Histogram | None = None
    """How long the requests, commands and jobs that have ended lasted, from their first
    use of a session or connection on; null if tracking is off."""
    scope_statements: Histogram | None = None
    """How many statements each of them sent; null if tracking is off. The units of its
    fields are statements."""
    uid: int | None = None
    """The ID of the user who runs it; null in ``db.snapshot()``."""
    host: str = ""
    """The name of its host."""


@dataclass(frozen=True, slots=True)
class Silent(Reading):
    """A live worker that gave no usable answer."""

    id: str
    """The worker's ID."""
    pid: int
    """The process ID."""
    host: str
    """The name of its host."""
    reason: str
    """Why there is no answer, in a few words."""


@dataclass(frozen=True, slots=True)
class SearchedDirectory(Reading):
    """A directory in which workers were looked for."""

    dir: str
    """Its path."""
    error: str | None = None
    """Why it could not be read; null if it could."""
    denied: bool = False
    """Whether it belongs to another user, so that permission is what is missing."""


@dataclass(frozen=True, slots=True)
class DatabaseTotal(Reading):
    """One database, summed over all live workers."""

    url: DatabaseURL
    """Where the database is."""
    workers: int
    """Live workers with a pool for it."""
    open: int
    """Open connections."""
    used: int
    """Checked out connections."""
    idle: int | None
    """Idle connections; null if unknown for one of the pools."""
    pending: int | None
    """Threads that wait; null if unknown for one of the pools."""
    max: int | None
    """The worst case: the sum of what each pool may open; null if one of them is
    unlimited or unknown."""


@dataclass(frozen=True, slots=True)
class Survey(Reading):
    """The answers of all live workers, and which workers gave none."""

    app: str
    """The name of the deployment; empty if only a directory was given."""
    host: str
    """The host on which they were asked."""
    collected_at: str
    """When they were asked, RFC 3339 in UTC."""
    versions: Mapping[str, str]
    """The versions of this package, SQLAlchemy, Flask and Python."""
    searched: tuple[SearchedDirectory, ...] = ()
    """The directories in which workers were looked for."""
    workers: tuple[WorkerSnapshot, ...] = ()
    """The workers that answered, and the last snapshots of others."""
    silent: tuple[Silent, ...] = ()
    """The workers that gave no usable answer."""
    configured: tuple[ConfiguredPool, ...] = ()
    """This process's own pools; only if no worker has answered."""
    schema: int = SCHEMA
    """The version of the JSON."""

    @property
    def live(self) -> tuple[WorkerSnapshot, ...]:
        """The workers that answered now."""
        return tuple(w for w in self.workers if w.source == "live")

    @property
    def totals(self) -> tuple[DatabaseTotal, ...]:
        """Sums over the live workers, for each database; never across databases."""
        grouped: dict[DatabaseURL, list[PoolSnapshot]] = {}
        for worker in self.live:
            for pool in worker.pools:
                grouped.setdefault(pool.url, []).append(pool)
        return tuple(
            DatabaseTotal(
                url=url,
                workers=len({w.id for w in self.live for p in w.pools if p.url == url}),
                open=sum(p.open for p in pools),
                used=sum(p.used for p in pools),
                idle=_sum(p.idle for p in pools),
                pending=_sum(p.pending for p in pools),
                max=_sum(p.max for p in pools),
            )
            for url, pools in grouped.items()
        )

    def to_dict(self) -> dict[str, t.Any]:
        """Return the JSON document of ``--json``."""
        # A dataclass with slots is a new class, for which super() does not work.
        data = Reading.to_dict(self)
        data["totals"] = [total.to_dict() for total in self.totals]
        schema = data.pop("schema")
        return {"schema": schema, **data}


def _sum(values: t.Iterable[int | None]) -> int | None:
    """Add up; the sum is unknown if one of the values is."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
