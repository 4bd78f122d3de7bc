"""Queries for airports."""

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

    # Other text cannot be a code, and PostgreSQL refuses to compare some of it,
    # such as a NUL character.
    if re.fullmatch(r"[A-Z0-9_]{4}", code):
        return db.session.get(Airport, code)

    if re.fullmatch(r"[A-Z0-9]{3}", code):
        return db.session.scalar(
            select(Airport).where(Airport.iata == code).order_by(Airport.icao).limit(1)
        )

    return None


def search_airports(text: str) -> Select[Any]:
    """Select the airports that contain every word of *text*.

    The airport whose code is *text* comes first, then airports with an IATA
    code (the ones that airlines serve), then all others.
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
