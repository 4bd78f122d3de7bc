"""What a session has changed and not committed, so that a rollback would lose it."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import NestedTransaction
from sqlalchemy.orm import Session

from .._pools.drivers import is_transaction_open
from .._pools.slot import SLOT
from .._pools.slot import Slot
from .._pools.writes import settle
from .._scopes.lost_work import changed
from .._scopes.teardown import connections_of


def unsaved(session: Session) -> Counter[str] | None:
    """Count the changed objects by class, and the rows written by table.

    :return: ``None`` if nothing is noted of a connection that the session uses, since
        the extension neither tracks connections nor looks for lost work.
    """
    found = changed(session)
    for each in connections_of(session.get_transaction()):
        connection, transaction, is_own, *_ = each
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
