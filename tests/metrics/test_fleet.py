"""Two hosts, PgBouncer, PostgreSQL and Prometheus: what ``docs/fleet.md`` says adds up.

The hosts are gunicorn servers on loopback addresses of their own, each with a control
directory of its own.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import Result
from databases import Backends
from databases import pgbouncer_server
from flask import Flask
from gates import Gates
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prefork import Prefork
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_server import Prometheus
from sqlalchemy import make_url
from sqlalchemy import text
from sqlalchemy import URL
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.metrics.opentelemetry import instrument

PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"

HOSTS = {"web-1": "127.0.0.2", "web-2": "127.0.0.3"}
WORKERS = 2
POOL = {"pool_size": 2, "max_overflow": 1}

#: The connections that PgBouncer may open, for this database and user.
BACKENDS = 4

CHECKOUTS = "db_client_connection_wait_time_seconds_count"


def documented() -> dict[str, Any]:
    """Return the functions of the page."""
    found: dict[str, Any] = {}
    for code in re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        exec(code, found)
    return found


# The page


def test_the_examples_of_the_page_are_what_its_functions_compute() -> None:
    """Each result that the page writes after a call."""
    page = PAGE.read_text("utf-8")
    lines = re.findall(r"^>>> (.*)\n(\d+)$", page, re.MULTILINE)
    functions = documented()
    assert len(lines) > 4
    for call, result in lines:
        assert eval(call, dict(functions)) == int(result), call


def test_the_series_of_a_worker_that_reports_to_opentelemetry(
    make_app: Callable[..., Flask], sqlite_url: str
) -> None:
    """As many as the page says, if histograms are stored by bucket."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrument(db, app, provider)
    with app.app_context():
        db.session.execute(text("SELECT 1"))
    data = reader.get_metrics_data()
    assert data is not None
    series = 0
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            buckets = getattr(point, "bucket_counts", None)
            series += 1 if buckets is None else len(buckets) + 2
    assert series == documented()["series"](1, 1) - 2
    provider.shutdown()


# The fleet


@pytest.fixture
def bouncer(short_root: Path, pg_server: URL, pg_url: str) -> Iterator[URL]:
    """The test's database behind a PgBouncer with few connections."""
    with pgbouncer_server(
        short_root, pg_server, default_pool_size=BACKENDS, max_client_conn=100
    ) as url:
        yield url.set(database=make_url(pg_url).database)


@pytest.fixture
def fleet(
    bouncer: URL,
    live_env: dict[str, str],
    prefork: Callable[..., Prefork],
    short_tmp: Path,
) -> Iterator[dict[str, Prefork]]:
    """Two hosts."""
    live_env["FLASK_SQLALCHEMY_DATABASE_URI"] = bouncer.render_as_string(False)
    prefix = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
    live_env |= {f"{prefix}{name}": str(value) for name, value in POOL.items()}
    live_env[f"{prefix}connect_args__prepare_threshold"] = "null"
    hosts = {
        host: prefork(
            "metrics_app:create_app()",
            count=WORKERS,
            preload=True,
            address=address,
            env=control_of(short_tmp, host),
            ready=False,
        )
        for host, address in HOSTS.items()
    }
    for group in hosts.values():
        group.wait_listening()
    yield hosts
    for group in hosts.values():  # both at once, which is faster than one by one
        group.kill(group.pid, signal.SIGTERM)


def control_of(folder: Path, host: str) -> dict[str, str | None]:
    return {"FLASK_SCOPEDSESSION_CONTROL_DIR": str(folder / host)}


@pytest.fixture
def prometheus(fleet: dict[str, Prefork], short_tmp: Path) -> Iterator[Prometheus]:
    targets = {host: f"{group.url}/metrics" for host, group in fleet.items()}
    with ExitStack() as stack:
        server = stack.enter_context(Prometheus(short_tmp, targets))
        # Its first scrape is five seconds after its start.
        server.wait_serving()
        yield server


def pools_of(bouncer: URL) -> dict[str, Any]:
    """Return what PgBouncer counts for the test's database."""
    admin = bouncer.set(drivername="postgresql", database="pgbouncer")
    with psycopg.connect(
        admin.render_as_string(False), autocommit=True, prepare_threshold=None
    ) as connection:
        # Its console knows the simple protocol only.
        cursor = psycopg.ClientCursor(connection)
        cursor.execute("SHOW POOLS")
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
    (found,) = (row for row in rows if row["database"] == bouncer.database)
    return found


