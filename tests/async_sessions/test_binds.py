"""``SQLALCHEMY_ASYNC_BINDS``: what it accepts, several databases, what is missing."""

from __future__ import annotations

import sys

import pytest
from flask import Flask
from models import Base
from models import User
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import Session

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import IsolationError
from flask_scopedsession.errors import UnknownBind
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy
from flask_scopedsession.testing import isolate

MEMORY = "sqlite+aiosqlite://"


@pytest.mark.parametrize(
    ("binds", "says"),
    [
        ("sqlite://", "SQLALCHEMY_ASYNC_BINDS must map names to URLs"),
        ({"": MEMORY}, "a bind's name must be a non-empty string"),
        ({"a": {"pool_size": 2}}, r"SQLALCHEMY_ASYNC_BINDS\['a'\] must be a URL"),
        ({"a": "sqlite:///x.db"}, "'sqlite', which is not async. Use an async driver,"),
        ({"a": "postgresql+psycopg2://"}, r"such as 'postgresql\+asyncpg', or move it"),
        ({"a": {"url": "mysql+pymysql://"}}, r"\['a'\]\['url'\] .*'mysql\+aiomysql'"),
        ({"a": "posgresql+asyncpg://h/x"}, "Did you mean 'postgresql"),
        ({"a": {"url": MEMORY, "pool_size": 2}}, "pool_size cannot be used"),
        ({"a": {"url": MEMORY, "poolclass": "NullPool"}}, "poolclass cannot be used"),
        ({"a": {"url": MEMORY, "echo": "x"}}, "echo"),
        ({"a": {"url": MEMORY, "colour": 1}}, "does not accept colour"),
    ],
)
def test_refused(make_app, binds, says):
    """The key, the fact and the remedy; as for ``SQLALCHEMY_BINDS``."""
    with pytest.raises(ConfigError, match=says):
        make_app(SQLALCHEMY_ASYNC_BINDS=binds)


def test_one_name_in_the_live_view(make_app):
    with pytest.raises(ConfigError, match=r"BINDS\[None\] by this name"):
        make_app(
            SQLALCHEMY_BINDS={"default": "sqlite://", "async:default": "sqlite://"},
            SQLALCHEMY_ASYNC_BINDS={None: MEMORY},
        )


def test_from_the_environment(make_app, monkeypatch):
    db = ScopedSession()
    monkeypatch.setenv("FLASK_SQLALCHEMY_ASYNC_BINDS__default", MEMORY)
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", "sqlite://")
    from flask import Flask

    app = Flask("environment")
    app.config.from_prefixed_env()
    db.init_app(app)

    async def work():
        return await db.async_session.scalar(text("SELECT 1"))

    with app.app_context():
        assert app.ensure_sync(work)() == 1


