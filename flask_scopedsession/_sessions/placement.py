"""What is mapped at one moment, and which bind each mapper and table is in."""

from __future__ import annotations

import inspect
import typing as t
from collections.abc import Iterable
from collections.abc import Mapping
from contextlib import suppress
from weakref import WeakKeyDictionary
from weakref import WeakSet

from sqlalchemy import MetaData
from sqlalchemy import Table
from sqlalchemy.exc import NoReferenceError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import DeclarativeBaseNoMeta
from sqlalchemy.orm import Mapper
from sqlalchemy.orm import registry
from sqlalchemy.orm.exc import UnmappedClassError

from .._settings.config import DEFAULT_BIND
from ..errors import ConfigError

#: The mappers on the way to an answer. Definitions may lead back to themselves.
Path = frozenset[Mapper[t.Any]]


class Catalogue:
    """All classes, mappers and tables, and what is said of their binds."""

    def __init__(
        self,
        roots: Iterable[t.Any],
        binds: Mapping[t.Any, str],
        met: Iterable[registry],
    ) -> None:
        """Find what is mapped by now.

        :param roots: The application's bases, mixins, models, tables and metadatas.
        :param binds: What ``ScopedSession(binds=...)`` says.
        :param met: Registries of other models that the application has used.
        """
        self._binds = binds
        self.homes: WeakKeyDictionary[t.Any, str | None] = WeakKeyDictionary()
        """The answers so far."""
        self.used: WeakKeyDictionary[Mapper[t.Any], str | None] = WeakKeyDictionary()
        """Those for mappers that a session has used."""
        self.known: WeakSet[t.Any] = WeakSet()
        """All mappers, and all tables of the application."""
        ours = _with_subclasses(roots)
        self.metadatas = _metadatas(roots, ours)
        """The application's metadatas, in the order of the roots."""
        self._ours = WeakSet(_mappers(ours))
        for metadata in self.metadatas:
            self.known.update(metadata.tables.values())
        # A base that the application was not told of has its word as well.
        everyone = _with_subclasses((*ours, DeclarativeBase, DeclarativeBaseNoMeta))
        self._owners: WeakKeyDictionary[MetaData, WeakSet[type]] = WeakKeyDictionary()
        for each in everyone:
            if isinstance(own := vars(each).get("metadata"), MetaData):
                self._owners.setdefault(own, WeakSet()).add(each)
        self._mappers: WeakKeyDictionary[Table, WeakSet[Mapper[t.Any]]]
        self._mappers = WeakKeyDictionary()
        # The class of a table comes before one that is mapped to a join with it.
        for mapper in sorted(_mappers(everyone, met), key=_is_selectable):
            self.known.add(mapper)
            tables: list[t.Any]
            if _is_selectable(mapper):
                tables = [each for each in _tables(mapper) if each not in self._mappers]
            else:
                tables = [mapper.local_table] if _has_own_table(mapper) else []
            for table in tables:
                self._mappers.setdefault(table, WeakSet()).add(mapper)
        words = [
            *self._binds.values(),
            *(vars(each).get("__bind_key__") for each in ours),
            *(
                each.info.get("bind_key")
                for metadata in self.metadatas
                for each in (metadata, *metadata.tables.values())
            ),
        ]
        self.says_binds = any(word not in (None, DEFAULT_BIND) for word in words)
        """Whether the application names any other bind than the default one."""

    def find(self, target: Table | Mapper[t.Any]) -> str | None:
        """Return the bind of a table or mapper, or ``None`` if any would do.

        :raises ConfigError: What is said of it is contradictory.
        """
        if isinstance(target, Mapper):
            return self._of_mapper(target, frozenset()) or DEFAULT_BIND
        ours = target in self._mappers or target.metadata in self.metadatas
        return self._of_table(target, frozenset()) or (DEFAULT_BIND if ours else None)

    def refuse_split(self, mapper: Mapper[t.Any]) -> None:
        """Look at the children and association tables of a mapper that a session uses.

        :raises ConfigError: One is not where the ORM writes and reads it.
        """
        for each in mapper.self_and_descendants:
            self.find(each)
            for link in each.relationships:
                if not isinstance(link.secondary, Table) or link.viewonly:
                    continue
                place, target = self.find(link.secondary), link.mapper
                if place is not None and place != self.find(target):
                    raise ConfigError(
                        f"The relationship {link} cannot use the table"
                        f" {link.secondary.key!r} in the bind {place!r}, because"
                        f" {target.class_.__name__} is in {self.find(target)!r}."
                        " Give both the same bind."
                    )

    def refuse_contradictions(self) -> None:
        """Look at all models and metadatas of the application.

        :raises ConfigError: What is said of one is contradictory.
        """
        for mapper in self._ours:
            self.find(mapper)
        for metadata in self.metadatas:
            self.of_metadata(metadata)

    def of_metadata(self, metadata: MetaData) -> str | None:
        """Return what is said of a metadata, itself or through its bases."""
        tables = ", ".join(map(repr, list(metadata.tables)[:3]))
        what = f"The MetaData of the tables {tables}" if tables else "A MetaData"
        bases = {
            self._of_classes(base, base.__mro__)
            for base in self._owners.get(metadata, ())
        }
        # What belongs to a base that says nothing must not follow another base.
        shared = None in bases
        return self._said(metadata, what) or (None if shared else _agreed(what, bases))

    def _of_mapper(self, mapper: Mapper[t.Any], path: Path) -> str | None:
        path |= {mapper}
        name, above, own = mapper.class_.__name__, mapper.inherits, self._own(mapper)
        if above is None:
            found = [self._of_table(table, path) for table in _tables(mapper)]
            return _agreed(f"The model {name}", [own, *found])
        if above in path:
            return own
        home = self._of_mapper(above, path)
        # One flush writes the rows of both, on one connection.
        if own is not None and own != (home or DEFAULT_BIND):
            raise ConfigError(
                f"The model {name} cannot be in the bind {own!r}, because it inherits"
                f" from {above.class_.__name__}, which is in"
                f" {home or DEFAULT_BIND!r}. Name a bind for"
                f" {mapper.base_mapper.class_.__name__} only."
            )
        return home

    def _own(self, mapper: Mapper[t.Any]) -> str | None:
        """Return what is said of a mapper, but not of those that it inherits from."""
        above, table = mapper.inherits, mapper.local_table
        said = None
        if _has_own_table(mapper):
            said = self._said(table, f"The table {table}")
        inherited = () if above is None else above.class_.__mro__
        own = [each for each in mapper.class_.__mro__ if each not in inherited]
        return said or self._of_classes(mapper.class_, own)

    def _of_table(self, table: Table, path: Path) -> str | None:
        what = f"The table {table.key!r}"
        mappers = self._mappers.get(table, ())
        home = _agreed(
            what,
            [
                self._own(mapper)
                if mapper.inherits is None and mapper.local_table is table
                else self._of_mapper(mapper, path)
                for mapper in mappers
                if mapper.local_table is table or mapper not in path
            ],
        )
        home = home or self._said(table, what)
        if home is None and not mappers:
            home = self._of_parents(table, path)
        return home or self.of_metadata(table.metadata)

    def _of_parents(self, table: Table, path: Path) -> str | None:
        """Return the bind of the tables that a table without a model refers to."""
        homes: set[str | None] = set()
        seen, ahead = {table}, [table]
        while ahead:
            for key in ahead.pop().foreign_keys:
                with suppress(NoReferenceError):  # its model has not been imported
                    parent = key.column.table
                    if parent in seen:
                        continue
                    seen.add(parent)
                    stated = parent in self._mappers or self._said(parent, parent.key)
                    if stated or not parent.foreign_keys:
                        homes.add(self._of_table(parent, path))
                    else:
                        ahead.append(parent)
        names = {home or DEFAULT_BIND for home in homes}
        if len(names) > 1 and self.of_metadata(table.metadata) is None:
            raise ConfigError(
                f"The table {table.key!r} refers to tables in the binds"
                f" {_listed(names)}. {_REMEDY}"
            )
        # What is in the default bind because nothing is said decides nothing.
        return names.pop() if len(names) == 1 and homes != {None} else None

    def _of_classes(self, owner: type, classes: Iterable[type]) -> str | None:
        """Return what the first class says that says anything."""
        for each in classes:
            what, own = each.__name__, vars(each)
            said = [self._binds.get(each)]
            if "__bind_key__" in own:
                # That of a mixin may be a declared_attr, which wants the class.
                said.append(_name(getattr(owner, "__bind_key__"), what))  # noqa: B009
            if isinstance(own.get("metadata"), MetaData):
                said.append(self._said(own["metadata"], what))
            if (name := _agreed(what, said)) is not None:
                return name
        return None

    def _said(self, target: t.Any, what: str) -> str | None:
        """Return what is said of a table or metadata itself."""
        info = getattr(target, "info", {})
        inside = _name(info["bind_key"], what) if "bind_key" in info else None
        return _agreed(what, (self._binds.get(target), inside))


