"""Every metric: its name, unit and kind, and how it is read from a snapshot.

Names, units, kinds and attributes of ``db.client.connection.*`` are those of
OpenTelemetry's semantic conventions. What a pool cannot know has no value, never 0.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass

from ..snapshot import BUCKET_BOUNDS
from ..snapshot import Histogram
from ..snapshot import PoolSnapshot
from ..snapshot import STATEMENT_BOUNDS
from ..snapshot import WorkerSnapshot

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
APP = "scopedsession.app"

Value = int | Histogram | None

#: Attributes of a value, by name.
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Metric:
    """One metric, of each pool or of a whole worker."""

    name: str
    kind: t.Literal["counter", "updowncounter", "histogram"]
    unit: str
    description: str
    of_pool: Callable[[PoolSnapshot], Value] | None = None
    of_worker: Callable[[WorkerSnapshot], Value] | None = None
    of_states: Callable[[PoolSnapshot], dict[str, Value]] | None = None
    bounds: tuple[float, ...] = BUCKET_BOUNDS
    """Of a histogram's buckets."""

    def read(self, app: str, worker: WorkerSnapshot) -> Iterator[tuple[Labels, Value]]:
        """Return its values in one worker."""
        if self.of_worker is not None:
            yield ((APP, app),), self.of_worker(worker)
            return
        for pool in worker.pools:
            labels = ((POOL_NAME, f"{app}/{pool.bind}"),)
            if self.of_pool is not None:
                yield labels, self.of_pool(pool)
            if self.of_states is not None:
                for state, count in self.of_states(pool).items():
                    yield (*labels, (STATE, state)), count

    def total(
        self, found: Iterable[tuple[str, WorkerSnapshot]]
    ) -> dict[Labels, int | Histogram]:
        """Return its values, summed up over the workers.

        :param found: Each with the name of its application.
        """
        grouped: dict[Labels, list[Value]] = {}
        for app, worker in found:
            for labels, value in self.read(app, worker):
                grouped.setdefault(labels, []).append(value)
        return {
            labels: Histogram.merged(t.cast("list[Histogram]", values), self.bounds)
            if self.kind == "histogram"
            else sum(t.cast("list[int]", values))
            for labels, values in grouped.items()
            if None not in values  # a sum without one of them would not be true
        }


METRICS = (
    Metric(
        "db.client.connection.count",
        "updowncounter",
        "{connection}",
        "The number of connections that are currently in state described by the"
        " `state` attribute.",
        of_states=lambda pool: {"idle": pool.idle, "used": pool.used},
    ),
    Metric(
        "db.client.connection.idle.max",
        "updowncounter",
        "{connection}",
        "The maximum number of idle open connections allowed.",
        # A QueuePool of size 0 keeps any number.
        of_pool=lambda pool: pool.size or None,
    ),
    Metric(
        "db.client.connection.idle.min",
        "updowncounter",
        "{connection}",
        "The minimum number of idle open connections allowed.",
        # SQLAlchemy's pools open connections when they are needed, never before.
        of_pool=lambda pool: None if pool.size is None else 0,
    ),
    Metric(
        "db.client.connection.max",
        "updowncounter",
        "{connection}",
        "The maximum number of open connections allowed.",
        of_pool=lambda pool: pool.max,
    ),
    Metric(
        "db.client.connection.pending_requests",
        "updowncounter",
        "{request}",
        "The number of current pending requests for an open connection.",
        of_pool=lambda pool: pool.pending,
    ),
    Metric(
        "db.client.connection.timeouts",
        "counter",
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a"
        " connection from the pool.",
        of_pool=lambda pool: pool.timeouts_total,
    ),
    Metric(
        "db.client.connection.create_time",
        "histogram",
        "s",
        "The time it took to create a new connection.",
        of_pool=lambda pool: pool.create_s,
    ),
    Metric(
        "db.client.connection.wait_time",
        "histogram",
        "s",
        "The time it took to obtain an open connection from the pool.",
        of_pool=lambda pool: pool.wait_s,
    ),
    Metric(
        "db.client.connection.use_time",
        "histogram",
        "s",
        "The time between borrowing a connection and returning it to the pool.",
        of_pool=lambda pool: pool.hold_s,
    ),
    Metric(
        "scopedsession.connection.held_long",
        "updowncounter",
        "{connection}",
        "Connections that are checked out for longer than"
        " SCOPEDSESSION_HELD_LONG_AFTER.",
        of_pool=lambda pool: pool.held_long,
    ),
    Metric(
        "scopedsession.connection.leaked",
        "updowncounter",
        "{connection}",
        "Connections that are checked out although their request is over or their"
        " thread has ended.",
        of_pool=lambda pool: pool.leaked,
    ),
    Metric(
        "scopedsession.connection.invalidated",
        "counter",
        "{connection}",
        "Connections that were invalidated because they were broken.",
        of_pool=lambda pool: pool.invalidated_total,
    ),
    Metric(
        "scopedsession.session.open",
        "updowncounter",
        "{session}",
        "Open sessions.",
        of_worker=lambda worker: worker.sessions_open,
    ),
    Metric(
        "scopedsession.lost_work",
        "counter",
        "{scope}",
        "Requests, commands and jobs that ended well but with uncommitted changes.",
        of_worker=lambda worker: worker.lost_work_total,
    ),
    Metric(
        "scopedsession.scope.duration",
        "histogram",
        "s",
        "The time from the first use of a session or connection in a request, command"
        " or job to its end.",
        of_worker=lambda worker: worker.scope_s,
    ),
    Metric(
        "scopedsession.scope.statements",
        "histogram",
        "{statement}",
        "The number of statements that a request, command or job sent.",
        of_worker=lambda worker: worker.scope_statements,
        bounds=STATEMENT_BOUNDS,
    ),
)
