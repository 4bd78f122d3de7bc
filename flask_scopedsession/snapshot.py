"""Frozen readings of pools, sessions and workers, and their JSON.

The names are those of the JSON, schema 1. Seconds are floats and end in ``_s``;
counters since the worker's start end in ``_total``. What a pool class cannot
know is ``None``, never 0. The fields of one reading are read in turn while the
process goes on, so they may differ by what happened in between.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing as t
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

if t.TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "SCHEMA",
    "ConfiguredPool",
    "DatabaseTotal",
    "DatabaseURL",
    "Histogram",
    "Holder",
    "PoolSnapshot",
    "PoolTimeout",
    "SearchedDirectory",
    "SessionSnapshot",
    "Silent",
    "Survey",
    "Waiter",
    "WorkerSnapshot",
]

SCHEMA = 1

#: Upper bounds, in seconds, of a histogram's buckets; a last one takes the rest.
BUCKET_BOUNDS: tuple[float, ...] = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
)

WorkerState = t.Literal["ok", "saturated", "wedged", "stopped", "unresponsive", "gone"]
Role = t.Literal["web", "job", "shell", "command", "test"]
SessionState = t.Literal[
    "idle", "begun", "holding", "idle in transaction", "needs rollback"
]


class _Reading:
    """What all readings can: become JSON-ready, and be made from it."""

    __slots__ = ()

    def to_dict(self) -> dict[str, t.Any]:
        """Return plain dicts, lists and scalars, ready for :func:`json.dumps`."""
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(t.cast(t.Any, self))
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Make a reading from what :meth:`to_dict` gave; unknown keys are ignored.

        :raises ValueError: A field is missing or of another type.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} is not an object")  # noqa: TRY004
        values = {}
        for name, (kind, required) in _fields(t.cast(t.Any, cls)).items():
            if name in data:
                values[name] = _typed(kind, data[name], f"{cls.__name__}.{name}")
            elif required:
                raise ValueError(f"{cls.__name__}.{name} is missing")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Histogram(_Reading):
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


@dataclass(frozen=True, slots=True)
class DatabaseURL(_Reading):
    """The parts of a database URL that are safe to show, and no others."""

    drivername: str
    host: str | None = None
    port: int | None = None
    database: str | None = None

    def __str__(self) -> str:
        port = f":{self.port}" if self.port is not None else ""
        return f"{self.drivername}://{self.host or ''}{port}/{self.database or ''}"


@dataclass(frozen=True, slots=True)
class Holder(_Reading):
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
    at: str | None = None
    stack: tuple[str, ...] | None = None
    session: int | None = None
    sql: str | None = None


@dataclass(frozen=True, slots=True)
class Waiter(_Reading):
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


@dataclass(frozen=True, slots=True)
class PoolTimeout(_Reading):
    """A checkout that gave up, and who held the connections at that moment."""

    at_time: str
    waited_s: float
    endpoint: str | None = None
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolSnapshot(_Reading):
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
    wedged: bool = False
    holders: tuple[Holder, ...] = ()
    waiters: tuple[Waiter, ...] = ()
    recent_timeouts: tuple[PoolTimeout, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfiguredPool(_Reading):
    """A pool as this process would make it, when no worker can be asked."""

    bind: str
    pool_class: str
    url: DatabaseURL
    size: int | None
    max: int | None
    unlimited: bool | None
    pool_timeout: float | None


@dataclass(frozen=True, slots=True)
class SessionSnapshot(_Reading):
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
class WorkerSnapshot(_Reading):
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
    truncated: bool = False
    uid: int | None = None
    host: str = ""


@dataclass(frozen=True, slots=True)
class Silent(_Reading):
    """A worker that is there, but gave no usable answer."""

    id: str
    pid: int
    host: str
    reason: str


@dataclass(frozen=True, slots=True)
class SearchedDirectory(_Reading):
    """Where workers were looked for, and what stood in the way."""

    dir: str
    error: str | None = None
    denied: bool = False
    """It belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class DatabaseTotal(_Reading):
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
class Survey(_Reading):
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
        data = _Reading.to_dict(self)
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


# -- JSON, both ways -----------------------------------------------------------


def _plain(value: t.Any) -> t.Any:
    if isinstance(value, _Reading):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, float):
        return round(value, 6)
    return clean(value) if isinstance(value, str) else value


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def clean(text: str) -> str:
    """Strip what could steer a terminal: controls, escapes, bidi marks."""
    return _UNPRINTABLE.sub("", text)


@cache
def _fields(cls: type) -> dict[str, tuple[t.Any, bool]]:
    hints = t.get_type_hints(cls)
    return {
        field.name: (hints[field.name], field.default is dataclasses.MISSING)
        for field in dataclasses.fields(cls)
    }


def _finite(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    return None


def _typed(kind: t.Any, value: t.Any, where: str) -> t.Any:
    """Check one value that came from another process against its annotation."""
    origin = t.get_origin(kind)
    arguments = t.get_args(kind)
    if origin in (t.Union, types.UnionType):
        if value is None:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, where)
    if origin is t.Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_typed(arguments[0], item, where) for item in value)
    elif origin is not None:  # Mapping[str, str]
        if isinstance(value, Mapping):
            return {clean(str(key)): clean(str(item)) for key, item in value.items()}
    elif isinstance(kind, type) and issubclass(kind, _Reading):
        return kind.from_dict(value)
    elif kind is float:
        number = _finite(value)
        if number is not None:
            return number
    elif kind is str:
        if isinstance(value, str):
            return clean(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is not {getattr(kind, '__name__', kind)}")
