"""Totals over all workers of a deployment, in which no counter ever goes backwards.

A file beside the control sockets has the counters of each worker, as they were last
seen. Those of a worker that has ended are added to ``ended``, for ever. Every scrape
asks the workers and writes the file while it holds a lock, so that one that began
earlier cannot count a worker again that a later one has already added.
"""

from __future__ import annotations

import json
import os
import time
import typing as t
from collections.abc import Generator
from contextlib import contextmanager

from .._control import directory
from .._format import count
from .._runtime.logs import fields
from .._runtime.logs import log
from ..errors import ControlError
from ..snapshot import Histogram
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot
from ._metrics import Labels
from ._metrics import Metric
from ._metrics import METRICS

if t.TYPE_CHECKING:
    from .._application import Application

#: A number; or the numbers of a histogram's buckets, and the sum in microseconds.
#: Integers, since a sum of floats depends on their order: when a worker ends, it could
#: go backwards by its last digit, which Prometheus takes for a restart from 0.
Numbers = list[int]

#: By the name of the metric and its labels, as JSON.
Counters = dict[str, Numbers]

#: By the name of a histogram. A file with other ones is of another version.
_BOUNDS = {
    metric.name: [*metric.bounds] for metric in METRICS if metric.kind == "histogram"
}

#: Seconds to wait for each worker.
TIMEOUT = 2.0

#: Seconds to wait for other scrapes.
_PATIENCE = 10.0


def numbers(value: int | Histogram) -> Numbers:
    """Return what can be added up."""
    if isinstance(value, Histogram):
        return [*value.buckets, round(value.sum * 1_000_000)]
    return [value]


def ask(application: Application, app: str, timeout: float) -> tuple[Survey, Counters]:
    """Ask all workers; return their answers, and the totals of all counters.

    :param timeout: Seconds to wait for each worker.
    :raises ControlError: The file cannot be used.
    """
    with _file(application) as file:
        survey = application.live.survey(timeout)
        _report_silent(application, survey)
        for worker in survey.workers:
            # Of a dead one whose counters are in `ended`, a last snapshot may be left.
            if worker.source == "live" or _key(worker) in file.workers:
                file.note(app, worker)
        answered = {_key(worker) for worker in survey.live}
        for key in file.workers.keys() - answered:
            if not _exists(int(key.partition("-")[0])):
                _add(file.ended, file.workers.pop(key))
    total: Counters = {}
    for counters in (file.ended, *file.workers.values()):
        _add(total, counters)
    return survey, total


def _report_silent(application: Application, survey: Survey) -> None:
    """Log a worker that lives and does not answer: each once, and one at a time."""
    for worker in survey.silent:
        if application.ledger.first_report(("silent", worker.id)):
            log.warning(
                "worker %s does not answer: %s. %s",
                worker.pid,
                worker.reason,
                f"{count(len(survey.silent), 'worker')} of {survey.app!r} are silent"
                if len(survey.silent) > 1
                else "All others answered",
                extra=fields(
                    "worker_lost",
                    worker_pid=worker.pid,
                    worker_id=worker.id,
                    state="silent",
                    reason=worker.reason,
                    silent=len(survey.silent),
                    last_snapshot=any(
                        each.id == worker.id and each.source == "last"
                        for each in survey.workers
                    ),
                ),
            )
            return


def note_end(application: Application, app: str) -> None:
    """Keep what this process, which is about to end, has counted since it was asked.

    :raises ControlError: The file cannot be used.
    """
    if application.live.answers:
        with _file(application) as file:
            file.note(app, application.live.worker())


def totals_of(metric: Metric, counters: Counters) -> dict[Labels, Numbers]:
    """Return the totals of one metric."""
    found = {}
    for series, values in counters.items():
        name, *labels = json.loads(series)
        if name == metric.name:
            found[tuple((key, value) for key, value in labels)] = values
    return found


class _File:
    """The contents of the file."""

    def __init__(self, content: bytes) -> None:
        try:
            data = json.loads(content)
            if data["bounds"] != _BOUNDS:
                raise ValueError("of a version with other buckets")
            self.ended: Counters = data["ended"]
            self.workers: dict[str, Counters] = data["workers"]
        except (ValueError, KeyError, TypeError):
            self.ended, self.workers = {}, {}

    def content(self) -> bytes:
        """Return what to write."""
        data = {"bounds": _BOUNDS, "ended": self.ended, "workers": self.workers}
        return json.dumps(data).encode()

    def note(self, app: str, worker: WorkerSnapshot) -> None:
        """Note a worker's counters, of which none goes backwards."""
        known = self.workers.setdefault(_key(worker), {})
        for metric in METRICS:
            if metric.kind == "updowncounter":
                continue
            for labels, value in metric.read(app, worker):
                if value is None:
                    continue
                series = json.dumps([metric.name, *labels])
                now = numbers(value)
                before = known.get(series, now)
                known[series] = [max(pair) for pair in zip(before, now, strict=True)]


@contextmanager
def _file(application: Application) -> Generator[_File, None, None]:
    """Lock, read and rewrite the file.

    :raises ControlError: The directory cannot be used, or the lock is not free.
    """
    # Deployments may share a configured directory.
    deployment = directory.deployment_id(application.settings.name)
    name = os.path.join(application.live.directory(), f"metrics-{deployment}")
    lock = os.open(f"{name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        _wait_for(lock, name)
        try:
            with open(f"{name}.json", "rb") as content:
                file = _File(content.read())
        except FileNotFoundError:
            file = _File(b"")
        yield file
        with open(f"{name}.new", "wb") as new:
            os.fchmod(new.fileno(), 0o600)
            new.write(file.content())
        os.replace(f"{name}.new", f"{name}.json")
    finally:
        os.close(lock)


def _wait_for(lock: int, name: str) -> None:
    # Not lockf(), which does not exclude other threads of the same process. And not a
    # call that blocks, since under gevent that would stop all greenlets.
    import fcntl  # absent on Windows, where there are no control sockets

    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise ControlError(
                    f"Other scrapes have held {name}.lock for {_PATIENCE:g}"
                    " seconds. Scrape less often."
                ) from None
            time.sleep(0.005)


def _key(worker: WorkerSnapshot) -> str:
    """Return what a worker keeps when it opens its control socket anew."""
    return f"{worker.pid}-{worker.started_at}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _add(total: Counters, more: Counters) -> None:
    for series, values in more.items():
        known = total.get(series, [0] * len(values))
        total[series] = [a + b for a, b in zip(known, values, strict=True)]
