"""Configuration: each key's types, bounds and defaults, and what is refused."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Config
from sqlalchemy import make_url
from sqlalchemy import NullPool
from sqlalchemy import URL
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.engine.default import DefaultDialect

from flask_scopedsession._settings.config import BindSettings
from flask_scopedsession._settings.config import read_settings
from flask_scopedsession._settings.config import Settings
from flask_scopedsession._settings.keys import KEYS
from flask_scopedsession.errors import ConfigError

URI = "sqlite:///app.db"
PG = "postgresql+psycopg://u:swordfish@db/app"
SECRET = "swordfish"


def read(
    *,
    engine_options: dict[str, Any] | None = None,
    **config: Any,
) -> Settings:
    if not config.keys() & {"SQLALCHEMY_DATABASE_URI", "SQLALCHEMY_BINDS"}:
        config["SQLALCHEMY_DATABASE_URI"] = URI
    return read_settings(
        config,
        default_name="app:/srv/app",
        engine_options=engine_options,
    )


def bind(name: str = "default", **config: Any) -> BindSettings:
    return read(**config).binds[name]


def refused(**config: Any) -> str:
    """Return the message with which a configuration is refused."""
    with pytest.raises(ConfigError) as info:
        read(**config)
    error = info.value
    # It is not chained to another error, which could quote a value.
    assert error.__cause__ is None
    assert error.__context__ is None
    whole = "".join(traceback.format_exception(error))
    assert SECRET not in whole.replace(__file__, "").split("ConfigError:")[-1]
    return str(error)


def from_env(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, Any]:
    """Return the configuration as ``from_prefixed_env()`` makes it."""
    for name, value in variables.items():
        monkeypatch.setenv(f"FLASK_{name}", value)
    config = Config(".")
    config.from_prefixed_env()
    return dict(config)


# Defaults and single keys


def test_defaults() -> None:
    """With nothing but a URL, every key has the default of the documentation."""
    settings = read()
    assert settings.name == "app:/srv/app"
    assert settings.tracking is True
    assert settings.control is None
    assert settings.control_dir is None
    assert settings.snapshot_file is True
    assert settings.held_long_after == 15.0
    assert settings.lost_work == "warn"
    assert settings.stacks is False
    assert settings.show_sql is False
    assert settings.notes == ()
    assert dict(settings.session_options) == {}
    default = settings.binds["default"]
    assert dict(default.options) == {"echo": False}
    assert default.ping_idle_after is None
    assert dict(default.pragmas) == {}
    assert default.begin is None


def test_debug_records_stacks_and_sql() -> None:
    """In debug mode both are on by default, and can be turned off."""
    assert read(DEBUG=True).stacks is True
    assert read(DEBUG=True).show_sql is True
    assert read(DEBUG=True, SCOPEDSESSION_STACKS=False).stacks is False
    assert read(DEBUG=True, SCOPEDSESSION_SHOW_SQL="no").show_sql is False


@pytest.mark.parametrize(
    ("value", "debug"),
    [("False", False), ("0", False), ("", False), (None, False), ("true", True)],
)
def test_debug_may_be_text(value: object, debug: bool) -> None:
    """From the environment, ``DEBUG=False`` does not switch them on."""
    settings = read(DEBUG=value)
    assert (settings.stacks, settings.show_sql) == (debug, debug)


@pytest.mark.parametrize("key", ["DEBUG", "TESTING"])
def test_flasks_flags_refuse_the_rest(key: str) -> None:
    assert refused(**{key: "perhaps"}) == f"{key} must be true or false."


FLAGS = [
    ("SCOPEDSESSION_TRACKING", "tracking"),
    ("SCOPEDSESSION_CONTROL", "control"),
    ("SCOPEDSESSION_SNAPSHOT_FILE", "snapshot_file"),
    ("SCOPEDSESSION_STACKS", "stacks"),
    ("SCOPEDSESSION_SHOW_SQL", "show_sql"),
]


@pytest.mark.parametrize(("key", "name"), FLAGS)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (1, True),
        (" Yes ", True),
        ("on", True),
        ("TRUE", True),
        ("1", True),
        (False, False),
        (0, False),
        ("False", False),
        ("no", False),
        ("off", False),
        ("0", False),
    ],
)
def test_flags(key: str, name: str, value: object, expected: bool) -> None:
    """Truth values may be text."""
    assert getattr(read(**{key: value}), name) is expected


@pytest.mark.parametrize(
    "key",
    [key for key, _ in FLAGS] + ["SQLALCHEMY_ECHO", "SCOPEDSESSION_FAIR_POOL"],
)
@pytest.mark.parametrize("value", ["perhaps", 7, 1.5, [], {}])
def test_flags_refuse_the_rest(key: str, value: object) -> None:
    """Another text or type is an error that names the key, not silently true."""
    assert refused(**{key: value}).startswith(f"{key} must be true")


@pytest.mark.parametrize(
    "key",
    [
        "SCOPEDSESSION_NAME",
        "SCOPEDSESSION_TRACKING",
        "SCOPEDSESSION_CONTROL",
        "SCOPEDSESSION_CONTROL_DIR",
        "SCOPEDSESSION_HELD_LONG_AFTER",
        "SCOPEDSESSION_LOST_WORK",
        "SCOPEDSESSION_SQLITE_PRAGMAS",
        "SCOPEDSESSION_SQLITE_BEGIN",
        "SQLALCHEMY_BINDS",
        "SQLALCHEMY_ENGINE_OPTIONS",
        "SQLALCHEMY_SESSION_OPTIONS",
        "SQLALCHEMY_ECHO",
    ],
)
@pytest.mark.parametrize("value", ["", " ", None])
def test_empty_is_unset(key: str, value: object) -> None:
    """An empty variable, as in a .env file, leaves the default."""
    config = {"SQLALCHEMY_DATABASE_URI": URI, key: value}
    assert read(**config) == read()


def test_name() -> None:
    """A name of digits arrives as a number from the environment."""
    for value, name in (("blue", "blue"), (42, "42")):
        settings = read(SCOPEDSESSION_NAME=value)
        assert (settings.name, settings.connection_name) == (name, name)
    assert (read().name, read().connection_name) == ("app:/srv/app", None)
    # From the environment, bytes that are not UTF-8.
    assert read(SCOPEDSESSION_NAME="caf\udce9").name == "caf\udce9"
    message = refused(SCOPEDSESSION_NAME=["blue"])
    assert message == "SCOPEDSESSION_NAME must be a string, not a list."


def test_control_dir(tmp_path: Path) -> None:
    """A path, as text or object."""
    assert read(SCOPEDSESSION_CONTROL_DIR=tmp_path).control_dir == str(tmp_path)
    assert read(SCOPEDSESSION_CONTROL_DIR=str(tmp_path)).control_dir == str(tmp_path)
    assert "must be a string" in refused(SCOPEDSESSION_CONTROL_DIR=True)


@pytest.mark.parametrize("word", ["0", "false", "No", "OFF"])
def test_environment_turns_control_off(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """``SCOPEDSESSION_CONTROL=0`` in the environment wins over the configuration."""
    monkeypatch.setenv("SCOPEDSESSION_CONTROL", word)
    assert read(SCOPEDSESSION_CONTROL=True).control is False
    assert read().control is False


@pytest.mark.parametrize("word", ["1", "true", ""])
def test_environment_does_not_turn_control_on(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """It only turns it off: the configuration, or TESTING, decides otherwise."""
    monkeypatch.setenv("SCOPEDSESSION_CONTROL", word)
    assert read(SCOPEDSESSION_CONTROL=False).control is False
    assert read().control is None


@pytest.mark.parametrize("value", [0.1, 1, "2.5", 3600])
def test_held_long_after(value: object) -> None:
    """Seconds, also as text."""
    held_long_after = read(SCOPEDSESSION_HELD_LONG_AFTER=value).held_long_after
    assert held_long_after == float(value)  # type: ignore[arg-type]
    assert type(held_long_after) is float


@pytest.mark.parametrize(
    "value",
    [0, 0.09, -1, True, "soon", "nan", float("inf"), float("nan"), 10**400, []],
)
def test_held_long_after_bounds(value: object) -> None:
    """At least a tenth of a second, and a number."""
    message = refused(SCOPEDSESSION_HELD_LONG_AFTER=value)
    assert message == (
        "SCOPEDSESSION_HELD_LONG_AFTER must be a number of seconds, at least 0.1."
    )


def test_ping_idle_after() -> None:
    """Half a second for networked databases, none for SQLite; ``None`` is never."""
    key = "SCOPEDSESSION_PING_IDLE_AFTER"
    networked = {"SQLALCHEMY_DATABASE_URI": PG}
    assert bind(**networked).ping_idle_after == 0.5
    assert bind(**networked, **{key: 3}).ping_idle_after == 3.0
    assert bind(**networked, **{key: "0"}).ping_idle_after == 0.0
    assert bind(**networked, **{key: None}).ping_idle_after is None
    assert bind(**{key: 3}).ping_idle_after is None
    assert key in refused(**networked, **{key: -1})
    assert key in refused(**{key: "often"})


def test_fair_pool() -> None:
    """On unless it is switched off, for every bind."""
    assert bind(SQLALCHEMY_DATABASE_URI=PG).fair_pool is True
    urls = {"SQLALCHEMY_DATABASE_URI": PG, "SQLALCHEMY_BINDS": {"audit": PG}}
    both = {**urls, "SCOPEDSESSION_FAIR_POOL": "no"}
    assert bind(**both).fair_pool is False
    assert bind("audit", **both).fair_pool is False


def test_ping_idle_after_yields_to_pre_ping() -> None:
    """If every checkout is tested, none is tested twice."""
    options = {"pool_pre_ping": True}
    settings = bind(SQLALCHEMY_DATABASE_URI=PG, SQLALCHEMY_ENGINE_OPTIONS=options)
    assert settings.ping_idle_after is None


@pytest.mark.parametrize("word", ["warn", "raise", "ignore"])
def test_lost_work(word: str) -> None:
    """Three words, whatever the mode: it is judged when a scope ends."""
    assert read(SCOPEDSESSION_LOST_WORK=word).lost_work == word


def test_lost_work_refuses_the_rest() -> None:
    key = "SCOPEDSESSION_LOST_WORK"
    assert refused(**{key: "shout"}).startswith(f"{key} must be 'warn', 'raise' or")
    assert refused(**{key: 1}).startswith(key)


def test_sqlite_pragmas() -> None:
    """Plain names and values, with booleans as SQLite spells them."""
    pragmas = {
        "foreign_keys": True,
        "journal_mode": "WAL",
        "busy_timeout": 5000,
        "temp.cache_size": -2000,
        "synchronous": False,
    }
    assert dict(bind(SCOPEDSESSION_SQLITE_PRAGMAS=pragmas).pragmas) == {
        "foreign_keys": "ON",
        "journal_mode": "WAL",
        "busy_timeout": "5000",
        "temp.cache_size": "-2000",
        "synchronous": "OFF",
    }


@pytest.mark.parametrize(
    "value",
    [
        {"foreign_keys; DROP TABLE x": 1},
        {"journal_mode": "WAL; DROP TABLE x"},
        {"key": "'swordfish'"},
        {"journal_mode": None},
        {1: 2},
        ["foreign_keys"],
        "foreign_keys",
    ],
)
@pytest.mark.parametrize("uri", [URI, PG])
def test_sqlite_pragmas_refused(value: object, uri: str) -> None:
    """Anything else is refused, whatever the database."""
    config = {"SQLALCHEMY_DATABASE_URI": uri, "SCOPEDSESSION_SQLITE_PRAGMAS": value}
    assert refused(**config).startswith("SCOPEDSESSION_SQLITE_PRAGMAS")


@pytest.mark.parametrize(
    ("key", "before"),
    [
        ("SCOPEDSESSION_NAME", ""),
        ("SCOPEDSESSION_CONTROL_DIR", ""),
        ("SQLALCHEMY_DATABASE_URI", "sqlite:///"),
    ],
)
def test_no_name_of_a_file(key: str, before: str) -> None:
    """Refused at once, and not when a request ends or a session connects."""
    message = refused(**{key: f"{before}a\ud800b"})
    assert message == f"{key} has characters that cannot be encoded."
    message = refused(**{key: f"{before}a\0b"})
    assert message == f"{key} may not contain a NUL character."


def test_sqlite_begin() -> None:
    """A transaction begins in one of two ways."""
    key = "SCOPEDSESSION_SQLITE_BEGIN"
    assert bind(**{key: "DEFERRED"}).begin == "DEFERRED"
    assert bind(**{key: "IMMEDIATE"}).begin == "IMMEDIATE"
    assert refused(**{key: "EXCLUSIVE"}) == f"{key} must be 'DEFERRED' or 'IMMEDIATE'."
    assert key in refused(SQLALCHEMY_DATABASE_URI=PG, **{key: True})


def test_sqlite_keys_are_for_sqlite() -> None:
    """Other databases are left alone."""
    other = bind(
        SQLALCHEMY_DATABASE_URI=PG,
        SCOPEDSESSION_SQLITE_PRAGMAS={"foreign_keys": True},
        SCOPEDSESSION_SQLITE_BEGIN="IMMEDIATE",
    )
    assert (dict(other.pragmas), other.begin) == ({}, None)


# The table of keys, and the page that prints it


def test_the_documentation_prints_the_table() -> None:
    """Each key with its type, unit and default, as the settings read it."""
    page = Path(__file__).parents[2] / "docs" / "config.md"
    rows = [
        f"| [`{name}`](#{name.lower()}) | {key.meaning} | {key.type}"
        f" | {key.default_text} |"
        for name, key in KEYS.items()
    ]
    text = page.read_text(encoding="utf-8")
    assert "\n".join(rows) in text
    for name in KEYS:
        assert f"\n### `{name}`\n" in text


# Keys that are not ours, or unknown


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("SCOPEDSESSION_HELD_LONG", "SCOPEDSESSION_HELD_LONG_AFTER"),
        ("SCOPEDSESSION_SQLITE_PRAGMA", "SCOPEDSESSION_SQLITE_PRAGMAS"),
        ("SCOPEDSESSION_TRACKNG", "SCOPEDSESSION_TRACKING"),
    ],
)
def test_unknown_key(key: str, hint: str) -> None:
    """A misspelt key is an error that suggests the right one."""
    message = refused(**{key: 1})
    assert message == f"{key} is not a key of this version. Did you mean {hint}?"


def test_unknown_key_without_a_near_one() -> None:
    """Nothing is suggested if no key has a similar name."""
    message = refused(SCOPEDSESSION_XYZZY_PLUGH=1)
    assert message == "SCOPEDSESSION_XYZZY_PLUGH is not a key of this version."


def test_keys_of_others_are_ignored() -> None:
    """Keys without our prefix are ignored, and need not be text."""
    config: dict[Any, Any] = {"SQLALCHEMY_DATABASE_URI": URI, "OTHER": 1, 7: 8}
    read_settings(config, default_name="x")


@pytest.mark.parametrize(
    "key", ["SQLALCHEMY_RECORD_QUERIES", "SQLALCHEMY_TRACK_MODIFICATIONS"]
)
def test_keys_of_flask_sqlalchemy(key: str) -> None:
    """One note for each that asks for something."""
    (note,) = read(**{key: True}).notes
    assert key in note
    assert "Flask-SQLAlchemy" in note
    assert read(**{key: False}).notes == ()
    assert read(**{key: "False"}).notes == ()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("POOL_SIZE", "Set SQLALCHEMY_ENGINE_OPTIONS['pool_size'] instead."),
        ("POOL_RECYCLE", "Set SQLALCHEMY_ENGINE_OPTIONS['pool_recycle'] instead."),
        ("POOL_TIMEOUT", "Set SQLALCHEMY_ENGINE_OPTIONS['pool_timeout'] instead."),
        ("MAX_OVERFLOW", "Set SQLALCHEMY_ENGINE_OPTIONS['max_overflow'] instead."),
        ("POOL_PRE_PING", "Set SQLALCHEMY_ENGINE_OPTIONS['pool_pre_ping'] instead."),
        ("EXPIRE_ON_COMMIT", "SQLALCHEMY_SESSION_OPTIONS['expire_on_commit'] instead."),
        ("COMMIT_ON_TEARDOWN", "Call db.session.commit() in the views that write."),
        ("NATIVE_UNICODE", "Remove it."),
        ("ENGINES", "Set SQLALCHEMY_DATABASE_URI and SQLALCHEMY_BINDS instead."),
        ("ASYNC_ENGINES", "besides SQLALCHEMY_DATABASE_URI or SQLALCHEMY_BINDS."),
        # Applications have such keys of their own.
        ("DATABASE_URI_TEST", "is not a key of this version, and does nothing here."),
        ("TEST_DATABASE_URI", "is not a key of this version, and does nothing here."),
        ("SOMETHING", "is not a key of this version, and does nothing here."),
    ],
)
def test_key_that_does_nothing(key: str, says: str) -> None:
    """One note, with what replaces it; none if it asks for nothing."""
    name = f"SQLALCHEMY_{key}"
    (note,) = read(**{name: 1}).notes
    assert note.startswith(f"{name} ")
    assert note.endswith(says)
    assert read(**{name: None}).notes == ()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("SQLALCHEMY_ENGINE_OPTION", "SQLALCHEMY_ENGINE_OPTIONS"),
        ("SQLALCHEMY_ENGINE_OPTS", "SQLALCHEMY_ENGINE_OPTIONS"),
        ("SQLALCHEMY_DATABASE_URL", "SQLALCHEMY_DATABASE_URI"),
        ("SQLALCHEMY_DATABSE_URI", "SQLALCHEMY_DATABASE_URI"),
        ("SQLALCHEMY_database_uri", "SQLALCHEMY_DATABASE_URI"),
        ("SQLALCHEMY_BIND", "SQLALCHEMY_BINDS"),
        ("SQLALCHEMY_SESSION_OPTION", "SQLALCHEMY_SESSION_OPTIONS"),
    ],
)
def test_misspelt_key_of_sqlalchemy(key: str, hint: str) -> None:
    """It would be passed over, and the default used instead."""
    message = refused(**{key: "sqlite:///swordfish.db"})
    assert message == f"{key} is not a key of this version. Did you mean {hint}?"


def test_one_note_for_each_key() -> None:
    """Two keys, two notes."""
    settings = read(SQLALCHEMY_RECORD_QUERIES=1, SQLALCHEMY_TRACK_MODIFICATIONS=1)
    assert len(settings.notes) == 2


# URLs


@pytest.mark.parametrize(
    "value",
    [
        PG,
        f" {PG}\n",
        URL.create("postgresql+psycopg", "u", SECRET, "db", None, "app"),
        {
            "drivername": "postgresql+psycopg",
            "username": "u",
            "password": SECRET,
            "host": "db",
            "database": "app",
        },
        {"url": PG},
        {"url": {"drivername": "postgresql+psycopg", "username": "u",
                 "password": SECRET, "host": "db", "database": "app"}},
    ],
)  # fmt: skip
def test_url_forms(value: Any) -> None:
    """Text, an object, a dict of its parts, or a dict with options."""
    url = bind(SQLALCHEMY_DATABASE_URI=value).url
    assert url.render_as_string(hide_password=False) == PG
    binds = bind("b", SQLALCHEMY_BINDS={"b": value}).url
    assert binds == url


def test_url_parts_from_the_environment() -> None:
    """Parts of digits arrive as numbers; a port may be text."""
    parts = {
        "drivername": "postgresql",
        "username": 7,
        "password": 1234,
        "host": "db",
        "port": "5433",
        "database": 2024,
    }
    url = bind(SQLALCHEMY_DATABASE_URI=parts).url
    assert (url.username, url.password, url.port, url.database) == (
        "7",
        "1234",
        5433,
        "2024",
    )


@pytest.mark.parametrize("config", [{}, {"SQLALCHEMY_BINDS": {}}])
def test_uri_missing(config: dict[str, Any]) -> None:
    """Without any database, the error says what to set."""
    with pytest.raises(ConfigError) as info:
        read_settings(config, default_name="x")
    assert str(info.value) == (
        "SQLALCHEMY_DATABASE_URI is not set, and SQLALCHEMY_BINDS is empty. Set one"
        " of them before init_app, such as"
        " app.config['SQLALCHEMY_DATABASE_URI'] = 'sqlite:///app.db'."
    )


MALFORMED = [
    "postgresql://u:p@s?sword=fish@db/app",
    "postgresql://u:p@s/s?sword=fi&sh=fish@db:5432/app?sslmode=require",
    "swordfish",
    "postgresql//u:swordfish@db/app",
    "postgresql://u:swordfish@db:port/app",
    "postgresql://u:x@swordfish@db/app",
    "postgresql://u:x@sword:fish@db/app",
    "postgresql+psycopg://u:@swordfish@db",
    # SQLAlchemy takes the rest of the password for the database or the query.
    "postgresql://u:p@ss/swordfish@db/app",
    "postgresql://u:p@ss?swordfish@db/app",
    "postgresql://u/swordfish:p@db/app",
    "sqlite+pysqlcipher://:p@/swordfish@/app.db",
]


@pytest.mark.parametrize(
    "value",
    [
        "sqlite:////home/me@corp/app.db",
        "postgresql+psycopg://u:p%40ss%2Fswordfish@db/app",
        "postgresql+psycopg://db/app?options=-csearch_path%3Da@b",
        "postgresql+psycopg://u:p?ss@db/app",
        {"drivername": "postgresql", "database": "a@b"},
        {"drivername": "postgresql", "password": "p@ss/w0rd", "database": "a@b"},
        URL.create("postgresql", database="a@b"),
    ],
)
def test_an_at_sign_elsewhere(value: Any) -> None:
    """A path, a value of the query, and explicit parts may have one."""
    assert bind(SQLALCHEMY_DATABASE_URI=value).url


@pytest.mark.parametrize("value", MALFORMED)
def test_malformed_url(value: str) -> None:
    """Named by its key, and not quoted, nor any part of it."""
    message = refused(SQLALCHEMY_DATABASE_URI=value)
    assert message.startswith(
        "SQLALCHEMY_DATABASE_URI could not be parsed as a database URL."
    )
    assert "percent-encoded" in message
    assert "fish" not in message
    binds = refused(SQLALCHEMY_BINDS={"audit": {"url": value}})
    assert binds.startswith("SQLALCHEMY_BINDS['audit']['url'] could not be parsed")


@pytest.mark.parametrize(
    "value",
    ["postgresql+psycopg://u:p@ss/swordfish@db/app", "postgresql://u:p@swordfish@db"],
)
def test_password_that_make_url_splits(value: str) -> None:
    """A URL that the application parsed shows the same part of the password."""
    message = refused(SQLALCHEMY_DATABASE_URI=make_url(value))
    assert "percent-encoded" in message


@pytest.mark.parametrize(
    "value",
    [
        {"drivername": PG},
        {"drivername": "postgresql", "port": SECRET},
        {"drivername": "postgresql", SECRET: 1},
        {"drivername": "postgresql", "pasword": SECRET},
        {"drivername": None},
        {"drivername": "postgresql", "query": SECRET},
        {"drivername": "postgresql", "host": ["db"]},
        {"host": "db", "password": SECRET},
        {},
    ],
)
def test_malformed_parts(value: dict[str, Any]) -> None:
    """The error lists the parts that a URL has, not those that were given."""
    message = refused(SQLALCHEMY_DATABASE_URI=value)
    assert message.startswith("SQLALCHEMY_DATABASE_URI")
    assert "drivername" in message


@pytest.mark.parametrize(
    ("value", "kind"),
    [(5, "an int"), (b"sqlite://", "a bytes"), ([PG], "a list"), (True, "a bool")],
)
def test_url_of_wrong_type(value: object, kind: str) -> None:
    """Only the type of the value is shown."""
    message = refused(SQLALCHEMY_DATABASE_URI=value)
    assert message == (
        f"SQLALCHEMY_DATABASE_URI must be a str, a URL or a dict, not {kind}."
    )


def test_unknown_dialect() -> None:
    """The dialect is named; a common mistake has its remedy."""
    message = refused(SQLALCHEMY_DATABASE_URI="oracel://u:swordfish@db/app")
    assert "names the dialect 'oracel', which SQLAlchemy does not know" in message
    assert "Check the spelling" in message
    message = refused(SQLALCHEMY_DATABASE_URI="xyzzy://u:swordfish@db/app")
    assert "Did you mean" not in message
    message = refused(SQLALCHEMY_DATABASE_URI="postgres://u:swordfish@db/app")
    assert message.endswith("Use 'postgresql'.")
    message = refused(
        SQLALCHEMY_DATABASE_URI="postgresql+psycopg9://u:swordfish@db/app"
    )
    assert "'postgresql+psycopg9'" in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("sqllite", "sqlite"),
        ("sqlite3", "sqlite"),
        ("SQLite", "sqlite"),
        ("posgresql", "postgresql"),
        ("postgressql+psycopg2", "postgresql+psycopg2"),
        ("postgresql+psycopg3", "postgresql+psycopg"),
        ("mysql+pymsql", "mysql+pymysql"),
        ("oracel", "oracle"),
    ],
)
def test_misspelt_dialect(name: str, near: str) -> None:
    """The near name is offered, of the dialect and of its driver."""
    message = refused(SQLALCHEMY_DATABASE_URI=f"{name}://u:swordfish@db/app")
    assert f"names the dialect {name!r}, which SQLAlchemy does not know" in message
    assert f"Did you mean {near!r}?" in message


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("sqlite+aiosqlite", "'sqlite+pysqlite'"),
        ("postgresql+asyncpg", "'postgresql+psycopg'"),
        ("mysql+aiomysql", "'mysql+pymysql'"),
    ],
)
def test_async_driver(name: str, instead: str) -> None:
    """Refused, installed or not; the error names a synchronous one."""
    message = refused(SQLALCHEMY_BINDS={"audit": f"{name}:///x"})
    assert message.startswith(
        f"SQLALCHEMY_BINDS['audit'] names the async driver '{name}'."
    )
    assert f"use a synchronous driver, such as {instead}." in message
    assert message.endswith("for 'db.async_session': set SQLALCHEMY_ASYNC_BINDS.")


@pytest.mark.parametrize("value", ["sqlite://app.db", "sqlite://u:swordfish@h/x"])
def test_sqlite_has_no_host(value: str) -> None:
    """Two slashes are one too few."""
    assert "three slashes" in refused(SQLALCHEMY_DATABASE_URI=value)


class ServedDialect(SQLiteDialect):
    """As of libSQL and others: SQLite's SQL, sent to a server."""

    driver = "served"
    supports_statement_cache = True


