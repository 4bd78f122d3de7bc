"""``db.Model``: names of tables, binds, and the ``query`` attribute."""

from __future__ import annotations

import re
import typing as t
from contextlib import contextmanager
from functools import partial

import sqlalchemy as sa
from sqlalchemy import MetaData
from sqlalchemy import orm

from .._settings.config import DEFAULT_BIND

if t.TYPE_CHECKING:
    from .extension import SQLAlchemy
    from .query import Query

_BASES = (orm.DeclarativeBase, orm.DeclarativeBaseNoMeta)


class _QueryProperty:  # pyright: ignore[reportUnusedClass]
    """``Model.query``: a query of the model in the current session."""

    def __get__(self, obj: object, cls: type[Model]) -> Query[t.Any]:
        return cls.query_class(cls, session=cls.__fsa__.session())


class Model:
    """Base of models without a declarative base of the application's own."""

    if t.TYPE_CHECKING:
        __fsa__: t.ClassVar[SQLAlchemy]
        """The extension."""
        query_class: t.ClassVar[type[Query[t.Any]]]
        """The class of :attr:`query`; ``db.Query`` if nothing else is said."""
        query: t.ClassVar[Query[t.Any]]
        """A legacy query of this model."""

        def __init__(self, **attributes: t.Any) -> None: ...

    def __repr__(self) -> str:
        state: t.Any = sa.inspect(self)
        if state.identity is not None:
            key = ", ".join(map(str, state.identity))
        else:
            key = f"{'pending' if state.pending else 'transient'} {id(self)}"
            key = f"({key})"
        return f"<{type(self).__name__} {key}>"


# -- names of tables -----------------------------------------------------------


def camel_to_snake_case(name: str) -> str:
    """Return the name of the table of a class: ``user_role`` for ``UserRole``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", name)
    return words.lower().lstrip("_")


def should_set_tablename(cls: type) -> bool:
    """Whether a class says nothing of its table, so that a name is derived.

    A class without a primary key of its own gets one as well. It is taken back if the
    rows turn out to be in the table of the class that it inherits from.
    """
    if vars(cls).get("__abstract__") or any(base in cls.__bases__ for base in _BASES):
        return False
    for each in cls.__mro__:
        own = vars(each)
        if "__tablename__" in own:
            # One of a parent's is not for this class, unless it is computed for each.
            computed = isinstance(own["__tablename__"], orm.declared_attr)
            of_parent = each is not cls and not own.get("__abstract__")
            return of_parent and _is_declarative(each) and not computed
    return True


def _is_declarative(cls: type) -> bool:
    return issubclass(cls, _BASES) or isinstance(cls, orm.DeclarativeMeta)


def _has_primary_key(items: t.Iterable[t.Any]) -> bool:
    return any(
        item.primary_key
        if isinstance(item, sa.Column)
        else isinstance(item, sa.PrimaryKeyConstraint)
        for item in items
    )


def _set_tablename(cls: type) -> None:
    if should_set_tablename(cls):
        cls.__tablename__ = camel_to_snake_case(cls.__name__)  # type: ignore[attr-defined]


def _make_table(cls: t.Any, name: str, *args: t.Any, **kw: t.Any) -> sa.Table | None:
    """Return the table of a model; ``None`` if it is that of the model's parent."""
    schema = kw.get("schema")
    known = (name if schema is None else f"{schema}.{name}") in cls.metadata.tables
    if not known and not _has_primary_key(args):
        parents = cls.__mro__[1:]
        if any(isinstance(vars(each).get("__table__"), sa.Table) for each in parents):
            if "__tablename__" in vars(cls):
                del cls.__tablename__
            return None
    return sa.Table(name, *args, **kw)


def _drop_no_table(cls: t.Any) -> None:
    """Let a class without a table of its own inherit that of its parent."""
    if vars(cls).get("__table__", cls) is None:
        del cls.__table__


# -- binds ---------------------------------------------------------------------


def _set_metadata(cls: t.Any) -> None:
    """Give a class the metadata of its bind, unless it says where its table is."""
    own = vars(cls)
    if "metadata" in own or "__table__" in own or not hasattr(cls, "__bind_key__"):
        return
    metadata: MetaData = cls.__fsa__._make_metadata(cls.__bind_key__)
    if metadata is not getattr(cls, "metadata", None):
        cls.metadata = metadata


def _keep_place(cls: type) -> None:
    """Let the metadata of a table count more than what its classes say."""
    table = vars(cls).get("__table__")
    if isinstance(table, sa.Table):
        key = table.metadata.info.get("bind_key")
        table.info.setdefault("bind_key", DEFAULT_BIND if key is None else key)


def _ready(table: sa.Table, *_: object, **__: object) -> sa.Table:
    return table


@contextmanager
def _hand_over_table(cls: t.Any) -> t.Generator[None, None, None]:
    """Let SQLAlchemy map a dataclass to a ready-made table, which it refuses to do."""
    table = vars(cls).get("__table__")
    if not (isinstance(table, sa.Table) and issubclass(cls, orm.MappedAsDataclass)):
        yield
        return
    del cls.__table__
    cls.metadata, cls.__tablename__ = table.metadata, table.name
    cls.__table_cls__ = partial(_ready, table)
    yield
    del cls.__table_cls__


# -- bases ---------------------------------------------------------------------


class BindMetaMixin(type):
    """For a metaclass: ``__bind_key__`` puts a model into that bind's metadata."""

    def __init__(
        cls, name: str, bases: tuple[type, ...], d: dict[str, t.Any], **kwargs: t.Any
    ) -> None:
        _set_metadata(cls)
        super().__init__(name, bases, d, **kwargs)
        _keep_place(cls)


class BindMixin:
    """For a declarative base: the same as :class:`BindMetaMixin`."""

    if t.TYPE_CHECKING:
        __fsa__: t.ClassVar[SQLAlchemy]

    def __init_subclass__(cls, **kwargs: t.Any) -> None:
        _set_metadata(cls)
        with _hand_over_table(cls):
            super().__init_subclass__(**kwargs)
        _keep_place(cls)


class NameMetaMixin(type):
    """For a metaclass: a model without ``__tablename__`` gets one."""

    def __init__(
        cls, name: str, bases: tuple[type, ...], d: dict[str, t.Any], **kwargs: t.Any
    ) -> None:
        _set_tablename(cls)
        super().__init__(name, bases, d, **kwargs)
        _drop_no_table(cls)

    def __table_cls__(cls, *args: t.Any, **kwargs: t.Any) -> sa.Table | None:
        """Make a model's table; SQLAlchemy calls this."""
        return _make_table(cls, *args, **kwargs)


class NameMixin:
    """For a declarative base: the same as :class:`NameMetaMixin`."""

    def __init_subclass__(cls, **kwargs: t.Any) -> None:
        _set_tablename(cls)
        super().__init_subclass__(**kwargs)
        _drop_no_table(cls)

    @classmethod
    def __table_cls__(cls, *args: t.Any, **kwargs: t.Any) -> sa.Table | None:
        """Make a model's table; SQLAlchemy calls this."""
        return _make_table(cls, *args, **kwargs)


class DefaultMeta(BindMetaMixin, NameMetaMixin, orm.DeclarativeMeta):
    """The metaclass of ``db.Model`` without a declarative base of the application's."""


class DefaultMetaNoName(BindMetaMixin, orm.DeclarativeMeta):
    """The same, for ``SQLAlchemy(disable_autonaming=True)``."""
