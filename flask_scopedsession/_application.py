"""Everything that one Flask application owns, and what a fork does to it."""

from __future__ import annotations

import os
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from time import perf_counter

from ._control.server import SERVER
from ._databases.ping import ping
from ._live.worker import LiveView
from ._pools.account import PoolAccount
from ._pools.engine import dispose_all
from ._pools.engine import make_engine
from ._pools.watch import report_returned
from ._runtime import fork
from ._runtime.logs import fields
from ._runtime.logs import log
from ._scopes.context import current_context
from ._scopes.kinds import OfKey
from ._scopes.ledger import Ledger
from ._scopes.many_statements import ManyStatements
from ._scopes.responses import HANDLED
from ._scopes.responses import note_responses
from ._scopes.responses import STATUS
from ._scopes.scope import SCOPE
from ._scopes.scope import Scope
from ._scopes.streams import ANSWERED
from ._scopes.streams import context_torn_down
from ._scopes.streams import watch_requests
from ._scopes.teardown import close_forgotten
from ._scopes.teardown import end_scope
from ._sessions.factory import AppSessionmaker
from ._sessions.factory import refuse_wrong_options
from ._sessions.models import Models
from ._sessions.registry import Registry
from ._sessions.routing import routed_if_needed
from ._settings.binds import changed_bind
from ._settings.config import DEFAULT_BIND
from ._settings.keys import changed_keys
from ._settings.keys import LOST_WORK
from ._settings.keys import remember
from ._settings.keys import URI
from ._settings.values import is_on
from .errors import ConfigError
from .errors import SetupError
from .errors import UnknownBind

if t.TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine
    from sqlalchemy.pool import Pool

    from ._async_sessions.binds import AsyncBinds
    from ._settings.config import BindSettings
    from ._settings.config import Settings

    EngineMaker = Callable[
        [Flask, Mapping[str, BindSettings], Callable[[BindSettings], Engine]],
        Mapping[str, Engine],
    ]

#: Where ``app.extensions`` has the extension.
EXTENSION = "scopedsession"

#: What a fork inherited. Kept, so that nothing of it is ever closed there: the sockets
#: are still the parent's.
_inherited: list[object] = []


def _keep_for_ever() -> None:
    """Let what is inherited outlive the interpreter, too.

    Some drivers say goodbye to the server when their connections are freed.
    """
    with suppress(ImportError, AttributeError):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_inherited))


