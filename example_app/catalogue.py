"""Finding airports."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import case
from sqlalchemy import Select
from sqlalchemy import select

from .extensions import db
from .models import Airport
from .models import fold


def find_airport(code: str) -> Airport | None:
    """Find an airport by its ICAO code, or by its IATA code."""
    code = code.strip().upper()

    # Anything else cannot be a code; and some of it (a NUL character, for
    # one) PostgreSQL would refuse to compare.
    if re.fullmatch(r"[A-Z0-9_]{4}", code):
        return db.session.get(Airport, code)

    if re.fullmatch(r"[A-Z0-9]{3}", code):
        return db.session.scalar(
            select(Airport).where(Airport.iata == code).order_by(Airport.icao).limit(1)
        )

    return None


def search_airports(text: str) -> Select[Any]:
    """Select the airports that contain every word of *text*.

    An airport that has *text* as its code comes first, then those with an
    IATA code (where the airlines fly), then the rest.
    """
    words = fold("".join(c for c in text if c.isprintable())).split()
    code = " ".join(words).upper()
    rank = case(
        (Airport.iata == code, 0),
        (Airport.icao == code, 1),
        (Airport.iata.is_not(None), 2),
        else_=3,
    )
    return (
        select(Airport)
        .where(*(Airport.search_text.contains(w, autoescape=True) for w in words))
        .order_by(rank, Airport.name, Airport.icao)
    )
