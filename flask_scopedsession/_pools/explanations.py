"""Errors of the pool and of SQLite, completed with the holders of its connections."""

from __future__ import annotations

import sys
import typing as t
from time import perf_counter

from .._format import count
from .._format import place
from .._format import UNRECORDED
from .._runtime.logs import fields
from .._runtime.logs import log
from .._scopes.scope import responsible
from .._settings.urls import is_private

if t.TYPE_CHECKING:
    from sqlalchemy import exc as sa_exc

    from ..snapshot import Holder
    from .account import PoolAccount
    from .account import TimedOut
    from .slot import Slot

#: Seconds between two log records about timeouts of the same pool.
_LOG_EVERY = 10.0

#: Holders that an error and a log record name.
_MOST = 5


def explain_timeout(
    error: sa_exc.TimeoutError, account: PoolAccount, timeout: TimedOut
) -> None:
    """Add the holders to a timeout's error; its message stays SQLAlchemy's."""
    error.holders = timeout.holders  # type: ignore[attr-defined]
    name, held = account.settings.name, len(timeout.holders)
    out = f"{count(held, 'connection')} {'is' if held == 1 else 'are'} checked out"
    first = f"Bind {name!r}: gave up after {timeout.waited:.1f} s; {out}, longest:"
    text = "\n".join((first, *_lines(timeout.holders)))
    if sys.version_info >= (3, 11):
        error.add_note(text)
    now = perf_counter()
    if now >= account.log_again_at:
        account.log_again_at = now + _LOG_EVERY
        who = responsible(timeout.scope)
        log.error(
            "connection pool timeout\n%s",
            text,
            extra=fields(
                "pool_timeout",
                bind=name,
                waited_s=round(timeout.waited, 6),
                timeouts_60s=sum(now - at < 60 for at in list(account.timeout_times)),
                used=held,
                endpoint=who.endpoint,
                command=who.command,
                job=who.job,
                holders=[holder.to_dict() for holder in timeout.holders[:_MOST]],
            ),
        )


def explain_lock(error: Exception, slot: Slot) -> None:
    """Add to SQLite's "database is locked" who may have it locked, and what to do."""
    if error.args != ("database is locked",):
        return
    # From Python 3.11 on.
    if getattr(error, "sqlite_errorname", None) == "SQLITE_BUSY_SNAPSHOT":
        why = (
            "another session has committed since this transaction read, so that it can"
            " no longer write. Roll back and repeat it;"
            " SCOPEDSESSION_SQLITE_BEGIN='IMMEDIATE' prevents this."
        )
    else:
        others = _lines(_others(slot)) or ["  none that is known in this process"]
        why = (
            "another session's transaction is in the way. Commit or roll back there"
            " first; if contexts are nested, before the inner one begins. SQLite waits"
            " for the busy timeout ('timeout' in connect_args, 5 s by default), but not"
            " if this transaction had read before it wrote:"
            " SCOPEDSESSION_SQLITE_BEGIN='IMMEDIATE' prevents that. Other connections"
            " in use:\n" + "\n".join(others)
        )
    error.args = (f"database is locked\nBind {slot.account.settings.name!r}: {why}",)


def _others(slot: Slot) -> list[Holder]:
    """Return who uses the same database as a connection that met a lock."""
    url = slot.account.settings.url
    others = [
        holder
        for account in t.cast("list[PoolAccount]", slot.account.ledger.accounts)
        # Another bind may have it, too.
        if account is slot.account
        or (account.settings.url == url and not is_private(url))
        for holder in account.holders()
        if account is not slot.account or holder.connection != slot.number
    ]
    # One that is in no transaction may be reading, which prevents a commit.
    return [each for each in others if each.in_transaction] or others


def _lines(holders: t.Sequence[Holder]) -> list[str]:
    lines = []
    for holder in holders[:_MOST]:
        lines.append(f"  {holder_line(holder)}")
    if any(holder.at_is == "view" for holder in holders[:_MOST]):
        lines.append(f"  {UNRECORDED}")
    return lines


def holder_line(holder: Holder) -> str:
    """Name a holder, its line, how long it has held its connection, and its state."""
    who = holder.who or holder.thread or "unknown"
    at = "at " if holder.at_is == "now" else ""
    where = f" {at}{place(holder.at, holder.at_is)}" if holder.at else ""
    held = [f"held {holder.held_s:.1f} s", *states_of(holder)]
    return f"{who}{where}, {', '.join(held)}"


def states_of(holder: Holder) -> list[str]:
    """Say what a holder does with its connection, and whether it leaked it."""
    if holder.running_s is not None:
        found = ["running a statement"]
    elif holder.in_transaction is None:
        found = ["transaction state unknown"]
    elif not holder.in_transaction:
        found = ["not in transaction"]
    elif holder.idle_in_transaction_s is not None:
        found = ["idle in transaction"]
    else:
        found = ["in transaction"]
    if holder.request_over:
        found.append("its request is over")
    if holder.thread_alive is False:
        found.append("its thread has ended")
    elif holder.request_over:
        found.append("its thread is alive")
    return found
