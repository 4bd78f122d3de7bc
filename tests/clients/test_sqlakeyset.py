"""sqlakeyset pages through ``db.session``."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from clients import Client
from sqlakeyset import InvalidPage
from sqlakeyset import select_page
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="sqlakeyset",
    url="https://github.com/djrobstep/sqlakeyset",
    works="as it is",
    does="pages by bookmarks; it loses rows that `paginate_keyset()` keeps",
)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


db = ScopedSession(model_class=Base)


@pytest.fixture
def shop(make_app, sqlite_url):
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SECRET_KEY="test")
    with shop.app_context():
        db.create_all()
        db.session.add_all(User(name=f"n{number % 3}") for number in range(10))
        db.session.commit()
        yield shop


@pytest.mark.parametrize("session", [lambda: db.session, lambda: db.session()])
def test_pages(shop, session):
    statement = sa.select(User).order_by(User.name, User.id.desc())
    everybody = db.session.scalars(statement).all()
    seen, bookmark = [], None
    while True:
        page = select_page(session(), statement, per_page=4, page=bookmark)
        seen += [user for (user,) in page]
        if not page.paging.has_next:
            break
        bookmark = page.paging.bookmark_next
    assert seen == everybody
    back = select_page(
        session(), statement, per_page=4, page=page.paging.bookmark_previous
    )
    assert [user for (user,) in back] == everybody[4:8]


class Event(Base):
    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True)
    ended: Mapped[int | None]


def by_sqlakeyset(statement):
    bookmark = None
    while True:
        with pytest.warns(UserWarning, match="nullable column event.ended"):
            page = select_page(db.session, statement, per_page=2, page=bookmark)
        yield from (event.id for (event,) in page)
        if not page.paging.has_next:
            return
        bookmark = page.paging.bookmark_next


def by_ours(statement):
    bookmark = None
    while True:
        page = db.paginate_keyset(statement, per_page=2, bookmark=bookmark)
        yield from (event.id for event in page)
        if not page.has_next:
            return
        bookmark = page.next


def test_rows_without_a_value(shop):
    """It loses them, and warns of that. Our own pages have each row once."""
    db.session.add_all(Event(ended=i if i % 3 == 0 else None) for i in range(9))
    db.session.commit()
    statement = sa.select(Event).order_by(Event.ended, Event.id)
    with shop.test_request_context():
        assert len(list(by_sqlakeyset(statement))) < 9
        assert list(by_ours(statement)) == [
            event.id for event in db.session.scalars(statement)
        ]


def test_a_bad_bookmark(shop):
    with pytest.raises(InvalidPage):
        select_page(db.session, sa.select(User).order_by(User.id), page="nonsense")
