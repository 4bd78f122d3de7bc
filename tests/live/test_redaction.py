"""No password in any message, repr, traceback, log record or output."""

from __future__ import annotations

import logging
import re
import sqlite3
import sys
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import pytest
from flask import Flask
from inside import History
from inside import render_pools
from inside import render_sessions
from sqlalchemy import literal
from sqlalchemy import make_url
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import Session
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import PingError
from flask_scopedsession.errors import ScopedSessionError

MakeApp = Callable[..., Flask]

#: In every place of a URL where a secret may stand, and in an option.
SECRET = "swordfish"


def url(name: str) -> str:
    return {
        "userinfo": f"postgresql+psycopg://app:{SECRET}@127.0.0.1:1/app",
        "query": f"postgresql+psycopg://127.0.0.1:1/app?password={SECRET}",
        "sslpassword": f"postgresql+psycopg://127.0.0.1:1/app?sslpassword={SECRET}",
        "options": f"postgresql+psycopg://127.0.0.1:1/app?options=-csecret={SECRET}",
        "odbc": "postgresql+psycopg://127.0.0.1:1/app"
        f"?odbc_connect=DRIVER%3Dx%3BUID%3Du%3BPWD%3D{SECRET}",
    }[name]


PLACES = ["userinfo", "query", "sslpassword", "options", "odbc"]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that the package logs, at any level."""
    caplog.set_level(logging.DEBUG, "flask_scopedsession")
    return caplog


def said_by(error: BaseException) -> Iterator[str]:
    """Yield everything that an error says, with all that hangs on it."""
    seen: list[BaseException] = []
    found: list[BaseException | None] = [error]
    while found:
        each = found.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        yield from (str(each), repr(each), repr(each.args))
        yield from getattr(each, "__notes__", ())
        found += [each.__cause__, each.__context__]


def own_locals(trace: TracebackType | None) -> Iterator[str]:
    """Yield the reprs of what our own frames hold, as error trackers show them."""
    for frame, _ in traceback.walk_tb(trace):
        if "flask_scopedsession" in frame.f_code.co_filename:
            yield from (
                repr(value)
                for value in frame.f_locals.values()
                if type(value).__module__.startswith("flask_scopedsession")
            )


def check(error: BaseException, logged: pytest.LogCaptureFixture) -> None:
    for said in said_by(error):
        assert SECRET not in said
    for held in own_locals(error.__traceback__):
        assert SECRET not in held
    check_log(logged)


def check_log(logged: pytest.LogCaptureFixture) -> None:
    for record in logged.records:
        assert SECRET not in record.getMessage()
        assert SECRET not in str(record.exc_info)


BROKEN: list[dict[str, Any]] = [
    {"SQLALCHEMY_DATABASE_URI": f"postgresql://u:{SECRET}@h:port/d"},
    {"SQLALCHEMY_DATABASE_URI": f"postgresql://u:x@{SECRET}@h/d"},
    {"SQLALCHEMY_DATABASE_URI": f"{SECRET}"},
    {"SQLALCHEMY_DATABASE_URI": f"postgresql://u:p@ss/{SECRET}@h/d"},
    {"SQLALCHEMY_DATABASE_URI": f"postgresql://u:p@{SECRET}/w0rd@h/d"},
    {"SQLALCHEMY_DATABASE_URI": f"nosuch://u:{SECRET}@h/d?password={SECRET}"},
    {"SQLALCHEMY_DATABASE_URI": f"sqlite+aiosqlite:///x?password={SECRET}"},
    {"SQLALCHEMY_DATABASE_URI": f"sqlite://u:{SECRET}@h/d"},
    {"SQLALCHEMY_DATABASE_URI": {"drivername": f"postgresql://u:{SECRET}@h/d"}},
    {"SQLALCHEMY_DATABASE_URI": {"drivername": "postgresql", "port": SECRET}},
    {"SQLALCHEMY_DATABASE_URI": [f"postgresql://u:{SECRET}@h/d"]},
    {"SQLALCHEMY_BINDS": f"postgresql://u:{SECRET}@h/d"},
    {"SQLALCHEMY_BINDS": {"a": {"uri": f"postgresql://u:{SECRET}@h/d"}}},
    {"SQLALCHEMY_BINDS": {"a": {"url": "sqlite://", "odd": SECRET}}},
    {"SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": f"password={SECRET}"}},
    {"SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": SECRET}},
    {"SQLALCHEMY_ENGINE_OPTIONS": {"pool_reset_on_return": SECRET}},
    {"SQLALCHEMY_ENGINE_OPTIONS": {"isolation_level": {"x": SECRET}}},
    {"SCOPEDSESSION_SQLITE_PRAGMAS": {"key": f"'{SECRET}'"}},
    {"SCOPEDSESSION_SQLITE_BEGIN": SECRET},
    {"SCOPEDSESSION_HELD_LONG_AFTER": SECRET},
    {"SCOPEDSESSION_LOST_WORK": SECRET},
    {"SCOPEDSESSION_TRACKING": SECRET},
    {"SQLALCHEMY_ECHO": SECRET},
]


@pytest.mark.parametrize("config", BROKEN)
def test_errors_of_configuration(
    make_app: MakeApp, logged: pytest.LogCaptureFixture, config: dict[str, Any]
) -> None:
    """Whatever is wrong, the value is not shown."""
    with pytest.raises(ScopedSessionError) as info:
        make_app(**config)
    check(info.value, logged)


@pytest.mark.parametrize("place", PLACES)
def test_missing_driver(
    make_app: MakeApp,
    logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """A URL whose driver is missing is not shown either."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ScopedSessionError) as info:
        make_app(SQLALCHEMY_DATABASE_URI=url(place))
    check(info.value, logged)


