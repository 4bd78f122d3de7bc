"""Bad input: one clear error that names the key or argument, and the remedy."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from flask import current_app
from flask import Flask
from sqlalchemy import make_url
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Session

from flask_scopedsession import errors
from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import AppNotInitialized
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import OutsideContext
from flask_scopedsession.errors import ScopedSessionError
from flask_scopedsession.errors import SetupError
from flask_scopedsession.errors import UnknownBind

MakeApp = Callable[..., Flask]

SECRET = "swordfish"


@pytest.fixture
def db() -> ScopedSession:
    return ScopedSession()


def refused(make_app: MakeApp, **config: Any) -> str:
    """Return the message with which an application's configuration is refused."""
    with pytest.raises(ConfigError) as info:
        make_app(**config)
    shown = "".join(traceback.format_exception_only(info.value))
    assert SECRET not in shown
    assert info.value.__cause__ is None
    assert info.value.__context__ is None
    return str(info.value)


def refused_options(make_app: MakeApp, options: dict[str, Any]) -> str:
    """Return the message with which engine options are refused."""
    uri = "sqlite:///app.db"
    return refused(
        make_app, SQLALCHEMY_DATABASE_URI=uri, SQLALCHEMY_ENGINE_OPTIONS=options
    )


# Configuration that is only found to be wrong when engines are made


