"""The extension object."""

from __future__ import annotations

import itertools
import logging
import os
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from flask import Flask
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker

from ._application import AppState
from ._control.server import SERVER
from ._databases.ping import ping
from ._live.worker import LiveView
from ._pools.account import Ledger
from ._pools.account import PoolAccount
from ._pools.engine import dispose_all
from ._pools.engine import make_engine
from ._runtime import fork
from ._scopes.context import app_context
from ._scopes.context import context_torn_down
from ._scopes.context import current_context
from ._scopes.context import has_context
from ._scopes.context import watch_requests
from ._sessions.factory import AppSessionmaker
from ._sessions.factory import refuse_wrong_options
from ._sessions.factory import watched
from ._sessions.registry import ContextScopes
from ._sessions.registry import Factory
from ._sessions.registry import KeyedScopes
from ._sessions.registry import OUTSIDE
from ._sessions.registry import scope_context
from ._sessions.registry import Scopes
from ._sessions.registry import Sessions
from ._sessions.registry import ThreadScopes
from ._sessions.routing import Models
from ._settings.config import DEFAULT_BIND
from ._settings.config import read_settings
from ._settings.values import chosen
from ._settings.values import kind
from ._settings.values import mapping
from ._settings.values import seconds
from .cli import add_commands
from .errors import AppNotInitialized
from .errors import ConfigError
from .errors import OutsideContext
from .errors import SetupError
from .errors import UnknownBind

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy import MetaData
    from sqlalchemy import Table
    from typing_extensions import TypeVar

    from ._live.reader import Reader
    from ._settings.config import Settings
    from .snapshot import Survey
    from .snapshot import WorkerSnapshot
    from .snapshot._readings import Role

    S = TypeVar("S", bound=Session, default=Session)
else:
    S = t.TypeVar("S", bound=Session)

log = logging.getLogger("flask_scopedsession")

EXTENSION = "scopedsession"

#: Of extensions, since one application may not know another one's.
_numbers = itertools.count(1)

BindTarget = t.Union["type[t.Any]", "Table"]


def _make_reader(
    app: weakref.ref[Flask],
    root_path: str,
    settings: Settings,
    ledger: Ledger,
    engines: Mapping[str, Engine],
) -> Reader:
    from ._live.reader import Reader

    return Reader(app, root_path, ledger, engines, settings.held_long_after)


