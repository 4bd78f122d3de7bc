"""Which database: where ``create_all()`` puts a table, everything looks for it.

Most tests create all tables in all databases, so that a statement that is sent to the
wrong one succeeds there, as it does for a user who has tables of the same name.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy import Column
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import ForeignKey
from sqlalchemy import Integer
from sqlalchemy import MetaData
from sqlalchemy import orm
from sqlalchemy import Table
from sqlalchemy import text
from sqlalchemy.ext import declarative
from sqlalchemy.orm import aliased
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import declared_attr
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship
from sqlalchemy.orm import Session

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import MixedBinds
from flask_scopedsession.errors import SessionRemoved
from flask_scopedsession.errors import SetupError
from flask_scopedsession.errors import UnknownBind

NAMES = ("default", "audit", "reports")


class HasId:
    id: Mapped[int] = mapped_column(primary_key=True)


class Base(HasId, DeclarativeBase):
    pass


class AuditBase(HasId, DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    name: Mapped[str | None]


class Entry(AuditBase):
    __tablename__ = "entry"
    what: Mapped[str | None]
    user_id: Mapped[int | None]


def a_base(**attributes):
    """Return a new declarative base."""
    return type("Base", (HasId, DeclarativeBase), attributes)


def a_model(base, name, /, *mixins, parent=None, **attributes):
    """Return a new model with a table of its name in lower case."""
    if parent is not None:
        attributes["id"] = mapped_column(ForeignKey(parent.id), primary_key=True)
    attributes = {"__tablename__": name.lower(), **attributes}
    model = type(name, (*mixins, parent or base), attributes)
    base.metadata.info.setdefault("models", []).append(model)  # else it is collected
    return model


@pytest.fixture
def make(make_app):
    """``make(db)`` pushes a context of an application with three databases."""
    contexts = []

    def make(db, names=NAMES):
        app = make_app(db, SQLALCHEMY_BINDS=dict.fromkeys(names, "sqlite://"))
        context = app.app_context()
        context.push()
        contexts.append(context)
        return db

    yield make
    for context in reversed(contexts):
        context.pop()


@pytest.fixture
def two(make):
    """The documented pattern: two bases, and decoys in all databases."""
    db = make(ScopedSession(model_class=Base, binds={AuditBase: "audit"}))
    decoys(db, Base.metadata, AuditBase.metadata)
    return db


def decoys(db, *metadatas):
    for engine in db.engines.values():
        for metadata in metadatas:
            metadata.create_all(engine)


def created(db, *args, **kwargs):
    """Return the databases that ``create_all()`` puts each table in."""
    db.create_all(*args, **kwargs)
    return present(db)


def present(db):
    found = {}
    for name, engine in db.engines.items():
        for table in sa.inspect(engine).get_table_names():
            found.setdefault(table, []).append(name)
    return {
        table: where[0] if len(where) == 1 else where for table, where in found.items()
    }


@contextmanager
def sent(db):
    """Collect the databases that statements are sent to."""
    seen = set()
    listeners = []
    for name, engine in db.engines.items():

        def note(*_, name=name):
            seen.add(name)

        event.listen(engine, "before_cursor_execute", note)
        listeners.append((engine, note))
    try:
        yield seen
    finally:
        for engine, note in listeners:
            event.remove(engine, "before_cursor_execute", note)


def core(table):
    """Return a statement of each kind for a table."""
    key = next(iter(table.c))
    row, other, third = ({each.name: n for each in table.c} for n in (1, 2, 3))
    return {
        "insert": (table.insert().values(row), None),
        "insert one": (table.insert(), row),
        "insert many": (sa.insert(table), [other, third]),
        "insert from select": (
            table.insert().from_select([*table.c], sa.select(*table.c).where(key < 0)),
            None,
        ),
        "select": (sa.select(table), None),
        "columns": (sa.select(key), None),
        "function": (sa.select(sa.func.max(key)), None),
        "count": (sa.select(sa.func.count()).select_from(table), None),
        "alias": (sa.select(table.alias()), None),
        "cte": (sa.select(sa.select(key).cte()), None),
        "subquery": (sa.select(sa.select(key).subquery()), None),
        "scalar subquery": (
            sa.select(sa.select(sa.func.max(key)).scalar_subquery()),
            None,
        ),
        "exists": (sa.select(sa.exists().where(key == 1)), None),
        "union": (sa.union_all(sa.select(key), sa.select(key)), None),
        "text with columns": (
            sa.select(text("1")).select_from(table).where(text("1 = 1")),
            None,
        ),
        "update": (sa.update(table).values(row).where(key == 1), None),
        "update many": (
            sa.update(table).where(key == sa.bindparam("k")).values({key.name: key}),
            [{"k": 1}, {"k": 2}],
        ),
        "delete": (sa.delete(table), None),
    }


def goes(db, statement, parameters=None):
    """Return the one database that the session sends a statement to."""
    with sent(db) as seen:
        db.session.execute(statement, parameters)
    db.session.rollback()
    assert len(seen) == 1, seen
    return seen.pop()


def all_of(db, table):
    """Return the databases that the Core statements for a table go to."""
    return {goes(db, *each) for each in core(table).values()}


# Core statements


@pytest.mark.parametrize("kind", core(Entry.__table__))
@pytest.mark.parametrize(("model", "home"), [(User, "default"), (Entry, "audit")])
def test_core_statements(two, kind, model, home):
    """What goes to a table of a bound base goes to its database, and no other."""
    assert goes(two, *core(model.__table__)[kind]) == home


def test_a_row_is_in_its_own_database(two):
    """Not in a table of the same name in the default one."""
    two.session.execute(Entry.__table__.insert(), [{"what": "a"}, {"what": "b"}])
    two.session.commit()
    count = sa.select(sa.func.count()).select_from(Entry.__table__)
    found = {name: engine.connect() for name, engine in two.engines.items()}
    counts = {name: connection.scalar(count) for name, connection in found.items()}
    for connection in found.values():
        connection.close()
    assert counts == {"default": 0, "audit": 2, "reports": 0}


def by_orm():
    copy = Entry.__table__.to_metadata(MetaData(info={"bind_key": "audit"}))
    return {
        "select": sa.select(Entry),
        "columns": sa.select(Entry.id, Entry.what),
        "alias": sa.select(aliased(Entry)),
        "count": sa.select(sa.func.count()).select_from(Entry),
        "insert": sa.insert(Entry).values(what="x"),
        "update": sa.update(Entry).values(what="x"),
        "delete": sa.delete(Entry),
        "union": sa.union(sa.select(Entry.id), sa.select(Entry.id)),
        "function": sa.func.max(Entry.id),
        "from_statement": sa.select(Entry).from_statement(text("SELECT * FROM entry")),
        "polymorphic": sa.select(orm.with_polymorphic(Entry, [])),
        "ddl": sa.schema.DropTable(Entry.__table__),
        "index": sa.schema.CreateIndex(sa.Index("i", copy.c.what)),
    }


@pytest.mark.parametrize("kind", by_orm())
def test_orm_statements(two, kind):
    assert goes(two, by_orm()[kind]) == "audit"


@pytest.mark.parametrize(
    "use",
    {
        "flush": lambda s: (s.add(Entry()), s.flush()),
        "get": lambda s: s.get(Entry, 1),
        "query": lambda s: s.query(Entry).all(),
        "query count": lambda s: s.query(Entry.id).count(),
        "bulk": lambda s: s.bulk_insert_mappings(Entry, [{"what": "x"}]),
        "many": lambda s: s.execute(sa.insert(Entry), [{"what": "x"}, {"what": "y"}]),
        "merge": lambda s: s.merge(Entry(id=1)),
        "connection": lambda s: s.connection({"mapper": Entry}).execute(
            text("SELECT 1")
        ),
        "text": lambda s: s.execute(text("SELECT 1"), bind_arguments={"mapper": Entry}),
        "clause": lambda s: s.execute(
            text("SELECT 1"), bind_arguments={"clause": Entry.__table__}
        ),
    }.values(),
)
def test_other_ways(two, use):
    with sent(two) as seen:
        use(two.session())
    assert seen == {"audit"}


def test_text_goes_to_the_default_database(two):
    """Unless told otherwise: what is in a text is not known."""
    assert goes(two, text("SELECT * FROM entry")) == "default"
    with sent(two) as seen:
        two.session.execute(
            text("SELECT 1"), bind_arguments={"bind": two.get_engine("reports")}
        )
    assert seen == {"reports"}


# Statements of two databases


@pytest.mark.parametrize(
    "statement",
    {
        "join": lambda: sa.select(User).join(Entry, Entry.user_id == User.id),
        "where": lambda: sa.select(User.id).where(Entry.user_id == User.id),
        "subquery": lambda: sa.select(User).where(
            User.id.in_(sa.select(Entry.user_id))
        ),
        "cte": lambda: sa.select(User.id).where(
            User.id == sa.select(Entry.id).cte().c.id
        ),
        "union": lambda: sa.union(sa.select(User.id), sa.select(Entry.id)),
        "insert from select": lambda: sa.insert(Entry).from_select(
            ["what"], sa.select(User.name)
        ),
        "update": lambda: (
            sa.update(User.__table__)
            .values(name="x")
            .where(User.__table__.c.id == Entry.__table__.c.user_id)
        ),
        "value": lambda: sa.update(Entry).values(
            what=sa.select(sa.func.max(User.name)).scalar_subquery()
        ),
        "delete": lambda: sa.delete(User).where(User.id.in_(sa.select(Entry.user_id))),
    }.values(),
)
def test_two_databases_in_one_statement(two, statement):
    """An error that names both, instead of the wrong one of them."""
    with sent(two) as seen, pytest.raises(MixedBinds) as info:
        two.session.execute(statement())
    assert seen == set()
    for part in ("in 'default'", "in 'audit'", "bind_arguments"):
        assert part in str(info.value)
    two.session.execute(statement(), bind_arguments={"bind": two.engine})


def test_tables_of_no_known_database_follow_the_others(two):
    """A table that nothing is said of is where the rest of the statement goes."""
    legacy = Table("legacy", MetaData(), Column("id", Integer))
    for engine in two.engines.values():
        legacy.create(engine)
    assert all_of(two, legacy) == {"default"}
    assert goes(two, sa.select(Entry).join(legacy, legacy.c.id == Entry.id)) == "audit"
    plain = sa.table("legacy", sa.column("id"))
    assert (
        goes(two, sa.select(plain).where(plain.c.id == Entry.__table__.c.id)) == "audit"
    )
    assert goes(two, sa.select(plain)) == "default"


@pytest.mark.parametrize("named", [None, "sqlite:///file:/x?vfs=memdb&uri=true"])
def test_two_binds_of_one_database(make_app, sqlite_url, named):
    """Such as one with other engine options: nothing is mixed."""
    db = ScopedSession(model_class=Base, binds={AuditBase: "audit"})
    sqlite_url = named or sqlite_url
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI=sqlite_url, SQLALCHEMY_BINDS={"audit": sqlite_url}
    )
    with app.app_context():
        db.create_all()
        assert (
            db.session.execute(sa.select(User.id).where(User.id == Entry.id)).all()
            == []
        )


def test_two_databases_in_memory_are_not_one(make_app):
    db = ScopedSession(model_class=Base, binds={AuditBase: "audit"})
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI="sqlite://", SQLALCHEMY_BINDS={"audit": "sqlite://"}
    )
    with app.app_context(), pytest.raises(MixedBinds):
        db.session.execute(sa.select(User.id).where(User.id == Entry.id))


# Ways to say it


def a_whole_base(base):
    base = a_base(metadata=MetaData())
    return base, a_model(base, "Thing"), {base: "audit"}


def a_metadata(base):
    base = a_base(metadata=MetaData())
    return base, a_model(base, "Thing"), {base.metadata: "audit"}


def a_mixin(base):
    mixin = type("Mixin", (), {})
    return base, a_model(base, "Thing", mixin), {mixin: "audit"}


def an_abstract_base(base):
    abstract = type("Abstract", (base,), {"__abstract__": True})
    return base, a_model(abstract, "Thing"), {abstract: "audit"}


def an_abstract_base_with_a_metadata(base):
    members = {"__abstract__": True, "metadata": MetaData()}
    abstract = type("Abstract", (base,), members)
    return base, a_model(abstract, "Thing"), {abstract: "audit"}


def a_class(base):
    thing = a_model(base, "Thing")
    return base, thing, {thing: "audit"}


def a_mapper(base):
    thing = a_model(base, "Thing")
    return base, thing, {sa.inspect(thing): "audit"}


def a_table(base):
    thing = a_model(base, "Thing")
    return base, thing, {thing.__table__: "audit"}


def mapped_imperatively(base):
    thing = type("Thing", (), {})
    columns = Column("id", Integer, primary_key=True)
    base.registry.map_imperatively(thing, Table("thing", base.metadata, columns))
    return base, thing, {thing: "audit"}


def mapped_imperatively_elsewhere(base):
    thing = type("Thing", (), {})
    columns = Column("id", Integer, primary_key=True)
    orm.registry().map_imperatively(thing, Table("thing", MetaData(), columns))
    return base, thing, {thing: "audit"}


def legacy_base(base):
    old = orm.declarative_base()
    columns = {"id": Column(Integer, primary_key=True)}
    return (
        base,
        type("Thing", (old,), {"__tablename__": "thing", **columns}),
        {old: "audit"},
    )


def key_of_a_class(base):
    return base, a_model(base, "Thing", __bind_key__="audit"), {}


def key_of_a_mixin(base):
    return (
        base,
        a_model(base, "Thing", type("Mixin", (), {"__bind_key__": "audit"})),
        {},
    )


def key_of_a_mixin_that_computes_it(base):
    class Mixin:
        @declared_attr.directive
        def __bind_key__(cls):  # noqa: N805
            return cls.__name__.replace("Thing", "audit")

    return base, a_model(base, "Thing", Mixin), {}


def key_of_an_abstract_base(base):
    members = {"__abstract__": True, "__bind_key__": "audit"}
    return base, a_model(type("Abstract", (base,), members), "Thing"), {}


def key_of_a_base(base):
    base = a_base(__bind_key__="audit")
    return base, a_model(base, "Thing"), {}


def info_of_a_table(base):
    thing = a_model(base, "Thing", __table_args__={"info": {"bind_key": "audit"}})
    return base, thing, {}


def info_of_a_metadata(base):
    base = a_base(metadata=MetaData(info={"bind_key": "audit"}))
    return base, a_model(base, "Thing"), {}


def info_of_an_abstract_bases_metadata(base):
    members = {"__abstract__": True, "metadata": MetaData(info={"bind_key": "audit"})}
    return base, a_model(type("Abstract", (base,), members), "Thing"), {}


WAYS = [
    a_whole_base,
    a_metadata,
    a_mixin,
    an_abstract_base,
    an_abstract_base_with_a_metadata,
    a_class,
    a_mapper,
    a_table,
    mapped_imperatively,
    mapped_imperatively_elsewhere,
    legacy_base,
    key_of_a_class,
    key_of_a_mixin,
    key_of_a_mixin_that_computes_it,
    key_of_an_abstract_base,
    key_of_a_base,
    info_of_a_table,
    info_of_a_metadata,
    info_of_an_abstract_bases_metadata,
]


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_say_it(make, way):
    """Each means the same to everything that asks."""
    base, thing, binds = way(a_base())
    db = make(ScopedSession(model_class=base, binds=binds))
    assert created(db) == {"thing": "audit"}
    assert [*db.metadatas["audit"].tables] == ["thing"]
    assert [*db.metadatas[None].tables] == []
    decoys(db, sa.inspect(thing).local_table.metadata)
    assert all_of(db, sa.inspect(thing).local_table) == {"audit"}
    with sent(db) as seen:
        db.session.add(thing())
        db.session.flush()
        db.session.execute(sa.select(thing))
        db.session.rollback()
    assert seen == {"audit"}
    db.drop_all()
    assert "audit" not in present(db).get("thing", ())


def test_classes_with_attributes_of_the_same_names(make):
    """A mixin may have a registry or a metadata that is none of SQLAlchemy's."""

    class Plugin:
        registry = {}  # noqa: RUF012
        metadata = {}  # noqa: RUF012

    class Late:
        @declared_attr.directive
        def metadata(cls):  # noqa: N805
            return MetaData()

    base = a_base()
    thing = a_model(base, "Thing", type("Mixin", (Late,), {}), __bind_key__="audit")
    db = make(
        ScopedSession(model_class=base, binds={Plugin: "reports", Late: "reports"})
    )
    assert created(db) == {"thing": "audit"}
    assert goes(db, sa.select(thing)) == "audit"


