"""A real Prometheus scrapes real workers: its totals, the alerts and the dashboard."""

from __future__ import annotations

import json
import re
import string
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from signal import SIGHUP
from signal import SIGINT
from signal import SIGKILL
from typing import Any

import pytest
from environment import child_environ
from environment import WORKERS
from lean import LEAN
from prefork import Prefork
from prometheus_server import Prometheus
from prometheus_server import promtool
from sqlalchemy import text
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.metrics.prometheus import metrics_blueprint

pytestmark = pytest.mark.prometheus

FILES = Path(__file__).parents[2] / "docs" / "prometheus"
ALERTS = FILES / "alerts.yml"
DASHBOARD = json.loads((FILES / "grafana.json").read_text("utf-8"))

CHECKOUTS = "sum(db_client_connection_wait_time_seconds_count{job='%s'})"
TIMEOUTS = "sum(db_client_connection_timeouts_total{job='%s'})"
LOST_WORK = "sum(scopedsession_lost_work_total{job='%s'})"
POOL = "db_client_connection_pool_name"


@pytest.fixture
def serving(prefork, run_cli):
    """Start workers with the metrics, each with a pool of one connection, and more."""

    def serve(name: str, count: int, *, overflow: int = 0) -> Prefork:
        env = {
            "FLASK_SCOPEDSESSION_NAME": name,
            "FLASK_SQLALCHEMY_ENGINE_OPTIONS__pool_size": "1",
            "FLASK_SQLALCHEMY_ENGINE_OPTIONS__max_overflow": str(overflow),
            "FLASK_SQLALCHEMY_ENGINE_OPTIONS__pool_timeout": "0.1",
        }
        run_cli(["create-tables"], env=env).check()
        return prefork("metrics_app:create_app()", count=count, env=env)

    return serve


@pytest.fixture
def prometheus(short_tmp):
    """Start a Prometheus: ``prometheus(rules=[...], job=url, ...)``."""
    with ExitStack() as stack:

        def start(*, rules: Any = (), **targets: str) -> Prometheus:
            server = Prometheus(short_tmp, targets, rules)
            stack.enter_context(server).wait_serving()
            server.wait_scraped()
            return server

        yield start


