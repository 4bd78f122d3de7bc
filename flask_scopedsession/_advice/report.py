"""What ``pool-advise`` reports, and its JSON. Seconds are floats and end in ``_s``."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..snapshot import DatabaseURL
from ..snapshot import SCHEMA
from ..snapshot import SearchedDirectory
from ..snapshot._json import Reading


@dataclass(frozen=True, slots=True)
class Aims(Reading):
    """What the advice should achieve."""

    wait_s: float = 0.01
    """95 % of the checkouts should wait less than this."""
    growth: float = 1.5
    """The factor by which the measured load may grow."""
    worker_timeout_s: float | None = None
    """Seconds after which the server kills a worker; ``None``: not given."""


@dataclass(frozen=True, slots=True)
class Measured(Reading):
    """The load of the busiest worker's pool of one bind."""

    pid: int
    role: str
    at: str | None
    """When the busiest minute ended; ``None``: everything since the worker's start."""
    span_s: float
    """The length of that time."""
    checkouts: int
    timeouts: int
    rate: float
    """Checkouts per second, including those that timed out."""
    hold_s: float
    """The mean time that a connection was checked out."""
    hold_variability: float
    """The squared coefficient of variation of the holds, since the start."""
    load: float
    """Connections in use on average, in erlangs."""
    load_most: float
    """The most that the load can have been if waiting threads had had a connection."""
    load_error: float
    """The relative standard error of both."""
    load_least_worker: float
    """The load of the least busy worker."""
    wait_p95_s: float | None
    """The 95th percentile of the waits since the start; ``None``: unknown."""
    used_max: int
    """The most connections that were checked out at a time."""
    pending_max: int | None
    """The most threads that waited at a time; ``None``: unknown."""
    full: bool
    """Whether all connections that the pool may open were checked out at some time."""
    together_max: int
    """An upper bound of the threads that had or wanted a connection at a time."""
    bounded: bool
    """Whether it stayed below what random arrivals would have shown."""
    bursts: bool
    """Whether it went beyond what random arrivals would have shown."""


@dataclass(frozen=True, slots=True)
class Recommended(Reading):
    """What a pool should be, and why."""

    pool_size: int
    max_overflow: int
    pool_timeout: int
    """Seconds."""
    late: float
    """The share of checkouts that would wait longer than the aim, at the grown load."""
    longest_wait_s: float
    """All but one checkout in a million would wait less."""
    reasons: tuple[str, ...]
    """One for each of the three settings, in this order."""

    @property
    def max(self) -> int:
        """The most connections that the pool may open."""
        return self.pool_size + self.max_overflow


@dataclass(frozen=True, slots=True)
class AdviceWarning(Reading):
    """A setting or an observation that is known to be bad."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Advice(Reading):
    """One bind: its pools as they are, what was measured, and what they should be."""

    bind: str
    url: DatabaseURL
    workers: int
    pool_class: str
    size: int | None
    max: int | None
    pool_timeout: float | None
    measured: Measured | None
    recommended: Recommended | None
    problem: str | None
    """Why nothing is recommended."""
    warnings: tuple[AdviceWarning, ...]


@dataclass(frozen=True, slots=True)
class ServerTotal(Reading):
    """One database server: the most connections that all workers may open there."""

    server: str
    binds: tuple[str, ...]
    workers: int
    now: int | None
    """With the pools as they are; ``None``: any number."""
    advised: int | None
    """With the advice followed; a bind without advice stays as it is."""
    has_advice: bool
    """Whether there is advice for any of the binds. If not, `advised` is `now`."""
    limit: int | None
    """How many the server accepts; ``None``: not given."""
    warnings: tuple[AdviceWarning, ...]


@dataclass(frozen=True, slots=True)
class Report(Reading):
    """All advice, and what it is based on."""

    app: str
    host: str
    collected_at: str
    searched: tuple[SearchedDirectory, ...]
    workers: int
    """Live workers that answered."""
    silent: int
    """Live workers that did not."""
    aims: Aims
    advice: tuple[Advice, ...]
    servers: tuple[ServerTotal, ...]

    def to_dict(self) -> dict[str, t.Any]:
        """Return the JSON document of ``--json``."""
        return {"schema": SCHEMA, **Reading.to_dict(self)}
