"""Views that misbehave on purpose, to be found with ``flask pool-status``.

They exist only where ``EXAMPLE_FAULTS=1`` is set. Each makes one mistake that
real applications make, in the way they make it. Do not copy from here.
"""

from __future__ import annotations

import datetime as dt
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from flask import abort
from flask import Blueprint
from flask import jsonify
from flask import render_template
from flask import request
from flask.typing import ResponseReturnValue
from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased
from sqlalchemy.orm import Session

from .extensions import db
from .models import Airport
from .models import Flight

bp = Blueprint("faults", __name__, url_prefix="/faults")

MAX_SECONDS = 60.0

#: As many airports as a slow statement may compare with each other.
MAX_AIRPORTS = 20_000

#: What outlives its request, and should not: connections, sessions, objects.
kept: list[Connection] = []
sessions: list[Session] = []
cached: list[Airport] = []


@bp.get("/")
def index() -> ResponseReturnValue:
    """Offer the mistakes as buttons."""
    return render_template(
        "faults.html", max_seconds=MAX_SECONDS, max_airports=MAX_AIRPORTS
    )


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


@bp.get("/nested")
def nested() -> ResponseReturnValue:
    """Open a second connection while the session has the first.

    Each such request needs two connections at once. With as many of them as the
    pool has connections, each waits for what the others hold, until the pool's
    timeout; with a pool of one, a single request waits for itself.

    Right: ``db.session.connection()`` where SQL without the ORM is wanted: it is the
    session's own.
    """
    airports = db.session.scalar(select(func.count()).select_from(Airport))
    with db.engine.connect() as second:
        flights = second.scalar(select(func.count()).select_from(Flight))
    return jsonify(worker=os.getpid(), airports=airports, flights=flights)


@bp.get("/slow-statement")
def slow_statement() -> ResponseReturnValue:
    """Let the database compare every airport with every other.

    It grows with the square of the table: unnoticed with the data of a test, and
    for many seconds, connection in hand, with those of a year.

    Right: a window function, ``func.rank().over(order_by=Airport.name)``, which
    sorts once.
    """
    pairs = db.session.scalar(pairs_in_order(airports_argument()))
    return jsonify(worker=os.getpid(), pairs=pairs)


@bp.get("/share-session")
def share_session() -> ResponseReturnValue:
    """Run two queries at the same time, in threads, with one session.

    A session, and its one connection, is for one thread at a time. Without the
    extension's check this works on most days, and mixes up results on the others.

    Right: one query after the other, or threads with a context of their own, as in
    ``jobs.py``.
    """
    session = db.session()
    statement = pairs_in_order(airports_argument())

    def compare(_: int) -> Any:
        return session.scalar(statement)

    with ThreadPoolExecutor(2) as threads:
        pairs = list(threads.map(compare, range(2)))
    return jsonify(worker=os.getpid(), pairs=pairs)


@bp.get("/keep-session")
def keep_session() -> ResponseReturnValue:
    """Keep the session of the first request in a global.

    The name ``db.session`` can be kept; the session that it stands for ends with
    its request, and belongs to no later one.

    Right: ``db.session`` at each use.
    """
    if not sessions:
        sessions.append(db.session())
    airports = sessions[0].scalar(select(func.count()).select_from(Airport))
    return jsonify(worker=os.getpid(), airports=airports)


@bp.get("/cache-object")
def cache_object() -> ResponseReturnValue:
    """Keep an object in a global, to save the next request its query.

    With its session's end it is detached: what is loaded can be read. But a
    rollback, or by default a commit, marks all as to be loaded again, for which
    there is no session any more.

    Right: keep values, as ``airport.to_dict()`` returns them.
    """
    if not cached:
        cached.append(db.session.scalars(select(Airport).limit(1)).one())
        db.session.rollback()
        return jsonify(worker=os.getpid(), airport=None)
    return jsonify(worker=os.getpid(), airport=cached[0].to_dict())


@bp.post("/swallow-error")
def swallow_error() -> ResponseReturnValue:
    """Catch the error of a flush, and go on as if nothing was.

    The failed flush has rolled the transaction back, and with it what came before.
    So that nobody overlooks this, the session refuses to work until it is told to
    begin anew.

    Right: ``db.session.rollback()`` where the error is caught, or
    ``with db.session.begin_nested():`` around what may fail.
    """
    today = dt.datetime.now(dt.timezone.utc).date()
    db.session.add(Flight(number="XX1", date=today, origin="----", destination="----"))
    with suppress(IntegrityError):
        db.session.flush()
    time.sleep(seconds_argument())
    flights = db.session.scalar(select(func.count()).select_from(Flight))
    return jsonify(worker=os.getpid(), flights=flights)


@bp.post("/lock")
def lock_airports() -> ResponseReturnValue:
    """Change airports one by one, in the order of the request, and take long.

    Each stays locked until the commit. Whoever wants one of them waits (with
    SQLite, whoever writes at all), and two who lock the same ones in another order
    wait for each other: a deadlock.

    Right: the slow work first, then all changes, in the order of their keys, and the
    commit at once.
    """
    seconds = seconds_argument()
    codes = request.args.getlist("icao")[:5]
    for code in codes:
        same = update(Airport).where(Airport.icao == code)
        db.session.execute(same.values(elevation_ft=Airport.elevation_ft))
        time.sleep(seconds)
    db.session.commit()
    return jsonify(worker=os.getpid(), locked=codes)


def pairs_in_order(airports: int) -> Select[Any]:
    """Count the pairs of airports whose names are in order, without any index."""
    some = select(Airport.icao, Airport.name).limit(airports).subquery()
    other = aliased(some)
    return (
        select(func.count()).select_from(some).join(other, some.c.name < other.c.name)
    )


def airports_argument() -> int:
    """Read how many airports to compare with each other."""
    airports = request.args.get("airports", 5_000, type=int)

    if not 0 <= airports <= MAX_AIRPORTS:
        abort(400, f"'airports' must be a number from 0 to {MAX_AIRPORTS}.")

    return airports


def seconds_argument() -> float:
    """Read how long to sleep; at most a minute, so nobody can park a worker."""
    try:
        seconds = float(request.args.get("seconds", "5"))
    except ValueError:
        seconds = -1.0

    if not 0.0 <= seconds <= MAX_SECONDS:
        abort(400, f"'seconds' must be a number from 0 to {MAX_SECONDS:g}.")

    return seconds
