"""OpenTelemetry: the names of its conventions, and numbers that are true."""

from __future__ import annotations

import gc
import re
import sqlite3
from contextlib import ExitStack
from typing import Any

import pytest
from flask import current_app
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from sqlalchemy import exc as sa_exc
from sqlalchemy import text
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import StaticPool

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import AppNotInitialized
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.metrics.opentelemetry import instrument

PREFIX = "db.client.connection."
POOL = {"db.client.connection.pool.name": "tests_app/default"}


class Reported:
    """A meter provider of its own, and what it reports."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def metrics(self) -> dict[str, Any]:
        """Collect, and return each metric by its name, without our prefix."""
        data = self._reader.get_metrics_data()
        return {
            metric.name.removeprefix(PREFIX): metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, **labels: str) -> dict[str, Any]:
        """Collect, and return the numbers, and the histograms' counts, of one pool."""
        found: dict[str, Any] = {}
        for name, metric in self.metrics().items():
            for point in metric.data.data_points:
                attributes = dict(point.attributes)
                if attributes.pop(db_attributes.DB_CLIENT_CONNECTION_POOL_NAME, "") in (
                    "",
                    labels.get("pool", "tests_app/default"),
                ):
                    state = attributes.get(db_attributes.DB_CLIENT_CONNECTION_STATE)
                    value = point.count if hasattr(point, "count") else point.value
                    found[f"{name}.{state}" if state else name] = value
        return found

    def histogram(self, name: str) -> Any:
        [point] = self.metrics()[name].data.data_points
        return point


@pytest.fixture
def reported():
    reported = Reported()
    yield reported
    reported.provider.shutdown()


@pytest.fixture
def db():
    return ScopedSession()


@pytest.fixture
def pooled(make_app, db, sqlite_url, reported):
    """Make an instrumented application with a pool of one connection, and one more."""

    def make(**options: Any):
        options = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 1, **options}
        app = make_app(
            db, SQLALCHEMY_DATABASE_URI=sqlite_url, SQLALCHEMY_ENGINE_OPTIONS=options
        )
        instrument(db, app, reported.provider)
        return app

    return make


# The conventions


def test_all_metrics_of_the_conventions(pooled, db, reported):
    """Names, units, instruments, descriptions and attributes are those published."""
    published = Reported()
    meter = published.provider.get_meter("conventions")
    created = {
        name: getattr(db_metrics, f"create_{name.replace('.', '_')}")(meter)
        for name in vars(db_metrics).values()
        if isinstance(name, str) and re.fullmatch(rf"{re.escape(PREFIX)}[a-z_.]+", name)
    }
    assert len(created) == 9
    for each in created.values():
        (each.record if hasattr(each, "record") else each.add)(1)
    with pooled().app_context(), db.engine.connect():
        pass
    found = reported.metrics()
    for name, want in published.metrics().items():
        got = found[name]
        assert (got.name, got.unit) == (want.name, want.unit)
        assert got.description.rstrip(".") == want.description.rstrip(".")
        assert type(got.data) is type(want.data), name
        for quality in ("is_monotonic", "aggregation_temporality"):
            assert getattr(got.data, quality, None) == getattr(want.data, quality, None)
        states = [dict(point.attributes) for point in got.data.data_points]
        values = db_attributes.DbClientConnectionStateValues
        assert states == (
            [
                {**POOL, db_attributes.DB_CLIENT_CONNECTION_STATE: state.value}
                for state in values
            ]
            if name == "count"
            else [POOL]
        )
    published.provider.shutdown()


def test_values_of_a_pool(pooled, db, reported):
    """Limits, connections, waits and timeouts, while they happen."""
    app = pooled(pool_timeout=0.01)
    with app.app_context(), ExitStack() as held:
        connections = [held.enter_context(db.engine.connect()) for _ in range(2)]
        with pytest.raises(sa_exc.TimeoutError):
            db.engine.connect()
        assert reported.values() == {
            "count.idle": 0,
            "count.used": 2,
            "idle.max": 1,
            "idle.min": 0,
            "max": 2,
            "pending_requests": 0,
            "timeouts": 1,
            "create_time": 2,
            "wait_time": 2,
            "scopedsession.connection.held_long": 0,
            "scopedsession.connection.leaked": 0,
            "scopedsession.connection.invalidated": 0,
            "scopedsession.session.open": 0,
            "scopedsession.lost_work": 0,
        }
        connections.pop().detach()
        connections.pop().invalidate()
        found = reported.values()
    assert (found["count.used"], found["use_time"]) == (0, 2)
    assert found["scopedsession.connection.invalidated"] == 1


