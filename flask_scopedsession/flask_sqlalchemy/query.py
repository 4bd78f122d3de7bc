"""The legacy ``Query``, with the methods that views use."""

from __future__ import annotations

import typing as t

from flask import abort
from sqlalchemy import orm
from sqlalchemy.exc import MultipleResultsFound
from sqlalchemy.exc import NoResultFound

from .pagination import Pagination
from .pagination import QueryPagination

_T = t.TypeVar("_T", bound=t.Any)


class Query(orm.Query[_T]):
    """What ``Model.query`` and ``db.session.query()`` are."""

    def get_or_404(self, ident: t.Any, description: str | None = None) -> _T:
        """Return the object with this primary key, or abort with 404.

        :param ident: The primary key, as :meth:`sqlalchemy.orm.Session.get` takes it.
        :param description: What the error page says.
        """
        found = self.get(ident)
        return abort(404, description) if found is None else found

    def first_or_404(self, description: str | None = None) -> _T:
        """Return the first row, or abort with 404.

        The flight that was added first::

            Flight.query.order_by(Flight.id).first_or_404()

        :param description: What the error page says.
        """
        found = self.first()
        return abort(404, description) if found is None else found

    def one_or_404(self, description: str | None = None) -> _T:
        """Return the only row, or abort with 404 if there is none or another.

        :param description: What the error page says.
        """
        try:
            return self.one()
        except (NoResultFound, MultipleResultsFound):
            abort(404, description)

    def paginate(
        self,
        *,
        page: int | None = None,
        per_page: int | None = None,
        max_per_page: int | None = None,
        error_out: bool = True,
        count: bool = True,
    ) -> Pagination:
        """Return one page of the query's items.

        :param page: The number of the page, from 1. ``None`` for ``page`` in the
            request's query string, else 1.
        :param per_page: The most items of a page. ``None`` for ``per_page`` in the
            request's query string, else 20.
        :param max_per_page: The most that `per_page` may be; ``None`` for no limit.
        :param error_out: Abort with 404 if there is no such page. Otherwise use the
            defaults, and return an empty page.
        :param count: Count the items of all pages.
        """
        return QueryPagination(
            query=self,
            page=page,
            per_page=per_page,
            max_per_page=max_per_page,
            error_out=error_out,
            count=count,
        )
