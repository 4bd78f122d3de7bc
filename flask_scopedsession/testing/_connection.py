"""What the application has instead of a driver's connection while it is isolated."""

from __future__ import annotations

import sys
import typing as t
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from threading import get_ident
from types import SimpleNamespace

from ._database import AUTOCOMMIT
from ._database import Database

if t.TYPE_CHECKING:
    from typing_extensions import Self

#: What would end the transaction, reset the connection, or send statements unseen.
_REFUSED = frozenset(
    ("pipeline", "reset", "change_user", "query", "xid", "set_client_encoding")
)
#: Names of methods that set the isolation level, for transactions to come.
_LEVELS = frozenset(
    (
        *("set_isolation_level", "set_session", "set_autocommit", "set_read_only"),
        "set_deferrable",
    )
)
#: What a cursor sends besides ``execute()`` and ``executemany()``.
_SENDS = frozenset(
    ("callproc", "copy", "copy_expert", "copy_from", "copy_to", "stream")
)


class IsolatedConnection:
    """Behaves as the driver's connection, with a transaction that is never real."""

    def __init__(self, database: Database) -> None:
        self.__dict__.update(
            _database=database,
            in_transaction=False,
            has_written=False,
            thread=get_ident(),
            began="",
            is_read_only=False,
            is_over=False,
        )

    _database: Database
    in_transaction: bool
    """As sqlite3 has it."""
    has_written: bool
    """Others must not see what it has done, or not end it."""
    thread: int
    """The thread that used it last."""
    began: str
    """For messages: the line of the application where its transaction began."""
    is_read_only: bool
    """PostgreSQL refuses to write in its transactions."""
    is_over: bool
    """The block in which it was checked out has ended."""

    @property
    def _real(self) -> t.Any:
        self.refuse_if_over()
        return self._database.real

    def refuse_if_over(self) -> None:
        """Refuse what comes after the block in which this was checked out."""
        if self.is_over:
            raise self._database.error(
                "this connection was checked out inside a block that has ended. Close"
                " it, or the session that has it, in that block"
            )

    # -- transactions ------------------------------------------------------------

    def begin(self, *_: t.Any) -> None:
        """Begin, as PyMySQL can, and a BEGIN does."""
        self.__dict__["in_transaction"] = True

    def commit(self) -> None:
        """Keep everything until the end of :func:`.isolate`."""
        with self._database.lock:
            self.refuse_if_over()
            self._database.commit(self)
            self._ended()

    def rollback(self) -> None:
        """Undo this transaction, and nothing else."""
        with self._database.lock:
            self._ended()
            self._database.rollback(self)

    def close(self) -> None:
        """Roll back; the real connection stays open."""
        self.rollback()

    def end(self) -> None:
        """Roll back for the last time."""
        with self._database.lock:
            self.rollback()
            self.is_over = True

    def _ended(self) -> None:
        self.__dict__.update(in_transaction=False, has_written=False)

    @contextmanager
    def _transaction(
        self, *args: t.Any, **kwargs: t.Any
    ) -> Generator[t.Any, None, None]:
        """Take the place of psycopg's ``transaction()``."""
        is_outermost = not self.in_transaction
        with self._database.lock:
            self.prepare("write")
            inner = self._real.transaction(*args, **kwargs)
            entered = inner.__enter__()
        try:
            yield entered
        except BaseException as error:
            with self._database.lock:
                handled = inner.__exit__(type(error), error, error.__traceback__)
            if is_outermost:
                self.rollback()
            if not handled:
                raise
        else:
            with self._database.lock:
                inner.__exit__(None, None, None)
            if is_outermost:
                self.commit()

    def prepare(self, kind: str) -> None:
        """Prepare for a statement of this kind; the lock is held."""
        database = self._database
        database.claim(self)
        if kind != "read":
            self.__dict__["has_written"] = True
        if kind != "read" or database.dialect.name != "sqlite":
            self.__dict__["in_transaction"] = True
        if kind == "set":
            database.is_changed = True

    # -- statements ----------------------------------------------------------------

    def cursor(self, *args: t.Any, **kwargs: t.Any) -> IsolatedCursor:
        """Return a cursor whose statements belong to this transaction."""
        if self.is_over:
            # SQLAlchemy would wrap an error here in one of its own.
            return IsolatedCursor(self, SimpleNamespace(close=lambda: None))
        kind: t.Any = args[0] if args else None
        if isinstance(kind, type) and kind.__name__.startswith("SS"):
            # PyMySQL's and mysqlclient's, whose rows the next statement would lose.
            args = (getattr(sys.modules[kind.__module__], kind.__name__[2:]), *args[1:])
        return IsolatedCursor(self, self._real.cursor(*args, **kwargs))

    def _executing(self, name: str) -> Callable[..., t.Any]:
        def execute(*args: t.Any, **kwargs: t.Any) -> t.Any:
            return getattr(self.cursor(), name)(*args, **kwargs)

        return execute

    def _level(self, *args: t.Any, **kwargs: t.Any) -> None:
        """Refuse AUTOCOMMIT; transactions one after the other suit any other level."""
        asked = kwargs.get("autocommit", args[0] if args else None)
        if asked is True or (type(asked) is int and not asked):  # psycopg2 has a 0
            self._refuse_autocommit()

    def _refuse_autocommit(self) -> t.NoReturn:
        raise self._database.error(AUTOCOMMIT)

    # -- everything else -------------------------------------------------------------

    def __getattr__(self, name: str) -> t.Any:
        if name in _REFUSED or name.startswith("tpc_"):
            why = " (two-phase transactions outlive it)" if "tpc" in name else ""
            raise self._database.error(
                f"{name}() of the driver's connection cannot be isolated{why}"
            )
        found = getattr(self._real, name)
        if name in ("execute", "executemany", "executescript"):
            return self._executing(name)
        if name == "transaction":
            return self._transaction
        if name in _LEVELS or (name == "autocommit" and callable(found)):
            return self._level
        return found

    def __setattr__(self, name: str, value: t.Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
        elif name == "autocommit":
            if value is True:
                self._refuse_autocommit()
        elif name == "isolation_level":
            if value is None and self._database.dialect.name == "sqlite":
                self._refuse_autocommit()
        elif name in ("read_only", "readonly"):  # psycopg's and psycopg2's
            self.__dict__["is_read_only"] = bool(value)
        elif name != "deferrable":
            setattr(self._real, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None and not hasattr(self._real, "server_status"):
            self.commit()
        else:
            self.rollback()  # PyMySQL only closes


class IsolatedCursor:
    """Behaves as the driver's cursor."""

    _connection: IsolatedConnection
    _real: t.Any
    _rows: Iterator[t.Any] | None
    """SQLite's, which would change if others wrote while they are fetched."""

    def __init__(self, connection: IsolatedConnection, real: t.Any) -> None:
        self.__dict__.update(_connection=connection, _real=real, _rows=None)

    @property
    def connection(self) -> IsolatedConnection:
        """The connection that this is of."""
        return self._connection

    def execute(self, statement: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Execute a statement, or what stands for it here."""
        connection = self._connection
        connection.refuse_if_over()
        kind = connection._database.kind_of(statement)
        if kind == "begin":
            connection.begin()
        elif kind == "commit":
            connection.commit()
        elif kind == "rollback":
            connection.rollback()
        else:
            return self._send(kind, self._real.execute, statement, *args, **kwargs)
        return self

    def executemany(self, statement: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Execute a statement for several sets of parameters."""
        self._connection.refuse_if_over()
        self._connection._database.kind_of(statement)
        return self._send("write", self._real.executemany, statement, *args, **kwargs)

    def _executescript(self, script: str) -> IsolatedCursor:
        """Execute a script as sqlite3 does: outside of a transaction."""
        import sqlite3

        connection = self._connection
        connection.commit()
        part, has_begun = "", False
        for piece in script.split(";"):
            part += f"{piece};"
            if sqlite3.complete_statement(part):
                kind = connection._database.kind_of(part)
                self.execute(part)
                if kind in ("begin", "commit", "rollback"):
                    has_begun = kind == "begin"
                elif not has_begun:
                    connection.commit()
                part = ""
        self.execute(part.rpartition(";")[0])
        return self

    def _send(
        self, kind: str, send: Callable[..., t.Any], *args: t.Any, **kwargs: t.Any
    ) -> t.Any:
        database = self._connection._database
        with database.lock:
            self._connection.prepare(kind)
            try:
                result = send(*args, **kwargs)
                if database.dialect.name == "sqlite":
                    self.__dict__["_rows"] = iter(self._real.fetchall())
            finally:
                database.executed(self._connection)
        return self if result is self._real else result

    def __getattr__(self, name: str) -> t.Any:
        found = getattr(self._real, name)
        if name == "executescript":
            return self._executescript
        if name in _SENDS:

            def send(*args: t.Any, **kwargs: t.Any) -> t.Any:
                return self._send("write", found, *args, **kwargs)

            return send
        if name in ("scroll", "nextset", "close"):
            return partial(self._fetch, name)
        return found

    def _fetch(self, name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        with self._connection._database.lock:
            return getattr(self._real, name)(*args, **kwargs)

    def fetchone(self) -> t.Any:
        """Return the next row."""
        return self._fetch("fetchone") if self._rows is None else next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> t.Any:
        """Return the next rows."""
        size = self._real.arraysize if size is None else size
        if self._rows is None:
            return self._fetch("fetchmany", size)
        return list(islice(self._rows, size))

    def fetchall(self) -> t.Any:
        """Return all other rows."""
        return self._fetch("fetchall") if self._rows is None else list(self._rows)

    def __setattr__(self, name: str, value: t.Any) -> None:
        setattr(self._real, name, value)

    def __iter__(self) -> Iterator[t.Any]:
        return iter(self.fetchone, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
