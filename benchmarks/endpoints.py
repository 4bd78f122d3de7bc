"""Many simulated workers in one process: their sockets are real, and so is each answer.

Each has a socket, a lock and an identity of its own, and is served by the package's own
thread. What is shared is the application that they tell of, and the process.
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


def main() -> None:
    """Serve as the job says, until standard input ends."""
    job: dict[str, t.Any] = json.loads(sys.argv[1])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    db = ScopedSession()
    app = _app(db, job["directory"], job["sessions"])
    contexts = [_order(db, app, number) for number in range(job["sessions"])]
    live = of(app).live
    if len(live.worker().sessions) != len(contexts):
        raise RuntimeError("the sessions are not as many as they should be")
    for _ in range(job["endpoints"]):
        endpoint = SERVER.open(live._source())
        # Real workers keep house once a minute, and not all at the same moment.
        endpoint._next_housekeeping = math.inf
    print("ready", flush=True)
    sys.stdin.read()


def _order(db: ScopedSession[t.Any], app: Flask, number: int) -> contextvars.Context:
    """Leave a request in its middle, with its session and its connection."""

    def begin() -> None:
        app.test_request_context(f"/orders/{number}").push()
        db.session.execute(sa.text("SELECT 1"))

    # In one of its own: Flask 3.1 lets requests share a context that is there.
    context = contextvars.Context()
    context.run(begin)
    return context


def _app(db: ScopedSession[t.Any], directory: str, sessions: int) -> Flask:
    app = Flask("benchmarks")
    app.config.update(
        SCOPEDSESSION_NAME="benchmarks",
        SCOPEDSESSION_CONTROL=True,
        SCOPEDSESSION_CONTROL_DIR=directory,
        # Held for long they are, but that is not what is measured.
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
