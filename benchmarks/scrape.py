"""How long a scrape of the metrics takes: ``python -m benchmarks.scrape``.

Each worker is an application with its own control socket, pool and ledger, which has
served 20 requests to ten views, and holds five connections in sessions. Fifty of them
share a process, whose control thread answers for all. ``--per-process 1`` makes each a
process of its own; a thousand of these take two cores minutes to start.

The blueprint is served by one more worker, under gunicorn, and both endpoints are
measured by a client, over HTTP.
"""

from __future__ import annotations

import argparse
import contextvars
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack

import psutil
from flask import Flask

from flask_scopedsession import ScopedSession
from flask_scopedsession._application import of
from flask_scopedsession.metrics.prometheus import metrics_blueprint

from . import machine
from .endpoints import _app
from .endpoints import _order
from .runner import ROOT
from .runner import say
from .stats import spread

_VIEWS = 10
_REQUESTS = 20
_SESSIONS = 5

#: The environment variable with the directory of the control sockets.
_DIRECTORY = "SCRAPE_DIRECTORY"


def main() -> None:
    """Measure each number of workers, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scrape")
    parser.add_argument("--workers", default="10,100,1000", metavar="10,100,1000")
    parser.add_argument("--per-process", type=int, default=50, metavar="N")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    about = machine.describe()
    print(f"{about['processor']}, {about['cores']} cores, {about['python']}")
    print("workers  endpoint      median  quartiles   slowest  CPU: endpoint, workers")
    for count in map(int, given.workers.split(",")):
        for name, took, own, others in _measure(count, given):
            low, median, high = (f"{value:.2f}" for value in spread(took))
            print(
                f"{count:7}  {name:12} {median:>5} s  {low}-{high} s"
                f"  {max(took):5.2f} s  {spread(own).median:.2f} s,"
                f" {spread(others).median:.2f} s"
            )


def _measure(
    count: int, given: argparse.Namespace
) -> Iterator[tuple[str, list[float], list[float], list[float]]]:
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="fs-bench-")
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        say(f"  {count} workers start")
        workers = stack.enter_context(_workers(directory, count, given.per_process))
        for name, command, answering in (
            ("blueprint", _gunicorn, count + 1),
            ("pool-metrics", _pool_metrics, count + 1),
        ):
            process, url = stack.enter_context(command(directory))
            took, own, others = [], [], []
            for _ in range(given.rounds + 1):
                time.sleep(0.15)  # a worker repeats its answer for a tenth of a second
                before, of_workers = _cpu(process), sum(map(_cpu, workers))
                began = time.perf_counter()
                with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
                    page = answer.read().decode()
                took.append(time.perf_counter() - began)
                own.append(_cpu(process) - before)
                others.append(sum(map(_cpu, workers)) - of_workers)
                states = re.findall(r'scopedsession_workers{.*"(\w+)"} (\d+)', page)
                if ("live", str(answering)) not in states:
                    say(f"  of {answering} workers: {states}")
            # The first one is the endpoint's start.
            yield name, took[1:], own[1:], others[1:]


@contextmanager
def _workers(
    directory: str, count: int, per_process: int
) -> Iterator[list[psutil.Process]]:
    """Fork the workers; they end when this process closes its pipe, or ends."""
    alive, closing = os.pipe()
    answering, answers = os.pipe()
    pids: list[int] = []
    try:
        for first in range(0, count, per_process):
            pid = os.fork()
            if pid == 0:
                os.close(closing)
                _serve(directory, min(per_process, count - first), answers, alive)
            pids.append(pid)
            # One after the other: a thousand at a time would start for minutes.
            if os.read(answering, 1) != b"+":
                raise RuntimeError("a worker did not start")
        yield [psutil.Process(pid) for pid in pids]
    finally:
        os.close(closing)
        for pid in pids:
            os.waitpid(pid, 0)
        for end in (alive, answering, answers):
            os.close(end)


def _serve(directory: str, count: int, answers: int, alive: int) -> t.NoReturn:
    """Be so many workers, and end without the parent's exit handlers."""
    answer = b"-"
    try:
        workers = [_worker(directory, number) for number in range(count)]
        answer = b"+" if len(workers) == count else answer
    finally:
        os.write(answers, answer)
        if answer == b"+":
            os.read(alive, 1)  # returns at the end of the measurement
        os._exit(answer != b"+")


def _worker(directory: str, number: int) -> list[contextvars.Context]:
    db, app = _loaded(directory)
    # Workers are told apart by their process and when it was started.
    of(app).live._ledger.started += number / 1000
    client = app.test_client()
    for request in range(_REQUESTS):
        client.get(f"/v{request % _VIEWS}")
    return [_order(db, app, order) for order in range(_SESSIONS)]


def _loaded(directory: str) -> tuple[ScopedSession[t.Any], Flask]:
    db = ScopedSession()
    app = _app(db, directory, _SESSIONS)

    def view() -> str:
        return str(db.session.connection().exec_driver_sql("SELECT 1").scalar())

    for number in range(_VIEWS):
        app.add_url_rule(f"/v{number}", f"v{number}", view)
    app.register_blueprint(metrics_blueprint(db))
    return db, app


def create_app() -> Flask:
    """Make the application of the two endpoints."""
    return _loaded(os.environ[_DIRECTORY])[1]


@contextmanager
def _gunicorn(directory: str) -> Iterator[tuple[psutil.Process, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}"]
    command += ["--no-control-socket", "benchmarks.scrape:create_app()"]
    with _running(command, directory) as process:
        url = f"http://127.0.0.1:{port}/metrics"
        while True:
            try:
                with urllib.request.urlopen(url, timeout=60):
                    break
            except OSError:
                if process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield psutil.Process(process.pid).children()[0], url


@contextmanager
def _pool_metrics(directory: str) -> Iterator[tuple[psutil.Process, str]]:
    command = [sys.executable, "-m", "flask_scopedsession"]
    command += ["--app", "benchmarks.scrape:create_app"]
    command += ["pool-metrics", "--listen", "127.0.0.1:0"]
    with _running(command, directory) as process:
        line = t.cast(t.Any, process.stdout).readline().decode()
        yield psutil.Process(process.pid), line.split()[1]


@contextmanager
def _running(command: list[str], directory: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, _DIRECTORY: directory}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=env, cwd=ROOT, **quiet) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
