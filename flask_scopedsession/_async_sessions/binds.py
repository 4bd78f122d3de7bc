"""An application's async engines, and the account of their connections."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from importlib import import_module

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import AsyncSession

from .._pools import drivers
from .._pools.account import PoolAccount
from .._sessions.models import Models
from .._sessions.routing import keep_to
from .._sessions.routing import routed_if_needed
from .._settings.config import DEFAULT_BIND
from .._settings.keys import ASYNC_BINDS
from .._settings.values import attempt
from ..errors import ConfigError
from ..errors import UnknownBind
from .calls import current_place

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import ConnectionPoolEntry

    from .._pools.slot import Slot
    from .._scopes.scope import Scope


def refuse_without_greenlet() -> None:
    """Refuse a configuration that SQLAlchemy cannot serve.

    :raises ConfigError: greenlet is missing, which SQLAlchemy's asyncio needs.
    """
    if isinstance(attempt(lambda: import_module("greenlet"), ImportError), ImportError):
        raise ConfigError(
            f"{ASYNC_BINDS} needs greenlet, which cannot be imported. Install"
            " 'sqlalchemy[asyncio]'."
        )


class AsyncAccount(PoolAccount):
    """The account of an async bind, whose drivers SQLAlchemy wraps."""

    __slots__ = ()

    def check_out(self, slot: Slot, scope: Scope, now: float, waited: float) -> None:
        place = current_place()
        super().check_out(slot, scope if place is None else place.scope, now, waited)

    def found(
        self,
        entry: ConnectionPoolEntry,
        driver: t.Any,
        backend_pid: int | None,  # noqa: ARG002 - of the wrapper
    ) -> Slot:
        driver = driver.driver_connection
        return super().found(entry, driver, drivers.backend_pid(driver))

    def held_here(self) -> list[t.Any]:
        return []  # not for a session of db.session to throw away

    def detached(self, entry: ConnectionPoolEntry, driver: t.Any) -> Slot | None:
        return super().detached(entry, driver.driver_connection)


class AsyncBinds:
    """The async engines of one application, and what makes their sessions."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        models: Models,
        class_: type[Session],
        options: Mapping[str, t.Any],
    ) -> None:
        """Make nothing yet.

        :param engines: The synchronous part of each engine, by the bind's name.
        :param class_: Of the sessions that do the work of the async ones.
        :param options: For the sessions.
        """
        self._engines = {name: AsyncEngine(each) for name, each in engines.items()}
        self._synchronous = engines
        self._models = models
        self._class = class_
        self._routed: type[Session] | None = None
        # An attribute that has expired cannot be loaded by "await".
        self._options = {"expire_on_commit": False, **options}
        for name in ("bind", "binds"):  # of the drop-in; they are synchronous
            self._options.pop(name, None)

    def new_session(self, name: str, configured: Mapping[str, t.Any]) -> AsyncSession:
        """Return a session of one bind, or of all for the default one.

        :raises UnknownBind: No such bind is configured.
        """
        engine = self._engines.get(name)
        options: dict[str, t.Any] = {**self._options, **configured}
        if name == DEFAULT_BIND:
            class_ = self._routing()
            options = {"bind": engine, "sync_session_class": class_, **options}
            return AsyncSession(**options)
        if engine is None:
            raise UnknownBind(
                f"There is no async bind {name!r}. Add it to {ASYNC_BINDS}."
                f" Configured binds: {sorted(self._engines)}."
            )
        options.update(bind=engine, sync_session_class=self._class, binds={})
        session = AsyncSession(**options)
        keep_to(session.sync_session, engine.sync_engine)
        return session

    def _routing(self) -> type[Session]:
        """Return the class that finds each model's bind; models are known by now."""
        if self._routed is None:
            self._routed = routed_if_needed(
                self._class, self._models, self._synchronous, ASYNC_BINDS
            )
        return self._routed
