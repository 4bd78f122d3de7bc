"""Many simulated workers in one process, with real sockets and real answers.

Each worker has its own socket, lock and identity, and the package's own thread serves
it. All workers share the process and the application that they report.
"""

from __future__ import annotations

import contextvars
import json
import math
import resource
import sys
import typing as t

import sqlalchemy as sa
from flask import Flask

from flask_scopedsession import ScopedSession
from flask_scopedsession._application import of
from flask_scopedsession._control.server import SERVER
from flask_scopedsession._live.reader import MOST


def main() -> None:
    """Serve the workers of the job until standard input ends."""
    job: dict[str, t.Any] = json.loads(sys.argv[1])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    db = ScopedSession()
    app = _app(db, job["directory"], job["sessions"])
    contexts = [_order(db, app, number) for number in range(job["sessions"])]
    live = of(app).live
    if len(live.worker().sessions) != min(len(contexts), MOST):
        raise RuntimeError("the snapshot does not show all sessions")
    for _ in range(job["endpoints"]):
        endpoint = SERVER.open(live._source())
        # Real workers do their housekeeping once a minute, at different moments.
        endpoint._next_housekeeping = math.inf
    print("ready", flush=True)
    sys.stdin.read()


def _order(db: ScopedSession[t.Any], app: Flask, number: int) -> contextvars.Context:
    """Begin a request that keeps its session and its connection."""

    def begin() -> None:
        app.test_request_context(f"/orders/{number}").push()
        db.session.execute(sa.text("SELECT 1"))

    # A context for each request, because Flask 3.1 reuses the application context
    # that it finds.
    context = contextvars.Context()
    context.run(begin)
    return context


def _app(db: ScopedSession[t.Any], directory: str, sessions: int) -> Flask:
    app = Flask("benchmarks")
    app.config.update(
        SCOPEDSESSION_NAME="benchmarks",
        SCOPEDSESSION_CONTROL=True,
        SCOPEDSESSION_CONTROL_DIR=directory,
        # Warnings about connections that are checked out for long are not measured.
        SCOPEDSESSION_HELD_LONG_AFTER=86_400,
        SQLALCHEMY_DATABASE_URI="sqlite:///:memory:",
        SQLALCHEMY_ENGINE_OPTIONS={
            "poolclass": "QueuePool",
            "pool_size": max(5, sessions),
        },
    )

    @app.get("/orders/<int:order>")
    def show_order(order: int) -> str:
        return str(order)

    db.init_app(app)
    return app


if __name__ == "__main__":
    main()
