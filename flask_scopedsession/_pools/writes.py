"""What statements have changed on a connection, and a rollback would lose.

Only what is certain counts: a statement that matched no row, one that wrote to a
temporary table, and one whose text does not show its effect change nothing.
"""

from __future__ import annotations

import re
import typing as t
from collections import Counter
from collections.abc import Mapping
from threading import get_ident

from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateTable

from .drivers import is_transaction_open
from .drivers import note_rows_written
from .slot import Slot

Action = t.Literal["begin", "write", "temporary", "mark", "back", "release", "end"]


class Effect(t.NamedTuple):
    """What a statement means for its connection's uncommitted changes."""

    action: Action
    name: str
    """Of a table or savepoint."""


#: The effects of statements that count as such. The others control a transaction, and
#: many drivers send some of those on their own.
COUNTED = frozenset(("write", "temporary"))

#: How the others begin.
CONTROL = ("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT")


# -- what a statement does, by its text -----------------------------------------

#: Statements are read up to here, in characters. Those WITH a common table expression
#: are read to their end.
_LONGEST = 4000

# Not compiled here: that would cost each import, and re keeps what it has compiled.
_QUOTED = (
    r"(?s)--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$"
    r'|(?P<name>"[^"]*"|`[^`]*`|\[[^\]]*\])'
)
_INNERMOST = r"\([^()]*\)"
_VERB = r"(?is)\b(?:insert|update|delete|merge|select|values|table)\b.*"
_NAME = r"(?:(?P<schema>[\w$]+)\s*\.\s*)*(?P<name>[\w$]+)"
_PATTERNS: Mapping[Action, str] = {
    "temporary": (
        r"create\s+(?:local\s+|global\s+|or\s+replace\s+)*temp(?:orary)?\s+table\s+"
        rf"(?:if\s+not\s+exists\s+)?{_NAME}"
    ),
    "write": (
        r"(?:(?:insert|replace)\s+(?:or\s+\w+\s+|ignore\s+|\w+_priority\s+)*"
        r"(?:into\s+)?"
        r"|update\s+(?:or\s+\w+\s+|ignore\s+|low_priority\s+|only\s+)*"
        r"|delete\s+(?:ignore\s+|quick\s+|low_priority\s+)*(?:from\s+)?(?:only\s+)?"
        rf"|merge\s+(?:into\s+)?){_NAME}"
    ),
    "back": rf"rollback\s+(?:work\s+|transaction\s+)?to\s+(?:savepoint\s+)?{_NAME}",
    "mark": rf"savepoint\s+{_NAME}",
    "release": rf"release\s+(?:savepoint\s+)?{_NAME}",
    "end": r"(?P<name>commit|end|rollback|abort)\b",
}

#: Where temporary tables live, by the name of the dialect. Elsewhere, ``temp`` is a
#: schema like any other.
_TEMPORARY_SCHEMAS = {"sqlite": "temp", "postgresql": "pg_temp"}


def effect_of(context: t.Any, statement: str) -> Effect | None:
    """Return what a statement does to its connection's changes; ``None``: nothing.

    :param context: SQLAlchemy's ``ExecutionContext`` of it.
    """
    if statement.startswith("BEGIN"):
        return Effect("begin", "")
    temporary_schema = _TEMPORARY_SCHEMAS.get(context.dialect.name)
    if context.isinsert or context.isupdate or context.isdelete:
        table = getattr(getattr(context.compiled, "statement", None), "table", None)
        name = getattr(table, "name", None)
        if name is not None:
            temporary = _is_temporary(table, context.dialect, temporary_schema)
            return None if temporary else Effect("write", str(name))
    return _effect_of_text(statement, temporary_schema)


def _is_temporary(table: t.Any, dialect: t.Any, temporary_schema: str | None) -> bool:
    """Whether a table of SQLAlchemy's is temporary, by its schema or its CREATE."""
    if str(getattr(table, "schema", "")).lower() == temporary_schema:
        return True
    try:
        created = str(CreateTable(table).compile(dialect=dialect))
    except (ArgumentError, AttributeError, CompileError):
        return False  # it cannot be created so, as one that is only read about
    found = _effect_of_text(created, temporary_schema)
    return found is not None and found.action == "temporary"


def _effect_of_text(statement: str, temporary_schema: str | None) -> Effect | None:
    """Return what a text does, by the first words of its statements.

    The driver counts the rows of only one of several statements, so it is not certain
    that the others have written any. Nor is it what a savepoint among them has kept.
    """
    text = statement.lstrip()
    is_with = text[:4].lower() == "with" or text[:1] in "(-/"
    text = plain_text(text if is_with else text[:_LONGEST]).strip("\t\n ;")
    if ";" not in text:
        return _effect_of_one(text, temporary_schema)
    effects = [_effect_of_one(one.strip(), temporary_schema) for one in text.split(";")]
    found = {effect.action: effect for effect in effects if effect is not None}
    if "end" in found or "back" in found:
        return Effect("end", "")
    found.pop("write", None)
    return next(iter(found.values()), None)


