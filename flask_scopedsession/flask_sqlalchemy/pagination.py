"""Pages of rows, and links to their neighbours."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
from flask import abort
from flask import has_request_context
from flask import request
from sqlalchemy import orm

from .. import views

_PER_PAGE = 20


class Pagination(views.Pagination[t.Any]):
    """One page. Subclasses say where the rows come from.

    ``db.paginate()`` and ``Query.paginate()`` return it::

        page = db.paginate(db.select(Flight).order_by(Flight.id), per_page=10)
        numbers = [flight.number for flight in page.items]

    :param page: Its number, from 1. ``None``: what the URL's ``page`` says, or 1.
    :param per_page: How many rows. ``None``: what the URL's ``per_page`` says, or 20.
    :param max_per_page: How many at most, whoever asks. ``None``: any number.
    :param error_out: Abort with 404 if there is no such page, or if the number is none.
        Otherwise use the defaults, and return an empty page.
    :param count: Count all rows, for :attr:`total`.
    :param kwargs: What the methods that a subclass has need.
    """

    def __init__(
        self,
        page: int | None = None,
        per_page: int | None = None,
        max_per_page: int | None = 100,
        error_out: bool = True,
        count: bool = True,
        **kwargs: t.Any,
    ) -> None:
        self._query_args = kwargs
        self.max_per_page: int | None = max_per_page
        self.page: int = _number("page", page, 1, error_out)
        per_page = _number("per_page", per_page, _PER_PAGE, error_out)
        if max_per_page is not None:
            per_page = min(per_page, max_per_page)
        self.per_page: int = per_page
        items = self._query_items()
        if not items and self.page != 1 and error_out:
            abort(404)
        self.items: list[t.Any] = items
        self.total: int | None = self._query_count() if count else None

    @property
    def _query_offset(self) -> int:
        """How many rows there are before the page."""
        return (self.page - 1) * self.per_page

    def _query_items(self) -> list[t.Any]:
        """Return the rows of the page; a subclass says how."""
        raise NotImplementedError

    def _query_count(self) -> int:
        """Return how many rows all pages have; a subclass says how."""
        raise NotImplementedError

    @property
    def has_next(self) -> bool:
        """Whether there is a page after this one. ``False`` without a count."""
        return self.page < self.pages

    def _turn(self, page: int, error_out: bool) -> Pagination:
        made = type(self)(
            page=page,
            per_page=self.per_page,
            max_per_page=self.max_per_page,
            error_out=error_out,
            count=False,
            **self._query_args,
        )
        made.total = self.total
        return made


class SelectPagination(Pagination):
    """A page of ``select()``; what ``db.paginate()`` returns."""

    def _query_items(self) -> list[t.Any]:
        statement = self._query_args["select"]
        statement = statement.limit(self.per_page).offset(self._query_offset)
        session = self._query_args["session"]
        return list(session.execute(statement).unique().scalars())

    def _query_count(self) -> int:
        statement = self._query_args["select"]
        rows = statement.options(orm.lazyload("*")).order_by(None).subquery()
        counted = sa.select(sa.func.count()).select_from(rows)
        session = self._query_args["session"]
        return session.execute(counted).scalar() or 0


class QueryPagination(Pagination):
    """A page of a legacy query; what ``Model.query.paginate()`` returns."""

    def _query_items(self) -> list[t.Any]:
        query = self._query_args["query"]
        return list(query.limit(self.per_page).offset(self._query_offset).all())

    def _query_count(self) -> int:
        return int(self._query_args["query"].order_by(None).count())


def _number(name: str, given: int | None, default: int, error_out: bool) -> int:
    """Return a positive number that was given, or that the URL has."""
    wanted: t.Any = given
    if wanted is None:
        wanted = request.args.get(name, default) if has_request_context() else default
    try:
        number = int(wanted)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        return abort(404) if error_out else default
    return number
