"""One connection outside the pool: to test a database, or to ask its server."""

from __future__ import annotations

import os
import threading
import time
import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from urllib.parse import unquote
from urllib.parse import urlsplit

from .._pools.tracked_pool import TrackedPool
from .._settings.urls import in_memory
from .._settings.urls import is_sqlite
from .._settings.urls import is_sqlite_uri
from .._settings.urls import safe_url
from ..errors import PingError

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy import URL
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from .._pools.account import PoolAccount
    from .._settings.binds import BindSettings
    from ..snapshot import DatabaseURL

    Work = Callable[[DBAPIConnection, float], "T"]

T = t.TypeVar("T")

#: What drivers say when they cannot connect. Only these words of a driver's message are
#: repeated, because the rest may contain the URL.
_KNOWN_WORDS = (
    *("connection refused", "connection reset", "connection timed out"),
    *("timeout expired", "no such file or directory", "permission denied"),
    *("name or service not known", "temporary failure in name resolution"),
    *("could not translate host name", "unknown host", "network is unreachable"),
    *("authentication failed", "access denied", "no password supplied"),
    *("does not exist", "unknown database", "unable to open database file"),
    *("too many clients", "too many connections", "remaining connection slots"),
    *("starting up", "shutting down", "in recovery mode"),
)


class PingResult(t.NamedTuple):
    """How one database answered."""

    bind: str
    url: DatabaseURL
    latency_s: float | None
    """Seconds from connecting to the answer; ``None`` without one."""
    version: str | None
    """The server's version, if its dialect knows it."""
    error: str | None
    """Why there is no answer."""


def ping(
    bind: BindSettings, engine: Engine, account: PoolAccount | None, wait: float
) -> float:
    """Make one connection outside the pool, test it, and close it.

    The engine's driver arguments and events apply. A SQLite file is not created.

    :param wait: Seconds to wait for the answer.
    :return: Seconds from connecting to the answer.
    :raises PingError: No answer; the message says why, without the URL.
    """
    if _would_create_file(engine.url, bind.options):
        path = safe_url(engine.url).database
        raise PingError(
            f"bind {bind.name!r}: there is no SQLite file {path}. Check the path, or"
            " create it with db.create_all() or a migration."
        )

    def work(connection: DBAPIConnection, began: float) -> float:
        engine.dialect.do_ping(connection)
        return time.perf_counter() - began

    try:
        return visit(engine, account, work, wait)()
    except PingError as error:
        reason = str(error)
    raise PingError(f"bind {bind.name!r}: {reason}")


def _would_create_file(url: URL, options: Mapping[str, t.Any]) -> bool:
    """Whether connecting would create an empty SQLite database."""
    if not is_sqlite(url) or in_memory(url) or "vfs" in url.query:
        return False
    if options.get("creator") or options.get("pool"):
        return False  # what these open is theirs to say
    path = t.cast(str, url.database)
    if is_sqlite_uri(url) and path.startswith("file:"):
        path = unquote(urlsplit(path).path)
    # Without a folder, SQLite creates nothing, and says so.
    if not os.path.isabs(path) or not os.path.isdir(os.path.dirname(path)):
        return False
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass  # it may be there
    return False


def visit(
    engine: Engine, account: PoolAccount | None, work: Work[T], wait: float
) -> Callable[[], T]:
    """Begin work on one connection outside the pool, made as the engine makes them.

    :param work: Called in a thread of its own, with the driver's connection and the
        :func:`time.perf_counter` at which connecting began.
    :param wait: Seconds to wait for the answer, from now on.
    :return: A function that waits for the work and returns its result. It raises
        :exc:`PingError`, which says why there is no answer, without the URL.
    """
    outcome: list[T | BaseException] = []

    def run() -> None:
        try:
            outcome.append(_visit(engine, account, work))
        except BaseException as error:  # noqa: BLE001  # raised by result()
            outcome.append(error)

    # A thread, because drivers differ in whether and how connecting can be timed out.
    thread = threading.Thread(target=run, name="scopedsession-ping", daemon=True)
    deadline = time.perf_counter() + wait
    thread.start()

    def result() -> T:
        thread.join(max(0.0, deadline - time.perf_counter()))
        if not outcome:
            raise PingError(f"no answer within {wait:g} s")
        if isinstance(outcome[0], BaseException):
            raise PingError(_reason(outcome[0])) from None
        return outcome[0]

    return result


def _visit(engine: Engine, account: PoolAccount | None, work: Work[T]) -> T:
    pool = engine.pool
    spare = pool.spare() if isinstance(pool, TrackedPool) else pool.recreate()
    ident = threading.get_ident()
    if account is not None:
        account.pinging.add(ident)
    try:
        began = time.perf_counter()
        proxied = spare.connect()
        try:
            return work(t.cast(t.Any, proxied.dbapi_connection), began)
        finally:
            proxied.close()
            spare.dispose()
    finally:
        if account is not None:
            account.pinging.discard(ident)


def _reason(error: BaseException) -> str:
    """Describe an error by its class, SQLSTATE and words that are known to be safe."""
    origin = getattr(error, "orig", None) or error
    state = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    said = str(origin).lower()
    words = [phrase for phrase in _KNOWN_WORDS if phrase in said]
    details = [f"SQLSTATE {state}"] if state else []
    details += words[:1]
    return type(origin).__name__ + (f" ({', '.join(details)})" if details else "")


def server_version(engine: Engine) -> str | None:
    """Return the server's version, which its dialect asks for on the first connect."""
    found = getattr(engine.dialect, "server_version_info", None)
    return ".".join(str(part) for part in found) if found else None
