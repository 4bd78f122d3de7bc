"""The registry behind ``db.async_session``: which session belongs to a call."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from functools import partial

from sqlalchemy.ext.asyncio import async_scoped_session
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import ScopedRegistry

from .._scopes.context import current_context
from .._scopes.ledger import Ledger
from .._sessions.registry import outside
from .._settings.config import DEFAULT_BIND
from .._settings.keys import ASYNC_BINDS
from ..errors import UnknownBind
from .binds import AsyncBinds
from .calls import current_call
from .calls import current_place
from .calls import Place


class Makes(t.Protocol):
    """What the registry needs of an application."""

    ledger: Ledger
    async_binds: AsyncBinds | None

    @property
    def sessionmaker(self) -> t.Any:
        """Looks at the configuration again, when that may have changed."""


class Factory(async_sessionmaker[AsyncSession]):
    """Makes sessions of the current application. What is configured is for all."""

    def __init__(self, application_of: Callable[[t.Any], Makes]) -> None:
        super().__init__()
        self.kw = {}
        self._application_of = application_of

    def __call__(self, **local_kw: t.Any) -> AsyncSession:
        return self.make(DEFAULT_BIND, **local_kw)

    def make(self, name: str, **local_kw: t.Any) -> AsyncSession:
        """Return a session of one bind."""
        application = self.application()
        application.sessionmaker  # noqa: B018
        binds = application.async_binds
        if binds is None:
            raise UnknownBind(
                f"'db.async_session' has no database: {ASYNC_BINDS} is not set, such as"
                f" app.config[{ASYNC_BINDS!r}] = {{'default':"
                " 'postgresql+asyncpg://...'}."
            )
        return binds.new_session(name, {**self.kw, **local_kw})

    def application(self) -> Makes:
        """Return the current application.

        :raises OutsideContext: There is no application context.
        """
        context = current_context(None)
        if context is None:
            raise outside("async_session")
        return self._application_of(context.app)


class AsyncRegistry(ScopedRegistry[AsyncSession]):
    """The sessions of the current application context in the current call."""

    def __init__(self, factory: Factory) -> None:
        super().__init__(factory, partial(current_context, None))
        self._factory = factory

    def __call__(self) -> AsyncSession:
        return self.session(DEFAULT_BIND)

    def session(self, name: str) -> AsyncSession:
        """Return the session of a bind, making it when there is none."""
        place = current_place()
        session = None if place is None else place.sessions.get(name)
        if session is None:
            self._factory.application()
            current_call()
            session = self._factory.make(name)
            self._place().add(name, session)
        else:
            current_call()
        return session

    def has(self) -> bool:
        """Whether there is a session."""
        place = current_place()
        return place is not None and DEFAULT_BIND in place.sessions

    def set(self, obj: AsyncSession) -> None:
        """Make `obj` the session, in place of any other."""
        self.clear()
        self._place().add(DEFAULT_BIND, obj)

    def clear(self) -> None:
        """Let the next use make new sessions; the call closes those before."""
        call, place = current_call(), current_place()
        if place is not None:
            call.places[place] = call.places.pop(current_context(None))

    def _place(self) -> Place:
        call, context = current_call(), current_context(None)
        place = call.places.get(context)
        if place is None:
            ledger = self._factory.application().ledger
            place = call.places[context] = Place(call, ledger, context)
        return place


class AsyncSessions(async_scoped_session[AsyncSession]):
    """A real ``async_scoped_session``, whose sessions end with their calls."""

    def __init__(self, application_of: Callable[[t.Any], Makes]) -> None:
        factory = Factory(application_of)
        super().__init__(factory, partial(current_context, None))
        self.registry = self.sessions = AsyncRegistry(factory)

    async def remove(self) -> None:
        """Close the sessions; the next use makes new ones.

        Does nothing if there are none.
        """
        place = current_place()
        if place is not None:
            self.sessions.clear()
            await place.close()
