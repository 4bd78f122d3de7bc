"""Flask-Migrate finds the tables of each bind, and uses the engines of ``db``."""

from __future__ import annotations

import logging.config
from typing import Any

import pytest
import sqlalchemy as sa
from clients import Client
from flask_migrate import Migrate
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

# Its env.py calls this first, and looks into "engines" if it fails.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:'db\.get_engine\(\)' is deprecated:DeprecationWarning"
)

CLIENT = Client(
    name="Flask-Migrate",
    url="https://flask-migrate.readthedocs.io/",
    works="as it is",
    does="makes, upgrades and downgrades migrations of one bind and of several",
)

ONE = {None: {"user"}}
TWO = {None: {"user"}, "audit": {"entry"}}
THREE: dict[str | None, set[str]] = {**TWO, "reports": set()}

#: Models that are kept, as a module keeps its own.
KEPT: list[type] = []


def of_bases() -> ScopedSession:
    """A base for each bind."""

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Audit(DeclarativeBase):
        pass

    class Entry(Audit):
        __tablename__ = "entry"
        id: Mapped[int] = mapped_column(primary_key=True)

    return ScopedSession(model_class=Base, binds={Audit: "audit"})


def of_models(*, named: bool = False) -> ScopedSession:
    """One base, and a model of it in another bind."""

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Entry(Base):
        __tablename__ = "entry"
        if named:
            __bind_key__ = "audit"
        id: Mapped[int] = mapped_column(primary_key=True)

    # A class that is freed takes its __bind_key__ along.
    KEPT.append(Entry)
    return ScopedSession(model_class=Base, binds=None if named else {Entry: "audit"})


def of_keys() -> ScopedSession:
    return of_models(named=True)


def drop_in() -> SQLAlchemy:
    db = SQLAlchemy()

    class User(db.Model):
        id = db.Column(db.Integer, primary_key=True)

    class Entry(db.Model):
        __bind_key__ = "audit"
        id = db.Column(db.Integer, primary_key=True)

    return db


def one_base() -> ScopedSession:
    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)

    return ScopedSession(model_class=Base)


def one_drop_in() -> SQLAlchemy:
    db = SQLAlchemy()

    class User(db.Model):
        id = db.Column(db.Integer, primary_key=True)

    return db


@pytest.fixture(autouse=True)
def own_logging(monkeypatch):
    """Its env.py would disable all loggers of this process."""
    monkeypatch.setattr(logging.config, "fileConfig", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("make", "binds"),
    [
        (one_base, ONE),
        (one_drop_in, ONE),
        (of_bases, TWO),
        (of_models, TWO),
        (of_keys, TWO),
        (drop_in, TWO),
        (of_bases, THREE),
        (of_models, THREE),
        (drop_in, THREE),
    ],
)
def test_migrations(make_app, short_tmp, caplog, make, binds):
    """Each table is made in its own bind, and dropped there; no other is."""
    db: Any = make()
    config = {
        "SQLALCHEMY_DATABASE_URI": f"sqlite:///{short_tmp}/main.db",
        "SQLALCHEMY_BINDS": {
            bind: f"sqlite:///{short_tmp}/{bind}.db" for bind in binds if bind
        },
    }
    if len(binds) == 1:
        del config["SQLALCHEMY_BINDS"]
    app = make_app(db, **config)

    def flask(*args: str) -> None:
        # It keeps things between commands, which have a process each.
        Migrate(app, db, directory=short_tmp / "migrations")
        runner = app.test_cli_runner()
        done = runner.invoke(args=["db", *args], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    def tables() -> dict[str | None, set[str]]:
        with app.app_context():
            engines = {
                None: db.engine,
                **{key: db.engines[key] for key in binds if key},
            }
            names = {key: sa.inspect(engines[key]).get_table_names() for key in engines}
        return {key: {*names[key]} - {"alembic_version"} for key in names}

    flask("init", *(["--multidb"] if len(binds) > 1 else []))
    flask("migrate", "-m", "first")
    flask("upgrade")
    assert tables() == binds
    flask("check")  # else autogenerate finds more to do
    flask("downgrade")
    assert tables() == {key: set() for key in binds}
    # Its own transactions are not taken for lost work.
    assert not [each for each in caplog.records if "scopedsession" in each.name]