def test_the_default_bind_by_name(make):
    """``None`` is Flask-SQLAlchemy's name for it."""
    base = a_base(__bind_key__="audit")
    a_model(base, "Plain")
    a_model(base, "Named", __bind_key__="default")
    a_model(base, "None_", __bind_key__=None)
    db = make(ScopedSession(model_class=base))
    assert created(db) == {"plain": "audit", "named": "default", "none_": "default"}


def test_the_most_specific_word_counts(make):
    base = a_base(metadata=MetaData(info={"bind_key": "reports"}))
    mixin = type("Mixin", (), {"__bind_key__": "audit"})
    a_model(base, "ByMetadata")
    a_model(base, "ByMixin", mixin)
    named = a_model(base, "ByClass", mixin, __bind_key__="reports")
    table = a_model(base, "ByTable", mixin, __bind_key__="reports")
    db = make(ScopedSession(model_class=base, binds={table.__table__: "default"}))
    assert created(db) == {
        "bymetadata": "reports",
        "bymixin": "audit",
        "byclass": "reports",
        "bytable": "default",
    }
    decoys(db, base.metadata)
    assert all_of(db, named.__table__) == {"reports"}
    assert goes(db, sa.select(table)) == "default"


@pytest.mark.parametrize("kind", [orm.DeclarativeBase, orm.DeclarativeBaseNoMeta])
def test_a_base_that_the_extension_does_not_know(make, kind):
    """Its tables are not created, but statements find their way, Core's as well."""
    other = type("Other", (HasId, kind), {"__bind_key__": "audit"})
    thing = a_model(other, "Thing")
    loose = Table(
        "loose", MetaData(info={"bind_key": "reports"}), Column("id", Integer)
    )
    db = make(ScopedSession(model_class=a_base()))
    assert created(db) == {}
    decoys(db, other.metadata, loose.metadata)
    assert all_of(db, thing.__table__) == {"audit"}
    assert goes(db, sa.select(thing)) == "audit"
    assert all_of(db, loose) == {"reports"}


