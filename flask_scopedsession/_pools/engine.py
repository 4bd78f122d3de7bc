"""Settings to engines. They stay plain SQLAlchemy engines."""

from __future__ import annotations

import os
import re
import typing as t
import weakref
from collections.abc import Iterable
from collections.abc import Mapping
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import URL
from sqlalchemy.pool import Pool
from sqlalchemy.pool import QueuePool

from .._runtime import fork
from .._settings.config import BindSettings
from .._settings.urls import in_memory
from .._settings.urls import is_sqlite
from .._settings.urls import is_sqlite_uri
from .._settings.values import attempt
from ..errors import ConfigError
from .account import PoolAccount
from .memory import blocking
from .memory import can_share
from .memory import share_memory
from .naming import name_connections
from .statements import watch_engine
from .statements import watch_writes
from .tracked_pool import attach
from .tracked_pool import pool_class

#: ``sqlite3.LEGACY_TRANSACTION_CONTROL``, where Python has it.
_LEGACY_TRANSACTIONS = -1

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection


def make_engine(
    bind: BindSettings,
    *,
    app_name: str,
    instance_path: str,
    account: PoolAccount,
    tracking: bool,
    async_pool: type[Pool] | None = None,
) -> Engine:
    """Create the engine of one bind; nothing is connected yet.

    :param app_name: The first part of what its connections are called at the server.
    :param instance_path: Where relative SQLite paths are; created when missing.
    :param account: What its pool and statements report to.
    :param tracking: Report everything; else no more than lost work needs.
    :param async_pool: The pool class, if this is the sync part of an async engine.
    :raises ConfigError: The driver is missing, or an option is not accepted.
    """
    options = dict(bind.options)
    url = bind.url
    if async_pool is not None:
        options["poolclass"] = async_pool
    in_shared_memory = False
    if is_sqlite(url) and "creator" not in options:
        if not in_memory(url):
            url = in_instance_folder(bind.key, url, instance_path)
        else:
            in_shared_memory = _in_memory(url, options)
    if options.get("pool") is None:
        base = options.get("poolclass") or _default_pool_class(url)
        options["poolclass"] = pool_class(base, fair=bind.fair_pool, tracked=tracking)
    engine = _create(bind, url, options, is_async=async_pool is not None)
    if in_shared_memory:
        share_memory(engine, account.ledger)
    if bind.pragmas or bind.begin:
        _listen_sqlite(bind, engine)
    name_connections(engine, app_name)
    if not tracking:
        watch_writes(engine, account)
        return engine
    reference = weakref.ref(engine)

    def own_pool() -> Pool:
        fork.after_fork_in_child()
        return t.cast("Engine", reference()).pool

    attach(engine.pool, engine.dialect, account, own_pool)
    watch_engine(engine, account)
    return engine


def _default_pool_class(url: URL) -> t.Any:
    """Return what SQLAlchemy would choose."""
    dialect: t.Any = attempt(url.get_dialect, ImportError)
    if isinstance(dialect, ImportError):
        return sa.QueuePool  # the engine cannot be created, and says why
    return dialect.get_pool_class(url)


def _create(
    bind: BindSettings, url: URL, options: Mapping[str, t.Any], *, is_async: bool
) -> Engine:
    def create() -> Engine:
        if is_async:
            from sqlalchemy.ext.asyncio import create_async_engine

            return create_async_engine(url, **options).sync_engine
        return sa.create_engine(url, **options)

    made = attempt(create, Exception)
    if isinstance(made, ImportError):
        missing = f" ({made.name!r} is not installed)" if made.name else ""
        raise ConfigError(
            f"{bind.key} needs the driver of {url.drivername!r}, which cannot be"
            f" imported{missing}. Install it, or name another driver in the URL."
        )
    if isinstance(made, Exception):
        raise ConfigError(_option_problem(bind, made))
    return made