def test_sqlite_dialect_of_a_server() -> None:
    """Judged by the driver: it may name a host, and is tested as other servers are."""
    registry.register("sqlite.served", __name__, "ServedDialect")
    config = {
        "SCOPEDSESSION_SQLITE_BEGIN": "IMMEDIATE",
        "SCOPEDSESSION_SQLITE_PRAGMAS": {"foreign_keys": True},
    }
    for url in ("sqlite+served://db.example:8080/app?secure=true", "sqlite+served://"):
        found = bind(SQLALCHEMY_DATABASE_URI=url, **config)
        assert str(found.url) == url
        assert (found.begin, dict(found.pragmas)) == (None, {})
        assert found.ping_idle_after == 0.5
    assert bind(SQLALCHEMY_DATABASE_URI="sqlite+pysqlite://", **config).begin


# Binds


def test_binds() -> None:
    """Each bind by its name; the default one has its own key."""
    binds = read(
        SQLALCHEMY_DATABASE_URI=URI,
        SQLALCHEMY_BINDS={"audit": "sqlite:///audit.db", "pg": {"url": PG, "echo": 1}},
    ).binds
    assert list(binds) == ["default", "audit", "pg"]
    assert binds["default"].key == "SQLALCHEMY_DATABASE_URI"
    assert binds["audit"].key == "SQLALCHEMY_BINDS['audit']"
    assert binds["pg"].options["echo"] is True
    assert binds["audit"].options["echo"] is False


