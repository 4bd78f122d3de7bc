"""Pages by bookmark, for large tables.

A page begins after the last row of the page before, so that the database finds it in an
index, and rows that are added or deleted meanwhile move no others. For this, the order
must tell every two rows apart: the primary key is added to it.

The values of a row are compared as the driver returns them, without SQLAlchemy's types:
what is converted may differ from what is stored, as with ``Numeric`` on SQLite.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from flask import abort
from flask import has_request_context
from flask import request
from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlalchemy.sql import operators
from sqlalchemy.sql import visitors
from sqlalchemy.types import TypeDecorator
from sqlalchemy.types import UserDefinedType

from ..errors import ConfigError
from ._bookmarks import seal
from ._bookmarks import unseal
from ._statements import order_of
from ._statements import Pages
from ._statements import size_of

T = t.TypeVar("T")

WHAT = "paginate_keyset()"

#: Where databases sort NULL in ascending order, unless the statement says it.
_NULLS_LAST = {
    "mariadb": False,
    "mssql": False,
    "mysql": False,
    "oracle": True,
    "postgresql": True,
    "sqlite": False,
}

#: Functions with which an order differs from page to page.
_VOLATILE = {
    "clock_timestamp",
    "current_date",
    "current_time",
    "current_timestamp",
    "gen_random_uuid",
    "localtime",
    "localtimestamp",
    "newid",
    "now",
    "rand",
    "random",
    "sysdate",
    "uuid",
}

_MODIFIERS = {
    operators.asc_op: ("descending", False),
    operators.desc_op: ("descending", True),
    operators.nulls_first_op: ("nulls_last", False),
    operators.nulls_last_op: ("nulls_last", True),
}


class _Raw(UserDefinedType[t.Any]):
    """Values as the driver has them."""

    cache_ok = True


_RAW = _Raw()


@dataclass(frozen=True)
class KeysetPage(t.Generic[T]):
    """One page of a statement's items. Iterating over it iterates over the items.

    :meth:`.ScopedSession.paginate_keyset` returns it.

    .. versionadded:: 0.1
    """

    items: list[T]
    """The items of this page."""
    next: str | None
    """The bookmark of the page after this one, for a URL. ``None`` if there is none."""
    previous: str | None
    """The bookmark of the page before this one. ``None`` if there is none."""
    per_page: int
    """The most items that a page has."""

    @property
    def has_next(self) -> bool:
        """Whether there is a page after this one.

        On a page that was reached by :attr:`previous`, there was one at that time.
        """
        return self.next is not None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)


@dataclass(frozen=True)
class _Key:
    """An expression of the order."""

    expression: t.Any
    descending: bool
    nulls_last: bool | None
    """Where NULL is; ``None``: it is never NULL."""
    explicit: bool
    """Whether the statement has to say where NULL is."""

    @property
    def raw(self) -> t.Any:
        return sa.type_coerce(self.expression, _RAW)

    def clause(self, backwards: bool, column: t.Any = None) -> t.Any:
        """Return what ORDER BY gets.

        :param column: What stands for the expression, in an outer query.
        """
        expression = self.expression if column is None else column
        down = self.descending != backwards
        clause = expression.desc() if down else expression.asc()
        if not self.explicit:
            return clause
        last = self.nulls_last != backwards
        return clause.nulls_last() if last else clause.nulls_first()

    def from_(self, value: t.Any, backwards: bool) -> tuple[t.Any, t.Any]:
        """Return the conditions for what comes after a value, and for this or after."""
        last = self.nulls_last != backwards
        if value is None:
            null = self.expression.is_(None)
            return (sa.false(), null) if last else (sa.not_(null), sa.true())
        bound = sa.literal(value, _RAW)
        if self.descending != backwards:
            after, at = self.raw < bound, self.raw <= bound
        else:
            after, at = self.raw > bound, self.raw >= bound
        if self.nulls_last is None or not last:
            return after, at
        null = self.expression.is_(None)
        return sa.or_(after, null), sa.or_(at, null)


def keyset_page(
    session: Session,
    statement: t.Any,
    per_page: int | None,
    max_per_page: int | None,
    bookmark: str | None,
) -> KeysetPage[t.Any]:
    """Return one page of a statement's items."""
    size = size_of(per_page, max_per_page)
    pages = Pages(WHAT, session, statement)
    _refuse_groups(pages)
    mapper = None if pages.entity is None else pages.mapper
    dialect = session.get_bind(mapper, clause=statement).dialect
    keys = _keys(pages, dialect)
    about = "\n".join(
        f"{each.clause(False).compile(dialect=dialect)} {type(each.expression.type)}"
        for each in keys
    )

    backwards, inclusive, place = _opened(about, bookmark)
    condition = sa.true()
    if place is not None:
        condition = _beyond(keys, place, backwards, inclusive)
    fetch = _entities if pages.joined else _rows
    items, places = fetch(pages, keys, condition, backwards, size)
    _refuse_null(keys, places)
    more = len(places) > size
    places = places[:size]
    if backwards:
        items.reverse()
        places.reverse()

    def turn(back: bool) -> str | None:
        """Return the bookmark for one of the two directions."""
        came_from_there = place is not None and back != backwards
        if not (came_from_there or (more and back == backwards)):
            return None
        if places:
            return _sealed(about, back, False, places[0 if back else -1])
        return _sealed(about, back, True, place)  # all were deleted since

    return KeysetPage(items, turn(False), turn(True), size)


