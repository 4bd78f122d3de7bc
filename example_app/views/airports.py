"""The search page and the page of an airport."""

from __future__ import annotations

from flask import abort
from flask import Blueprint
from flask import redirect
from flask import render_template
from flask import request
from flask import Response
from flask import url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import or_
from sqlalchemy import select

from example_app.catalogue import find_airport
from example_app.catalogue import search_airports
from example_app.export import csv_response
from example_app.extensions import db
from example_app.models import Airport
from example_app.models import Flight

bp = Blueprint("airports", __name__)


@bp.get("/")
def search() -> ResponseReturnValue:
    """Search the airports; without a search term, list all."""
    text = request.args.get("q", "").strip()
    page = db.paginate(search_airports(text))
    return render_template("airports/search.html", q=text, page=page)


@bp.get("/airports/<code>")
def show(code: str) -> ResponseReturnValue:
    """Show one airport and its latest flights."""
    airport = find_airport(code) or abort(404, "No airport has this code.")

    if code != airport.icao:  # each airport has one URL
        return redirect(url_for(".show", code=airport.icao))

    flights = db.session.scalars(
        select(Flight)
        .where(or_(Flight.origin == airport.icao, Flight.destination == airport.icao))
        .order_by(Flight.date.desc(), Flight.number)
        .limit(10)
    ).all()
    return render_template("airports/show.html", airport=airport, flights=flights)


@bp.get("/airports.csv")
def export() -> Response:
    """Download all airports."""
    columns = [
        Airport.icao,
        Airport.iata,
        Airport.name,
        Airport.city,
        Airport.region,
        Airport.country,
        Airport.elevation_ft,
        Airport.latitude,
        Airport.longitude,
        Airport.timezone,
    ]
    return csv_response("airports.csv", columns)
