"""``db.session``: a ``scoped_session``, and what the user's session class adds."""

from __future__ import annotations

import inspect
import typing as t

from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session

from .._scopes.context import current_context
from .factory import Factory
from .registry import Registry

if t.TYPE_CHECKING:
    from sqlalchemy.orm import sessionmaker
    from typing_extensions import TypeVar

    S = TypeVar("S", bound=Session)
    E = TypeVar("E")
    E_co = TypeVar("E_co", covariant=True)

    class HasExec(t.Protocol[E_co]):
        """A session such as sqlmodel's."""

        @property
        def exec(self) -> E_co: ...

    class Calls(t.Protocol[E_co]):
        """A proxy, by what it returns when it is called."""

        def __call__(self) -> E_co: ...

    class Exec:
        """``exec`` of the user's session class, with the type that it has there."""

        @t.overload
        def __get__(self, proxy: Calls[HasExec[E]], owner: t.Any) -> E: ...
        @t.overload
        def __get__(self, proxy: t.Any, owner: t.Any) -> t.Any: ...
        def __get__(self, proxy: t.Any, owner: t.Any) -> t.Any: ...

    class OwnSessions(scoped_session[S]):
        """The proxy for a user's session class, whose other methods are ``Any``."""

        exec: Exec = Exec()

        def __getattr__(self, name: str) -> t.Any: ...

    class MakesSessions(t.Protocol[S]):
        """A ``ScopedSession``, by the class of its sessions."""

        @property
        def sessionmaker(self) -> sessionmaker[S]: ...

    class SessionOf:
        """``db.session``. A user's class makes names valid that SQLAlchemy lacks."""

        @t.overload
        def __get__(
            self, db: MakesSessions[Session], owner: t.Any
        ) -> scoped_session[Session]: ...
        @t.overload
        def __get__(self, db: MakesSessions[S], owner: t.Any) -> OwnSessions[S]: ...
        def __get__(self, db: t.Any, owner: t.Any) -> t.Any: ...
        def __set__(self, db: t.Any, value: scoped_session[t.Any]) -> None: ...


class Sessions(scoped_session[t.Any]):
    """A real ``scoped_session`` whose ``remove()`` forgets whatever happens."""

    def __init__(self, session_factory: Factory, registry: Registry) -> None:
        super().__init__(session_factory)
        self.registry = self._scopes = registry
        self._session_name = registry.session_name

    @property
    def _proxied(self) -> t.Any:
        # Private: what SQLAlchemy's own proxies ask. Were it renamed, those would ask
        # the registry, as they do without this.
        context = current_context(None)
        session = getattr(context, self._session_name, None)
        return self._scopes.session_of(context) if session is None else session

    def remove(self) -> None:
        """Close the current scope's sessions; the next call makes a new one.

        Does nothing without a context. When ``close()`` raises, the sessions are
        invalidated and forgotten all the same, then the error goes on.
        """
        self._scopes.remove()


#: What the proxy has of its own, and a session class cannot replace.
_RESERVED = {"registry", "session_factory", *dir(scoped_session)} - {*dir(Session)}


class _Method:
    """A method of the session. A test may set another one on the proxy."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, proxy: Sessions | None, owner: t.Any) -> t.Any:
        return self if proxy is None else getattr(proxy._proxied, self._name)


class _Attribute(_Method):
    """An attribute of the session, which is set there: the proxy has many users."""

    def __set__(self, proxy: Sessions, value: object) -> None:
        setattr(proxy._proxied, self._name, value)

    def __delete__(self, proxy: Sessions) -> None:
        delattr(proxy._proxied, self._name)


def _member(session_class: type[Session], name: str) -> t.Any:
    member = inspect.getattr_static(session_class, name)
    if isinstance(member, (classmethod, staticmethod)):
        return staticmethod(getattr(session_class, name))  # it needs no session
    return (_Method if callable(member) else _Attribute)(name)


def proxy_class(session_class: type[Session]) -> type[Sessions]:
    """Return a class of proxies with all that `session_class` adds or overrides."""
    own = {
        name: _member(session_class, name)
        for each in session_class.__mro__
        if each not in Session.__mro__
        for name in vars(each)
        if not name.startswith("_") and name not in _RESERVED
    }
    return type("Sessions", (Sessions,), own) if own else Sessions
