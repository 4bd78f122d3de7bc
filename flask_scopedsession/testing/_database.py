"""One database during isolation: the one real connection that serves everybody.

Each connection that the application has checked out stands for a transaction of its
own. A savepoint on the real connection takes the place of its BEGIN; it is released
for a COMMIT, and rolled back to for a ROLLBACK. Savepoints are nested, and transactions
are not, so there is one such savepoint at a time. While the transaction that has it has
only read, any other can have it instead. Once it has written, others wait until it ends
if they are of other threads, and are refused if they are of the same one, which would
wait for itself.
"""

from __future__ import annotations

import os
import re
import threading
import time
import typing as t
from contextlib import closing
from functools import lru_cache
from threading import get_ident

from .._pools.drivers import is_transaction_open
from .._runtime.places import Places
from ..errors import IsolationError
from ._texts import Kind
from ._texts import kind_of
from ._texts import MYSQL
from ._texts import Refused

if t.TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection

    from ._connection import IsolatedConnection

#: Why a bind, a connection or a transaction is refused.
AUTOCOMMIT = (
    "with the isolation level AUTOCOMMIT, nothing can be rolled back. Leave this test"
    " out of the isolation"
)

#: Kept, as they remember where each file belongs.
_places = lru_cache(8)(Places)

#: The dialects whose transactions and savepoints are known here.
_DIALECTS = frozenset(("sqlite", "postgresql")) | MYSQL

_TRANSACTION = "flask_scopedsession_transaction"
_LAYER = "flask_scopedsession_layer_{}"

#: Whether PostgreSQL has constraints that can be deferred; checks them, and defers
#: again those that are so initially.
_HAS_DEFERRABLE = "SELECT 1 FROM pg_constraint WHERE condeferrable LIMIT 1"
_CHECK_DEFERRED = """
DO $$ DECLARE names text; BEGIN
SET CONSTRAINTS ALL IMMEDIATE;
SELECT string_agg(DISTINCT format('%I.%I', nspname, conname), ', ') INTO names
    FROM pg_constraint JOIN pg_namespace ON pg_namespace.oid = connamespace
    WHERE condeferred;
IF names IS NOT NULL THEN
    EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED';
END IF; END $$
"""
#: Whether SQLite has any, and looks at them.
_HAS_DEFERRED = (
    "SELECT 1 FROM pragma_foreign_keys WHERE foreign_keys AND EXISTS"
    " (SELECT 1 FROM sqlite_master WHERE sql LIKE '%DEFERRED%')"
)

#: The code of MySQL's warning for tables that know no transactions.
_NOT_UNDONE = "1196"
#: The tables of the database that know none, such as those of MyISAM or Aria.
_WITHOUT_TRANSACTIONS = (
    "SELECT group_concat(table_name SEPARATOR '|') FROM information_schema.tables"
    " JOIN information_schema.engines USING (engine)"
    " WHERE table_schema = DATABASE() AND transactions = 'NO'"
)

#: PostgreSQL's ``PQTRANS_INERROR``, as psycopg and psycopg2 give it.
_IN_ERROR = 3