@pytest.mark.parametrize(
    ("poolclass", "unknown"),
    [
        (NullPool, {"max", "idle.max", "idle.min"}),
        (StaticPool, {"max", "idle.max", "idle.min"}),
    ],
)
def test_what_a_pool_does_not_know_is_absent(
    make_app, db, sqlite_url, reported, poolclass, unknown
):
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={"poolclass": poolclass},
    )
    instrument(db, app, reported.provider)
    with app.app_context():
        db.session.execute(text("SELECT 1"))
        found = reported.values()
    assert not found.keys() & unknown
    assert found["count.used"] == 1


def test_a_pool_without_a_limit(pooled, reported):
    pooled(max_overflow=-1)
    found = reported.values()
    assert "max" not in found
    assert found["idle.max"] == 1


def test_sessions_and_lost_work(pooled, db, reported):
    """An open session, a leaked connection, and a view that forgot to commit."""
    app = pooled()
    kept = []

    @app.get("/")
    def forgets():
        db.session.execute(text("INSERT INTO note VALUES (1)"))
        kept.append(db.engine.connect())
        return ""

    with app.app_context(), db.engine.begin() as connection:
        connection.execute(text("CREATE TABLE note (id INTEGER)"))
    app.test_client().get("/")
    found = reported.values()
    assert found["scopedsession.lost_work"] == 1
    assert found["scopedsession.connection.leaked"] == 1
    kept.pop().close()
    with app.app_context():
        db.session()
        assert reported.values()["scopedsession.session.open"] == 1
    assert reported.values()["scopedsession.session.open"] == 0


def test_scopes(pooled, db, reported):
    """How long requests that use the database last, and what each of them sends."""
    app = pooled()

    @app.get("/<int:statements>")
    def view(statements):
        for _ in range(statements):
            db.session.execute(text("SELECT 1"))
        return ""

    @app.get("/without")
    def without():
        return ""

    client = app.test_client()
    for path in ("/1", "/1", "/4", "/without"):
        client.get(path)
    found = reported.metrics()
    durations = found["scopedsession.scope.duration"].data.data_points[0]
    statements = found["scopedsession.scope.statements"].data.data_points[0]
    assert (durations.count, durations.sum > 0) == (3, True)
    assert (statements.count, statements.sum, statements.max) == (3, 6, 4)
    counts = dict(
        zip((*statements.explicit_bounds, None), statements.bucket_counts, strict=True)
    )
    assert {bound: n for bound, n in counts.items() if n} == {1: 2, 5: 1}
    assert dict(statements.attributes) == {"scopedsession.app": "tests_app"}


def test_lost_work_that_is_ignored_is_not_0(make_app, db, reported):
    instrument(db, make_app(db, SCOPEDSESSION_LOST_WORK="ignore"), reported.provider)
    found = reported.values()
    assert "scopedsession.lost_work" not in found
    assert found["scopedsession.session.open"] == 0


def test_a_ready_made_pool(make_app, db, sqlite_url, reported):
    """Its waits and timeouts are not known."""
    pool = QueuePool(lambda: sqlite3.connect(":memory:"), pool_size=2, max_overflow=1)
    options = {"pool": pool}
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI=sqlite_url, SQLALCHEMY_ENGINE_OPTIONS=options
    )
    instrument(db, app, reported.provider)
    with app.app_context(), db.engine.connect():
        found = reported.values()
    assert not found.keys() & {"pending_requests", "timeouts", "wait_time"}
    assert (found["count.used"], found["max"]) == (1, 3)


# Histograms


def test_a_histogram_has_the_true_counts_sum_and_maximum(pooled, db, reported):
    """Also when it is collected again and again, in between and without news."""
    app = pooled()
    with app.app_context():
        for _ in range(3):
            for _ in range(7):
                with db.engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
            reported.metrics()
        known = db.snapshot().pools[0].hold_s
    point = reported.histogram("use_time")
    assert point.count == 21
    assert tuple(point.bucket_counts) == known.buckets
    assert point.sum == pytest.approx(known.sum)
    assert point.max == known.max


