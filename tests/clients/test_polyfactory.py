"""polyfactory makes rows in the session of the current context."""

from __future__ import annotations

import pytest
from clients import Client
from clients import recipe
from models import Base
from models import User
from polyfactory.factories.sqlalchemy_factory import SQLAlchemyFactory
from sqlalchemy import select
from sqlalchemy.orm.exc import DetachedInstanceError

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="polyfactory",
    url="https://polyfactory.litestar.dev/",
    works="recipe",
    does="makes rows, and they stay in the session of their context",
)

db = ScopedSession(model_class=Base)
UserFactory = recipe("polyfactory", db=db, User=User)["UserFactory"]


@pytest.fixture
def shop(make_app, sqlite_url):
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with shop.app_context():
        db.create_all()
    return shop


def test_why_a_function(shop):
    """polyfactory removes the session of a ``scoped_session``: a row is left alone."""

    class Bare(SQLAlchemyFactory[User]):
        __session__ = db.session

    with shop.app_context():
        ada = Bare.create_sync(name="Ada")
        assert ada not in db.session
        with pytest.raises(DetachedInstanceError):
            _ = ada.name


def test_rows(shop):
    with shop.app_context():
        ada = UserFactory.create_sync(name="Ada")
        UserFactory.create_batch_sync(2, name="Alan")
        assert ada in db.session
        assert ada.name == "Ada"
    with shop.app_context():
        names = db.session.scalars(select(User.name).order_by(User.name)).all()
        assert names == ["Ada", "Alan", "Alan"]
        assert UserFactory.create_sync() in db.session
