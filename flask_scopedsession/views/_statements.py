"""How the items of a statement are fetched.

The items of ``select(User)`` are users, each once, whatever the statement joins. Those
of ``select(User.name)`` are names, and those of a statement that selects several things
are rows.
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Generator
from collections.abc import Sequence
from contextlib import contextmanager

import sqlalchemy as sa
from flask import abort
from flask import has_request_context
from flask import request
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy.exc import CompileError
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from ..errors import ConfigError

#: The mark that order_of() looks for.
_MARK: t.Any = sa.literal_column("0")


def entity_of(statement: t.Any) -> t.Any:
    """Return the entity if a statement selects one and nothing else."""
    for name in ("column_descriptions", "returning_column_descriptions"):
        found: t.Any = getattr(statement, name, ())
        if len(found) == 1 and found[0]["expr"] is found[0].get("entity"):
            return found[0]["expr"]
    return None


def primary_key_of(entity: t.Any) -> list[t.Any]:
    """Return the attributes of a mapped class, or of an alias of it."""
    mapper = sa.inspect(entity).mapper
    keys = map(mapper.get_property_by_column, mapper.primary_key)
    return [getattr(entity, each.key) for each in keys]


def _froms(statement: t.Any) -> Sequence[t.Any]:
    """Return what a statement selects from, without what loads relationships.

    Nothing if SQLAlchemy cannot tell, because of a construct for one database only.
    """
    columns: list[t.Any] = []
    for found in statement.column_descriptions:
        is_entity = found["expr"] is found.get("entity")
        columns += primary_key_of(found["expr"]) if is_entity else [found["expr"]]
    bare = statement.order_by(None).with_only_columns(
        *columns, maintain_column_froms=True
    )
    try:
        froms: Sequence[t.Any] = bare.get_final_froms()
    except CompileError:
        return []
    return froms


def items_of(result: t.Any, entity: t.Any) -> t.Any:
    """Return a statement's result as one of items."""
    if entity is not None:
        result = result.unique()
    single = entity is not None or len(result.keys()) == 1
    return result.scalars() if single else result


def order_of(what: str, statement: t.Any) -> list[t.Any]:
    """Return the expressions of a statement's ORDER BY."""
    marked = list(statement.order_by(_MARK).get_children())
    cleared = list(statement.order_by(None).order_by(_MARK).get_children())
    block = slice(_position(cleared), _position(marked))
    return [_resolved(what, statement, each) for each in marked[block]]


def _position(children: Sequence[t.Any]) -> int:
    return next(i for i, each in enumerate(children) if each is _MARK)


def _resolved(what: str, statement: t.Any, clause: t.Any) -> t.Any:
    """Return an expression of an ORDER BY without references to labels."""
    if clause.__visit_name__ == "label_reference":
        return _resolved(what, statement, clause.element)
    if clause.__visit_name__ == "unary" and clause.modifier is not None:
        return clause.modifier(_resolved(what, statement, clause.element))
    if clause.__visit_name__ == "textual_label_reference":
        found = statement.selected_columns.get(clause.element)
        if found is not None:
            return _resolved(what, statement, found)
    is_text = clause.__visit_name__ == "textual_label_reference"
    if is_text or not isinstance(clause, sa.ColumnElement):
        raise ConfigError(
            f"{what} cannot use order_by({str(clause)!r}), which is text. Order by a"
            " column or an expression."
        )
    return clause.element if clause.__visit_name__ == "label" else clause


def _unmodified(clause: t.Any) -> t.Any:
    """Return an expression of an ORDER BY without its direction."""
    while clause.__visit_name__ == "unary" and clause.modifier is not None:
        clause = clause.element
    return clause


