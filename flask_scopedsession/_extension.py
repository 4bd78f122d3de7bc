"""The extension object: a front that delegates."""

from __future__ import annotations

import os
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Mapping
from contextlib import AbstractContextManager
from os import getpid
from types import MappingProxyType

from flask import Flask
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker
from werkzeug.local import LocalProxy

from ._application import Application
from ._application import EXTENSION
from ._control.server import SERVER
from ._pools.counting import count_also
from ._pools.counting import StatementCount
from ._pools.engine import dispose_all
from ._runtime.logs import fields
from ._runtime.logs import log
from ._scopes.context import current_context
from ._scopes.kinds import Kind
from ._scopes.kinds import OfContext
from ._scopes.kinds import OfKey
from ._scopes.kinds import OfThread
from ._sessions.factory import AppSessionmaker
from ._sessions.factory import Factory
from ._sessions.models import Models
from ._sessions.other_names import WithHints
from ._sessions.proxy import proxy_class
from ._sessions.registry import outside
from ._sessions.registry import Registry
from ._sessions.registry import scope_context
from ._sessions.transactions import release
from ._sessions.transactions import transaction
from ._sessions.transactions import transactional
from ._settings.config import DEFAULT_BIND
from ._settings.config import read_settings
from ._settings.options import session_options as parsed_session_options
from ._settings.values import integer
from ._settings.values import kind
from ._settings.values import mapping
from ._settings.values import seconds
from .cli import add_commands
from .errors import AppNotInitialized
from .errors import ConfigError
from .errors import OutsideContext
from .errors import SetupError

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy import MetaData
    from sqlalchemy import Row
    from sqlalchemy import Select
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import async_scoped_session
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Mapper
    from sqlalchemy.sql.expression import TableClause
    from sqlalchemy.sql.selectable import TypedReturnsRows as Statement
    from typing_extensions import TypeVar
    from typing_extensions import TypeVarTuple
    from typing_extensions import Unpack

    from ._async_sessions.registry import AsyncSessions
    from ._sessions.proxy import SessionOf
    from ._settings.config import BindSettings
    from ._settings.config import Settings
    from .snapshot import Survey
    from .snapshot import WorkerSnapshot
    from .snapshot._readings import Role
    from .views import KeysetPage
    from .views import Pagination

    T = TypeVar("T")
    T2 = TypeVar("T2")
    TP = TypeVar("TP", bound=tuple[t.Any, t.Any, Unpack[tuple[t.Any, ...]]])
    Ts = TypeVarTuple("Ts")

    S = TypeVar("S", bound=Session, default=Session)
else:
    S = t.TypeVar("S", bound=Session)


P = t.ParamSpec("P")
R = t.TypeVar("R")


class HasMetadata(t.Protocol):
    """A declarative base: SQLAlchemy's, sqlmodel's, or any other."""

    @property
    def metadata(self) -> MetaData: ...


BindTarget = t.Union["type[t.Any]", "Mapper[t.Any]", "TableClause", "MetaData"]
BindNames = t.Union[str, "Collection[str | None]", None]

#: Flask-SQLAlchemy's name for all binds.
ALL = "__all__"