def test_driver_not_installed(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key, the driver, the module that is missing, and what to do."""
    monkeypatch.setitem(sys.modules, "pymysql", None)
    message = refused(
        make_app, SQLALCHEMY_BINDS={"m": f"mysql+pymysql://u:{SECRET}@h/d"}
    )
    assert message.startswith(
        "SQLALCHEMY_BINDS['m'] needs the driver of 'mysql+pymysql', which cannot be"
        " imported ("
    )
    assert message.endswith("Install it, or name another driver in the URL.")


@pytest.mark.parametrize("tracking", [True, False])
def test_unknown_engine_option(make_app: MakeApp, tracking: bool) -> None:
    """The option is named, and where it may be set; not its value."""
    message = refused(
        make_app,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_ENGINE_OPTIONS={"pool_sise": SECRET, "pool_size": 3},
        SCOPEDSESSION_TRACKING=tracking,
    )
    assert message == (
        "SQLALCHEMY_DATABASE_URI: create_engine() does not accept pool_sise for"
        " 'sqlite' with QueuePool. Check SQLALCHEMY_ENGINE_OPTIONS, the options in"
        " SQLALCHEMY_DATABASE_URI, and ScopedSession(engine_options=...)."
    )


def test_engine_option_of_another_pool(make_app: MakeApp) -> None:
    """An option that the pool class does not have."""
    options = {"poolclass": "StaticPool", "pool_size": 3}
    message = refused(make_app, SQLALCHEMY_ENGINE_OPTIONS=options)
    assert "does not accept pool_size for 'sqlite' with StaticPool" in message


def test_engine_option_of_another_bind(make_app: MakeApp) -> None:
    """The bind is named whose engine cannot be made."""
    binds = {"audit": {"url": "sqlite:///a.db", "nonsense": SECRET}}
    message = refused(make_app, SQLALCHEMY_BINDS=binds)
    assert message.startswith("SQLALCHEMY_BINDS['audit']: create_engine() does not")


def test_engine_option_refused_by_value(make_app: MakeApp) -> None:
    """Where the dialect refuses a value, the options are listed, without values."""
    message = refused_options(make_app, {"pool_reset_on_return": SECRET})
    assert "create_engine() refused pool_reset_on_return. Check" in message


@pytest.mark.parametrize(
    ("name", "value"), [("module", "zz"), ("plugins", None), ("pool_events", SECRET)]
)
def test_engine_option_of_wrong_kind(
    make_app: MakeApp, name: str, value: object
) -> None:
    """Whatever error SQLAlchemy or the dialect stumbles over."""
    message = refused_options(make_app, {name: value})
    assert re.search(rf"create_engine\(\) refused {name}( \(\w+\))?\. Check", message)


def test_url_refused_by_value(make_app: MakeApp) -> None:
    """Without any option, the URL is what was refused."""
    message = refused(
        make_app, SQLALCHEMY_DATABASE_URI=f"postgresql://h/?plugin={SECRET}"
    )
    assert "create_engine() refused the URL." in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("creator", "must be a function that returns a DBAPI connection."),
        ("pool", "must be a pool, made by you; for a class use 'poolclass'."),
    ],
)
def test_engine_option_of_wrong_type(
    make_app: MakeApp, name: str, expected: str
) -> None:
    """At once, not at the first checkout."""
    message = refused_options(make_app, {name: SECRET})
    assert message == f"SQLALCHEMY_ENGINE_OPTIONS: {name} {expected}"


# The constructor


class Base(DeclarativeBase):
    pass


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model_class": object}, "model_class must be"),
        ({"binds": {Base: 3}}, "binds must map"),
        ({"binds": {"Base": "audit"}}, "binds must map"),
        ({"scopefunc": "request"}, "scopefunc must be"),
        ({"session_options": {"class_": dict}}, r"session_options\['class_'\] must"),
        ({"session_options": {"bind": None}}, "session_options may not hold 'bind'"),
        ({"session_options": {"autoflush": "x"}}, "session_options: autoflush must"),
    ],
)
def test_constructor(arguments: dict[str, Any], expected: str) -> None:
    """Wrong arguments are refused at once, by their name."""
    with pytest.raises(ConfigError, match=expected):
        ScopedSession(**arguments)


def test_scopefunc_returns_no_hashable(make_app: MakeApp) -> None:
    """Named by the argument and the type of what it returned."""
    db = ScopedSession(scopefunc=lambda: [SECRET])  # type: ignore[arg-type,return-value]
    app = make_app(db)
    expected = "scopefunc must return a hashable, such as a str or an int, not a list."
    with app.app_context(), pytest.raises(ConfigError) as info:
        db.session()
    assert str(info.value) == expected


def test_bind_of_models_is_unknown(make_app: MakeApp) -> None:
    """A bind that models live in must be configured."""
    with pytest.raises(ConfigError, match=r"names the bind 'audit'.*\['default'\]"):
        make_app(ScopedSession(binds={Base: "audit"}))


# Set-up


def test_current_app(make_app: MakeApp) -> None:
    """The application that it stands for is initialised."""
    db, app = ScopedSession(), Flask("behind")
    app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI="sqlite://")
    with app.app_context():
        db.init_app(current_app)  # type: ignore[arg-type]
        assert db.session.scalar(select(1)) == 1
    assert app.extensions["scopedsession"] is db
    assert repr(db) == "<ScopedSession behind>"
    db.dispose(app)
    with pytest.raises(OutsideContext, match=r"init_app\(current_app\) was called"):
        ScopedSession().init_app(current_app)  # type: ignore[arg-type]


def create_app() -> Flask:
    return Flask("made")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Base, "not the class Base. Did you mean ScopedSession(model_class=Base)?"),
        (create_app, "not a function. Did you mean create_app()?"),
        (Flask, "not the class Flask. Did you mean Flask()?"),
        (lambda: 1, "not a function."),
        ("app", "not a str."),
    ],
)
def test_no_application(given: Any, says: str) -> None:
    """What was meant is offered."""
    with pytest.raises(SetupError) as info:
        ScopedSession(given)
    assert str(info.value) == f"init_app() needs a Flask application, {says}"


# Changed after init_app()


DATABASE_USES: list[Callable[[ScopedSession], Any]] = [
    lambda db: db.session(),
    lambda db: db.session.execute(select(1)),
    lambda db: db.sessionmaker,
    lambda db: db.get_session("audit"),
    lambda db: db.engine,
    lambda db: db.engines,
    lambda db: db.get_engine("audit"),
    lambda db: db.create_all(),
    lambda db: db.drop_all(),
    lambda db: db.ping(),
]


@pytest.mark.parametrize("use", DATABASE_USES)
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"SQLALCHEMY_DATABASE_URI": f"sqlite:///{SECRET}.db"}, "DATABASE_URI"),
        ({"SQLALCHEMY_BINDS": {"audit": "sqlite:///other.db"}}, "BINDS['audit']"),
        ({"SQLALCHEMY_BINDS": {"new": "sqlite:///new.db"}}, "BINDS['new']"),
        ({"SQLALCHEMY_BINDS": {None: "sqlite:///new.db"}}, "BINDS[None]"),
        ({"SQLALCHEMY_BINDS": SECRET}, "BINDS"),
    ],
)
def test_another_database_after_init_app(
    make_app: MakeApp,
    use: Callable[[ScopedSession], Any],
    changes: dict[str, Any],
    key: str,
) -> None:
    """Nothing is done to the database that was configured first."""
    db = ScopedSession(model_class=Base)
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_BINDS={"audit": {"url": "sqlite:///audit.db"}},
    )
    app.config.update(changes)
    with app.app_context(), pytest.raises(ConfigError) as info:
        use(db)
    message = str(info.value)
    said = "(was changed after init_app|and .* both name|must map names)"
    assert re.match(f"SQLALCHEMY_{re.escape(key)} {said}", message)
    assert SECRET not in message


def test_bind_changed_in_place(make_app: MakeApp) -> None:
    """Also in the very dict that was read, and after the first session."""
    db = ScopedSession(model_class=Base)
    app = make_app(db, SQLALCHEMY_BINDS={"default": {"url": "sqlite:///app.db"}})
    with app.app_context():
        db.session.execute(select(1))
        app.config["SQLALCHEMY_BINDS"]["default"]["url"] = "sqlite:///other.db"
        with pytest.raises(ConfigError, match=r"SQLALCHEMY_BINDS\['default'\] was ch"):
            db.drop_all()


def test_another_database_between_tests(make_app: MakeApp, db: ScopedSession) -> None:
    """Where each test configures one: there every new session looks."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI="sqlite:///app.db")
    for database in ("app", "other", "app"):
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{database}.db"
        with app.app_context():
            if database == "app":
                assert db.session.scalar(select(1)) == 1
                continue
            with pytest.raises(ConfigError, match="changed after init_app"):
                db.session()
            db.session.remove()


def test_served_requests_do_not_look_again(
    make_app: MakeApp, db: ScopedSession
) -> None:
    """Outside of tests, the first session does."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI="sqlite:///app.db", TESTING=False)
    with app.app_context():
        db.session()
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///other.db"
    with app.app_context():
        assert db.session.scalar(select(1)) == 1
        with pytest.raises(ConfigError, match="changed after init_app"):
            db.engine.connect()


@pytest.mark.parametrize("use", DATABASE_USES)
@pytest.mark.parametrize(
    "changes",
    [
        {"SQLALCHEMY_DATABASE_URI": make_url("sqlite:///app.db")},
        {"SQLALCHEMY_BINDS": {"audit": "sqlite:///audit.db"}},
        {"SQLALCHEMY_DATABASE_URI": "", "SQLALCHEMY_BINDS": None},
    ],
)
def test_same_database_after_init_app(
    make_app: MakeApp, use: Callable[[ScopedSession], Any], changes: dict[str, Any]
) -> None:
    """Written in another way, or removed because of its password."""
    db = ScopedSession(model_class=Base)
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_BINDS={"audit": {"url": "sqlite:///audit.db"}},
    )
    with app.app_context(), db.engine.connect():
        pass  # creates the file, which a ping does not
    app.config.update(changes)
    with app.app_context():
        use(db)


def test_other_key_after_init_app(
    make_app: MakeApp, db: ScopedSession, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no effect, which the log says once."""
    app = make_app(db, SQLALCHEMY_ENGINE_OPTIONS={"echo": False})
    app.config["SQLALCHEMY_ENGINE_OPTIONS"]["echo"] = True
    app.config["SCOPEDSESSION_STACKS"] = True
    for _ in range(2):
        with app.app_context():
            db.session.execute(select(1))
    (record,) = caplog.records
    assert record.getMessage() == (
        "SQLALCHEMY_ENGINE_OPTIONS, SCOPEDSESSION_STACKS changed after init_app(),"
        " which had read the configuration: the new value has no effect. Set it before"
        " init_app()."
    )


def test_init_app_twice(make_app: MakeApp, db: ScopedSession) -> None:
    """With the same or another extension."""
    app = make_app(db)
    with pytest.raises(SetupError, match=r"'tests_app' was already .* this ScopedSess"):
        db.init_app(app)
    with pytest.raises(SetupError, match="with another ScopedSession. Call init_app"):
        ScopedSession(app)


def test_failed_init_app_can_be_repeated(make_app: MakeApp, db: ScopedSession) -> None:
    """An error leaves nothing behind that would break the next attempt."""
    app = Flask("again")
    app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI="nonsense://")
    with pytest.raises(ConfigError):
        db.init_app(app)
    assert "scopedsession" not in app.extensions
    assert "pool-status" not in app.cli.commands
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db.init_app(app)
    with app.app_context():
        assert db.session.connection()
        db.dispose()