class ScopedSession(t.Generic[S]):
    """SQLAlchemy engines and a ``scoped_session`` for Flask applications.

    :param app: Calls :meth:`init_app` at once.
    :param model_class: The application's declarative base; gives :attr:`Model`,
        :attr:`metadata`, :meth:`create_all`.
    :param binds: A base, model or table, and the name of the bind it lives in.
    :param engine_options: Defaults for every bind; ``app.config`` wins.
    :param session_options: For the sessionmaker; ``class_`` is given here and
        nowhere else.
    :param scopefunc: ``None`` for Flask's application context, ``"thread"`` for
        SQLAlchemy's thread-local scope, or a function that returns a hashable.
    :raises ConfigError: An argument is of the wrong kind.

    .. versionadded:: 0.1
    """

    session: scoped_session[S]
    """A real :class:`sqlalchemy.orm.scoped_session`, usable at import time. It
    proxies the session of the current scope."""

    def __init__(
        self,
        app: Flask | None = None,
        *,
        model_class: type[DeclarativeBase] | None = None,
        binds: Mapping[BindTarget, str] | None = None,
        engine_options: Mapping[str, t.Any] | None = None,
        session_options: Mapping[str, t.Any] | None = None,
        scopefunc: t.Literal["thread"] | Callable[[], Hashable] | None = None,
    ) -> None:
        self._models = Models(model_class, {} if binds is None else binds)
        self._engine_options = mapping("engine_options", engine_options)
        self._session_options = mapping("session_options", session_options)
        for taken in ("bind", "binds"):
            if taken in self._session_options:
                raise ConfigError(
                    f"session_options may not hold {taken!r}. Use the configuration"
                    " and ScopedSession(binds=...)."
                )
        class_ = self._session_options.pop("class_", Session)
        if not (isinstance(class_, type) and issubclass(class_, Session)):
            raise ConfigError(
                "session_options['class_'] must be a subclass of"
                " sqlalchemy.orm.Session."
            )
        self._class = watched(class_)
        self._state_name = f"_scopedsession_state_{next(_numbers)}"
        self._states: weakref.WeakKeyDictionary[Flask, AppState] = (
            weakref.WeakKeyDictionary()
        )
        factory = Factory(self._class, self._state_of)
        self._scopes = self._make_scopes(scopefunc, factory)
        self.session = Sessions(factory, self._scopes)
        if app is not None:
            self.init_app(app)

    def _make_scopes(self, scopefunc: t.Any, factory: Factory) -> Scopes:
        if scopefunc is None:
            return ContextScopes(factory, self._state_of)
        if scopefunc == "thread":
            return ThreadScopes(factory, self._state_of)
        if callable(scopefunc):
            return KeyedScopes(factory, self._state_of, scopefunc)
        raise ConfigError(
            "scopefunc must be None, 'thread' or a function that returns a hashable."
        )

    # -- set-up ----------------------------------------------------------------

    def init_app(self, app: Flask) -> None:
        """Read an application's configuration and build its engines.

        :raises ConfigError: A key is missing or wrong; the message says which.
        :raises SetupError: The application has been initialised before.
        """
        if not isinstance(t.cast(object, app), Flask):
            raise SetupError(f"init_app() needs a Flask application, not {kind(app)}.")
        if EXTENSION in app.extensions:
            mine = app.extensions[EXTENSION] is self
            raise SetupError(
                f"The app {app.name!r} was already initialised with"
                f" {'this' if mine else 'another'} ScopedSession. Call init_app once"
                " per app; for several databases use SQLALCHEMY_BINDS."
            )
        settings = read_settings(
            app.config,
            default_name=f"{app.name}:{os.path.realpath(app.root_path)}",
            engine_options=self._engine_options,
        )
        for name in self._models.binds.values():
            if name not in settings.binds:
                raise ConfigError(
                    f"ScopedSession(binds=...) names the bind {name!r}, which"
                    " SQLALCHEMY_BINDS does not have. Add it there; it has"
                    f" {sorted(settings.binds)}."
                )
        state = self._build(app, settings)
        app.extensions[EXTENSION] = self
        self._states[app] = app.__dict__[self._state_name] = state
        fork.watch(state)
        # An app that is dropped takes its connections along, as a file does.
        weakref.finalize(app, dispose_all, state.engines.values()).atexit = False
        for note in settings.notes:
            log.info("%s", note)

        scopes, live = self._scopes, state.live

        # A plain function: Flask pays twice as much for a bound method.
        def remove_sessions(error: BaseException | None) -> None:
            if isinstance(error, SystemExit):
                live.aborted()
            context = current_context() if error is None else context_torn_down()
            scopes.end(context, error)

        app.teardown_appcontext(remove_sessions)
        watch_requests(app, lost_work=settings.lost_work != "ignore")
        app.shell_context_processor(lambda: {"db": self})
        add_commands(app)

    def _build(self, app: Flask, settings: Settings) -> AppState:
        ledger = Ledger()
        engines: dict[str, Engine] = {}
        for name, bind in settings.binds.items():
            account = None
            if settings.tracking:
                account = PoolAccount(
                    bind, stacks=settings.stacks, show_sql=settings.show_sql
                )
                ledger.pools[name] = account
            engines[name] = make_engine(
                bind,
                app_name=str(chosen(app.config, "SCOPEDSESSION_NAME") or app.name),
                instance_path=app.instance_path,
                account=account,
                after_fork=fork.after_fork_in_child,
            )
        live = LiveView(
            app,
            settings,
            partial(
                _make_reader,
                *(weakref.ref(app), app.root_path, settings, ledger, engines),
            ),
            ledger.started,
            fork.after_fork_in_child,
        )
        for account in ledger.pools.values():
            account.describe = partial(live.describe, account)
        return AppState(
            settings=settings,
            engines=MappingProxyType(engines),
            sessionmaker=self._make_sessionmaker(settings, ledger, engines),
            ledger=ledger,
            live=live,
            forget=self._scopes.forget,
        )

    def _make_sessionmaker(
        self, settings: Settings, ledger: Ledger, engines: Mapping[str, Engine]
    ) -> AppSessionmaker:
        options = {**self._session_options, **settings.session_options}
        refuse_wrong_options(self._class, options)
        return AppSessionmaker(
            self._class,
            ledger,
            **options,
            bind=engines.get(DEFAULT_BIND),
            binds={
                target: engines[name] for target, name in self._models.binds.items()
            },
        )

    def _state_of(self, app: Flask) -> AppState:
        # Not in the mapping, which makes a weak reference for each look: 0.3 µs.
        state: AppState | None = app.__dict__.get(self._state_name)
        if state is None:
            raise AppNotInitialized(
                f"The app {app.name!r} was not initialised with this ScopedSession."
                " Call db.init_app(app) in its factory."
            )
        if state.pid != os.getpid():
            # A fork that ran no hook, as uWSGI's.
            fork.after_fork_in_child()
        if SERVER.paused:
            SERVER.resume()
        return state

    def _state(self, what: str) -> AppState:
        if not has_context():
            raise OutsideContext(f"'db.{what}' {OUTSIDE}")
        return self._state_of(app_context().app)

    # -- sessions and engines --------------------------------------------------

    def get_session(self, bind: str | None = None) -> S:
        """Return the current scope's plain session.

        :param bind: ``None`` or ``"default"`` for ``db.session()``; another name
            for a second session of the same scope, bound to that bind alone.
        :raises UnknownBind: No such bind is configured.
        :raises OutsideContext: There is no application context.
        """
        if bind is None or bind == DEFAULT_BIND:
            return self.session()
        state = self._state("get_session()")
        engine = self._engine(state, bind)
        session = self._scopes.named(bind)
        if session is None:
            made = state.sessionmaker(bind=engine, binds={})
            session = self._scopes.adopt(bind, made, scope_context())
        return t.cast(S, session)

    @property
    def sessionmaker(self) -> sessionmaker[S]:
        """The current app's sessionmaker; what it makes belongs to no scope."""
        return t.cast("sessionmaker[S]", self._state("sessionmaker").sessionmaker)

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The current app's engines by bind name; read-only."""
        return self._state("engines").engines

    @property
    def engine(self) -> Engine:
        """The current app's default engine."""
        return self._engine(self._state("engine"), DEFAULT_BIND)

    def get_engine(self, bind: str | None = None) -> Engine:
        """Return one of the current app's engines.

        :param bind: ``None`` for the default bind.
        :raises UnknownBind: No such bind is configured.
        """
        return self._engine(self._state("get_engine()"), bind or DEFAULT_BIND)

    @staticmethod
    def _engine(state: AppState, bind: str) -> Engine:
        try:
            return state.engines[bind]
        except KeyError:
            raise UnknownBind(
                f"There is no bind {bind!r}. Add it to SQLALCHEMY_BINDS; there are"
                f" {sorted(state.engines)}."
            ) from None

    # -- models ----------------------------------------------------------------

    @property
    def Model(self) -> type[t.Any]:  # noqa: N802
        """The declarative base given as `model_class`."""
        return self._models.model_class

    @property
    def metadata(self) -> MetaData:
        """The metadata of the default bind."""
        return t.cast("MetaData", self.Model.metadata)

    @property
    def metadatas(self) -> Mapping[str | None, MetaData]:
        """The metadata of each bind that has one; ``None`` is the default bind."""
        return self._models.metadatas

    def create_all(self, bind: str | None = None) -> None:
        """Create the tables that do not exist yet.

        :param bind: The tables of one bind; ``None`` for those of all binds.
        :raises UnknownBind: No such bind is configured.
        """
        for metadata, engine, tables in self._tables("create_all()", bind):
            metadata.create_all(engine, tables=tables)

    def drop_all(self, bind: str | None = None) -> None:
        """Drop the tables.

        :param bind: The tables of one bind; ``None`` for those of all binds.
        :raises UnknownBind: No such bind is configured.
        """
        for metadata, engine, tables in self._tables("drop_all()", bind):
            metadata.drop_all(engine, tables=tables)

    def _tables(
        self, what: str, bind: str | None
    ) -> t.Iterator[tuple[MetaData, Engine, list[Table]]]:
        state = self._state(what)
        if bind is not None:
            self._engine(state, bind)
        for metadata, name, tables in self._models.tables():
            if bind in (None, name):
                yield metadata, self._engine(state, name), tables

    # -- the live view ---------------------------------------------------------

    def snapshot(self) -> WorkerSnapshot:
        """Return what the current app holds in this process, right now."""
        return self._state("snapshot()").live.worker()

    def workers(self, timeout: float = 2.0) -> Survey:
        """Ask every live worker of the current app on this host.

        :param timeout: Seconds to wait for each worker.
        """
        timeout = seconds("workers(timeout=...)", timeout, least=0.001)
        return self._state("workers()").live.survey(timeout)

    def serve_control(self, role: Role = "job") -> None:
        """Let this process answer the status commands, as a web worker does.

        For one that serves no requests, such as a Celery worker or a scheduler.

        :param role: What the process is: ``"job"``, ``"web"``, ``"shell"``,
            ``"command"`` or ``"test"``.
        """
        from .snapshot._readings import Role

        if role not in t.get_args(Role):
            raise ConfigError(f"role must be one of {', '.join(t.get_args(Role))}.")
        live = self._state("serve_control()").live
        problem = live.problem()
        if problem is not None:
            log.info("serve_control: nothing is served, since %s", problem)
        live.start(role)

    def ping(self, bind: str | None = None, timeout: float = 5.0) -> float:
        """Test one connection, made outside the pool as the engine makes them.

        :param bind: ``None`` for the default bind.
        :param timeout: Seconds to wait for the answer.
        :return: Seconds from connecting to the answer.
        :raises PingError: The database did not answer; the message says why.
        """
        state = self._state("ping()")
        name = bind or DEFAULT_BIND
        engine = self._engine(state, name)
        return ping(name, engine, state.ledger.pools.get(name), timeout)

    def dispose(self, app: Flask | None = None) -> None:
        """Close an app's engines and control socket.

        A connection that is out is closed as it returns; the engines may be used
        again and open new ones.

        :param app: ``None`` for the current app.
        """
        state = self._state("dispose()") if app is None else self._state_of(app)
        state.live.stop()
        dispose_all(state.engines.values())

    def __repr__(self) -> str:
        names = ", ".join(sorted(app.name for app in self._states))
        return (
            f"<{type(self).__name__} {names}>" if names else f"<{type(self).__name__}>"
        )
