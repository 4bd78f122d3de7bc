"""The extension object."""

from __future__ import annotations

import inspect
import types
import typing as t
import warnings
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from flask import Flask
from flask import has_app_context
from sqlalchemy import MetaData
from sqlalchemy import orm as sa_orm
from sqlalchemy.pool import StaticPool

from .._application import EXTENSION
from .._extension import _flask
from .._extension import ScopedSession
from .._pools.engine import in_instance_folder
from .._sessions.models import Models
from .._sessions.routing import routed
from .._settings.config import DEFAULT_BIND
from .._settings.keys import BINDS
from .._settings.keys import ENGINE_OPTIONS
from .._settings.keys import URI
from .._settings.urls import in_memory
from .._settings.urls import is_sqlite
from .._settings.values import echo
from .._settings.values import is_on
from ..errors import ConfigError
from ..errors import SetupError
from . import record_queries
from . import track_modifications
from .cli import add_models_to_shell
from .model import _QueryProperty
from .model import BindMixin
from .model import DefaultMeta
from .model import DefaultMetaNoName
from .model import Model
from .model import NameMixin
from .pagination import Pagination
from .pagination import SelectPagination
from .query import Query
from .session import _app_ctx_id
from .session import _current_app
from .session import Session
from .session import UnknownBindKey
from .table import _Table

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import scoped_session

    from .._settings.config import BindSettings
    from .._settings.config import Settings

#: Within :class:`SQLAlchemy`, ``Model`` is the base of its models.
_FSAModel = Model
_BindKeys = t.Union[str, None, "list[str | None]"]

_BEGIN = "SCOPEDSESSION_SQLITE_BEGIN"
_ECHO = "SQLALCHEMY_ECHO"
_RECORD = "SQLALCHEMY_RECORD_QUERIES"
_TRACK = "SQLALCHEMY_TRACK_MODIFICATIONS"

#: Flask-SQLAlchemy's keys and their defaults, which applications may read.
_DEFAULTS: Mapping[str, Callable[[], object]] = {
    URI: lambda: None,
    BINDS: dict,
    ENGINE_OPTIONS: dict,
    **dict.fromkeys((_ECHO, _RECORD, _TRACK), bool),
}