def _option_problem(bind: BindSettings, error: Exception) -> str:
    """Say which engine option was refused; never show a value."""
    listed, found, using = str(error).partition(" sent to create_engine(), using ")
    unknown = [name for name in re.findall(r"'(\w+)'", listed) if name in bind.options]
    where = (
        f"Check SQLALCHEMY_ENGINE_OPTIONS, the options in {bind.key}, and"
        " ScopedSession(engine_options=...)."
    )
    if not (found and unknown):
        # There is always an echo, which was checked.
        given = sorted(bind.options.keys() - {"echo"})
        refused = f"{'one of ' if given[1:] else ''}{', '.join(given) or 'the URL'}"
        expected = (TypeError, ValueError, sa_exc.ArgumentError)
        why = "" if isinstance(error, expected) else f" ({type(error).__name__})"
        return f"{bind.key}: create_engine() refused {refused}{why}. {where}"
    pool = re.search(r"/(\w+)/", using)
    return (
        f"{bind.key}: create_engine() does not accept {', '.join(unknown)} for"
        f" {bind.url.drivername!r}{f' with {pool[1]}' if pool else ''}. {where}"
    )


# -- SQLite --------------------------------------------------------------------


def _in_memory(url: URL, options: dict[str, t.Any]) -> bool:
    """Choose the pool of a database in memory; return whether connections share it.

    SQLAlchemy's default gives every thread an empty database of its own.
    """
    dialect: t.Any = url.get_dialect()
    dbapi = options.get("module") or attempt(lambda: blocking(dialect), ImportError)
    options["connect_args"] = {
        "check_same_thread": False,
        **options.get("connect_args", {}),
    }
    if options.get("pool") is not None:
        return False
    # Without its driver, the engine cannot be created, and says why.
    shared = not isinstance(dbapi, ImportError) and can_share(dbapi)
    if options.get("poolclass") is None:
        options["poolclass"] = QueuePool
        if not shared:
            # One connection, lent to one session at a time. It is the database.
            options.update(pool_size=1, max_overflow=0, pool_recycle=-1)
    return shared


def in_instance_folder(key: str, url: URL, instance_path: str) -> URL:
    """Return the URL of a SQLite file with an absolute path, and make its folder.

    :param key: What is named in an error.
    :raises ConfigError: The folder cannot be made.
    """
    path = t.cast(str, url.database)
    uri = is_sqlite_uri(url) and path.startswith("file:")
    if uri:
        path = path.removeprefix("file:")
    if os.path.isabs(path):
        return url
    folder = os.path.dirname(os.path.join(instance_path, path))
    error = attempt(lambda: os.makedirs(folder, exist_ok=True), OSError)
    if isinstance(error, OSError):
        raise ConfigError(
            f"{key}: the folder of the SQLite file, {folder}, cannot be created"
            f" ({error.strerror}). Create it, or use an absolute path."
        )
    if uri:
        return url.set(database="file:" + os.path.join(quote(instance_path), path))
    return url.set(database=os.path.join(instance_path, path))


def _listen_sqlite(bind: BindSettings, engine: Engine) -> None:
    def connected(connection: t.Any, _: object) -> None:
        # From Python 3.12 on; False is a transaction that is always open, in which
        # some pragmas do nothing, and which cannot begin in another way.
        always_open = getattr(connection, "autocommit", None) is False
        if always_open:
            connection.autocommit = True
        _execute_pragmas(connection, bind.pragmas)
        if always_open:
            connection.autocommit = _LEGACY_TRANSACTIONS if bind.begin else False

    def begin(connection: sa.Connection) -> None:
        level = connection.get_execution_options().get(
            "isolation_level", bind.options.get("isolation_level")
        )
        if level != "AUTOCOMMIT":
            connection.exec_driver_sql(f"BEGIN {bind.begin}")

    event.listen(engine, "connect", connected)
    if bind.begin:
        event.listen(engine, "begin", begin)


def _execute_pragmas(connection: DBAPIConnection, pragmas: Mapping[str, str]) -> None:
    cursor = connection.cursor()
    try:
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name} = {value}")
    finally:
        cursor.close()


def dispose_all(engines: Iterable[Engine]) -> None:
    """Close idle connections; those in use are closed as they are returned."""
    for engine in engines:
        engine.dispose()
