"""sqlmodel's models and session, through ``db``."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from clients import Client
from clients import recipe
from sqlalchemy.orm import registry
from sqlmodel import delete
from sqlmodel import Field
from sqlmodel import select
from sqlmodel import Session
from sqlmodel import SQLModel
from sqlmodel import update

from flask_scopedsession import ScopedSession
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

CLIENT = Client(
    name="SQLModel",
    url="https://sqlmodel.tiangolo.com/",
    works="recipe",
    does="reads and writes by `db.session.exec()`, with models in two binds",
)

names = recipe("SQLModel")
db, Hero, Entry = names["db"], names["Hero"], names["Entry"]


@pytest.fixture
def shop(make_app, sqlite_url, short_tmp):
    binds = {"audit": f"sqlite:///{short_tmp / 'audit.db'}"}
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SQLALCHEMY_BINDS=binds)

    @shop.get("/heroes/<int:ident>")
    def hero(ident):
        return db.get_or_404(Hero, ident).model_dump()

    @shop.get("/heroes")
    def heroes():
        page = db.paginate(select(Hero).order_by(Hero.name), per_page=2)
        return {"names": [hero.name for hero in page], "total": page.total}

    @shop.post("/heroes/<name>")
    def add(name):
        db.session.add(Hero(name=name))
        db.session.add(Entry(text=f"added {name}"))
        db.session.commit()
        return {"id": db.session.exec(select(Hero.id).where(Hero.name == name)).one()}

    @shop.post("/lost")
    def lost():
        db.session.add(Hero(name="Nobody"))
        return ""

    with shop.app_context():
        db.create_all()
    return shop


def test_requests(shop):
    client = shop.test_client()
    assert client.post("/heroes/Deadpond").json == {"id": 1}
    assert client.get("/heroes/1").json == {"id": 1, "name": "Deadpond"}
    assert client.get("/heroes/2").status_code == 404
    client.post("/heroes/Tarantula")
    client.post("/heroes/Rusty")
    assert client.get("/heroes").json == {"names": ["Deadpond", "Rusty"], "total": 3}


def test_exec(shop):
    with shop.app_context():
        assert isinstance(db.session(), Session)
        db.session.add(Hero(name="Rusty"))
        assert db.session.exec(select(Hero)).one() in db.session
        assert db.session.exec(select(Hero.id, Hero.name)).all() == [(1, "Rusty")]
        changed = db.session.exec(update(Hero).values(name="Ed"))
        assert changed.rowcount == 1
        assert db.session().exec(select(Hero.name)).all() == ["Ed"]
        assert db.session.exec(delete(Hero)).rowcount == 1


def test_several_binds(shop):
    """Each model is in its own bind, for ``exec()`` and ``create_all()`` too."""
    shop.test_client().post("/heroes/Rusty")
    with shop.app_context():
        assert db.session.exec(select(Entry.text)).all() == ["added Rusty"]
        assert db.get_session("audit").exec(select(Entry.text)).one() == "added Rusty"
        assert sa.inspect(db.engine).get_table_names() == ["hero"]
        assert sa.inspect(db.get_engine("audit")).get_table_names() == ["entry"]
        assert set(db.metadatas[None].tables) == {"hero"}
        assert set(db.metadatas["audit"].tables) == {"entry"}


def test_binds_by_argument(make_app, short_tmp):
    """``ScopedSession(binds=...)`` places a model as well."""
    db = ScopedSession(model_class=SQLModel, binds={Hero: "other"})
    urls = {name: f"sqlite:///{short_tmp / name}.db" for name in ("audit", "other")}
    with make_app(db, SQLALCHEMY_BINDS=urls).app_context():
        db.create_all()
        db.session.add(Hero(name="Rusty"))
        db.session.commit()
        with db.get_engine("other").connect() as connection:
            assert connection.scalar(sa.text("SELECT name FROM hero")) == "Rusty"


def test_lost_work_names_the_model(shop, caplog):
    shop.test_client().post("/lost")
    assert "1 Hero" in caplog.text


def test_the_drop_in_places_models_by_their_bind_key(make_app):
    """As ``db.Model``, although such a base lacks the drop-in's mixin."""

    class Base(SQLModel, registry=registry()):
        pass

    Base.metadata = sa.MetaData()

    class Here(Base, table=True):
        id: int = Field(primary_key=True)

    class There(Base, table=True):
        __bind_key__ = "log"
        id: int = Field(primary_key=True)

    db = SQLAlchemy(model_class=Base)
    binds = {None: "sqlite://", "log": "sqlite://"}
    with make_app(db, SQLALCHEMY_BINDS=binds).app_context():
        db.create_all()
        db.session.add_all([Here(id=1), There(id=2)])
        db.session.commit()
        assert db.session.scalars(select(There.id)).all() == [2]
        tables = {key: sa.inspect(db.engines[key]).get_table_names() for key in binds}
        assert tables == {None: ["here"], "log": ["there"]}