@pytest.mark.parametrize("name", [None, "default"])
def test_default_bind_among_the_binds(name: str | None) -> None:
    """The default may be among the binds, but not in both places."""
    assert bind(SQLALCHEMY_BINDS={name: URI}).url.database == "app.db"
    message = refused(SQLALCHEMY_DATABASE_URI=URI, SQLALCHEMY_BINDS={name: URI})
    assert message == (
        f"SQLALCHEMY_BINDS[{name!r}] and SQLALCHEMY_DATABASE_URI both name the"
        " default bind. Keep one."
    )


def test_default_bind_twice_among_the_binds() -> None:
    """The two keys are named."""
    message = refused(SQLALCHEMY_BINDS={None: URI, "default": URI})
    assert "['default'] and SQLALCHEMY_BINDS[None] both" in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("sqlite://", "must map names to URLs, not be a str"),
        ([("a", URI)], "must map names to URLs, not be a list"),
        ({"": URI}, "a bind's name must be a non-empty string"),
        ({1: URI}, "a bind's name must be a non-empty string"),
        ({"a": None}, "SQLALCHEMY_BINDS['a'] must be a str, a URL or a dict, not None"),
        ({"a": ""}, "SQLALCHEMY_BINDS['a'] is empty"),
        ({"a": {}}, "SQLALCHEMY_BINDS['a'] must be a URL, a dict of its parts"),
        ({"a": {"pool_size": 2}}, "or a dict with a 'url'"),
        ({"a": {"url": None}}, "SQLALCHEMY_BINDS['a']['url'] must be a str"),
        ({"a": {"url": URI, 3: 4}}, "SQLALCHEMY_BINDS['a'] must have strings as keys"),
    ],
)
def test_malformed_binds(value: object, expected: str) -> None:
    """The error names the bind."""
    assert expected in refused(SQLALCHEMY_BINDS=value)


