"""Whose session is it: the registry behind ``db.session``.

The session is an attribute of the application context object: nothing else in a
request is read as fast, has no key that could be reused, and dies on time.
"""

from __future__ import annotations

import itertools
import logging
import typing as t
import weakref
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import MutableMapping

from flask.globals import app_ctx
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.util import ScopedRegistry

from ._config import DEFAULT_BIND
from ._owner import current_owner
from ._owner import end_owner
from ._owner import KEY as OWNER
from ._session import close_session
from ._session import describe_lost_work
from ._session import ended_well
from ._session import note_status_later
from ._session import unsaved_work
from .errors import LostWork
from .errors import OutsideContext

if t.TYPE_CHECKING:
    from ._state import AppState

log = logging.getLogger("flask_scopedsession")

OUTSIDE = (
    "was used outside an application context. Wrap the call in"
    " 'with app.app_context():'."
)


class Scope:
    """The sessions of one scope, by bind name.

    Its owner, a context or a thread, is the only one to hold it. So when nobody
    tears the scope down, it closes its sessions as its owner is freed, with the
    garbage collector off too.
    """

    __slots__ = ("__weakref__", "key", "sessions")

    def __init__(self, key: Hashable = None) -> None:
        self.key = key
        self.sessions: dict[str, Session] = {}

    def close(self) -> list[BaseException]:
        """Close every session, whatever happens; return what went wrong."""
        failures = []
        while self.sessions:
            _, session = self.sessions.popitem()
            failure = close_session(session)
            if failure is not None:
                failures.append(failure)
        return failures

    def __del__(self) -> None:
        for failure in self.close():
            log.warning("a scope that was never torn down", exc_info=failure)


class Scopes(ScopedRegistry[t.Any]):
    """What all scopes have in common; each kind says where its scope is kept."""

    kind: str

    def __init__(
        self, createfunc: Callable[[], Session], state_of: Callable[[t.Any], AppState]
    ) -> None:
        self.createfunc = createfunc
        self.scopefunc = self._key
        self._state_of = state_of

    def _key(self) -> Hashable:
        return app_context()

    # -- SQLAlchemy's interface ------------------------------------------------

    def __call__(self) -> t.Any:
        """Return the scope's session, making it when there is none."""
        session = self.named(DEFAULT_BIND)
        if session is None:
            session = self.adopt(DEFAULT_BIND, self.createfunc())
        return session

    def has(self) -> bool:
        """Whether the current scope has a session."""
        return bool(app_ctx) and self.named(DEFAULT_BIND) is not None

    def set(self, obj: t.Any) -> None:
        """Make `obj` the session of the current scope, in place of any other."""
        scope = self.current()
        if scope is not None:
            scope.sessions.pop(DEFAULT_BIND, None)
        self.adopt(DEFAULT_BIND, obj)

    def clear(self) -> None:
        """Forget the current scope's sessions without closing them."""
        scope = self.current() if app_ctx else None
        if scope is not None:
            scope.sessions.clear()
            self._drop(app_context(), scope)

    # -- ours ------------------------------------------------------------------

    def named(self, name: str) -> Session | None:
        """Return the scope's session of one bind, if there is one."""
        scope = self.current()
        return None if scope is None else scope.sessions.get(name)

    def adopt(self, name: str, session: Session) -> Session:
        """Make a new session the scope's own, unless another thread was faster."""
        context = app_context()
        state = self._state_of(context.app)
        owner = current_owner()
        scope = self.current()
        if scope is None:
            scope = self._create(context)
            if owner.method is not None and state.settings.lost_work != "ignore":
                note_status_later()
        kept = scope.sessions.setdefault(name, session)
        if kept is not session:
            close_session(session)
            return kept
        self._stored(context, name, session)
        if state.settings.tracking:
            entry = state.ledger.opened(session, name, self.kind, owner, context)
            session._scopedsession_entry = entry  # type: ignore[attr-defined]
        return session

    def remove(self) -> None:
        """Close and forget all sessions of the current scope."""
        scope = self.current() if app_ctx else None
        if scope is not None:
            self._drop(app_context(), scope)
            for failure in scope.close():
                raise failure

    def end(self, context: t.Any, error: BaseException | None) -> None:
        """Close what `context` created, at its teardown. May be called twice."""
        lost = []
        for scope in self._created(context):
            lost += self._lost_work(context, error, scope)
            self._drop(context, scope)
            for failure in scope.close():
                log.warning("session: close() failed in teardown", exc_info=failure)
                if not isinstance(failure, Exception):
                    raise failure
        if OWNER in context.__dict__:
            end_owner(context)
        if lost:
            raise LostWork(lost[0])

    def _lost_work(
        self, context: t.Any, error: BaseException | None, scope: Scope
    ) -> list[str]:
        """Report changes that are about to be lost; return what is to be raised."""
        if not ended_well(context, error):
            return []
        state = self._state_of(context.app)
        policy = state.settings.lost_work
        if policy == "ignore":
            return []
        raising = []
        for session in scope.sessions.values():
            lost = unsaved_work(session)
            if lost:
                message = describe_lost_work(context.__dict__.get(OWNER), lost)
                if policy == "raise":
                    raising.append(message)
                elif state.first_report(message.partition(" ended ")[0]):
                    log.warning("%s", message)
        return raising

    # -- where a scope is kept -------------------------------------------------

    @abstractmethod
    def current(self) -> Scope | None:
        """Return the current scope, if it has been created."""

    @abstractmethod
    def _create(self, context: t.Any) -> Scope:
        """Make the current scope, and let `context` know that it did."""

    @abstractmethod
    def _created(self, context: t.Any) -> list[Scope]:
        """Return the scopes that `context` created and nobody removed."""

    @abstractmethod
    def _drop(self, context: t.Any, scope: Scope) -> None:
        """Take a scope out of where it is kept, if it is still there."""

    def _stored(self, context: t.Any, name: str, session: Session) -> None:
        """Note where a faster look-up may find the session."""

    def forget(self, context: t.Any) -> None:
        """Drop what a fork inherited with `context`; its sessions stay untouched."""
        for scope in self._created(context):
            scope.sessions.clear()
            self._drop(context, scope)
        context.__dict__.pop(OWNER, None)