class Application:
    """One application's settings, engines, sessions and scopes."""

    def __init__(
        self,
        app: Flask,
        settings: Settings,
        *,
        models: Models,
        registry: Registry,
        template: AppSessionmaker,
        session_options: Mapping[str, t.Any],
        make_engines: EngineMaker,
    ) -> None:
        """Build the engines; nothing is connected yet.

        :param template: Has the class of the extension's sessions.
        :param session_options: For the sessionmaker; ``app.config`` wins.
        :param make_engines: Takes a function that makes the engine of one bind.
        :raises ConfigError: The engine or the session refuses an option.
        """
        self.settings = settings
        self._configured = remember(app.config)
        self.pid = os.getpid()
        """The process that this belongs to. Another is a fork that was not noticed."""
        self._begun = self.pid
        self._registry = registry
        self.ledger = Ledger(
            app,
            kind=registry.kind.name,
            lost_work=settings.lost_work,
            model_names=models.names,
            close=close_forgotten,
        )
        if settings.many_statements:
            self.ledger.many_statements = ManyStatements(
                self.ledger, settings.many_statements
            )
        options = {**session_options, **settings.session_options}
        refuse_wrong_options(template.class_, options)
        accounts = self._new_accounts()

        def make(bind: BindSettings, async_pool: type[Pool] | None = None) -> Engine:
            return make_engine(
                bind,
                app_name=settings.connection_name or app.name,
                instance_path=app.instance_path,
                account=accounts[bind.name],
                tracking=settings.tracking,
                async_pool=async_pool,
            )

        self.engines = make_engines(app, settings.binds, make)
        self.all_engines: Mapping[str, Engine] = self.engines
        """Those of async binds, too, by the names that the live view has."""
        self.async_binds: AsyncBinds | None = None
        if settings.async_binds:
            from ._async_sessions.binds import AsyncBinds
            from ._async_sessions.pool import NullPool

            made = {
                name: make(bind, NullPool)
                for name, bind in settings.async_binds.items()
            }
            self.async_binds = AsyncBinds(made, models, template.class_, options)
            shown = {settings.async_binds[name].name: made[name] for name in made}
            self.all_engines = {**self.engines, **shown}
        self.accounts = accounts if settings.tracking else {}
        """By bind; empty if tracking is off."""
        self.ledger.accounts.extend(self.accounts.values())
        self._models = models
        self._template = template
        self._session_options = {"bind": self.engines.get(DEFAULT_BIND), **options}
        self._maker: AppSessionmaker | None = None
        self.checked_maker: AppSessionmaker | None = None
        """What `sessionmaker` returned, if it need not look again."""
        self.live = LiveView(
            app,
            settings,
            ledger=self.ledger,
            accounts=self.accounts,
            engines=self.all_engines,
        )
        for account in self.accounts.values():
            account.describe = partial(self.live.describe, account)
            account.held_long_after = settings.held_long_after
        fork.watch(self)
        # An app that is dropped takes its connections along, as a file does.
        weakref.finalize(app, _dispose, self.all_engines, self.accounts).atexit = False

    def _new_accounts(self) -> dict[str, PoolAccount]:
        settings = self.settings
        kinds: list[tuple[type[PoolAccount], Mapping[str, BindSettings]]]
        kinds = [(PoolAccount, settings.binds)]
        if settings.async_binds:
            from ._async_sessions.binds import AsyncAccount
            from ._async_sessions.binds import refuse_without_greenlet

            refuse_without_greenlet()
            kinds.append((AsyncAccount, settings.async_binds))
        return {
            bind.name: kind(
                bind, self.ledger, stacks=settings.stacks, show_sql=settings.show_sql
            )
            for kind, binds in kinds
            for bind in binds.values()
        }

    def __repr__(self) -> str:
        app = self.ledger.app()
        return f"<Application {None if app is None else app.name!r}>"

    @property
    def sessionmaker(self) -> AppSessionmaker:
        """What makes the sessions, after another look at the configuration.

        Once only, since requests should not pay for it; but tests change the
        configuration again and again, and there each new session does so.
        """
        if self.checked_maker is not None:
            return self.checked_maker
        self.check_unchanged()
        app = self.ledger.app()
        config = {} if app is None else app.config
        late = [key for key in changed_keys(config, self._configured) if key != URI]
        if self.settings.lost_work != "ignore" and LOST_WORK in late:
            late.remove(LOST_WORK)  # read when a scope ends
        if late and self.ledger.first_report(("changed late", *late)):
            log.warning(
                "%s changed after init_app(), which had read the configuration: the"
                " new value has no effect. Set it before init_app().",
                ", ".join(late),
                extra=fields("configuration"),
            )
        maker = self._maker
        if maker is None:
            # Another thread may have been faster.
            maker = self._maker = self._maker or self._new_sessionmaker()
        if not is_on(config, "TESTING"):
            self.checked_maker = maker
        return maker

    def _new_sessionmaker(self) -> AppSessionmaker:
        """Make it when it is first used, as models are known then."""
        class_ = routed_if_needed(self._template.class_, self._models, self.engines)
        return self._template.of(self.ledger, self._session_options, class_)

    def check_unchanged(self) -> None:
        """Refuse to work on a database that is no longer the configured one.

        :raises ConfigError: Another one was configured after ``init_app()``.
        """
        app = self.ledger.app()
        if app is None:
            return
        key = changed_bind(
            *(app.config, self._configured),
            *(self.settings.binds, self.settings.async_binds),
        )
        if key is not None:
            raise ConfigError(
                f"{key} was changed after init_app(), which had made the engines of the"
                f" app {app.name!r} from what was configured then. Set it before"
                " init_app()."
            )

    def engine(self, bind: str, table: str | None = None) -> Engine:
        """Return the engine of a bind.

        :param table: What the bind is needed for.
        :raises UnknownBind: No such bind is configured.
        """
        try:
            return self.engines[bind]
        except KeyError:
            where = f", where the table {table!r} belongs" if table else ""
            raise UnknownBind(
                f"There is no bind {bind!r}{where}. Add it to SQLALCHEMY_BINDS."
                f" Configured binds: {sorted(self.engines)}."
            ) from None

    def ping(self, bind: str, timeout: float) -> float:
        """Return how many seconds a database took to answer on a new connection.

        :param timeout: Seconds to wait for the answer.
        :raises PingError: There is no answer.
        :raises UnknownBind: No such bind is configured.
        """
        engine, account = self.engine(bind), self.accounts.get(bind)
        return ping(self.settings.binds[bind], engine, account, timeout)

    def end_scopes_with_contexts(self, app: Flask) -> None:
        """End scopes with their contexts, and learn how requests were answered."""
        ledger, kind, live = self.ledger, self._registry.kind, self.live
        session_name = self._registry.session_name
        keyed = kind if isinstance(kind, OfKey) else None
        many = ledger.many_statements

        # A plain function: Flask pays twice as much for a bound method.
        def remove_sessions(error: BaseException | None) -> None:
            context = current_context(None)
            if error is not None:
                context = context_torn_down()
                if isinstance(error, SystemExit):
                    live.aborted()
            setattr(context, ANSWERED, True)
            scope: Scope | None = getattr(context, SCOPE, None)
            raising: BaseException | None = None
            if keyed is not None:
                for each in keyed.created(context):
                    # Were it freed, the sessions would be closed unjudged.
                    anchor = each()
                    keyed.forget(ledger, each)
                    raising = end_scope(ledger, each, context, error) or raising
                    ledger.leave(each)
                    del anchor
            if scope is not None:
                kept = context.__dict__
                # The session first: an interrupt must not leave it without a scope.
                kept.pop(session_name, None)
                raising = end_scope(ledger, scope, context, error) or raising
                kept.pop(SCOPE, None)
                kept.pop(STATUS, None)
                kept.pop(HANDLED, None)
                ledger.leave(scope)
                # Not in leave(): a thread's or a key's scope, or that of an async
                # function, would count the same request again.
                if ledger.accounts:
                    ledger.ended.add(perf_counter() - scope.since, scope.statements)
                if many is not None and scope.statements > many.limit:
                    many.report(scope)
            if ledger.returned_late:
                report_returned(ledger)
            if raising is not None:
                raise raising

        app.teardown_appcontext(remove_sessions)
        watch_requests(app, ledger)
        if self.settings.lost_work != "ignore":
            note_responses(app)
        if self.async_binds is not None:
            from ._async_sessions.calls import end_sessions_with_calls

            # Its teardown function is registered later, and so called earlier.
            end_sessions_with_calls(app)

    def resume(self) -> None:
        """Make this the process's own after a fork, and ready to answer."""
        if self.pid != os.getpid():
            # The server forked without running Python's fork hooks (uWSGI does).
            fork.after_fork_in_child()
        if SERVER.paused:
            SERVER.resume()

    # -- forks -----------------------------------------------------------------

    def after_fork(self) -> None:
        """Make this the child's own, without touching the parent's sockets."""
        pid = os.getpid()
        if self._begun == pid:
            return  # done, or asked for by what we do below
        self._begun = pid
        try:
            self._leave_to_parent()
        finally:
            # Last, as it is what tells other threads that they need not wait.
            self.pid = pid

    def _leave_to_parent(self) -> None:
        if not _inherited:
            _keep_for_ever()
        ledger = self.ledger
        _inherited.extend(ledger.unscoped.keys())
        for scope in ledger.live.copy():
            _inherited.extend(scope.sessions.values())
            scope.sessions.clear()
            scope.ended = True
            kept = getattr(scope(), "__dict__", {})
            kept.pop(self._registry.session_name, None)
            kept.pop(SCOPE, None)
        for account in self.accounts.values():
            _inherited.extend(account.inherited())
        for engine in self.all_engines.values():
            # The parent still uses these sockets. Forget them without closing, or its
            # transactions end with ours.
            _inherited.append(engine.pool)
            engine.dispose(close=False)
        for account in self.accounts.values():
            account.reset()
        ledger.reset()
        self.live.after_fork()


def _dispose(
    engines: Mapping[str, Engine], accounts: Mapping[str, PoolAccount]
) -> None:
    """Close the connections of an application that was dropped.

    An engine without any is left alone: to dispose of it would make a new pool.
    """
    dispose_all(
        engine
        for name, engine in engines.items()
        if name not in accounts or accounts[name].open
    )


def of(app: Flask) -> Application:
    """Return what an application owns.

    :raises SetupError: It does not use this extension.
    """
    found = app.extensions.get(EXTENSION)
    if found is None:
        raise SetupError(
            f"The app {app.name!r} does not use Flask-ScopedSession. Call"
            " db.init_app(app) in its factory."
        )
    return t.cast("Callable[[Flask], Application]", found._application_of)(app)
