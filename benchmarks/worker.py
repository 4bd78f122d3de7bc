"""The process of a contestant: runs slices on demand.

Orders and answers are JSON objects, one per line. The process starts with a job,
answers that it is ready or why it failed, and then answers each order with a
measurement.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
import typing as t
from collections.abc import Callable

from flask import Flask

from . import apps
from . import load
from . import memory
from .contestants import Access
from .contestants import Contestant
from .contestants import CONTESTANTS
from .contestants import Database
from .contestants import InitApp

#: Requests before each slice that are not measured. They include ours' test of a
#: pooled connection that was idle while the other contestants ran.
_WARM_UP = 5


class Job(t.NamedTuple):
    """The job of a process; sent as JSON."""

    contestant: str
    url: str
    options: dict[str, t.Any]
    folder: str


class Bench:
    """One contestant, ready to run."""

    def __init__(self, job: Job) -> None:
        self._folder = job.folder
        contestant: Contestant = CONTESTANTS[job.contestant]
        self._database = Database(
            job.url,
            {**apps.ENGINE, **job.options},
            # Everything is on. The directory keeps real workers out.
            {
                "SCOPEDSESSION_CONTROL": True,
                "SCOPEDSESSION_CONTROL_DIR": f"{job.folder}/c",
            },
        )
        self._init_app: InitApp = contestant.build()
        self.app: Flask
        self._access: Access
        self.app, self._access = apps.make_app(
            self._init_app, self._database, self._folder
        )

    def ready(self) -> dict[str, t.Any]:
        """Serve a first request; return the settings, for comparison."""
        apps.call(self.app, apps.environ("/W2"))
        return {"settings": apps.settings_of(self.app, self._access)}

    def slice(self, workload: str, setting: str) -> Callable[[int], None]:
        """Return a function that runs `n` steps of a case."""
        if workload == "W6":
            return self._applications
        if workload == "W10":
            return self._checkouts
        path = f"/W5-{setting}" if workload == "W5" else f"/{workload}"
        return self._requests(path)

    def _requests(self, path: str) -> Callable[[int], None]:
        app, request, call = self.app, apps.environ(path), apps.call

        def run(n: int) -> None:
            for _ in range(n):
                call(app, request)

        return run

    def _applications(self, n: int) -> None:
        for _ in range(n):
            apps.make_app(self._init_app, self._database, self._folder)

    def one_more_app(self) -> Flask:
        """Create another application with the same factory."""
        return apps.make_app(self._init_app, self._database, self._folder)[0]

    def _checkouts(self, n: int) -> None:
        # Within a request, as in an application.
        with self.app.test_request_context("/W2"):
            pool = self._access.engine().pool
            for _ in range(n):
                pool.connect().close()


def measure(run: Callable[[int], None], n: int) -> dict[str, float]:
    """Run a slice of `n` steps; return the microseconds of a step."""
    run(min(n, _WARM_UP))
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    run(n)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"wall": wall * 1e6 / n, "cpu": cpu * 1e6 / n}


def execute(bench: Bench, order: dict[str, t.Any]) -> dict[str, t.Any]:
    """Carry out an order; return the measurement."""
    what = order.pop("do")
    if what == "slice":
        return measure(bench.slice(order["workload"], order["setting"]), order["n"])
    if what == "closed":
        return load.closed_loop(bench.app, **order)
    if what == "open":
        return load.open_loop(bench.app, **order)
    if what == "requests":
        return memory.after_requests(bench.app, **order)
    if what == "apps":
        return memory.after_apps(bench.one_more_app, **order)
    raise ValueError(what)


def main() -> None:
    """Carry out orders until standard input ends."""
    # Output of a contestant must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, t.Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    logging.disable(logging.CRITICAL)
    try:
        apps.keep_sqlite_off_the_disk()
        apps.calibrate_spin()
        bench = Bench(Job(**json.loads(sys.argv[1])))
        answer(bench.ready())
    except Exception as error:  # noqa: BLE001 - named in the report
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        try:
            answer(execute(bench, json.loads(line)))
        except Exception as error:  # noqa: BLE001
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
