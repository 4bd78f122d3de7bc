"""The drop-in has Flask-SQLAlchemy's API, on this package's engines and sessions.

Flask-SQLAlchemy's own tests run on it as well: ``make test-flask-sqlalchemy``. Here is
what those do not ask for.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import StaticPool
from werkzeug.exceptions import NotFound

from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import SetupError
from flask_scopedsession.errors import UnknownBind
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy
from flask_scopedsession.flask_sqlalchemy import track_modifications
from flask_scopedsession.flask_sqlalchemy.model import BindMixin
from flask_scopedsession.flask_sqlalchemy.model import Model
from flask_scopedsession.flask_sqlalchemy.model import NameMixin
from flask_scopedsession.flask_sqlalchemy.query import Query
from flask_scopedsession.flask_sqlalchemy.record_queries import get_recorded_queries
from flask_scopedsession.flask_sqlalchemy.session import Session
from flask_scopedsession.flask_sqlalchemy.track_modifications import models_committed

MakeApp = Callable[..., Flask]


class Shop:
    """An application with a model in each of two databases, and some rows."""

    def __init__(
        self, make_app: MakeApp, config: dict[str, Any] | None = None, **options: Any
    ) -> None:
        class Base(DeclarativeBase):
            pass

        self.db = db = SQLAlchemy(model_class=Base, **options)

        class User(db.Model):
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        class LogEntry(db.Model):
            __bind_key__ = "log"
            id: Mapped[int] = mapped_column(primary_key=True)

        self.User: Any = User
        self.LogEntry: Any = LogEntry
        self.app = make_app(
            db,
            SQLALCHEMY_DATABASE_URI="sqlite://",
            SQLALCHEMY_BINDS={"log": "sqlite://"},
            SQLALCHEMY_RECORD_QUERIES=True,
            SQLALCHEMY_TRACK_MODIFICATIONS=True,
            **(config or {}),
        )
        with self.app.app_context():
            db.create_all()
            db.session.add_all(User(name=f"user {number}") for number in range(45))
            db.session.commit()


@pytest.fixture
def shop(make_app: MakeApp) -> Shop:
    return Shop(make_app)


@pytest.fixture
def context(shop: Shop) -> Iterator[None]:
    with shop.app.app_context():
        yield


def run(source: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


# Models


def test_a_base_keeps_its_methods_and_their_super() -> None:
    class Named:
        def label(self) -> str:
            return "named"

    class Base(Named, DeclarativeBase):
        def label(self) -> str:
            return f"base, {super().label()}"

        def __repr__(self) -> str:
            return "the base's own"

    db = SQLAlchemy(model_class=Base)

    class Person(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)

    assert issubclass(db.Model, Base)
    assert Person().label() == "base, named"
    assert repr(Person()) == "the base's own"


def test_a_base_with_the_mixins_is_the_model_class_itself(make_app: MakeApp) -> None:
    """So that mypy knows the base of each model, which ``db.Model`` cannot give it."""

    class Base(BindMixin, NameMixin, Model, DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=Base)

    class UserRole(Base):
        id: Mapped[int] = mapped_column(primary_key=True)

    class Entry(Base):
        __bind_key__ = "log"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert db.Model is Base
    assert UserRole.__table__ is db.metadatas[None].tables["user_role"]
    assert Entry.__table__ is db.metadatas["log"].tables["entry"]
    app = make_app(db, SQLALCHEMY_BINDS={None: "sqlite://", "log": "sqlite://"})
    with app.app_context():
        db.create_all()
        assert UserRole.query.all() == Entry.query.all() == []


@pytest.mark.parametrize(
    "style",
    [
        "old",
        "declarative",
        pytest.param(
            "no meta",
            marks=pytest.mark.skipif(
                sa.__version__ == "2.0.0", reason="it has no abstract models of these"
            ),
        ),
    ],
)
def test_the_name_of_a_table_is_that_of_its_class(style: str) -> None:
    bases: dict[str, Any] = {
        "old": Model,
        "declarative": type("Base", (DeclarativeBase,), {}),
        "no meta": type("Base", (orm.DeclarativeBaseNoMeta,), {}),
    }
    db = SQLAlchemy(model_class=bases[style])

    class HTTPRequest(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)

    class Get(HTTPRequest):
        """Has no key of its own, and so no table."""

    class PostRequest(HTTPRequest):
        id = sa.Column(sa.ForeignKey(HTTPRequest.id), primary_key=True)

    assert HTTPRequest.__tablename__ == Get.__tablename__ == "http_request"
    assert list(db.metadata.tables) == ["http_request", "post_request"]


def test_a_table_with_a_metadata_is_where_that_is() -> None:
    """``__bind_key__`` is for models that do not say where their table is."""
    db = SQLAlchemy()
    table = db.Table("user", db.Column("id", db.Integer, primary_key=True))

    class User(db.Model):
        __bind_key__ = "log"
        __table__ = table

    app = Flask(__name__)
    app.config["SQLALCHEMY_BINDS"] = {None: "sqlite://", "log": "sqlite://"}
    db.init_app(app)
    with app.app_context():
        db.create_all()
        assert db.session.get_bind(User) is db.engine
        assert User.query.all() == []
        db.dispose()


def test_names_that_flask_sqlalchemy_derives_stay(make_app: MakeApp) -> None:
    """Although the base says something else: another name would be another table."""

    class Base(DeclarativeBase):
        @orm.declared_attr.directive
        def __tablename__(cls) -> str:  # noqa: N805
            return f"{cls.__name__}s"

    db = SQLAlchemy(model_class=Base)

    class UserRole(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)

    class Again(db.Model):
        __table__ = UserRole.__table__

    assert UserRole.__tablename__ == UserRole.__table__.name == "user_role"
    assert Again.__tablename__ == "again"


def test_a_dataclass_can_have_a_ready_made_table() -> None:
    class Base(orm.MappedAsDataclass, DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=Base)
    table = db.Table(
        "user", db.Column("id", db.Integer, primary_key=True), bind_key="log"
    )

    class User(db.Model):
        __table__ = table

    class Admin(User):
        """In the table of its parent."""

    assert User.__table__ is Admin.__table__ is table
    assert User.metadata is db.metadatas["log"]


@pytest.mark.parametrize("mixin_first", [True, False])
def test_models_are_dataclasses_if_their_base_says_so(
    make_app: MakeApp, mixin_first: bool
) -> None:
    bases = (orm.MappedAsDataclass, DeclarativeBase)
    db = SQLAlchemy(model_class=type("Base", bases[:: 1 if mixin_first else -1], {}))

    class User(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str]

    with make_app(db).app_context():
        db.create_all()
        db.session.add(User("Ada"))
        db.session.commit()
        assert User.query.one() == User.query.filter_by(name="Ada").one()
        assert "name='Ada'" in repr(User("Ada"))


@pytest.mark.parametrize("style", ["old", "declarative"])
def test_concrete_inheritance(make_app: MakeApp, style: str) -> None:
    """Each child has a table with all columns, as in SQLAlchemy."""
    Base: Any = type("Base", (DeclarativeBase,), {})  # noqa: N806
    db = SQLAlchemy(model_class=Model if style == "old" else Base)

    class Animal(AbstractConcreteBase, db.Model):
        id = sa.Column(sa.Integer, primary_key=True)

    class Cat(Animal):
        lives = sa.Column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "cat", "concrete": True}  # noqa: RUF012

    class Dog(Animal):
        __mapper_args__ = {"polymorphic_identity": "dog", "concrete": True}  # noqa: RUF012

    with make_app(db).app_context():
        db.create_all()
        db.session.add_all([Cat(id=1, lives=9), Dog(id=1)])
        db.session.commit()
        found = db.session.scalars(sa.select(Animal)).all()
        assert {type(each) for each in found} == {Cat, Dog}


def test_a_model_shows_its_key(shop: Shop, context: None) -> None:
    user = shop.User(name="new")
    assert repr(user) == f"<User (transient {id(user)})>"
    shop.db.session.add(user)
    assert repr(user) == f"<User (pending {id(user)})>"
    shop.db.session.flush()
    assert repr(user) == "<User 46>"


def test_a_metadata_of_ones_own() -> None:
    own = sa.MetaData(naming_convention={"pk": "pk_%(table_name)s"})
    db = SQLAlchemy(metadata=own)
    assert db.Model.metadata is db.metadata is own
    assert db._make_metadata("log").naming_convention["pk"] == "pk_%(table_name)s"

    class Base(DeclarativeBase):
        pass

    with pytest.warns(DeprecationWarning, match="Set 'metadata' in that class"):
        assert SQLAlchemy(metadata=own, model_class=Base).metadata is Base.metadata


def test_names_can_be_left_to_the_models() -> None:
    db = SQLAlchemy(disable_autonaming=True)
    with pytest.raises(sa.exc.InvalidRequestError, match="__tablename__"):
        type("User", (db.Model,), {"id": sa.Column(sa.Integer, primary_key=True)})


def test_dynamic_relationships_have_the_methods_of_a_query(make_app: MakeApp) -> None:
    db = SQLAlchemy()

    class Page(db.Model):
        id = db.Column(db.Integer, primary_key=True)
        notes = db.relationship("Note", backref="page", lazy="dynamic")
        links = db.dynamic_loader("Link", backref=db.backref("page"))

    class Note(db.Model):
        id = db.Column(db.Integer, primary_key=True)
        page_id = db.Column(db.ForeignKey(Page.id))

    class Link(db.Model):
        id = db.Column(db.Integer, primary_key=True)
        page_id = db.Column(db.ForeignKey(Page.id))

    with make_app(db).app_context():
        db.create_all()
        db.session.add(Page(id=1, notes=[Note(), Note()]))
        db.session.commit()
        page = db.session.get(Page, 1)
        assert page.notes.paginate(per_page=1).pages == 2
        with pytest.raises(NotFound):
            page.links.first_or_404()


def test_a_reflected_table_is_where_it_was_found(shop: Shop, context: None) -> None:
    db = shop.db
    with db.engines["log"].begin() as connection:
        connection.execute(sa.text("CREATE TABLE thing (id INTEGER PRIMARY KEY)"))
    db.reflect("log")

    class Thing(db.Model):
        __table__ = db.metadatas["log"].tables["thing"]

    assert db.session.get_bind(Thing) is db.engines["log"]
    assert Thing.query.all() == []


def test_a_base_without_the_mixin_knows_binds(make_app: MakeApp) -> None:
    """Such a model is its own ``db.Model``, and Flask-SQLAlchemy cannot place it."""
    Base: Any = orm.declarative_base()  # noqa: N806

    class Here(Base):
        __tablename__ = "here"
        id = sa.Column(sa.Integer, primary_key=True)

    class There(Base):
        __tablename__ = "there"
        __bind_key__ = "log"
        id = sa.Column(sa.Integer, primary_key=True)

    db = SQLAlchemy(model_class=Base)
    binds = {None: "sqlite://", "log": "sqlite://"}
    with make_app(db, SQLALCHEMY_BINDS=binds).app_context():
        db.create_all()
        db.session.add_all([Here(id=1), There(id=2)])
        db.session.commit()
        assert db.session.scalars(sa.select(There.id)).all() == [2]
        tables = {key: sa.inspect(db.engines[key]).get_table_names() for key in binds}
        assert tables == {None: ["here"], "log": ["there"]}
        db.drop_all("log")
        assert sa.inspect(db.engines["log"]).get_table_names() == []
        assert db.session.scalars(sa.select(Here.id)).all() == [1]


def test_names_of_sqlalchemy() -> None:
    db = SQLAlchemy()
    assert db.Integer is sa.Integer
    assert db.joinedload is orm.joinedload
    assert db.event is sa.event
    assert db.sessionmaker is orm.sessionmaker
    assert isinstance(db.Table("t", db.Column("id", db.Integer)), sa.Table)
    with pytest.raises(AttributeError, match="has no attribute 'Intger'"):
        _ = db.Intger


# Binds


def test_options_are_for_the_default_bind_only(make_app: MakeApp) -> None:
    db = SQLAlchemy(engine_options={"pool_size": 3})
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///main.db",
        SQLALCHEMY_ENGINE_OPTIONS={"max_overflow": 1},
        SQLALCHEMY_BINDS={
            None: {"url": "sqlite:///unused.db", "pool_timeout": 7},
            "log": {"url": "sqlite:///log.db", "pool_size": 4},
        },
    )
    with app.app_context():
        pools: list[Any] = [db.engine.pool, db.engines["log"].pool]
        assert all(isinstance(pool, QueuePool) for pool in pools)
        assert [pool.size() for pool in pools] == [3, 4]
        assert [pool._max_overflow for pool in pools] == [1, 10]
        assert pools[0].timeout() == 7
        assert str(db.engine.url.database).endswith("main.db")


@pytest.mark.parametrize("url", ["sqlite://", sa.URL.create("sqlite")], ids=type)
@pytest.mark.parametrize("form", [lambda url: url, lambda url: {"url": url}])
def test_the_default_bind_can_be_among_the_others(
    make_app: MakeApp, url: Any, form: Callable[[Any], Any]
) -> None:
    db = SQLAlchemy()
    app = make_app(
        db, SQLALCHEMY_BINDS={None: form(url)}, SQLALCHEMY_ENGINE_OPTIONS=None
    )
    with app.app_context():
        assert list(db.engines) == [None]
        assert db.session.execute(sa.text("SELECT 1")).scalar() == 1


def test_mysql_gets_the_options_that_it_needs() -> None:
    db, app = SQLAlchemy(), Flask(__name__)
    options: dict[str, Any] = {"url": "mysql+pymysql://host/shop"}
    db._apply_driver_defaults(options, app)
    assert options["pool_recycle"] == 7200
    assert options["url"].query["charset"] == "utf8mb4"
    given = {"url": "mysql+pymysql://host/shop?charset=latin1", "pool_recycle": 60}
    db._apply_driver_defaults(options := dict(given), app)
    assert options == {**given, "url": sa.make_url(given["url"])}


def test_a_database_in_memory_is_one_connection(shop: Shop, context: None) -> None:
    """As in Flask-SQLAlchemy: tests see what the code under test has not committed."""
    db = shop.db
    assert isinstance(db.engine.pool, StaticPool)
    db.session.add(shop.User(id=1000, name="new"))
    db.session.flush()
    with shop.app.app_context():
        assert db.session.get(shop.User, 1000).name == "new"


def test_an_unknown_bind_is_every_error_that_it_was(shop: Shop, context: None) -> None:
    with pytest.raises(UnboundExecutionError, match="no bind 'nope'") as info:
        shop.db.create_all("nope")
    assert isinstance(info.value, UnknownBind | KeyError)
    with pytest.raises(KeyError):
        shop.db.engines["nope"]


def test_get_engine_is_deprecated(shop: Shop, context: None) -> None:
    db = shop.db
    with pytest.warns(DeprecationWarning, match=r"db\.engines\[key\]"):
        assert db.get_engine("log") is db.engines["log"]
    with pytest.warns(DeprecationWarning, match=r"db\.engines\[key\]"):
        assert db.get_engine(bind="log") is db.engines["log"]


def test_an_engine_can_be_replaced(shop: Shop) -> None:
    """Tests do so, in what was a private attribute. It is the one source of truth."""
    db = shop.db
    other = sa.create_engine("sqlite://", poolclass=StaticPool)
    with shop.app.app_context():
        session = db.session()
        db._app_engines[shop.app][None].dispose()
        db._app_engines[shop.app][None] = other
        assert db.engine is other
        assert session.get_bind(shop.User) is other
        db.create_all()
        assert sa.inspect(other).has_table("user")
        assert shop.User.query.all() == []
    other.dispose()


def test_engines_can_be_added_and_exchanged_as_a_whole(shop: Shop) -> None:
    """With the functions that made the first ones."""
    db, app = shop.db, shop.app
    options: dict[str, Any] = {**db._engine_options, "url": "sqlite://"}
    with app.app_context():
        session = db.session()
        for engine in db.engines.values():
            engine.dispose()
        db._apply_driver_defaults(options, app)
        assert options["poolclass"] is StaticPool
        made = {key: db._make_engine(key, options, app) for key in (None, "log", "b")}
        db._app_engines[app] = made
        db.create_all()
        assert session.get_bind(shop.User) is made[None]
        assert session.get_bind(shop.LogEntry) is made["log"]
        assert {pool.bind for pool in db.snapshot().pools} == {"default", "log"}
        assert shop.User.query.all() == shop.LogEntry.query.all() == []


def test_a_bind_can_have_a_pool_that_exists(make_app: MakeApp) -> None:
    db = SQLAlchemy()
    pool = StaticPool(creator=lambda: sqlite3.connect(":memory:"))
    binds = {None: "sqlite://", "log": {"url": "sqlite://", "pool": pool}}
    with make_app(db, SQLALCHEMY_BINDS=binds, SQLALCHEMY_ECHO=True).app_context():
        assert db.engines["log"].pool is pool
        with db.engines["log"].connect() as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1


def test_an_engine_can_be_made_by_a_subclass(make_app: MakeApp) -> None:
    class Own(SQLAlchemy):
        def _make_engine(
            self, bind_key: str | None, options: dict[str, Any], app: Flask
        ) -> sa.Engine:
            return super()._make_engine(bind_key, {**options, "echo": None}, app)

    db = Own()
    app = make_app(db, SQLALCHEMY_ECHO=True)
    with app.app_context():
        assert db.engine.echo is None
        assert db.engine.pool.echo is True


# Set-up


def test_an_app_has_one_extension(shop: Shop) -> None:
    app = shop.app
    assert app.extensions["sqlalchemy"] is shop.db
    assert app.extensions["scopedsession"] is shop.db
    with pytest.raises(SetupError, match="has a SQLAlchemy extension already"):
        SQLAlchemy(app)


def test_an_extension_can_be_replaced(shop: Shop, context: None) -> None:
    """In tests, in an application context that is in use."""
    old = shop.db.session()
    del shop.app.extensions["sqlalchemy"]
    db = SQLAlchemy(shop.app)
    assert db.session() is not old
    assert db.session.execute(sa.text("SELECT 1")).scalar() == 1
    db.session.remove()
    db.dispose()


def test_without_a_database_it_says_which_key_is_missing() -> None:
    with pytest.raises(SetupError, match="'SQLALCHEMY_DATABASE_URI' or"):
        SQLAlchemy(Flask(__name__))


def test_engines_end_with_the_app() -> None:
    db = SQLAlchemy()
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db.init_app(app)
    with app.app_context():
        pool = db.engine.pool
        closed: list[object] = []
        sa.event.listen(pool, "close", lambda *args: closed.append(args))
        db.session.execute(sa.text("SELECT 1"))
    del app
    gc.collect()
    assert len(closed) == 1


def test_a_wrong_key_is_refused_as_in_the_core(make_app: MakeApp) -> None:
    with pytest.raises(ConfigError, match="Did you mean SQLALCHEMY_DATABASE_URI"):
        make_app(SQLAlchemy(), SQLALCHEMY_DATABASE_URL="x", SQLALCHEMY_BINDS={"a": "b"})


def test_keys_of_flask_sqlalchemy_have_their_defaults(make_app: MakeApp) -> None:
    config = make_app(SQLAlchemy()).config
    assert config["SQLALCHEMY_TRACK_MODIFICATIONS"] is False
    assert config["SQLALCHEMY_BINDS"] == {}


def test_its_own_keys_are_not_reported(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    assert "RECORD_QUERIES" not in caplog.text
    assert "TRACK_MODIFICATIONS" not in caplog.text


# Sessions


def test_the_live_view_sees_its_sessions(shop: Shop) -> None:
    with shop.app.test_request_context("/"):
        shop.db.session.execute(sa.select(shop.User))
        snapshot = shop.db.snapshot()
        assert [session.state for session in snapshot.sessions] == ["holding"]
        assert {pool.bind for pool in snapshot.pools} == {"default", "log"}


def test_a_session_class_of_ones_own_gets_the_extension(make_app: MakeApp) -> None:
    class Own(Session):
        def __init__(self, db: SQLAlchemy, **options: Any) -> None:
            super().__init__(db, **options)
            self.info["db"] = db

        def get_bind(self, mapper: Any = None, clause: Any = None, **kw: Any) -> Any:
            return super().get_bind(mapper, clause, **kw)

    shop = Shop(make_app, session_options={"class_": Own, "expire_on_commit": False})
    with shop.app.app_context():
        session = shop.db.session()
        assert session.info["db"] is shop.db
        assert not session.expire_on_commit
        assert session.get_bind(shop.LogEntry) is shop.db.engines["log"]


def test_a_session_on_a_connection_rolls_a_test_back(make_app: MakeApp) -> None:
    """The recipe of many test suites."""
    # SQLite's driver does not begin before a savepoint.
    shop = Shop(make_app, {"SCOPEDSESSION_SQLITE_BEGIN": "DEFERRED"})
    db = shop.db
    usual = db.session
    with shop.app.app_context(), db.engine.connect() as connection:
        outer = connection.begin()
        db.session = db._make_scoped_session(
            options={
                "bind": connection,
                "binds": {},
                "join_transaction_mode": "create_savepoint",
            }
        )
        db.session.add(shop.User(name="in a test"))
        db.session.commit()
        session = db.session()
        outer.rollback()
    assert not session.identity_map  # the context has removed it
    db.session = usual
    with shop.app.app_context():
        named = sa.select(shop.User).where(shop.User.name == "in a test")
        assert db.session.execute(named).first() is None


def test_a_session_of_ones_own_knows_the_binds(shop: Shop, context: None) -> None:
    db = shop.db
    sessions = db._make_scoped_session({"autoflush": False})
    assert sessions() is sessions()
    assert not sessions().autoflush
    assert sessions.get_bind(shop.User) is db.engine
    assert sessions.get_bind(shop.LogEntry) is db.engines["log"]
    assert sessions.query(shop.LogEntry).all() == []
    sessions.remove()


def test_a_subclass_can_make_the_sessions(make_app: MakeApp) -> None:
    class Own(SQLAlchemy):
        def _make_scoped_session(self, options: Any) -> Any:
            return super()._make_scoped_session({**options, "info": {"own": True}})

    db = Own(session_options={"scopefunc": lambda: "one"})
    with make_app(db).app_context():
        session = db.session()
        assert session.info == {"own": True}
        session.execute(sa.text("SELECT 1"))
    assert not session.in_transaction()


# What views use


def test_404_with_a_description(shop: Shop, context: None) -> None:
    db, User = shop.db, shop.User  # noqa: N806
    assert db.get_or_404(User, 1).name == "user 0"
    for missing in (
        lambda: db.get_or_404(User, 99, description="gone"),
        lambda: db.first_or_404(
            sa.select(User).where(User.id == 99), description="gone"
        ),
        lambda: db.one_or_404(sa.select(User), description="gone"),
        lambda: User.query.filter_by(id=99).first_or_404("gone"),
        lambda: User.query.one_or_404("gone"),
    ):
        with pytest.raises(NotFound) as info:
            missing()
        assert info.value.description == "gone"


@pytest.mark.parametrize("legacy", [False, True])
def test_pages(shop: Shop, legacy: bool) -> None:
    def page() -> Any:
        if legacy:
            return shop.User.query.order_by("id").paginate(max_per_page=10)
        return shop.db.paginate(sa.select(shop.User).order_by("id"), max_per_page=10)

    with shop.app.test_request_context("/?page=5&per_page=50"):
        last = page()
        assert [user.id for user in last] == [41, 42, 43, 44, 45]
        assert (last.page, last.pages, last.total) == (5, 5, 45)
        assert (last.first, last.last) == (41, 45)
        assert list(last.iter_pages(left_edge=1, left_current=1)) == [1, None, 4, 5]
        assert [user.id for user in last.prev()] == list(range(31, 41))
    with shop.app.test_request_context("/?page=6"), pytest.raises(NotFound):
        page()


def test_a_page_without_an_end_is_empty_if_asked(shop: Shop, context: None) -> None:
    page = shop.db.paginate(
        sa.select(shop.User), page=9, per_page=0, error_out=False, count=False
    )
    assert (page.items, page.per_page, page.total, page.pages) == ([], 20, None, 0)


def test_the_pages_of_the_core_are_there_as_well(shop: Shop, context: None) -> None:
    """Of rows, and of entities that a join repeats."""
    db, User = shop.db, shop.User  # noqa: N806
    rows = sa.select(User.id, User.name).order_by(User.id)
    assert db.paginate(rows, per_page=2).items == [1, 2]
    page = super(SQLAlchemy, db).paginate(rows, per_page=2)
    assert page.items == [(1, "user 0"), (2, "user 1")]
    again = orm.aliased(User)
    joined = sa.select(User).join(again, again.id > 40).order_by(User.id)
    page = super(SQLAlchemy, db).paginate(joined, per_page=2)
    assert [user.id for user in page] == [1, 2]
    assert page.total == 45


def test_query_classes(make_app: MakeApp) -> None:
    class Own(Query[Any]):
        pass

    class Special(Own):
        pass

    shop = Shop(make_app, query_class=Own)
    shop.LogEntry.query_class = Special
    with shop.app.app_context():
        assert type(shop.User.query) is type(shop.db.session.query(shop.User)) is Own
        assert type(shop.LogEntry.query) is Special


# Development


def test_statements_are_recorded_with_the_line(make_app: MakeApp) -> None:
    db = SQLAlchemy()
    app = make_app(db, import_name=__name__, SQLALCHEMY_RECORD_QUERIES=True)
    with app.app_context():
        db.session.execute(sa.text("SELECT :n"), {"n": 7}).scalar()
        [query] = get_recorded_queries()
    assert query.statement == "SELECT ?"
    assert query.parameters == [(7,)]
    assert query.duration >= 0
    assert f"{__file__}:" in query.location
    assert "(test_statements_are_recorded_with_the_line)" in query.location
    with app.app_context():
        assert get_recorded_queries() == []


def test_signals_tell_what_was_committed(shop: Shop, context: None) -> None:
    db, heard = shop.db, []

    def hear(sender: Flask, changes: list[tuple[Any, str]]) -> None:
        heard.append([(type(each).__name__, what) for each, what in changes])

    with models_committed.connected_to(hear, shop.app):
        db.session.add(shop.User(name="lost"))
        db.session.flush()
        db.session.rollback()
        db.session.commit()
        user = db.session.get(shop.User, 1)
        user.name = user.name  # no change
        db.session.delete(db.session.get(shop.User, 2))
        db.session.commit()
    assert heard == [[("User", "delete")]]


def test_signals_of_a_session_in_the_place_of_one_that_was_freed() -> None:
    """It has the same id, and SQLAlchemy still knows the listeners of the other."""
    makers = [orm.sessionmaker() for _ in range(20)]
    ids = set()
    for maker in makers:
        session = orm.scoped_session(maker)
        ids.add(id(session))
        track_modifications.listen(session)
        assert list(maker().dispatch.before_flush)
        del session
    assert len(ids) < len(makers)


def test_the_shell_has_the_models(shop: Shop, context: None) -> None:
    names = shop.app.make_shell_context()
    assert names["db"] is shop.db
    assert names["User"] is shop.User


def test_names_of_version_2_say_where_they_are_now() -> None:
    with pytest.raises(ImportError, match=r"flask_sqlalchemy\.query\.Query"):
        from flask_scopedsession.flask_sqlalchemy import BaseQuery  # noqa: F401


# Commands


@pytest.mark.parametrize("bind", ["default", "log"])
def test_db_ping_knows_the_binds_by_name(shop: Shop, bind: str) -> None:
    """The default one, too, whose key is ``None`` here."""
    invoke = shop.app.test_cli_runner().invoke
    pings = json.loads(invoke(args=["db-ping", "--json"]).output)["pings"]
    assert [each["bind"] for each in pings] == ["default", "log"]
    result = invoke(args=["db-ping", "--bind", bind])
    assert result.exit_code == 0
    assert re.search(rf"^{bind} .*sqlite", result.output, re.MULTILINE)
    result = invoke(args=["db-ping", "--bind", "audit"])
    assert "There is no bind 'audit'. Binds: default, log." in result.output


# The name flask_sqlalchemy


@pytest.mark.subprocess
def test_it_costs_nothing_unless_it_is_imported() -> None:
    source = (
        "import sys, flask_scopedsession; "
        "print([name for name in sys.modules if 'flask_sqlalchemy' in name])"
    )
    assert run(source).strip() == "[]"


FIRST = """
from flask_scopedsession.flask_sqlalchemy import install_as_flask_sqlalchemy
install_as_flask_sqlalchemy()
install_as_flask_sqlalchemy()
"""
USE = """
import flask_sqlalchemy.session, flask_sqlalchemy.track_modifications
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from flask_scopedsession import ScopedSession
import library
print(issubclass(SQLAlchemy, ScopedSession), library.SQLAlchemy is SQLAlchemy)
print(library.renamed is Session, library.fsa.SQLAlchemy is SQLAlchemy)
"""
LIBRARY = """
import flask_sqlalchemy as fsa
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session as renamed
"""


@pytest.fixture(params=["real", "stand-in"])
def libraries(request: pytest.FixtureRequest, short_tmp: Any) -> str:
    """A folder with a library that imports flask_sqlalchemy as it is imported."""
    if request.param == "real":
        pytest.importorskip("flask_sqlalchemy")
    else:
        package = short_tmp / "flask_sqlalchemy"
        package.mkdir()
        (package / "__init__.py").write_text("from .extension import SQLAlchemy")
        (package / "extension.py").write_text("class SQLAlchemy: pass")
        (package / "session.py").write_text("class Session: pass")
    (short_tmp / "library.py").write_text(LIBRARY)
    (short_tmp / "user.py").write_text(
        "import flask_sqlalchemy\ndb = flask_sqlalchemy.SQLAlchemy()"
    )
    (short_tmp / "subclass.py").write_text(
        "import flask_sqlalchemy\nclass Own(flask_sqlalchemy.SQLAlchemy): pass"
    )
    return os.pathsep.join([str(short_tmp), *sys.path])


@pytest.mark.subprocess
@pytest.mark.parametrize("before", ["", "import library\n"], ids=["first", "sorted"])
def test_libraries_find_it_as_flask_sqlalchemy(libraries: str, before: str) -> None:
    """Also those that have imported the real one by then."""
    found = run(before + FIRST + USE, PYTHONPATH=libraries)
    assert found.split() == ["True"] * 4, found


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("subclass", "the class subclass.Own inherits from it"),
        ("user", "user.db is an object of it"),
    ],
)
def test_the_real_one_is_not_replaced_where_it_is_in_use(
    libraries: str, module: str, use: str
) -> None:
    found = run(f"import {module}{FIRST}", PYTHONPATH=libraries)
    assert f"is in use: {use}. Call install_as_flask_sqlalchemy() before" in found


HEAR = """
from flask_sqlalchemy.track_modifications import models_committed

@models_committed.connect
def hear(app, changes):
    print("heard", [what for _, what in changes])
"""
COMMIT = """
from flask import Flask
app = Flask("app")
app.config.update(
    SQLALCHEMY_DATABASE_URI="sqlite://", SQLALCHEMY_TRACK_MODIFICATIONS=True
)
db = SQLAlchemy(app)
class User(db.Model):
    id = db.Column(db.Integer, primary_key=True)
with app.app_context():
    db.create_all()
    db.session.add(User())
    db.session.commit()
db.dispose(app)
"""


@pytest.mark.subprocess
def test_who_has_connected_to_the_real_signals_hears_ours() -> None:
    """A signal is no name that could be replaced: it has its receivers."""
    pytest.importorskip("flask_sqlalchemy")
    found = run(HEAR + FIRST + "from flask_sqlalchemy import SQLAlchemy" + COMMIT)
    assert found == "heard ['insert']\n"
