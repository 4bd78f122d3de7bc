"""The application of the worker tests: small views with one behavior each.

All settings come from the environment, such as ``FLASK_SQLALCHEMY_DATABASE_URI`` or
``FLASK_SQLALCHEMY_ENGINE_OPTIONS__pool_size``. With ``?only=PID``, only that worker
serves the view.
"""

from __future__ import annotations

import contextvars
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import current_app
from flask import Flask
from flask import request
from flask import Response
from flask.ctx import AppContext
from sqlalchemy import Connection
from sqlalchemy import exc as sa_exc
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


db = ScopedSession(model_class=Base)

#: Connections that ``/leak`` keeps, and contexts of ``/thread``.
KEPT: list[Connection] = []
CONTEXTS: list[AppContext] = []


def create_app() -> Flask:
    app = Flask("live_app", root_path=str(Path(__file__).parent))
    # Names the folder of the files that /block and /gate wait for.
    app.config["GATES"] = "."
    app.config.from_prefixed_env()
    db.init_app(app)
    app.before_request(turn_down)
    app.after_request(sign)
    for rule, view in {
        "/ok": ok,
        "/pid": pid,
        "/hold": hold,
        "/leak": leak,
        "/unleak": unleak,
        "/refused": refused,
        "/block": block,
        "/gate": gate,
        "/write": write,
        "/lock": lock,
        "/want": want,
        "/forget": forget,
        "/fail": fail,
        "/stream": stream,
        "/freeze": freeze,
        "/slow": slow,
        "/nested": nested,
        "/share": share,
        "/thread": thread,
    }.items():
        app.add_url_rule(rule, view_func=view)
    app.cli.command("create-tables")(db.create_all)
    return app


def turn_down() -> tuple[str, int] | None:
    """Refuse requests for other workers; see ``Prefork.get(on=...)``."""
    only = request.args.get("only", type=int)
    return None if only in (None, os.getpid()) else ("another worker\n", 421)


def sign(response: Response) -> Response:
    response.headers["X-Worker"] = str(os.getpid())
    return response


def answer(**extra: Any) -> dict[str, Any]:
    return {"pid": os.getpid(), **extra}


def pid() -> dict[str, Any]:
    """Use no database."""
    return answer()


def ok() -> dict[str, Any]:
    """Use the session once."""
    return answer(one=db.session.scalar(select(1)))


def hold() -> dict[str, Any]:
    """Sleep ``?seconds=`` in a transaction."""
    db.session.scalar(select(1))
    time.sleep(request.args.get("seconds", 1.0, type=float))
    return answer()


def leak() -> dict[str, Any]:
    """Keep a connection in a global."""
    connection = db.engine.connect()
    connection.execute(text("SELECT 1"))
    KEPT.append(connection)
    return answer(kept=len(KEPT))


def unleak() -> dict[str, Any]:
    """Return the connections of ``/leak``."""
    while KEPT:
        KEPT.pop().close()
    return answer()


def refused() -> dict[str, Any]:
    """Name the error of a checkout that times out, and the holders that it names."""
    try:
        db.engine.connect().close()
    except sa_exc.TimeoutError as error:
        holders = sorted(str(each.endpoint) for each in error.holders)  # type: ignore[attr-defined]
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        return answer(error=kind, holders=holders)
    return answer(error=None)


def block() -> dict[str, Any]:
    """Hold a connection until the file ``?name=`` exists."""
    db.session.scalar(select(1))
    wait_for_gate()
    return answer()


def gate() -> dict[str, Any]:
    """Wait, without a connection, until the file ``?name=`` exists."""
    wait_for_gate()
    return answer()


def wait_for_gate() -> None:
    """Wait for the file, at most five minutes: a loaded machine is slow."""
    path = Path(current_app.config["GATES"]) / request.args.get("name", "open")
    # The test waits for this file.
    path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}").touch()
    deadline = time.monotonic() + 300
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def write() -> dict[str, Any]:
    """Add a row, and commit."""
    db.session.add(Note(body="kept"))
    db.session.commit()
    return answer()


def lock() -> dict[str, Any]:
    """Lock the only row, until the file ``?name=`` exists."""
    take_row()
    wait_for_gate()
    return answer()


def want() -> dict[str, Any]:
    """Lock the only row, once it is free."""
    take_row()
    return answer()


def take_row() -> None:
    note = db.session.get(Note, 1, with_for_update=True)
    assert note is not None


def forget() -> dict[str, Any]:
    """Add a row without a commit."""
    db.session.add(Note(body="lost"))
    db.session.flush()
    return answer()


def fail() -> dict[str, Any]:
    """Raise, in a transaction."""
    db.session.scalar(select(1))
    raise RuntimeError("on purpose")


def stream() -> Response:
    """Send ``?parts=`` pieces, ``?seconds=`` apart."""
    parts = request.args.get("parts", 3, type=int)
    seconds = request.args.get("seconds", 0.0, type=float)

    def pieces() -> Iterator[str]:
        for number in range(parts):
            yield f"{number}\n"
            time.sleep(seconds)

    return Response(pieces(), mimetype="text/plain")


def freeze() -> dict[str, Any]:
    """Sleep ``?seconds=`` (an integer) without letting other threads run."""
    # Unlike CDLL, PyDLL does not release the interpreter's lock.
    ctypes.PyDLL(None).sleep(request.args.get("seconds", 1, type=int))
    return answer()


def slow() -> dict[str, Any]:
    """Run one statement for ``?seconds=``, on PostgreSQL."""
    seconds = request.args.get("seconds", 1.0, type=float)
    db.session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
    return answer()


def nested() -> dict[str, Any]:
    """Open a second connection while one is held."""
    db.session.scalar(select(1))
    with db.engine.connect() as second:
        second.execute(text("SELECT 1"))
    return answer()


def share() -> dict[str, Any]:
    """Run a statement while a second thread's statement runs on the connection."""
    copied = contextvars.copy_context()
    helper = threading.Thread(target=copied.run, args=(count_far,), name="helper")
    helper.start()
    while not any(holder.running_s for holder in db.snapshot().pools[0].holders):
        time.sleep(0.001)
    db.session.scalar(select(1))
    helper.join()
    return answer()


def count_far() -> None:
    """Keep SQLite busy for about a second."""
    numbers = "SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 5000000"
    db.session.execute(
        text(f"WITH RECURSIVE numbers(n) AS ({numbers}) SELECT count(*) FROM numbers")
    )


def thread() -> dict[str, Any]:
    """Start a job that pushes a context, uses a session, and never pops it."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    ends = "ends" in request.args
    working = threading.Event()

    def job() -> None:
        context = app.app_context()
        context.push()
        db.session.scalar(select(1))
        CONTEXTS.append(context)
        working.set()
        if not ends:
            threading.Event().wait(60)

    started = threading.Thread(target=job, name="nightly", daemon=True)
    started.start()
    working.wait(10)
    if ends:
        started.join(10)
    return answer()
