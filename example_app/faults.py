"""Views that misbehave on purpose, to be found with ``flask pool-status``.

They exist only where ``EXAMPLE_FAULTS=1`` is set. Each makes one mistake that
real applications make, in the way they make it. Do not copy from here.
"""

from __future__ import annotations

import datetime as dt
import os
import time

from flask import abort
from flask import Blueprint
from flask import jsonify
from flask import render_template
from flask import request
from flask.typing import ResponseReturnValue
from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import select

from .extensions import db
from .models import Airport
from .models import Flight

bp = Blueprint("faults", __name__, url_prefix="/faults")

MAX_SECONDS = 60.0

#: The first mistake: connections that outlive their request.
kept: list[Connection] = []


@bp.get("/")
def index() -> ResponseReturnValue:
    """Offer the mistakes as buttons."""
    return render_template("faults.html", max_seconds=MAX_SECONDS)


@bp.post("/keep-connection")
def keep_connection() -> ResponseReturnValue:
    """Check a connection out and keep it in a module global.

    It never goes back to the pool, so each request makes the pool smaller by
    one for as long as the worker lives. And because nobody ends its
    transaction, it is "idle in transaction" too: PostgreSQL can clean up no row
    that it might still read, and SQLite's WAL file can only grow.

    Right: ``with db.engine.connect() as connection``, or just ``db.session``.
    """
    connection = db.engine.connect()
    airports = connection.scalar(select(func.count()).select_from(Airport))
    kept.append(connection)
    return jsonify(worker=os.getpid(), airports=airports, kept=len(kept))


@bp.get("/sleep")
def sleep_in_transaction() -> ResponseReturnValue:
    """Query, then do something slow that needs no database.

    The sleep stands for a call to a mail server, a payment or a language
    model. The query began a transaction, so the connection stays checked out all
    the while, and a handful of such requests empties the pool.

    Right: do the slow thing first, or end the transaction before it.
    """
    seconds = seconds_argument()
    airports = db.session.scalar(select(func.count()).select_from(Airport))
    time.sleep(seconds)
    return jsonify(worker=os.getpid(), airports=airports, slept=seconds)


@bp.post("/forget-commit")
def forget_commit() -> ResponseReturnValue:
    """Write, say that all is well, and never commit.

    The flush makes it look right (the flight even has its id), and the end of
    the request rolls it back. Nobody would notice until the flight is missed; so
    the extension warns.

    Right: ``db.session.commit()`` before the answer.
    """
    now = dt.datetime.now(dt.timezone.utc)
    number = f"XX{now.microsecond % 10_000}"
    origin, destination = db.session.scalars(select(Airport.icao).limit(2))
    db.session.commit()
    flight = Flight(
        number=number, date=now.date(), origin=origin, destination=destination
    )
    db.session.add(flight)
    db.session.flush()
    return jsonify(worker=os.getpid(), saved=True, flight=flight.to_dict()), 201


def seconds_argument() -> float:
    """Read how long to sleep; at most a minute, so nobody can park a worker."""
    try:
        seconds = float(request.args.get("seconds", "5"))
    except ValueError:
        seconds = -1.0

    if not 0.0 <= seconds <= MAX_SECONDS:
        abort(400, f"'seconds' must be a number from 0 to {MAX_SECONDS:g}.")

    return seconds
