"""What a session has changed and not committed, so that a rollback would lose it."""

from __future__ import annotations

import typing as t
from collections import Counter
from collections.abc import Mapping

from sqlalchemy import NestedTransaction
from sqlalchemy.orm import Session

from .._pools.drivers import is_transaction_open
from .._pools.slot import SLOT
from .._pools.slot import Slot
from .._pools.writes import settle
from .._scopes.lost_work import changed


def unsaved(session: Session) -> Counter[str] | None:
    """Count the changed objects by class, and the rows written by table.

    :return: ``None`` if nothing is noted of a connection that the session uses, since
        the extension neither tracks connections nor looks for lost work.
    """
    found = changed(session)
    for connection, transaction, is_own, *_ in connections_of(session):
        slot: Slot | None = connection.connection.info.get(SLOT)
        if slot is None:
            return None
        settle(slot)
        # A session that joined a transaction with "rollback_only" ends nothing.
        if is_own and slot.writes and is_transaction_open(slot.driver) is not False:
            # One that joined it with a savepoint wrote what came after that.
            joined = isinstance(transaction, NestedTransaction) and slot.marks
            found += slot.writes - joined[-1][1] if joined else slot.writes
    return +found


def connections_of(session: Session) -> set[tuple[t.Any, ...]]:
    """Return the connections that a session uses, each with its transaction.

    Private: SQLAlchemy has no way to ask a session that does not begin a transaction.
    """
    known = getattr(session.get_transaction(), "_connections", None) or {}
    return set(known.values())


def described(changes: Mapping[str, int], names: Mapping[str, str]) -> str:
    """Return changes in words.

    :param names: The model of a table, by the table's name.
    """
    by_name: Counter[str] = Counter()
    for name, count in changes.items():
        by_name[names.get(name, name)] += count
    return ", ".join(f"{count} {name}" for name, count in sorted(by_name.items()))
