"""dogpile.cache keeps results of queries, which are merged into each session."""

from __future__ import annotations

import pytest
from clients import Client
from clients import recipe
from dogpile.cache import make_region
from sqlalchemy import ForeignKey
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship
from sqlalchemy.orm import selectinload

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="dogpile.cache",
    url="https://dogpilecache.sqlalchemy.org/",
    works="recipe",
    does="answers a second request from the cache, with objects of its own session",
)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    posts: Mapped[list[Post]] = relationship()


class Post(Base):
    __tablename__ = "post"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"))


db = ScopedSession(model_class=Base)
region = make_region().configure("dogpile.cache.memory_pickle", expiration_time=60)
recipe("dogpile.cache", db=db, region=region)


@pytest.fixture
def shop(make_app, sqlite_url):
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)

    @shop.get("/names")
    def names():
        users = db.session.scalars(
            select(User).order_by(User.id), execution_options={"cache_as": "users"}
        ).all()
        assert all(user in db.session for user in users)
        return [user.name for user in users]

    @shop.post("/names/<name>")
    def rename(name):
        db.get_or_404(User, 1).name = name
        db.session.commit()
        region.delete("users")
        return ""

    with shop.app_context():
        db.create_all()
        db.session.add_all([User(name="Ada", posts=[Post()]), User(name="Alan")])
        db.session.commit()
    region.invalidate()
    return shop


def statements(shop):
    with db.count_statements() as sent:
        assert len(shop.test_client().get("/names").json) == 2
    return len(sent)


def test_a_second_request_sends_nothing(shop):
    assert [statements(shop) for _ in range(3)] == [1, 0, 0]
    assert shop.test_client().get("/names").json == ["Ada", "Alan"]


def test_what_is_changed_is_read_again(shop):
    client = shop.test_client()
    client.get("/names")
    client.post("/names/Grace")
    assert client.get("/names").json == ["Grace", "Alan"]


def test_objects_can_be_changed(shop):
    """They are the session's, although they come from the cache."""
    shop.test_client().get("/names")
    with shop.app_context():
        options = {"cache_as": "users"}
        user = db.session.scalars(select(User), execution_options=options).first()
        user.name = "Grace"
        db.session.commit()
    with shop.app_context():
        assert db.session.get(User, 1).name == "Grace"


def test_other_statements_are_not_cached(shop):
    with shop.app_context(), db.count_statements() as sent:
        for _ in range(2):
            db.session.scalars(select(User)).all()
    assert len(sent) == 2


@pytest.mark.parametrize("options", [(), (selectinload(User.posts),)])
def test_collections(shop, options):
    """They are read as ever, whether the statement loads them or not."""
    statement = select(User).order_by(User.id).options(*options)
    for sent_at_most in (5, 0 if options else 2):
        with shop.app_context(), db.count_statements(sent_at_most):
            users = db.session.scalars(
                statement, execution_options={"cache_as": "with posts"}
            ).all()
            assert [len(user.posts) for user in users] == [1, 0]
            assert all(type(post) is Post for user in users for post in user.posts)
