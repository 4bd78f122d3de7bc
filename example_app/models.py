"""What is stored. Plain SQLAlchemy: nothing here knows of Flask."""

from __future__ import annotations

import datetime as dt
import unicodedata
from typing import Any
from typing import ClassVar

from sqlalchemy import DateTime
from sqlalchemy import ForeignKey
from sqlalchemy import JSON
from sqlalchemy import MetaData
from sqlalchemy import String
from sqlalchemy import TypeDecorator
from sqlalchemy import UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship

#: Names for constraints, so that a migration can address them later.
NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def utcnow() -> dt.datetime:
    """Return the current moment, to the second."""
    return dt.datetime.now(dt.timezone.utc).replace(microsecond=0)


def fold(text: str) -> str:
    """Reduce *text* to what a search compares: no case, no accents."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(c for c in parts if not unicodedata.combining(c)).casefold()


class UTCDateTime(TypeDecorator[dt.datetime]):
    """A moment in UTC. SQLite forgets the zone, so it is put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(
        self,
        value: dt.datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> dt.datetime | None:
        """Return the value that was stored."""
        if value is None:
            return None

        if value.tzinfo is None:
            return value.replace(tzinfo=dt.timezone.utc)

        return value.astimezone(dt.timezone.utc)


class Base(DeclarativeBase):
    """Models of the application's own database."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {dt.datetime: UTCDateTime}


class AuditBase(DeclarativeBase):
    """Models of the audit database."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {dt.datetime: UTCDateTime}


class Airport(Base):
    """An airport, as the data set has it."""

    __tablename__ = "airport"

    icao: Mapped[str] = mapped_column(String(4), primary_key=True)
    iata: Mapped[str | None] = mapped_column(String(3), index=True)
    name: Mapped[str] = mapped_column(String(120))
    city: Mapped[str] = mapped_column(String(80))
    region: Mapped[str] = mapped_column(String(80))
    country: Mapped[str] = mapped_column(String(2), index=True)
    elevation_ft: Mapped[float]
    latitude: Mapped[float]
    longitude: Mapped[float]
    timezone: Mapped[str] = mapped_column(String(40))
    #: Everything that a search looks at, folded, in one string.
    search_text: Mapped[str] = mapped_column(String(400))

    def __repr__(self) -> str:
        return f"<Airport {self.icao}>"

    def to_dict(self) -> dict[str, Any]:
        """Return what the API tells."""
        return {
            "icao": self.icao,
            "iata": self.iata,
            "name": self.name,
            "city": self.city,
            "region": self.region,
            "country": self.country,
            "elevation_ft": self.elevation_ft,
            "latitude": self.latitude,
            "longitude": self.longitude,
            "timezone": self.timezone,
        }


class Flight(Base):
    """One entry of the flight log."""

    __tablename__ = "flight"
    __table_args__ = (UniqueConstraint("number", "date"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(8))
    date: Mapped[dt.date] = mapped_column(index=True)
    origin: Mapped[str] = mapped_column(ForeignKey(Airport.icao), index=True)
    destination: Mapped[str] = mapped_column(ForeignKey(Airport.icao), index=True)
    minutes: Mapped[int | None]
    remarks: Mapped[str] = mapped_column(String(500), default="")
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[dt.datetime] = mapped_column(default=utcnow, onupdate=utcnow)
    version: Mapped[int] = mapped_column()

    origin_airport: Mapped[Airport] = relationship(foreign_keys=[origin])
    destination_airport: Mapped[Airport] = relationship(foreign_keys=[destination])

    # Each UPDATE counts the version up and says which one it expects to find:
    # when somebody else was faster it finds none, and raises StaleDataError.
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    def __repr__(self) -> str:
        return f"<Flight {self.number} {self.date}>"

    def to_dict(self) -> dict[str, Any]:
        """Return what the API tells."""
        return {
            "id": self.id,
            "number": self.number,
            "date": self.date.isoformat(),
            "origin": self.origin,
            "destination": self.destination,
            "minutes": self.minutes,
            "remarks": self.remarks,
            "version": self.version,
        }


class AirportTraffic(Base):
    """How many flights of the log began and ended at an airport.

    Written by the background job alone, so it may be behind the log.
    """

    __tablename__ = "airport_traffic"

    icao: Mapped[str] = mapped_column(ForeignKey(Airport.icao), primary_key=True)
    departures: Mapped[int]
    arrivals: Mapped[int]

    airport: Mapped[Airport] = relationship()

    def to_dict(self) -> dict[str, Any]:
        """Return what the API tells."""
        return {
            "icao": self.icao,
            "name": self.airport.name,
            "departures": self.departures,
            "arrivals": self.arrivals,
        }


class Job(Base):
    """One run of a background job. In the database, so every worker sees it."""

    __tablename__ = "job"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(10), default="running")
    message: Mapped[str] = mapped_column(String(200), default="")
    started_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    finished_at: Mapped[dt.datetime | None]

    def to_dict(self) -> dict[str, Any]:
        """Return what the API tells."""
        finished = self.finished_at
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "message": self.message,
            "started_at": self.started_at.isoformat(),
            "finished_at": finished.isoformat() if finished else None,
        }


class AuditEntry(AuditBase):
    """One change of the flight log.

    No foreign key leads to the flight: it lives in another database.
    """

    __tablename__ = "audit_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    action: Mapped[str] = mapped_column(String(10))
    flight_id: Mapped[int] = mapped_column(index=True)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)

    def to_dict(self) -> dict[str, Any]:
        """Return what the API tells."""
        return {
            "id": self.id,
            "at": self.at.isoformat(),
            "action": self.action,
            "flight_id": self.flight_id,
            "flight": self.data,
        }
