"""Pagination of results."""

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
    """One page of a result."""

    items: Sequence[T]
    number: int
    size: int
    total: int

    @property
    def count(self) -> int:
        """The number of pages. An empty result has one."""
        return max(1, -(-self.total // self.size))

    @property
    def first(self) -> int:
        """The position of this page's first row in the result, from 1."""
        return (self.number - 1) * self.size + 1 if self.items else 0

    @property
    def last(self) -> int:
        """The position of this page's last row in the result."""
        return self.first + len(self.items) - 1 if self.items else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the API shows for a page."""
        return {
            "page": self.number,
            "per_page": self.size,
            "pages": self.count,
            "total": self.total,
        }


def paginate(statement: Select[Any], session: Session | None = None) -> Page[Any]:
    """Run *statement* for the page in the request's query string."""
    session = session or db.session()
    number = int_argument("page", 1, MAX_PAGE)
    size = int_argument("per_page", 25, MAX_PER_PAGE)
    rows = statement.order_by(None).subquery()
    total = session.scalar(select(func.count()).select_from(rows)) or 0
    chunk = statement.limit(size).offset((number - 1) * size)
    return Page(session.scalars(chunk).all(), number, size, total)


def int_argument(name: str, default: int, maximum: int) -> int:
    """Return a number from 1 to *maximum* from the query string, or abort with 400."""
    text = request.args.get(name)

    if text is None:
        return default

    try:
        return whole_number(text, 1, maximum)
    except ValueError:
        abort(400, f"'{name}' must be a whole number from 1 to {maximum}.")


def whole_number(text: str, minimum: int, maximum: int) -> int:
    """Parse ASCII digits only; ``int`` also accepts ``1_0`` and ``٣``."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not minimum <= int(text) <= maximum:
        raise ValueError(f"Enter a whole number from {minimum} to {maximum}.")

    return int(text)