class ScopedSession(WithHints, t.Generic[S]):
    """SQLAlchemy engines and a ``scoped_session`` for Flask applications.

    :param app: Calls :meth:`init_app` at once.
    :param model_class: The application's declarative base; gives :attr:`Model`,
        :attr:`metadata`, :meth:`create_all`.
    :param binds: A base, mixin, model, mapper, table or metadata, and the name of the
        bind it lives in. ``__bind_key__`` of a class and ``info={"bind_key": ...}`` of
        a table or metadata mean the same.
    :param engine_options: Defaults for every bind; ``app.config`` wins.
    :param session_options: For the sessionmaker; ``class_`` is given here and
        nowhere else.
    :param scopefunc: ``None`` for Flask's application context, ``"thread"`` for
        SQLAlchemy's thread-local scope, or a function that returns a hashable.
    :raises ConfigError: An argument is of the wrong kind.

    What needs the current app raises :exc:`.OutsideContext` outside an application
    context, and :exc:`.AppNotInitialized` if :meth:`init_app` was not called.

    .. versionadded:: 0.1
    """

    if t.TYPE_CHECKING:
        session: SessionOf = SessionOf()
    else:
        session: scoped_session[S]
        """A real :class:`sqlalchemy.orm.scoped_session`, usable at import time. It
        proxies the session of the current scope, with the methods and class attributes
        that a session class of your own adds."""

    def __init__(
        self,
        app: Flask | None = None,
        *,
        model_class: HasMetadata | None = None,
        binds: Mapping[BindTarget, str] | None = None,
        engine_options: Mapping[str, t.Any] | None = None,
        session_options: Mapping[str, t.Any] | None = None,
        scopefunc: t.Literal["thread"] | Callable[[], Hashable] | None = None,
    ) -> None:
        self._models = Models(model_class, {} if binds is None else binds)
        self._engine_options = mapping("engine_options", engine_options)
        options = mapping("session_options", session_options)
        class_ = options.pop("class_", Session)
        self._session_options = parsed_session_options("session_options", options)
        if not (isinstance(class_, type) and issubclass(class_, Session)):
            raise ConfigError(
                "session_options['class_'] must be a subclass of"
                " sqlalchemy.orm.Session."
            )
        self._template = AppSessionmaker(class_=class_)
        factory = Factory(
            self._template,
            lambda: self._application_of(scope_context().app).sessionmaker,
        )
        self._registry = Registry(factory, _kind(scopefunc), self._application_of)
        self._attribute = f"{self._registry.session_name}_application"
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()
        self.session = proxy_class(class_)(factory, self._registry)
        self._async: AsyncSessions | None = None
        if app is not None:
            self.init_app(app)

    # -- set-up ----------------------------------------------------------------

    def init_app(self, app: Flask) -> None:
        """Read an application's configuration and build its engines.

        :param app: The application, or ``current_app`` where there is one.
        :raises ConfigError: A key is missing or wrong; the message says which.
        :raises SetupError: The application has been initialised before.
        """
        app = _flask(app)
        other = app.extensions.get(EXTENSION)
        if other is not None:
            which = "this" if other is self else "another"
            hint = (
                "" if other is self else f" Use the other one, {other!r}, everywhere."
            )
            raise SetupError(
                f"The app {app.name!r} was already initialised with {which}"
                " ScopedSession. Call init_app once per app; for several databases use"
                f" SQLALCHEMY_BINDS.{hint}"
            )
        settings = self._read_settings(app)
        for name in self._models.binds.values():
            if name not in settings.binds:
                raise ConfigError(
                    f"ScopedSession(binds=...) names the bind {name!r}, which"
                    " SQLALCHEMY_BINDS does not have. Add it there; it has"
                    f" {sorted(settings.binds)}."
                )
        application = Application(
            app,
            settings,
            models=self._models,
            registry=self._registry,
            template=self._template,
            session_options=self._session_options,
            make_engines=self._make_engines,
        )
        app.extensions[EXTENSION] = self
        app.__dict__[self._attribute] = application
        self._apps.add(app)
        application.end_scopes_with_contexts(app)
        count_also(self, self._engines_of(app))
        for note in settings.notes:
            log.warning("%s", note, extra=fields("configuration"))
        app.shell_context_processor(lambda: {"db": self})
        add_commands(app)

    def _read_settings(self, app: Flask) -> Settings:
        return self._settings_from(app, app.config)

    def _settings_from(
        self, app: Flask, config: Mapping[str, t.Any], **others: t.Any
    ) -> Settings:
        return read_settings(
            config,
            default_name=f"{app.name}:{os.path.realpath(app.root_path)}",
            engine_options=self._engine_options,
            **others,
        )

    def _make_engines(
        self,
        app: Flask,  # noqa: ARG002
        binds: Mapping[str, BindSettings],
        make: Callable[[BindSettings], Engine],
    ) -> Mapping[str, Engine]:
        return MappingProxyType({name: make(bind) for name, bind in binds.items()})

    def _application_of(self, app: Flask) -> Application:
        application: Application | None = app.__dict__.get(self._attribute)
        if application is None:
            raise AppNotInitialized(
                f"The app {app.name!r} was not initialised with this ScopedSession."
                " Call db.init_app(app) in its factory."
            )
        if application.pid != getpid() or SERVER.paused:
            application.resume()
        return application

    def _current(self, what: str) -> Application:
        context = current_context(None)
        if context is None:
            raise outside(what)
        return self._application_of(context.app)

    def _databases(self, what: str) -> Application:
        application = self._current(what)
        application.check_unchanged()
        return application

    # -- sessions --------------------------------------------------------------

    def get_session(self, bind: str | None = None) -> S:
        """Return the current scope's plain session.

        :param bind: ``None`` or ``"default"`` for ``db.session()``; another name
            for a second session of the same scope, bound to that bind alone.
        :raises UnknownBind: No such bind is configured.
        :raises OutsideContext: There is no application context.
        """
        if bind is None or bind == DEFAULT_BIND:
            return self.session()
        engine = self._databases("get_session()").engine(bind)
        return t.cast(S, self._registry.bound_to(bind, engine))

    @property
    def async_session(self) -> async_scoped_session[AsyncSession]:
        """A real :class:`sqlalchemy.ext.asyncio.async_scoped_session`.

        It proxies the :class:`~sqlalchemy.ext.asyncio.AsyncSession` of the async
        function that Flask runs, such as an ``async def`` view. The session is closed
        as the function ends.

        :raises OutsideContext: At its use: no async function of Flask's is running.
        :raises UnknownBind: At its use: ``SQLALCHEMY_ASYNC_BINDS`` is not set.
        """
        return self._async_sessions()

    def get_async_session(self, bind: str | None = None) -> AsyncSession:
        """Return the running async function's plain ``AsyncSession``.

        :param bind: ``None`` or ``"default"`` for ``db.async_session()``; another name
            for a second session, bound to that bind alone.
        :raises UnknownBind: ``SQLALCHEMY_ASYNC_BINDS`` has no such bind.
        :raises OutsideContext: No async function of Flask's is running.
        """
        return self._async_sessions().sessions.session(bind or DEFAULT_BIND)

    def _async_sessions(self) -> AsyncSessions:
        if self._async is None:
            from ._async_sessions.registry import AsyncSessions

            self._async = AsyncSessions(self._application_of)
        return self._async

    # -- transactions ----------------------------------------------------------

    def transaction(self) -> AbstractContextManager[S]:
        """Return a context manager that commits at its end, and rolls back on an error.

        Its value is ``db.session()``. The outermost block owns the whole transaction,
        with the work that was done before it. An inner block leaves the commit to it;
        if the inner one fails, the outermost cannot commit any more.

        :raises TransactionError: At the end: everything was rolled back, because an
            inner block failed or the session was removed.
        """
        return transaction(self.session, self._is_current)

    def transactional(
        self, retries: int = 0
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function or view that runs in a :meth:`transaction`.

        Coroutine functions are awaited in it.

        :param retries: How often to run it again after a serialization failure or a
            deadlock. Nothing is repeated if the function was called inside another
            block or with unsaved changes, or committed something itself. The waits in
            between are random, and grow from at most 0.1 to at most 3 seconds.
        :raises ConfigError: `retries` is not a whole number from 0, or the function
            cannot run in a transaction.
        :raises TransactionError: At the end, as :meth:`transaction` does.
        """
        return transactional(self.session, self._is_current, retries)

    def release(self) -> None:
        """Give the connections of the scope's sessions back to their pools.

        For slow work that needs no database. Loaded objects keep their values and
        stay in the session, which takes a connection again when it needs one.

        :raises UnsavedWork: A session has changes that are not committed.
        :raises TransactionError: It was called inside a block that owns the
            transaction, or after a flush that failed.
        :raises OutsideContext: There is no application context.
        """
        names = self._current("release()").ledger.model_names()
        release(self._registry.sessions(), names)

    def _is_current(self, session: Session) -> bool:
        return session in self._registry.sessions().values()

    def count_statements(self, at_most: int | None = None) -> StatementCount:
        """Return a context manager that counts the statements which its block sends.

        Its value has a length; ``statements``, each with its ``text`` (never its
        parameters), ``duration`` in seconds and ``at``, the line that sent it; and
        ``repeated``, each with its ``text``, ``times`` and ``at``. It counts the
        statements of the block's own thread and of async views, to all databases of
        all applications of this extension; not those of other threads. It needs no
        application context, and works without tracking. ::

            with db.count_statements() as sent:
                db.session.scalars(select(Flight)).all()
            assert len(sent) == 1

        :param at_most: Raise an error at the end of the block if there are more.
        :raises TooManyStatements: There are. It is also an :exc:`AssertionError`.
        :raises ConfigError: `at_most` is not a whole number from 0.
        """
        if at_most is not None:
            at_most = integer("count_statements(at_most=...)", at_most, least=0)
        engines = [each for app in self._apps for each in self._engines_of(app)]
        return StatementCount(self, engines, at_most)

    def _engines_of(self, app: Flask) -> list[tuple[Engine, str]]:
        engines = self._application_of(app).all_engines.values()
        return [(engine, app.root_path) for engine in engines]

    # -- engines ---------------------------------------------------------------

    @property
    def sessionmaker(self) -> sessionmaker[S]:
        """The current app's sessionmaker; what it makes belongs to no scope."""
        return t.cast("sessionmaker[S]", self._databases("sessionmaker").sessionmaker)

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The current app's engines by bind name; read-only.

        :raises ConfigError: Another database was configured after :meth:`init_app`.
        """
        return self._databases("engines").engines

    @property
    def engine(self) -> Engine:
        """The current app's default engine.

        :raises ConfigError: Another database was configured after :meth:`init_app`.
        """
        return self._databases("engine").engine(DEFAULT_BIND)

    def get_engine(self, bind: str | None = None) -> Engine:
        """Return one of the current app's engines.

        :param bind: ``None`` for the default bind.
        :raises ConfigError: Another database was configured after :meth:`init_app`.
        :raises UnknownBind: No such bind is configured.
        """
        return self._databases("get_engine()").engine(bind or DEFAULT_BIND)

    # -- models ----------------------------------------------------------------

    @property
    def Model(self) -> type[t.Any]:  # noqa: N802
        """The declarative base given as `model_class`."""
        return self._models.model_class

    @property
    def metadata(self) -> MetaData:
        """The metadata of `model_class`."""
        return t.cast("MetaData", self.Model.metadata)

    @property
    def metadatas(self) -> Mapping[str | None, MetaData]:
        """One metadata for each bind, with the tables that live there.

        ``None`` is the default bind. A base's own metadata if these are exactly its
        tables, else a copy of them, for tools such as Alembic.

        :raises ConfigError: The place of a table is contradictory, or a bind has two
            tables of one name.
        """
        try:
            configured = self._current("metadatas").engines
        except (OutsideContext, AppNotInitialized):
            configured = {}
        return self._models.metadatas(configured)

    def create_all(self, bind: BindNames = None, *, bind_key: BindNames = ALL) -> None:
        """Create the tables that do not exist yet.

        :param bind: The tables of one bind, or of several; ``None`` for all.
        :param bind_key: The same as Flask-SQLAlchemy has it: ``None`` for the default
            bind, ``"__all__"`` for all.
        :raises UnknownBind: No such bind is configured.
        :raises ConfigError: The place of a table is contradictory, or another database
            was configured after :meth:`init_app`.
        """
        for metadata, engine, tables in self._tables("create_all()", bind, bind_key):
            metadata.create_all(engine, tables=tables)

    def drop_all(self, bind: BindNames = None, *, bind_key: BindNames = ALL) -> None:
        """Drop the tables.

        :param bind: The tables of one bind, or of several; ``None`` for all.
        :param bind_key: The same as Flask-SQLAlchemy has it: ``None`` for the default
            bind, ``"__all__"`` for all.
        :raises UnknownBind: No such bind is configured.
        :raises ConfigError: The place of a table is contradictory, or another database
            was configured after :meth:`init_app`.
        """
        for metadata, engine, tables in self._tables("drop_all()", bind, bind_key):
            metadata.drop_all(engine, tables=tables)

    def reflect(self, bind: BindNames = None, *, bind_key: BindNames = ALL) -> None:
        """Load the definitions of tables that no model has from the databases.

        They are then in :attr:`metadatas`::

            db.reflect()
            flight = db.metadatas[None].tables["flight"]

        :param bind: Those of one bind, or of several; ``None`` for all.
        :param bind_key: The same as Flask-SQLAlchemy has it: ``None`` for the default
            bind, ``"__all__"`` for all.
        :raises UnknownBind: No such bind is configured.
        :raises ConfigError: Another database was configured after :meth:`init_app`.
        """
        application = self._databases("reflect()")
        names = self._names(application, bind, bind_key)
        for name in application.engines if names is None else names:
            self._models.reflect(name, application.engines[name])

    def _tables(
        self, what: str, bind: BindNames, bind_key: BindNames
    ) -> list[tuple[MetaData, Engine, list[Table]]]:
        application = self._databases(what)
        names = self._names(application, bind, bind_key)
        return [
            (metadata, application.engine(name, tables[0].key), tables)
            for metadata, name, tables in self._models.tables()
            if names is None or name in names
        ]

    def _names(
        self, application: Application, bind: BindNames, bind_key: BindNames
    ) -> list[str] | None:
        """Return the names of the binds that were asked for, or ``None`` for all."""
        if bind_key != ALL:
            if bind is not None:
                raise ConfigError("Give bind or bind_key, and not both.")
            bind = DEFAULT_BIND if bind_key is None else bind_key
        if bind is None or bind == ALL:
            return None
        given: t.Any = [bind] if isinstance(bind, str) else bind
        if not isinstance(given, Collection) or not all(
            name is None or isinstance(name, str) for name in given
        ):
            raise ConfigError("bind must be a bind's name, or a list of names.")
        names = [DEFAULT_BIND if name is None else name for name in given]
        for name in names:
            application.engine(name)
        return names

    # -- what views use --------------------------------------------------------
    # A statement has four overloads: of one thing and of several, as SQLAlchemy 2.0
    # writes its type, and the same as 2.1 does.

    def get_or_404(
        self,
        entity: type[T] | Mapper[T],
        ident: t.Any,
        *,
        description: str | None = None,
        **options: t.Any,
    ) -> T:
        """Return the row with this primary key, or abort with 404 Not Found.

        :param entity: The model.
        :param ident: The primary key, as :meth:`sqlalchemy.orm.Session.get` takes it.
            One that no row can have, such as a number that is too large for its
            column, is not found.
        :param description: What the error page says.
        :param options: For :meth:`sqlalchemy.orm.Session.get`.
        """
        from .views._lookups import get_or_404

        found = get_or_404(self.session(), entity, ident, description, options)
        return t.cast("T", found)

    @t.overload
    def first_or_404(
        self, statement: Statement[tuple[T]], *, description: str | None = None
    ) -> T: ...
    @t.overload
    def first_or_404(
        self, statement: Statement[TP], *, description: str | None = None
    ) -> Row[TP]: ...
    @t.overload
    def first_or_404(
        self, statement: Statement[T], *, description: str | None = None
    ) -> T: ...
    @t.overload
    def first_or_404(
        self, statement: Statement[T, T2, Unpack[Ts]], *, description: str | None = None
    ) -> Row[T, T2, Unpack[Ts]]: ...
    def first_or_404(
        self, statement: t.Any, *, description: str | None = None
    ) -> t.Any:
        """Return the first item of a statement, or abort with 404 Not Found.

        The flight that was added first::

            db.first_or_404(select(Flight).order_by(Flight.id))

        :param statement: Selects an entity or a value, which is returned, or several
            things, for a row of them. A limit is not added.
        :param description: What the error page says.
        """
        from .views._lookups import first_or_404

        return first_or_404(self.session(), statement, description)

    @t.overload
    def one_or_404(
        self, statement: Statement[tuple[T]], *, description: str | None = None
    ) -> T: ...
    @t.overload
    def one_or_404(
        self, statement: Statement[TP], *, description: str | None = None
    ) -> Row[TP]: ...
    @t.overload
    def one_or_404(
        self, statement: Statement[T], *, description: str | None = None
    ) -> T: ...
    @t.overload
    def one_or_404(
        self, statement: Statement[T, T2, Unpack[Ts]], *, description: str | None = None
    ) -> Row[T, T2, Unpack[Ts]]: ...
    def one_or_404(self, statement: t.Any, *, description: str | None = None) -> t.Any:
        """Return the only item of a statement.

        If there is none, or more than one, abort with 404 Not Found.

        :param statement: Selects an entity or a value, which is returned, or several
            things, for a row of them.
        :param description: What the error page says.
        """
        from .views._lookups import one_or_404

        return one_or_404(self.session(), statement, description)

    @t.overload
    def paginate(
        self,
        statement: Select[tuple[T]],
        *,
        page: int | None = ...,
        per_page: int | None = ...,
        max_per_page: int | None = ...,
        error_out: bool = ...,
        count: bool = ...,
    ) -> Pagination[T]: ...
    @t.overload
    def paginate(
        self,
        statement: Select[TP],
        *,
        page: int | None = ...,
        per_page: int | None = ...,
        max_per_page: int | None = ...,
        error_out: bool = ...,
        count: bool = ...,
    ) -> Pagination[Row[TP]]: ...
    @t.overload
    def paginate(
        self,
        statement: Select[T],
        *,
        page: int | None = ...,
        per_page: int | None = ...,
        max_per_page: int | None = ...,
        error_out: bool = ...,
        count: bool = ...,
    ) -> Pagination[T]: ...
    @t.overload
    def paginate(
        self,
        statement: Select[T, T2, Unpack[Ts]],
        *,
        page: int | None = ...,
        per_page: int | None = ...,
        max_per_page: int | None = ...,
        error_out: bool = ...,
        count: bool = ...,
    ) -> Pagination[Row[T, T2, Unpack[Ts]]]: ...
    def paginate(
        self,
        statement: t.Any,
        *,
        page: int | None = None,
        per_page: int | None = None,
        max_per_page: int | None = 100,
        error_out: bool = True,
        count: bool = True,
    ) -> Pagination[t.Any]:
        """Return one page of a statement's items.

        :param statement: A ``select()`` without a limit, with an unambiguous order.
            Joins do not repeat the entities of ``select(User)``.
        :param page: The number of the page, from 1. ``None`` for ``page`` in the
            request's query string, else 1.
        :param per_page: The most items of a page. ``None`` for ``per_page`` in the
            request's query string, else 20.
        :param max_per_page: The most that `per_page` may be; ``None`` for no limit.
        :param error_out: Abort with 404 Not Found if there is no such page, or if
            `page` or `per_page` is not a whole number from 1. Else the page is empty,
            and the default is used.
        :param count: Count the items of all pages, with one more statement where that
            is needed.
        :raises ConfigError: The statement is none that has pages, or an argument is
            wrong.
        """
        from .views import Pagination

        return Pagination(
            self.session(),
            statement,
            page=page,
            per_page=per_page,
            max_per_page=max_per_page,
            error_out=error_out,
            count=count,
        )

    @t.overload
    def paginate_keyset(
        self,
        statement: Select[tuple[T]],
        *,
        per_page: int | None = ...,
        max_per_page: int | None = ...,
        bookmark: str | None = ...,
    ) -> KeysetPage[T]: ...
    @t.overload
    def paginate_keyset(
        self,
        statement: Select[TP],
        *,
        per_page: int | None = ...,
        max_per_page: int | None = ...,
        bookmark: str | None = ...,
    ) -> KeysetPage[Row[TP]]: ...
    @t.overload
    def paginate_keyset(
        self,
        statement: Select[T],
        *,
        per_page: int | None = ...,
        max_per_page: int | None = ...,
        bookmark: str | None = ...,
    ) -> KeysetPage[T]: ...
    @t.overload
    def paginate_keyset(
        self,
        statement: Select[T, T2, Unpack[Ts]],
        *,
        per_page: int | None = ...,
        max_per_page: int | None = ...,
        bookmark: str | None = ...,
    ) -> KeysetPage[Row[T, T2, Unpack[Ts]]]: ...
    def paginate_keyset(
        self,
        statement: t.Any,
        *,
        per_page: int | None = None,
        max_per_page: int | None = 100,
        bookmark: str | None = None,
    ) -> KeysetPage[t.Any]:
        """Return one page of a statement's items, found by a bookmark.

        For large tables: a page costs the same wherever it is, and no row is lost or
        repeated when others are added or deleted. Bookmarks are sealed with the
        application's ``SECRET_KEY``.

        :param statement: A ``select()`` without a limit, DISTINCT and GROUP BY. The
            primary key is added to its order.
        :param per_page: The most items of a page. ``None`` for ``per_page`` in the
            request's query string, else 20. Not a whole number from 1: 404 Not Found.
        :param max_per_page: The most that `per_page` may be; ``None`` for no limit.
        :param bookmark: ``next`` or ``previous`` of another page. ``None`` for
            ``bookmark`` in the request's query string, else the first page. One that
            was not made for this order: 404 Not Found.
        :raises ConfigError: The statement cannot be paged so without losing rows; the
            message says why.
        """
        from .views._keyset import keyset_page

        return keyset_page(self.session(), statement, per_page, max_per_page, bookmark)

    # -- the live view ---------------------------------------------------------

    def snapshot(self) -> WorkerSnapshot:
        """Return what the current app holds in this process, right now."""
        return self._current("snapshot()").live.worker()

    def workers(self, timeout: float = 2.0) -> Survey:
        """Ask every live worker of the current app on this host.

        :param timeout: Seconds to wait for each worker.
        :raises ConfigError: `timeout` is not a number of seconds.
        """
        timeout = seconds("workers(timeout=...)", timeout, least=0.001)
        return self._current("workers()").live.survey(timeout)

    def serve_control(self, role: Role = "job") -> None:
        """Let this process answer the status commands, as a web worker does.

        For one that serves no requests, such as a Celery worker or a scheduler.

        :param role: What the process is: ``"job"``, ``"web"``, ``"shell"``,
            ``"command"`` or ``"test"``.
        :raises ConfigError: `role` is none of them.
        """
        from .snapshot._readings import Role

        if role not in t.get_args(Role):
            raise ConfigError(f"role must be one of {', '.join(t.get_args(Role))}.")
        live = self._current("serve_control()").live
        problem = live.problem()
        if problem is not None:
            log.info(
                "serve_control: nothing is served, since %s",
                problem,
                extra=fields("not_served"),
            )
        live.start(role)

    def ping(self, bind: str | None = None, timeout: float = 5.0) -> float:
        """Test one connection, made outside the pool as the engine makes them.

        In a health check of your own::

            seconds = db.ping(timeout=1)

        :param bind: ``None`` for the default bind.
        :param timeout: Seconds to wait for the answer.
        :returns: Seconds from connecting to the answer.
        :raises PingError: The database did not answer, or its SQLite file is missing
            (it is not created); the message says why.
        :raises UnknownBind: No such bind is configured.
        :raises ConfigError: `timeout` is not a number of seconds.
        """
        timeout = seconds("ping(timeout=...)", timeout, least=0.001)
        return self._databases("ping()").ping(bind or DEFAULT_BIND, timeout)

    def dispose(self, app: Flask | None = None) -> None:
        """Close an app's engines and control socket.

        A connection that is out is closed as it returns; the engines may be used
        again and open new ones.

        :param app: ``None`` for the current app.
        """
        application = (
            self._current("dispose()") if app is None else self._application_of(app)
        )
        application.live.stop()
        dispose_all(application.all_engines.values())

    def __repr__(self) -> str:
        names = ", ".join(sorted(app.name for app in self._apps))
        return (
            f"<{type(self).__name__} {names}>" if names else f"<{type(self).__name__}>"
        )


def _flask(app: t.Any) -> Flask:
    """Return an application that may have been given as ``current_app``."""
    if isinstance(app, Flask):  # current_app, too, where there is one
        return t.cast(Flask, getattr(app, "_get_current_object", lambda: app)())
    if type(app) is LocalProxy:
        raise OutsideContext(
            "init_app(current_app) was called outside an application context. Pass the"
            " application itself, or wrap the call in 'with app.app_context():'."
        )
    name = getattr(app, "__name__", "")
    what = f"the class {name}" if isinstance(app, type) else kind(app)
    hint = ""
    if hasattr(app, "metadata"):
        hint = f" Did you mean ScopedSession(model_class={name})?"
    elif callable(app) and name.isidentifier():
        hint = f" Did you mean {name}()?"
    raise SetupError(f"init_app() needs a Flask application, not {what}.{hint}")


def _kind(scopefunc: t.Any) -> Kind:
    if scopefunc is None:
        return OfContext()
    if scopefunc == "thread":
        return OfThread()
    if callable(scopefunc):
        return OfKey(scopefunc)
    raise ConfigError(
        "scopefunc must be None, 'thread' or a function that returns a hashable."
    )
