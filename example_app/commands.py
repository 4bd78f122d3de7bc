"""The command ``flask import-airports``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from flask import Flask
from flask.cli import with_appcontext
from flask_migrate import upgrade
from sqlalchemy import insert
from sqlalchemy import select
from sqlalchemy import update

from .extensions import db
from .models import Airport
from .models import fold

Rows = list[dict[str, Any]]

BATCH = 2000


def init_app(app: Flask) -> None:
    """Add the command to the application."""
    app.cli.add_command(import_airports)


@click.command("import-airports")
@with_appcontext
def import_airports() -> None:
    """Fill the database with the airports of the world.

    Runs the migrations, which create the tables. You can repeat this command:
    it adds new airports and corrects the ones that have changed.
    """
    upgrade()
    wanted = load_airports()
    stored = stored_airports()
    added = [row for row in wanted if row["icao"] not in stored]
    changed = [row for row in wanted if stored.get(row["icao"], row) != row]

    if added or changed:
        store(added, changed)

    click.echo(
        f"{len(wanted)} airports: {len(added)} added, {len(changed)} changed,"
        f" {len(wanted) - len(added) - len(changed)} unchanged."
    )


def store(added: Rows, changed: Rows) -> None:
    """Write in batches, so that other writers never wait long for a commit."""
    total = len(added) + len(changed)
    # Without this option, a row with an empty column and a row without one are sent in
    # different statements: 6,000 for these rows, in place of one for each batch.
    adding = insert(Airport).execution_options(render_nulls=True)

    with click.progressbar(length=total, label="Importing airports") as bar:
        for statement, rows in ((adding, added), (update(Airport), changed)):
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                db.session.execute(statement, batch)
                db.session.commit()
                bar.update(len(batch))


def load_airports() -> Rows:
    """Read the data set, and convert it to rows of :class:`Airport`."""
    try:
        import airportsdata
    except ImportError:
        raise click.ClickException(
            "The package 'airportsdata', which contains the airports, is not"
            " installed. Run 'pip install airportsdata'."
        ) from None

    return [to_row(raw) for raw in airportsdata.load("ICAO").values()]


def to_row(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Convert one airport of the data set to the columns of :class:`Airport`."""
    words = (raw[k] for k in ("icao", "iata", "name", "city", "subd", "country"))
    return {
        "icao": raw["icao"],
        "iata": raw["iata"] or None,
        "name": raw["name"],
        "city": raw["city"],
        "region": raw["subd"],
        "country": raw["country"],
        "elevation_ft": float(raw["elevation"]),
        "latitude": float(raw["lat"]),
        "longitude": float(raw["lon"]),
        "timezone": raw["tz"],
        "search_text": fold(" ".join(word for word in words if word)),
    }


def stored_airports() -> dict[str, dict[str, Any]]:
    """Read the stored airports, and end the transaction before the writes."""
    rows = db.session.execute(select(*Airport.__table__.columns)).mappings().all()
    db.session.commit()
    return {row["icao"]: dict(row) for row in rows}
