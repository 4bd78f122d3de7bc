"""The application's models and tables: one answer to which database each is in."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from types import MappingProxyType
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy import MetaData
from sqlalchemy import Table
from sqlalchemy.orm import Mapper
from sqlalchemy.orm import registry
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql import visitors
from sqlalchemy.sql.expression import ColumnClause
from sqlalchemy.sql.expression import TableClause

from .._settings.config import DEFAULT_BIND
from .._settings.values import kind
from ..errors import ConfigError
from ..errors import SetupError
from .placement import Catalogue

if t.TYPE_CHECKING:
    from sqlalchemy import Engine


class Models:
    """The base given as ``model_class``, and what is placed in other binds."""

    def __init__(
        self,
        model_class: t.Any,
        binds: t.Any,
        metadatas: Callable[[], Iterable[MetaData]] = tuple,
    ) -> None:
        """Refuse what is no base, and no bind.

        :param metadatas: Returns more of the application's metadatas.
        """
        if model_class is not None and not hasattr(model_class, "metadata"):
            raise ConfigError(
                "model_class must be a declarative base: a subclass of"
                " sqlalchemy.orm.DeclarativeBase."
            )
        if not isinstance(binds, Mapping):
            raise ConfigError(f"binds must be a dict, not {kind(binds)}.")
        for target, name in binds.items():
            known = isinstance(target, (type, Mapper, TableClause, MetaData))
            if not known or not isinstance(name, str):
                raise ConfigError(
                    "binds must map a base, a mixin, a model, a table or a MetaData to"
                    " a bind's name."
                )
        self._model_class = model_class
        self.binds: dict[t.Any, str] = {
            target.class_ if isinstance(target, Mapper) else target: name
            for target, name in binds.items()
        }
        self._roots: list[t.Any] = [] if model_class is None else [model_class]
        self._roots.extend(self.binds)
        self._more = metadatas
        self._owned: dict[str, MetaData] = {}
        """For binds that no other metadata belongs to, by name."""
        self._met: WeakSet[registry] = WeakSet()
        self._catalogue = self.refresh()

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

    def bind_of(self, target: t.Any) -> str | None:
        """Return the bind of a mapper or table, or ``None`` if any would do.

        :raises ConfigError: What is said of it is contradictory.
        """
        try:
            return self._catalogue.homes[target]
        except KeyError:
            pass
        if isinstance(target, Table):
            # In a statement of the ORM, it may be a copy that does not last.
            target = target.metadata.tables.get(target.key, target)
        elif not isinstance(target, Mapper):
            return self.binds.get(target)
        catalogue = self._catalogue
        if target not in catalogue.known:
            catalogue = self.refresh()
        if target not in catalogue.known and isinstance(target, Mapper):
            self._met.add(target.registry)
            catalogue = self.refresh()
        home = catalogue.homes[target] = catalogue.find(target)
        return home

    def refresh(self) -> Catalogue:
        """Look at what is mapped by now."""
        roots = (*self._roots, *self._more(), *self._owned.values())
        self._catalogue = found = Catalogue(roots, self.binds, self._met)
        return found

    def of_statement(self, mapper: t.Any, clause: t.Any) -> dict[str, str]:
        """Return the binds that a statement needs, each with what is there.

        :param mapper: The model that the ORM or the caller names, or ``None``.
        :param clause: The statement, or ``None``.
        """
        found: dict[str, str] = {}
        entity = sa.inspect(mapper, raiseerr=False)
        if entity is not None:
            name = self._of_used(entity.mapper)
            found[name or DEFAULT_BIND] = entity.mapper.class_.__name__
            if not self._catalogue.says_binds:
                return found
        if isinstance(clause, ExecutableDDLElement):
            element = getattr(clause, "element", None)
            clause = getattr(element, "table", element)
        seen = set()
        for each in visitors.iterate(clause) if clause is not None else ():
            table = each.table if isinstance(each, ColumnClause) else each
            if id(table) not in seen and isinstance(table, TableClause):
                seen.add(id(table))
                name = self.bind_of(table)
                if name is not None:
                    found.setdefault(name, table.name)
        return found

    def _of_used(self, mapper: Mapper[t.Any]) -> str | None:
        try:
            return self._catalogue.used[mapper]
        except KeyError:
            pass
        name = self.bind_of(mapper)
        catalogue = self._catalogue
        catalogue.refuse_split(mapper)
        catalogue.used[mapper] = name
        return name

    def tables(self) -> Iterator[tuple[MetaData, str, list[Table]]]:
        """Yield each metadata with each bind, and its tables that live there."""
        if not self._roots:
            _ = self.model_class  # raises
        catalogue = self.refresh()
        catalogue.refuse_contradictions()
        for metadata in catalogue.metadatas:
            by_bind: dict[str, list[Table]] = {}
            for table in metadata.tables.values():
                name = self.bind_of(table) or DEFAULT_BIND
                by_bind.setdefault(name, []).append(table)
            for name, tables in by_bind.items():
                yield metadata, name, tables

    def metadatas(self, configured: Iterable[str]) -> Mapping[str | None, MetaData]:
        """Return one metadata for each bind, with exactly the tables that live there.

        It is a copy where they are not all the tables of a single metadata.

        :param configured: The names of the binds that have one in any case.
        :raises ConfigError: A bind has two tables of one name.
        """
        parts: dict[str, list[tuple[MetaData, list[Table]]]] = {
            name: [] for name in configured
        }
        for metadata, name, tables in self.tables():
            parts.setdefault(name, []).append((metadata, tables))
        if self._model_class is not None:
            parts.setdefault(DEFAULT_BIND, [])
        return MappingProxyType(
            {
                None if name == DEFAULT_BIND else name: self._merged(name, parts[name])
                for name in parts
            }
        )

    def _merged(self, name: str, parts: list[tuple[MetaData, list[Table]]]) -> MetaData:
        if not parts:
            metadata = self.metadata_of(name)
            return self._own(name) if metadata.tables else metadata
        first, tables = parts[0]
        if len(parts) == 1 and len(tables) == len(first.tables):
            return first
        merged = MetaData(
            schema=first.schema,
            naming_convention=first.naming_convention,
            info={"bind_key": name},
        )
        for metadata, tables in parts:
            for table in tables:
                if table.key not in merged.tables:
                    table.to_metadata(merged)
                elif metadata is not self._owned.get(name):  # else it was reflected
                    raise ConfigError(
                        f"The bind {name!r} has two tables {table.key!r}, of two bases"
                        " or MetaData objects. Keep one, or name another bind for it."
                    )
        return merged

    def metadata_of(self, name: str) -> MetaData:
        """Return a metadata whose tables are in a bind, unless they say otherwise."""
        catalogue = self.refresh()
        for metadata in catalogue.metadatas:
            if (catalogue.of_metadata(metadata) or DEFAULT_BIND) == name:
                return metadata
        return self._own(name)

    def _own(self, name: str) -> MetaData:
        """Return the metadata of a bind that none was given for."""
        return self._owned.setdefault(name, MetaData(info={"bind_key": name}))

    def reflect(self, name: str, engine: Engine) -> None:
        """Load the definitions of those tables of a bind that no model has."""
        had = {
            table.key
            for _, bind, tables in self.tables()
            if bind == name
            for table in tables
        }
        metadata = self.metadata_of(name)
        before = set(metadata.tables)
        metadata.reflect(engine, only=lambda key, _: key not in had)
        for key in set(metadata.tables) - before:
            # It is where it was found, wherever the tables are that it refers to.
            metadata.tables[key].info["bind_key"] = name
        self.refresh()
