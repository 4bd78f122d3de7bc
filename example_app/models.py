"""The models: plain SQLAlchemy, independent of Flask."""

from __future__ import annotations

import datetime as dt
import unicodedata
from typing import Any
from typing import ClassVar

from sqlalchemy import DateTime
from sqlalchemy import Double
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

#: Names for constraints, so that migrations can refer to them.
NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def utcnow() -> dt.datetime:
    """Return the current time, rounded down to a second."""
    return dt.datetime.now(dt.timezone.utc).replace(microsecond=0)


def fold(text: str) -> str:
    """Remove case and accents, so that a search ignores them."""
    if text.isascii():  # most airports have no accents
        return text.casefold()
    parts = unicodedata.normalize("NFKD", text)
    return "".join(c for c in parts if not unicodedata.combining(c)).casefold()


class UTCDateTime(TypeDecorator[dt.datetime]):
    """A time in UTC. SQLite does not store the time zone, so it is added."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(
        self,
        value: dt.datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> dt.datetime | None:
        """Return the stored time in UTC."""
        if value is None:
            return None

        if value.tzinfo is None:
            return value.replace(tzinfo=dt.timezone.utc)

        return value.astimezone(dt.timezone.utc)


class Base(DeclarativeBase):
    """The base of the models in the default bind."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dt.datetime: UTCDateTime,
        float: Double,
    }


class AuditBase(DeclarativeBase):
    """The base of the models in the audit database."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {dt.datetime: UTCDateTime}


class Airport(Base):
    """An airport of the data set."""

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
    #: The text that a search looks at, folded.
    search_text: Mapped[str] = mapped_column(String(400))

    def __repr__(self) -> str:
        return f"<Airport {self.icao}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the API shows."""
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

    # Each UPDATE increments the version, and names the version that it expects.
    # If another request was faster, no row matches: StaleDataError is raised.
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    def __repr__(self) -> str:
        return f"<Flight {self.number} {self.date}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the API shows."""
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
    """The number of departures and arrivals at an airport.

    Only the background job writes these, so they can lag behind the log.
    """

    __tablename__ = "airport_traffic"

    icao: Mapped[str] = mapped_column(ForeignKey(Airport.icao), primary_key=True)
    departures: Mapped[int]
    arrivals: Mapped[int]

    airport: Mapped[Airport] = relationship()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the API shows."""
        return {
            "icao": self.icao,
            "name": self.airport.name,
            "departures": self.departures,
            "arrivals": self.arrivals,
        }


class Job(Base):
    """One run of a background job, stored so that every worker can see it."""

    __tablename__ = "job"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(10), default="running")
    message: Mapped[str] = mapped_column(String(200), default="")
    started_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    finished_at: Mapped[dt.datetime | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the API shows."""
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

    It has no foreign key, because the flight is in another database.
    """

    __tablename__ = "audit_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    action: Mapped[str] = mapped_column(String(10))
    flight_id: Mapped[int] = mapped_column(index=True)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the API shows."""
        return {
            "id": self.id,
            "at": self.at.isoformat(),
            "action": self.action,
            "flight_id": self.flight_id,
            "flight": self.data,
        }