class Database:
    """A database, and who uses its real connection.

    :param name: Of the bind, for messages.
    :param dialect: Of its engine.
    :param wait: Seconds that a thread waits for the transaction of another.
    :param root_path: Of the application, whose lines are named.
    :param is_connection: The database is gone with its one connection.
    """

    def __init__(
        self,
        name: str,
        dialect: t.Any,
        wait: float,
        root_path: str,
        *,
        is_connection: bool,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.lock = threading.Condition(threading.RLock())
        self.proxied: PoolProxiedConnection | None = None
        self.real: t.Any = None
        """The driver's connection; ``None`` until it is first used."""
        self.is_changed = False
        """A setting of the connection was changed, which no rollback undoes."""
        self._is_connection = is_connection
        self._wait = wait
        self._places = _places(root_path)
        self._pid = os.getpid()
        self._layers = 0
        self._owner: IsolatedConnection | None = None
        self._problem: str | None = None
        self._without = ""
        """The tables, with bars in between, that know no transactions."""

    # -- layers ------------------------------------------------------------------

    def push(self) -> None:
        """Begin a layer, all of which :meth:`pop` rolls back.

        :raises IsolationError: A transaction has written, and not ended.
        """
        with self.lock:
            owner = self._owner
            if owner is not None and owner.has_written:
                raise self.error(
                    f"a transaction{owner.began} {self._open()}. Commit it, or roll it"
                    " back, before isolate() begins again"
                )
            self._layers += 1
            if self.real is not None:
                self._give_up(owner)
                self._run(f"SAVEPOINT {_LAYER.format(self._layers)}")

    def pop(self) -> None:
        """Undo a layer, and give the real connection back with the last one."""
        with self.lock:
            layer, self._layers = self._layers, self._layers - 1
            self.lock.notify_all()
            if self.real is None:
                return
            if layer == 1:
                self._finish()
            elif self._problem is None:
                self._give_up(self._owner)
                name = _LAYER.format(layer)
                self._run(f"ROLLBACK TO SAVEPOINT {name}", f"RELEASE SAVEPOINT {name}")

    def start(self, connect: t.Callable[[], PoolProxiedConnection]) -> None:
        """Begin on the real connection, unless that was done.

        :param connect: Checks it out of the pool.
        """
        with self.lock:
            if self.real is not None:
                return
            for is_last in (False, True):
                proxied = connect()
                self.real = proxied.dbapi_connection
                try:
                    self._begin()
                except IsolationError:
                    self.real = None
                    proxied.close()
                    raise
                except BaseException:
                    self.real = None
                    proxied.invalidate()
                    if is_last:  # else one that was idle may have lost its server
                        raise
                else:
                    self.proxied = proxied
                    break

    def _begin(self) -> None:
        real = self.real
        if self.dialect.name not in _DIALECTS:
            raise self.error(f"isolate() does not know the dialect {self.dialect.name}")
        autocommit = getattr(real, "get_autocommit", lambda: real.autocommit is True)
        if getattr(real, "autocommit", False) is not False and autocommit():
            raise self.error(AUTOCOMMIT)
        if self.dialect.name == "postgresql" and _status(real) is None:
            raise self.error(
                f"the driver {self.dialect.driver} does not say whether a transaction"
                " has failed. Use psycopg or psycopg2"
            )
        if is_transaction_open(real) is not True:
            began = {"sqlite": "BEGIN", "postgresql": "SELECT 1"}
            self._execute(began.get(self.dialect.name, "START TRANSACTION"))
        for layer in range(2, self._layers + 1):
            self._execute(f"SAVEPOINT {_LAYER.format(layer)}")
        self._violations = self._count_violations()
        if self.dialect.name in MYSQL:
            (row,) = self._execute(_WITHOUT_TRANSACTIONS)
            (found,) = row.values() if isinstance(row, dict) else row
            self._without = found or ""

    def _finish(self) -> None:
        proxied, real = t.cast("PoolProxiedConnection", self.proxied), self.real
        is_partial = False
        try:
            if self.dialect.name in MYSQL:
                warnings = self._execute("ROLLBACK", "SHOW WARNINGS")
                # A temporary table causes the same warning.
                is_partial = _NOT_UNDONE in str(warnings) and self._without != ""
            real.rollback()
            # With autocommit=True, sqlite3 rolls back nothing that a BEGIN began.
            if self.dialect.name == "sqlite" and getattr(real, "autocommit", 0) is True:
                real.execute("ROLLBACK")
        except BaseException as error:
            self.is_changed = True  # closed, it is rolled back
            if not isinstance(error, Exception):
                raise
        finally:
            self.proxied = self.real = self._owner = None
            if self.is_changed and not self._is_connection:
                proxied.invalidate()
            else:
                proxied.close()
        if is_partial:
            raise self.error(
                f"a trigger or procedure has changed {self._without}, for real: the"
                " engine of such a table knows no transactions. Use InnoDB for it"
            )

    # -- transactions --------------------------------------------------------------

    def kind_of(self, statement: t.Any) -> Kind:
        """Return what a statement does.

        :raises IsolationError: It cannot be isolated.
        """
        try:
            kind = kind_of(statement, self.real, self.dialect.name)
        except Refused as error:
            why = str(error)
        else:
            names = self._without and rf"\b(?:{self._without})\b"
            if kind != "write" or not names or not re.search(names, str(statement)):
                return kind
            why = "the engine of its table knows no transactions. Use InnoDB for it"
        raise self.error(f"{self._shown(statement)} was not executed: {why}")

    def _shown(self, statement: t.Any) -> str:
        words = str(statement).split(None, 2)[:2]
        return f"'{' '.join(words)[:40]} …'"

    def claim(self, who: IsolatedConnection) -> None:
        """Let a connection's transaction have the savepoint.

        :raises IsolationError: That of another has written. If it is another thread's,
            after a wait.
        """
        deadline = time.monotonic() + self._wait
        while True:
            who.refuse_if_over()
            self.check()
            owner = self._owner
            if owner is who:
                break
            if owner is None or not owner.has_written:
                self._owner = None
                ended = () if owner is None else (f"RELEASE SAVEPOINT {_TRANSACTION}",)
                more = ("SET TRANSACTION READ ONLY",) if who.is_read_only else ()
                self._run(*ended, f"SAVEPOINT {_TRANSACTION}", *more)
                at = self._places.here()
                who.began = f", which began at {at}," if at else ""
                self._owner = who
                break
            if owner.thread == get_ident():
                raise self.error(
                    f"another transaction of this thread{owner.began} {self._open()},"
                    " and must end before this one uses the database. Commit that one,"
                    " or roll it back, first"
                )
            if not self.lock.wait(max(0.0, deadline - time.monotonic())):
                raise self.error(
                    f"a transaction of another thread{owner.began} {self._open()}, and"
                    f" has not ended for {self._wait:g} s. Commit it, or roll it back,"
                    " before you wait for a thread that uses the database"
                )
        who.thread = get_ident()

    def _open(self) -> str:
        """Say why the transaction that has the savepoint keeps it."""
        return "has failed" if _failed(self.real) else "has uncommitted changes"

    def executed(self, who: IsolatedConnection) -> None:
        """Look at the real transaction after a statement.

        :raises IsolationError: The statement has ended it.
        """
        real = self.real
        if is_transaction_open(real) is False:
            self._problem = (
                "a statement has ended the transaction in which everything is isolated"
            )
            raise self.error(self._problem)
        if _failed(real):
            who.has_written = True  # it has to be rolled back before others go on

    def commit(self, who: IsolatedConnection) -> None:
        """Keep what a transaction did, as far as this layer lasts."""
        self.check()
        if self._owner is not who:
            return
        if _failed(self.real):
            # As PostgreSQL does, without an error.
            self.rollback(who)
            return
        if who.has_written:
            self._check_constraints(who)
        self._owner = None
        self._run(f"RELEASE SAVEPOINT {_TRANSACTION}")
        self.lock.notify_all()

    def _check_constraints(self, who: IsolatedConnection) -> None:
        """Check what a database checks at a COMMIT, which never happens here."""
        try:
            if self.dialect.name == "postgresql":
                if self._execute(_HAS_DEFERRABLE):
                    self._execute(_CHECK_DEFERRED)
            elif self._count_violations() > self._violations:
                raise self.dialect.loaded_dbapi.IntegrityError(
                    "FOREIGN KEY constraint failed"
                )
        except BaseException:
            self.rollback(who)
            raise

    def _count_violations(self) -> int:
        """Count what violates a foreign key of SQLite that is checked at a COMMIT."""
        if self.dialect.name != "sqlite" or not self._execute(_HAS_DEFERRED):
            return 0
        return len(self._execute("PRAGMA foreign_key_check"))

    def rollback(self, who: IsolatedConnection) -> None:
        """Undo what a transaction did; once it is over, do nothing."""
        if self._owner is not who or os.getpid() != self._pid:
            return
        self._owner = None
        self.lock.notify_all()
        if self._problem is None:  # else the end of the block rolls everything back
            self._run(
                f"ROLLBACK TO SAVEPOINT {_TRANSACTION}",
                f"RELEASE SAVEPOINT {_TRANSACTION}",
            )

    def _give_up(self, owner: IsolatedConnection | None) -> None:
        if owner is not None:
            self._owner = None
            self._run(f"RELEASE SAVEPOINT {_TRANSACTION}")

    # -- the real connection ---------------------------------------------------------

    def check(self) -> None:
        """Refuse a process that was forked, and what comes after a failure."""
        if os.getpid() != self._pid:
            raise self.error(
                "this process was forked inside isolate(), which covers only its own"
                " process. Use a thread instead, or a database of its own"
            )
        if self._problem is not None:
            raise self.error(self._problem)

    def _run(self, *statements: str) -> None:
        try:
            self._execute(*statements)
        except Exception as error:
            self._problem = (
                "the real connection failed, or its transaction was ended by others"
                f" ({type(error).__name__})"
            )
            raise self.error(self._problem) from error

    def _execute(self, *statements: str) -> list[t.Any]:
        """Execute statements on the real connection, and return the last one's rows."""
        with closing(self.real.cursor()) as cursor:
            # psycopg would prepare what is sent often.
            options = {"prepare": False} if self.dialect.driver == "psycopg" else {}
            if self.dialect.name == "postgresql":
                statements = ("; ".join(statements),)  # one round trip
            for statement in statements:
                cursor.execute(statement, **options)
            return [] if cursor.description is None else list(cursor.fetchall())

    def error(self, what: str) -> IsolationError:
        """Return an error that names the bind."""
        return IsolationError(f"isolate(), bind {self.name!r}: {what}.")


def _status(real: t.Any) -> int | None:
    return getattr(getattr(real, "info", None), "transaction_status", None)


def _failed(real: t.Any) -> bool:
    """Whether PostgreSQL refuses all statements until a rollback."""
    return _status(real) == _IN_ERROR
