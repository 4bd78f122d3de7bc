"""Flask-Login loads the user of each request through ``db.session``."""

from __future__ import annotations

import pytest
from clients import Client
from flask_login import current_user
from flask_login import login_required
from flask_login import login_user
from flask_login import LoginManager
from flask_login import UserMixin
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="Flask-Login",
    url="https://flask-login.readthedocs.io/",
    works="as it is",
    does="logs a user in, loads it in the next request, and refuses a stranger",
)


class Base(DeclarativeBase):
    pass


class User(UserMixin, Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


db = ScopedSession(model_class=Base)


@pytest.fixture
def client(make_app, sqlite_url):
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SECRET_KEY="test")
    manager = LoginManager(app)

    @manager.user_loader
    def load(ident):
        return db.session.get(User, ident)

    @app.post("/login/<int:ident>")
    def login(ident):
        login_user(db.get_or_404(User, ident))
        return ""

    @app.get("/name")
    @login_required
    def name():
        assert current_user in db.session
        return current_user.name

    with app.app_context():
        db.create_all()
        db.session.add(User(id=1, name="Ada"))
        db.session.commit()
    return app.test_client()


def test_log_in(client):
    assert client.get("/name").status_code == 401
    assert client.post("/login/1").status_code == 200
    assert client.get("/name").text == "Ada"


def test_a_stranger(client):
    assert client.post("/login/2").status_code == 404
    assert client.get("/name").status_code == 401
