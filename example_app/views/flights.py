"""The pages of the flight log and of its audit."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Blueprint
from flask import redirect
from flask import render_template
from flask import request
from flask import Response
from flask import url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from example_app.export import csv_response
from example_app.extensions import db
from example_app.flightlog import add_flight
from example_app.flightlog import change_flight
from example_app.flightlog import ConflictError
from example_app.flightlog import InvalidFlightError
from example_app.flightlog import parse_flight
from example_app.flightlog import parse_version
from example_app.models import AuditEntry
from example_app.models import Flight

bp = Blueprint("flights", __name__)

#: No flight has a larger id than this, which every database can store.
ID = "int(max=2147483647)"


def get_flight(flight_id: int) -> Flight:
    """Return an entry, or abort with 404."""
    return db.get_or_404(Flight, flight_id, description="The log has no such flight.")


@bp.get("/flights")
def index() -> ResponseReturnValue:
    """List the log, latest flight first."""
    statement = (
        select(Flight)
        .options(
            joinedload(Flight.origin_airport), joinedload(Flight.destination_airport)
        )
        .order_by(Flight.date.desc(), Flight.number)
    )
    return render_template("flights/index.html", page=db.paginate(statement))


@bp.route("/flights/new", methods=["GET", "POST"])
def new() -> ResponseReturnValue:
    """Log a flight."""
    if request.method == "GET":
        return form_page(request.args)

    try:
        flight = add_flight(parse_flight(request.form))
    except (InvalidFlightError, ConflictError) as error:
        return form_page(request.form, error)

    return redirect(url_for(".show", flight_id=flight.id), 303)


@bp.get(f"/flights/<{ID}:flight_id>")
def show(flight_id: int) -> ResponseReturnValue:
    """Show one entry and its history from the audit database."""
    flight = get_flight(flight_id)
    history = db.get_session("audit").scalars(
        select(AuditEntry)
        .where(AuditEntry.flight_id == flight_id)
        .order_by(AuditEntry.id)
    )
    return render_template("flights/show.html", flight=flight, history=history.all())


@bp.route(f"/flights/<{ID}:flight_id>/edit", methods=["GET", "POST"])
def edit(flight_id: int) -> ResponseReturnValue:
    """Correct an entry."""
    flight = get_flight(flight_id)

    if request.method == "GET":
        return form_page(flight.to_dict(), flight=flight)

    try:
        data = parse_flight(request.form)
        change_flight(flight, data, parse_version(request.form))
    except (InvalidFlightError, ConflictError) as error:
        return form_page(request.form, error, flight=flight)

    return redirect(url_for(".show", flight_id=flight.id), 303)


@bp.get("/flights.csv")
def export() -> Response:
    """Download the whole log."""
    columns = [
        Flight.id,
        Flight.number,
        Flight.date,
        Flight.origin,
        Flight.destination,
        Flight.minutes,
        Flight.remarks,
    ]
    return csv_response("flights.csv", columns)


@bp.get("/audit")
def audit() -> ResponseReturnValue:
    """List every change of the log."""
    statement = select(AuditEntry).order_by(AuditEntry.id.desc())
    page = db.paginate(statement)
    return render_template("flights/audit.html", page=page)


def form_page(
    values: Mapping[str, object],
    error: InvalidFlightError | ConflictError | None = None,
    flight: Flight | None = None,
) -> ResponseReturnValue:
    """Show the form: empty, filled in, or with error messages."""
    page = render_template(
        "flights/form.html",
        values=values,
        flight=flight,
        message=str(error) if error else "",
        errors=error.errors if isinstance(error, InvalidFlightError) else {},
        conflict=isinstance(error, ConflictError),
    )
    status = {InvalidFlightError: 400, ConflictError: 409}
    return page, status[type(error)] if error else 200