@pytest.mark.parametrize("place", PLACES)
def test_ping_and_reprs(
    make_app: MakeApp, logged: pytest.LogCaptureFixture, place: str
) -> None:
    """Drivers quote what they were given; we do not."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=url(place),
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"passfile": SECRET}},
    )
    with app.app_context():
        with pytest.raises(PingError) as info:
            db.ping()
        check(info.value, logged)
        application = db._application_of(app)
        settings = application.settings
        for each in (db, application, settings, *settings.binds.values()):
            assert SECRET not in repr(each)
        assert SECRET not in repr(db.snapshot())
        assert SECRET not in str(db.workers(timeout=0.1).to_dict())
        assert SECRET not in repr((db.session, db.session()))


@pytest.mark.parametrize("place", PLACES)
def test_the_url_of_an_engine_is_sqlalchemys(make_app: MakeApp, place: str) -> None:
    """Masked as SQLAlchemy does it, and without a password it can be parsed again."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=url(place))
    with app.app_context():
        found, expected = db.engine.url, make_url(url(place))
    assert type(found) is type(expected)
    assert found == expected
    assert str(found) == str(expected)
    if place != "userinfo":
        assert make_url(str(found)) == found


def test_ping_of_a_driver_that_quotes(
    make_app: MakeApp, logged: pytest.LogCaptureFixture
) -> None:
    """Of what a driver says, only known words are repeated."""

    def creator() -> None:
        raise sqlite3.OperationalError(f"access denied: {url('userinfo')}")

    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_ENGINE_OPTIONS={"creator": creator})
    with app.app_context(), pytest.raises(PingError) as info:
        db.ping()
    assert str(info.value) == "bind 'default': OperationalError (access denied)"
    check(info.value, logged)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "args",
    [
        ["pool-status"],
        ["pool-status", "--json"],
        ["pool-status", "--verbose"],
        ["session-status"],
        ["session-status", "--json"],
        ["db-ping"],
        ["db-ping", "--json"],
    ],
)
def test_commands(make_app: MakeApp, place: str, args: list[str]) -> None:
    """No output has it."""
    app = make_app(ScopedSession(), SQLALCHEMY_DATABASE_URI=url(place))
    result = app.test_cli_runner().invoke(args=args)
    assert SECRET not in result.output
    assert result.exit_code == (4 if args[0] == "db-ping" else 0), result.output


