"""The contestants: a small builder for each way to use sessions in Flask.

A builder runs once per process, as a module is imported, and returns the function that
the application's factory calls. All get the same URL and engine options.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import sessionmaker


@dataclass(frozen=True)
class Database:
    """The database settings, the same for every contestant."""

    url: str
    options: t.Mapping[str, t.Any]
    """For ``create_engine()``."""
    config: t.Mapping[str, t.Any] = field(default_factory=dict)
    """For ``app.config``; only Flask-ScopedSession reads it."""


class Access(t.NamedTuple):
    """How a contestant's views get the session."""

    session: str
    """The expression for the session in the views."""
    names: t.Mapping[str, t.Any]
    """The variables of the expression."""
    engine: Callable[[], sa.Engine]
    """Called in an application context."""
    opening: str | None = None
    """The ``with`` statement around the body of a view, if any."""


InitApp = Callable[[Flask, Database], Access]


@dataclass(frozen=True)
class Contestant:
    """One row of a table."""

    key: str
    title: str
    imports: str
    """The application's import, in addition to Flask and SQLAlchemy."""
    package: str | None
    """The name of the distribution."""
    build: Callable[[], InitApp]


# -- without an extension ------------------------------------------------------


def by_hand() -> InitApp:
    """Build nothing but a ``sessionmaker``."""

    def init_app(_: Flask, database: Database) -> Access:
        engine = sa.create_engine(database.url, **database.options)
        names = {"Session": sessionmaker(engine)}
        return Access("session", names, lambda: engine, "with Session() as session:")

    return init_app


def thread_local_by_hand() -> InitApp:
    """Build SQLAlchemy's thread-local ``scoped_session``."""

    def init_app(app: Flask, database: Database) -> Access:
        engine = sa.create_engine(database.url, **database.options)
        session = scoped_session(sessionmaker(engine))

        def remove(_: BaseException | None) -> None:
            session.remove()

        app.teardown_appcontext(remove)
        return Access("session", {"session": session}, lambda: engine)

    return init_app


# -- the peers -----------------------------------------------------------------


def flask_sqlalchemy() -> InitApp:
    """Build Flask-SQLAlchemy."""
    from flask_sqlalchemy import SQLAlchemy

    db = SQLAlchemy()

    def init_app(app: Flask, database: Database) -> Access:
        app.config["SQLALCHEMY_DATABASE_URI"] = database.url
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = dict(database.options)
        db.init_app(app)
        return Access("db.session", {"db": db}, lambda: db.engine)

    return init_app


def flask_sqlalchemy_lite() -> InitApp:
    """Build Flask-SQLAlchemy-Lite."""
    from flask_sqlalchemy_lite import SQLAlchemy

    db = SQLAlchemy()

    def init_app(app: Flask, database: Database) -> Access:
        app.config["SQLALCHEMY_ENGINES"] = {
            "default": {"url": database.url, **database.options}
        }
        db.init_app(app)
        return Access("db.session", {"db": db}, lambda: db.engine)

    return init_app


def alchemical() -> InitApp:
    """Build Alchemical."""
    from alchemical.flask import Alchemical

    db = Alchemical()

    def init_app(app: Flask, database: Database) -> Access:
        app.config["ALCHEMICAL_DATABASE_URL"] = database.url
        app.config["ALCHEMICAL_ENGINE_OPTIONS"] = dict(database.options)
        db.init_app(app)
        return Access("db.session", {"db": db}, db.get_engine)

    return init_app


def advanced_alchemy() -> InitApp:
    """Build advanced-alchemy's Flask extension."""
    from advanced_alchemy.config import SyncSessionConfig
    from advanced_alchemy.extensions.flask import AdvancedAlchemy
    from advanced_alchemy.extensions.flask import EngineConfig
    from advanced_alchemy.extensions.flask import SQLAlchemySyncConfig

    def init_app(app: Flask, database: Database) -> Access:
        config = SQLAlchemySyncConfig(
            connection_string=database.url,
            engine_config=EngineConfig(**database.options),
            # The same as the other contestants', instead of its own defaults.
            session_config=SyncSessionConfig(expire_on_commit=True, autoflush=True),
        )
        db = AdvancedAlchemy(config, app)
        return Access("db.get_sync_session()", {"db": db}, config.get_engine)

    return init_app


# -- ours ----------------------------------------------------------------------


def ours(**config: t.Any) -> Callable[[], InitApp]:
    """Return the builder of Flask-ScopedSession with these configuration keys."""

    def build() -> InitApp:
        from flask_scopedsession import ScopedSession

        db = ScopedSession()

        def init_app(app: Flask, database: Database) -> Access:
            app.config["SQLALCHEMY_DATABASE_URI"] = database.url
            app.config["SQLALCHEMY_ENGINE_OPTIONS"] = dict(database.options)
            app.config.update(database.config)
            app.config.update(config)
            db.init_app(app)
            return Access("db.session", {"db": db}, lambda: db.engine)

        return init_app

    return build


_OURS = "from flask_scopedsession import ScopedSession"
_PACKAGE = "Flask-ScopedSession"

CONTESTANTS: dict[str, Contestant] = {
    each.key: each
    for each in (
        Contestant("hand", "bare Flask, `with Session()` by hand", "", None, by_hand),
        Contestant("hand-again", "the baseline again (A/A)", "", None, by_hand),
        Contestant(
            *("local", "thread-local `scoped_session` by hand", "", None),
            thread_local_by_hand,
        ),
        Contestant(
            *("local-again", "the baseline again (A/A)", "", None),
            thread_local_by_hand,
        ),
        Contestant(
            *("flask-sqlalchemy", "Flask-SQLAlchemy"),
            "from flask_sqlalchemy import SQLAlchemy",
            *("Flask-SQLAlchemy", flask_sqlalchemy),
        ),
        Contestant(
            *("lite", "Flask-SQLAlchemy-Lite"),
            "from flask_sqlalchemy_lite import SQLAlchemy",
            *("Flask-SQLAlchemy-Lite", flask_sqlalchemy_lite),
        ),
        Contestant(
            *("alchemical", "Alchemical"),
            "from alchemical.flask import Alchemical",
            *("alchemical", alchemical),
        ),
        Contestant(
            *("advanced-alchemy", "advanced-alchemy"),
            "from advanced_alchemy.extensions.flask import AdvancedAlchemy",
            *("advanced-alchemy", advanced_alchemy),
        ),
        Contestant(
            *("ours", "Flask-ScopedSession, tracking on", _OURS, _PACKAGE), ours()
        ),
        Contestant(
            *("ours-off", "Flask-ScopedSession, tracking off", _OURS, _PACKAGE),
            ours(SCOPEDSESSION_TRACKING=False),
        ),
        Contestant(
            "ours-unfair",
            "Flask-ScopedSession, tracking on, fair pool off",
            *(_OURS, _PACKAGE),
            ours(SCOPEDSESSION_FAIR_POOL=False),
        ),
    )
}

#: The contestants of most tables, in addition to the baseline.
PEERS = (
    *("local", "flask-sqlalchemy", "lite", "alchemical", "advanced-alchemy"),
    *("ours", "ours-off"),
)
