"""Log records about connections that are held for long, or leaked.

No thread polls. The holders of a pool are looked at as a connection is checked out, at
most every ten seconds. A return only takes a note, because the garbage collector may
return a connection inside any code; the next scope's end or checkout logs it.
"""

from __future__ import annotations

import typing as t
from time import perf_counter

from .._format import count
from .._runtime.logs import fields
from .._runtime.logs import log
from .._scopes.scope import described
from .._scopes.scope import responsible
from .explanations import holder_line

if t.TYPE_CHECKING:
    from .._scopes.ledger import Ledger
    from ..snapshot import Holder
    from .account import Noticed
    from .account import PoolAccount
    from .account import Returned

#: Seconds between two looks at a pool's holders, and between two records about long
#: holds of the same pool.
_EVERY = 10.0


def look_at_holders(account: PoolAccount, now: float) -> None:
    """Log what is held for long or leaked, each once.

    :param now: As :func:`time.perf_counter` has it.
    """
    longest = account.held_long_after
    # First, because a handler of the log may use this pool, too.
    account.look_at = now + min(_EVERY, longest)
    report_returned(account.ledger)
    before, account.noticed = account.noticed, set()
    since = {
        each.slot.number: each.since
        for each in account.out()
        if now - each.since > longest or each.scope.over or not each.scope.thread_alive
    }
    if not since:
        return
    holders = account.holders()
    new: dict[Noticed, Holder] = {}
    for holder in holders:
        began = since.get(holder.connection or 0)
        if began is None:
            continue
        noticed = began, holder.connection, holder.is_leaked
        if holder.is_leaked:
            account.noticed.add(noticed)
            # Not at the first look: an error's traceback may keep it for a moment.
            if noticed in before:
                _report_leak(account, holder, holders)
        elif holder.held_s > longest:
            if noticed in before:
                account.noticed.add(noticed)
            else:
                new[noticed] = holder
    # One record names the longest and counts all. Those that it comes too soon for are
    # still new at the next look.
    if new and _may_report_long(account, now):
        account.noticed.update(new)
        _report_held(account, next(iter(new.values())), holders)


def report_returned(ledger: Ledger) -> None:
    """Log the connections that were held for long and have been returned."""
    while ledger.returned_late:
        try:
            one: Returned = ledger.returned_late.popleft()
        except IndexError:
            return  # another thread was faster
        account = one.account
        if not _may_report_long(account, perf_counter()):
            continue
        at = None if one.stack is None else ledger.places.innermost(one.stack)
        who = responsible(one.scope)
        log.warning(
            "Bind %r: %s held a connection for %.1f s%s",
            account.settings.name,
            described(one.scope),
            one.held,
            f", checked out at {at}" if at else "",
            extra=fields(
                "held_long",
                bind=account.settings.name,
                held_s=round(one.held, 6),
                returned=True,
                held_long=_held_long(account, account.holders()),
                endpoint=who.endpoint,
                command=who.command,
                job=who.job,
                connection=one.connection,
                backend_pid=one.backend_pid,
                idle_in_transaction_s=None,
                at=at,
                at_is="checkout" if at else None,
            ),
        )


def _may_report_long(account: PoolAccount, now: float) -> bool:
    if now < account.log_long_at:
        return False
    account.log_long_at = now + _EVERY
    return True


def _held_long(account: PoolAccount, holders: t.Iterable[Holder]) -> int:
    return sum(holder.held_s > account.held_long_after for holder in holders)


def _report_held(
    account: PoolAccount, holder: Holder, holders: t.Sequence[Holder]
) -> None:
    many = _held_long(account, holders)
    read = holder.to_dict()
    log.warning(
        "Bind %r: %s. %s checked out for longer than %g s"
        " (SCOPEDSESSION_HELD_LONG_AFTER).",
        account.settings.name,
        holder_line(holder),
        f"{count(many, 'connection')} {'is' if many == 1 else 'are'}",
        account.held_long_after,
        extra=fields(
            "held_long",
            bind=account.settings.name,
            held_s=read["held_s"],
            returned=False,
            held_long=many,
            endpoint=read["endpoint"],
            command=read["command"],
            job=read["job"],
            connection=read["connection"],
            backend_pid=read["backend_pid"],
            idle_in_transaction_s=read["idle_in_transaction_s"],
            at=read["at"],
            at_is=read["at_is"],
        ),
    )


def _report_leak(
    account: PoolAccount, holder: Holder, holders: t.Sequence[Holder]
) -> None:
    about = "leaked", account.settings.name, holder.who, holder.at
    if not account.ledger.first_report(about):
        return
    read = holder.to_dict()
    log.warning(
        "Bind %r: a connection is leaked: %s. Close it, or use it in a 'with' block.",
        account.settings.name,
        holder_line(holder),
        extra=fields(
            "leaked",
            bind=account.settings.name,
            held_s=read["held_s"],
            leaked=sum(each.is_leaked for each in holders),
            endpoint=read["endpoint"],
            command=read["command"],
            job=read["job"],
            connection=read["connection"],
            backend_pid=read["backend_pid"],
            request_over=read["request_over"],
            thread_alive=read["thread_alive"],
            at=read["at"],
            at_is=read["at_is"],
        ),
    )
