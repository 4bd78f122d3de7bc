"""Which model or table lives in which bind."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from collections.abc import Mapping
from types import MappingProxyType

import sqlalchemy as sa

from .._settings.config import DEFAULT_BIND
from .._settings.values import kind
from ..errors import ConfigError
from ..errors import SetupError

if t.TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy import Table


class Models:
    """The base given as ``model_class``, and what ``binds`` places elsewhere."""

    def __init__(self, model_class: t.Any, binds: t.Any) -> None:
        if model_class is not None and not hasattr(model_class, "metadata"):
            raise ConfigError(
                "model_class must be a declarative base: a subclass of"
                " sqlalchemy.orm.DeclarativeBase."
            )
        if not isinstance(binds, Mapping):
            raise ConfigError(f"binds must be a dict, not {kind(binds)}.")
        for target, name in binds.items():
            if not hasattr(target, "metadata") or not isinstance(name, str):
                raise ConfigError(
                    "binds must map a base, a model or a table to a bind's name."
                )
        self._model_class = model_class
        self.binds: dict[t.Any, str] = dict(binds)

    @property
    def model_class(self) -> type[t.Any]:
        """The application's declarative base.

        :raises SetupError: None was given.
        """
        if self._model_class is None:
            raise SetupError(
                "There is no model class. Create ScopedSession(model_class=Base) with"
                " your DeclarativeBase."
            )
        return t.cast("type[t.Any]", self._model_class)

    @property
    def metadatas(self) -> Mapping[str | None, MetaData]:
        """The metadata of each bind that has one of its own; ``None``: the default."""
        found: dict[str | None, MetaData] = {}
        if self._model_class is not None:
            found[None] = self._model_class.metadata
        for target, name in self.binds.items():
            if target.metadata is not found.get(None):
                found[None if name == DEFAULT_BIND else name] = target.metadata
        return MappingProxyType(found)

    def names(self) -> Mapping[str, str]:
        """Return the model of each table that has exactly one, by the table's name."""
        registry = getattr(self._model_class, "registry", None)
        found: dict[str, str] = {}
        shared: set[str] = set()
        for mapper in () if registry is None else registry.mappers:
            name = getattr(mapper.local_table, "name", None)
            if name in found:
                shared.add(name)
            elif name is not None:
                found[name] = mapper.class_.__name__
        return {name: found[name] for name in found if name not in shared}

    def tables(self) -> Iterator[tuple[MetaData, str, list[Table]]]:
        """Yield each metadata with each bind, and its tables that live there."""
        metadatas = [target.metadata for target in self.binds]
        if self._model_class is not None or not metadatas:
            metadatas.insert(0, self.model_class.metadata)
        homes = self._homes()
        for metadata in {id(each): each for each in metadatas}.values():
            by_bind: dict[str, list[Table]] = {}
            for table in metadata.sorted_tables:
                by_bind.setdefault(homes.get(table, DEFAULT_BIND), []).append(table)
            for name, tables in by_bind.items():
                yield metadata, name, tables

    def _homes(self) -> dict[Table, str]:
        """Return the bind of every table that is not in the default one."""
        homes: dict[Table, str] = {}
        bases = []
        for target, name in self.binds.items():
            if isinstance(target, sa.Table):
                homes[target] = name
            elif hasattr(target, "__table__"):
                homes[target.__table__] = name
            else:
                bases.append((target, name))
        # What is said of a single model or table counts more than its base's.
        for base, name in bases:
            for table in self._tables_of(base):
                homes.setdefault(table, name)
        return homes

    def _tables_of(self, base: t.Any) -> list[Table]:
        """Return a base's tables: all of its metadata's, unless that is shared."""
        main = self._model_class
        if main is None or base.metadata is not main.metadata:
            return list(base.metadata.sorted_tables)
        return [
            mapper.local_table
            for mapper in base.registry.mappers
            if issubclass(mapper.class_, base)
        ]
