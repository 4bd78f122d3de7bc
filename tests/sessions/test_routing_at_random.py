"""Random models: where ``create_all()`` puts a table, each kind of statement goes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from sqlalchemy import Column
from sqlalchemy import event
from sqlalchemy import ForeignKey
from sqlalchemy import Integer
from sqlalchemy import MetaData
from sqlalchemy import Table
from sqlalchemy.orm import aliased
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError

NAMES = ("default", "audit", "reports")

PLACES = st.sampled_from((None, None, None, *NAMES))
"""A bind, or nothing is said."""
RARE = st.integers(0, 9).flatmap(lambda n: PLACES if n == 9 else st.none())
"""The same where most words contradict another one."""
HOWS = st.sampled_from(("binds", "key", "info"))


@dataclass
class Models:
    """Bases, mixins, models and association tables, and what is said of them."""

    base: Any = None
    binds: dict[Any, str] = field(default_factory=dict)
    models: list[Any] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    links: list[tuple[Any, Any, Table]] = field(default_factory=list)
    may_be_refused: bool = False
    """Whether two words can contradict each other."""

    def place(self, how: str, name: str | None) -> dict[str, Any]:
        """Return the attributes of a class that is said to be in a bind."""
        return {} if name is None or how == "binds" else {"__bind_key__": name}

    def note(self, target: Any, how: str, name: str | None) -> Any:
        if name is not None and how == "binds":
            self.binds[target] = name
        return target


def metadata(draw: Any) -> MetaData:
    name = draw(PLACES)
    return MetaData(info={} if name is None else {"bind_key": name})


@st.composite
def a_world(draw: Any) -> Models:
    world = Models()

    def a_class(
        name: str,
        bases: tuple[type, ...],
        members: dict[str, Any],
        places: Any = PLACES,
    ) -> Any:
        how, place = draw(HOWS), draw(places)
        if place is not None and (places is RARE or "metadata" in members):
            world.may_be_refused = True
        made = type(name, bases, {**members, **world.place(how, place)})
        return world.note(made, how, place)

    world.base = a_class("Base", (DeclarativeBase,), {"metadata": metadata(draw)}, RARE)
    second = type("Second", (DeclarativeBase,), {"metadata": MetaData()})
    world.binds[second] = draw(st.sampled_from(NAMES))
    mixins = [a_class(f"Mixin{n}", (), {}) for n in range(2)]
    bases = [world.base, second]
    for number in range(draw(st.integers(0, 2))):
        members: dict[str, Any] = {"__abstract__": True}
        if draw(st.booleans()):
            members["metadata"] = metadata(draw)
        base = draw(st.sampled_from(bases))
        bases.append(a_class(f"Abstract{number}", (base,), members))
    for number in range(draw(st.integers(1, 5))):
        name = f"Model{number}"
        kinds = ["own", "joined", "single"] if world.models else ["own"]
        kind = draw(st.sampled_from(kinds))
        parent = draw(st.sampled_from(world.models if kind != "own" else bases))
        choices = [(), (), (mixins[0],), (mixins[1],)] if kind == "own" else [()]
        mixin = draw(st.sampled_from(choices))
        places = PLACES if kind == "own" else RARE
        members = {"__mapper_args__": {"polymorphic_identity": name}}
        if kind == "own":
            members["id"] = mapped_column(Integer, primary_key=True)
            members["kind"] = mapped_column(sa.String(20))
            members["__mapper_args__"]["polymorphic_on"] = "kind"
        elif kind == "joined":
            key = ForeignKey(parent.__table__.c.id)
            members["id"] = mapped_column(Integer, key, primary_key=True)
        if kind != "single":
            place = draw(places)
            info = {} if place is None else {"info": {"bind_key": place}}
            if place is not None and kind == "joined":
                world.may_be_refused = True
            members |= {"__tablename__": name.lower(), "__table_args__": info}
        world.models.append(a_class(name, (*mixin, parent), members, places))
    for number in range(draw(st.integers(0, 2))):
        left, right = (draw(st.sampled_from(world.models)) for _ in range(2))
        place, how = draw(RARE), draw(HOWS)
        table = Table(
            f"association{number}",
            draw(st.sampled_from([left.metadata, right.metadata])),
            Column("left", ForeignKey(left.__table__.c.id), primary_key=True),
            Column("right", ForeignKey(right.__table__.c.id), primary_key=True),
            info={"bind_key": place} if place and how == "info" else {},
        )
        if how == "binds":
            world.note(table, how, place)
        world.links.append((left, right, table))
        world.may_be_refused = True
        world.tables.append(table)
    world.tables.extend({each.__table__: None for each in world.models})
    return world


def watch(db: ScopedSession) -> set[str]:
    """Return a set to which the bind of each statement is added from now on."""
    seen: set[str] = set()
    for name, engine in db.engines.items():

        def note(*_: Any, name: str = name) -> None:
            seen.add(name)

        event.listen(engine, "before_cursor_execute", note)
    return seen


def core(table: Table) -> Iterator[tuple[Any, Any]]:
    """Yield Core statements of every kind, each with its parameters."""
    key = next(iter(table.c))
    rows = [{each.name: number for each in table.c} for number in (1, 2, 3, 4)]
    columns = list(table.c)
    yield table.insert(), rows[0]
    yield sa.insert(table), rows[1:3]
    yield sa.insert(table).values(rows[3]), None
    select = sa.select(table)
    yield table.insert().from_select(columns, select.where(key < 0)), None
    yield select, None
    yield sa.select(sa.func.count()).select_from(table), None
    yield sa.select(table.alias()), None
    yield sa.select(select.cte()), None
    yield sa.select(select.subquery()), None
    yield sa.select(sa.exists().where(key == 1)), None
    yield sa.union_all(sa.select(key), sa.select(key)), None
    yield sa.update(table).values({key.name: 9}).where(key == 1), None
    yield sa.update(table).where(key == sa.bindparam("k")), [{"k": 1, key.name: 7}]
    yield sa.delete(table), None


def by_orm(model: Any) -> Iterator[tuple[Any, Any]]:
    yield sa.select(model), None
    yield sa.select(aliased(model)), None
    yield sa.select(model.id).where(model.id.in_(sa.select(model.id))), None
    yield sa.select(sa.func.count()).select_from(model), None
    yield sa.union(sa.select(model.id), sa.select(model.id)), None
    yield sa.insert(model), [{"id": 101}, {"id": 102}]
    yield sa.delete(model.__table__), None


def homes(db: ScopedSession) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, engine in db.engines.items():
        for table in sa.inspect(engine).get_table_names():
            found.setdefault(table, []).append(name)
    return found


@pytest.mark.slow
@given(a_world())
@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_all_agree(world: Models) -> None:
    """Or all say that it is contradictory, and nothing is created."""
    db = ScopedSession(model_class=world.base, binds=world.binds)
    app = Flask("random")
    app.config["SQLALCHEMY_BINDS"] = dict.fromkeys(NAMES, "sqlite://")
    app.config["SCOPEDSESSION_LOST_WORK"] = "ignore"
    db.init_app(app)
    with app.app_context():
        try:
            db.create_all()
        except ConfigError as error:
            assert world.may_be_refused
            assert homes(db) == {}
            check_refused(db, world, str(error))
        else:
            check_agreed(db, world)
    db.dispose(app)


def check_refused(db: ScopedSession, world: Models, message: str) -> None:
    refused = set()
    for target in (*world.models, *world.tables):
        try:
            if isinstance(target, Table):
                db.session.get_bind(clause=sa.select(target))
            else:
                db.session.get_bind(target)
        except ConfigError as error:
            refused.add(str(error))
    for use in (db.drop_all, lambda: db.metadatas):
        with pytest.raises(ConfigError):
            use()
    # A base may be contradictory although nothing that it has depends on it.
    assert refused or re.match("A MetaData|Base|Second|Abstract", message)


def check_agreed(db: ScopedSession, world: Models) -> None:
    found = homes(db)
    assert found.keys() == {table.name for table in world.tables}
    assert all(len(where) == 1 for where in found.values())
    in_metadatas = {
        table: [name or "default"]
        for name, metadata in db.metadatas.items()
        for table in metadata.tables
    }
    assert in_metadatas == found
    for left, right, table in world.links:
        if (
            found[left.__table__.name]
            == found[table.name]
            == found[right.__table__.name]
        ):
            link = relationship(
                right,
                secondary=table,
                primaryjoin=left.__table__.c.id == table.c.left,
                secondaryjoin=right.__table__.c.id == table.c.right,
            )
            setattr(left, f"to_{table.name}", link)
    seen = watch(db)
    for table in world.tables:
        for statement, parameters in core(table):
            seen.clear()
            db.session.execute(statement, parameters)
            assert seen == set(found[table.name]), (table.name, str(statement))
            db.session.rollback()
    for model in world.models:
        home = set(found[model.__table__.name])
        for statement, parameters in by_orm(model):
            seen.clear()
            db.session.execute(statement, parameters)
            assert seen == home, (model, str(statement))
            db.session.rollback()
        seen.clear()
        db.session.add(model())
        db.session.flush()
        db.session.expunge_all()
        db.session.scalars(sa.select(model)).all()
        db.session.query(model).first()
        for link in sa.inspect(model).relationships:
            getattr(one := model(), link.key).append(link.mapper.class_())
            db.session.add(one)
            db.session.flush()
        assert seen == home, model
        db.session.rollback()
    db.drop_all()
    assert homes(db) == {}
