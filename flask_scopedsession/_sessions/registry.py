"""Whose session is it: the registry behind ``db.session``.

The session is an attribute of the application context object: nothing else in a
request is read as fast, has no key that could be reused, and dies on time.
"""

from __future__ import annotations

import itertools
import logging
import sys
import typing as t
import weakref
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import MutableMapping

from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker
from sqlalchemy.util import ScopedRegistry

from .._scopes.context import ANSWERED
from .._scopes.context import current_context
from .._scopes.context import has_context
from .._scopes.context import RAISED
from .._scopes.context import STATUS
from .._scopes.scope import current_owner
from .._scopes.scope import KEY as OWNER
from .._scopes.scope import Responsible
from .._scopes.scope import responsible
from .._settings.config import DEFAULT_BIND
from .._settings.values import kind
from ..errors import ConfigError
from ..errors import LostWork
from ..errors import OutsideContext
from .factory import apart
from .factory import close_session
from .factory import describe_lost_work
from .factory import ended_well
from .factory import unsaved_work

if t.TYPE_CHECKING:
    from .._application import AppState

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

    __slots__ = ("__weakref__", "key", "sessions", "state")

    def __init__(self, state: AppState, key: Hashable = None) -> None:
        self.state = state
        self.key = key
        self.sessions: dict[str, Session] = {}

    def close(self) -> list[BaseException]:
        """Close every session, whatever happens; return what went wrong."""
        failures = []
        for name, session in list(self.sessions.items()):
            failure = close_session(session)
            # Not before: what interrupts us leaves the rest to __del__().
            self.sessions.pop(name, None)
            if failure is not None:
                failures.append(failure)
        return failures

    def __del__(self) -> None:
        if self.sessions:
            under_way = sys.exc_info()[1]
            for failure in self.close():
                text = "a scope that was never torn down"
                log.warning(text, exc_info=apart(failure, under_way))


class Factory(sessionmaker[t.Any]):
    """What ``db.session`` creates sessions with: the current app's sessionmaker.

    What is configured here applies to every app, from the next session on.
    """

    def __init__(
        self, class_: type[Session], state_of: Callable[[t.Any], AppState]
    ) -> None:
        super().__init__(class_=class_)
        # Not a subclass of it: this very class is the one of every app's sessions.
        self.class_ = class_
        self.kw = {}
        self._state_of = state_of

    def __call__(self, **local_kw: t.Any) -> t.Any:
        state = self._state_of(scope_context().app)
        return state.sessionmaker(**{**self.kw, **local_kw})