USES: list[Callable[[ScopedSession], Any]] = [
    lambda db: db.session(),
    lambda db: db.session.scalar(select(1)),
    lambda db: db.get_session("audit"),
    lambda db: db.engine,
    lambda db: db.engines,
    lambda db: db.get_engine(),
    lambda db: db.sessionmaker,
    lambda db: db.snapshot(),
    lambda db: db.workers(),
    lambda db: db.serve_control(),
    lambda db: db.ping(),
    lambda db: db.dispose(),
]


@pytest.mark.parametrize("use", USES)
def test_outside_a_context(
    make_app: MakeApp, db: ScopedSession, use: Callable[[ScopedSession], Any]
) -> None:
    """Flask's kind of error, with the remedy."""
    make_app(db)
    with pytest.raises(OutsideContext, match=r"with app\.app_context\(\)") as info:
        use(db)
    assert isinstance(info.value, RuntimeError)


@pytest.mark.parametrize("use", USES)
def test_app_never_initialised(
    db: ScopedSession, use: Callable[[ScopedSession], Any]
) -> None:
    """The app is named, and what to call."""
    with Flask("stranger").app_context(), pytest.raises(AppNotInitialized) as info:
        use(db)
    message = str(info.value)
    assert message.startswith("The app 'stranger' was not initialised")
    assert "db.init_app(app)" in message


