"""Many values that are recorded at once are as if they were recorded one at a time."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.metrics import Histogram
from opentelemetry.metrics._internal import _ProxyMeter
from opentelemetry.sdk.metrics import Histogram as SDKHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.metrics.view import SumAggregation
from opentelemetry.sdk.metrics.view import View

from flask_scopedsession.metrics import _sdk

POOL = "db.client.connection.pool.name"
VALUES = [(0.0, 1), (0.004, 7), (0.005, 2), (0.3, 0), (0.3, 1200), (99.0, 3)]

#: The streams that views make of the histogram.
VIEWS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "other buckets": [{"aggregation": ExplicitBucketHistogramAggregation([0.01, 0.3])}],
    "no buckets": [{"aggregation": ExplicitBucketHistogramAggregation([])}],
    "no minimum": [
        {"aggregation": ExplicitBucketHistogramAggregation([1.0], record_min_max=False)}
    ],
    "no attributes": [{"attribute_keys": set()}],
    "one attribute": [{"attribute_keys": {POOL}}],
    "two streams": [{"name": "a"}, {"name": "b", "attribute_keys": {POOL}}],
    "exponential": [{"aggregation": ExponentialBucketHistogramAggregation()}],
    "sum": [{"aggregation": SumAggregation()}],
    "dropped": [{"aggregation": DropAggregation()}],
}

#: Where values cannot be added to a sum for each bucket.
ONE_BY_ONE = {"exponential", "sum", "dropped"}


class Recorded:
    """A histogram, and what two readers, of totals and of news, see of it."""

    def __init__(self, view: str) -> None:
        delta = {SDKHistogram: AggregationTemporality.DELTA}
        self.readers = InMemoryMetricReader(), InMemoryMetricReader(delta)
        views = [View(instrument_name="t", **each) for each in VIEWS[view]]
        self.provider = MeterProvider(self.readers, views=views)
        self.histogram: Histogram = self.provider.get_meter("m").create_histogram(
            "t", "s", explicit_bucket_boundaries_advisory=[0.005, 0.1, 1.0]
        )

    def collected(self) -> list[tuple[str, Any]]:
        """Collect, and return all points, without the times of the collections."""
        found = []
        for reader in self.readers:
            data = reader.get_metrics_data()
            for resource in data.resource_metrics if data else ():
                for metric in resource.scope_metrics[0].metrics:
                    for point in metric.data.data_points:
                        same = {"start_time_unix_nano": 0, "time_unix_nano": 0}
                        if hasattr(point, "sum"):
                            same["sum"] = pytest.approx(point.sum)
                        elif isinstance(point.value, float):
                            same["value"] = pytest.approx(point.value)
                        found.append((metric.name, replace(point, **same)))
        return found


@pytest.mark.parametrize("view", VIEWS)
def test_as_if_one_at_a_time(view: str) -> None:
    """For all readers and views, collected twice, with several sets of attributes."""
    at_once, one_by_one = Recorded(view), Recorded(view)
    for _ in range(2):
        for pool in ("shop/default", "shop/audit"):
            attributes = {POOL: pool, "state": "used"}
            for value, times in VALUES:
                _sdk.record(at_once.histogram, value, times, attributes)
                for _ in range(times):
                    one_by_one.histogram.record(value, attributes)
        found = at_once.collected()
        assert found == one_by_one.collected()
        assert bool(found) is (view != "dropped")
    for each in (at_once, one_by_one):
        each.provider.shutdown()


@pytest.mark.parametrize("view", VIEWS)
def test_it_is_at_once(view: str) -> None:
    """Fails if the SDK has changed. Then values are recorded one at a time."""
    recorded = Recorded(view)
    recorded.histogram.record(1.0, {POOL: "shop/default"})
    done = _sdk._repeat(recorded.histogram, 1.0, 3, {POOL: "shop/default"})
    assert done is (view not in ONE_BY_ONE)
    recorded.provider.shutdown()


#: All but ``_real_instrument``, without which an instrument is no proxy.
PRIVATE = (
    "_measurement_consumer",
    "_reader_storages",
    "_instrument_view_instrument_matches",
    "_attributes_aggregation",
    "_attributes",
    "_lock",
    "_value",
    "_boundaries",
    "_sum",
)


class Unlike:
    """A part of an SDK in which something has another name."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


class Counted(Unlike):
    """An instrument that counts its recordings."""

    recorded = 0

    def record(self, value: float, attributes: Any) -> None:
        self.recorded += 1


def an_instrument(*, without: str = "", attributes: Any = ()) -> Counted:
    """Return an instrument of an SDK without one of its private names."""

    def part(**names: Any) -> Unlike:
        return Unlike(**{name: names[name] for name in names if name != without})

    sums = part(
        _attributes=dict(attributes),
        _lock=threading.Lock(),
        _value=[0, 1, 0],
        _boundaries=(0.1, 0.2),
        _sum=0.2,
    )
    instrument = Counted()
    match = part(_attributes_aggregation={1: sums})
    storage = part(_instrument_view_instrument_matches={instrument: [match]})
    if without != "_measurement_consumer":
        consumer = part(_reader_storages={1: storage})
        vars(instrument)["_measurement_consumer"] = consumer
    return instrument


def test_with_all_private_names() -> None:
    """What the next test leaves out is all that is used."""
    instrument = an_instrument()
    _sdk.record(instrument, 0.2, 4, {POOL: "shop/default"})
    assert instrument.recorded == 1


@pytest.mark.parametrize("name", PRIVATE)
def test_without_a_private_name(name: str) -> None:
    """One at a time, and each counted once."""
    instrument = an_instrument(without=name)
    _sdk.record(instrument, 0.2, 4, {POOL: "shop/default"})
    assert instrument.recorded == 4


def test_with_the_sums_of_others() -> None:
    """These do not change."""
    instrument = an_instrument(attributes={POOL: "another"})
    _sdk.record(instrument, 0.2, 4, {POOL: "shop/default"})
    assert instrument.recorded == 4


def test_before_the_application_has_a_meter_provider() -> None:
    """The API's proxy of a histogram counts as the histogram that it becomes."""
    meter = _ProxyMeter("m")
    histogram = meter.create_histogram("t", "s")
    recorded = Recorded("none")
    meter.on_set_meter_provider(recorded.provider)
    _sdk.record(histogram, 0.2, 4, {POOL: "shop/default"})
    assert _sdk._repeat(histogram, 0.2, 1, {POOL: "shop/default"})
    assert {point.count for _, point in recorded.collected()} == {5}
    recorded.provider.shutdown()