def _effect_of_one(text: str, temporary_schema: str | None) -> Effect | None:
    """Return what one statement does, without its comments and strings."""
    if text[:4].lower() == "with":
        # The main verb is the first one outside of all parentheses.
        before = ""
        while text != before:
            before, text = text, re.sub(_INNERMOST, " ", text)
        verb = re.search(_VERB, text)
        text = "" if verb is None else verb[0]
    for action, pattern in _PATTERNS.items():
        found = re.match(pattern, text, re.IGNORECASE)
        if found is not None:
            schema = found.groupdict().get("schema") or ""
            if schema and schema.lower() == temporary_schema:
                return None
            return Effect(action, found["name"])
    return None


def plain_text(statement: str) -> str:
    """Return a statement without its comments and the content of its strings."""
    return re.sub(_QUOTED, _unquoted, statement)


def _unquoted(found: re.Match[str]) -> str:
    name = found["name"]
    if name is None:
        return "''" if found[0].startswith("'") else " "
    return re.sub(r"\W", "_", name[1:-1])


# -- what a connection has changed ------------------------------------------------


def before_statement(slot: Slot) -> None:
    """Prepare for a statement that has an effect, or follows one."""
    settle(slot)
    if slot.writes is not None and is_transaction_open(slot.driver) is False:
        slot.forget_writes()  # committed where nobody saw it, such as by the driver
    if slot.counts_changes:
        slot.changes_before = slot.driver.total_changes


def after_effect(slot: Slot, effect: Effect, cursor: t.Any) -> None:
    """Note what a statement did that has succeeded."""
    action, name = effect
    if action == "write":
        _note_write(slot, name, cursor)
    elif action == "temporary":
        slot.temporary = {*(slot.temporary or ()), name.lower()}
    elif action == "end":
        slot.forget_writes()
    elif action != "begin":
        _note_savepoint(slot, action, name.lower())


def _note_savepoint(slot: Slot, action: Action, name: str) -> None:
    if slot.marks is None:
        slot.marks = []
    marks = slot.marks
    if action == "mark":
        marks.append((name, Counter(slot.writes)))
        _add(slot, name, 0)  # so that the transaction's end forgets the savepoint, too
        return
    # The latest of this name. Where it is unknown, so is what a rollback leaves.
    left: Counter[str] | None = None
    for at in reversed(range(len(marks))):
        if marks[at][0] == name:
            left = marks[at][1]
            del marks[at:]
            break
    if action == "back":
        # A session that ends may roll back to its savepoint, and no further.
        lost = slot.account.ledger.ending.get(get_ident())
        if lost is not None and left is not None and slot.writes:
            lost.update(slot.writes - left)
        slot.writes = Counter(left)
        if left is not None:
            marks.append((name, left))  # it is still there
    elif slot.writes is not None and is_transaction_open(slot.driver) is False:
        # Without a real BEGIN, SQLite commits with the outermost savepoint.
        slot.forget_writes()


def _note_write(slot: Slot, name: str, cursor: t.Any) -> None:
    if slot.temporary is not None and name.lower() in slot.temporary:
        return
    rows = cursor.rowcount
    if slot.counts_changes and (cursor.description is not None or rows < 0):
        # SQLite counts the rows of RETURNING as they are fetched, and sqlite3 those of
        # no statement that begins with WITH.
        slot.unsettled = name
        _add(slot, name, 0)
        return
    if not slot.tells and cursor.description is not None:
        note_rows_written(slot.driver)
    if rows != 0:
        _add(slot, name, max(rows, 1))  # -1: the driver does not know


def _add(slot: Slot, name: str, rows: int) -> None:
    writes = slot.writes
    if writes is None:
        writes = slot.writes = Counter()
    writes[name] = writes.get(name, 0) + rows
    slot.account.ledger.uncommitted.add(slot)


def settle(slot: Slot) -> None:
    """Count what SQLite's last RETURNING has changed, now that it was fetched."""
    name, slot.unsettled = slot.unsettled, None
    if name is not None and slot.driver is not None:
        rows = slot.driver.total_changes - slot.changes_before
        if rows > 0:
            _add(slot, name, rows)


def losing(slot: Slot, *, is_prepared: bool = False) -> Counter[str] | None:
    """Return what a rollback right now would lose, as far as that is certain.

    Nothing is claimed where the driver does not say whether a transaction is open.

    :param is_prepared: It is of a two-phase transaction, of which the driver knows
        nothing once it is prepared.
    """
    settle(slot)
    if not slot.writes:
        return None
    if not is_prepared and is_transaction_open(slot.driver) is not True:
        return None
    return +slot.writes  # a RETURNING that changed nothing has left a 0
