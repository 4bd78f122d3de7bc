"""No password in any message, repr, traceback, log record or output."""

from __future__ import annotations

import logging
import re
import sqlite3
import sys
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import make_url
from sqlalchemy import text

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


def told_by(error: BaseException) -> Iterator[str]:
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
    for said in told_by(error):
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
    """Nor is the URL whose driver is missing."""
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
        state = db._state("test")
        for each in (db, state, state.settings, *state.settings.binds.values()):
            assert SECRET not in repr(each)
        assert SECRET not in repr(db.snapshot())
        assert SECRET not in str(db.workers(timeout=0.1).to_dict())
        for said in (db.engine, db.engines, db.sessionmaker, db.engine.url):
            assert SECRET not in repr(said)
            assert SECRET not in str(said)
        assert {db.engine.url} == {make_url(url(place))}
        whole = db.engine.url.render_as_string(hide_password=False)
        assert make_url(whole) == db.engine.url


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
