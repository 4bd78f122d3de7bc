"""Streamed CSV downloads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from flask import Response
from sqlalchemy import Row
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker

from .extensions import db

CHUNK = 1000


def csv_response(filename: str, columns: list[InstrumentedAttribute[Any]]) -> Response:
    """Stream *columns* of a table, sorted by the first, which must be its key.

    The body is sent after the view has returned, when the request's session has
    been removed. (With ``stream_with_context`` this depends on the version:
    Flask 3.1.3 tears the context down before the first chunk, others after the
    last.) The generator therefore gets the ``sessionmaker`` of the current app,
    and needs no context.
    """
    return Response(
        csv_lines(db.sessionmaker, columns),
        mimetype="text/csv",
        headers={"Content-Disposition": f'attachment; filename="{filename}"'},
    )


def csv_lines(
    maker: sessionmaker[Session], columns: list[InstrumentedAttribute[Any]]
) -> Iterator[str]:
    """Read the rows in chunks, each in a short session of its own.

    No connection is checked out while the generator waits for the client, which
    may read slowly or never finish. The next chunk begins after the last key that
    was sent, so each row is sent once, even if other requests write meanwhile.
    """
    key = columns[0]
    statement: Select[Any] = select(*columns).order_by(key).limit(CHUNK)
    chunk = statement
    yield to_csv([[column.key for column in columns]])

    while True:
        rows = fetch(maker, chunk)

        if rows:
            yield to_csv(rows)

        if len(rows) < CHUNK:
            return

        chunk = statement.where(key > rows[-1][0])


def fetch(maker: sessionmaker[Session], statement: Select[Any]) -> Sequence[Row[Any]]:
    """Run one query, in a session that is closed when this returns."""
    with maker() as session:
        return session.execute(statement).all()


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    """Format *rows* as lines of CSV."""
    buffer = io.StringIO()
    csv.writer(buffer).writerows([cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def cell(value: object) -> object:
    """Quote text that a spreadsheet would run as a formula, such as ``=…``."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"

    return value
