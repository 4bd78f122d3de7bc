"""The flight log: validation and storage."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from .catalogue import find_airport
from .extensions import db
from .models import AuditEntry
from .models import Flight
from .models import utcnow

#: An airline's two- or three-character code, a number, and an optional letter.
FLIGHT_NUMBER = re.compile(r"([A-Z]{3}|[A-Z][A-Z0-9]|[0-9][A-Z])[0-9]{1,4}[A-Z]?")
FIRST_FLIGHT = dt.date(1903, 12, 17)
MAX_REMARKS = 500
MAX_ID = 2**31 - 1


class InvalidFlightError(Exception):
    """The input is invalid; *errors* has a message for each invalid field."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("Not saved: please correct the marked fields.")
        self.errors = errors


class ConflictError(Exception):
    """The input is valid, but conflicts with stored data."""


@dataclass(frozen=True)
class FlightData:
    """The validated input for a flight."""

    number: str
    date: dt.date
    origin: str
    destination: str
    minutes: int | None
    remarks: str


def parse_flight(raw: Mapping[str, object]) -> FlightData:
    """Validate a form or a JSON object, and report all invalid fields at once."""
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}

    for name, parse in FIELDS.items():
        try:
            values[name] = parse(text_of(raw.get(name)))
        except ValueError as error:
            errors[name] = str(error)

    if errors:
        raise InvalidFlightError(errors)

    return FlightData(**values)


def whole_number(text: str, minimum: int, maximum: int) -> int:
    """Parse ASCII digits only; ``int`` also accepts ``1_0`` and ``٣``."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not minimum <= int(text) <= maximum:
        raise ValueError(f"Enter a whole number from {minimum} to {maximum}.")

    return int(text)


def parse_version(raw: Mapping[str, object]) -> int:
    """Return the version that an edit is based on."""
    try:
        return whole_number(text_of(raw.get("version")), 1, MAX_ID)
    except ValueError:
        message = "Send the 'version' of the entry that you have edited."
        raise InvalidFlightError({"version": message}) from None


def add_flight(data: FlightData) -> Flight:
    """Store a new entry."""
    flight = Flight(**asdict(data))

    with writing(data) as session:
        session.add(flight)
        record("created", flight, session)

    return flight


def change_flight(flight: Flight, data: FlightData, version: int) -> None:
    """Change an entry, unless its version differs from the *version* edited."""
    if flight.version != version:
        raise ConflictError("Somebody else has changed this flight in the meantime.")

    with writing(data) as session:
        for name, value in asdict(data).items():
            setattr(flight, name, value)

        if session.is_modified(flight):
            record("changed", flight, session)


@contextmanager
def writing(data: FlightData) -> Iterator[Session]:
    """Write in a separate transaction, and explain conflicts."""
    session = db.session()
    # End the transaction in which the input was validated. If another worker has
    # written since that transaction began, SQLite refuses to write in it, without
    # waiting. In a new transaction that begins with a write, SQLite waits for its
    # turn. The unique constraint, the foreign keys and the version detect changes
    # that were made in between, on every database.
    session.commit()

    try:
        yield session
        session.commit()
    except IntegrityError as error:
        session.rollback()
        if is_taken(data):
            message = f"Flight {data.number} on {data.date} is in the log already."
            raise ConflictError(message) from error
        raise
    except StaleDataError as error:
        session.rollback()
        message = "Somebody else has changed this flight in the meantime."
        raise ConflictError(message) from error
    except BaseException:
        session.rollback()
        raise


def is_taken(data: FlightData) -> bool:
    """Return whether the log has a flight with this number and date."""
    found = select(Flight.id).where(
        Flight.number == data.number, Flight.date == data.date
    )
    return db.session.scalar(found) is not None


def record(action: str, flight: Flight, session: Session) -> None:
    """Add an entry to the audit database, before the flight is committed.

    One session writes to both databases. Both have accepted their rows before
    either commits. Only a crash between the two commits can therefore store one
    row without the other. (Two-phase commit prevents this; SQLite lacks it.)
    """
    session.flush()  # gives the flight its id, and raises on conflicts
    entry = AuditEntry(action=action, flight_id=flight.id, data=flight.to_dict())
    session.add(entry)
    session.flush()


def text_of(value: object) -> str:
    """Return the text of a form field, or of a string or integer in JSON."""
    if value is None:
        return ""

    if isinstance(value, str):
        return value.strip()

    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)

    raise ValueError("Write this as text or as a whole number.")


def parse_number(text: str) -> str:
    """Normalize a flight number: ``lh 400`` becomes ``LH400``."""
    number = text.upper().replace(" ", "")

    if FLIGHT_NUMBER.fullmatch(number):
        return number

    raise ValueError("Enter a flight number: airline code and digits, such as LH400.")


def parse_date(text: str) -> dt.date:
    """Parse a date between the first flight and a year from now."""
    try:
        date = dt.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise ValueError("Enter a date as YYYY-MM-DD, such as 2025-07-01.") from None

    if not FIRST_FLIGHT <= date <= utcnow().date() + dt.timedelta(days=366):
        raise ValueError("Enter a date between 1903-12-17 and a year from now.")

    return date


def parse_airport(text: str) -> str:
    """Accept an ICAO or IATA code, and return the ICAO code."""
    if not text:
        raise ValueError("Enter an airport's ICAO or IATA code, such as EDDF or FRA.")

    airport = find_airport(text)

    if airport is None:
        raise ValueError("No airport has this code. Search for the airport by name.")

    return airport.icao


def parse_minutes(text: str) -> int | None:
    """Parse a duration of up to a day. Empty text is ``None``."""
    return whole_number(text, 1, 24 * 60) if text else None


def parse_remarks(text: str) -> str:
    """Accept several lines of text. PostgreSQL cannot store a NUL character."""
    lines = text.splitlines()

    if not all(line.replace("\t", " ").isprintable() for line in lines):
        raise ValueError("Leave out control characters.")

    if len(text) > MAX_REMARKS:
        raise ValueError(f"Use at most {MAX_REMARKS} characters, not {len(text)}.")

    return "\n".join(lines)


FIELDS: Mapping[str, Callable[[str], object]] = {
    "number": parse_number,
    "date": parse_date,
    "origin": parse_airport,
    "destination": parse_airport,
    "minutes": parse_minutes,
    "remarks": parse_remarks,
}
