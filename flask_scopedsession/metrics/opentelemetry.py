"""OpenTelemetry's metrics of connection pools, and our own.

Everything is read when a reader of the meter provider collects, in its thread. A
request does no work for it.
"""

from __future__ import annotations

import typing as t
import weakref
from bisect import bisect_left
from collections.abc import Iterable
from collections.abc import Iterator
from math import inf
from math import nextafter

try:
    from opentelemetry.metrics import CallbackOptions
    from opentelemetry.metrics import get_meter_provider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.metrics import Observation
except ImportError as _error:
    raise ImportError(
        "flask_scopedsession.metrics.opentelemetry needs OpenTelemetry:"
        " pip install Flask-ScopedSession[otel]",
        name=_error.name,
    ) from _error

from .._application import of
from .._buckets import Bounds
from .._buckets import bucket_range
from .._extension import _flask
from .._extension import ScopedSession
from ..errors import ConfigError
from ..snapshot import Histogram
from ._metrics import Labels
from ._metrics import Metric
from ._metrics import METRICS
from ._sdk import record

if t.TYPE_CHECKING:
    from flask import Flask

    from ..snapshot import WorkerSnapshot

__all__ = ["instrument"]


def instrument(
    db: ScopedSession[t.Any],
    app: Flask,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Report the pools and sessions of an application to OpenTelemetry.

    All metrics are cumulative since the start of the process. Call it once per
    application, after ``db.init_app(app)``; another call with the same meter provider
    changes nothing.

    :param db: The extension.
    :param app: The application, or ``current_app`` where there is one.
    :param meter_provider: ``None`` for the global one.
    :raises AppNotInitialized: ``db.init_app(app)`` was not called.
    :raises ConfigError: ``SCOPEDSESSION_TRACKING`` is off, so that nothing is known.
    """
    app = _flask(app)
    if not db._application_of(app).settings.tracking:
        raise ConfigError(
            f"SCOPEDSESSION_TRACKING is off in the app {app.name!r}, so that there is"
            " nothing to report. Switch it on, or do not call instrument()."
        )
    # The global provider may be another object later on, when it has been set.
    key = get_meter_provider if meter_provider is None else meter_provider
    instruments = _instruments.get(key)
    if instruments is None:
        provider = meter_provider or get_meter_provider()
        instruments = _instruments[key] = _Instruments(provider)
    instruments.add(app)


class _Recorded:
    """What of an application's histograms was recorded, in this process."""

    def __init__(self) -> None:
        self.process: tuple[int, str] | None = None
        self.histograms: dict[tuple[str, Labels], Histogram] = {}


class _Instruments:
    """The instruments of one meter provider, for all applications that use it."""

    def __init__(self, provider: MeterProvider) -> None:
        from .. import __version__

        # Weak, since a meter provider lives as long as its process.
        self._apps: list[tuple[weakref.ref[Flask], _Recorded]] = []
        self._found: list[tuple[str, WorkerSnapshot]] = []
        #: The metrics that were read from these snapshots.
        self._observed = {metric.name for metric in METRICS}
        meter = provider.get_meter("flask_scopedsession", __version__)
        self._histograms = [
            (
                metric,
                meter.create_histogram(
                    metric.name,
                    metric.unit,
                    metric.description,
                    explicit_bucket_boundaries_advisory=metric.bounds,
                ),
            )
            for metric in METRICS
            if metric.kind == "histogram"
        ]
        create = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
        }
        for metric in METRICS:
            if metric.kind != "histogram":
                create[metric.kind](
                    metric.name,
                    [self._observer(metric)],
                    metric.unit,
                    metric.description,
                )

    def add(self, app: Flask) -> None:
        """Report an application, too."""
        if all(known() is not app for known, _ in self._apps):
            self._apps.append((weakref.ref(app), _Recorded()))

    def _observer(
        self, metric: Metric
    ) -> t.Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            if metric.name in self._observed:
                self._look()  # another collection
            self._observed.add(metric.name)
            for labels, value in metric.total(self._found).items():
                yield Observation(t.cast(int, value), dict(labels))

        return observe

    def _look(self) -> None:
        """Take snapshots for one collection, and record their histograms."""
        self._observed.clear()
        self._found = []
        for known, recorded in list(self._apps):
            app = known()
            if app is not None:
                worker = of(app).live.worker()
                self._record(app.name, worker, recorded)
                self._found.append((app.name, worker))

    def _record(self, app: str, worker: WorkerSnapshot, recorded: _Recorded) -> None:
        """Record what is new in the histograms.

        The SDK collects them after the callbacks, and never calls two callbacks at a
        time.
        """
        process = worker.pid, worker.started_at
        if recorded.process != process:
            recorded.process, recorded.histograms = process, {}  # a fork starts anew
        for metric, instrument in self._histograms:
            for labels, found in metric.read(app, worker):
                if not isinstance(found, Histogram):
                    continue
                before = recorded.histograms.get((metric.name, labels))
                recorded.histograms[metric.name, labels] = found
                attributes = dict(labels)
                for value, times in _new(found, before, metric.bounds):
                    record(instrument, value, times, attributes)


def _new(
    now: Histogram, before: Histogram | None, bounds: Bounds
) -> Iterator[tuple[float, int]]:
    """Return values that make the difference of two histograms, and how often each.

    The number in each bucket, the sum and the highest are exact. Within its bucket, a
    value is only known as far as the sum tells.
    """
    counts, total = list(now.buckets), now.sum
    if before is not None:
        counts = [new - old for new, old in zip(counts, before.buckets, strict=True)]
        total -= before.sum
    highest = now.max or 0.0
    if sum(counts) and (before is None or highest > (before.max or 0.0)):
        counts[bisect_left(bounds, highest)] -= 1
        total -= highest
        yield highest, 1
    ranges = [bucket_range(index, highest, bounds) for index in range(len(counts))]
    least = sum(n * low for n, (low, _) in zip(counts, ranges, strict=True))
    room = sum(n * (high - low) for n, (low, high) in zip(counts, ranges, strict=True))
    part = min(1.0, max(0.0, (total - least) / room)) if room else 0.0
    for index, (times, (low, high)) in enumerate(zip(counts, ranges, strict=True)):
        # A bucket does not contain its lower bound, except for the first.
        above = nextafter(low, inf) if index else 0.0
        yield max(above, low + part * (high - low)), times


_instruments: weakref.WeakKeyDictionary[object, _Instruments] = (
    weakref.WeakKeyDictionary()
)
