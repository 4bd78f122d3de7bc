"""Flask-Admin lists, creates, edits and deletes rows."""

from __future__ import annotations

import pytest
from clients import Client
from clients import recipe
from flask_admin import Admin
from flask_admin.contrib.sqla import ModelView
from sqlalchemy import ForeignKey
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import foreign
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship

from flask_scopedsession import ScopedSession

# Of its own use of WTForms.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Yielding raw tuples from iter_choices:DeprecationWarning"
)

CLIENT = Client(
    name="Flask-Admin",
    url="https://flask-admin.readthedocs.io/",
    works="recipe",
    does="lists, creates, edits and deletes rows; also with the drop-in",
)


class Base(DeclarativeBase):
    pass


class Team(Base):
    __tablename__ = "team"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

    def __str__(self) -> str:
        return self.name


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    team_id: Mapped[int | None] = mapped_column(ForeignKey(Team.id))
    team: Mapped[Team | None] = relationship()


db = ScopedSession(model_class=Base)


@pytest.mark.parametrize(
    "make_view",
    [
        lambda: recipe("Flask-Admin")["View"](User, db),
        lambda: ModelView(User, db.session),
    ],
    ids=["recipe", "session"],
)
@pytest.mark.filterwarnings("ignore:Passing a session object dir:DeprecationWarning")
def test_a_row(make_app, sqlite_url, make_view):
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SECRET_KEY="test")
    Admin(app).add_view(make_view())
    with app.app_context():
        db.create_all()
        db.session.add(Team(name="Analysts"))
        db.session.commit()
    client = app.test_client()

    def users() -> list[tuple[int, str, str | None]]:
        with app.app_context():
            found = db.session.scalars(select(User).order_by(User.id))
            return [
                (user.id, user.name, user.team and user.team.name) for user in found
            ]

    assert ">Analysts</option>" in client.get("/admin/user/new/").text
    assert client.post("/admin/user/new/", data={"name": "Ada", "team": 1}).location
    assert users() == [(1, "Ada", "Analysts")]
    assert "Ada" in client.get("/admin/user/").text
    assert (
        "Already exists" in client.post("/admin/user/new/", data={"name": "Ada"}).text
    )
    changed = {"name": "Grace", "team": "__None"}
    assert client.post("/admin/user/edit/?id=1", data=changed).location
    assert users() == [(1, "Grace", None)]
    assert client.post("/admin/user/delete/", data={"id": 1}).location
    assert users() == []
    with app.app_context():
        assert {pool.used for pool in db.snapshot().pools} == {0}


def test_a_relationship_to_another_bind(make_app):
    """It is not joined."""

    class Audit(DeclarativeBase):
        __bind_key__ = "audit"

    class Entry(Audit):
        __tablename__ = "entry"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int]
        user = relationship(User, primaryjoin=lambda: foreign(Entry.user_id) == User.id)

    class Entries(recipe("Flask-Admin")["View"]):
        column_list = ("user.name",)

    db = ScopedSession(model_class=Base, binds={Audit: "audit"})
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite://",
        SQLALCHEMY_BINDS={"audit": "sqlite://"},
        SECRET_KEY="test",
    )
    Admin(app).add_view(Entries(Entry, db))
    with app.app_context():
        db.create_all()
        db.session.add(User(id=1, name="Ada"))
        db.session.add(Entry(user_id=1))
        db.session.commit()
    assert "Ada" in app.test_client().get("/admin/entry/").text


SORTED = """
from flask import Flask
from flask_admin import Admin
from flask_admin.contrib.sqla import ModelView

from flask_scopedsession.flask_sqlalchemy import install_as_flask_sqlalchemy
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

install_as_flask_sqlalchemy()
db = SQLAlchemy()


class User(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String, unique=True)


app = Flask(__name__)
app.config.update(SECRET_KEY="test", SQLALCHEMY_DATABASE_URI="sqlite://")
db.init_app(app)
Admin(app).add_view(ModelView(User, db))
client = app.test_client()
with app.app_context():
    db.create_all()
client.post("/admin/user/new/", data={"name": "Ada"})
print("Ada" in client.get("/admin/user/").text)
print("Already exists" in client.post("/admin/user/new/", data={"name": "Ada"}).text)
client.post("/admin/user/edit/?id=1", data={"name": "Grace"})
print("Grace" in client.get("/admin/user/").text)
client.post("/admin/user/delete/", data={"id": 1})
print("Grace" not in client.get("/admin/user/").text)
with app.app_context():
    db.engine.dispose()
"""


@pytest.mark.subprocess
def test_the_drop_in(run_script):
    """In an application whose imports are in alphabetical order."""
    done = run_script(SORTED, python_args=("-W", "error")).check()
    assert done.stdout.split() == ["True"] * 4, done.stdout