def test_what_a_pool_timeout_says(
    make_app: MakeApp, logged: pytest.LogCaptureFixture
) -> None:
    """It names holders, and neither parameters nor the connection's URL."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_ENGINE_OPTIONS={
            "pool_size": 1,
            "max_overflow": 0,
            "pool_timeout": 0.01,
        },
        SCOPEDSESSION_SHOW_SQL=True,
    )
    with app.app_context():
        db.session.execute(text("SELECT :word"), {"word": SECRET})
        with pytest.raises(Exception, match="QueuePool limit") as info:
            db.engine.connect()
        check(info.value, logged)
        assert logged.records
        assert SECRET not in str(db.snapshot().to_dict())
        db.session.rollback()


def test_raw_paths_and_queries(make_app: MakeApp) -> None:
    """A request is shown by its rule."""
    db = ScopedSession()
    app = make_app(db)
    seen: list[str] = []

    @app.get("/reset/<token>")
    def reset(token: str) -> str:
        db.session.execute(text("SELECT :t"), {"t": token})
        seen.append(str(db.snapshot().to_dict()))
        return token

    client = app.test_client()
    headers = {"Authorization": f"Bearer {SECRET}"}
    client.get(f"/reset/{SECRET}?key={SECRET}", headers=headers)
    (said,) = seen
    assert re.search(r"/reset/<token>", said)
    assert SECRET not in said


@pytest.mark.parametrize(
    "parts",
    [
        {"database": f"host=h password={SECRET}"},
        {"database": f"postgresql://u:{SECRET}@h/d"},
        {"database": f"d?password={SECRET}"},
        {"database": f"{SECRET}@h/d"},
        {"host": f"h;PWD={SECRET}"},
        {"drivername": "sqlite", "database": f"file:x.db?key={SECRET}"},
    ],
)
def test_a_connection_string_for_a_name(
    make_app: MakeApp, parts: dict[str, Any]
) -> None:
    """Drivers take one where the name of a database stands; it is cut off."""
    place = {"drivername": "postgresql+psycopg", "port": 1, **parts}
    if parts.get("drivername") == "sqlite":
        place = {**parts, "query": {"uri": "true"}}
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=place)
    with app.app_context():
        assert SECRET not in str(db.workers(timeout=0.1).to_dict())
        assert SECRET not in str(db.snapshot().to_dict())
    for command in ("pool-status", "db-ping"):
        for form in ([], ["--json"]):
            result = app.test_cli_runner().invoke(args=[command, *form])
            assert SECRET not in result.output


def test_a_file_with_an_odd_name_is_shown(make_app: MakeApp, short_tmp: Path) -> None:
    db = ScopedSession()
    path = f"{short_tmp}/tenant=7;a&b.db"
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI={"drivername": "sqlite", "database": path}
    )
    with app.app_context():
        assert db.snapshot().pools[0].url.database == path


class Base(DeclarativeBase):
    pass


class Letter(Base):
    __tablename__ = "letter"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]

    def __repr__(self) -> str:
        return f"<Letter {self.body}>"


def test_an_error_of_the_application_is_not_logged_with_one_of_ours(
    make_app: MakeApp, logged: pytest.LogCaptureFixture
) -> None:
    """SQLAlchemy writes parameters into its errors; when close() fails, too."""

    class Failing(Session):
        def close(self) -> None:
            super().close()
            raise OSError("the connection is gone")

        def invalidate(self) -> None:
            super().invalidate()
            raise OSError("gone for good")

    db = ScopedSession(session_options={"class_": Failing})
    app = make_app(db)
    with pytest.raises(OperationalError, match=SECRET):  # noqa: SIM117
        with app.app_context():
            db.session.execute(text("SELECT :word FROM nowhere"), {"word": SECRET})
    texts = [logging.Formatter().format(record) for record in logged.records]
    assert "the connection is gone" in "".join(texts)
    assert "gone for good" in "".join(texts)
    assert SECRET not in "".join(texts)


#: Commands that ask; the last ones ask the database as well.
ASKING = [
    [command, *options]
    for command in ("pool-status", "session-status")
    for options in (
        [],
        ["--json"],
        ["--verbose"],
        ["--check"],
        ["--check", "--json"],
    )
] + [
    ["pool-status", "--server"],
    ["pool-status", "--server", "--json"],
    ["pool-status", "--server", "--verbose"],
    ["pool-advise"],
    ["pool-advise", "--json"],
    ["db-ping"],
    ["db-ping", "--json"],
]


def busy_app(make_app: MakeApp, db: ScopedSession[Any], url: str) -> Flask:
    """An application all of whose insides are secret, in trouble of every kind."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=url,
        SQLALCHEMY_ENGINE_OPTIONS={
            "pool_size": 2,
            "max_overflow": 0,
            "pool_timeout": 0.05,
        },
        SCOPEDSESSION_CONTROL=True,
        SCOPEDSESSION_STACKS=True,
        SCOPEDSESSION_SHOW_SQL=True,
        SCOPEDSESSION_HELD_LONG_AFTER=0.1,
        SECRET_KEY=SECRET,
    )

    def lose(token: str) -> str:
        secret_local = f"{token} of a local variable"
        db.session.add(Letter(body=secret_local))
        db.session.flush()
        return secret_local

    def share(token: str) -> str:
        db.session.scalar(select(Letter.id).where(Letter.body == token))
        session = db.session()

        def running() -> bool:
            return any(holder.running_s for holder in db.snapshot().pools[0].holders)

        with ThreadPoolExecutor(1) as threads:
            slow = text("SELECT :token FROM pg_sleep(0.5)")
            asked = threads.submit(session.scalar, slow, {"token": token})
            wait_until(running)
            session.scalar(select(literal(token)))
            asked.result(10)
        db.session.rollback()
        return token

    def time_out(token: str) -> str:
        held = [db.engine.connect() for _ in range(2)]
        for each in held:
            each.execute(select(literal(token)))
        try:
            db.session.execute(select(literal(token)))
        except PoolTimeout as error:
            assert all(SECRET not in said for said in said_by(error))
            assert SECRET not in repr(error.holders)  # type: ignore[attr-defined]
        finally:
            for each in held:
                each.close()
        return token

    def fail(token: str) -> str:
        db.session.execute(select(literal(token)))
        raise RuntimeError(f"{token} {url}")

    for view in (lose, share, time_out, fail):
        app.add_url_rule(f"/{view.__name__}/<token>", view_func=view)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    return app


