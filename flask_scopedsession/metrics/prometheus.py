"""The same metrics for Prometheus: of one process, or of all workers of this host."""

from __future__ import annotations

import atexit
import typing as t
import weakref
from collections.abc import Iterable
from collections.abc import Iterator
from itertools import accumulate

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import Collector
    from prometheus_client.utils import floatToGoString
except ImportError as _error:
    raise ImportError(
        "flask_scopedsession.metrics.prometheus needs prometheus_client:"
        " pip install Flask-ScopedSession[prometheus]",
        name=_error.name,
    ) from _error

from flask import Blueprint
from flask import current_app
from flask import request
from flask import Response

from .._runtime.logs import fields
from .._runtime.logs import log
from ..errors import ControlError
from ._metrics import APP
from ._metrics import Labels
from ._metrics import Metric
from ._metrics import METRICS
from ._totals import ask
from ._totals import Counters
from ._totals import note_end
from ._totals import Numbers
from ._totals import numbers
from ._totals import TIMEOUT
from ._totals import totals_of

if t.TYPE_CHECKING:
    from flask import Flask
    from flask.blueprints import BlueprintSetupState

    from .._application import Application
    from .._extension import ScopedSession
    from ..snapshot import Survey

__all__ = ["collector", "metrics_blueprint"]


def collector(db: ScopedSession[t.Any]) -> Collector:
    """Return a collector of this process's metrics, of all applications of `db`.

    For a process that has a registry and an endpoint of its own, such as a Celery
    worker: ``REGISTRY.register(collector(db))``. Where several workers share a port,
    each scrape would reach another one; :func:`metrics_blueprint` is for them.

    :param db: The extension.
    """
    return _ThisProcess(db)


def metrics_blueprint(db: ScopedSession[t.Any]) -> Blueprint:
    """Return a blueprint whose ``/metrics`` has the totals of all workers of this host.

    Every worker gives the same answer, over the control sockets. No counter goes
    backwards when workers start, end or are killed. It answers 503, with the reason,
    if no worker can be asked.

    Everybody who can reach the application can read it: give it a ``url_prefix`` that
    your proxy does not pass on, or a ``before_request`` that checks who asks.

    :param db: The extension, which the application that registers the blueprint uses.
    """
    blueprint = Blueprint("scopedsession_metrics", __name__)

    @blueprint.record
    def registered(state: BlueprintSetupState) -> None:
        atexit.register(_note_end, db, weakref.ref(t.cast("Flask", state.app)))

    @blueprint.get("/metrics")
    def metrics() -> Response:
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        application = db._application_of(app)
        application.live.begin(app)
        try:
            survey, counters = ask(application, app.name, TIMEOUT)
            if not survey.live:
                raise ControlError(_nobody(application, survey))
        except (ControlError, OSError) as error:
            return Response(f"{error}\n", 503, mimetype="text/plain")
        registry = CollectorRegistry()
        registry.register(_Fixed(totals(app.name, survey, counters)))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), content_type=content_type)

    return blueprint


def _nobody(application: Application, survey: Survey) -> str:
    reason = application.live.problem() or "; ".join(
        f"{each.dir}: {each.error}" for each in survey.searched if each.error
    )
    return (
        f"No worker of {survey.app!r} has answered over the control sockets ({reason})."
        " They are off while TESTING, unless SCOPEDSESSION_CONTROL is True."
    )


def totals(app: str, survey: Survey, counters: Counters) -> Iterator[Family]:
    """Return the metrics of all workers.

    :param app: The name of their application.
    """
    live = [(app, worker) for worker in survey.live]
    workers = GaugeMetricFamily(
        "scopedsession_workers",
        "Workers that answered, and live ones that did not.",
        labels=[APP.replace(".", "_"), "state"],
    )
    workers.add_metric([app, "live"], len(survey.live))
    workers.add_metric([app, "silent"], len(survey.silent))
    yield workers
    for metric in METRICS:
        if metric.kind == "updowncounter":
            found = {k: numbers(v) for k, v in metric.total(live).items()}
        else:
            found = totals_of(metric, counters)
        yield from _families(metric, found)


def _note_end(db: ScopedSession[t.Any], known: weakref.ref[Flask]) -> None:
    app = known()
    if app is not None:
        try:
            note_end(db._application_of(app), app.name)
        except (ControlError, OSError) as error:
            log.warning(
                "the last counts of this process are not in the metrics: %s",
                error,
                extra=fields("metrics_lost"),
            )


class _Fixed(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Family]:
        return self._families


class _ThisProcess(Collector):
    def __init__(self, db: ScopedSession[t.Any]) -> None:
        self._db = db

    def describe(self) -> Iterable[Family]:
        # Without this method, it would be read when it is registered.
        return [_family(metric, ()) for metric in METRICS]

    def collect(self) -> Iterator[Family]:
        found = [
            (app.name, self._db._application_of(app).live.worker())
            for app in list(self._db._apps)
        ]
        for metric in METRICS:
            values = metric.total(found)
            yield from _families(metric, {k: numbers(v) for k, v in values.items()})


def _family(metric: Metric, labels: Iterable[str]) -> Family:
    """Name a metric as OpenTelemetry's exporters do for Prometheus."""
    name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
    kinds: dict[str, type[Family]] = {
        "counter": CounterMetricFamily,
        "updowncounter": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    names = [label.replace(".", "_") for label in labels]
    return kinds[metric.kind](name, metric.description, labels=names)  # type: ignore[call-arg]


def _families(metric: Metric, found: dict[Labels, Numbers]) -> Iterator[Family]:
    """Return a metric with its values, unless it has none."""
    if not found:
        return
    family: t.Any = _family(metric, dict(next(iter(found))))
    for labels, values in found.items():
        where = list(dict(labels).values())
        if metric.kind == "histogram":
            *counts, total = values
            bounds = [*map(floatToGoString, metric.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric(where, buckets, total / 1_000_000)
        else:
            family.add_metric(where, values[0])
    yield family
