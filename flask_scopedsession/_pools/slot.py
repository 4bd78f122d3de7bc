"""What is known of one connection. It lives in the ``info`` of its pool entry."""

from __future__ import annotations

import typing as t
import weakref
from collections import Counter
from time import perf_counter
from types import SimpleNamespace

from .._runtime.stacks import RawStack
from .._scopes.many_statements import NOT_JUDGED
from .._scopes.scope import Scope
from .drivers import always_tells

if t.TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from .account import PoolAccount

#: Where a pool entry's ``info`` keeps the :class:`Slot`.
SLOT = "flask_scopedsession"


#: Stands for the scope of a connection that was never checked out through the pool.
NOBODY = SimpleNamespace(statements=0, texts=NOT_JUDGED)


class Slot:
    """What is known of one DBAPI connection, from its connect to its close.

    Times are as :func:`time.perf_counter` has them.
    """

    __slots__ = (
        "_entry",
        "abandoned",
        "account",
        "backend_pid",
        "changes_before",
        "counts_changes",
        "driver",
        "execution_options",
        "generation",
        "has_begun",
        "keeps_more",
        "marks",
        "moved",
        "number",
        "opened",
        "returned",
        "runner",
        "scope",
        "sender",
        "sent",
        "since",
        "stack",
        "statement",
        "tells",
        "temporary",
        "unsettled",
        "writes",
    )

    def __init__(
        self,
        account: PoolAccount,
        entry: ConnectionPoolEntry,
        driver: t.Any,
        number: int = 0,
        backend_pid: int | None = None,
    ) -> None:
        self.account = account
        self._entry = weakref.ref(entry)
        self.number = number
        self.driver = driver
        """The driver's connection; ``None`` once it is closed."""
        self.backend_pid = backend_pid
        self.generation = account.generation
        """How many times the pool had been replaced as this was opened."""
        self.tells = always_tells(driver)
        """The driver says whether it is in a transaction."""
        self.counts_changes = hasattr(driver, "total_changes")
        """It is SQLite's."""
        self.opened = perf_counter()
        self.returned = self.since = self.moved = self.opened
        """When it was last returned; checked out; began or ended a statement."""
        self.scope: Scope | None = None
        """The scope that has it checked out; ``None`` while it is idle."""
        self.runner: int | None = None
        """The thread whose statement runs on it now."""
        self.sender: t.Any = NOBODY
        """The scope whose statements are counted."""
        self.sent = 0
        """Statements that were counted since it was checked out."""
        self.keeps_more = False
        """Any of the next three is set."""
        self.statement: str | None = None
        """The text of the last one, if it may be shown."""
        self.execution_options: t.Mapping[str, t.Any] | None = None
        self.stack: RawStack | None = None
        """Where it was checked out, if that is recorded."""
        self.has_begun = False
        """It is in a transaction; known only of a driver that does not tell."""
        self.abandoned: t.Any = None
        """The driver's connection, if its scope ended during another thread's
        statement, which closes it."""
        self.writes: Counter[str] | None = None
        """Rows changed and not committed so far, by table."""
        self.marks: list[tuple[str, Counter[str]]] | None = None
        """The open savepoints, by name, and what ``writes`` was at each."""
        self.temporary: set[str] | None = None
        """Temporary tables that were created on it."""
        self.unsettled: str | None = None
        """A table that a RETURNING on SQLite may have changed."""
        self.changes_before = 0
        """SQLite's ``total_changes`` before the last statement that had an effect."""

    @property
    def is_out(self) -> bool:
        """Whether SQLAlchemy has it as checked out.

        An exception like Ctrl-C may have interrupted the account of its return.
        """
        entry = self._entry()
        return entry is not None and entry.in_use

    def proxied(self) -> t.Any:
        """Return the proxied connection that is checked out, if it can be found.

        ``fairy_ref`` is private to SQLAlchemy, which keeps no other reference to it.
        """
        reference = getattr(self._entry(), "fairy_ref", None)
        return None if reference is None else reference()

    def forget_writes(self) -> None:
        """Note that what was written is committed, or rolled back."""
        self.writes = self.marks = self.unsettled = None
        self.account.ledger.uncommitted.discard(self)


def info_of(connection: t.Any) -> dict[t.Any, t.Any] | None:
    """Return the ``info`` of a proxied connection.

    SQLAlchemy's stand-in for one, as an engine first connects, has none.
    """
    try:
        return t.cast("dict[t.Any, t.Any]", connection.info)
    except NotImplementedError:
        return None
