"""Sessions that use the bind where a model or table is."""

from __future__ import annotations

import typing as t
from collections.abc import Iterable
from collections.abc import Mapping

from sqlalchemy import event
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.orm import Session

from .._settings.config import DEFAULT_BIND
from .._settings.keys import BINDS
from .._settings.urls import is_private
from ..errors import MixedBinds
from ..errors import UnknownBind
from .models import Models

if t.TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy import Engine


class Routed(Session):
    """A session that uses the bind where a model or table is.

    ``get_bind()`` is SQLAlchemy's own hook for this. That of a session class of the
    application comes first, and reaches this one by ``super()``.
    """

    # Long names, as a session class of the application may have any.
    _scopedsession_models: t.ClassVar[Models]
    _scopedsession_engines: t.ClassVar[Mapping[str, Engine]]
    _scopedsession_key: t.ClassVar[str]

    def __init__(self, *args: t.Any, **kw: t.Any) -> None:
        super().__init__(*args, **kw)
        # Whoever gives binds to a session wants those and no others.
        self.__placed = kw.get("binds") is not None

    def get_bind(
        self,
        mapper: t.Any = None,
        *,
        clause: t.Any = None,
        bind: t.Any = None,
        **kw: t.Any,
    ) -> Engine | Connection:
        """Return the engine or connection for a model or statement.

        :raises MixedBinds: The statement needs two databases.
        :raises UnknownBind: The bind is not configured.
        :raises ConfigError: It is contradictory where the model is.
        """
        if bind is not None or self.__placed:
            return super().get_bind(mapper, clause=clause, bind=bind, **kw)
        try:
            usual = super().get_bind(mapper, clause=clause, **kw)
        except UnboundExecutionError:
            if (found := self._routed(mapper, clause)) is None:
                raise
            return found
        # What bind_mapper() and bind_table() say of this session counts more.
        return (
            usual if usual is not self.bind else self._routed(mapper, clause) or usual
        )

    def _routed(self, mapper: t.Any, clause: t.Any) -> Engine | Connection | None:
        """Return where a model or statement belongs; ``None``: the default bind."""
        engines = self._scopedsession_engines
        found = self._scopedsession_models.of_statement(mapper, clause)
        targets = {}
        for name, what in found.items():
            target = self.bind if name == DEFAULT_BIND else engines.get(name)
            if target is None and name != DEFAULT_BIND:
                raise UnknownBind(
                    f"There is no bind {name!r}, where {what!r} belongs. Add it to"
                    f" {self._scopedsession_key}. Configured binds: {sorted(engines)}."
                )
            targets[name] = target
        if len(targets) > 1 and not _one_database(targets.values()):
            places = ", ".join(f"{found[name]!r} in {name!r}" for name in found)
            raise MixedBinds(
                f"The statement uses tables of several databases: {places}. Use one"
                " statement for each. If one database has them all, name it:"
                " bind_arguments={'bind': db.get_engine(name)}."
            )
        return next(iter(targets.values()), None)


@event.listens_for(Routed, "do_orm_execute")
def _pass_statement(state: ORMExecuteState) -> None:
    """Pass unions and functions to ``get_bind()``, as the ORM does with the rest."""
    if not state.bind_arguments:
        state.bind_arguments["clause"] = state.statement


def _one_database(targets: Iterable[Engine | Connection | None]) -> bool:
    """Whether all binds have the same URL, and it names a database."""
    urls = {None if each is None else each.engine.url for each in targets}
    url = urls.pop()
    return not urls and url is not None and not is_private(url)


def keep_to(session: Session, engine: Engine) -> None:
    """Let a session send everything to its one engine, also if its class routes."""
    if type(session).get_bind is not Session.get_bind:

        def get_bind(*_: t.Any, **__: t.Any) -> Engine:
            return engine

        own: t.Any = session
        own.get_bind = get_bind


def routed_if_needed(
    class_: t.Any, models: Models, engines: Mapping[str, Engine], key: str = BINDS
) -> type[t.Any]:
    """Return what :func:`routed` does, or with one database for all, `class_`."""
    if set(engines) != {DEFAULT_BIND} or models.refresh().says_binds:
        return routed(class_, models, engines, key)
    return t.cast("type[t.Any]", class_)


def routed(
    class_: t.Any, models: Models, engines: Mapping[str, Engine], key: str = BINDS
) -> type[t.Any]:
    """Return a subclass of a session class, for sessions that use several binds.

    :param key: Where binds are configured, for error messages.
    """
    members = {
        "__module__": class_.__module__,
        "_scopedsession_models": models,
        "_scopedsession_engines": engines,
        "_scopedsession_key": key,
    }
    return type(class_.__name__, (class_, Routed), members)
