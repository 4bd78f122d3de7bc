"""Results, one page at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Generic
from typing import TypeVar

from flask import abort
from flask import request
from sqlalchemy import func
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy.orm import Session

from .extensions import db

T = TypeVar("T")

MAX_PAGE = 100_000
MAX_PER_PAGE = 100


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some of the rows, and where among all of them they are."""

    items: Sequence[T]
    number: int
    size: int
    total: int

    @property
    def count(self) -> int:
        """How many pages there are; an empty result has one."""
        return max(1, -(-self.total // self.size))

    @property
    def first(self) -> int:
        """The place of the first row of this page, from 1."""
        return (self.number - 1) * self.size + 1 if self.items else 0

    @property
    def last(self) -> int:
        """The place of the last row of this page."""
        return self.first + len(self.items) - 1 if self.items else 0

    def to_dict(self) -> dict[str, Any]:
        """Return what the API tells about a page."""
        return {
            "page": self.number,
            "per_page": self.size,
            "pages": self.count,
            "total": self.total,
        }


def paginate(statement: Select[Any], session: Session | None = None) -> Page[Any]:
    """Run *statement* for the page that the request asks for."""
    session = session or db.session()
    number = int_argument("page", 1, MAX_PAGE)
    size = int_argument("per_page", 25, MAX_PER_PAGE)
    rows = statement.order_by(None).subquery()
    total = session.scalar(select(func.count()).select_from(rows)) or 0
    chunk = statement.limit(size).offset((number - 1) * size)
    return Page(session.scalars(chunk).all(), number, size, total)


def int_argument(name: str, default: int, maximum: int) -> int:
    """Read a number from 1 to *maximum* from the query string, or answer 400."""
    text = request.args.get(name)

    if text is None:
        return default

    try:
        return whole_number(text, 1, maximum)
    except ValueError:
        abort(400, f"'{name}' must be a whole number from 1 to {maximum}.")


def whole_number(text: str, minimum: int, maximum: int) -> int:
    """Parse plain ASCII digits; ``int`` alone would take ``1_0`` and ``٣``."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not minimum <= int(text) <= maximum:
        raise ValueError(f"Enter a whole number from {minimum} to {maximum}.")

    return int(text)