@pytest.mark.workers
@pytest.mark.slow
@pytest.mark.prometheus
@pytest.mark.databases("pgbouncer")
@pytest.mark.usefixtures("db_name")
def test_two_hosts(
    fleet: dict[str, Prefork],
    prometheus: Prometheus,
    bouncer: URL,
    pg_url: str,
    gates: Gates,
    run_cli: Callable[..., Result],
    short_tmp: Path,
) -> None:
    """Sums over hosts are what was done; the server has no more than its budget."""
    page = documented()
    backends = Backends(make_url(pg_url))
    clients = page["clients"](len(HOSTS), WORKERS, [sum(POOL.values())])
    assert clients == 12
    done = dict.fromkeys(HOSTS, WORKERS)
    for group in fleet.values():
        group.wait_ready().visit_all("/ok")

    # More work at a time than PgBouncer has connections, which it then keeps open.
    for host, count in zip(HOSTS, (40, 30), strict=True):
        replies = fleet[host].send_many("/ok", count)
        assert {reply.result(30).status for reply in replies} == {200}
        done[host] += count
    assert 1 <= len(backends.ids()) <= BACKENDS

    # All of PgBouncer's connections are held, by two requests of each host.
    held = [group.send("/block") for group in fleet.values() for _ in range(2)]
    gates.wait(count=4)
    assert len(backends.ids()) == BACKENDS
    waiting = [group.send("/ok") for group in fleet.values()]
    wait_until(lambda: pools_of(bouncer)["cl_waiting"] == 2, what="waiting clients")
    found = pools_of(bouncer)
    assert found["cl_active"] + found["cl_waiting"] <= clients
    assert len(backends.ids()) == BACKENDS
    # To the pools, those that wait at PgBouncer are in use: none waits for the pool.
    prometheus.wait_scraped()
    used = 'db_client_connection_count{db_client_connection_state="used"}'
    assert prometheus.number(f"sum({used})") == 6
    assert prometheus.number("sum(db_client_connection_pending_requests)") == 0
    gates.open()
    assert {each.result(30).status for each in (*held, *waiting)} == {200}
    for host in HOSTS:
        done[host] += 3

    # Each host reports its own workers, to Prometheus and to the command.
    prometheus.wait_scraped()
    for host in HOSTS:
        assert prometheus.number(f'{CHECKOUTS}{{job="{host}"}}') == done[host]
    seen = run_cli(["pool-status", "--json"], env=control_of(short_tmp, "web-1"))
    pids = sorted(worker["pid"] for worker in seen.check().json["workers"])
    assert pids == fleet["web-1"].worker_pids()
    assert prometheus.number(f"sum({CHECKOUTS})") == sum(done.values()) == 80
    assert prometheus.number("sum(db_client_connection_max)") == clients
    assert prometheus.number('sum(scopedsession_workers{state="live"})') == 4

    # The series of each host, however many workers it has.
    series = page["series"](1, 1)
    for host, group in fleet.items():
        metrics = group.get("/metrics").text
        assert sum(len(family.samples) for family in parse(metrics)) == series
        scraped = f'scrape_samples_scraped{{job="{host}"}}'
        assert prometheus.number(scraped) == series
        assert prometheus.number(f'count({{job="{host}"}})') == series + 5

    # SIGKILL: what was scraped stays in the sum, and the new worker adds to it.
    group = fleet["web-1"]
    killed = group.worker_pids()[0]
    group.kill(killed, signal.SIGKILL)
    group.wait_gone(killed)
    wait_until(lambda: len(group.worker_pids()) == WORKERS, what="a new worker")
    group.visit_all("/ok")
    prometheus.wait_scraped()
    assert prometheus.number(f"sum({CHECKOUTS})") == 82
    assert prometheus.number(f"sum(resets({CHECKOUTS}[1m]))") == 0
    assert prometheus.number('sum(scopedsession_workers{state="live"})') == 4
    assert len(backends.ids()) <= BACKENDS
