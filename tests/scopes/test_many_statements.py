"""``SCOPEDSESSION_MANY_STATEMENTS``: views and commands that send many statements."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask import request
from sqlalchemy import ForeignKey
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship
from sqlalchemy.orm import selectinload

from flask_scopedsession import ScopedSession

HERE = Path(__file__)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship()


db = ScopedSession(model_class=Base)


def list_books() -> list[str]:
    books = db.session.scalars(select(Book)).all()
    return [book.author.name for book in books]


def list_books_well() -> list[str]:
    books = db.session.scalars(select(Book).options(selectinload(Book.author))).all()
    return [book.author.name for book in books]


@pytest.fixture
def make(make_app: Callable[..., Flask]) -> Callable[..., Flask]:
    def make(rows: int = 100, **config: Any) -> Flask:
        app = make_app(db, flask_options={"root_path": str(HERE.parent)}, **config)
        app.add_url_rule("/books/<int:shelf>", "books", lambda shelf: list_books())
        app.add_url_rule("/well", "well", list_books_well)
        with app.app_context():
            db.create_all()
            with db.transaction():
                db.session.add_all(
                    Book(author=Author(name=f"secret {n}")) for n in range(rows)
                )
        return app

    return make


def reports(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [
        each
        for each in caplog.records
        if getattr(each, "scopedsession_event", "") == "many_statements"
    ]


def line_of(code: str) -> int:
    text = HERE.read_text(encoding="utf-8")
    return text[: text.index(code)].count("\n") + 1


def test_a_lazy_relationship_is_reported(
    make: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """Once per view, with its statement and its line, but without any value."""
    app = make(DEBUG=True)
    client = app.test_client()
    assert len(client.get("/books/4711").json) == 100
    client.get("/books/4712")
    assert len(client.get("/well").json) == 100
    [report] = reports(caplog)
    line = line_of("[book.author.name")
    at = f"test_many_statements.py:{line} <listcomp>"
    assert report.levelno == logging.WARNING
    assert report.scopedsession_endpoint == "books"
    assert report.scopedsession_statements == 101
    assert report.scopedsession_repeated == 100
    assert report.scopedsession_at in (at, at.replace("<listcomp>", "list_books"))
    assert report.scopedsession_statement.startswith("SELECT author.id")
    message = report.getMessage()
    assert message.startswith(
        "GET /books/<int:shelf> -> books sent 101 statements"
        " (SCOPEDSESSION_MANY_STATEMENTS is 100). Most often, 100× at"
        f" {report.scopedsession_at}: SELECT author.id"
    )
    assert "4711" not in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("rows", "config", "expected"),
    [
        (99, {"DEBUG": True}, 0),  # not more than 100
        (100, {}, 0),
        (100, {"DEBUG": True, "SCOPEDSESSION_MANY_STATEMENTS": 0}, 0),
        (4, {"SCOPEDSESSION_MANY_STATEMENTS": "4"}, 1),
        (1, {"SCOPEDSESSION_MANY_STATEMENTS": 1}, 1),
    ],
)
def test_the_threshold(
    make: Callable[..., Flask],
    caplog: pytest.LogCaptureFixture,
    rows: int,
    config: dict[str, Any],
    expected: int,
) -> None:
    make(rows, **config).test_client().get("/books/1")
    assert len(reports(caplog)) == expected


def test_the_line_that_sends_it_most(
    make: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """Not the first one, as of what a hook loads for each request."""
    app = make(0, SCOPEDSESSION_MANY_STATEMENTS=20)

    def first() -> None:
        for number in range(2):
            db.session.get(Author, number + 1000)

    def second() -> None:
        for number in range(17):
            db.session.get(Author, number + 2000)
        for number in range(5):
            db.session.scalar(text(f"SELECT 1 AS n{number}"))

    app.before_request(first)
    app.add_url_rule("/", "index", lambda: second() or "")
    app.test_client().get("/")
    [report] = reports(caplog)
    line = line_of("db.session.get(Author, number + 2000)")
    assert report.scopedsession_at == f"test_many_statements.py:{line} second"
    assert report.scopedsession_repeated == 19


def test_values_in_the_text(
    make: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """Texts that differ only by these are one statement, and they are not shown."""
    app = make(0, SCOPEDSESSION_MANY_STATEMENTS=20)

    @app.get("/")
    def index() -> str:
        for n in range(30):
            db.session.execute(text(f"SELECT 'secret {n}' AS a, {n} AS b"))
        db.session.execute(text("SELECT 1, 2, 3"))
        return ""

    app.test_client().get("/")
    [report] = reports(caplog)
    assert report.scopedsession_statement == "SELECT ? AS a, ? AS b"
    assert report.scopedsession_repeated == 30
    assert report.scopedsession_at.endswith(" index")


def test_commands_and_errors(
    make: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """A command is reported, and so is a request that fails or has no view."""
    app = make(10, SCOPEDSESSION_MANY_STATEMENTS=5, PROPAGATE_EXCEPTIONS=False)
    app.cli.command("books")(list_books)
    app.add_url_rule("/fails", "fails", lambda: list_books() and 1 / 0)

    @app.before_request
    def load() -> None:
        if request.path == "/nowhere":
            list_books()

    assert app.test_cli_runner().invoke(args=["books"]).exit_code == 0
    app.test_client().get("/fails")
    app.test_client().get("/nowhere")
    command, fails, nowhere = reports(caplog)
    assert command.scopedsession_command == "books"
    assert fails.scopedsession_endpoint == "fails"
    assert nowhere.getMessage().startswith("A GET sent 11 statements")


def test_what_is_no_request_or_command(
    make: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """A context that requests share, as in tests, is none; nor are they one."""
    app = make(10, SCOPEDSESSION_MANY_STATEMENTS=15)
    with app.app_context():
        list_books()
        db.session.expire_all()
        list_books()
    with app.test_request_context("/well"):
        db.session.scalar(text("SELECT 1"))  # its connection is used by the others
        for _ in range(5):
            app.test_client().get("/books/1")
            db.session.expire_all()
    assert reports(caplog) == []


def test_async_views(
    make: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    app = make(10, SCOPEDSESSION_MANY_STATEMENTS=5)

    @app.get("/")
    async def index() -> list[str]:
        return list_books()

    app.test_client().get("/")
    [report] = reports(caplog)
    assert report.scopedsession_repeated == 10


def test_without_tracking(
    make: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is counted, which is said if the key is set."""
    make(DEBUG=True, SCOPEDSESSION_TRACKING=False).test_client().get("/books/1")
    assert caplog.records == []
    make(5, SCOPEDSESSION_MANY_STATEMENTS=2, SCOPEDSESSION_TRACKING=False)
    [note] = caplog.records
    assert note.getMessage() == (
        "SCOPEDSESSION_MANY_STATEMENTS does nothing: SCOPEDSESSION_TRACKING is off, so"
        " that statements are not counted."
    )


def test_many_different_texts(
    make: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """So many are kept, and the rest is still counted."""
    app = make(0, SCOPEDSESSION_MANY_STATEMENTS=1500)

    @app.get("/")
    def index() -> str:
        for n in range(2000):
            db.session.execute(text(f"SELECT 1 AS n{n}"))
        return ""

    app.test_client().get("/")
    [report] = reports(caplog)
    assert report.scopedsession_statements == 2000
    assert report.scopedsession_repeated == 1
    assert report.getMessage().endswith("is 1500). None of those counted is repeated.")