class SQLAlchemy(ScopedSession[Session]):
    """Flask-SQLAlchemy's extension object, on :class:`.ScopedSession`.

    :param app: Calls :meth:`init_app` at once.
    :param metadata: For :attr:`Model`, unless `model_class` is a declarative base.
    :param session_options: For the sessions; ``class_``, ``query_cls`` and
        ``scopefunc`` as well.
    :param query_class: The class of ``Model.query``, of ``db.session.query()`` and of
        dynamic relationships.
    :param model_class: What :attr:`Model` inherits from: a declarative base, or a
        subclass of :class:`.Model` to make one of. A declarative base with
        :class:`.BindMixin` is :attr:`Model` itself.
    :param engine_options: Defaults for every bind; ``app.config`` wins.
    :param add_models_to_shell: Offer ``db`` and all models in ``flask shell``.
    :param disable_autonaming: Derive no names of tables from those of classes.
    :raises ConfigError: An argument is of the wrong kind.
    """

    session: scoped_session[Session]  # type: ignore[assignment]

    def __init__(
        self,
        app: Flask | None = None,
        *,
        metadata: MetaData | None = None,
        session_options: Mapping[str, t.Any] | None = None,
        query_class: type[Query[t.Any]] = Query,
        model_class: type[t.Any] = Model,
        engine_options: Mapping[str, t.Any] | None = None,
        add_models_to_shell: bool = True,
        disable_autonaming: bool = False,
    ) -> None:
        self.Query = query_class
        self._add_models_to_shell = add_models_to_shell
        self._app_engines: WeakKeyDictionary[Flask, dict[str | None, Engine]]
        self._app_engines = WeakKeyDictionary()
        self._makers: dict[Flask, Callable[[str | None, dict[str, t.Any]], Engine]] = {}
        self._metadatas: dict[str | None, MetaData] = {}
        self.Table: type[_Table] = types.new_class(
            "Table", (_Table,), exec_body=lambda body: body.update(__fsa__=self)
        )
        if metadata is not None:
            self._metadatas[None] = metadata
        model = self._make_declarative_base(model_class, disable_autonaming)
        given: dict[str, t.Any] = {
            "class_": Session,
            "query_cls": query_class,
            **(session_options or {}),
        }
        options = dict(given)
        # The core has other places for these.
        scopefunc = options.pop("scopefunc", None)
        bound: dict[str, t.Any] = {
            key: options.pop(key) for key in ("bind", "binds") if key in options
        }
        super().__init__(
            session_options=options, engine_options=engine_options, scopefunc=scopefunc
        )
        self._models = Models(model, {}, self._metadatas.values)
        class_: type[t.Any] = given["class_"]
        if issubclass(class_, Session):
            # None: its engine is looked up, as it may be replaced.
            bound = {"db": self, "bind": None, **bound}
        elif "db" in inspect.signature(class_).parameters:
            bound["db"] = self
        self._session_options.update(bound)
        self._core_session = self.session
        if type(self)._make_scoped_session is not SQLAlchemy._make_scoped_session:
            made = self._make_scoped_session(given)
            self.session = made  # pyright: ignore[reportIncompatibleVariableOverride]
        if app is not None:
            self.init_app(app)

    # -- set-up ----------------------------------------------------------------

    def init_app(self, app: Flask) -> None:
        """Read an application's configuration and build its engines.

        :param app: The application.
        :raises ConfigError: A key is wrong; the message says which.
        :raises SetupError: The application has an extension of this kind, or no
            database is configured.
        """
        app = _flask(app)
        if "sqlalchemy" in app.extensions:
            raise SetupError(
                f"The app {app.name!r} has a SQLAlchemy extension already:"
                f" {app.extensions['sqlalchemy']!r}. Import and use that one."
            )
        replaced = app.extensions.get(EXTENSION)
        if isinstance(replaced, SQLAlchemy):
            replaced._retire(app)
        for key, default in _DEFAULTS.items():
            app.config.setdefault(key, default())
        super().init_app(app)
        app.extensions["sqlalchemy"] = self
        for bind_key, engine in self._app_engines[app].items():
            self._make_metadata(bind_key)
            if is_on(app.config, _RECORD):
                record_queries.listen(engine)
        if is_on(app.config, _TRACK):
            track_modifications.listen(self.session)
        if self._add_models_to_shell:
            app.shell_context_processor(add_models_to_shell)

        @app.teardown_appcontext
        def remove_session(_: BaseException | None) -> None:
            if self.session is not self._core_session:
                self.session.remove()

    def _retire(self, app: Flask) -> None:
        """Let another one take over an application that this one was taken out of."""
        if has_app_context() and _current_app() is app:
            self.session.remove()
        self.dispose(app)
        del app.extensions[EXTENSION]

    def _read_settings(self, app: Flask) -> Settings:
        config = dict(app.config)
        binds = config[BINDS]
        if isinstance(binds, Mapping) and None in binds:
            # The general keys are for the default bind, too, and count more.
            config[BINDS] = binds = dict(binds)
            main = binds.pop(None)
            is_url = not isinstance(main, Mapping) or "drivername" in main
            main = {"url": main} if is_url else dict(main)
            url = main.pop("url", None)
            config[URI] = config[URI] or url
            config[ENGINE_OPTIONS] = {**main, **(config[ENGINE_OPTIONS] or {})}
        if not config[URI] and not binds:
            raise SetupError(f"Either {URI!r} or {BINDS!r} must be set.")
        others = (_RECORD, _TRACK)
        return self._settings_from(app, config, inherit=False, others=others)

    def _make_engines(
        self,
        app: Flask,
        binds: Mapping[str, BindSettings],
        make: Callable[[BindSettings], Engine],
    ) -> Mapping[str, Engine]:
        def make_one(key: str | None, options: dict[str, t.Any]) -> Engine:
            url = options.pop("url")
            return make(binds[_name(key)]._replace(url=url, options=options))

        echo_pool = echo(_ECHO, app.config[_ECHO] or False)
        engines = self._app_engines[app] = {}
        self._makers[app] = make_one
        try:
            for name, bind in binds.items():
                key = None if name == DEFAULT_BIND else name
                options = {**bind.options, "url": bind.url}
                if echo_pool and "pool" not in options:
                    options.setdefault("echo_pool", echo_pool)
                self._apply_driver_defaults(options, app)
                engines[key] = self._make_engine(key, options, app)
        finally:
            del self._makers[app]
        reference = weakref.ref(app)

        def current() -> dict[str | None, Engine]:
            app = reference()
            return engines if app is None else self._app_engines.get(app, engines)

        return _ByName(current)

    def _apply_driver_defaults(self, options: dict[str, t.Any], app: Flask) -> None:
        """Complete the options of one engine, ``url`` among them, for its driver.

        :raises ConfigError: The folder of a SQLite file cannot be made.
        """
        url = options["url"] = sa.make_url(options["url"])
        if is_sqlite(url):
            if not in_memory(url):
                options["url"] = in_instance_folder(URI, url, app.instance_path)
            elif "pool" not in options and not app.config.get(_BEGIN):
                # Sessions that really begin cannot share a connection.
                options.setdefault("poolclass", StaticPool)
                args = options.get("connect_args", {})
                options["connect_args"] = {"check_same_thread": False, **args}
        elif url.get_backend_name() in ("mysql", "mariadb"):
            if "pool" not in options:
                options.setdefault("pool_recycle", 7200)
            if "charset" not in url.query:
                options["url"] = url.update_query_dict({"charset": "utf8mb4"})

    def _make_engine(
        self, bind_key: str | None, options: dict[str, t.Any], app: Flask
    ) -> Engine:
        """Make the engine of one bind. A subclass may make another.

        :param options: For ``create_engine()``, and the ``url``.
        """
        made = self._makers.get(app)
        if made is not None:
            return made(bind_key, dict(options))
        return sa.engine_from_config(dict(options), prefix="")

    # -- sessions and engines --------------------------------------------------

    def _make_scoped_session(
        self, options: Mapping[str, t.Any]
    ) -> scoped_session[Session]:
        """Return a ``scoped_session`` to use as ``db.session``, such as in tests.

        It is SQLAlchemy's own, with one session for each application context.

        :param options: For the sessions; ``scopefunc``, too.
        """
        options = {"class_": Session, "query_cls": self.Query, **options}
        scope = options.pop("scopefunc", _app_ctx_id)
        engines = _ByName(lambda: self.engines)
        options["class_"] = routed(options["class_"], self._models, engines)
        return sa_orm.scoped_session(sa_orm.sessionmaker(db=self, **options), scope)

    #: As in Flask-SQLAlchemy, SQLAlchemy's class, and not what makes our sessions.
    sessionmaker: t.Any = sa_orm.sessionmaker

    @property
    def engines(self) -> dict[str | None, Engine]:  # type: ignore[override]
        """The current app's engines by bind key; ``None`` is the default bind's.

        An engine that is replaced here is replaced for sessions and commands as well.
        """
        self._databases("engines")
        return self._app_engines[_current_app()]

    @property
    def engine(self) -> Engine:
        """The current app's default engine."""
        return self._engine_of(None)

    def get_engine(  # type: ignore[override]
        self, bind_key: str | None = None, **kwargs: t.Any
    ) -> Engine:
        """Return an engine; deprecated in favour of :attr:`engines`.

        :param bind_key: ``None`` for the default bind.
        :param kwargs: ``bind``, as it was called once.
        :raises UnknownBindKey: No such bind is configured.
        """
        warnings.warn(
            "'db.get_engine()' is deprecated. Use 'db.engine' or 'db.engines[key]'.",
            DeprecationWarning,
            stacklevel=2,
        )
        # Before version 3, the application came first.
        key = bind_key if isinstance(bind_key, str) else None
        return self._engine_of(kwargs.get("bind", key))

    def _engine_of(self, key: str | None) -> Engine:
        engines = self.engines
        if key not in engines:
            there = ", ".join(repr(each) for each in engines)
            raise UnknownBindKey(
                (
                    f"There is no bind {key!r}. Add it to {BINDS}."
                    if key is not None
                    else f"There is no default bind. Set {URI}."
                )
                + f" Configured binds: {there}."
            )
        return engines[key]

    # -- models ----------------------------------------------------------------

    if t.TYPE_CHECKING:
        #: Base of the models. Checkers take it for :class:`.Model`.
        Model: type[_FSAModel]  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def metadatas(self) -> dict[str | None, MetaData]:
        """One metadata for each bind; ``None`` is the default bind's."""
        return self._metadatas

    @property
    def metadata(self) -> MetaData:
        """The metadata of the default bind."""
        return self._metadatas[None]

    def _make_metadata(self, bind_key: str | None) -> MetaData:
        """Return the metadata of a bind, new if there is none."""
        if bind_key not in self._metadatas:
            self._metadatas[bind_key] = MetaData(
                naming_convention=self.metadata.naming_convention,
                info={"bind_key": bind_key},
            )
        return self._metadatas[bind_key]

    def _make_declarative_base(
        self, model_class: type[t.Any], disable_autonaming: bool = False
    ) -> type[t.Any]:
        """Return the base of the models, and note its metadata.

        :raises ConfigError: `model_class` has two declarative bases.
        """
        bases = (sa_orm.DeclarativeBase, sa_orm.DeclarativeBaseNoMeta)
        declarative = [base for base in bases if issubclass(model_class, base)]
        model: t.Any = model_class
        metadata = self._metadatas.get(None)
        if len(declarative) > 1:
            raise ConfigError(
                "model_class must be a subclass of DeclarativeBase or of"
                " DeclarativeBaseNoMeta, and not of both."
            )
        if declarative:
            if metadata is not None:
                warnings.warn(
                    "SQLAlchemy(metadata=...) does nothing with a declarative base. Set"
                    " 'metadata' in that class instead.",
                    DeprecationWarning,
                    stacklevel=3,
                )
            if not issubclass(model_class, BindMixin):
                names = () if disable_autonaming else (NameMixin,)
                model = types.new_class(
                    "Model",
                    (BindMixin, *names, model_class, Model),
                    exec_body=lambda body: body.update(
                        __abstract__=True, __module__=model_class.__module__
                    ),
                )
        elif not isinstance(model_class, sa_orm.DeclarativeMeta):
            model = sa_orm.declarative_base(
                cls=model_class,
                name="Model",
                metadata=metadata,
                metaclass=DefaultMetaNoName if disable_autonaming else DefaultMeta,
            )
        elif metadata is not None:
            model.metadata = metadata
        self._metadatas[None] = model.metadata
        model.metadata.info["bind_key"] = None
        model.__fsa__ = self
        if inspect.getattr_static(model, "query_class", None) is None:
            model.query_class = self.Query
        if inspect.getattr_static(model, "query", None) is None:
            model.query = _QueryProperty()
        return t.cast("type[t.Any]", model)

    def create_all(self, bind_key: _BindKeys = "__all__") -> None:  # type: ignore[override]
        """Create the tables that do not exist yet.

        :param bind_key: Those of one bind, or of a list of binds; ``None`` is the
            default one, and ``"__all__"`` all of them.
        :raises UnknownBindKey: No such bind is configured.
        """
        self._call_for_binds(bind_key, "create_all")

    def drop_all(self, bind_key: _BindKeys = "__all__") -> None:  # type: ignore[override]
        """Drop the tables.

        :param bind_key: Those of one bind, or of a list of binds; ``None`` is the
            default one, and ``"__all__"`` all of them.
        :raises UnknownBindKey: No such bind is configured.
        """
        self._call_for_binds(bind_key, "drop_all")

    def reflect(self, bind_key: _BindKeys = "__all__") -> None:  # type: ignore[override]
        """Load the definitions of tables that no model has.

        They are then in :attr:`metadatas`::

            db.reflect()
            table = db.metadata.tables["flight"]

        :param bind_key: Those of one bind, or of a list of binds; ``None`` is the
            default one, and ``"__all__"`` all of them.
        :raises UnknownBindKey: No such bind is configured.
        """
        self._call_for_binds(bind_key, "reflect")

    def _call_for_binds(self, bind_key: _BindKeys, op_name: str) -> None:
        # The key of a model may not be that of its metadata: declarative_base() and
        # SQLModel do not know it.
        placed: dict[str, dict[MetaData, list[sa.Table]]] = {}
        for metadata, name, tables in self._models.tables():
            placed.setdefault(name, {})[metadata] = tables
        keys: t.Any = bind_key
        if bind_key == "__all__":
            others = placed.keys() - map(_name, self._metadatas)
            keys = [*self._metadatas, *sorted(others)]
        elif bind_key is None or isinstance(bind_key, str):
            keys = [bind_key]
        for key in keys:
            engine, own = self._engine_of(key), self._make_metadata(key)
            if op_name == "reflect":
                own.reflect(bind=engine)
                continue
            for metadata, tables in {own: [], **placed.get(_name(key), {})}.items():
                getattr(metadata, op_name)(bind=engine, tables=tables)

    # -- what views use --------------------------------------------------------

    def paginate(  # type: ignore[override]
        self,
        select: sa.Select[t.Any],
        *,
        page: int | None = None,
        per_page: int | None = None,
        max_per_page: int | None = None,
        error_out: bool = True,
        count: bool = True,
    ) -> Pagination:
        """Return one page of a statement's items.

        :param select: A ``select()`` without a limit, with an unambiguous order.
        :param page: The number of the page, from 1. ``None`` for ``page`` in the
            request's query string, else 1.
        :param per_page: The most items of a page. ``None`` for ``per_page`` in the
            request's query string, else 20.
        :param max_per_page: The most that `per_page` may be; ``None`` for no limit.
        :param error_out: Abort with 404 if there is no such page. Otherwise use the
            defaults, and return an empty page.
        :param count: Count the items of all pages.
        """
        return SelectPagination(
            select=select,
            session=self.session,
            page=page,
            per_page=per_page,
            max_per_page=max_per_page,
            error_out=error_out,
            count=count,
        )

    # -- SQLAlchemy's names ----------------------------------------------------

    def relationship(
        self, *args: t.Any, **kwargs: t.Any
    ) -> sa_orm.RelationshipProperty[t.Any]:
        """Return ``relationship()`` with :attr:`Query` for its dynamic queries.

        In a model::

            orders = db.relationship("Order", lazy="dynamic")

        :param args: For :func:`sqlalchemy.orm.relationship`.
        :param kwargs: For :func:`sqlalchemy.orm.relationship`.
        """
        self._set_rel_query(kwargs)
        return sa_orm.relationship(*args, **kwargs)

    def dynamic_loader(
        self, argument: t.Any, **kwargs: t.Any
    ) -> sa_orm.RelationshipProperty[t.Any]:
        """Return ``dynamic_loader()`` with :attr:`Query` for its queries.

        In a model::

            orders = db.dynamic_loader("Order")

        :param argument: The model, or its name.
        :param kwargs: For :func:`sqlalchemy.orm.dynamic_loader`.
        """
        self._set_rel_query(kwargs)
        return sa_orm.dynamic_loader(argument, **kwargs)

    def _set_rel_query(self, kwargs: dict[str, t.Any]) -> None:
        kwargs.setdefault("query_class", self.Query)
        backref = kwargs.get("backref")
        if isinstance(backref, str):
            backref = (backref, {})
        if backref is not None:
            name, options = backref
            options = {"query_class": self.Query, **options}
            kwargs["backref"] = (name, options)

    def __getattr__(self, name: str) -> t.Any:
        if not (name.startswith("_") or hasattr(type(self), name)):
            for module in (sa, sa_orm):
                if hasattr(module, name):
                    return getattr(module, name)
        # Raises the error that Python raised before: its own, or that of a property.
        return object.__getattribute__(self, name)


class _ByName(Mapping[str, "Engine"]):
    """The engines of an app as the core has them: the default bind has a name, too.

    They are looked up each time, since applications replace them.
    """

    def __init__(self, engines: Callable[[], dict[str | None, Engine]]) -> None:
        self._engines = engines

    def __getitem__(self, name: str) -> Engine:
        return self._engines()[None if name == DEFAULT_BIND else name]

    def __iter__(self) -> Iterator[str]:
        return map(_name, list(self._engines()))

    def __len__(self) -> int:
        return len(self._engines())


def _name(key: str | None) -> str:
    return DEFAULT_BIND if key is None else key
