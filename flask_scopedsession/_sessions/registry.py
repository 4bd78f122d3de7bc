"""The registry behind ``db.session``: decides which session belongs to a scope."""

from __future__ import annotations

import itertools
import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.util import ScopedRegistry

from .._scopes.context import current_context
from .._scopes.kinds import Kind
from .._scopes.kinds import OfContext
from .._scopes.kinds import OfKey
from .._scopes.ledger import Ledger
from .._scopes.scope import SCOPE
from .._scopes.scope import Scope
from .._scopes.teardown import close_session
from .._scopes.teardown import close_sessions
from .._settings.config import DEFAULT_BIND
from ..errors import AppNotInitialized
from ..errors import OutsideContext
from .factory import AppSessionmaker
from .factory import Factory
from .routing import keep_to

_OUTSIDE = (
    "was used outside an application context. Wrap the call in"
    " 'with app.app_context():'. In a script, 'app' is what the factory returns. Pass a"
    " thread or job 'current_app._get_current_object()' as its 'app'."
)

_numbers = itertools.count(1)


class Makes(t.Protocol):
    """What the registry needs of an application."""

    ledger: Ledger
    checked_maker: AppSessionmaker | None

    @property
    def sessionmaker(self) -> AppSessionmaker: ...


class Registry(ScopedRegistry[t.Any]):
    """The sessions of the current scope.

    The default session of a context also stands on the context object itself: nothing
    else in a request is read as fast, and it is gone when the context is.
    """

    def __init__(
        self, factory: Factory, kind: Kind, application_of: Callable[[t.Any], Makes]
    ) -> None:
        super().__init__(factory, partial(current_context, None))
        self._factory = factory
        self._application_of = application_of
        self.kind = kind
        # Two extensions, for two applications, may meet in one context.
        self.session_name = f"_scopedsession_{next(_numbers)}"
        self._on_context = isinstance(kind, OfContext)

    # -- SQLAlchemy's interface ------------------------------------------------

    def __call__(self) -> t.Any:
        """Return the scope's session, making it when there is none."""
        context = current_context(None)
        # A miss by getattr() and None: raising would cost more than a hit saves.
        session = getattr(context, self.session_name, None)
        return self.session_of(context) if session is None else session

    def session_of(self, context: t.Any) -> t.Any:
        """Return the session of a context that has none on it, or whose scope has."""
        if context is None:
            raise outside()
        application = self._application_of(context.app)
        if self._on_context:
            scope = getattr(context, SCOPE, None) or application.ledger.enter(context)
        else:
            scope = self.kind.enter(application.ledger, context)
            session = scope.sessions.get(DEFAULT_BIND)
            if session is not None:
                return session
        maker = application.checked_maker or application.sessionmaker
        configured = self._factory.kw
        made = maker.make(configured) if configured else maker.class_(**maker.kw)
        # Another thread may have been faster.
        session = scope.sessions.setdefault(DEFAULT_BIND, made)
        if session is not made:
            close_session(made)
        if self._on_context:
            setattr(context, self.session_name, session)
        return session

    def has(self) -> bool:
        """Whether the current scope has a session."""
        scope = self._current()
        return scope is not None and DEFAULT_BIND in scope.sessions

    def set(self, obj: t.Any) -> None:
        """Make `obj` the session of the current scope, in place of any other."""
        context = scope_context()
        ledger = self._application_of(context.app).ledger
        self.kind.enter(ledger, context).sessions[DEFAULT_BIND] = obj
        if self._on_context:
            context.__dict__[self.session_name] = obj

    def clear(self) -> None:
        """Forget the current scope's sessions without closing them."""
        scope = self._current()
        if scope is not None:
            scope.sessions.clear()
            self._forget(scope)

    # -- ours ------------------------------------------------------------------

    def bound_to(self, name: str, engine: Engine) -> t.Any:
        """Return the scope's session of one bind, making it when there is none."""
        context = scope_context()
        application = self._application_of(context.app)
        scope = self.kind.enter(application.ledger, context)
        session = scope.sessions.get(name)
        if session is None:
            only = {**self._factory.kw, "bind": engine, "binds": {}}
            session = application.sessionmaker.make(only)
            keep_to(session, engine)
            kept = scope.sessions.setdefault(name, session)
            if kept is not session:
                close_session(session)
                session = kept
        return session

    def sessions(self) -> Mapping[str, t.Any]:
        """Return the sessions of the current scope, by the name of the bind."""
        scope = self._current()
        return {} if scope is None else scope.sessions.copy()

    def remove(self) -> None:
        """Close and forget all sessions of the current scope."""
        scope = self._current()
        if scope is not None:
            ledger = self._application_of(scope_context().app).ledger
            anchor = scope()  # were it freed, close() would not be heard of
            self._forget(scope)
            failures = close_sessions(ledger, scope)
            del anchor
            if failures:
                raise failures.pop(0)

    def _current(self) -> Scope | None:
        context = current_context(None)
        if context is None:
            return None
        try:
            application = self._application_of(context.app)
        except AppNotInitialized:
            return None
        return self.kind.find(application.ledger, context)

    def _forget(self, scope: Scope) -> None:
        """Let the next use make a new session; what is open stays in the scope."""
        if isinstance(self.kind, OfKey):
            ledger = self._application_of(scope_context().app).ledger
            self.kind.forget(ledger, scope)
            ledger.leave(scope)
        else:
            scope_context().__dict__.pop(self.session_name, None)


def scope_context() -> t.Any:
    """Return the application context that the scope belongs to.

    :raises OutsideContext: There is none.
    """
    context = current_context(None)
    if context is None:
        raise outside()
    return context


def outside(what: str = "session") -> OutsideContext:
    """Return the error of a use of ``db`` without an application context."""
    return OutsideContext(f"'db.{what}' {_OUTSIDE}")
