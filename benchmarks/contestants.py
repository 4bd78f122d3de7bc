"""Who takes part: one small builder for each way to have sessions in Flask.

A builder is called once per process, as a module is imported, and returns what an
application's factory calls. All get the same URL and the same engine options.
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
    """What every contestant is given."""

    url: str
    options: t.Mapping[str, t.Any]
    """For ``create_engine()``."""
    config: t.Mapping[str, t.Any] = field(default_factory=dict)
    """For ``app.config``; only ours reads any of it."""


class Access(t.NamedTuple):
    """How a view of the contestant reaches its session."""

    session: str
    """The expression that stands for the session wherever a view uses it."""
    names: t.Mapping[str, t.Any]
    """What the expression refers to."""
    engine: Callable[[], sa.Engine]
    """Called in an application context."""
    opening: str | None = None
    """The ``with`` statement around a view's body, if it takes one."""


InitApp = Callable[[Flask, Database], Access]


@dataclass(frozen=True)
class Contestant:
    """One row of a table."""

    key: str
    title: str
    imports: str
    """What an application imports for it, beyond Flask and SQLAlchemy."""
    package: str | None
    """The distribution that it is published as."""
    build: Callable[[], InitApp]


# -- without an extension ------------------------------------------------------


def by_hand() -> InitApp:
    """Return a factory's part with one ``sessionmaker`` and nothing else."""

    def init_app(_: Flask, database: Database) -> Access:
        engine = sa.create_engine(database.url, **database.options)
        names = {"Session": sessionmaker(engine)}
        return Access("session", names, lambda: engine, "with Session() as session:")

    return init_app


def thread_local_by_hand() -> InitApp:
    """Return a factory's part with SQLAlchemy's thread-local ``scoped_session``."""

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
            # As everybody else's, rather than its own defaults.
            session_config=SyncSessionConfig(expire_on_commit=True, autoflush=True),
        )
        db = AdvancedAlchemy(config, app)
        return Access("db.get_sync_session()", {"db": db}, config.get_engine)

    return init_app


# -- ours ----------------------------------------------------------------------


def ours(**config: t.Any) -> Callable[[], InitApp]:
    """Return the builder of ours with these keys in ``app.config``."""

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


def knows_fair_pool() -> bool:
    """Whether this version of ours has a switch for its fair queue."""
    from flask_scopedsession._settings.keys import KEYS

    return "SCOPEDSESSION_FAIR_POOL" in KEYS


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

#: What stands for the peers' rows in most tables.
PEERS = (
    *("local", "flask-sqlalchemy", "lite", "alchemical", "advanced-alchemy"),
    *("ours", "ours-off"),
)


def why_not(key: str) -> str | None:
    """Return why a contestant cannot take part with this version, if so."""
    if key == "ours-unfair" and not knows_fair_pool():
        return "this version has no SCOPEDSESSION_FAIR_POOL"
    return None
