"""Prometheus: one process, and totals in which no counter goes backwards."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prefork import Prefork
from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy import text
from sqlalchemy.pool import NullPool
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.metrics._metrics import METRICS
from flask_scopedsession.metrics._totals import _add
from flask_scopedsession.metrics._totals import Counters
from flask_scopedsession.metrics._totals import numbers
from flask_scopedsession.metrics.prometheus import collector
from flask_scopedsession.metrics.prometheus import metrics_blueprint
from flask_scopedsession.snapshot import BUCKET_BOUNDS
from flask_scopedsession.snapshot import Histogram

CHECKOUTS = "db_client_connection_wait_time_seconds_count"


def samples(page: str, parser: Callable[[str], Any] = parse) -> dict[str, float]:
    """Return all samples, by name and the labels that are not the pool's name."""
    found = {}
    for family in parser(page):
        for sample in family.samples:
            labels = dict(sample.labels)
            labels.pop("db_client_connection_pool_name", None)
            labels.pop("scopedsession_app", None)
            name = ".".join([sample.name, *labels.values()])
            assert name not in found
            found[name] = sample.value
    return found


# One process


def test_the_collector(make_app, sqlite_url):
    """It has each metric, as OpenTelemetry's exporters name it."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    registry = CollectorRegistry()
    registry.register(collector(db))
    with app.app_context():
        with db.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        known = db.snapshot().pools[0]
        held = db.engine.connect()
        page = generate_latest(registry).decode()
        held.close()
    found = samples(page)
    assert found["db_client_connection_count.used"] == 1
    assert found["db_client_connection_count.idle"] == 0
    assert found["db_client_connection_idle_max"] == 5
    assert found["db_client_connection_max"] == 15
    assert found[CHECKOUTS] == 2
    assert found["db_client_connection_use_time_seconds_count"] == 1
    assert found["db_client_connection_use_time_seconds_sum"] == pytest.approx(
        known.hold_s.sum, abs=1e-6
    )
    assert found["db_client_connection_use_time_seconds_bucket.+Inf"] == 1
    assert found["db_client_connection_timeouts_total"] == 0
    assert found["scopedsession_lost_work_total"] == 0
    names = {family.name.removesuffix("_seconds") for family in parse(page)}
    assert names >= {metric.name.replace(".", "_") for metric in METRICS}
    assert {n: v for n, v in found.items() if "idle_max" in n} == {
        "db_client_connection_idle_max": 5
    }
    assert 'db_client_connection_pool_name="tests_app/default"' in page
    parsed = samples(openmetrics(registry).decode(), parse_openmetrics)
    assert parsed[CHECKOUTS] == 2


def test_scopes(make_app, sqlite_url):
    """Those that are not aggregated yet count, too."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    registry = CollectorRegistry()
    registry.register(collector(db))
    for statements in (*[1] * 300, 7):
        with app.app_context():
            for _ in range(statements):
                db.session.execute(text("SELECT 1"))
    found = samples(generate_latest(registry).decode())
    assert found["scopedsession_scope_duration_seconds_count"] == 301
    assert found["scopedsession_scope_statements_bucket.0.0"] == 0
    assert found["scopedsession_scope_statements_bucket.1.0"] == 300
    assert found["scopedsession_scope_statements_bucket.10.0"] == 301
    assert found["scopedsession_scope_statements_sum"] == 307


def test_what_a_pool_does_not_know_is_absent(make_app, sqlite_url):
    db = ScopedSession()
    make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={"poolclass": NullPool},
    )
    registry = CollectorRegistry()
    registry.register(collector(db))
    found = samples(generate_latest(registry).decode())
    assert "db_client_connection_max" not in found
    assert found["db_client_connection_count.used"] == 0


def test_the_same_metrics_are_not_registered_twice():
    registry = CollectorRegistry()
    registry.register(collector(ScopedSession()))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(collector(ScopedSession()))


# The blueprint, in this process


@pytest.fixture
def served(make_app, sqlite_url):
    """Make an application with the blueprint that answers over its socket."""

    def make(**config: Any):
        db = ScopedSession()
        app = make_app(
            db,
            SQLALCHEMY_DATABASE_URI=sqlite_url,
            **{"SCOPEDSESSION_CONTROL": True, **config},
        )
        app.register_blueprint(metrics_blueprint(db))
        app.get("/")(lambda: str(db.session.scalar(text("SELECT 1"))))
        return app, db

    return make