def test_models_that_are_defined_later(make):
    """After the first session, the first answer and the first ``create_all()``."""
    base = a_base()
    a_model(base, "First", __bind_key__="audit")
    db = make(ScopedSession(model_class=base))
    db.create_all()
    db.session.execute(text("SELECT 1"))
    later = a_model(base, "Later", __bind_key__="reports")
    assert created(db)["later"] == "reports"
    decoys(db, base.metadata)
    assert all_of(db, later.__table__) == {"reports"}


def test_models_that_only_the_session_meets_later(make):
    base, unknown = a_base(), orm.declarative_base()
    a_model(base, "First", __bind_key__="audit")
    db = make(ScopedSession(model_class=base))
    assert goes(db, sa.select(sa.literal(1))) == "default"
    for name in ("ByCore", "ByOrm"):
        a_model(base, name, __bind_key__="reports")
    decoys(db, base.metadata)
    by_core, by_orm = base.metadata.info["models"][1:]
    assert goes(db, by_core.__table__.insert()) == "reports"
    assert goes(db, sa.select(by_orm)) == "reports"
    members = {"__tablename__": "legacy", "__bind_key__": "audit"}
    key = Column(Integer, primary_key=True)
    legacy = type("Legacy", (unknown,), {**members, "id": key})
    decoys(db, unknown.metadata)
    assert goes(db, sa.select(legacy)) == "audit"
    assert all_of(db, legacy.__table__) == {"audit"}


