"""The workloads, the contestants of each, and the baseline of each."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .contestants import PEERS


class Metric(t.NamedTuple):
    """A figure that each contestant has for each round."""

    key: str
    title: str
    unit: str
    ratio: bool = True
    """Also reported as a ratio to the baseline in the same round."""


WALL = Metric("wall", "wall", "µs")
CPU = Metric("cpu", "CPU", "µs")
TIMES = (WALL, CPU)


@dataclass(frozen=True)
class Case:
    """One table: a workload in one setting."""

    workload: str
    setting: str
    title: str
    baseline: str | None = "hand"
    others: tuple[str, ...] = ("hand-again", *PEERS)
    metrics: tuple[Metric, ...] = TIMES

    @property
    def id(self) -> str:
        """The name in JSON and in tables."""
        return f"{self.workload} {self.setting}".rstrip()

    @property
    def contestants(self) -> tuple[str, ...]:
        """The keys of all contestants, the baseline first."""
        return (*((self.baseline,) if self.baseline else ()), *self.others)


_LOCAL_OTHERS = ("local-again", "hand", *PEERS[1:])
_POOL_OTHERS = ("hand-again", "ours", "ours-unfair", "ours-off")

#: Cases that run one step after the other, in slices; see :mod:`.worker`.
SLICED = (
    Case("W1", "", "a request that uses no database"),
    Case("W2", "sqlite", "one SELECT"),
    Case("W2", "postgresql", "one SELECT"),
    Case("W3", "sqlite", "get, insert, commit"),
    Case("W3", "postgresql", "get, insert, commit"),
    Case("W4", "sqlite", "ten SELECTs"),
    Case("W4", "postgresql", "ten SELECTs"),
    Case(
        *("W5", "attribute", "1,000 reads of an attribute of the session"),
        *("local", _LOCAL_OTHERS),
    ),
    Case(
        *("W5", "call", "1,000 calls of the session's `get_bind()`"),
        *("local", _LOCAL_OTHERS),
    ),
    Case("W6", "", "create an application"),
    Case(
        *("W10", "", "check out a connection and return it", "hand", _POOL_OTHERS),
    ),
)

IMPORTS = Case(
    *("W7", "", "import in a fresh process, with Flask and SQLAlchemy"),
    others=("hand-again", *PEERS[1:-1]),
    metrics=(*TIMES, Metric("modules", "modules", "", ratio=False)),
)

MEMORY = Case(
    *("W8", "", "memory that is not released"),
    baseline=None,
    others=("hand", *PEERS),
    metrics=(
        Metric("requests_kib", "KiB after requests", "KiB", ratio=False),
        Metric("apps_kib", "KiB after 50 applications", "KiB", ratio=False),
        Metric("apps_left", "applications left", "", ratio=False),
        Metric("engines_left", "engines left", "", ratio=False),
    ),
)

_LATENCIES = (
    Metric("p50", "p50", "ms"),
    Metric("p99", "p99", "ms"),
    Metric("max", "max", "ms"),
)
_RATE = Metric("rate", "requests/s", "")
_TIMEOUTS = Metric("timeouts", "timeouts", "", ratio=False)

CLOSED = Case(
    *("W9", "closed", "16 threads, 5 connections, closed loop"),
    others=_POOL_OTHERS,
    metrics=(
        *(*_LATENCIES, _RATE, Metric("cpu", "CPU", "µs"), _TIMEOUTS),
        Metric("least", "least served thread", "%", ratio=False),
    ),
)
OPEN = Case(
    *("W9", "open", "16 threads, 5 connections, open loop"),
    others=_POOL_OTHERS,
    metrics=(*_LATENCIES, Metric("cpu", "CPU", "µs"), _TIMEOUTS),
)

SERVED = tuple(
    Case(
        *("W12", setting, f"gunicorn gthread and PostgreSQL, {title}"),
        others=("hand-again", "ours", "ours-off"),
        metrics=(CPU, _RATE, *_LATENCIES[:2]),
    )
    for setting, title in (("select", "one SELECT"), ("write", "get, insert, commit"))
)

WORKLOADS = tuple(f"W{number}" for number in range(1, 13))
