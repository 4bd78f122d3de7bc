"""Views that misbehave on purpose, so that ``flask pool-status`` can find them.

They are registered only with ``EXAMPLE_FAULTS=1``. Each view makes one mistake
that real applications make. Do not copy code from this module.
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
from sqlalchemy import literal
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

MAX_SECONDS = 600.0

#: The most airports that a slow statement compares with each other.
MAX_AIRPORTS = 20_000

#: Connections, sessions and objects that outlive their request by mistake.
kept: list[Connection] = []
sessions: list[Session] = []
cached: list[Airport] = []


@bp.get("/")
def index() -> ResponseReturnValue:
    """Show a button for each mistake."""
    return render_template(
        "faults.html", max_seconds=MAX_SECONDS, max_airports=MAX_AIRPORTS
    )


@bp.post("/keep-connection")
def keep_connection() -> ResponseReturnValue:
    """Check a connection out and keep it in a module global.

    It never returns to the pool, so each request leaves the pool with one
    connection less until the worker ends. Its transaction stays open, so it is
    "idle in transaction": PostgreSQL must keep every row version that the
    transaction might still read, and SQLite's WAL file only grows.

    Correct: ``with db.engine.connect() as connection``, or just ``db.session``.
    """
    connection = db.engine.connect()
    airports = connection.scalar(select(func.count()).select_from(Airport))
    kept.append(connection)
    return jsonify(worker=os.getpid(), airports=airports, kept=len(kept))


@bp.get("/sleep")
def sleep_in_transaction() -> ResponseReturnValue:
    """Query, then do something slow that needs no database.

    The sleep stands for a call to a mail server, a payment service or a language
    model. The query began a transaction, so the connection stays checked out
    meanwhile, and a few such requests exhaust the pool.

    Correct: do the slow work first, or end the transaction before it.
    """
    seconds = seconds_argument()
    airports = db.session.scalar(select(func.count()).select_from(Airport))
    time.sleep(seconds)
    return jsonify(worker=os.getpid(), airports=airports, slept=seconds)


@bp.post("/forget-commit")
def forget_commit() -> ResponseReturnValue:
    """Write, report success, and never commit.

    After the flush the flight even has an id, but the end of the request rolls
    it back. Without the extension's warning, the mistake would be noticed only
    when somebody looks for the flight.

    Correct: call ``db.session.commit()`` before the response.
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
    """Open a second connection while the session holds the first.

    Each request needs two connections at the same time. If there are as many such
    requests as the pool has connections, they wait for each other until they time
    out. With a pool of one, a single request waits for itself.

    Correct: for SQL without the ORM, use ``db.session.connection()``, which is the
    session's own connection.
    """
    airports = db.session.scalar(select(func.count()).select_from(Airport))
    with db.engine.connect() as second:
        flights = second.scalar(select(func.count()).select_from(Flight))
    return jsonify(worker=os.getpid(), airports=airports, flights=flights)


@bp.get("/slow-statement")
def slow_statement() -> ResponseReturnValue:
    """Let the database compare every airport with every other airport.

    The time grows with the square of the number of rows. It is short with test data,
    but with a year of data it holds the connection for many seconds.

    Correct: a window function, ``func.rank().over(order_by=Airport.name)``, which
    sorts once.
    """
    pairs = db.session.scalar(pairs_in_order(airports_argument()))
    return jsonify(worker=os.getpid(), pairs=pairs)


@bp.get("/share-session")
def share_session() -> ResponseReturnValue:
    """Run two queries at the same time, in two threads, with one session.

    Only one thread at a time may use a session and its connection. This mistake often
    works, and mixes up results now and then. The extension logs it.

    Correct: one query after the other, or a context for each thread, as in ``jobs.py``.
    """
    session = db.session()
    airports = session.scalar(select(func.count()).select_from(Airport))
    statement = slow_count()

    def count(_: int) -> Any:
        return session.scalar(statement)

    with ThreadPoolExecutor(2) as threads:
        counts = list(threads.map(count, range(2)))
    return jsonify(worker=os.getpid(), airports=airports, counts=counts)


@bp.get("/keep-session")
def keep_session() -> ResponseReturnValue:
    """Keep the session of the first request in a global.

    ``db.session`` can be kept, because it always stands for the current session.
    The session that ``db.session()`` returns ends with its request.

    Correct: write ``db.session`` at each use.
    """
    if not sessions:
        sessions.append(db.session())
    airports = sessions[0].scalar(select(func.count()).select_from(Airport))
    return jsonify(worker=os.getpid(), airports=airports)


@bp.get("/cache-object")
def cache_object() -> ResponseReturnValue:
    """Keep an object in a global, so that the next request need not query it.

    The object is detached when its session ends, and loaded attributes can still
    be read. But a rollback, and by default a commit, expires all attributes, and
    a detached object cannot load them again.

    Correct: keep values, as ``airport.to_dict()`` returns them.
    """
    if not cached:
        cached.append(db.session.scalars(select(Airport).limit(1)).one())
        db.session.rollback()
        return jsonify(worker=os.getpid(), airport=None)
    return jsonify(worker=os.getpid(), airport=cached[0].to_dict())


@bp.post("/swallow-error")
def swallow_error() -> ResponseReturnValue:
    """Catch the error of a flush, and continue as if it had not happened.

    The failed flush has rolled back the whole transaction, with all earlier changes.
    To make sure that this is noticed, the session raises an error at every use until
    ``rollback()`` is called.

    Correct: call ``db.session.rollback()`` where the error is caught, or put the part
    that may fail into ``with db.session.begin_nested():``.
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
    """Change airports one by one, in the order of the request, and slowly.

    Each airport stays locked until the commit. Other requests that change it wait (with
    SQLite, all writers wait). Two requests that lock the same airports in different
    orders wait for each other: a deadlock.

    Correct: do the slow work first, then make all changes in the order of their keys,
    and commit at once.
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
    """Count the pairs of airports whose names are sorted, without using an index."""
    some = select(Airport.icao, Airport.name).limit(airports).subquery()
    other = aliased(some)
    return (
        select(func.count()).select_from(some).join(other, some.c.name < other.c.name)
    )


def slow_count() -> Select[Any]:
    """Let the database count to three million, which takes about a second."""
    numbers = select(literal(1).label("number")).cte("numbers", recursive=True)
    number = numbers.c.number
    numbers = numbers.union_all(select(number + 1).where(number < 3_000_000))
    return select(func.count()).select_from(numbers)


def airports_argument() -> int:
    """Return the number of airports to compare, from the query string."""
    airports = request.args.get("airports", 5_000, type=int)

    if not 0 <= airports <= MAX_AIRPORTS:
        abort(400, f"'airports' must be a number from 0 to {MAX_AIRPORTS}.")

    return airports


def seconds_argument() -> float:
    """Return how long to sleep: at most a minute, so that no worker is blocked long."""
    try:
        seconds = float(request.args.get("seconds", "5"))
    except ValueError:
        seconds = -1.0

    if not 0.0 <= seconds <= MAX_SECONDS:
        abort(400, f"'seconds' must be a number from 0 to {MAX_SECONDS:g}.")

    return seconds
