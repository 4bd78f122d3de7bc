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

        :param description: What the error page says.
        """
        found = self.get(ident)
        return abort(404, description) if found is None else found

    def first_or_404(self, description: str | None = None) -> _T:
        """Return the first row, or abort with 404."""
        found = self.first()
        return abort(404, description) if found is None else found

    def one_or_404(self, description: str | None = None) -> _T:
        """Return the only row, or abort with 404 if there is none or another."""
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
        """Return one page; the arguments are those of :class:`.Pagination`."""
        return QueryPagination(
            query=self,
            page=page,
            per_page=per_page,
            max_per_page=max_per_page,
            error_out=error_out,
            count=count,
        )