# Inheritance and associations


def test_a_joined_child_is_with_its_parent(make):
    base = a_base()
    kind = {
        "kind": mapped_column(sa.String),
        "__mapper_args__": {"polymorphic_on": "kind"},
    }
    parent = a_model(base, "Parent", **kind)
    child = a_model(
        base, "Child", parent=parent, __mapper_args__={"polymorphic_identity": "child"}
    )
    identity = {"__mapper_args__": {"polymorphic_identity": "grandchild"}}
    grandchild = a_model(base, "Grandchild", parent=child, **identity)
    db = make(ScopedSession(model_class=base, binds={parent: "audit"}))
    assert set(created(db).values()) == {"audit"}
    decoys(db, base.metadata)
    assert all_of(db, child.__table__) == {"audit"}
    with sent(db) as seen:
        db.session.add_all([child(), grandchild()])
        db.session.flush()
        db.session.expunge_all()
        assert len(db.session.scalars(sa.select(parent)).all()) == 2
        db.session.scalars(sa.select(grandchild)).all()
    assert seen == {"audit"}


@pytest.mark.parametrize("kind", ["joined", "single", "concrete"])
@pytest.mark.parametrize("how", ["__bind_key__", "binds", "mixin"])
def test_a_child_cannot_leave_its_parent(make, kind, how):
    """A flush writes both on one connection, so it would be the wrong one."""
    base = a_base()
    parent = a_model(base, "Parent")
    mixin = type("Mixin", (), {"__bind_key__": "audit"})
    extra = {"__bind_key__": "audit"} if how == "__bind_key__" else {}
    if kind == "concrete":
        extra["__mapper_args__"] = {"concrete": True}
    mixins = [mixin] if how == "mixin" else []
    if kind == "single":
        child = type("Child", (*mixins, parent), extra)
    else:
        child = a_model(base, "Child", *mixins, parent=parent, **extra)
    binds = {child: "audit"} if how == "binds" else {}
    db = make(ScopedSession(model_class=base, binds=binds))
    expected = "The model Child cannot be in the bind 'audit', because it inherits from"
    for use in (
        db.create_all,
        lambda: db.metadatas,
        lambda: db.session.execute(sa.select(child)),
        lambda: (db.session.add(child()), db.session.flush()),
    ):
        with pytest.raises(ConfigError, match=expected):
            use()
        db.session.rollback()
    assert present(db) == {}
    assert goes_only(db, base, parent) == {"default"}


def goes_only(db, base, model):
    decoys(db, base.metadata)
    return {goes(db, sa.select(model.__table__))}


def test_a_child_may_repeat_its_parent(make):
    base = a_base()
    parent = a_model(base, "Parent", __bind_key__="audit")
    a_model(base, "Child", parent=parent, __bind_key__="audit")
    plain = a_model(base, "Plain")
    a_model(base, "Same", parent=plain, __bind_key__=None)
    db = make(ScopedSession(model_class=base))
    assert created(db) == {
        "parent": "audit",
        "child": "audit",
        "plain": "default",
        "same": "default",
    }


@pytest.mark.parametrize("who", ["parent", "children"])
@pytest.mark.parametrize("class_", ["AbstractConcreteBase", "ConcreteBase"])
@pytest.mark.parametrize("pending", [False, True])
def test_concrete_children(make, pending, class_, who):
    """Also if the parent is not mapped yet, as before the first query."""
    base = a_base()
    key = {"__bind_key__": "audit"}
    members = dict(key) if who == "parent" or class_ == "ConcreteBase" else {}
    if class_ == "ConcreteBase":
        members["__tablename__"] = "parent"
        members["__mapper_args__"] = {"polymorphic_identity": "P", "concrete": True}
    parent = type("Parent", (getattr(declarative, class_), base), members)
    for name in ("One", "Two"):
        members = {
            "__tablename__": name.lower(),
            "id": mapped_column(Integer, primary_key=True),
            "__mapper_args__": {"polymorphic_identity": name, "concrete": True},
            **(key if who == "children" else {}),
        }
        base.metadata.info[name] = type(name, (parent,), members)
    if not pending:
        orm.configure_mappers()
    db = make(ScopedSession(model_class=base))
    assert set(created(db).values()) == {"audit"}
    decoys(db, base.metadata)
    orm.configure_mappers()
    for model in (parent, base.metadata.info["One"]):
        assert goes(db, sa.select(model)) == "audit"


def an_association(base, left, right, metadata=None, **kwargs):
    return Table(
        "association",
        base.metadata if metadata is None else metadata,
        Column("left", ForeignKey(left.id), primary_key=True),
        Column("right", ForeignKey(right.id), primary_key=True),
        **kwargs,
    )


