"""What database drivers say of their connections, without sending anything."""

from __future__ import annotations

import typing as t

from sqlalchemy.exc import DBAPIError

#: The highest process ID there is, on Linux. PgBouncer tells its clients a random
#: number, which is nobody's: 999 of 1000 are out of this range.
_HIGHEST_PID = 1 << 22

#: PostgreSQL's ``PQTRANS_...``, as psycopg and psycopg2 give them.
_IDLE, _ACTIVE, _UNKNOWN = 0, 1, 4

#: Serialization failures and deadlocks: of the SQL standard and PostgreSQL, MySQL and
#: MariaDB, SQLite, Oracle.
_CONFLICTS = frozenset(
    ("40001", "40P01", 1213, 1020, "SQLITE_BUSY_SNAPSHOT", "ORA-00060", "ORA-08177")
)

#: MySQL's and MariaDB's ``SERVER_STATUS_IN_TRANS`` and ``SERVER_STATUS_AUTOCOMMIT``.
_IN_TRANSACTION, _AUTOCOMMIT = 1, 2


def is_transaction_open(driver: t.Any) -> bool | None:
    """Return whether a driver's connection is in a transaction; ``None``: not known.

    sqlite3, mysql-connector and oracledb have an attribute for it, asyncpg a method,
    psycopg and psycopg2 ``info.transaction_status``, PyMySQL the status of the server's
    last answer.
    """
    if driver is None:
        return None
    for name in ("in_transaction", "transaction_in_progress"):
        known = getattr(driver, name, None)
        if isinstance(known, bool):
            return known
    if hasattr(driver, "is_in_transaction"):
        return bool(driver.is_in_transaction())
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    if isinstance(status, int):
        if status == _ACTIVE:
            return not getattr(driver, "autocommit", False)
        return None if status == _UNKNOWN else status != _IDLE
    status = getattr(driver, "server_status", None)
    if isinstance(status, int):
        return bool(status & _IN_TRANSACTION)
    # pyodbc and pg8000 only say when no transaction is ever open.
    return False if getattr(driver, "autocommit", None) is True else None


def always_tells(driver: t.Any) -> bool:
    """Whether :func:`is_transaction_open` is right after each statement.

    It is not with PyMySQL, which does not read the status that comes with rows: a
    SELECT begins a transaction that it knows nothing of.
    """
    is_pymysql = hasattr(driver, "server_status")
    return not is_pymysql and is_transaction_open(driver) is not None


def note_rows_written(driver: t.Any) -> None:
    """Keep PyMySQL's status true after a RETURNING.

    PyMySQL does not read the status that comes with rows. The next answer without rows,
    such as that to COMMIT, replaces what is set here.
    """
    status = getattr(driver, "server_status", None)
    if isinstance(status, int) and not status & _AUTOCOMMIT:
        driver.server_status = status | _IN_TRANSACTION


def backend_pid(driver: t.Any) -> int | None:
    """Return the server's process ID of a connection, if the driver knows it.

    psycopg has it in ``info``, psycopg2, pg8000 and asyncpg in methods, the MySQL
    drivers as a thread ID.
    """
    info = getattr(driver, "info", None)
    for source, name, highest in (
        (info, "backend_pid", _HIGHEST_PID),
        (driver, "get_backend_pid", _HIGHEST_PID),
        (driver, "get_server_pid", _HIGHEST_PID),
        (driver, "thread_id", None),
    ):
        value = getattr(source, name, None)
        try:
            found = value() if callable(value) else value
        except Exception:  # noqa: BLE001, S112
            continue
        if isinstance(found, int):
            return found if highest is None or 0 < found <= highest else None
    return None


def is_conflict(error: BaseException | None) -> bool:
    """Whether the database ended a transaction because of others at the same time.

    psycopg and mysql-connector have the code in ``sqlstate``, psycopg2 in ``pgcode``,
    sqlite3 in ``sqlite_errorname`` (Python 3.11 and newer). Other MySQL drivers and
    pyodbc have it as the first argument, pg8000 and oracledb inside of that.
    """
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    first: t.Any = next(iter(error.orig.args), None)
    if isinstance(first, dict):
        first = first.get("C")
    names = ("sqlstate", "pgcode", "sqlite_errorname")
    codes = [getattr(error.orig, name, None) for name in names]
    codes += [first, getattr(first, "full_code", None)]
    return any(isinstance(each, (str, int)) and each in _CONFLICTS for each in codes)
