"""A row, or 404 Not Found."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from functools import partial

import sqlalchemy as sa
from flask import abort
from sqlalchemy.exc import MultipleResultsFound
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session

from ._statements import entity_of
from ._statements import items_of


def get_or_404(
    session: Session,
    entity: t.Any,
    ident: t.Any,
    description: str | None,
    options: Mapping[str, t.Any],
) -> t.Any:
    """Return the row with this primary key."""
    found = None
    if not _is_impossible(session, entity, ident):
        found = session.get(entity, ident, **options)
    if found is None:
        abort(404, description=description)
    return found


def first_or_404(session: Session, statement: t.Any, description: str | None) -> t.Any:
    """Return the first item of a statement."""
    items = items_of(session.execute(statement), entity_of(statement))
    found = items.fetchmany(1)
    items.close()
    if not found:
        abort(404, description=description)
    return found[0]


def one_or_404(session: Session, statement: t.Any, description: str | None) -> t.Any:
    """Return the only item of a statement."""
    try:
        return items_of(session.execute(statement), entity_of(statement)).one()
    except (NoResultFound, MultipleResultsFound):
        abort(404, description=description)


def _is_impossible(session: Session, entity: t.Any, ident: t.Any) -> bool:
    """Whether no row can have this primary key, so that drivers refuse to ask.

    Flask's ``<int:id>`` accepts numbers of any size. On PostgreSQL, the error would
    also spoil the transaction.
    """
    mapper = sa.inspect(entity, raiseerr=False)
    columns = getattr(mapper, "primary_key", ())
    if isinstance(ident, Mapping):
        names = [mapper.get_property_by_column(each).key for each in columns]
        values = [ident.get(name) for name in names]
    else:
        values = list(ident) if isinstance(ident, (tuple, list)) else [ident]
    return any(
        not _fits(column.type, value, partial(_on_postgresql, session, mapper))
        for column, value in zip(columns, values, strict=False)
    )


def _fits(type_: t.Any, value: t.Any, on_postgresql: Callable[[], bool]) -> bool:
    """Whether a column of this type can have this value."""
    if not isinstance(type_, sa.Integer):
        return not (isinstance(value, str) and "\0" in value and on_postgresql())
    if isinstance(value, str):
        value = int(value) if re.fullmatch("[+-]?[0-9]{1,19}", value) else 2**63
    if not isinstance(value, int) or -(2**15) <= value < 2**15:
        return True
    bits = 63
    if on_postgresql() and not isinstance(type_, sa.BigInteger):
        bits = 15 if isinstance(type_, sa.SmallInteger) else 31
    return -(1 << bits) <= value < 1 << bits


def _on_postgresql(session: Session, mapper: t.Any) -> bool:
    name: str = session.get_bind(mapper).dialect.name
    return name == "postgresql"