class Pages:
    """A statement, for which items are fetched in parts.

    :param what: The method that was called, for errors.
    :raises ConfigError: The statement is none that has pages.
    """

    def __init__(self, what: str, session: Session, statement: t.Any) -> None:
        if not isinstance(statement, sa.Select):
            raise ConfigError(
                f"{what} needs a select(), not {type(statement).__name__}."
            )
        if not statement.compare(statement.limit(None).offset(None)):
            raise ConfigError(
                f"{what} sets LIMIT and OFFSET itself, but the statement has its own."
                " Leave them out, or select from the statement's subquery()."
            )
        self.what = what
        self.session = session
        self.statement = statement
        self.entity = entity_of(statement)
        self.froms = _froms(statement)
        self.joined = False
        if self.entity is not None:
            inspected = sa.inspect(self.entity)
            self.mapper = inspected.mapper
            self.primary_key = primary_key_of(self.entity)
            # Else a join may give rows in which an entity is repeated.
            only = inspected.selectable
            self.joined = len(self.froms) != 1 or not self.froms[0].compare(only)

    @property
    def is_distinct(self) -> bool:
        """Whether the statement has DISTINCT, or DISTINCT ON."""
        return bool(self.statement.compare(self.statement.distinct()))

    def fetch(self, statement: t.Any) -> list[t.Any]:
        """Return all items of this statement, or of a part of it."""
        with self._rows_refused():
            return list(items_of(self.session.execute(statement), self.entity))

    def split(self, statement: t.Any, more: int) -> tuple[list[t.Any], list[t.Any]]:
        """Return the items, and the values of columns that were added at the end."""
        result = self.session.execute(statement)
        if self.entity is not None:
            rows = result.unique().all()
            return [row[0] for row in rows], [tuple(row[1:]) for row in rows]
        with self._rows_refused():
            frozen = result.freeze()
            rows = frozen().all()
        width = len(rows[0]) - more if rows else 1
        items = frozen().columns(*range(width))
        values = [tuple(row[width:]) for row in rows]
        return list(items.scalars() if width == 1 else items), values

    @contextmanager
    def _rows_refused(self) -> Generator[None]:
        try:
            yield
        except InvalidRequestError as error:
            raise ConfigError(
                f"{self.what} cannot load collections into rows by joins. Use"
                " selectinload() instead of joinedload(), or select the entity alone."
            ) from error

    def load(self, keys: Sequence[tuple[t.Any, ...]]) -> list[t.Any]:
        """Return the entities with these primary keys, in this order."""
        if not keys:
            return []
        wanted = self.primary_key[0].in_([key[0] for key in keys])
        if len(self.primary_key) > 1:
            wanted = sa.or_(
                *(
                    sa.and_(*(each == value for each, value in pairs))
                    for pairs in (
                        zip(self.primary_key, key, strict=True) for key in keys
                    )
                )
            )
        entities = self.fetch(self.statement.where(wanted))
        by_key = {sa.inspect(each).identity: each for each in entities}
        return [by_key[key] for key in keys if key in by_key]

    def part(self, limit: int, offset: int) -> list[t.Any]:
        """Return some of the items."""
        if not self.joined:
            return self.fetch(self.statement.limit(limit).offset(offset))
        order = order_of(self.what, self.statement)
        statement = self.statement
        shown: list[t.Any] = []
        if self.is_distinct:  # DISTINCT ON needs the order, and DISTINCT to select it
            shown = [_unmodified(each).label(None) for each in order]
        else:
            statement = statement.order_by(None)
        order += self.primary_key  # else ties are in another order for each page
        place = func.row_number().over(order_by=order).label("place")
        keys, places = self._keys(statement, place, *shown)
        # Each where the statement has it first.
        places = keys.order_by(func.min(places.c.place)).limit(limit).offset(offset)
        return self.load([tuple(row) for row in self.session.execute(places)])

    def total(self) -> int:
        """Return how many items there are."""
        counted = self.statement.order_by(None)
        if self.joined:
            counted, _ = self._keys(counted)
        elif self.entity is not None:
            counted = counted.with_only_columns(
                *self.primary_key, maintain_column_froms=True
            )
        counts = select(func.count()).select_from(counted.subquery())
        return self.session.execute(counts).scalar_one()

    def _keys(self, statement: t.Any, *more: t.Any) -> tuple[t.Any, t.Any]:
        """Select the primary keys, each once; return also the subquery with more."""
        inner = (
            statement.with_only_columns(
                *self.primary_key, *more, maintain_column_froms=True
            )
            .where(self.primary_key[0].is_not(None))
            .subquery()
        )
        keys = list(inner.c)[: len(self.primary_key)]
        return select(*keys).group_by(*keys), inner


def whole_number(
    name: str, value: int | None, default: int, error_out: bool = True
) -> int:
    """Return a number from 1, as given or from the request's query string."""
    given: t.Any = value
    if given is None:
        given = request.args.get(name) if has_request_context() else None
        if given is None:
            return default
    if isinstance(given, str):  # int() takes "1_0" and "٣", too
        given = int(given) if re.fullmatch("[0-9]{1,10}", given) else 0
    if not isinstance(given, int):
        raise ConfigError(f"{name} must be a whole number.")
    if 0 < given < 2**31:  # databases have no larger offsets than 2**63
        return given
    if error_out:
        abort(404)
    return default


def size_of(per_page: int | None, most: int | None, error_out: bool = True) -> int:
    """Return how many items a page has."""
    size = whole_number("per_page", per_page, 20, error_out)
    if most is not None and most < 1:
        raise ConfigError("max_per_page must be None or at least 1.")
    return size if most is None else min(size, most)
