"""Frozen readings of pools, sessions and workers, and their JSON.

The names are those of the JSON, schema 1. Seconds are floats and end in ``_s``;
counters since the worker's start end in ``_total``. What a pool class cannot
know is ``None``, never 0. The fields of one reading are read in turn while the
process goes on, so they may differ by what happened in between.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass

from .._buckets import BUCKET_BOUNDS
from ._json import Reading

__all__ = [
    "SCHEMA",
    "BusyMinute",
    "ConfiguredPool",
    "DatabaseTotal",
    "DatabaseURL",
    "Histogram",
    "Holder",
    "LostWorkCount",
    "PoolSnapshot",
    "PoolTimeout",
    "SearchedDirectory",
    "SessionSnapshot",
    "SharedUse",
    "Silent",
    "Survey",
    "ThreadPlace",
    "ViewUse",
    "Waiter",
    "WorkerSnapshot",
]

SCHEMA = 1

WorkerState = t.Literal["ok", "saturated", "wedged", "stopped", "unresponsive", "gone"]
Role = t.Literal["web", "job", "shell", "command", "test"]
SessionState = t.Literal[
    "idle", "begun", "holding", "idle in transaction", "needs rollback"
]


@dataclass(frozen=True, slots=True)
class Histogram(Reading):
    """How long something took: counts by bucket, in seconds."""

    count: int
    sum: float
    p50: float | None
    p95: float | None
    max: float | None
    buckets: tuple[int, ...]
    """Counts under each of :data:`BUCKET_BOUNDS`, then of all above the last."""

    @classmethod
    def of(cls, counts: Sequence[int], total: float, highest: float) -> Histogram:
        """Make one from raw counts; a quantile is interpolated in its bucket."""
        count = sum(counts)
        return cls(
            count=count,
            sum=total,
            p50=_quantile(counts, count, highest, 0.50),
            p95=_quantile(counts, count, highest, 0.95),
            max=highest if count else None,
            buckets=tuple(counts),
        )

    @classmethod
    def merged(cls, found: Iterable[Histogram | None]) -> Histogram:
        """Add up several, such as all workers'; what is not known adds nothing."""
        known = [each for each in found if each is not None]
        size = max((len(each.buckets) for each in known), default=1)
        counts = [0] * size
        for each in known:
            for index, inside in enumerate(each.buckets):
                counts[index] += inside
        highest = max((each.max or 0.0 for each in known), default=0.0)
        return cls.of(counts, sum(each.sum for each in known), highest)


@dataclass(frozen=True, slots=True)
class DatabaseURL(Reading):
    """The parts of a database URL that are safe to show, and no others."""

    drivername: str
    host: str | None = None
    port: int | None = None
    database: str | None = None

    def __str__(self) -> str:
        port = f":{self.port}" if self.port is not None else ""
        return f"{self.drivername}://{self.host or ''}{port}/{self.database or ''}"


@dataclass(frozen=True, slots=True)
class Holder(Reading):
    """Who has a connection checked out."""

    connection: int | None
    backend_pid: int | None
    held_s: float
    endpoint: str | None = None
    method: str | None = None
    rule: str | None = None
    command: str | None = None
    thread: str | None = None
    thread_alive: bool | None = None
    request_over: bool | None = None
    """The request, command or context that checked it out has ended."""
    in_transaction: bool | None = None
    idle_in_transaction_s: float | None = None
    running_s: float | None = None
    """For how long the statement that runs right now has been running."""
    at: str | None = None
    stack: tuple[str, ...] | None = None
    session: int | None = None
    sql: str | None = None


@dataclass(frozen=True, slots=True)
class Waiter(Reading):
    """Who waits for a connection."""

    waited_s: float
    endpoint: str | None = None
    method: str | None = None
    rule: str | None = None
    command: str | None = None
    thread: str | None = None
    at: str | None = None
    self_deadlock: bool = False
    """The same thread holds a connection of this pool while it waits."""
    holds_from: str | None = None
    """The line where it checked that one out, if it is known."""


@dataclass(frozen=True, slots=True)
class PoolTimeout(Reading):
    """A checkout that gave up, and who held the connections at that moment."""

    at_time: str
    waited_s: float
    endpoint: str | None = None
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class ViewUse(Reading):
    """What one view, or command, had of a pool's time."""

    endpoint: str | None
    method: str | None
    rule: str | None
    command: str | None
    checkouts_total: int
    held_s: float
    """Seconds for which it held connections, since the start."""
    share: float | None
    """Of everybody's seconds, from 0 to 1."""
    checkouts_60s: int
    held_60s: float
    """Seconds for which it held connections, in the last minute."""
    share_60s: float | None


@dataclass(frozen=True, slots=True)
class BusyMinute(Reading):
    """The minute since the start that had most of a pool."""

    at: str
    """When it ended."""
    span_s: float
    """Less than a minute for a process that is younger."""
    checkouts: int
    held_s: float
    """Seconds of the holds that ended in it."""
    waited_s: float
    timeouts: int


