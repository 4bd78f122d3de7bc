"""Sizes and durations for the page on fleets: ``python -m benchmarks.fleet``.

A host with many workers is scraped through the real ``/metrics``. The workers are those
of W11: their sockets, locks and answers are real, but 250 of them share a process.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import tempfile
import time
import typing as t

import sqlalchemy as sa
from flask import Flask

from flask_scopedsession import ScopedSession
from flask_scopedsession._application import of
from flask_scopedsession._control.directory import LAST_LIMIT
from flask_scopedsession._control.protocol import REPLY_LIMIT
from flask_scopedsession.metrics._totals import _File
from flask_scopedsession.metrics._totals import Counters
from flask_scopedsession.metrics.prometheus import metrics_blueprint
from flask_scopedsession.snapshot import WorkerSnapshot

from .endpoints import _app
from .endpoints import _order
from .status import _serving

#: Scrapes of each number of workers.
_SCRAPES = 10


def scrapes(workers: int) -> dict[str, t.Any]:
    """Scrape a host with this many workers, each with five open sessions."""
    with _serving(workers, 5) as directory:
        db = ScopedSession()
        app = Flask("benchmarks")
        app.config.update(
            SCOPEDSESSION_NAME="benchmarks",
            SCOPEDSESSION_CONTROL=True,
            SCOPEDSESSION_CONTROL_DIR=directory,
            SQLALCHEMY_DATABASE_URI="sqlite:///:memory:",
        )
        db.init_app(app)
        app.register_blueprint(metrics_blueprint(db))
        took: list[float] = []
        cpu: list[float] = []
        text = ""
        for _ in range(_SCRAPES):
            time.sleep(0.15)  # a worker repeats its answer for a tenth of a second
            began, used = time.perf_counter(), time.process_time()
            reply = app.test_client().get("/metrics")
            took.append((time.perf_counter() - began) * 1000)
            cpu.append((time.process_time() - used) * 1000)
            if reply.status_code != 200:
                raise RuntimeError(reply.text)
            text = reply.text
        db.dispose(app)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    (live,) = (line for line in lines if 'state="live"' in line)
    if float(live.split()[-1]) < workers:
        raise RuntimeError(live)
    return {
        "workers": workers,
        "series": len(lines),
        "page_bytes": len(text),
        "page_gzip_bytes": len(gzip.compress(text.encode())),
        "scrape_ms": round(min(took), 1),
        "scrape_cpu_ms": round(statistics.median(cpu), 1),
    }


def document(directory: str, sessions: int) -> dict[str, t.Any]:
    """Measure the document of a worker with 20 views, and so many open sessions."""
    db = ScopedSession()
    app = _app(db, directory, sessions)

    def view() -> str:
        return str(db.session.scalar(sa.text("SELECT 1")))

    for number in range(20):
        app.add_url_rule(f"/view/{number}", f"shop.view_{number}", view)
    client = app.test_client()
    for number in range(400):
        client.get(f"/view/{number % 20}")
    contexts = [_order(db, app, number) for number in range(sessions)]
    live = of(app).live
    found = {
        "sessions": sessions,
        "document_bytes": len(live.reply("1-00000000", REPLY_LIMIT)),
        "last_snapshot_bytes": len(live._fitting(live.worker(), LAST_LIMIT)),
        "kept_bytes": len(json.dumps(_kept(app.name, live.worker()))),
    }
    contexts.clear()
    db.dispose(app)
    return found


def _kept(app: str, worker: WorkerSnapshot) -> Counters:
    """Return what the file of the totals keeps of a worker."""
    file = _File(b"")
    file.note(app, worker)
    (kept,) = file.workers.values()
    return kept


def main() -> None:
    """Print one line of JSON for each measurement."""
    with tempfile.TemporaryDirectory(prefix="fs-bench-") as directory:
        for sessions in (0, 10, 250):
            print(json.dumps(document(directory, sessions)), flush=True)
    for workers in map(int, sys.argv[1:] or (1, 10, 100, 250)):
        print(json.dumps(scrapes(workers)), flush=True)


if __name__ == "__main__":
    main()
