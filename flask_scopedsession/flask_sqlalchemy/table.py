"""``db.Table``: a table that finds its metadata."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
from sqlalchemy import MetaData
from sqlalchemy.sql.schema import SchemaItem

if t.TYPE_CHECKING:
    from .extension import SQLAlchemy


class _Table(sa.Table):  # pyright: ignore[reportUnusedClass]
    """A table in the metadata of a bind, unless it is given one."""

    __fsa__: t.ClassVar[SQLAlchemy]

    if t.TYPE_CHECKING:

        @t.overload
        def __init__(
            self, name: str, *args: SchemaItem, bind_key: str | None = None, **kw: t.Any
        ) -> None: ...

        @t.overload
        def __init__(
            self, name: str, metadata: MetaData, *args: SchemaItem, **kw: t.Any
        ) -> None: ...

    def __init__(self, name: str, *args: t.Any, **kw: t.Any) -> None:
        # SQLAlchemy has made the table by now, in __new__() or for that.
        if "metadata" not in kw and not (args and isinstance(args[0], MetaData)):
            kw.pop("bind_key", None)
            args = (self.metadata, *args)
        super().__init__(name, *args, **kw)

    def __new__(cls, *args: t.Any, bind_key: str | None = None, **kw: t.Any) -> t.Any:
        """Return the table of a name, which is a new one if there is none.

        :param bind_key: The bind whose metadata it is in, if no metadata is given.
        """
        given = "metadata" in kw or any(isinstance(each, MetaData) for each in args)
        if not given:
            name, *items = args or (kw.pop("name"),)
            args = (name, cls.__fsa__._make_metadata(bind_key), *items)
        return super().__new__(cls, *args, **kw)