class Scopes(ScopedRegistry[t.Any]):
    """What all scopes have in common; each kind says where its scope is kept."""

    kind: str
    session_name: str | None = None
    """Where a context keeps the default session, if it does."""
    _scope_name: str | None = None
    """Where it keeps the scope, if it does."""

    def __init__(
        self, createfunc: Factory, state_of: Callable[[t.Any], AppState]
    ) -> None:
        self.createfunc = createfunc
        self.scopefunc = self._key
        self._state_of = state_of

    @staticmethod
    def _key() -> Hashable:
        return t.cast(Hashable, scope_context())

    # -- SQLAlchemy's interface ------------------------------------------------

    def __call__(self) -> t.Any:
        """Return the scope's session, making it when there is none."""
        session = self.named(DEFAULT_BIND)
        if session is None:
            session = self.adopt(DEFAULT_BIND, self.createfunc(), scope_context())
        return session

    def has(self) -> bool:
        """Whether the current scope has a session."""
        return has_context() and self.named(DEFAULT_BIND) is not None

    def set(self, obj: t.Any) -> None:
        """Make `obj` the session of the current scope, in place of any other."""
        scope = self.current()
        if scope is not None:
            scope.sessions.pop(DEFAULT_BIND, None)
        self.adopt(DEFAULT_BIND, obj, scope_context())

    def clear(self) -> None:
        """Forget the current scope's sessions without closing them."""
        scope = self.current() if has_context() else None
        if scope is not None:
            scope.sessions.clear()
            self._drop(scope_context(), scope)

    # -- ours ------------------------------------------------------------------

    def named(self, name: str) -> Session | None:
        """Return the scope's session of one bind, if there is one."""
        scope = self.current()
        return None if scope is None else scope.sessions.get(name)

    def adopt(
        self, name: str, session: Session, context: t.Any, scope: Scope | None = None
    ) -> Session:
        """Make a new session the scope's own, unless another thread was faster."""
        owner = current_owner(context)
        if scope is None:
            scope = self._enter(context)
        state = scope.state
        kept = scope.sessions.setdefault(name, session)
        if kept is not session:
            close_session(session)
            return kept
        # Without tracking, too: a fork has to find the sessions that it inherits.
        own: t.Any = session
        own._scopedsession_entry = state.ledger.opened(
            session, name, self.kind, owner, context
        )
        own._scopedsession_ledger, own._scopedsession_state = state.ledger, state
        own._scopedsession_by = owner
        if self.session_name is not None and name == DEFAULT_BIND:
            context.__dict__[self.session_name] = session
        return session

    def remove(self) -> None:
        """Close and forget all sessions of the current scope."""
        scope = self.current() if has_context() else None
        if scope is not None:
            self._drop(scope_context(), scope)
            for failure in scope.close():
                raise failure

    def end(self, context: t.Any, error: BaseException | None) -> None:
        """Close what `context` created, at its teardown. May be called twice."""
        kept = context.__dict__
        kept[ANSWERED] = True
        if OWNER not in kept:
            kept.pop(RAISED, None)
            return  # no session was made here, nor a connection taken
        raising: list[BaseException] = []
        under_way = sys.exc_info()[1]
        own = kept.get(self._scope_name)
        for scope in self._created(context) if own is None else (own,):
            try:
                if scope.state.settings.lost_work != "ignore":
                    for session in list(scope.sessions.values()):
                        lost = unsaved_work(session)
                        if lost and ended_well(context, error):
                            raising += self._lost_work(context, lost, scope.state)
            except Exception as problem:  # the user's own types, maybe
                text = "session: cannot tell what it changed"
                log.warning(text, exc_info=apart(problem, under_way))
            except BaseException as interrupt:  # noqa: BLE001 - raised in the end
                raising.append(interrupt)
            self._drop(context, scope)
            for failure in scope.close():
                text = "session: close() failed in teardown"
                log.warning(text, exc_info=apart(failure, under_way))
                if not isinstance(failure, Exception):
                    raising.insert(0, failure)
        owner = kept.pop(OWNER, None)
        if owner is not None:
            if owner.rule is None:
                owner.url_rule  # noqa: B018 - noted, while there is a request to ask
            owner.ended = True
        kept.pop(STATUS, None)
        kept.pop(RAISED, None)
        if raising:
            raise raising[0]

    @staticmethod
    def _lost_work(
        context: t.Any, lost: Counter[str], state: AppState
    ) -> tuple[LostWork, ...]:
        """Report changes that are about to be lost; return what is to be raised."""
        owner = context.__dict__.get(OWNER)
        message = describe_lost_work(owner, lost)
        who = Responsible() if owner is None else responsible(owner)
        state.ledger.lost_work(who, lost)
        if state.settings.lost_work == "raise":
            return (LostWork(message),)
        if state.first_report(message.partition(" ended ")[0]):
            log.warning("%s", message)
        return ()

    # -- where a scope is kept -------------------------------------------------

    def current(self) -> Scope | None:
        """Return the current scope, if it has been created."""
        return self._current(scope_context())

    @abstractmethod
    def _current(self, context: t.Any) -> Scope | None:
        """Return the current scope, if it has been created; `context` is current."""

    @abstractmethod
    def _enter(self, context: t.Any) -> Scope:
        """Return the current scope. If it is new, let `context` know who made it."""

    @abstractmethod
    def _created(self, context: t.Any) -> t.Sequence[Scope]:
        """Return the scopes that `context` created and nobody removed."""

    @abstractmethod
    def _drop(self, context: t.Any, scope: Scope) -> None:
        """Take a scope out of where it is kept, if it is still there."""

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
        self, createfunc: Factory, state_of: Callable[[t.Any], AppState]
    ) -> None:
        super().__init__(createfunc, state_of)
        self._factory = createfunc
        # Two extensions, for two applications, may meet in one context.
        self.session_name = f"_scopedsession_{next(self._numbers)}"
        self._scope_name = f"{self.session_name}_scope"

    def __call__(self) -> t.Any:
        context = scope_context()
        kept = context.__dict__
        # A miss by .get() and None: raising would cost more than a hit saves.
        session = kept.get(self.session_name)
        if session is not None:
            return session
        scope = kept.get(self._scope_name) or self._enter(context)
        # As self.createfunc() does, without two calls.
        maker, configured = scope.state.sessionmaker, self._factory.kw
        session = maker(**configured) if configured else maker.class_(**maker.kw)
        return self.adopt(DEFAULT_BIND, session, context, scope)

    def _current(self, context: t.Any) -> Scope | None:
        found: Scope | None = context.__dict__.get(self._scope_name)
        return found

    def _enter(self, context: t.Any) -> Scope:
        found: Scope | None = context.__dict__.get(self._scope_name)
        if found is None:
            made = Scope(self._state_of(context.app))
            # setdefault: a context may be shared with another thread.
            found = t.cast(Scope, context.__dict__.setdefault(self._scope_name, made))
        return found

    def _created(self, context: t.Any) -> t.Sequence[Scope]:
        scope = context.__dict__.get(self._scope_name)
        return () if scope is None else (scope,)

    def _drop(self, context: t.Any, scope: Scope) -> None:
        kept = context.__dict__
        if kept.get(self._scope_name) is scope:
            # The session first: what interrupts us must not leave it without a scope.
            kept.pop(self.session_name, None)
            kept.pop(self._scope_name, None)


