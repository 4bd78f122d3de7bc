"""Error handlers, which answer with a page or, below ``/api/``, with JSON."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Flask
from flask import jsonify
from flask import render_template
from flask import request
from flask import Response
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import ServiceUnavailable

from .extensions import db
from .flightlog import ConflictError
from .flightlog import InvalidFlightError
from .models import Airport

NOT_READY = "The database is empty. Run 'flask --app example_app import-airports'."
BUSY = "The server is busy. Please try again in a few seconds."


def init_app(app: Flask) -> None:
    """Register the handlers."""
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(InvalidFlightError, invalid)
    app.register_error_handler(ConflictError, conflict)
    app.register_error_handler(PoolTimeout, pool_timeout)
    app.register_error_handler(OperationalError, missing_tables)
    app.register_error_handler(ProgrammingError, missing_tables)


def answer(
    status: int, name: str, message: str, fields: dict[str, str] | None = None
) -> tuple[str | Response, int]:
    """Describe the error in the format that the client expects."""
    if not request.path.startswith("/api/"):
        page = render_template("error.html", status=status, name=name, message=message)
        return page, status

    error: dict[str, object] = {"status": status, "name": name, "message": message}

    if fields:
        error["fields"] = fields

    return jsonify(error=error), status


def http_error(error: HTTPException) -> ResponseReturnValue:
    """Answer errors of ``abort`` and of the routing, and keep their headers."""
    if error.code is None or error.code < 400:
        return error  # a redirect

    headers = [
        (key, value)
        for key, value in error.get_headers()
        if key.lower() not in {"content-type", "content-length"}
    ]
    body, status = answer(error.code, error.name, error.description or error.name)
    return body, status, headers


def invalid(error: InvalidFlightError) -> ResponseReturnValue:
    """Name each invalid field."""
    return answer(400, "Bad Request", str(error), error.errors)


def conflict(error: ConflictError) -> ResponseReturnValue:
    """Explain the conflict."""
    return answer(409, "Conflict", str(error))


def pool_timeout(_error: PoolTimeout) -> ResponseReturnValue:
    """Answer 503: all connections of this worker's pool are checked out."""
    return http_error(ServiceUnavailable(BUSY, retry_after=5))


def missing_tables(error: DBAPIError) -> ResponseReturnValue:
    """Answer 503 with a hint if the airports were never imported."""
    if sa.inspect(db.engine).has_table(Airport.__tablename__):
        raise error

    return http_error(ServiceUnavailable(NOT_READY))