# Engine options


def test_engine_options_are_inherited_by_driver() -> None:
    """By binds of the same driver, whether or not the URL names it."""
    binds = read(
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 3, "pool_timeout": 1},
        SQLALCHEMY_BINDS={
            "same": {"url": "sqlite+pysqlite:///b.db", "pool_size": 9},
            "other": PG,
            "family": "sqlite+pysqlcipher:///b.db",
        },
    ).binds
    assert dict(binds["default"].options) == {
        "pool_size": 3,
        "pool_timeout": 1.0,
        "echo": False,
    }
    assert binds["same"].options["pool_size"] == 9
    assert binds["same"].options["pool_timeout"] == 1.0
    assert dict(binds["other"].options) == {"echo": False}
    assert dict(binds["family"].options) == {"echo": False}


def test_engine_options_without_a_default_bind() -> None:
    """Then every bind has them."""
    binds = read(
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 3},
        SQLALCHEMY_BINDS={"a": "sqlite:///a.db", "b": PG},
    ).binds
    assert [b.options["pool_size"] for b in binds.values()] == [3, 3]


def test_constructor_options_are_for_every_bind() -> None:
    """Whatever its driver. The configuration wins, and a bind's own options over it."""
    binds = read(
        engine_options={"pool_size": 1, "max_overflow": 1, "pool_timeout": 1},
        SQLALCHEMY_DATABASE_URI=URI,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 2, "max_overflow": 2},
        SQLALCHEMY_BINDS={"audit": {"url": URI, "pool_size": 3}, "pg": PG},
    ).binds

    def sizes(name: str) -> list[Any]:
        options = binds[name].options
        return [options[o] for o in ("pool_size", "max_overflow", "pool_timeout")]

    assert sizes("default") == [2, 2, 1.0]
    assert sizes("audit") == [3, 2, 1.0]
    assert sizes("pg") == [1, 1, 1.0]