@pytest.mark.parametrize("abstract", [False, True])
def test_an_association_table_is_with_its_parents(make, abstract):
    base = a_base()
    home = base
    if abstract:
        home = type("Abstract", (base,), {"__abstract__": True, "metadata": MetaData()})
    left = a_model(home, "Left")
    right = a_model(home, "Right")
    table = an_association(home, left, right)
    left.rights = relationship(right, secondary=table, backref="lefts")
    binds = {home: "audit"} if abstract else {left: "audit", right: "audit"}
    db = make(ScopedSession(model_class=base, binds=binds))
    assert created(db) == dict.fromkeys(["left", "right", "association"], "audit")
    decoys(db, table.metadata)
    assert all_of(db, table) == {"audit"}
    with sent(db) as seen:
        db.session.add(left(rights=[right()]))
        db.session.flush()
        db.session.expire_all()
        assert len(db.session.scalars(sa.select(left)).one().rights) == 1
        query = sa.select(left).join(left.rights).options(orm.joinedload(left.rights))
        db.session.scalars(query).unique().all()
    assert seen == {"audit"}


def test_an_association_table_with_parents_in_two_databases(make):
    """Nothing says where it is, until it is named."""
    base = a_base()
    left, right = a_model(base, "Left", __bind_key__="audit"), a_model(base, "Right")
    table = an_association(base, left, right)
    db = make(ScopedSession(model_class=base))
    with pytest.raises(
        ConfigError, match=r"'association' refers .* 'audit' and 'default'"
    ):
        db.create_all()
    with pytest.raises(ConfigError, match="'association' refers"):
        db.session.execute(table.insert())
    named = make(ScopedSession(model_class=base, binds={table: "audit"}))
    assert created(named)["association"] == "audit"


def test_parents_in_two_databases_and_a_metadata_that_says_more(make):
    base = a_base()
    left, right = a_model(base, "Left", __bind_key__="audit"), a_model(base, "Right")
    own = MetaData()
    table = an_association(base, left, right, own)
    db = make(ScopedSession(model_class=base, binds={own: "reports"}))
    assert created(db)["association"] == "reports"
    decoys(db, own)
    assert all_of(db, table) == {"reports"}


@pytest.mark.parametrize("named", [False, True])
def test_parents_in_the_default_bind_and_another_metadata(make, named):
    """That they are in the default bind decides, if it is said of them."""
    base = a_base()
    said = {"__bind_key__": "default"} if named else {}
    left, right = a_model(base, "Left", **said), a_model(base, "Right", **said)
    own = MetaData(info={"bind_key": "audit"})
    table = an_association(base, left, right, own)
    db = make(ScopedSession(model_class=base, binds={own: "audit"}))
    home = "default" if named else "audit"
    assert created(db)["association"] == home
    decoys(db, own)
    assert all_of(db, table) == {home}


def test_a_table_that_refers_to_one_that_is_named(make):
    """What that one refers to does not matter."""
    base = a_base()
    a_model(base, "Thing")
    key = Column("id", Integer, primary_key=True)
    thing = Column("thing", ForeignKey("thing.id"))
    Table("near", base.metadata, key, thing, info={"bind_key": "audit"})
    Table("far", base.metadata, Column("near", ForeignKey("near.id")))
    db = make(ScopedSession(model_class=base))
    assert created(db) == {"thing": "default", "near": "audit", "far": "audit"}


def test_a_table_that_refers_to_another_without_a_model(make):
    base = a_base()
    lookup = Table("lookup", base.metadata, Column("id", Integer, primary_key=True))
    a_model(base, "Thing", __bind_key__="audit")
    Table(
        "both",
        base.metadata,
        Column("lookup", ForeignKey("lookup.id")),
        Column("thing", ForeignKey("thing.id")),
    )
    db = make(ScopedSession(model_class=base))
    with pytest.raises(ConfigError, match="'both' refers .* 'audit' and 'default'"):
        db.create_all()
    lookup.info["bind_key"] = "audit"
    assert set(created(db).values()) == {"audit"}


def test_a_relationship_that_is_only_read(make):
    base = a_base()
    left, right = a_model(base, "Left"), a_model(base, "Right", __bind_key__="audit")
    table = an_association(base, left, right, info={"bind_key": "default"})
    left.rights = relationship(right, secondary=table, viewonly=True)
    db = make(ScopedSession(model_class=base))
    decoys(db, base.metadata)
    assert goes(db, sa.select(left)) == "default"


@pytest.mark.parametrize("place", [None, "audit", "default"])
def test_a_relationship_between_two_databases(make, place):
    """The association table must be where the ORM writes it: with the target."""
    base = a_base()
    left, right = a_model(base, "Left"), a_model(base, "Right", __bind_key__="audit")
    info = {} if place is None else {"bind_key": place}
    left.rights = relationship(
        right, secondary=an_association(base, left, right, info=info)
    )
    db = make(ScopedSession(model_class=base))
    decoys(db, base.metadata)
    if place == "audit":
        db.session.add(left(rights=[right()]))
        db.session.commit()
        assert len(db.session.scalars(sa.select(left)).one().rights) == 1
        return
    expected = {
        None: "'association' refers to tables in the binds",
        "default": "Left.rights cannot use the table 'association' in the bind",
    }
    for _ in range(2):
        db.session.add(left(rights=[right()]))
        with pytest.raises(ConfigError, match=expected[place]):
            db.session.flush()
        db.session.rollback()


def test_a_table_refers_to_one_that_is_not_imported(make):
    """``create_all()`` says so, as SQLAlchemy's does; a statement need not."""
    base = a_base()
    loose = Table("loose", base.metadata, Column("x", ForeignKey("missing.id")))
    db = make(ScopedSession(model_class=base, binds={AuditBase: "audit"}))
    assert db.session.get_bind(clause=loose.insert()) is db.engine
    with pytest.raises(sa_exc.NoReferencedTableError):
        db.create_all()


