"""W12: real HTTP, under gunicorn's gthread worker, with PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import psutil

from . import apps
from .cases import Case
from .cases import SERVED
from .runner import Plan
from .runner import Result
from .runner import ROOT
from .runner import say
from .served import JOB

#: Threads of the worker, and of the clients.
_THREADS = 8
_CLIENTS = 8

_PATHS = {"select": "/W2", "write": "/W3"}


class Server:
    """A gunicorn with one worker."""

    def __init__(self, key: str, url: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="fs-bench-")
        apps.fill(url)
        self.port = _free_port()
        job = {"contestant": key, "url": url, "folder": self.folder}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--worker-class", "gthread"),
                *("--workers", "1", "--threads", str(_THREADS), "--keep-alive", "60"),
                *("--bind", f"127.0.0.1:{self.port}", "--log-level", "error"),
                *("--no-control-socket", "benchmarks.served:create_app()"),
            ],
            env={**os.environ, JOB: json.dumps(job)},
            cwd=ROOT,
        )

    def wait_ready(self) -> None:
        """Wait until the worker answers.

        :raises TimeoutError: It does not answer in time, or with an error.
        """
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/W1") as got:
                    got.read()
            except urllib.error.HTTPError as error:
                raise TimeoutError(f"answers {error.code}") from None
            except OSError:
                time.sleep(0.05)
            else:
                [self._worker] = psutil.Process(self._process.pid).children()
                return
        raise TimeoutError("does not answer")

    def cpu_s(self) -> float:
        """Return the CPU time of the worker so far."""
        times = self._worker.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End gunicorn, and remove its files."""
        self._process.terminate()
        self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class _Clients:
    """The process that sends the requests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            encoding="utf-8",
        )

    def ask(self, server: Server, path: str, seconds: float) -> dict[str, float]:
        """Send requests for some seconds; return rates, latencies and CPU time."""
        order = {
            "port": server.port,
            "path": path,
            "threads": _CLIENTS,
            "seconds": seconds,
        }
        stdin, stdout = t.cast(t.Any, self._process.stdin), self._process.stdout
        cpu = server.cpu_s()
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        answer: dict[str, t.Any] = json.loads(t.cast(t.Any, stdout).readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        answer["cpu"] = (server.cpu_s() - cpu) * 1e6 / answer.pop("count")
        return answer

    def close(self) -> None:
        """End the process."""
        t.cast(t.Any, self._process.stdin).close()
        self._process.wait(30)
        t.cast(t.Any, self._process.stdout).close()


def run(plan: Plan, urls: Iterator[str]) -> list[Result]:
    """Run both cases against the same servers."""
    results = [Result.of(case) for case in SERVED]
    with ExitStack() as stack:
        clients = _Clients()
        stack.callback(clients.close)
        servers: dict[str, Server] = {}
        for key in results[0].running:
            server = Server(key, next(urls))
            stack.callback(server.close)
            try:
                server.wait_ready()
            except TimeoutError as error:
                for result in results:
                    result.rows[key].problem = str(error)
            else:
                servers[key] = server
        for result in results:
            _run_case(result, clients, servers, plan)
    return results


def _run_case(
    result: Result, clients: _Clients, servers: dict[str, Server], plan: Plan
) -> None:
    case: Case = result.case
    path = _PATHS[case.setting]
    for server in servers.values():
        clients.ask(server, path, 0.5)
    for number in range(plan.rounds):
        say(f"  {case.id}: round {number + 1} of {plan.rounds}")
        for key in plan.shuffled(servers, number):
            # The system counts CPU time in ticks of 10 ms, so a round takes seconds.
            result.rows[key].add(clients.ask(servers[key], path, plan.load_s))
