"""What a statement means for a connection that is isolated, by its text."""

from __future__ import annotations

import re
import typing as t
from functools import lru_cache

from .._pools.writes import plain_text

Kind = t.Literal["begin", "commit", "rollback", "read", "write", "set"]

#: The dialects that commit at DDL.
MYSQL = frozenset(("mysql", "mariadb"))

_READS = frozenset(
    ("select", "values", "table", "with", "show", "explain", "describe", "desc")
)
_LOCKS = (
    r"into|set_config|lock\s+in|for\s+(?:no\s+key\s+update|update|key\s+share|share)"
)
#: What makes more of a SELECT; a column may be called "update".
_SELECT_WRITES = re.compile(rf"\b(?:{_LOCKS})\b", re.IGNORECASE)
#: The same of a statement that begins WITH.
_WITH_WRITES = re.compile(
    rf"\b(?:{_LOCKS}|insert|update|delete|merge|analyze)\b", re.IGNORECASE
)
_BEGIN = re.compile(
    r"begin(?:\s+(?:work|transaction|deferred|immediate|exclusive|concurrent|isolation"
    r"|read)\b.*)?$|start\s+transaction\b",
    re.IGNORECASE | re.DOTALL,
)
_END = re.compile(
    r"(?P<commit>commit|end)\b(?!\s+prepared)"
    r"|(?:rollback|abort)\b(?!\s+prepared)(?!(?:\s+(?:work|transaction))?\s+to\b)",
    re.IGNORECASE,
)

_HAS_BODY = re.compile(
    r"\s*create\s+(?:or\s+replace\s+|temp(?:orary)?\s+)*"
    r"(?:trigger|function|procedure)\b",
    re.IGNORECASE,
)
_TWO_PHASE = re.compile(
    r"(?:prepare\s+transaction|(?:commit|rollback)\s+prepared|xa)\b", re.IGNORECASE
)
_LISTEN = re.compile(r"(?:un)?listen\b", re.IGNORECASE)
_PRAGMA = re.compile(
    r"pragma\s+(?:\w+\s*\.\s*)?(?:foreign_keys|journal_mode|synchronous|locking_mode"
    r"|page_size|auto_vacuum)\s*[=(]",
    re.IGNORECASE,
)
#: What changes a connection, and is not undone by a rollback.
_SETS = {"sqlite": ("pragma", "attach"), "mysql": ("set", "use", "create", "drop")}
_SETS["mariadb"] = _SETS["mysql"]

#: What MySQL and MariaDB do not commit before.
_MYSQL_SAFE = re.compile(
    r"(?:select|insert|update|delete|replace|with|values|table|show|describe|desc"
    r"|explain|set(?!\s+password|.*\bautocommit\b)|savepoint|release|rollback|call|do|use"
    r"|load\s+data|handler|prepare|execute|deallocate|kill|signal|get"
    r"|(?:create(?:\s+or\s+replace)?|drop)\s+temporary\s+table)\b",
    re.IGNORECASE | re.DOTALL,
)


class Refused(Exception):
    """The statement cannot be isolated; the argument says why."""


def kind_of(statement: t.Any, connection: t.Any, dialect: str) -> Kind:
    """Return what a statement does.

    :param statement: A text, or what a driver takes instead.
    :param connection: The driver's, which psycopg and psycopg2 need for the text of
        what they composed.
    :raises Refused: It cannot be isolated.
    """
    if isinstance(statement, (bytes, bytearray)):
        statement = statement.decode(errors="replace")
    elif hasattr(statement, "as_string"):
        statement = statement.as_string(connection)
    statement = str(statement)
    found = _known if len(statement) <= _LONGEST_KNOWN else _known.__wrapped__
    return found(statement, dialect)


#: Longer texts, such as those of an INSERT for many rows, are not remembered.
_LONGEST_KNOWN = 5000


@lru_cache(1000)
def _known(statement: str, dialect: str) -> Kind:
    if dialect in MYSQL:
        statement = re.sub(r"\\.", "", statement)  # such as a quote in a string
    text = plain_text(statement)
    # A trigger or function has statements, and an END, of its own.
    parts = [text] if _HAS_BODY.match(text) else text.split(";")
    parts = [part.strip(" \t\r\n(") for part in parts]
    kinds: set[Kind] = {_kind_of_one(part, dialect) for part in parts if part}
    if len(kinds) > 1 and kinds & {"begin", "commit", "rollback"}:
        raise Refused("it controls the transaction among several statements")
    if len(kinds) == 1:
        return kinds.pop()
    if "set" in kinds:
        return "set"
    return "write" if kinds else "read"


def _kind_of_one(text: str, dialect: str) -> Kind:
    if _BEGIN.match(text):
        return "begin"
    end = _END.match(text)
    if end is not None:
        return "commit" if end["commit"] else "rollback"
    if why := _why_refused(text, dialect):
        raise Refused(why)
    word = re.split(r"[^a-z]", text[:20].lower(), maxsplit=1)[0]
    if word in _SETS.get(dialect, ()) and ("=" in text or word != "pragma"):
        return "set"
    if word == "pragma":
        return "read"
    writes = _WITH_WRITES if word in ("with", "explain") else _SELECT_WRITES
    return "write" if word not in _READS or writes.search(text) else "read"


def _why_refused(text: str, dialect: str) -> str:
    if _TWO_PHASE.match(text):
        return "a two-phase transaction outlives its connection"
    if dialect in MYSQL and not _MYSQL_SAFE.match(text):
        return "MySQL and MariaDB commit before such a statement, for real"
    if dialect == "postgresql" and _LISTEN.match(text):
        return "notifications are sent at a commit, which never happens here"
    if dialect == "sqlite" and _PRAGMA.match(text):
        return "SQLite cannot change this setting inside a transaction"
    return ""