def test_the_first_request_may_be_a_scrape(served):
    app, _ = served()
    reply = app.test_client().get("/metrics")
    found = samples(reply.text)
    assert reply.content_type.startswith("text/plain; version=")
    assert (found["scopedsession_workers.live"], found[CHECKOUTS]) == (1, 0)
    app.test_client().get("/")
    # An answer over the socket is up to 0.1 seconds old.
    wait_until(
        lambda: samples(app.test_client().get("/metrics").text)[CHECKOUTS] == 1,
        what="the checkout",
    )


def test_a_socket_that_is_opened_anew_counts_nothing_twice(served):
    app, db = served()
    client = app.test_client()
    client.get("/")
    client.get("/metrics")
    db.dispose(app)
    with app.app_context():
        db.serve_control("web")
    assert samples(client.get("/metrics").text)[CHECKOUTS] == 1


#: Of a version whose histograms had buckets of other bounds.
OTHER_BOUNDS = {
    "bounds": list(BUCKET_BOUNDS),
    "ended": {'["scopedsession.scope.statements"]': [1, 2]},
    "workers": {},
}


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps(OTHER_BOUNDS)])
def test_a_damaged_file(served, short_tmp, content):
    """Counting starts again with the live workers."""
    app, _ = served(SCOPEDSESSION_CONTROL_DIR="control")
    app.test_client().get("/")
    for _ in range(2):
        found = samples(app.test_client().get("/metrics").text)
        assert found[CHECKOUTS] == 1
        [file] = (short_tmp / "control").glob("metrics-*.json")
        assert file.stat().st_mode & 0o777 == 0o600
        file.write_text(content)


def test_deployments_that_share_a_directory(served, short_tmp):
    """Each tells its own, whatever the other has counted."""
    pages = []
    for name in ("one", "two"):
        app, _ = served(SCOPEDSESSION_NAME=name, SCOPEDSESSION_CONTROL_DIR="shared")
        app.test_client().get("/")
        pages.append(samples(app.test_client().get("/metrics").text))
    assert [page[CHECKOUTS] for page in pages] == [1, 1]


def test_scrapes_at_the_same_time(served):
    """All get an answer, and nothing is counted twice."""
    app, _ = served()
    app.test_client().get("/")
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                samples(app.test_client().get("/metrics").text)[CHECKOUTS]
            )
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 8


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"SCOPEDSESSION_CONTROL": False}, "SCOPEDSESSION_CONTROL is off"),
        ({"SCOPEDSESSION_TRACKING": False}, "SCOPEDSESSION_TRACKING is off"),
        ({"SCOPEDSESSION_CONTROL": None}, "off while TESTING"),
    ],
)
def test_nobody_can_be_asked(served, config, reason):
    """A scrape fails, with the reason, instead of telling the numbers of one worker."""
    app, _ = served(**config)
    reply = app.test_client().get("/metrics")
    assert (reply.status_code, reply.mimetype) == (503, "text/plain")
    assert reason in reply.text


def test_sums_do_not_depend_on_the_order_of_the_workers():
    """Floats do: then the end of a worker makes a sum go backwards, by a digit."""
    found = [
        {"sum": numbers(Histogram.of([1], seconds, seconds))}
        for seconds in (0.1, 0.2, 0.3)
    ]
    totals: list[Counters] = [{}, {}]
    for each in found:
        _add(totals[0], each)
    for each in reversed(found):
        _add(totals[1], each)
    assert totals[0] == totals[1]


# Real workers


def scrape(group: Prefork, on: int | None = None) -> dict[str, float]:
    reply = group.get("/metrics", on=on)
    assert reply.status == 200, reply.text
    return samples(reply.text)


def counters(found: dict[str, float]) -> dict[str, float]:
    endings = ("_total", "_count", "_sum", "_bucket")
    return {
        name: value
        for name, value in found.items()
        if name.split(".")[0].endswith(endings) and "connection_count." not in name
    }


