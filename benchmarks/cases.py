"""What is measured: the workloads, who takes part in each, and against whom."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .contestants import PEERS


class Metric(t.NamedTuple):
    """One figure that a row has for each round."""

    key: str
    title: str
    unit: str
    ratio: bool = True
    """Told as a ratio to the baseline of the same round."""


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
        """The name for ``--only``, JSON and tables."""
        return f"{self.workload} {self.setting}".rstrip()

    @property
    def contestants(self) -> tuple[str, ...]:
        """The keys of all rows, the baseline first."""
        return (*((self.baseline,) if self.baseline else ()), *self.others)


_LOCAL_OTHERS = ("local-again", "hand", *PEERS[1:])
_POOL_OTHERS = ("hand-again", "ours", "ours-unfair", "ours-off")

#: Cases of one request or step after the other, in slices; see :mod:`.worker`.
SLICED = (
    Case("W1", "", "a request that uses no database"),
    Case("W2", "sqlite", "one SELECT"),
    Case("W2", "postgresql", "one SELECT"),
    Case("W3", "sqlite", "get, insert, commit"),
    Case("W3", "postgresql", "get, insert, commit"),
    Case("W4", "sqlite", "ten SELECTs"),
    Case("W4", "postgresql", "ten SELECTs"),
    Case(
        *("W5", "attribute", "1,000 times an attribute of the session"),
        *("local", _LOCAL_OTHERS),
    ),
    Case(
        *("W5", "call", "1,000 times `get_bind()` of the session"),
        *("local", _LOCAL_OTHERS),
    ),
    Case("W6", "", "a factory makes an application"),
    Case(
        *("W10", "", "a connection out of the pool and back", "hand", _POOL_OTHERS),
    ),
)

IMPORTS = Case(
    *("W7", "", "import in a fresh process, beyond Flask and SQLAlchemy alone"),
    others=("hand-again", *PEERS[1:-1]),
    metrics=(*TIMES, Metric("modules", "modules", "", ratio=False)),
)

MEMORY = Case(
    *("W8", "", "memory that stays behind"),
    baseline=None,
    others=("hand", *PEERS),
    metrics=(
        Metric("requests_kib", "KiB after 20,000 requests", "KiB", ratio=False),
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
    *("W9", "closed", "16 threads on a pool of 5, each at once again"),
    others=_POOL_OTHERS,
    metrics=(
        *(*_LATENCIES, _RATE, Metric("cpu", "CPU", "µs"), _TIMEOUTS),
        Metric("least", "least served", "%", ratio=False),
    ),
)
OPEN = Case(
    *("W9", "open", "16 threads on a pool of 5, arrivals at 90 % of capacity"),
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