def test_the_callers_dicts_are_not_changed() -> None:
    """And a later change by the caller has no effect."""
    config: dict[str, Any] = {
        "SQLALCHEMY_DATABASE_URI": {"drivername": "sqlite", "database": "x"},
        "SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": {"timeout": 1}, "echo": "no"},
        "SQLALCHEMY_BINDS": {None: {"url": URI, "pool_size": "3"}, "b": {"url": URI}},
        "SQLALCHEMY_SESSION_OPTIONS": {"autoflush": "no"},
        "SCOPEDSESSION_SQLITE_PRAGMAS": {"foreign_keys": True},
    }
    del config["SQLALCHEMY_DATABASE_URI"]
    defaults = {"connect_args": {"timeout": 2}, "pool_size": "7"}
    before = copy.deepcopy((config, defaults))
    settings = read(engine_options=defaults, **config)
    assert (config, defaults) == before
    config["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]["timeout"] = 99
    assert settings.binds["b"].options["connect_args"] == {"timeout": 1}


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("pool_size", "20", 20),
        ("pool_size", 0, 0),
        ("max_overflow", "-1", -1),
        ("pool_size", 20.0, 20),
        ("pool_recycle", 3600, 3600),
        ("pool_recycle", 3600.0, 3600),
        ("pool_recycle", "0.5", 0.5),
        ("pool_recycle", -1, -1),
        ("pool_reset_on_return", "False", False),
        ("pool_reset_on_return", "commit", "commit"),
        ("isolation_level", "AUTOCOMMIT", "AUTOCOMMIT"),
        ("pool_timeout", "2.5", 2.5),
        ("pool_timeout", None, None),
        ("pool_pre_ping", "False", False),
        ("pool_use_lifo", "yes", True),
        ("hide_parameters", 1, True),
        ("echo", "debug", "debug"),
        ("echo_pool", "off", False),
        ("poolclass", "NullPool", NullPool),
        ("poolclass", NullPool, NullPool),
        ("query_cache_size", 0, 0),
    ],
)
def test_engine_option_values(option: str, value: object, expected: object) -> None:
    """Given in Python, or as text from the environment."""
    found = bind(SQLALCHEMY_ENGINE_OPTIONS={option: value}).options[option]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pool_size", "many"),
        ("pool_size", -1),
        ("pool_size", True),
        ("pool_size", 2.5),
        ("max_overflow", -2),
        ("pool_recycle", "swordfish"),
        ("pool_timeout", -1),
        ("pool_timeout", "swordfish"),
        ("pool_pre_ping", "swordfish"),
        ("echo", "swordfish"),
        ("poolclass", "SwordfishPool"),
        ("poolclass", "Pool.swordfish"),
        ("poolclass", int),
        ("poolclass", "PoolProxiedConnection"),
        ("connect_args", ["swordfish"]),
        ("connect_args", {1: "swordfish"}),
        ("execution_options", 1),
        ("execution_options", {"stream_results": "swordfish"}),
        ("execution_options", {"isolation_level": 3}),
        ("isolation_level", ["swordfish"]),
        ("isolation_level", 3),
        ("native_datetime", "swordfish"),
        ("connect_args", {"check_same_thread": "swordfish"}),
    ],
)
def test_engine_option_of_wrong_type(option: str, value: object) -> None:
    """The error names the option, and the key or argument that it came from."""
    options = {option: value}
    name = rf"{option}(\['\w+'\])? must"
    message = refused(SQLALCHEMY_ENGINE_OPTIONS=options)
    assert re.match(f"SQLALCHEMY_ENGINE_OPTIONS: {name}", message)
    message = refused(SQLALCHEMY_BINDS={"b": {"url": URI, **options}})
    assert re.match(rf"SQLALCHEMY_BINDS\['b'\]: {name}", message)
    message = refused(engine_options=options)
    assert re.match(rf"ScopedSession\(engine_options=\.\.\.\): {name}", message)