def test_changed_late(make_app):
    """As with another database for ``db.session``."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_ASYNC_BINDS={"default": MEMORY})
    app.config["SQLALCHEMY_ASYNC_BINDS"] = {"default": "sqlite+aiosqlite:///x.db"}

    async def work():
        with pytest.raises(ConfigError, match=r"ASYNC_BINDS\['default'\] was changed"):
            db.async_session()

    with app.app_context():
        app.ensure_sync(work)()


def test_several_databases(make_app):
    """Models go where they belong; a session of one bind stays there."""

    class Entry(Base):
        __tablename__ = "entry"
        __table_args__ = ({"extend_existing": True},)
        id: Mapped[int] = mapped_column(primary_key=True)

    class Lost(Base):
        __tablename__ = "lost"
        id: Mapped[int] = mapped_column(primary_key=True)

    binds = {Entry: "audit", Lost: "nowhere"}
    db = ScopedSession(model_class=Base, binds=binds)
    try:
        app = make_app(
            db,
            SQLALCHEMY_DATABASE_URI="sqlite:///:memory:",
            SQLALCHEMY_BINDS={"audit": "sqlite://", "nowhere": "sqlite://"},
            SQLALCHEMY_ASYNC_BINDS={"default": MEMORY, "audit": MEMORY},
        )

        async def work():
            for name in (None, "audit"):
                session = db.get_async_session(name)
                await (await session.connection()).run_sync(Base.metadata.create_all)
                await session.commit()
            db.async_session.add_all([Entry(id=1), User(name="ed")])
            await db.async_session.commit()
            audit = db.get_async_session("audit")
            assert audit is db.get_async_session("audit")
            assert db.get_async_session() is db.async_session()
            assert (await audit.scalars(select(Entry.id))).all() == [1]
            assert (await audit.scalars(select(User.id))).all() == []
            with pytest.raises(UnknownBind, match="SQLALCHEMY_ASYNC_BINDS"):
                await db.async_session.execute(select(Lost))

        with app.app_context():
            app.ensure_sync(work)()
            pools = {each.bind: each.used for each in db.snapshot().pools}
        assert pools.keys() >= {"async:default", "async:audit"}
        assert set(pools.values()) == {0}
    finally:
        for each in (Entry, Lost):
            Base.metadata.remove(each.__table__)
            each.registry._dispose_cls(each)


def test_a_class_that_routes(make_app):
    """The session of another bind is bound to that bind alone."""

    class Routing(Session):
        def get_bind(self, mapper=None, **_):
            raise AssertionError(f"{mapper} was routed")

    db = ScopedSession(model_class=Base, session_options={"class_": Routing})
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite://",
        SQLALCHEMY_ASYNC_BINDS={"default": MEMORY, "audit": MEMORY},
    )

    async def work():
        audit = db.get_async_session("audit")
        await (await audit.connection()).run_sync(Base.metadata.create_all)
        audit.add(User(name="a"))
        await audit.commit()
        assert (await audit.scalars(select(User.name))).all() == ["a"]

    with app.app_context():
        app.ensure_sync(work)()


def test_a_database_in_memory_for_both(make_app):
    """One with a name is the same for ``db.session``, which can create the tables."""
    db = ScopedSession(model_class=Base)
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///file:/shop?vfs=memdb&uri=true",
        SQLALCHEMY_ASYNC_BINDS={
            "default": "sqlite+aiosqlite:///file:/shop?vfs=memdb&uri=true"
        },
        SCOPEDSESSION_SQLITE_PRAGMAS={"foreign_keys": True},
        SCOPEDSESSION_SQLITE_BEGIN="IMMEDIATE",
    )

    async def work():
        db.async_session.add(User(name="ed"))
        await db.async_session.commit()
        return await db.async_session.scalar(text("PRAGMA foreign_keys"))

    with app.app_context():
        db.create_all()
        assert app.ensure_sync(work)() == 1
        assert db.session.scalars(select(User.name)).all() == ["ed"]


def test_a_session_class_and_options(make_app):
    """Those of ``db.session`` do the work of the async session."""

    class Own(Session):
        def close(self):
            self.execute(text("SELECT 1"))
            super().close()
            self.execute(text("SELECT 1"))

    options = {"class_": Own, "autoflush": False}
    db = ScopedSession(session_options=options)
    app = make_app(db, SQLALCHEMY_ASYNC_BINDS={"default": MEMORY})

    async def work():
        assert isinstance(db.async_session().sync_session, Own)
        assert db.async_session.autoflush is False
        assert db.async_session().sync_session.expire_on_commit is False
        await db.async_session.execute(text("SELECT 1"))

    with app.app_context():
        app.ensure_sync(work)()
        assert {each.used for each in db.snapshot().pools} == {0}


def test_the_drop_in(make_app):
    """Flask-SQLAlchemy's API has async sessions, too, and its models their binds."""
    db = SQLAlchemy(model_class=type("Own", (DeclarativeBase,), {}))

    class Kept(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)

    class Audit(db.Model):
        __bind_key__ = "audit"
        id: Mapped[int] = mapped_column(primary_key=True)

    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite://",
        SQLALCHEMY_BINDS={"audit": "sqlite://"},
        SQLALCHEMY_ASYNC_BINDS={"default": MEMORY, "audit": MEMORY},
    )

    async def work():
        for name in (None, "audit"):
            session = db.get_async_session(name)
            create = db.metadatas[name].create_all
            await (await session.connection()).run_sync(create)
            await session.commit()
        db.async_session.add_all([Kept(id=1), Audit(id=2)])
        await db.async_session.commit()
        audit = db.get_async_session("audit")
        assert await db.async_session.scalar(select(Kept.id)) == 1
        assert await audit.scalar(select(Audit.id)) == 2

    with app.app_context():
        app.ensure_sync(work)()
        assert {each.used for each in db.snapshot().pools} == {0}


@pytest.mark.parametrize("scopefunc", ["thread", lambda: "one"])
def test_other_scopes(make_app, scopefunc):
    """An async session ends with its function in any case."""
    db = ScopedSession(scopefunc=scopefunc)
    app = make_app(db, SQLALCHEMY_ASYNC_BINDS={"default": MEMORY})

    @app.get("/")
    async def view():
        db.session.execute(text("SELECT 1"))
        await db.async_session.execute(text("SELECT 1"))
        return "fine"

    assert app.test_client().get("/").text == "fine"
    with app.app_context():
        assert {each.used for each in db.snapshot().pools} == {0}


# What is missing


def test_without_greenlet(make_app, monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(ConfigError, match=r"Install 'sqlalchemy\[asyncio\]'"):
        make_app(SQLALCHEMY_ASYNC_BINDS={"default": MEMORY})


def test_without_the_driver(make_app, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    with pytest.raises(ConfigError, match=r"needs the driver of 'sqlite\+aiosqlite'"):
        make_app(SQLALCHEMY_ASYNC_BINDS={"default": MEMORY})


def test_without_asgiref(make_app, monkeypatch):
    """Flask's own error names the remedy."""
    monkeypatch.setitem(sys.modules, "asgiref.sync", None)
    app = make_app(SQLALCHEMY_ASYNC_BINDS={"default": MEMORY})

    @app.get("/")
    async def view():
        return "fine"

    with pytest.raises(RuntimeError, match="Install Flask with the 'async' extra"):
        app.test_client().get("/")


@pytest.mark.subprocess
def test_no_cost_without_it(run_script):
    """Nothing of it is imported, and Flask's method is not replaced."""
    script = """
import sys
from flask import Flask
from flask_scopedsession import ScopedSession
from sqlalchemy import text

app = Flask("plain")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db = ScopedSession(app)
with app.app_context():
    db.session.execute(text("SELECT 1"))
    db.snapshot()
assert "async_to_sync" not in vars(app)
parts = ("_async_sessions", "sqlalchemy.ext.asyncio", "asgiref")
print([name for name in sys.modules if any(part in name for part in parts)])
"""
    assert run_script(script).stdout.strip() == "[]"


def test_isolate_refuses_async_sessions(shop: Flask, db: ScopedSession) -> None:
    """What they commit would be real. Afterwards, they work as before."""

    async def count() -> int:
        found = await db.async_session.scalar(select(func.count()).select_from(User))
        return int(found or 0)

    with shop.app_context():
        with isolate(shop), pytest.raises(IsolationError, match="'async:default'"):
            shop.ensure_sync(count)()
        assert shop.ensure_sync(count)() == 0
