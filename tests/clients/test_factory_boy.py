"""factory_boy makes rows in the session of the current context."""

from __future__ import annotations

import factory
import pytest
from clients import Client
from factory.alchemy import SQLAlchemyModelFactory
from sqlalchemy import ForeignKey
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="factory_boy",
    url="https://factoryboy.readthedocs.io/",
    works="as it is",
    does="makes rows and related rows, in each context's session and in two binds",
)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship()


class Entry(Base):
    __tablename__ = "entry"
    __bind_key__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


db = ScopedSession(model_class=Base)


class InSession(SQLAlchemyModelFactory):
    class Meta:
        abstract = True
        sqlalchemy_session = db.session
        sqlalchemy_session_persistence = "commit"


class AuthorFactory(InSession):
    class Meta:
        model = Author
        sqlalchemy_get_or_create = ("name",)

    name = factory.Faker("name")


class BookFactory(InSession):
    class Meta:
        model = Book

    title = factory.Sequence("Volume {}".format)
    author = factory.SubFactory(AuthorFactory)


class EntryFactory(InSession):
    class Meta:
        model = Entry

    text = "created"


@pytest.fixture
def shop(make_app, sqlite_url, short_tmp):
    binds = {"audit": f"sqlite:///{short_tmp / 'audit.db'}"}
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SQLALCHEMY_BINDS=binds)
    with shop.app_context():
        db.create_all()
    return shop


def count(model):
    return db.session.scalar(select(func.count()).select_from(model))


def test_rows_with_related_rows(shop):
    with shop.app_context():
        books = BookFactory.create_batch(3, author__name="Ada")
        assert len({book.author for book in books}) == 1
        assert all(book in db.session for book in books)
    with shop.app_context():
        assert (count(Book), count(Author)) == (3, 1)
        BookFactory()
        assert count(Author) == 2


def test_each_context_has_its_own_session(shop):
    """The factory keeps no session between tests."""
    with shop.app_context():
        first = db.session()
        assert AuthorFactory() in first
    with shop.app_context():
        assert AuthorFactory() in db.session()
        assert db.session() is not first


def test_several_binds(shop):
    with shop.app_context():
        EntryFactory()
        with db.get_engine("audit").connect() as connection:
            assert connection.scalar(select(Entry.text)) == "created"