def _refuse_groups(pages: Pages) -> None:
    if not pages.statement.compare(pages.statement.group_by(None)):
        raise ConfigError(f"{WHAT} cannot page GROUP BY. Use paginate().")
    if pages.is_distinct:
        raise ConfigError(
            f"{WHAT} cannot page DISTINCT. Use paginate(). If you select one"
            " entity, remove DISTINCT: joins do not repeat it."
        )


def _refuse_null(keys: Sequence[_Key], places: Sequence[Sequence[t.Any]]) -> None:
    for key, values in zip(keys, zip(*places, strict=True), strict=False):
        if key.nulls_last is None and None in values:
            raise ConfigError(
                f"{WHAT} found NULL in {key.expression}, which is declared NOT NULL."
                " Declare it nullable."
            )


def _opened(about: str, bookmark: str | None) -> tuple[bool, bool, t.Any]:
    """Return the content of the bookmark that was given, or that the request has.

    That is whether to go backwards, whether the place itself is part of the page, and
    the place, which is ``None`` for the first page.
    """
    if bookmark is None and has_request_context():
        bookmark = request.args.get("bookmark")
    if bookmark is None:
        return False, False, None
    backwards, inclusive, place = unseal(about, bookmark) or abort(404)
    return backwards, inclusive, place


def _sealed(about: str, backwards: bool, inclusive: bool, place: t.Any) -> str:
    """Return a bookmark that :func:`_opened` opens."""
    try:
        return seal(about, [backwards, inclusive, place])
    except TypeError as error:
        raise ConfigError(
            f"{WHAT} cannot order by values of the type {error}. Order by a cast of"
            " them."
        ) from None


def _keys(pages: Pages, dialect: t.Any) -> list[_Key]:
    """Return an order that tells every two rows apart."""
    order = order_of(WHAT, pages.statement)
    outer = not pages.froms
    unique: list[t.Any] = []
    froms = list(pages.froms)
    for each in froms:
        is_join = isinstance(each, sa.Join)
        if is_join:
            froms += each.left, each.right
        outer = outer or (is_join and (each.isouter or each.full)) or _is_alias(each)
        if pages.entity is None and not is_join:
            if not _is_table(each) or not list(each.primary_key):
                name = getattr(each, "name", type(each).__name__)
                raise ConfigError(
                    f"{WHAT} cannot tell the rows of {name!r} apart, which has no"
                    " primary key. Select from tables that have one, or use paginate()."
                )
            unique.extend(each.primary_key)
    if pages.entity is not None:
        unique = [each.expression for each in pages.primary_key]
    if not unique:
        raise ConfigError(
            f"{WHAT} cannot tell which tables the statement selects from, so it cannot"
            " tell its rows apart. Use paginate()."
        )
    keys: list[_Key] = []
    for clause in order:
        given: dict[str, bool] = {}
        while clause.__visit_name__ == "unary" and clause.modifier in _MODIFIERS:
            name, value = _MODIFIERS[clause.modifier]
            given.setdefault(name, value)
            clause = clause.element  # noqa: PLW2901
        if clause.__visit_name__ == "grouping":
            clause = clause.element  # noqa: PLW2901
        _refuse_expression(pages, clause, dialect)
        keys.append(_key(clause, dialect, outer, **given))
    for column in unique:
        _refuse_expression(pages, column, dialect)
        if not any(each.expression.compare(column) for each in keys):
            descending = bool(keys) and keys[-1].descending
            keys.append(_key(column, dialect, outer, descending))
    return keys


def _is_alias(selectable: t.Any) -> bool:
    """Whether this is an alias of a join, which may be an outer one."""
    return isinstance(selectable, sa.Alias) and isinstance(selectable.element, sa.Join)


