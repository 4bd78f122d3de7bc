"""SQLite in memory: one database for all connections of an engine.

SQLite opens a database in memory by a name (``file:/name?vfs=memdb``), which is known
in its process only. Connections to it are isolated as those to a file are. It lives as
long as one of them is open, so one is kept open for as long as the engine has its
pool: ``dispose()`` replaces the pool, and with it the database.
"""

from __future__ import annotations

import os
import typing as t
import weakref
from contextlib import closing
from functools import cache
from uuid import uuid4

from .._runtime import fork
from .._settings.urls import is_private

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import URL
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import Pool

    from .._scopes.ledger import Ledger


class MemoryDatabase:
    """A database of one engine, or of all that share it by the name in their URLs."""

    def __init__(self, *, is_shared: bool) -> None:
        self._is_shared = is_shared
        self._name = uuid4().hex
        self._pid: int | None = None
        """The process that has opened it last."""
        self._uris: weakref.WeakKeyDictionary[Pool, str] = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, url: URL, ledger: Ledger) -> MemoryDatabase:
        """Return the database that a URL names, or a new one."""
        if is_private(url):
            return cls(is_shared=False)
        shared = _shared.setdefault(ledger, {})
        return shared.setdefault(url.database or "", cls(is_shared=True))

    def open_for(self, pool: Pool, dbapi: t.Any) -> str:
        """Return SQLite's URI of the database, which lives while the pool does."""
        uri = self._uris.get(pool)
        if uri is None:
            with fork.process_lock():
                uri = self._uris.get(pool) or self._open_for(pool, dbapi)
        return uri

    def _open_for(self, pool: Pool, dbapi: t.Any) -> str:
        pid = os.getpid()
        if self._pid == pid:
            is_over = not self._is_shared  # the pool was replaced
        else:
            # A fork has a copy of its parent's database. One that was in use as the
            # process forked stays locked for ever.
            is_over = self._pid is not None and not _is_free(dbapi, _uri(self._name))
        if is_over:
            self._name = uuid4().hex
        uri = self._uris[pool] = _uri(self._name)
        self._pid = pid
        weakref.finalize(pool, _connect(dbapi, uri).close).atexit = False
        return uri


#: By application, and by the name in their URLs.
_shared: weakref.WeakKeyDictionary[Ledger, dict[str, MemoryDatabase]] = (
    weakref.WeakKeyDictionary()
)


def share_memory(engine: Engine, ledger: Ledger) -> None:
    """Let all connections of an engine be to one database in memory."""
    dialect: t.Any = engine.dialect
    connect = dialect.connect
    dbapi = blocking(dialect) if dialect.is_async else dialect.loaded_dbapi
    configured = tuple(dialect.create_connect_args(engine.url)[0])
    database = MemoryDatabase.of(engine.url, ledger)
    reference = weakref.ref(engine)

    def connecting(*cargs: t.Any, **cparams: t.Any) -> DBAPIConnection:
        if cargs == configured:  # else a listener has changed it
            pool = t.cast("Engine", reference()).pool
            cargs = (database.open_for(pool, dbapi), *cargs[1:])
            cparams["uri"] = True
        return t.cast("DBAPIConnection", connect(*cargs, **cparams))

    dialect.connect = connecting


def blocking(dialect: t.Any) -> t.Any:
    """Return the driver of a dialect of SQLite; of an async one, what it wraps."""
    if dialect.is_async:
        import sqlite3

        return sqlite3
    return dialect.import_dbapi()


def _uri(name: str) -> str:
    return f"file:/{name}?vfs=memdb"


def _connect(dbapi: t.Any, uri: str) -> t.Any:
    options = {"uri": True, "isolation_level": None, "timeout": 0}
    return dbapi.connect(uri, check_same_thread=False, **options)


def _is_free(dbapi: t.Any, uri: str) -> bool:
    """Whether no connection reads or writes the database."""
    with closing(_connect(dbapi, uri)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except dbapi.OperationalError:
            return False
    return True


@cache
def can_share(dbapi: t.Any) -> bool:
    """Whether SQLite isolates connections to one database in memory, by trying it.

    Before 3.36, each connection had a database of its own.
    """
    uri = _uri(uuid4().hex)
    try:
        with closing(_connect(dbapi, uri)) as one, closing(_connect(dbapi, uri)) as two:
            one.execute("CREATE TABLE t (a)")
            one.execute("INSERT INTO t VALUES (1), (2)")
            reading = two.execute("SELECT a FROM t")
            reading.fetchone()
            return not _is_free(dbapi, uri)
    except dbapi.Error:
        return False
