"""What is read of one session, which its own thread may be using meanwhile."""

from __future__ import annotations

import typing as t

from .._pools.slot import SLOT
from .._pools.slot import Slot
from .._scopes.teardown import connections_of

if t.TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ..snapshot._readings import SessionState


def slots_of(session: Session) -> list[Slot]:
    """Return what is known of the connections that a session holds."""
    try:
        slots: dict[Slot | None, None] = dict.fromkeys(
            connection.connection.info.get(SLOT)
            for connection, *_ in connections_of(session.get_transaction())
            if not connection.closed
        )
    except Exception:  # noqa: BLE001 - its own thread is changing it
        return []
    return [slot for slot in slots if slot is not None and slot.scope is not None]


def number_of(session: Session) -> int:
    """Return a session's number in its process, which SQLAlchemy gives it."""
    return t.cast(int, getattr(session, "hash_key", id(session)))


def session_state(
    session: Session, holds: bool, idle: bool, waits: bool
) -> SessionState:
    """Return a session's state.

    :param holds: It has a connection.
    :param idle: A transaction is open there, and no statement runs.
    :param waits: It waits for a connection.
    """
    begun = session.in_transaction()
    try:
        is_active = session.is_active or not begun
    except AttributeError:
        is_active = True  # its own thread has just ended the transaction
    # SQLAlchemy calls a session inactive, too, while it waits for a connection.
    if not is_active:
        return "begun" if waits else "needs rollback"
    if idle:
        return "idle in transaction"
    if holds:
        return "holding"
    return "begun" if begun else "idle"


def count_items(collection: t.Callable[[], t.Sized]) -> int | None:
    """Count what its own thread may be changing meanwhile."""
    for _ in range(3):
        try:
            return len(collection())
        except RuntimeError:
            continue
    return None