class KeyedScopes(Scopes):
    """One scope per application and value of the user's function.

    A context's teardown removes only the scopes that were made in that context.
    """

    kind = "custom"
    _created_name = "_scopedsession_created"

    def __init__(
        self,
        createfunc: Factory,
        state_of: Callable[[t.Any], AppState],
        key: Callable[[], Hashable],
    ) -> None:
        super().__init__(createfunc, state_of)
        self.scopefunc = key

    def _kept(self, context: t.Any) -> MutableMapping[Hashable, Scope]:
        return self._state_of(context.app).scopes

    def _current(self, context: t.Any) -> Scope | None:
        kept = self._kept(context)
        key = self.scopefunc()
        try:
            return kept.get(key)
        except TypeError:
            raise ConfigError(
                "scopefunc must return a hashable, such as a str or an int, not"
                f" {kind(key)}."
            ) from None

    def _enter(self, context: t.Any) -> Scope:
        found = self._current(context)
        if found is not None:
            return found
        key = self.scopefunc()
        scope = Scope(self._state_of(context.app), key)
        scope = self._kept(context).setdefault(key, scope)
        # Weak, so that a thread's scope is gone with its thread.
        created = context.__dict__.setdefault(self._created_name, [])
        created.append(weakref.ref(scope))
        return scope

    def _created(self, context: t.Any) -> t.Sequence[Scope]:
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
        self, createfunc: Factory, state_of: Callable[[t.Any], AppState]
    ) -> None:
        super().__init__(createfunc, state_of, lambda: None)

    def _kept(self, context: t.Any) -> MutableMapping[Hashable, Scope]:
        return _of_thread(self._state_of(context.app))

    def _drop(self, context: t.Any, scope: Scope) -> None:
        kept = _of_thread(self._state_of(context.app))
        if kept.get(None) is scope:
            del kept[None]


def _of_thread(state: AppState) -> MutableMapping[Hashable, Scope]:
    return t.cast("MutableMapping[Hashable, Scope]", state.local.__dict__)


class Sessions(scoped_session[t.Any]):
    """A real ``scoped_session`` whose ``remove()`` forgets whatever happens."""

    def __init__(self, session_factory: t.Any, registry: Scopes) -> None:
        super().__init__(session_factory)
        self.registry = self._scopes = registry
        self._session_name = registry.session_name

    @property
    def _proxied(self) -> t.Any:
        # Private: what SQLAlchemy's own proxies ask. Were it renamed, those would ask
        # the registry, as they do without this; a hit here saves 85 ns of 242.
        context = current_context()
        if context is not None:
            session = context.__dict__.get(self._session_name)
            if session is not None:
                return session
        return self.registry()

    def remove(self) -> None:
        """Close the current scope's sessions; the next call makes a new one.

        Does nothing without a context. When ``close()`` raises, the sessions are
        invalidated and forgotten all the same, then the error goes on.
        """
        self._scopes.remove()


def scope_context() -> t.Any:
    """Return the application context that the scope belongs to.

    :raises OutsideContext: There is none.
    """
    context = current_context()
    if context is None:
        raise OutsideContext(f"'db.session' {OUTSIDE}")
    return context
