"""What a pool's meters have measured, as a snapshot has it."""

from __future__ import annotations

import typing as t
from collections.abc import Iterable

from .._pools.account import Held
from .._pools.account import PoolAccount
from .._pools.meters import Busiest
from .._pools.meters import Meters
from .._pools.meters import Use
from .._pools.meters import use_of
from .._pools.tracked_pool import Limits
from .._scopes.scope import Responsible
from .._scopes.scope import responsible
from ..snapshot import BusyMinute
from ..snapshot import ViewUse
from ..snapshot._json import timestamp

#: At most so many views per pool by their time, and of the others by their statements.
MOST_VIEWS, MOST_SENDERS = 20, 5


def measured(
    account: PoolAccount, bounds: Limits, used: int, pending: int
) -> dict[str, t.Any]:
    """Return what was measured, since the start and over the last minute."""
    meters, blind = account.meters, account.listens_only
    # The maximum number of waiters is unknown for pools that cannot tell waiting from
    # connecting.
    counted = not blind and (bounds.max is not None or bool(bounds.unlimited))
    with meters.aggregated() as window:
        return {
            "checkouts_total": meters.waits.total().count,
            "connects_total": meters.created.total().count,
            "timeouts_total": None if blind else meters.timeouts.total().count,
            "invalidated_total": meters.invalidated.total().count,
            "wait_s": None if blind else meters.waits.total(),
            "hold_s": meters.held.total(),
            "create_s": meters.created.total(),
            "window_s": window,
            "wait_60s": None if blind else meters.waits.minute(),
            "hold_60s": meters.held.minute(),
            "create_60s": meters.created.minute(),
            "invalidated_60s": meters.invalidated.minute().count,
            "invalidated_age_s": meters.invalidated.total(),
            "used_max": meters.used.ever(used),
            "used_max_60s": meters.used.minute(used),
            "pending_max": meters.pending.ever(pending) if counted else None,
            "pending_max_60s": meters.pending.minute(pending) if counted else None,
            "busiest": _busiest(meters.busiest),
        }


def _busiest(found: Busiest | None) -> BusyMinute | None:
    if found is None:
        return None
    return BusyMinute(
        at=timestamp(found.at),
        span_s=found.span,
        checkouts=found.checkouts,
        held_s=found.held,
        waited_s=found.waited,
        timeouts=found.timeouts,
    )


def views(meters: Meters, out: Iterable[Held], now: float) -> tuple[ViewUse, ...]:
    """Return the views that used most of the pool's time, or sent most statements.

    Present holders are included.
    """
    with meters.aggregated() as window:
        ever, minute = meters.held.uses(), meters.held.uses_minute()
    for held in out:
        holder, seconds = responsible(held.scope), now - held.since
        for uses in (ever, minute):
            use_of(uses, holder).add(1, seconds, min(seconds, window), held.slot.sent)
    whole = sum(use.seconds for use in ever.values())
    whole_60s = sum(use.lately for use in minute.values())
    found: list[ViewUse] = []
    for who, use in ever.items():
        lately = minute.get(who) or Use()
        found.append(
            ViewUse(
                **Responsible(*(who or ()))._asdict(),
                checkouts_total=use.times,
                held_s=use.seconds,
                share=use.seconds / whole if whole else None,
                checkouts_60s=lately.times,
                held_60s=lately.lately,
                share_60s=lately.lately / whole_60s if whole_60s else None,
                statements_total=use.statements,
                statements_60s=lately.statements,
            )
        )
    found.sort(key=_most_share)
    # One that sends many short statements may have a small share.
    senders = sorted(found[MOST_VIEWS:], key=_most_statements)[:MOST_SENDERS]
    return (*found[:MOST_VIEWS], *senders)


def _most_share(view: ViewUse) -> float:
    return -max(view.share or 0.0, view.share_60s or 0.0)


def _most_statements(view: ViewUse) -> int:
    return -(view.statements_total or 0)
