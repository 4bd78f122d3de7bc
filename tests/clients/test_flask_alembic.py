"""Flask-Alembic finds the tables of each bind, and uses the engines of ``db``."""

from __future__ import annotations

import logging

import pytest
import sqlalchemy as sa
from clients import Client
from clients import recipe
from flask_alembic import Alembic
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

CLIENT = Client(
    name="Flask-Alembic",
    url="https://flask-alembic.readthedocs.io/",
    works="recipe",
    does="makes, upgrades and downgrades migrations of several binds; of the default"
    " bind with the drop-in alone",
)


def core() -> ScopedSession:
    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Entry(Base):
        __tablename__ = "entry"
        id: Mapped[int] = mapped_column(primary_key=True)

    return ScopedSession(model_class=Base, binds={Entry: "audit"})


def drop_in() -> SQLAlchemy:
    db = SQLAlchemy()

    class User(db.Model):
        id = db.Column(db.Integer, primary_key=True)

    class Entry(db.Model):
        __bind_key__ = "audit"
        id = db.Column(db.Integer, primary_key=True)

    return db


@pytest.fixture(autouse=True)
def own_logging(monkeypatch):
    """It adds handlers to these loggers if they have none."""
    for name in ("sqlalchemy", "alembic"):
        monkeypatch.setattr(
            logging.getLogger(name), "handlers", [logging.NullHandler()]
        )


def migrate(app, alembic, engines):
    """Return the tables of each engine after an upgrade, and after a downgrade."""

    def tables():
        names = {key: sa.inspect(engines[key]).get_table_names() for key in engines}
        return {key: {*names[key]} - {"alembic_version"} for key in names}

    alembic.revision("first")
    alembic.upgrade()
    made = tables()
    found = alembic.produce_migrations().upgrade_ops_list
    assert all(each.is_empty() for each in found)
    alembic.downgrade()
    return made, tables()


@pytest.mark.parametrize("make", [core, drop_in])
def test_several_binds(make_app, short_tmp, make):
    db = make()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/main.db",
        SQLALCHEMY_BINDS={"audit": f"sqlite:///{short_tmp}/audit.db"},
    )
    alembic = recipe("Flask-Alembic", app=app, db=db)["alembic"]
    with app.app_context():
        engines = {"default": db.engine, "audit": db.engines["audit"]}
        made, dropped = migrate(app, alembic, engines)
    assert made == {"default": {"user"}, "audit": {"entry"}}
    assert dropped == {"default": set(), "audit": set()}


def test_the_drop_in_alone(make_app, sqlite_url):
    db = SQLAlchemy()

    class User(db.Model):
        id = db.Column(db.Integer, primary_key=True)

    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    alembic = Alembic(app)
    with app.app_context():
        made, dropped = migrate(app, alembic, {"default": db.engine})
    assert (made, dropped) == ({"default": {"user"}}, {"default": set()})
