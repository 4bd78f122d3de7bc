"""W11: the duration of ``flask pool-status``, by workers and by sessions."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask_scopedsession._live.reader import MOST
from flask_scopedsession._live.survey import survey_directory

from .runner import Plan
from .runner import ROOT
from .runner import say
from .stats import spread

#: Simulated workers in one process; each needs two file descriptors.
_PER_PROCESS = 250

#: Sessions of each worker while the number of workers varies.
_SESSIONS = 5


def run(plan: Plan) -> dict[str, t.Any]:
    """Measure each number of workers and of sessions; return the report's entry."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    by_workers = [(count, _SESSIONS) for count in (1, 10, 100, 1000)]
    by_sessions = [(1, count) for count in (0, 10, 100, 1000)]
    return {
        "id": "W11",
        "title": "`flask pool-status`, by workers and by sessions per worker",
        "lines": [
            _measure(workers, sessions, plan)
            for workers, sessions in (*by_workers, *by_sessions)
        ],
    }


def _measure(workers: int, sessions: int, plan: Plan) -> dict[str, t.Any]:
    say(f"  W11: {workers} workers with {sessions} sessions each")
    ask: list[float] = []
    command: list[float] = []
    answered = 0
    with _serving(workers, sessions) as directory:
        for _ in range(3 if plan.quick else 6):
            time.sleep(0.15)  # a worker repeats its answer for a tenth of a second
            began = time.perf_counter()
            found = survey_directory(directory, 10.0)
            ask.append((time.perf_counter() - began) * 1000)
            answered = sum(len(w.sessions) == min(sessions, MOST) for w in found.live)
            time.sleep(0.15)
            began = time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, "-m", "flask_scopedsession", "pool-status"),
                    *("--timeout", "10", "--control-dir", directory),
                ],
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
                check=True,
            )
            command.append((time.perf_counter() - began) * 1000)
    return {
        "workers": workers,
        "sessions": sessions,
        "answered": answered,
        "ask_ms": ask,
        "command_ms": command,
        "ask": spread(ask),
        "command": spread(command),
    }


@contextmanager
def _serving(workers: int, sessions: int) -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="fs-bench-")
    Path(directory).chmod(0o700)
    processes = []
    try:
        for first in range(0, workers, _PER_PROCESS):
            count = min(_PER_PROCESS, workers - first)
            job = {"directory": directory, "endpoints": count, "sessions": sessions}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.endpoints", json.dumps(job)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    cwd=ROOT,
                )
            )
        for process in processes:
            if t.cast(t.Any, process.stdout).readline() != b"ready\n":
                raise RuntimeError("a process of simulated workers did not start")
        yield directory
    finally:
        for process in processes:
            t.cast(t.Any, process.stdin).close()
        for process in processes:
            process.wait(60)
            t.cast(t.Any, process.stdout).close()
        shutil.rmtree(directory, ignore_errors=True)
