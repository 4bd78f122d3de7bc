"""The sessions of ``db.session``."""

from __future__ import annotations

import typing as t

from flask import current_app
from flask import has_app_context
from flask.globals import app_ctx
from sqlalchemy import orm
from sqlalchemy.exc import UnboundExecutionError

from ..errors import UnknownBind

if t.TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Connection
    from sqlalchemy import Engine

    from .extension import SQLAlchemy


class UnknownBindKey(UnknownBind, UnboundExecutionError, KeyError):
    """No bind of that name is configured; an error of SQLAlchemy's, too."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # a KeyError would quote it


class Session(orm.Session):
    """A session that uses the engine of the bind where a model or table is.

    :param db: The extension.
    :param options: Those of :class:`sqlalchemy.orm.Session`.
    """

    def __init__(self, db: SQLAlchemy, **options: t.Any) -> None:
        self._db = db
        self._own_bind: Engine | Connection | None = None
        self._app = _current_app() if has_app_context() else None
        super().__init__(**options)

    @property
    def bind(self) -> Engine | Connection | None:
        """The default engine of the application, unless the session was given one."""
        if self._own_bind is not None:
            return self._own_bind
        if self._app is None:
            return self._db.engines.get(None)
        return self._db._app_engines.get(self._app, {}).get(None)

    @bind.setter
    def bind(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, bind: Engine | Connection | None
    ) -> None:
        self._own_bind = bind

    def get_bind(
        self,
        mapper: t.Any = None,
        clause: t.Any = None,
        bind: t.Any = None,
        **kwargs: t.Any,
    ) -> Engine | Connection:
        """Return the engine for a model or statement.

        :param mapper: The model.
        :param clause: The statement or table.
        :param bind: Is returned, if given.
        :param kwargs: For :meth:`sqlalchemy.orm.Session.get_bind`.
        :raises UnknownBindKey: Its bind is not configured.
        """
        try:
            return super().get_bind(mapper, clause=clause, bind=bind, **kwargs)
        except UnknownBind as error:
            raise UnknownBindKey(str(error)) from None


def _app_ctx_id() -> int:  # pyright: ignore[reportUnusedFunction]
    """Return what tells the current application context from others."""
    return id(t.cast("t.Any", app_ctx)._get_current_object())


def _current_app() -> Flask:
    return t.cast("Flask", t.cast("t.Any", current_app)._get_current_object())
