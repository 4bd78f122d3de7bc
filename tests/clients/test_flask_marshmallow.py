"""flask-marshmallow's schemas load and dump rows, with marshmallow-sqlalchemy."""

from __future__ import annotations

import pytest
from clients import Client
from clients import recipe
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="flask-marshmallow",
    url="https://flask-marshmallow.readthedocs.io/",
    works="recipe",
    does="loads a row, updates one that is there, and dumps it with a link; also with"
    " the drop-in",
)


class Base(DeclarativeBase):
    pass


class Team(Base):
    __tablename__ = "team"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    team_id: Mapped[int] = mapped_column(ForeignKey(Team.id))
    team: Mapped[Team] = relationship()


db = ScopedSession(model_class=Base)


def test_a_row(make_app, sqlite_url):
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    schema = recipe("flask-marshmallow", app=app, db=db, User=User)["UserSchema"]()

    @app.post("/users")
    def change():
        user = schema.load({"id": 1, "name": "Grace", "team": 1})
        assert user in db.session
        db.session.commit()
        return schema.dump(user)

    with app.app_context():
        db.create_all()
        db.session.add(Team(id=1, name="Analysts"))
        db.session.add(schema.load({"name": "Ada", "team": 1}))
        db.session.commit()
        assert db.session.get(User, 1).team.name == "Analysts"
    changed = app.test_client().post("/users").get_json()
    assert changed == {"id": 1, "name": "Grace", "team": 1}
    with app.app_context():
        assert db.session.get(User, 1).name == "Grace"


SORTED = """
from flask import Flask
from flask_marshmallow import Marshmallow

from flask_scopedsession.flask_sqlalchemy import install_as_flask_sqlalchemy
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

install_as_flask_sqlalchemy()
app = Flask(__name__)
app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://")
db = SQLAlchemy(app)
ma = Marshmallow(app)


class User(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String)


class UserSchema(ma.SQLAlchemyAutoSchema):
    class Meta:
        model = User
        load_instance = True

    link = ma.URLFor("user", values={"id": "<id>"})


@app.get("/users/<int:id>")
def user(id):
    return UserSchema().dump(db.get_or_404(User, id))


with app.app_context():
    db.create_all()
    db.session.add(UserSchema().load({"name": "Ada"}))
    db.session.commit()
    UserSchema().load({"id": 1, "name": "Grace"})
    db.session.commit()
print(app.test_client().get("/users/1").get_json())
with app.app_context():
    db.engine.dispose()
"""


@pytest.mark.subprocess
def test_the_drop_in(run_script):
    """In an application whose imports are in alphabetical order."""
    done = run_script(SORTED, python_args=("-W", "error")).check()
    assert done.stdout == "{'id': 1, 'link': '/users/1', 'name': 'Grace'}\n"
