"""The JSON API. Errors are JSON too; see ``errors.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import abort
from flask import Blueprint
from flask import jsonify
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import Select
from sqlalchemy import select
from werkzeug.exceptions import BadRequest

from example_app.catalogue import find_airport
from example_app.catalogue import search_airports
from example_app.extensions import db
from example_app.flightlog import add_flight
from example_app.flightlog import change_flight
from example_app.flightlog import ConflictError
from example_app.flightlog import parse_flight
from example_app.flightlog import parse_version
from example_app.jobs import busiest_airports
from example_app.jobs import running_job
from example_app.jobs import start_recount
from example_app.models import AuditEntry
from example_app.models import Flight
from example_app.models import Job

from .flights import get_flight
from .flights import ID

bp = Blueprint("api", __name__, url_prefix="/api")


def listing(name: str, statement: Select[Any]) -> ResponseReturnValue:
    """Answer with the page of the query string, its number and the totals."""
    page = db.paginate(statement)
    answer = {name: [item.to_dict() for item in page]}

    for field in ("page", "per_page", "pages", "total"):
        answer[field] = getattr(page, field)

    return jsonify(answer)


def json_object() -> Mapping[str, object]:
    """Return the request's body, which must be one JSON object."""
    try:
        body = request.get_json()
    except BadRequest:
        abort(400, "The body is not JSON.")

    if not isinstance(body, dict):
        abort(400, "Send one JSON object.")

    return body


@bp.get("/airports")
def airports() -> ResponseReturnValue:
    """Search the airports: ``?q=…&page=1&per_page=20``."""
    text = request.args.get("q", "").strip()
    return listing("airports", search_airports(text))


@bp.get("/airports/<code>")
def airport(code: str) -> ResponseReturnValue:
    """Show one airport, by its ICAO or IATA code."""
    found = find_airport(code) or abort(404, "No airport has this code.")
    return jsonify(found.to_dict())


@bp.get("/flights")
def flights() -> ResponseReturnValue:
    """List the log, latest flight first."""
    statement = select(Flight).order_by(Flight.date.desc(), Flight.number)
    return listing("flights", statement)


@bp.post("/flights")
def create_flight() -> ResponseReturnValue:
    """Log a flight."""
    created = add_flight(parse_flight(json_object()))
    location = url_for(".flight", flight_id=created.id)
    return jsonify(created.to_dict()), 201, {"Location": location}


@bp.get(f"/flights/<{ID}:flight_id>")
def flight(flight_id: int) -> ResponseReturnValue:
    """Show one entry of the log."""
    return jsonify(get_flight(flight_id).to_dict())


@bp.put(f"/flights/<{ID}:flight_id>")
def update_flight(flight_id: int) -> ResponseReturnValue:
    """Replace an entry. The body names the version that was edited."""
    found = get_flight(flight_id)
    body = json_object()
    change_flight(found, parse_flight(body), parse_version(body))
    return jsonify(found.to_dict())


@bp.get("/audit")
def audit() -> ResponseReturnValue:
    """List every change of the log, latest first."""
    statement = select(AuditEntry).order_by(AuditEntry.id.desc())
    return listing("entries", statement)


@bp.get("/statistics")
def statistics() -> ResponseReturnValue:
    """List the counts of the last recount, busiest airport first."""
    return listing("airports", busiest_airports())


@bp.post("/jobs/recount")
def recount() -> ResponseReturnValue:
    """Start a recount, and answer 202 with the URL of the job."""
    running = running_job()

    if running is not None:
        raise ConflictError(f"Job {running.id} is already counting.")

    started = start_recount()
    location = url_for(".job", job_id=started.id)
    return jsonify(started.to_dict()), 202, {"Location": location}


@bp.get(f"/jobs/<{ID}:job_id>")
def job(job_id: int) -> ResponseReturnValue:
    """Show the state of a job."""
    found = db.get_or_404(Job, job_id, description="There is no such job.")
    return jsonify(found.to_dict())