class ContextScopes(Scopes):
    """One scope per application context, kept on the context object."""

    kind = "app context"
    _numbers = itertools.count(1)

    def __init__(
        self, createfunc: Callable[[], Session], state_of: Callable[[t.Any], AppState]
    ) -> None:
        super().__init__(createfunc, state_of)
        # Two extensions, for two applications, may meet in one context.
        self._session_name = f"_scopedsession_{next(self._numbers)}"
        self._scope_name = f"{self._session_name}_scope"

    def __call__(self) -> t.Any:
        try:
            context = app_ctx._get_current_object()
        except RuntimeError:
            raise OutsideContext(f"'db.session' {OUTSIDE}") from None
        # A miss by .get() and None: raising would cost more than a hit saves.
        session = context.__dict__.get(self._session_name)
        if session is None:
            session = self.adopt(DEFAULT_BIND, self.createfunc())
        return session

    def current(self) -> Scope | None:
        return t.cast("Scope | None", app_context().__dict__.get(self._scope_name))

    def _create(self, context: t.Any) -> Scope:
        # setdefault: a context may be shared with another thread.
        return t.cast(Scope, context.__dict__.setdefault(self._scope_name, Scope()))

    def _created(self, context: t.Any) -> list[Scope]:
        scope = context.__dict__.get(self._scope_name)
        return [] if scope is None else [scope]

    def _drop(self, context: t.Any, scope: Scope) -> None:
        context.__dict__.pop(self._session_name, None)
        context.__dict__.pop(self._scope_name, None)

    def _stored(self, context: t.Any, name: str, session: Session) -> None:
        if name == DEFAULT_BIND:
            context.__dict__[self._session_name] = session


class KeyedScopes(Scopes):
    """One scope per application and value of the user's function.

    A context's teardown removes only the scopes that were made in that context.
    """

    kind = "custom"
    _created_name = "_scopedsession_created"

    def __init__(
        self,
        createfunc: Callable[[], Session],
        state_of: Callable[[t.Any], AppState],
        key: Callable[[], Hashable],
    ) -> None:
        super().__init__(createfunc, state_of)
        self.scopefunc = key

    def _kept(self) -> MutableMapping[Hashable, Scope]:
        return self._state_of(app_context().app).scopes

    def current(self) -> Scope | None:
        return self._kept().get(self.scopefunc())

    def _create(self, context: t.Any) -> Scope:
        key = self.scopefunc()
        scope = self._kept().setdefault(key, Scope(key))
        # Weak, so that a thread's scope is gone with its thread.
        created = context.__dict__.setdefault(self._created_name, [])
        created.append(weakref.ref(scope))
        return scope

    def _created(self, context: t.Any) -> list[Scope]:
        found = (ref() for ref in context.__dict__.get(self._created_name, ()))
        return [scope for scope in found if scope is not None]

    def _drop(self, context: t.Any, scope: Scope) -> None:
        kept = self._state_of(context.app).scopes
        if kept.get(scope.key) is scope:
            del kept[scope.key]


class ThreadScopes(KeyedScopes):
    """One scope per application and thread: SQLAlchemy's thread-local scope."""

    kind = "thread"

    def __init__(
        self, createfunc: Callable[[], Session], state_of: Callable[[t.Any], AppState]
    ) -> None:
        super().__init__(createfunc, state_of, lambda: None)

    def _kept(self) -> MutableMapping[Hashable, Scope]:
        local = self._state_of(app_context().app).local
        return t.cast("MutableMapping[Hashable, Scope]", local.__dict__)

    def _drop(self, context: t.Any, scope: Scope) -> None:
        kept = self._state_of(context.app).local.__dict__
        if kept.get(None) is scope:
            del kept[None]


class Sessions(scoped_session[t.Any]):
    """A real ``scoped_session`` whose ``remove()`` forgets whatever happens."""

    registry: Scopes

    def __init__(self, session_factory: t.Any, registry: Scopes) -> None:
        super().__init__(session_factory)
        self.registry = registry

    def remove(self) -> None:
        """Close the current scope's sessions; the next call makes a new one.

        Does nothing without a context. When ``close()`` raises, the sessions are
        invalidated and forgotten all the same, then the error goes on.
        """
        self.registry.remove()


def app_context() -> t.Any:
    """Return the current application context.

    :raises OutsideContext: There is none.
    """
    try:
        return app_ctx._get_current_object()
    except RuntimeError:
        raise OutsideContext(f"'db.session' {OUTSIDE}") from None
