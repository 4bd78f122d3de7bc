"""The page of the background job and its result, the flights of each airport."""

from __future__ import annotations

from flask import Blueprint
from flask import redirect
from flask import render_template
from flask import url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import select

from example_app.extensions import db
from example_app.jobs import busiest_airports
from example_app.jobs import running_job
from example_app.jobs import start_recount
from example_app.models import Job

bp = Blueprint("statistics", __name__)


@bp.get("/statistics")
def index() -> ResponseReturnValue:
    """Show the counts, and the time of the last recount."""
    page = db.paginate(busiest_airports())
    job = db.session.scalar(select(Job).order_by(Job.id.desc()).limit(1))
    return render_template("statistics.html", page=page, job=job)


@bp.post("/jobs/recount")
def recount() -> ResponseReturnValue:
    """Start a recount, unless one is running."""
    if running_job() is None:
        start_recount()

    return redirect(url_for(".index"), 303)
