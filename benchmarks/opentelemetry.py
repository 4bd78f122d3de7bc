"""What OpenTelemetry costs: ``python -m benchmarks.opentelemetry``.

A request executes one ``SELECT`` on SQLite, as in W2. The requests between two
collections vary, and each round measures all of them in a shuffled order. A collection
runs in the thread of a metric reader, and takes processor time from the requests.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from flask import Flask
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import text

from flask_scopedsession import ScopedSession
from flask_scopedsession.metrics.opentelemetry import instrument

from . import machine
from .apps import call
from .apps import environ
from .stats import spread


def main() -> None:
    """Measure each number of requests, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opentelemetry")
    parser.add_argument("--requests", default="100,1000,5000", metavar="100,1000,5000")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    counts = [int(count) for count in given.requests.split(",")]
    about = machine.describe()
    print(f"{about['processor']}, {about['cores']} cores, {about['python']}")
    with tempfile.TemporaryDirectory(prefix="fs-bench-") as folder:
        measured = _measure(Path(folder), counts, given.rounds)
    print("requests between collections  request  collection, per request  ratio")
    for count, found in measured.items():
        request = spread([own / count for own, _ in found]).median
        each = spread([extra / count for _, extra in found]).median
        low, median, high = spread([extra / own for own, extra in found])
        print(
            f"{count:28}  {request * 1e6:4.0f} µs  {each * 1e6:20.2f} µs"
            f"  {median:.2%} ({low:.2%} to {high:.2%})"
        )


def _measure(
    folder: Path, counts: list[int], rounds: int
) -> dict[int, list[tuple[float, float]]]:
    """Return the processor seconds of the requests, and of collecting, by count."""
    db = ScopedSession()
    app = Flask("shop", instance_path=str(folder))
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{folder}/shop.sqlite3"
    app.config["SCOPEDSESSION_CONTROL_DIR"] = str(folder / "run")
    db.init_app(app)
    app.add_url_rule("/", view_func=lambda: str(db.session.scalar(text("SELECT 1"))))
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrument(db, app, provider)
    request = environ("/")
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for round_ in range(rounds + 1):
        for count in random.sample(counts, len(counts)):
            began = time.process_time()
            for _ in range(count):
                call(app, request)
            requested = time.process_time()
            reader.get_metrics_data()
            ended = time.process_time()
            if round_:  # not what is done once
                found[count].append((requested - began, ended - requested))
    provider.shutdown()
    db.dispose(app)
    return found


if __name__ == "__main__":
    main()