def test_every_output_of_an_application_full_of_secrets(
    make_app: MakeApp,
    pg_url: str,
    short_tmp: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables, JSON, checks, advice, the server's view, files, logs and reprs."""
    caplog.set_level(logging.DEBUG, "flask_scopedsession")
    monkeypatch.setattr(sys, "argv", ["flask", f"--password={SECRET}"])
    db: ScopedSession[Any] = ScopedSession(model_class=Base)
    address = make_url(pg_url).set(username="postgres", password=SECRET)
    app = busy_app(make_app, db, address.render_as_string(hide_password=False))
    with app.app_context():
        db.create_all()
    app.testing = False
    visitor = app.test_client()
    visitor.set_cookie("session", SECRET)
    for view in ("lose", "share", "time_out", "fail"):
        visitor.post(f"/{view}/{SECRET}", data={"word": SECRET})
        visitor.get(
            f"/{view}/{SECRET}?word={SECRET}",
            headers={"Authorization": f"Bearer {SECRET}", "Referer": f"/{SECRET}"},
        )

    shown: dict[str, str] = {}
    with app.test_request_context(f"/lose/{SECRET}?word={SECRET}", method="GET"):
        db.session.execute(select(literal(SECRET)))
        db.session.add(Letter(body=SECRET))
        held = db.engine.connect()
        held.execute(text("SELECT :word"), {"word": SECRET})
        wait_until(lambda: list(short_tmp.glob("flask-*/*/*.json")), what="a snapshot")
        for args in ASKING:
            result = app.test_cli_runner().invoke(args=args)
            assert result.exit_code in (0, 3, 4), result.output
            shown[" ".join(args)] = result.output
        history = History(2.0)
        history.add(db.workers())
        shown["watch"] = render_pools(db.workers(), history=history)
        shown["watch"] += render_sessions(db.workers(), history=history)
        shown["python"] = repr(
            (db, db.session, db.engines, db.sessionmaker, db.snapshot(), db.workers())
        )
        shown["json"] = str((db.snapshot().to_dict(), db.workers().to_dict()))
        db.session.rollback()
        held.close()
    for path in short_tmp.glob("flask-*/*/*"):
        if path.suffix in (".json", ".lock"):
            shown[path.suffix] = path.read_text()
    ours = [r for r in caplog.records if r.name == "flask_scopedsession"]
    shown["log"] = "\n".join(logging.Formatter().format(record) for record in ours)

    leaking = [name for name, output in shown.items() if SECRET in output]
    assert leaking == []
    # It was all there to be seen.
    for word in ("lost_work", "recent_shared", "recent_timeouts", "/lose/<token>"):
        assert word in shown["json"]
    for word in ("lose", "share", "time_out"):
        assert word in shown["log"]
    assert "Letter" in shown["session-status"]
    assert "two threads" in shown["session-status"]
    assert "timed out after" in shown["pool-status"]
    assert "connections are left" in shown["pool-status --server"]
    assert ".json" in shown


def test_arguments_of_a_command(make_app: MakeApp) -> None:
    """A command is shown by its name."""
    db = ScopedSession()
    app = make_app(db)
    seen: list[str] = []

    @app.cli.command("send")
    @click.argument("to")
    @click.option("--password")
    def send(to: str, password: str) -> None:
        db.session.execute(select(literal(to + password)))
        seen.append(str(db.snapshot().to_dict()))
        db.session.rollback()

    args = ["send", SECRET, "--password", SECRET]
    assert app.test_cli_runner().invoke(args=args).exit_code == 0
    (said,) = seen
    assert "'command': 'send'" in said
    assert SECRET not in said