def test_every_boolean_of_a_dialect_may_be_text() -> None:
    """Whatever SQLAlchemy's dialects take as one: as text, ``"no"`` would be true."""
    found = {
        name
        for dialect in dialects(DefaultDialect)
        for name, parameter in inspect.signature(dialect).parameters.items()
        if isinstance(parameter.default, bool) or "bool" in str(parameter.annotation)
    }
    documented = {"enable_from_linting", "hide_parameters", "pool_pre_ping"}
    assert {"native_datetime", "use_insertmanyvalues", "fast_executemany"} <= found
    for name in found | documented | {"pool_use_lifo", "skip_autocommit_rollback"}:
        options = {name: "No"}
        assert bind(SQLALCHEMY_ENGINE_OPTIONS=options).options[name] is False, name
        options = {name: "perhaps"}
        assert f"{name} must be true" in refused(SQLALCHEMY_ENGINE_OPTIONS=options)


def dialects(parent: type[DefaultDialect]) -> Iterator[type[DefaultDialect]]:
    for package in ("mssql", "mysql", "oracle", "postgresql", "sqlite"):
        importlib.import_module(f"sqlalchemy.dialects.{package}")
    yield parent
    for each in parent.__subclasses__():
        if each.__module__.startswith("sqlalchemy."):
            yield from dialects(each)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("connect_args", "check_same_thread"),
        ("connect_args", "autocommit"),
        ("connect_args", "ssl_verify_cert"),
        ("execution_options", "stream_results"),
    ],
)
def test_booleans_inside_of_an_option(option: str, name: str) -> None:
    """Text is parsed; anything else is the driver's, as is text of other names."""
    for given, expected in (("off", False), ("true", True), (-1, -1), (None, None)):
        options = {option: {name: given, "sslcompression": "off"}}
        found = bind(SQLALCHEMY_ENGINE_OPTIONS=options).options[option]
        assert found == {name: expected, "sslcompression": "off"}


