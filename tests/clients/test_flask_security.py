"""Flask-Security-Too registers users and logs them in."""

from __future__ import annotations

import pytest
from clients import Client
from flask_security import current_user
from flask_security import Security
from flask_security import SQLAlchemySessionUserDatastore
from flask_security import SQLAlchemyUserDatastore
from flask_security.models import fsqla_v3
from flask_security.models import sqla
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase

from flask_scopedsession import ScopedSession
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

CLIENT = Client(
    name="Flask-Security-Too",
    url="https://flask-security-too.readthedocs.io/",
    works="as it is",
    does="registers a user and logs it in, with the ready-made models for plain"
    " SQLAlchemy; with those for Flask-SQLAlchemy through the drop-in",
)


class Base(DeclarativeBase):
    pass


core = ScopedSession(model_class=Base)
drop_in = SQLAlchemy()
sqla.FsModels.set_db_info(base_model=Base)
fsqla_v3.FsModels.set_db_info(drop_in)


def models(base, mixins):
    """The classes need these names."""

    class Role(base, mixins.FsRoleMixin):
        __tablename__ = "role"

    class User(base, mixins.FsUserMixin):
        __tablename__ = "user"

    return User, Role


MODELS = models(Base, sqla)
OLD_MODELS = models(drop_in.Model, fsqla_v3)


@pytest.mark.parametrize(
    ("db", "store"),
    [
        (core, SQLAlchemySessionUserDatastore(core.session, *MODELS)),
        (core, SQLAlchemyUserDatastore(core, *MODELS)),
        (drop_in, SQLAlchemyUserDatastore(drop_in, *OLD_MODELS)),
    ],
    ids=["session", "core", "drop-in"],
)
def test_a_user(make_app, sqlite_url, caplog, db, store):
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SECRET_KEY="test",
        WTF_CSRF_ENABLED=False,
        SECURITY_PASSWORD_HASH="plaintext",
        SECURITY_PASSWORD_SALT="test",
        SECURITY_REGISTERABLE=True,
        SECURITY_SEND_REGISTER_EMAIL=False,
        SECURITY_USE_REGISTER_V2=True,
        SECURITY_EMAIL_VALIDATOR_ARGS={"check_deliverability": False},
    )
    Security(app, store)

    @app.get("/me")
    def me():
        if current_user.is_anonymous:
            return "nobody"
        return f"{current_user.email} {[role.name for role in current_user.roles]}"

    with app.app_context():
        db.create_all()
    ada = {"email": "ada@example.com", "password": "difference engine"}
    client = app.test_client()
    client.post("/register", data={**ada, "password_confirm": ada["password"]})
    with app.app_context():
        assert db.session.scalar(select(func.count(store.user_model.id))) == 1
        store.add_role_to_user(
            store.find_user(email=ada["email"]), store.find_or_create_role("editor")
        )
        store.commit()
    other = app.test_client()
    other.post("/login", data={**ada, "password": "wrong"})
    assert other.get("/me").text == "nobody"
    other.post("/login", data=ada)
    assert other.get("/me").text == "ada@example.com ['editor']"
    # What it commits after the view has returned is not reported as lost.
    assert [each for each in caplog.records if "scopedsession" in each.name] == []