def test_tables_that_refer_to_each_other(make):
    base = a_base()
    one = Table(
        "one",
        base.metadata,
        Column("id", Integer, primary_key=True),
        Column("two", ForeignKey("two.id", use_alter=True, name="fk")),
        Column("self", ForeignKey("one.id")),
    )
    Table(
        "two",
        base.metadata,
        Column("id", Integer, primary_key=True),
        Column("one", ForeignKey("one.id")),
        Column("root", ForeignKey("root.id")),
    )
    a_model(base, "Root", __bind_key__="audit")
    db = make(ScopedSession(model_class=base))
    assert set(created(db).values()) == {"audit"}
    decoys(db, base.metadata)
    assert goes(db, sa.select(one)) == "audit"


def test_a_class_that_is_mapped_to_a_join(make):
    base = a_base()
    left, right = (
        a_model(base, name, __bind_key__="audit") for name in ("Left", "Right")
    )
    joined = sa.join(left.__table__, right.__table__, left.id == right.id)
    both = type(
        "Both",
        (base,),
        {
            "__table__": joined,
            "id": orm.column_property(left.__table__.c.id, right.__table__.c.id),
        },
    )
    db = make(ScopedSession(model_class=base))
    assert set(created(db).values()) == {"audit"}
    decoys(db, base.metadata)
    assert goes(db, sa.select(both)) == "audit"
    assert all_of(db, left.__table__) == {"audit"}


def test_a_contradictory_class_leaves_others_alone(make):
    """One that is mapped to a join of two databases cannot be used, others can."""
    base = a_base()
    left, right = a_model(base, "Left"), a_model(base, "Right", __bind_key__="audit")
    members = {
        "__table__": sa.join(left.__table__, right.__table__, left.id == right.id),
        "id": orm.column_property(left.__table__.c.id, right.__table__.c.id),
        "__bind_key__": "reports",
    }
    both = type("Both", (base,), members)
    db = make(ScopedSession(model_class=base))
    decoys(db, base.metadata)
    for use in (db.create_all, lambda: db.session.execute(sa.select(both))):
        with pytest.raises(ConfigError, match="Both is placed in"):
            use()
    assert all_of(db, left.__table__) == {"default"}
    assert all_of(db, right.__table__) == {"audit"}


def test_a_class_whose_mapping_has_failed(make):
    """It is SQLAlchemy's business, and no other table's."""
    base = a_base()
    thing = a_model(base, "Thing", __bind_key__="audit")
    with pytest.raises(sa_exc.ArgumentError, match="primary key") as kept:
        type("Wrong", (base,), {"__tablename__": "wrong", "id": Column(Integer)})
    db = make(ScopedSession(model_class=base))
    assert created(db)["thing"] == "audit"
    assert all_of(db, thing.__table__) == {"audit"}
    del kept  # it has kept the class alive


@pytest.mark.parametrize("by_base", [False, True])
def test_a_class_that_is_no_subclass_of_a_base(make, by_base):
    """It has the registry of the base, or of a class in ``binds``."""
    base = a_base()
    mapping = base.registry if by_base else orm.registry()
    for name in ("Named", "Other"):
        members = {"__bind_key__": "reports"} if name == "Other" else {}
        key = Column("id", Integer, primary_key=True)
        made = type(name, (), members)
        mapping.map_imperatively(made, Table(name.lower(), mapping.metadata, key))
        mapping.metadata.info.setdefault("models", []).append(made)
    named, other = mapping.metadata.info["models"]
    binds = {} if by_base else {named: "audit"}
    db = make(ScopedSession(model_class=base, binds=binds))
    assert created(db) == {
        "named": "default" if by_base else "audit",
        "other": "reports",
    }
    decoys(db, mapping.metadata)
    assert all_of(db, other.__table__) == {"reports"}


def test_metadatas_outside_a_context():
    """Those that have tables, and the default bind's."""
    base = a_base()
    a_model(base, "Thing", __bind_key__="audit")
    found = ScopedSession(model_class=base).metadatas
    assert {name: [*each.tables] for name, each in found.items()} == {
        None: [],
        "audit": ["thing"],
    }


def test_two_bases_that_share_a_metadata(make):
    """Only the models of the base that is named are elsewhere."""
    one = a_base()
    two = a_base(metadata=one.metadata)
    a_model(one, "Here")
    a_model(two, "There")
    Table("loose", one.metadata, Column("id", Integer))
    db = make(ScopedSession(model_class=one, binds={two: "audit"}))
    assert created(db) == {"here": "default", "there": "audit", "loose": "default"}


def test_a_join_of_tables_without_a_model(make):
    base = a_base()
    tables = [
        Table(name, base.metadata, Column("id", Integer, primary_key=True))
        for name in ("left", "right")
    ]
    both = type(
        "Both",
        (base,),
        {
            "__table__": sa.join(*tables, tables[0].c.id == tables[1].c.id),
            "id": orm.column_property(*(table.c.id for table in tables)),
        },
    )
    db = make(ScopedSession(model_class=base, binds={both: "audit"}))
    assert created(db) == {"left": "audit", "right": "audit"}
    decoys(db, base.metadata)
    assert goes(db, sa.select(both)) == "audit"


def test_two_models_of_one_table(make):
    base = a_base()
    thing = a_model(base, "Thing", __bind_key__="audit")
    view = type("View", (base,), {"__table__": thing.__table__})
    db = make(ScopedSession(model_class=base))
    assert created(db) == {"thing": "audit"}
    decoys(db, base.metadata)
    assert goes(db, sa.select(view)) == "audit"
    with sent(db) as seen:
        db.session.add(view())
        db.session.flush()
    assert seen == {"audit"}
    type("Other", (base,), {"__table__": thing.__table__, "__bind_key__": "reports"})
    with pytest.raises(ConfigError, match="'thing' is placed in the binds 'audit' and"):
        db.create_all()


# Contradictions and mistakes


@pytest.mark.parametrize(
    ("way", "binds"),
    [
        (key_of_a_class, lambda thing: {thing: "reports"}),
        (info_of_a_table, lambda thing: {thing.__table__: "reports"}),
        (info_of_a_metadata, lambda thing: {thing.metadata: "reports"}),
        (info_of_a_metadata, lambda thing: {thing.__base__: "reports"}),
    ],
)
def test_two_words_for_one_thing(make, way, binds):
    base, thing, _ = way(a_base())
    db = make(ScopedSession(model_class=base, binds=binds(thing)))
    for use in (
        db.create_all,
        lambda: db.session.execute(sa.select(thing)),
        lambda: db.session.execute(thing.__table__.insert()),
    ):
        with pytest.raises(
            ConfigError, match=r"the binds 'audit' and 'reports'\. Name"
        ):
            use()


