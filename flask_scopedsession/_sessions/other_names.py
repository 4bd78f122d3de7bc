"""Names that ``db`` has in Flask-SQLAlchemy and Flask-SQLAlchemy-Lite, and not here."""

from __future__ import annotations

import typing as t

import sqlalchemy

_INSTEAD = {
    "Pagination": "Import it: from flask_scopedsession.views import Pagination.",
    "Query": "Use db.session.query(Model), or select() and db.session.scalars().",
    "Table": "Import it from sqlalchemy: Table(name, db.metadata, ...), with"
    " info={'bind_key': name} for a table in another bind.",
    "get_or_abort": "Use db.get_or_404(), or db.session.get() and abort().",
    "one_or_abort": "Use db.one_or_404(), or db.session.scalars() and abort().",
    "test_isolation": "Use isolate(app) of flask_scopedsession.testing.",
}
_ASYNC = (
    "Async views can use db.session. For async drivers, set SQLALCHEMY_ASYNC_BINDS, and"
    " use db.async_session."
)
#: Of Flask-SQLAlchemy-Lite.
_ASYNC_NAMES = """
    async_engine async_engines async_get_or_abort async_one_or_abort
    async_sessionmaker async_test_isolation get_async_engine
"""
#: Names of SQLAlchemy that models and queries read from Flask-SQLAlchemy's ``db``.
_OF_SQLALCHEMY = """
    ARRAY BigInteger Boolean CheckConstraint Column Computed Constraint Date DateTime
    Enum FetchedValue Float ForeignKey ForeignKeyConstraint Identity Index Integer
    Interval JSON LargeBinary MetaData Numeric PickleType PrimaryKeyConstraint Sequence
    SmallInteger String Text Time TypeDecorator Unicode UnicodeText UniqueConstraint
    Uuid and_ any_ asc between bindparam case cast column delete desc distinct event
    except_ exists extract false func insert inspect intersect literal literal_column
    not_ null or_ select table text true tuple_ type_coerce types union union_all update
    Load Mapped aliased backref column_property composite contains_eager defer deferred
    foreign joinedload lazyload load_only mapped_column noload object_session
    relationship remote selectinload subqueryload synonym undefer validates
"""


class _Absent:
    """A descriptor that is no attribute, but says what to write instead.

    Not ``__getattr__()``: with that, each read of ``db.session`` would be slower.
    """

    def __init__(self, name: str, hint: str) -> None:
        self._name = name
        self._hint = hint

    def __get__(self, db: object, owner: type) -> t.NoReturn:
        text = f"{owner.__name__!r} object has no attribute {self._name!r}."
        raise AttributeError(f"{text} {self._hint}", name=self._name, obj=db)


class WithHints:
    """What lacks the names of this module, and says what to write instead."""

    def __dir__(self) -> list[str]:
        return [n for n in super().__dir__() if n not in _HINTS or hasattr(self, n)]


_HINTS: dict[str, str] = dict.fromkeys(_ASYNC_NAMES.split(), _ASYNC)
for _name in _OF_SQLALCHEMY.split():
    _module = "sqlalchemy" if hasattr(sqlalchemy, _name) else "sqlalchemy.orm"
    _HINTS[_name] = f"Import it: from {_module} import {_name}."
_HINTS.update(_INSTEAD)
for _name, _hint in _HINTS.items():
    setattr(WithHints, _name, _Absent(_name, _hint))