@pytest.mark.parametrize(
    "option",
    [
        *("connect_args", "creator", "echo", "echo_pool", "execution_options"),
        *("hide_parameters", "isolation_level", "max_overflow", "pool"),
        *("pool_pre_ping", "pool_recycle", "pool_size", "pool_use_lifo", "poolclass"),
        *("query_cache_size", "use_insertmanyvalues", "label_length"),
    ],
)
def test_none_is_sqlalchemys_default(option: str) -> None:
    """Also over a value that the bind would inherit."""
    options = {option: None}
    assert option not in bind(SQLALCHEMY_ENGINE_OPTIONS=options).options
    assert option not in bind(engine_options=options).options
    binds = {"b": {"url": URI, "pool_size": None}}
    inherited = {"pool_size": 7}
    settings = bind("b", SQLALCHEMY_BINDS=binds, SQLALCHEMY_ENGINE_OPTIONS=inherited)
    assert "pool_size" not in settings.options


@pytest.mark.parametrize("option", ["pool_timeout", "pool_reset_on_return", "module"])
def test_none_that_is_a_value(option: str) -> None:
    """It is kept where SQLAlchemy gives it a meaning, and in options of others."""
    assert bind(SQLALCHEMY_ENGINE_OPTIONS={option: None}).options[option] is None


@pytest.mark.parametrize("option", ["pool_size", "pool_timeout", "isolation_level"])
def test_empty_option_is_unset(option: str) -> None:
    """As an empty variable of the environment leaves it."""
    assert option not in bind(SQLALCHEMY_ENGINE_OPTIONS={option: " "}).options


def test_options_of_wrong_type() -> None:
    """Engine and session options are dicts."""
    for key in ("SQLALCHEMY_ENGINE_OPTIONS", "SQLALCHEMY_SESSION_OPTIONS"):
        message = refused(**{key: ["pool_size"]})
        assert message == f"{key} must be a dict, not a list."