@pytest.mark.parametrize("key", [5, "", ["audit"]])
def test_a_key_that_is_no_name(make, key):
    base = a_base()
    thing = a_model(base, "Thing", __bind_key__=key)
    db = make(ScopedSession(model_class=base))
    for use in (db.create_all, lambda: db.session.execute(sa.select(thing))):
        with pytest.raises(ConfigError, match="Thing: __bind_key__ and info.* must be"):
            use()


@pytest.mark.parametrize("way", [key_of_a_class, info_of_a_table, info_of_a_metadata])
@pytest.mark.parametrize("names", [["default"], ["default", "reports"]])
def test_a_bind_that_is_not_configured(make, way, names):
    """The table or model is named, and nothing is created or sent anywhere."""
    base, thing, _ = way(a_base())
    a_model(base, "Plain", __bind_key__="default")
    db = make(ScopedSession(model_class=base), names)
    with pytest.raises(
        UnknownBind, match=r"no bind 'audit', where the table 'thing' bel"
    ):
        db.create_all()
    assert present(db) == {}
    decoys(db, base.metadata)
    for use in (
        lambda: db.session.execute(sa.select(thing)),
        lambda: db.session.execute(thing.__table__.insert()),
        lambda: (db.session.add(thing()), db.session.flush()),
    ):
        with (
            sent(db) as seen,
            pytest.raises(UnknownBind, match="'audit', where '(T|t)hing'"),
        ):
            use()
        db.session.rollback()
        assert seen == set()
    db.create_all("default")


# The session


def test_one_database_leaves_the_session_alone(make):
    """With one database for all, ``get_bind()`` is SQLAlchemy's own."""
    base = a_base()
    a_model(base, "Thing")
    a_model(base, "Other", __bind_key__=None)
    db = make(ScopedSession(model_class=base), ["default"])
    assert type(db.session()).get_bind is Session.get_bind


def test_a_session_class_that_routes(make):
    """It comes first, and has our answer by ``super()``."""

    class Routing(Session):
        asked = 0
        engines = models = None

        def get_bind(self, mapper=None, *, clause=None, **kw):
            Routing.asked += 1
            if clause is not None and clause.get_execution_options().get("reports"):
                return db.get_engine("reports")
            return super().get_bind(mapper, clause=clause, **kw)

    db = ScopedSession(
        model_class=Base,
        binds={AuditBase: "audit"},
        session_options={"class_": Routing},
    )
    make(db)
    decoys(db, Base.metadata, AuditBase.metadata)
    assert isinstance(db.session(), Routing)
    assert goes(db, Entry.__table__.insert()) == "audit"
    statement = sa.select(Entry).execution_options(reports=True)
    assert goes(db, statement) == "reports"
    assert Routing.asked >= 2


def test_what_a_session_is_told_itself(two):
    """``bind_mapper()``, ``bind_table()`` and ``binds`` count more."""
    reports = two.get_engine("reports")
    two.session().bind_mapper(Entry, reports)
    assert goes(two, sa.select(Entry)) == "reports"
    assert goes(two, Entry.__table__.insert()) == "reports"
    two.session.remove()
    with two.sessionmaker(bind=reports, binds={}) as session:
        assert session.get_bind(Entry) is reports
    with two.sessionmaker(binds={User: reports}) as session:
        assert session.get_bind(User) is reports
        assert session.get_bind(Entry) is two.engine


def test_a_session_of_one_connection(two):
    """The default bind is replaced, and the others are as they were."""
    with two.engine.connect() as connection:
        two.session.configure(bind=connection)
        try:
            assert two.session.get_bind() is connection
            assert two.session.get_bind(User) is connection
            assert two.session.get_bind(Entry) is two.get_engine("audit")
        finally:
            two.session.session_factory.kw.clear()
            two.session.remove()


def test_the_session_of_a_bind(two):
    """It is bound to that one alone, whatever the models say."""
    reports = two.get_session("reports")
    for model in (User, Entry):
        with sent(two) as seen:
            reports.execute(model.__table__.insert())
            reports.add(model())
            reports.flush()
        assert seen == {"reports"}


def test_a_removed_session_of_several_databases(two):
    session = two.session()
    two.session.remove()
    for use in (
        lambda: session.execute(sa.select(Entry)),
        lambda: session.execute(Entry.__table__.insert()),
        lambda: session.get(User, 1),
    ):
        with pytest.raises(SessionRemoved):
            use()


def test_listeners_hear_sessions_of_several_databases(two):
    """Those from before the first session, and those from after it."""
    heard = []
    event.listen(two.session, "after_flush", lambda *_: heard.append("before"))
    two.session()
    event.listen(two.session, "after_flush", lambda *_: heard.append("after"))
    two.session.add(Entry())
    two.session.flush()
    assert heard == ["before", "after"]


def test_without_a_default_bind(make):
    db = make(
        ScopedSession(model_class=a_base(), binds={AuditBase: "audit"}), ["audit"]
    )
    db.create_all()
    assert goes(db, Entry.__table__.insert()) == "audit"
    assert goes(db, sa.select(Entry)) == "audit"
    for use in (
        lambda: db.session.execute(text("SELECT 1")),
        lambda: db.session.get_bind(),
    ):
        with pytest.raises(sa_exc.UnboundExecutionError):
            use()


# create_all(), drop_all(), reflect()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["entry", "user"]),
        ({"bind": None}, ["entry", "user"]),
        ({"bind": "audit"}, ["entry"]),
        ({"bind": ["audit"]}, ["entry"]),
        ({"bind": ("default", "reports")}, ["user"]),
        ({"bind": [None, "audit"]}, ["entry", "user"]),
        ({"bind": []}, []),
        ({"bind_key": "__all__"}, ["entry", "user"]),
        ({"bind_key": None}, ["user"]),
        ({"bind_key": "audit"}, ["entry"]),
        ({"bind_key": ["audit", None]}, ["entry", "user"]),
    ],
    ids=str,
)
def test_of_some_binds(make, arguments, expected):
    db = make(ScopedSession(model_class=Base, binds={AuditBase: "audit"}))
    assert sorted(created(db, **arguments)) == expected
    db.create_all()
    db.drop_all(**arguments)
    assert present(db).keys() == {"user", "entry"} - set(expected)