_REMEDY = (
    "Name one of them in ScopedSession(binds=...), as __bind_key__ of a class, or as"
    " info={'bind_key': ...} of a Table or MetaData."
)


def _agreed(what: str, names: Iterable[str | None]) -> str | None:
    """Return the one bind that all name that name any."""
    found = {name for name in names if name is not None}
    if len(found) > 1:
        raise ConfigError(f"{what} is placed in the binds {_listed(found)}. {_REMEDY}")
    return found.pop() if found else None


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(repr, sorted(names)))


def _name(given: t.Any, what: str) -> str:
    """Return a bind's name; ``None`` is the default bind's in Flask-SQLAlchemy."""
    name = DEFAULT_BIND if given is None else given
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"{what}: __bind_key__ and info['bind_key'] must be a bind's name."
        )
    return name


def _with_subclasses(roots: Iterable[t.Any]) -> list[type]:
    """Return the classes among `roots`, and all of their subclasses."""
    found: dict[type, None] = {}
    stack = [each for each in roots if isinstance(each, type)]
    while stack:
        each = stack.pop()
        if each not in found:
            found[each] = None
            stack.extend(type.__subclasses__(each))
    return list(found)


def _mappers(
    classes: Iterable[type], registries: Iterable[registry] = ()
) -> set[Mapper[t.Any]]:
    """Return the mappers of classes, and of all else that their registries map."""
    # Not by sa.inspect(), which refuses a class that is mapped only with its children.
    found = [vars(each).get("__mapper__") for each in classes]
    mappers = {each for each in found if isinstance(each, Mapper)}
    own = [vars(each).get("registry") for each in classes]
    for each in {
        *registries,
        *(each.registry for each in mappers),
        *(each for each in own if isinstance(each, registry)),
    }:
        with suppress(UnmappedClassError):  # the mapping of a class has failed
            mappers |= each.mappers
    return mappers


def _tables(mapper: Mapper[t.Any]) -> list[Table]:
    return [table for table in mapper.tables if isinstance(table, Table)]


def _has_own_table(mapper: Mapper[t.Any]) -> bool:
    """Whether it has a table that is not that of the mapper it inherits from."""
    above = mapper.inherits
    return above is None or mapper.local_table is not above.local_table


def _is_selectable(mapper: Mapper[t.Any]) -> bool:
    return not isinstance(mapper.local_table, Table)


def _metadatas(roots: Iterable[t.Any], classes: Iterable[type]) -> list[MetaData]:
    """Return the metadatas of `roots`, and of their subclasses' models."""
    found = [
        # Static, as a mixin may have a declared_attr of that name.
        *(inspect.getattr_static(each, "metadata", each) for each in roots),
        *(vars(each).get("metadata") for each in classes),
        *(table.metadata for mapper in _mappers(classes) for table in _tables(mapper)),
    ]
    return list(
        {id(each): each for each in found if isinstance(each, MetaData)}.values()
    )
