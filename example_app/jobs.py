"""A background thread that counts the flights of each airport."""

from __future__ import annotations

import datetime as dt
import logging
from threading import Thread
from typing import Any

from flask import current_app
from flask import Flask
from sqlalchemy import delete
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import literal
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import union_all
from sqlalchemy import update
from sqlalchemy.orm import joinedload

from .extensions import db
from .models import AirportTraffic
from .models import Flight
from .models import Job
from .models import utcnow

log = logging.getLogger(__name__)

#: A job that seems to run for longer than this has died with its worker.
GIVEN_UP_AFTER = dt.timedelta(minutes=5)


def busiest_airports() -> Select[Any]:
    """Select the counts, largest first."""
    movements = AirportTraffic.departures + AirportTraffic.arrivals
    return (
        select(AirportTraffic)
        .options(joinedload(AirportTraffic.airport))
        .order_by(movements.desc(), AirportTraffic.icao)
    )


def running_job() -> Job | None:
    """Find the running recount of any worker."""
    return db.session.scalar(
        select(Job)
        .where(Job.state == "running", Job.started_at > utcnow() - GIVEN_UP_AFTER)
        .order_by(Job.id)
        .limit(1)
    )


def start_recount() -> Job:
    """Start a recount in a thread, and return at once."""
    db.session.commit()  # a new transaction, as in `flightlog.writing`
    job = Job(name="recount")
    db.session.add(job)
    db.session.commit()

    # Pass the application object and an id to the thread. `current_app` and the
    # job belong to this request and its session, which end soon.
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    Thread(target=run_recount, args=(app, job.id), name=f"recount-{job.id}").start()
    return job


def run_recount(app: Flask, job_id: int) -> None:
    """Run the recount in its own application context, and so its own session."""
    with app.app_context():
        try:
            count = recount()
        except Exception:
            log.exception("job %d: recount failed", job_id)
            db.session.rollback()
            finish(job_id, "failed", "The count failed. See the log for the reason.")
        else:
            finish(job_id, "done", f"Counted the flights of {count} airports.")


def recount() -> int:
    """Replace all counts in one transaction, and return how many there are."""
    flights = union_all(
        select(
            Flight.origin.label("icao"), literal(1).label("o"), literal(0).label("d")
        ),
        select(Flight.destination, literal(0), literal(1)),
    ).subquery()
    counts = select(
        flights.c.icao, func.sum(flights.c.o), func.sum(flights.c.d)
    ).group_by(flights.c.icao)

    db.session.execute(delete(AirportTraffic))
    db.session.execute(
        insert(AirportTraffic).from_select(["icao", "departures", "arrivals"], counts)
    )
    count = db.session.scalar(select(func.count()).select_from(AirportTraffic)) or 0
    db.session.commit()
    return count


def finish(job_id: int, state: str, message: str) -> None:
    """Store the result of a job."""
    db.session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(state=state, message=message, finished_at=utcnow())
    )
    db.session.commit()