@pytest.mark.parametrize(
    "use",
    [
        lambda db: db.get_session("nil"),
        lambda db: db.get_engine("nil"),
        lambda db: db.ping("nil"),
    ],
)
def test_unknown_bind(
    make_app: MakeApp, db: ScopedSession, use: Callable[[ScopedSession], Any]
) -> None:
    """The bind, where to add it, and the binds that are configured."""
    app = make_app(db, SQLALCHEMY_BINDS={"audit": "sqlite://", "default": "sqlite://"})
    with app.app_context(), pytest.raises(UnknownBind) as info:
        use(db)
    assert str(info.value) == (
        "There is no bind 'nil'. Add it to SQLALCHEMY_BINDS. Configured binds:"
        " ['audit', 'default']."
    )


def test_unknown_role(make_app: MakeApp, db: ScopedSession) -> None:
    """The known ones are listed."""
    app = make_app(db)
    with (
        app.app_context(),
        pytest.raises(ConfigError, match="role must be one of web,"),
    ):
        db.serve_control("boss")  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, -1, "soon", float("nan"), None])
def test_ping_timeout(make_app: MakeApp, db: ScopedSession, timeout: Any) -> None:
    """A time to wait."""
    app = make_app(db)
    with app.app_context(), pytest.raises(ConfigError, match=r"ping\(timeout=\.\.\.\)"):
        db.ping(timeout=timeout)


@pytest.mark.parametrize("timeout", [0, -1, "soon", float("nan"), None])
def test_workers_timeout(make_app: MakeApp, db: ScopedSession, timeout: Any) -> None:
    """Also when there is no worker to wait for."""
    app = make_app(db)
    expected = r"workers\(timeout=\.\.\.\) must be a number of seconds"
    with app.app_context(), pytest.raises(ConfigError, match=expected):
        db.workers(timeout=timeout)


@pytest.mark.parametrize(
    ("name", "value"),
    [("join_transaction_mode", SECRET), ("info", 5), ("future", False)],
)
def test_session_option_of_wrong_value(
    make_app: MakeApp, name: str, value: Any
) -> None:
    """At once, not at the first request."""
    message = refused(make_app, SQLALCHEMY_SESSION_OPTIONS={name: value})
    assert message == (
        f"SQLALCHEMY_SESSION_OPTIONS or session_options: Session refused {name}. See"
        " sqlalchemy.orm.Session for what it takes."
    )


def test_session_class_of_the_configuration(make_app: MakeApp) -> None:
    """``class_`` can be set in one place only."""
    message = refused(make_app, SQLALCHEMY_SESSION_OPTIONS={"class_": Session})
    assert "ScopedSession(session_options={'class_': ...})" in message


# Notes


@pytest.mark.parametrize("value", [True, "yes"])
def test_note_on_foreign_keys(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, value: object
) -> None:
    """Keys of Flask-SQLAlchemy do no harm, with one note each."""
    make_app(SQLALCHEMY_TRACK_MODIFICATIONS=value, SQLALCHEMY_RECORD_QUERIES=False)
    (record,) = caplog.records
    assert record.getMessage() == (
        "SQLALCHEMY_TRACK_MODIFICATIONS belongs to Flask-SQLAlchemy, and does nothing"
        " here."
    )


# The error tree


def test_every_error_is_ours() -> None:
    """One base for all; each is exported, and documented with cause and remedy."""
    found = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert set(errors.__all__) == set(found)
    for error in found.values():
        assert issubclass(error, ScopedSessionError)
        cause, _, remedy = (inspect.getdoc(error) or "").partition("\n\n")
        assert re.fullmatch(r"[A-Z].*\.", cause)
        assert remedy.endswith(".") or error is ScopedSessionError


@pytest.mark.parametrize(
    ("error", "stands_for"),
    [
        (errors.ConfigError, ValueError),
        (errors.OutsideContext, RuntimeError),
        (errors.AppNotInitialized, RuntimeError),
        (errors.UnknownBind, LookupError),
    ],
)
def test_errors_stand_for_others(error: type[Exception], stands_for: type) -> None:
    """Code that is written for those keeps working."""
    assert issubclass(error, stands_for)
