"""``db.count_statements()``: what a block sends, what it repeats, and from where."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask import render_template
from inside import sql_shown
from models import Base
from models import User
from sqlalchemy import insert
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import TooManyStatements

HERE = Path(__file__)

db = ScopedSession(model_class=Base)


@pytest.fixture
def served(make_app: Callable[..., Flask], db_url: str, short_tmp: Path) -> Flask:
    """An application whose root is the folder of this file."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=db_url,
        SQLALCHEMY_BINDS={"audit": "sqlite://"},
        flask_options={
            "root_path": str(HERE.parent),
            "template_folder": str(short_tmp),
        },
    )
    with app.app_context():
        db.create_all()
    return app


on_two = pytest.mark.databases("sqlite", "postgresql")
on_sqlite = pytest.mark.databases("sqlite")


def line_of(code: str) -> int:
    """Return the line of this file where some code stands first."""
    return (
        HERE.read_text(encoding="utf-8")[
            : HERE.read_text(encoding="utf-8").index(code)
        ].count("\n")
        + 1
    )


def repeat(times: int) -> None:
    for number in range(times):
        db.session.get(User, number + 1000)


@on_two
def test_a_view_is_counted(served: Flask) -> None:
    """With text, duration and line; BEGIN and COMMIT do not count."""

    @served.get("/")
    def index() -> str:
        db.session.execute(insert(User), {"name": "secret"})
        repeat(3)
        db.session.commit()
        return ""

    with db.count_statements() as sent:
        served.test_client().get("/")
    assert len(sent) == 4
    first, *rest = sent.statements
    assert first.text.startswith("INSERT INTO")
    assert "secret" not in repr(sent.statements)
    assert all(0 < each.duration < 5 for each in sent.statements)
    line = line_of("db.session.get(User, number")
    assert {each.at for each in rest} == {f"test_counting.py:{line} repeat"}
    [repeated] = sent.repeated
    assert (repeated.times, repeated.text, repeated.at) == (3, *rest[0][::2])