def _is_table(selectable: t.Any) -> bool:
    if isinstance(selectable, sa.Alias):
        selectable = selectable.element
    return isinstance(selectable, (sa.Table, sa.Join))


def _key(
    expression: t.Any,
    dialect: t.Any,
    outer: bool,
    descending: bool = False,
    nulls_last: bool | None = None,
) -> _Key:
    is_column = isinstance(expression, sa.Column) and _is_table(expression.table)
    if is_column and not expression.nullable and not outer:
        return _Key(expression, descending, None, False)
    explicit = nulls_last is not None
    if nulls_last is None:
        explicit = dialect.name not in _NULLS_LAST
        nulls_last = _NULLS_LAST.get(dialect.name, True) != descending
    return _Key(expression, descending, nulls_last, explicit)


def _refuse_expression(pages: Pages, expression: t.Any, dialect: t.Any) -> None:
    """Refuse an order with which rows would be lost.

    :raises ConfigError: The message names it.
    """
    problem = None
    for part in visitors.iterate(expression):
        name = str(getattr(part, "name", "")).lower()
        if part.__visit_name__ == "over":
            problem = "a window function"
        elif part.__visit_name__ == "function" and name in _VOLATILE:
            problem = f"another one each time, because of {name}()"
        elif isinstance(part, sa.Column) and pages.joined:
            own = sa.inspect(pages.entity).selectable.c
            if not own.contains_column(part):
                problem = (
                    f"of another table than {pages.mapper.class_.__name__}, which it"
                    " may join several times. Select both, for a page of rows"
                )
    type_ = expression.type
    while isinstance(type_, TypeDecorator):
        type_ = type_.load_dialect_impl(dialect)
    on_mysql = dialect.name in ("mysql", "mariadb")
    if isinstance(type_, sa.Enum) and type_.native_enum and on_mysql:
        problem = "an ENUM, which is sorted by number but compared as text"
    if isinstance(type_, sa.Float) and dialect.name != "sqlite":
        single = isinstance(type_, sa.REAL) or (type_.precision or 53) <= 24
        if single or (on_mysql and not isinstance(type_, sa.Double)):
            problem = "of single precision, and not equal to what the driver returns"
    if problem is not None:
        raise ConfigError(f"{WHAT} cannot order by {expression}: it is {problem}.")


def _beyond(
    keys: Sequence[_Key], place: Sequence[t.Any], backwards: bool, inclusive: bool
) -> t.Any:
    """Return the condition for the rows after a place, or before it.

    That is ``a >= 1 AND (a > 1 OR b >= 2 AND (b > 2 OR c > 3))``, which an index on the
    first column serves with every database.
    """
    condition: t.Any = None
    for key, value in reversed(list(zip(keys, place, strict=True))):
        after, at = key.from_(value, backwards)
        if condition is None:
            condition = at if inclusive else after
        else:
            condition = sa.and_(at, sa.or_(after, condition))
    return condition


def _rows(
    pages: Pages, keys: Sequence[_Key], condition: t.Any, backwards: bool, size: int
) -> tuple[list[t.Any], list[t.Any]]:
    """Return items, and their places and one more, in one statement."""
    statement = (
        pages.statement.where(condition)
        .order_by(None)
        .order_by(*(each.clause(backwards) for each in keys))
        .add_columns(*_labelled(keys))
        .limit(size + 1)
    )
    items, places = pages.split(statement, len(keys))
    return items[:size], places


def _labelled(keys: Sequence[_Key]) -> list[t.Any]:
    return [each.raw.label(f"keyset_{i}") for i, each in enumerate(keys)]


def _entities(
    pages: Pages, keys: Sequence[_Key], condition: t.Any, backwards: bool, size: int
) -> tuple[list[t.Any], list[t.Any]]:
    """Do the same for entities that a join may repeat: each is returned once."""
    places = (
        pages.statement.where(condition, pages.primary_key[0].is_not(None))
        .order_by(None)
        .with_only_columns(
            *_labelled(keys),
            *pages.primary_key,
            maintain_column_froms=True,
        )
        .distinct()
        .subquery()
    )
    order = [key.clause(backwards, places.c[i]) for i, key in enumerate(keys)]
    statement = select(*places.c).order_by(*order).limit(size + 1)
    found = [tuple(row) for row in pages.session.execute(statement)]
    width = len(keys)
    items = pages.load([row[width:] for row in found[:size]])
    return items, [row[:width] for row in found]