@contextmanager
def pool_metrics(env: dict[str, str | None]) -> Iterator[str]:
    """Run ``pool-metrics``; yield its URL."""
    module = [sys.executable, LEAN, "-m", "flask_scopedsession"]
    options = ["--app", "live_app:create_app", "pool-metrics", "--listen"]
    with subprocess.Popen(
        [*module, *options, "127.0.0.1:0"],
        env=child_environ(env),
        cwd=WORKERS,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as command:
        try:
            assert command.stdout is not None
            yield command.stdout.readline().split()[1]
        finally:
            command.send_signal(SIGINT)


class Load:
    """Sends requests, and counts what their answers say that the views have done."""

    def __init__(self, group: Prefork) -> None:
        self.done: Counter[str] = Counter()
        self._group = group
        self._lock = threading.Lock()

    def visit(self, path: str, on: int | None = None) -> None:
        """Send one request; nobody knows what it did if there is no answer."""
        try:
            reply = self._group.get(path, on=on)
        except OSError:
            found = ["unknown"]
        else:
            timed_out = reply.status == 500 or bool(reply.json.get("error"))
            found = ["timeouts" if timed_out else "checkouts"]
            if path == "/forget":
                found.append("lost")
        with self._lock:
            self.done.update(found)

    @contextmanager
    def steady(self, path: str) -> Iterator[None]:
        """Send requests from four threads at a time, meanwhile."""
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                self.visit(path)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def wait_for(self, more: int) -> None:
        """Wait until so many more requests were answered."""
        enough = self.done.total() + more
        wait_until(lambda: self.done.total() >= enough, what="traffic")

    def agrees(self, server: Prometheus, *jobs: str) -> None:
        """Expect these numbers in Prometheus, and no more than the unknown ones."""
        server.wait_scraped()
        unknown = self.done["unknown"]
        for job in jobs:
            for expression, counted in (
                (CHECKOUTS, self.done["checkouts"]),
                (TIMEOUTS, self.done["timeouts"]),
                (LOST_WORK, self.done["lost"]),
            ):
                found = server.number(expression % job)
                assert counted <= found <= counted + unknown, (expression, self.done)


def counters(server: Prometheus) -> list[str]:
    """Return the names of all counters and histograms of ours."""
    kinds = server.api("metadata")
    ours = re.compile("(db_client_connection|scopedsession)_")
    found = [name for name in kinds if ours.match(name)]
    suffixes = {"counter": ["_total"], "histogram": ["_count", "_sum", "_bucket"]}
    return [
        name.removesuffix("_total") + suffix
        for name in found
        for suffix in suffixes.get(kinds[name][0]["type"], ())
    ]


@pytest.mark.workers
def test_totals_in_prometheus(serving, prometheus, live_env, gates, run_cli):
    """They are those of the load, and stay so when workers are killed or restarted."""
    group, other = serving("one", 3), serving("two", 1)
    load, others = Load(group), Load(other)
    group.visit_all()
    name = {"FLASK_SCOPEDSESSION_NAME": "one"}
    with pool_metrics({**live_env, **name}) as command:
        server = prometheus(
            one=f"{group.url}/metrics", two=f"{other.url}/metrics", command=command
        )
        with load.steady("/ok"):
            load.wait_for(200)
        for _ in range(3):
            load.visit("/forget")
            others.visit("/forget")
        for pid in group.worker_pids():
            gate = f"of-{pid}"
            blocked = group.send(f"/block?name={gate}", on=pid)
            gates.wait(gate)
            load.visit("/refused", on=pid)
            gates.open(gate)
            assert blocked.result(30).status == 200
            load.done["checkouts"] += 1
        assert load.done["timeouts"] >= 3
        load.agrees(server, "one", "command")
        others.agrees(server, "two")

        status = run_cli(["pool-status", "--json"], env=name).check().json
        pools = [pool for worker in status["workers"] for pool in worker["pools"]]
        assert len(pools) == 3
        for job in ("one", "command"):
            in_job = f"{{job='{job}'}}"
            lost = sum(worker["lost_work_total"] for worker in status["workers"])
            assert server.number(LOST_WORK % job) == lost
            for expression, field in (
                (CHECKOUTS % job, "checkouts_total"),
                (TIMEOUTS % job, "timeouts_total"),
                (f"sum(db_client_connection_max{in_job})", "max"),
                (f"sum(db_client_connection_count{in_job})", "open"),
                (
                    f"sum(db_client_connection_create_time_seconds_count{in_job})",
                    "connects_total",
                ),
            ):
                assert server.number(expression) == sum(p[field] for p in pools), field

        killed = group.worker_pids()[0]
        group.kill(killed, SIGKILL)
        group.wait_gone(killed)
        load.agrees(server, "one", "command")
        wait_until(lambda: len(group.worker_pids()) == 3, what="a new worker")

        before = set(group.worker_pids())
        with load.steady("/ok"):
            load.wait_for(50)
            group.kill(group.pid, SIGHUP)
            wait_until(lambda: not before & set(group.worker_pids()), what="the end")
            load.wait_for(50)
        load.agrees(server, "one", "command")
        others.agrees(server, "two")
        found = counters(server)
        assert len(found) >= 12
        for counter in found:
            resets = server.query(f"resets({counter}[1h])")
            assert set(resets.values()) == {0}, counter


# Alerts and dashboard


@pytest.mark.workers
def test_alerts_and_dashboard(serving, prometheus, short_tmp):
    """No alert of an idle service, one of each leak; each panel shows something."""
    group = serving("one", 1, overflow=1)
    # What fires soon, fires at once.
    rules = short_tmp / "alerts.yml"
    soon = re.sub("for: (30s|1m|2m)", "for: 0s", ALERTS.read_text("utf-8"))
    rules.write_text(soon, encoding="utf-8")
    server = prometheus(rules=[rules], shop=f"{group.url}/metrics")
    evaluate(server)
    assert server.firing() == {}

    # Panels show rates, and a histogram appears when it has counted something.
    for path in ("/nested", "/nested"):
        group.get(path)
        server.wait_scraped()
    for panel in DASHBOARD["panels"]:
        for query in queries(panel, server):
            assert server.wait_for(query)
    assert server.firing() == {}

    group.get("/leak")
    wait_until(
        lambda: server.firing().keys() == {"ScopedSessionConnectionsLeaked"},
        what=lambda: f"the alert; there are {server.firing()}",
    )
    leak = server.firing()["ScopedSessionConnectionsLeaked"]
    assert (leak[POOL], leak["job"]) == ("live_app/default", "shop")
    group.get("/leak")
    group.get("/refused")
    group.get("/unleak")
    group.get("/forget")
    after = {"ScopedSessionCheckoutTimeouts", "ScopedSessionLostWork"}
    wait_until(
        lambda: server.firing().keys() == after,
        what=lambda: f"the end of the leak; there are {server.firing()}",
    )
    told = [alert["annotations"] for alert in server.api("alerts")["alerts"]]
    assert all(each["summary"] and "`flask " in each["description"] for each in told)


def evaluate(server: Prometheus) -> None:
    """Wait until all rules have been evaluated on a scrape after this moment."""
    server.wait_scraped()
    began = time.time()

    def evaluated() -> bool:
        [group] = server.api("rules")["groups"]
        assert all(rule["health"] != "err" for rule in group["rules"]), group
        return datetime.fromisoformat(moment(group)).timestamp() > began

    def moment(group: Any) -> str:
        # Python 3.10 reads neither "Z" nor nanoseconds.
        return re.sub(r"(\.\d{6})\d*Z", r"\1+00:00", group["lastEvaluation"])

    wait_until(evaluated, what="an evaluation of the rules")


def queries(panel: dict[str, Any], server: Prometheus) -> Iterator[str]:
    """Return a panel's queries, with the variables as Grafana puts them in."""
    everything = {"app": ".*", "bind": ".*", "instance": ".*"}
    one = {name: choices(name, server)[0] for name in everything}
    for target in panel["targets"]:
        for chosen in (everything, one):
            yield string.Template(target["expr"]).substitute(
                chosen, __rate_interval="1m", __range="1h"
            )


def choices(name: str, server: Prometheus) -> list[str]:
    """Return what one can choose for a variable of the dashboard."""
    [variable] = [v for v in DASHBOARD["templating"]["list"] if v["name"] == name]
    query = re.sub(r"\$app", ".*", variable["query"]["query"])
    series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    found = server.api(f"label/{label}/values", **{"match[]": series})
    only = re.compile(variable["regex"].strip("/"))
    return [only.search(value)[0] if variable["regex"] else value for value in found]


def test_rules_of_the_alerts():
    """promtool finds no fault with them, and they fire when they should only."""
    assert "SUCCESS" in (said := promtool("check", "rules", ALERTS)), said
    said = promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))
    assert said.endswith("exit 0\n"), said
    rules = ALERTS.read_text("utf-8")
    names = set(re.findall(r"alert: (\w+)", rules))
    tested = Path(__file__).with_name("alerts_test.yml").read_text("utf-8")
    fired = {
        name for name in names if f'alertname="{name}", alertstate="firing"' in tested
    }
    assert fired == names
    for part in (r"for: [1-9]", r"severity: (warning|critical)", "summary: ", "`flask"):
        assert len(re.findall(part, rules)) >= len(names), part


def test_the_conventions_for_names(make_app, sqlite_url):
    """promtool finds fault with one name only, which OpenTelemetry prescribes."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SCOPEDSESSION_CONTROL=True)
    app.register_blueprint(metrics_blueprint(db))
    app.get("/")(lambda: str(db.session.scalar(text("SELECT 1"))))
    client = app.test_client()
    client.get("/")
    page = client.get("/metrics").text
    assert "db_client_connection_use_time_seconds_bucket" in page
    assert promtool("check", "metrics", input=page) == (
        "db_client_connection_count non-histogram and non-summary metrics should not"
        ' have "_count" suffix\nexit 3\n'
    )