@on_two
def test_a_first_connect_does_not_count(
    make_app: Callable[..., Flask], db_url: str
) -> None:
    """SQLAlchemy then asks the server for its version and settings."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI=db_url)
    with app.app_context(), db.count_statements(at_most=1):
        db.session.scalar(text("SELECT 1"))


@on_sqlite
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("lost_work", ["warn", "ignore"])
def test_without_tracking(
    make_app: Callable[..., Flask], tracking: bool, lost_work: str
) -> None:
    """Also on a connection that was open before, and nothing is left afterwards."""
    app = make_app(
        db, SCOPEDSESSION_TRACKING=tracking, SCOPEDSESSION_LOST_WORK=lost_work
    )
    with app.app_context():
        db.create_all()
        repeat(1)
        before = dict(vars(db.engine.dialect))
        with db.count_statements() as sent:
            repeat(2)
            with db.count_statements() as inner:
                repeat(1)
        repeat(1)
        assert (len(sent), len(inner)) == (3, 1)
        assert dict(vars(db.engine.dialect)) == before
        with pytest.raises(OperationalError), db.count_statements() as failed:
            db.session.execute(text("SELECT * FROM nowhere"))
        assert len(failed) == 1


@on_sqlite
def test_every_way_to_send(served: Flask) -> None:
    with served.app_context(), db.count_statements() as sent:
        db.session.execute(insert(User), [{"name": "a"}, {"name": "b"}])
        db.session.connection().exec_driver_sql("SELECT 1")
        db.session.connection().execution_options(no_parameters=True).exec_driver_sql(
            "SELECT 2"
        )
        with db.session.begin_nested():
            db.session.scalar(text("SELECT 4"))
        with db.get_engine("audit").connect() as connection:
            connection.execute(text("SELECT 3"))
        db.session.commit()
    kinds = [each.text.split()[0] for each in sent.statements]
    assert kinds == [
        *("INSERT", "SELECT", "SELECT"),
        *("SELECT", "SELECT"),
    ]
    assert sent.repeated == ()


def test_begin_does_not_count(make_app: Callable[..., Flask]) -> None:
    """Where the extension sends it, as where the driver does."""
    app = make_app(db, SCOPEDSESSION_SQLITE_BEGIN="DEFERRED")
    with app.app_context(), db.count_statements() as sent:
        db.create_all()
        before = len(sent)
        with db.transaction():
            db.session.add(User(name="ed"))
        assert len(sent) == before + 1
        [session] = db.snapshot().sessions
        assert session.statements == before + 1


@on_sqlite
def test_whose_statements_count(served: Flask) -> None:
    """Those of async views do, those of other threads do not."""

    @served.get("/")
    async def wait() -> str:
        repeat(2)
        return ""

    def work() -> None:
        with served.app_context():
            repeat(5)

    with db.count_statements() as sent:
        thread = threading.Thread(target=work)
        thread.start()
        served.test_client().get("/")
        thread.join()
    assert len(sent) == 2


@on_sqlite
def test_at_most(served: Flask) -> None:
    """One line in a test forbids an N+1 query, and names it."""
    with served.app_context():
        with db.count_statements(at_most=3):
            repeat(3)
        with pytest.raises(TooManyStatements) as info, db.count_statements(at_most=3):  # noqa: PT012
            db.session.execute(text("SELECT 'secret', 4711"))
            repeat(4)
        assert isinstance(info.value, AssertionError)
        first, second, third = str(info.value).split("\n")
        assert first == "5 statements sent, at most 3 allowed:"
        line = line_of("db.session.get(User, number")
        assert second.startswith(f"  4× at test_counting.py:{line} repeat: SELECT")
        assert third.endswith("SELECT ?, ?")
        with pytest.raises(ValueError), db.count_statements(at_most=0):  # noqa: PT012
            repeat(1)
            raise ValueError  # it is not hidden
        with pytest.raises(TooManyStatements, match=r"(?m)and 3 more$"):  # noqa: PT012, SIM117
            with db.count_statements(at_most=1):
                for number in range(8):
                    db.session.execute(text(f"SELECT {number} AS n{number}"))
    for wrong in (-1, "x", 1.5, True):
        with pytest.raises(ConfigError, match="at_most"):
            db.count_statements(at_most=wrong)  # type: ignore[arg-type]


def test_line_of_a_template(make_app: Callable[..., Flask], short_tmp: Path) -> None:
    """Jinja's own code has other line numbers than the template."""
    app = make_app(db)
    (short_tmp / "templates").mkdir()
    template = short_tmp / "templates" / "users.html"
    template.write_text("<ul>\n\n\n{% for _ in '12' %}\n  {{ load() }}\n{% endfor %}")
    load = partial(db.session.scalar, text("SELECT 1"))
    with app.app_context(), db.count_statements() as sent:
        render_template("users.html", load=load)
    [repeated] = sent.repeated
    assert repeated.at == "templates/users.html:5 root"
    assert repeated.times == 2


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT *\n  FROM t\tWHERE a = 'it''s'", "SELECT * FROM t WHERE a = ?"),
        (
            "SELECT 1.5, -2, 1e5, 0xFF, t2.c3 FROM t2",
            "SELECT ?, -?, ?, ?, t2.c3 FROM t2",
        ),
        ("WHERE id = %(id_1)s AND x = $1 AND y = :2", None),
        ('SELECT "user".id, u."x" FROM "user" AS "u" WHERE "user"."a" = ?', None),
        ('INSERT INTO "user" (a) VALUES (?)', None),
        ("SELECT `user 1`.id FROM `user 1`", None),
        ('WHERE name = "secret" OR a LIKE "s%"', "WHERE name = ? OR a LIKE ?"),
        ('VALUES ("s", "t")', "VALUES (?, ?)"),
        ('SELECT "secret" AND "secret', "SELECT ? AND ?"),
        (
            "SELECT E'a', :name, ARRAY[1,2], x::int",
            "SELECT E?, :name, ARRAY[?,?], x::int",
        ),
        ("SELECT $$secret$$, $a$it's$a$", "SELECT ?, ?"),
        ("SELECT 1 -- for secret\n, 2 /* secret's */ + 3", "SELECT ? , ? + ?"),
        ("SELECT 'secret", "SELECT ?"),
        ("SELECT 1 /* secret", "SELECT ?"),
        ("SELECT $$secret", "SELECT ?"),
        (r"WHERE a = 'it\'s secret'", "WHERE a = ..."),
        (r"WHERE a = '\' AND b = 'secret'", "WHERE a = ..."),
    ],
)
def test_statements_are_shown_without_values(statement: str, shown: str | None) -> None:
    assert sql_shown(statement) == (statement if shown is None else shown)


def test_long_statements_are_shown_in_part() -> None:
    columns = ", ".join(f"t.column_{n}" for n in range(100))
    shown = sql_shown(f"SELECT {columns} FROM t WHERE t.id = 4711")
    assert len(shown) < 310
    assert shown.startswith("SELECT t.column_0")
    assert shown.endswith("FROM t WHERE t.id = ?")


def test_an_application_that_is_made_in_the_block(
    make_app: Callable[..., Flask],
) -> None:
    """It counts as well, as by a test that makes one for itself."""
    own = ScopedSession(model_class=Base)
    with own.count_statements() as sent:
        with own.count_statements() as inner:
            app = make_app(own)
        with app.app_context():
            own.session.scalar(text("SELECT 1"))
    with app.app_context():
        own.session.scalar(text("SELECT 1"))
    assert (len(sent), len(inner)) == (1, 0)


@on_sqlite
def test_two_threads_count_at_the_same_time(served: Flask) -> None:
    """The end of one count does not end the other."""
    both, one_ended = threading.Barrier(2), threading.Event()
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        with served.app_context(), db.count_statements() as found[number]:
            both.wait(5)
            if number == 2:
                assert one_ended.wait(5)
            repeat(number)
        one_ended.set()

    threads = [threading.Thread(target=work, args=[n]) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: len(each) for number, each in found.items()} == {1: 1, 2: 2}