@dataclass(frozen=True, slots=True)
class PoolSnapshot(Reading):
    """One reading of the pool of one bind."""

    bind: str
    pool_class: str
    url: DatabaseURL
    size: int | None
    max: int | None
    unlimited: bool | None
    pool_timeout: float | None
    open: int
    used: int
    idle: int | None
    overflow: int | None
    pending: int | None
    used_pct: float | None
    max_wait_s: float | None
    held_long: int
    checkouts_total: int
    connects_total: int
    timeouts_total: int | None
    timeouts_60s: int | None
    invalidated_total: int
    wait_s: Histogram | None
    hold_s: Histogram
    create_s: Histogram
    window_s: float = 0.0
    """What ``_60s`` stands for exactly: up to 70 seconds, in steps of ten."""
    wait_60s: Histogram | None = None
    hold_60s: Histogram | None = None
    create_60s: Histogram | None = None
    invalidated_60s: int = 0
    invalidated_age_s: Histogram | None = None
    """How old connections were when they died."""
    used_max: int = 0
    """The most that were in use at a time, since the start."""
    used_max_60s: int = 0
    pending_max: int | None = None
    pending_max_60s: int | None = None
    busiest: BusyMinute | None = None
    wedged: bool = False
    holders: tuple[Holder, ...] = ()
    waiters: tuple[Waiter, ...] = ()
    recent_timeouts: tuple[PoolTimeout, ...] = ()
    views: tuple[ViewUse, ...] = ()
    """The views that had most of its time, since the start or in the last minute."""
    backend_pids: tuple[int, ...] = ()
    """The server's process ids of all open connections, as far as they are known."""


@dataclass(frozen=True, slots=True)
class ConfiguredPool(Reading):
    """A pool as this process would make it, when no worker can be asked."""

    bind: str
    pool_class: str
    url: DatabaseURL
    size: int | None
    max: int | None
    unlimited: bool | None
    pool_timeout: float | None


@dataclass(frozen=True, slots=True)
class SessionSnapshot(Reading):
    """One open session."""

    session: int
    name: str
    scope: str
    endpoint: str | None = None
    method: str | None = None
    rule: str | None = None
    command: str | None = None
    thread: str | None = None
    thread_alive: bool | None = None
    age_s: float = 0.0
    state: SessionState = "idle"
    connections: tuple[int, ...] = ()
    new: int | None = None
    deleted: int | None = None
    identity: int | None = None
    idle_in_transaction_s: float | None = None


@dataclass(frozen=True, slots=True)
class LostWorkCount(Reading):
    """What the scopes of one view, or command, lost since the start."""

    endpoint: str | None
    method: str | None
    rule: str | None
    command: str | None
    scopes_total: int
    """How many ended well, but with changes that nobody committed."""
    objects: Mapping[str, int]
    """Changes that were lost, by model or table."""
    last_at: str


@dataclass(frozen=True, slots=True)
class ThreadPlace(Reading):
    """A thread, and the line of the application's code that it was at."""

    thread: str
    at: str | None = None


@dataclass(frozen=True, slots=True)
class SharedUse(Reading):
    """Two threads that used one session at the same time."""

    at_time: str
    endpoint: str | None
    method: str | None
    rule: str | None
    command: str | None
    refused: bool
    """The second got an error; else they share a transaction."""
    threads: tuple[ThreadPlace, ...]


@dataclass(frozen=True, slots=True)
class WorkerSnapshot(Reading):
    """One process: its pools and its open sessions."""

    id: str
    pid: int
    ppid: int
    role: Role
    state: WorkerState
    started_at: str
    age_s: float
    server: str | None
    source: t.Literal["live", "last"]
    snapshot_at: str
    pools: tuple[PoolSnapshot, ...]
    sessions: tuple[SessionSnapshot, ...]
    lost_work: tuple[LostWorkCount, ...] = ()
    recent_shared: tuple[SharedUse, ...] = ()
    truncated: bool = False
    uid: int | None = None
    host: str = ""


@dataclass(frozen=True, slots=True)
class Silent(Reading):
    """A worker that is there, but gave no usable answer."""

    id: str
    pid: int
    host: str
    reason: str


@dataclass(frozen=True, slots=True)
class SearchedDirectory(Reading):
    """Where workers were looked for, and what stood in the way."""

    dir: str
    error: str | None = None
    denied: bool = False
    """It belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class DatabaseTotal(Reading):
    """One database, summed over all live workers."""

    url: DatabaseURL
    workers: int
    open: int
    used: int
    idle: int | None
    pending: int | None
    max: int | None
    """The worst case: the sum of what each pool may open."""


@dataclass(frozen=True, slots=True)
class Survey(Reading):
    """What every live worker answered, and who stayed silent."""

    app: str
    host: str
    collected_at: str
    versions: Mapping[str, str]
    searched: tuple[SearchedDirectory, ...] = ()
    workers: tuple[WorkerSnapshot, ...] = ()
    silent: tuple[Silent, ...] = ()
    configured: tuple[ConfiguredPool, ...] = ()
    schema: int = SCHEMA

    @property
    def live(self) -> tuple[WorkerSnapshot, ...]:
        """The workers that answered just now."""
        return tuple(w for w in self.workers if w.source == "live")

    @property
    def totals(self) -> tuple[DatabaseTotal, ...]:
        """Sums over the live workers: per database, never across databases."""
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
        # super() does not work in a dataclass with slots, which is a new class.
        data = Reading.to_dict(self)
        data["totals"] = [total.to_dict() for total in self.totals]
        schema = data.pop("schema")
        return {"schema": schema, **data}


def _sum(values: t.Iterable[int | None]) -> int | None:
    """Add up; unknown as soon as one of them is."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _quantile(
    counts: Sequence[int], count: int, highest: float, q: float
) -> float | None:
    if not count:
        return None
    rank = q * count
    below = 0
    for index, inside in enumerate(counts):
        if inside and below + inside >= rank:
            lower = BUCKET_BOUNDS[index - 1] if index else 0.0
            last = index >= len(BUCKET_BOUNDS)
            upper = highest if last else min(BUCKET_BOUNDS[index], highest)
            return min(lower + (upper - lower) * (rank - below) / inside, highest)
        below += inside
    return highest