@pytest.mark.workers
def test_totals_of_real_workers(prefork):
    """Each worker tells the same totals, and SIGKILL makes no counter go backwards."""
    group = prefork("metrics_app:create_app()", count=3)
    pids = group.worker_pids()
    for number, pid in enumerate(pids, start=1):
        for _ in range(number):
            group.get("/ok", on=pid)
    told = [counters(scrape(group, on=pid)) for pid in pids]
    assert told[0][CHECKOUTS] == 6
    assert told[0] == told[1] == told[2]

    group.get("/leak", on=pids[2])
    wait_until(
        lambda: scrape(group)["scopedsession_connection_leaked"] == 1, what="the leak"
    )
    before = counters(scrape(group))
    for pid in pids[1:]:
        group.kill(pid, signal.SIGKILL)
        group.wait_gone(pid)
    after = scrape(group)
    assert after["scopedsession_connection_leaked"] == 0
    assert {n: v for n, v in before.items() if after[n] < v} == {}
    assert after[CHECKOUTS] == 7
    wait_until(lambda: len(group.worker_pids()) == 3, what="new workers")
    for pid in group.worker_pids():
        group.get("/ok", on=pid)
    wait_until(lambda: scrape(group)[CHECKOUTS] == 10, what="all checkouts")
    for pid in group.worker_pids():
        assert scrape(group, on=pid)[CHECKOUTS] == 10
    assert scrape(group)["scopedsession_workers.live"] == 3


@pytest.mark.workers
def test_workers_that_end_in_order_are_counted_to_their_last_request(prefork):
    """Also what they did after the last scrape, and those that were never scraped."""
    group = prefork("metrics_app:create_app()", count=1, worker_class="sync")
    group.get("/ok")
    assert scrape(group)[CHECKOUTS] == 1
    for _ in range(2):
        [pid] = group.worker_pids()
        group.get("/ok", on=pid)
        group.kill(pid, signal.SIGTERM)
        group.wait_gone(pid)
        wait_until(group.worker_pids, what="a new worker")
    assert scrape(group)[CHECKOUTS] == 3


@pytest.mark.workers
def test_a_worker_that_is_stopped_keeps_its_counts(prefork):
    group = prefork("metrics_app:create_app()", count=2, worker_class="gevent")
    pids = group.worker_pids()
    for pid in pids:
        group.get("/ok", on=pid)
    assert scrape(group, on=pids[0])[CHECKOUTS] == 2
    group.kill(pids[1], signal.SIGSTOP)
    try:
        found = scrape(group, on=pids[0])
        wait_until(lambda: scrape(group, on=pids[0]), what="a second answer")
    finally:
        group.kill(pids[1], signal.SIGCONT)
    assert found[CHECKOUTS] == 2
    assert found["scopedsession_workers.silent"] == 1
    assert group.log.count(f"worker {pids[1]} does not answer: stopped") == 1


MANY = """
import os, signal, sys
from flask import Flask
from sqlalchemy import text
from flask_scopedsession import ScopedSession
from flask_scopedsession.metrics.prometheus import metrics_blueprint

db = ScopedSession()
app = Flask("many", root_path=sys.argv[1], instance_path=sys.argv[1])
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///" + sys.argv[1] + "/app.db"
db.init_app(app)
app.register_blueprint(metrics_blueprint(db))
app.get("/")(lambda: str(db.session.scalar(text("SELECT 1"))))
alive, closing = os.pipe()
reader, writer = os.pipe()
pids = []
for number in range(30):
    pids.append(os.fork())
    if pids[-1] == 0:
        os.close(closing)
        for _ in range(number % 3 + 1):
            app.test_client().get("/")
        os.write(writer, b".")
        os.read(alive, 1)
        os._exit(0)
answering = 0
while answering < 30:
    answering += len(os.read(reader, 30))
print(app.test_client().get("/metrics").text, end="=====")
for pid in pids[::2]:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(app.test_client().get("/metrics").text)
os.close(closing)
for pid in pids[1::2]:
    os.waitpid(pid, 0)
"""


@pytest.mark.subprocess
def test_thirty_workers(run_script, short_tmp):
    """All are in the totals, and stay there when every second one is killed."""
    before, after = run_script(MANY, short_tmp).check().stdout.split("=====")
    assert samples(before)["scopedsession_workers.live"] == 31
    assert samples(after)["scopedsession_workers.live"] == 16
    for found in (samples(before), samples(after)):
        assert found[CHECKOUTS] == 60
        assert found["scopedsession_workers.silent"] == 0
