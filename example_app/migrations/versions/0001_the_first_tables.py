"""The first tables.

Databases that were made before there were migrations have them already. That is why
they are created only if they do not exist.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade(bind: str) -> None:
    """Change the database of one bind."""
    globals()[f"upgrade_{bind}"]()


def downgrade(bind: str) -> None:
    """Undo the change of one bind."""
    globals()[f"downgrade_{bind}"]()


def upgrade_default() -> None:
    """Create the airports, the flight log and the jobs."""
    op.create_table(
        "airport",
        sa.Column("icao", sa.String(4), nullable=False),
        sa.Column("iata", sa.String(3), nullable=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("city", sa.String(80), nullable=False),
        sa.Column("region", sa.String(80), nullable=False),
        sa.Column("country", sa.String(2), nullable=False),
        sa.Column("elevation_ft", sa.Double(), nullable=False),
        sa.Column("latitude", sa.Double(), nullable=False),
        sa.Column("longitude", sa.Double(), nullable=False),
        sa.Column("timezone", sa.String(40), nullable=False),
        sa.Column("search_text", sa.String(400), nullable=False),
        sa.PrimaryKeyConstraint("icao", name="pk_airport"),
        if_not_exists=True,
    )
    create_index("airport", "country")
    create_index("airport", "iata")

    op.create_table(
        "job",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("message", sa.String(200), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        if_not_exists=True,
    )
    op.create_table(
        "airport_traffic",
        sa.Column("icao", sa.String(4), nullable=False),
        sa.Column("departures", sa.Integer(), nullable=False),
        sa.Column("arrivals", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("icao", name="pk_airport_traffic"),
        sa.ForeignKeyConstraint(
            ["icao"], ["airport.icao"], name="fk_airport_traffic_icao_airport"
        ),
        if_not_exists=True,
    )
    op.create_table(
        "flight",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.String(8), nullable=False),
        sa.Column("date", sa.Date(), nullable=False),
        sa.Column("origin", sa.String(4), nullable=False),
        sa.Column("destination", sa.String(4), nullable=False),
        sa.Column("minutes", sa.Integer(), nullable=True),
        sa.Column("remarks", sa.String(500), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_flight"),
        sa.UniqueConstraint("number", "date", name="uq_flight_number_date"),
        sa.ForeignKeyConstraint(
            ["origin"], ["airport.icao"], name="fk_flight_origin_airport"
        ),
        sa.ForeignKeyConstraint(
            ["destination"], ["airport.icao"], name="fk_flight_destination_airport"
        ),
        if_not_exists=True,
    )
    create_index("flight", "date")
    create_index("flight", "destination")
    create_index("flight", "origin")


def downgrade_default() -> None:
    """Drop the tables, the ones that refer to others first."""
    for table in ("flight", "airport_traffic", "job", "airport"):
        op.drop_table(table)


def upgrade_audit() -> None:
    """Create the audit log."""
    op.create_table(
        "audit_entry",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(10), nullable=False),
        sa.Column("flight_id", sa.Integer(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entry"),
        if_not_exists=True,
    )
    create_index("audit_entry", "flight_id")


def downgrade_audit() -> None:
    """Drop the audit log."""
    op.drop_table("audit_entry")


def create_index(table: str, column: str) -> None:
    """Create the index that the models name like this."""
    op.create_index(f"ix_{table}_{column}", table, [column], if_not_exists=True)
