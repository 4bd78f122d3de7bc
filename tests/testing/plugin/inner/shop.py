"""The application of the suites in this folder, and views that leave things open."""

from __future__ import annotations

from flask import Flask
from flask import request
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


db = ScopedSession(model_class=Base)
kept = []


def create_app(url, **config):
    app = Flask("shop", root_path=__file__.rpartition("/")[0])
    app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=url, **config)
    db.init_app(app)
    app.add_url_rule("/items", view_func=items)
    app.add_url_rule("/items", view_func=add, methods=["POST"])
    app.add_url_rule("/connection", view_func=connection)
    app.add_url_rule("/session", view_func=session)
    app.add_url_rule("/raises", view_func=raises)
    return app


def items():
    return list(db.session.scalars(select(Item.name).order_by(Item.id)))


def add():
    db.session.add(Item(name=request.form["name"]))
    db.session.commit()
    return ""


def connection():
    kept.append(db.engine.connect())
    return ""


def session():
    kept.append(db.sessionmaker())
    kept[-1].scalars(select(Item)).all()
    return ""


def raises():
    variable = db.engine.connect()
    raise ValueError(variable)
