"""Pages by number."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

from flask import abort
from sqlalchemy.orm import Session

from ._statements import Pages
from ._statements import size_of
from ._statements import whole_number

T = t.TypeVar("T")


class Pagination(t.Generic[T]):
    """One page of a statement's items. Iterating over it iterates over the items.

    :meth:`.ScopedSession.paginate` returns it. The attributes are those of
    Flask-SQLAlchemy's class::

        page = db.paginate(select(Flight).order_by(Flight.id), per_page=10)
        [flight.number for flight in page], page.total, page.has_next

    :param session: Executes the statement.
    :param statement: This and the others are the arguments of
        :meth:`.ScopedSession.paginate`.
    :param page: The number of the page.
    :param per_page: The most items of a page.
    :param max_per_page: The most that `per_page` may be.
    :param error_out: Abort with 404 Not Found if there is no such page.
    :param count: Count the items of all pages.

    .. versionadded:: 0.1
    """

    items: list[T]
    """The items of this page."""
    page: int
    """The number of this page, from 1."""
    per_page: int
    """The most items that a page has."""
    max_per_page: int | None
    """What limits :attr:`per_page`."""
    total: int | None
    """The number of items of all pages, or ``None`` if they were not counted."""

    def __init__(
        self,
        session: Session,
        statement: t.Any,
        *,
        page: int | None,
        per_page: int | None,
        max_per_page: int | None,
        error_out: bool,
        count: bool,
    ) -> None:
        self._source = session, statement
        self.page = whole_number("page", page, 1, error_out)
        self.per_page = size_of(per_page, max_per_page, error_out)
        self.max_per_page = max_per_page
        pages = Pages("paginate()", session, statement)
        offset = (self.page - 1) * self.per_page
        # One more tells whether there is a next page.
        found = pages.part(self.per_page + 1, offset)
        self.items = found[: self.per_page]
        self._more = len(found) > self.per_page
        if not self.items and self.page != 1 and error_out:
            abort(404)
        self.total = None
        if count:
            counted = not self._more and (self.items or self.page == 1)
            self.total = offset + len(self.items) if counted else pages.total()

    @property
    def first(self) -> int:
        """The number of the first item on this page, from 1, or 0 without items."""
        return (self.page - 1) * self.per_page + 1 if self.items else 0

    @property
    def last(self) -> int:
        """The number of the last item on this page, or 0 without items."""
        return self.first + len(self.items) - 1 if self.items else 0

    @property
    def pages(self) -> int:
        """The number of pages, or 0 if the items were not counted."""
        return -(-(self.total or 0) // self.per_page)

    @property
    def has_prev(self) -> bool:
        """Whether there is a page before this one."""
        return self.page > 1

    @property
    def prev_num(self) -> int | None:
        """The number of the page before this one."""
        return self.page - 1 if self.has_prev else None

    @property
    def has_next(self) -> bool:
        """Whether there is a page after this one, also if nothing was counted."""
        return self._more

    @property
    def next_num(self) -> int | None:
        """The number of the page after this one."""
        return self.page + 1 if self.has_next else None

    def prev(self, *, error_out: bool = False) -> Pagination[T]:
        """Return the page before this one.

        For a reader who pages backwards::

            flights = select(Flight).order_by(Flight.id)
            last = db.paginate(flights, page=2, per_page=1)
            last.prev().items

        :param error_out: Abort with 404 if there is none.
        """
        return self._turn(self.page - 1, error_out)

    def next(self, *, error_out: bool = False) -> Pagination[T]:
        """Return the page after this one.

        :param error_out: Abort with 404 if there is none.
        """
        return self._turn(self.page + 1, error_out)

    def _turn(self, page: int, error_out: bool) -> Pagination[T]:
        other = Pagination[T](
            *self._source,
            page=page,
            per_page=self.per_page,
            max_per_page=self.max_per_page,
            error_out=error_out,
            count=False,
        )
        other.total = self.total
        return other

    def iter_pages(
        self,
        *,
        left_edge: int = 2,
        left_current: int = 2,
        right_current: int = 4,
        right_edge: int = 2,
    ) -> Iterator[int | None]:
        """Yield the numbers of pages for links, and ``None`` for each gap.

        :param left_edge: How many of the first pages to show.
        :param left_current: How many pages to show before this one.
        :param right_current: How many pages to show after this one.
        :param right_edge: How many of the last pages to show.
        """
        shown = {
            number
            for start, stop in (
                (1, left_edge),
                (self.page - left_current, self.page + right_current),
                (self.pages - right_edge + 1, self.pages),
            )
            for number in range(max(1, start), min(stop, self.pages) + 1)
        }
        last = 0
        for number in sorted(shown):
            if number > last + 1:
                yield None
            yield number
            last = number

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)
