"""Settings to engines. They stay plain SQLAlchemy engines."""

from __future__ import annotations

import os
import re
import threading
import time
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import URL
from sqlalchemy.pool import Pool
from sqlalchemy.pool import StaticPool

from ._config import BindSettings
from ._ledger import bind_engine
from ._ledger import PoolAccount
from ._pool import attach
from ._pool import tracked
from ._pool import TrackedPool
from .errors import ConfigError
from .errors import PingError

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection


def make_engine(
    bind: BindSettings,
    *,
    instance_path: str,
    account: PoolAccount | None,
    after_fork: Callable[[], object],
) -> Engine:
    """Create the engine of one bind; nothing is connected yet.

    :param instance_path: Where relative SQLite paths are; created when missing.
    :param account: What its pool reports to, or ``None`` without tracking.
    :param after_fork: Makes the application's state a fork's own.
    :raises ConfigError: The driver is missing, or an option is not accepted.
    """
    options = dict(bind.options)
    url = bind.url
    if url.get_backend_name() == "sqlite":
        url = _sqlite(bind, url, options, instance_path)
    engine = _create(bind, url, options, track=account is not None)
    if bind.pragmas or bind.begin:
        _listen_sqlite(bind, engine)
    if account is not None:
        reference = weakref.ref(engine)

        def own_pool() -> Pool:
            after_fork()
            return t.cast("Engine", reference()).pool

        attach(engine.pool, account, own_pool)
        bind_engine(account, engine)
    return engine


def _create(
    bind: BindSettings, url: URL, options: dict[str, t.Any], *, track: bool
) -> Engine:
    try:
        if track and options.get("pool") is None:
            chosen = options.get("poolclass")
            base = chosen or url.get_dialect().get_pool_class(url)
            options["poolclass"] = tracked(base)
        return sa.create_engine(url, **options)
    except ImportError as error:
        missing = error.name or "its driver"
        raise ConfigError(
            f"{bind.key} needs the driver of {url.drivername!r}, but {missing!r} is not"
            " installed. Install it, or name another driver in the URL."
        ) from None
    except (TypeError, ValueError, sa_exc.ArgumentError) as error:
        raise ConfigError(_option_problem(bind, options, error)) from None


def _option_problem(
    bind: BindSettings, options: Mapping[str, t.Any], error: Exception
) -> str:
    """Say which engine option was refused; never show a value."""
    text = str(error)
    unknown = [
        name
        for name in re.findall(r"'(\w+)'", text.partition(" sent to ")[0])
        if name in options
    ]
    if isinstance(error, TypeError) and unknown:
        pool = options.get("poolclass")
        using = f", which uses {pool.__name__}" if isinstance(pool, type) else ""
        return (
            f"{bind.key}: create_engine() does not accept {', '.join(unknown)} for"
            f" {bind.url.drivername!r}{using}. Check SQLALCHEMY_ENGINE_OPTIONS and the"
            " bind's own options."
        )
    return (
        f"{bind.key}: create_engine() refused an option of {sorted(options)}"
        f" ({type(error).__name__}). Check SQLALCHEMY_ENGINE_OPTIONS and the bind's"
        " own options."
    )


# -- SQLite --------------------------------------------------------------------


def _sqlite(
    bind: BindSettings, url: URL, options: dict[str, t.Any], instance_path: str
) -> URL:
    if bind.in_memory:
        if options.get("pool") is None and options.get("poolclass") is None:
            # SQLAlchemy's default gives every thread an empty database of its own.
            options["poolclass"] = StaticPool
        connect_args = dict(options.get("connect_args") or {})
        connect_args.setdefault("check_same_thread", False)
        options["connect_args"] = connect_args
        return url
    database = t.cast(str, url.database)
    if database.startswith("file:"):
        return url  # SQLite's own URI: the user's words, to the letter
    if not os.path.isabs(database):
        database = os.path.join(instance_path, database)
    try:
        os.makedirs(os.path.dirname(database), exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{bind.key}: the folder of the SQLite file cannot be created"
            f" ({error.strerror}). Create it, or use an absolute path."
        ) from None
    return url.set(database=database)


def _listen_sqlite(bind: BindSettings, engine: Engine) -> None:
    def connected(connection: DBAPIConnection, _: object) -> None:
        if bind.begin:
            # Else the driver begins by itself, and only before it writes.
            t.cast(t.Any, connection).isolation_level = None
        cursor = connection.cursor()
        try:
            for name, value in bind.pragmas.items():
                cursor.execute(f"PRAGMA {name} = {value}")
        finally:
            cursor.close()

    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(f"BEGIN {bind.begin}")

    event.listen(engine, "connect", connected)
    if bind.begin and bind.options.get("isolation_level") != "AUTOCOMMIT":
        event.listen(engine, "begin", begin)


# -- outside the pool ----------------------------------------------------------


def ping(name: str, engine: Engine, account: PoolAccount | None, wait: float) -> float:
    """Make one connection outside the pool, test it, and close it.

    It is made as the engine makes them: same driver arguments, same events.

    :param wait: Seconds to wait for the answer.
    :return: Seconds from connecting to the answer.
    :raises PingError: No answer; the message says why, without the URL.
    """
    outcome: list[float | BaseException] = []

    def visit() -> None:
        try:
            outcome.append(_visit(engine, account))
        except BaseException as error:
            outcome.append(error)

    # Drivers differ in whether and how a connection attempt can be timed out.
    thread = threading.Thread(target=visit, name="scopedsession-ping", daemon=True)
    thread.start()
    thread.join(wait)
    if not outcome:
        raise PingError(f"bind {name!r}: no answer within {wait:g} s")
    result = outcome[0]
    if isinstance(result, BaseException):
        raise PingError(f"bind {name!r}: {_reason(result)}") from None
    return result


def _visit(engine: Engine, account: PoolAccount | None) -> float:
    pool = engine.pool
    spare = pool.spare() if isinstance(pool, TrackedPool) else pool.recreate()
    ident = threading.get_ident()
    if account is not None:
        account.pinging.add(ident)
    try:
        began = time.perf_counter()
        proxied = spare.connect()
        try:
            engine.dialect.do_ping(t.cast(t.Any, proxied.dbapi_connection))
            return time.perf_counter() - began
        finally:
            proxied.close()
            spare.dispose()
    finally:
        if account is not None:
            account.pinging.discard(ident)


def _reason(error: BaseException) -> str:
    """Say what went wrong by class and SQLSTATE; a driver's text may hold the URL."""
    origin = getattr(error, "orig", None) or error
    state = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    return type(origin).__name__ + (f" (SQLSTATE {state})" if state else "")


def server_version(engine: Engine) -> str | None:
    """Return the server's version as its dialect learnt it on the first connect."""
    found = getattr(engine.dialect, "server_version_info", None)
    return ".".join(str(part) for part in found) if found else None
