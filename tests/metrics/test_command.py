"""``flask pool-metrics``: the totals of all workers, without a route of theirs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from environment import child_environ
from environment import WORKERS
from lean import LEAN
from prometheus_client.parser import text_string_to_metric_families as parse

MODULE = [
    *(sys.executable, LEAN, "-m", "flask_scopedsession"),
    *("--app", "live_app:create_app"),
]


def run(env, *options):
    return subprocess.Popen(
        [*MODULE, "pool-metrics", *options],
        env=child_environ(env),
        cwd=WORKERS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.workers
def test_pool_metrics(prefork, live_env):
    """It tells what the workers have done, and ends with Ctrl-C."""
    group = prefork(count=2)
    for pid in group.worker_pids():
        group.get("/ok", on=pid)
    with run(live_env, "--listen", "127.0.0.1:0") as command:
        said = command.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", said)[0]
        page = urllib.request.urlopen(url, timeout=20).read().decode()
        group.stop()
        after = urllib.request.urlopen(url, timeout=20).read().decode()
        command.send_signal(signal.SIGINT)
        _, errors = command.communicate(timeout=20)
    for text, live in ((page, 2), (after, 0)):
        found = {
            (s.name, *s.labels.values()): s.value
            for f in parse(text)
            for s in f.samples
        }
        assert found["scopedsession_workers", "live_app", "live"] == live
        assert (
            found["db_client_connection_wait_time_seconds_count", "live_app/default"]
            == 2
        )
    assert (command.returncode, errors) == (130, "")


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("listen", "env", "code", "reason"),
    [
        ("9188", {}, 2, "is not ADDRESS:PORT"),
        ("192.0.2.1:9188", {}, 1, "Cannot listen on 192.0.2.1:9188"),
        (
            "127.0.0.1:0",
            {"FLASK_SCOPEDSESSION_CONTROL": "false"},
            1,
            "SCOPEDSESSION_CONTROL is off",
        ),
    ],
)
def test_it_cannot_serve(live_env, listen, env, code, reason):
    with run({**live_env, **env}, "--listen", listen) as command:
        _, errors = command.communicate(timeout=20)
    assert command.returncode == code
    assert reason in errors


def test_the_entry_point():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    point = 'pool-metrics = "flask_scopedsession.metrics.command:pool_metrics"'
    assert point in pyproject