def test_two_readers_see_the_same(make_app, db):
    """And each what is true when it collects, in whatever order they do."""
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    provider = MeterProvider(readers)
    app = make_app(db)
    instrument(db, app, provider)
    found = []
    for reader in (*readers, *reversed(readers)):
        with app.app_context():
            instrument(db, current_app, provider)  # changes nothing
            db.session.execute(text("SELECT 1"))
            data = reader.get_metrics_data()
        (scope,) = data.resource_metrics[0].scope_metrics
        points = {each.name: each.data.data_points[0] for each in scope.metrics}
        found.append(
            (
                points[f"{PREFIX}wait_time"].count,
                points["scopedsession.session.open"].value,
            )
        )
    provider.shutdown()
    assert found == [(1, 1), (2, 1), (3, 1), (4, 1)]


# Life cycles


def test_after_dispose(pooled, db, reported):
    """Nothing counts twice or is forgotten."""
    app = pooled()
    with app.app_context():
        out = db.engine.connect()
        db.dispose()
        assert reported.values()["count.used"] == 1
        out.close()
        db.session.execute(text("SELECT 1"))
        found = reported.values()
    assert (found["count.used"], found["create_time"], found["use_time"]) == (1, 2, 1)


def test_several_applications(make_app, reported):
    """Each has pools of its own; one that was dropped is not reported, nor kept."""
    one, two = ScopedSession(), ScopedSession()
    first = make_app(one, import_name="first")
    second = make_app(two, import_name="second")
    instrument(one, first, reported.provider)
    instrument(two, second, reported.provider)
    with second.app_context():
        two.session.execute(text("SELECT 1"))
        assert reported.values(pool="first/default")["count.used"] == 0
        assert reported.values(pool="second/default")["count.used"] == 1


def test_a_dropped_application(reported, sqlite_url):
    db = ScopedSession()

    def make():
        from flask import Flask

        app = Flask("tests_app")
        app.config["SQLALCHEMY_DATABASE_URI"] = sqlite_url
        db.init_app(app)
        instrument(db, app, reported.provider)

    make()
    gc.collect()
    assert reported.values() == {}


FORKED = """
import os, sys
from flask import Flask
from flask_scopedsession import ScopedSession
from flask_scopedsession.metrics.opentelemetry import instrument
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import text

db = ScopedSession()
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
db.init_app(app)
reader = InMemoryMetricReader()
instrument(db, app)
set_meter_provider(MeterProvider([reader]))
instrument(db, app)

def use(times):
    for _ in range(times):
        with app.app_context():
            db.session.execute(text("SELECT 1"))

def counts():
    found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    points = [(m.name, p) for m in found for p in m.data.data_points]
    return [
        sum(getattr(p, "count", 0) or getattr(p, "value", 0)
            for n, p in points if n == f"db.client.connection.{name}")
        for name in ("use_time", "create_time", "count")
    ]

use(3)
if os.fork() == 0:
    use(1)
    print(*counts(), flush=True)
    os._exit(0)
os.wait()
print(*counts())
"""


@pytest.mark.subprocess
def test_a_fork(run_script, sqlite_url):
    """A child counts its own, and the parent goes on; the provider was set later."""
    done = run_script(FORKED, sqlite_url)
    assert done.stdout.split("\n")[:2] == ["1 1 1", "3 1 1"]


GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from flask import Flask
from flask_scopedsession import ScopedSession
from flask_scopedsession.metrics.opentelemetry import instrument
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import text

db = ScopedSession()
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 1, "max_overflow": 0}
db.init_app(app)
reader = InMemoryMetricReader()
instrument(db, app, MeterProvider([reader]))
seen = {}

def read():
    found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    return {
        m.name: sum(getattr(p, "count", 0) or getattr(p, "value", 0)
                    for p in m.data.data_points)
        for m in found
    }

def use():
    with app.app_context():
        db.session.execute(text("SELECT 1"))
        gevent.sleep(0.01)
        seen.update(seen or read())

gevent.joinall([gevent.spawn(use) for _ in range(5)])
print(seen["db.client.connection.pending_requests"],
      read()["db.client.connection.use_time"])
"""


@pytest.mark.subprocess
def test_under_gevent(run_script, sqlite_url):
    """Greenlets that wait are pending, and each use is counted."""
    assert run_script(GEVENT, sqlite_url).stdout == "4 5\n"


# Mistakes


def test_tracking_is_off(make_app, db, reported):
    app = make_app(db, SCOPEDSESSION_TRACKING=False)
    with pytest.raises(ConfigError, match="SCOPEDSESSION_TRACKING"):
        instrument(db, app, reported.provider)


def test_an_application_without_the_extension(make_app, db, reported):
    with pytest.raises(AppNotInitialized):
        instrument(db, make_app(), reported.provider)