def test_echo_is_the_default_of_every_bind() -> None:
    """A bind's own option wins over ``SQLALCHEMY_ECHO``."""
    binds = read(
        SQLALCHEMY_DATABASE_URI=URI,
        SQLALCHEMY_ECHO="debug",
        SQLALCHEMY_BINDS={"b": {"url": URI, "echo": "no"}},
    ).binds
    assert [b.options["echo"] for b in binds.values()] == ["debug", False]


# Session options


def test_session_options() -> None:
    """Text from the environment is parsed, as ``"False"`` would be true."""
    options = {"expire_on_commit": "False", "autoflush": "off", "info": {"a": "b"}}
    assert dict(read(SQLALCHEMY_SESSION_OPTIONS=options).session_options) == {
        "expire_on_commit": False,
        "autoflush": False,
        "info": {"a": "b"},
    }
    for value in (None, ""):
        unset = read(SQLALCHEMY_SESSION_OPTIONS={"expire_on_commit": value})
        assert dict(unset.session_options) == {}
    for value in ("swordfish", 2, []):
        message = refused(SQLALCHEMY_SESSION_OPTIONS={"expire_on_commit": value})
        assert message == (
            "SQLALCHEMY_SESSION_OPTIONS: expire_on_commit must be true or false."
        )


@pytest.mark.parametrize("name", ["class_", "bind", "binds"])
def test_session_options_that_belong_elsewhere(name: str) -> None:
    """The error says where they are set."""
    message = refused(SQLALCHEMY_SESSION_OPTIONS={name: object()})
    assert message.startswith(f"SQLALCHEMY_SESSION_OPTIONS may not hold {name!r}. Use")


# From the environment


def test_from_prefixed_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of value arrives, nested keys by two underscores."""
    config = from_env(
        monkeypatch,
        SQLALCHEMY_DATABASE_URI=PG,
        SQLALCHEMY_ENGINE_OPTIONS__pool_size="20",
        SQLALCHEMY_ENGINE_OPTIONS__pool_pre_ping="False",
        SQLALCHEMY_ENGINE_OPTIONS__poolclass="QueuePool",
        SQLALCHEMY_ENGINE_OPTIONS__connect_args__connect_timeout="3",
        SQLALCHEMY_BINDS__audit="sqlite:///audit.db",
        SQLALCHEMY_BINDS__big='{"url": "sqlite:///big.db", "pool_size": 2}',
        SQLALCHEMY_BINDS__deep__url="sqlite:///deep.db",
        SQLALCHEMY_BINDS__deep__pool_size="4",
        SQLALCHEMY_SESSION_OPTIONS__expire_on_commit="False",
        SQLALCHEMY_ECHO="no",
        SCOPEDSESSION_NAME="42",
        SCOPEDSESSION_TRACKING="true",
        SCOPEDSESSION_CONTROL="off",
        SCOPEDSESSION_CONTROL_DIR="/run/app",
        SCOPEDSESSION_SNAPSHOT_FILE="0",
        SCOPEDSESSION_HELD_LONG_AFTER="5",
        SCOPEDSESSION_LOST_WORK="ignore",
        SCOPEDSESSION_PING_IDLE_AFTER="1.5",
        SCOPEDSESSION_STACKS="True",
        SCOPEDSESSION_SHOW_SQL="False",
        SCOPEDSESSION_SQLITE_PRAGMAS='{"foreign_keys": true}',
        SCOPEDSESSION_SQLITE_PRAGMAS__journal_mode="wal",
        SCOPEDSESSION_SQLITE_BEGIN="IMMEDIATE",
    )
    settings = read(**config)
    default = settings.binds["default"]
    assert default.url.password == SECRET
    assert default.options["pool_size"] == 20
    assert default.options["pool_pre_ping"] is False
    assert default.options["connect_args"] == {"connect_timeout": 3}
    assert default.options["echo"] is False
    assert default.ping_idle_after == 1.5
    assert settings.binds["big"].options["pool_size"] == 2
    assert settings.binds["deep"].options["pool_size"] == 4
    audit = settings.binds["audit"]
    assert dict(audit.pragmas) == {"foreign_keys": "ON", "journal_mode": "wal"}
    assert audit.begin == "IMMEDIATE"
    assert settings.session_options["expire_on_commit"] is False
    assert settings.name == "42"
    assert settings.tracking is True
    assert settings.control is False
    assert settings.control_dir == "/run/app"
    assert settings.snapshot_file is False
    assert settings.held_long_after == 5.0
    assert settings.lost_work == "ignore"
    assert settings.stacks is True
    assert settings.show_sql is False


def test_uri_parts_from_prefixed_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL can be given in parts, without percent-encoding."""
    config = from_env(
        monkeypatch,
        SQLALCHEMY_DATABASE_URI__drivername="postgresql+psycopg",
        SQLALCHEMY_DATABASE_URI__username="app",
        SQLALCHEMY_DATABASE_URI__password="0123",
        SQLALCHEMY_DATABASE_URI__port="5433",
    )
    url = bind(**config).url
    assert (url.password, url.port) == ("0123", 5433)


# Reprs


def test_reprs_show_no_secret() -> None:
    """Neither of a URL nor of options."""
    settings = read(
        SQLALCHEMY_DATABASE_URI=f"{PG}?password={SECRET}",
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"password": SECRET}},
        SQLALCHEMY_SESSION_OPTIONS={"info": {"password": SECRET}},
    )
    assert SECRET not in repr(settings)
    assert SECRET not in repr(settings.binds["default"])
    assert "name='default'" in repr(settings)


def test_settings_are_frozen() -> None:
    """Neither they nor their mappings can be changed."""
    settings = read()
    with pytest.raises(AttributeError):
        settings.name = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.binds["x"] = settings.binds["default"]  # type: ignore[index]