@pytest.mark.parametrize("how", ["create_all", "drop_all", "reflect"])
def test_wrong_binds(make, how):
    db = make(ScopedSession(model_class=Base, binds={AuditBase: "audit"}))
    call = getattr(db, how)
    for wrong in (5, [5], b"audit", {"bind": 1, "x": object()}):
        with pytest.raises((ConfigError, UnknownBind), match="bind"):
            call(wrong)
    with pytest.raises(ConfigError, match="not both"):
        call("audit", bind_key="audit")
    for unknown in ("nope", ["audit", "nope"]):
        with pytest.raises(UnknownBind, match="'nope'"):
            call(unknown)
    assert present(db) == {}


def test_reflect(make):
    """Tables are found in their own bind, and statements for them go there."""
    base = a_base()
    entry = a_model(base, "Entry", __bind_key__="audit")
    db = make(ScopedSession(model_class=base))
    db.create_all()
    for name in NAMES:
        key = "INTEGER" if name == "reports" else "INTEGER REFERENCES entry(id)"
        with db.get_engine(name).begin() as connection:
            connection.execute(
                text(f"CREATE TABLE in_{name} (id INTEGER, entry {key})")
            )
    db.reflect()
    assert {*db.metadata.tables} == {"entry", "in_default"}
    found = {name: {*metadata.tables} for name, metadata in db.metadatas.items()}
    assert found == {
        None: {"in_default"},
        "audit": {"entry", "in_audit"},
        "reports": {"in_reports"},
    }
    for name in ("default", "audit", "reports"):
        key = None if name == "default" else name
        assert goes(db, sa.select(db.metadatas[key].tables[f"in_{name}"])) == name
    assert goes(db, sa.select(entry)) == "audit"
    db.reflect()
    before = present(db)
    db.create_all()
    assert present(db) == before


def test_reflect_one(make):
    db = make(ScopedSession(model_class=a_base(), binds={AuditBase: "audit"}))
    for engine in db.engines.values():
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE found (id INTEGER)"))
    db.reflect("reports")
    assert [*db.metadata.tables] == []
    assert [*db.metadatas["reports"].tables] == ["found"]


def test_reflect_finds_no_table_twice(make):
    bases = [a_base(), a_base(), a_base()]
    for number, base in enumerate(bases):
        a_model(base, f"Thing{number}")
    binds = dict.fromkeys(bases[1:], "audit")
    db = make(ScopedSession(model_class=bases[0], binds=binds))
    db.create_all()
    db.reflect()
    assert [*bases[1].metadata.tables] == ["thing1"]
    assert {*db.metadatas["audit"].tables} == {"thing1", "thing2"}


# Migrations


def test_each_bind_has_a_metadata(two):
    """A base's own where it is all that the bind has."""
    assert set(two.metadatas) == {None, "audit", "reports"}
    assert two.metadatas[None] is Base.metadata
    assert two.metadatas["audit"] is AuditBase.metadata
    assert [*two.metadatas["reports"].tables] == []
    own = Table("own", two.metadatas["reports"], Column("id", Integer))
    assert created(two)["own"] == "reports"
    assert goes(two, sa.select(own)) == "reports"


def test_two_bases_of_one_bind(make):
    """None is lost: the metadata has the tables of both."""
    bases = [a_base(), a_base(), a_base()]
    for number, base in enumerate(bases):
        a_model(base, f"Thing{number}")
    db = make(
        ScopedSession(model_class=bases[0], binds=dict.fromkeys(bases[1:], "audit"))
    )
    assert {*db.metadatas["audit"].tables} == {"thing1", "thing2"}
    assert db.metadatas[None] is bases[0].metadata
    also = make(ScopedSession(model_class=bases[0], binds={bases[1]: "default"}))
    assert {*also.metadatas[None].tables} == {"thing0", "thing1"}


def test_two_tables_of_one_name_in_one_bind(make):
    one, two = a_base(), a_base()
    a_model(one, "Thing")
    a_model(two, "Thing")
    db = make(ScopedSession(model_class=one, binds={two: "default"}))
    with pytest.raises(ConfigError, match="'default' has two tables 'thing'"):
        _ = db.metadatas


def test_metadatas_outside_of_a_context():
    """The binds that models name; which ones are configured is not known."""
    db = ScopedSession(model_class=Base, binds={AuditBase: "audit"})
    assert dict(db.metadatas) == {None: Base.metadata, "audit": AuditBase.metadata}


def test_metadatas_without_a_model_class(make):
    """An empty one would make a migration tool drop all tables."""
    db = make(ScopedSession())
    for use in (lambda: db.metadatas, db.create_all, db.drop_all, db.reflect):
        with pytest.raises(SetupError, match="There is no model class"):
            use()


def test_a_multi_database_migration(make):
    """Alembic finds what ``create_all()`` makes, in each database, and no more."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    convention = {
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s",
    }
    base, second = a_base(metadata=MetaData(naming_convention=convention)), a_base()
    parent = a_model(base, "Parent", __bind_key__="audit")
    a_model(base, "Child", parent=parent, name=mapped_column(sa.String(9), index=True))
    a_model(base, "Plain", kind=mapped_column(sa.Enum("a", "b", name="kind")))
    a_model(second, "Second")
    db = make(ScopedSession(model_class=base, binds={second: "audit"}))

    def differences():
        found = {}
        for name, engine in db.engines.items():
            metadata = db.metadatas[None if name == "default" else name]
            with engine.connect() as connection:
                context = MigrationContext.configure(connection)
                found[name] = {
                    each[1].name
                    for each in compare_metadata(context, metadata)
                    if each[0] == "add_table"
                } or compare_metadata(context, metadata)
        return found

    assert differences() == {
        "default": {"plain"},
        "audit": {"parent", "child", "second"},
        "reports": [],
    }
    db.create_all()
    assert differences() == {"default": [], "audit": [], "reports": []}
