"""Settings and sights that are known to be bad, each in a sentence or two."""

from __future__ import annotations

import typing as t
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

from .._format import count
from .._format import duration
from .._format import percent
from ..snapshot import Holder
from ..snapshot import PoolSnapshot
from ..snapshot import PoolTimeout
from ..snapshot._json import Reading
from .demand import LEAST
from .demand import Measured

#: gunicorn's default for ``--timeout``, in seconds.
GUNICORN_TIMEOUT = 30.0

#: Before a worker is so old, in seconds, a pool may still come to be used.
_LONG = 3600.0


@dataclass(frozen=True, slots=True)
class AdviceWarning(Reading):
    """A setting or a sight that is known to be bad."""

    code: str
    text: str


class Sight(t.NamedTuple):
    """Everything that is known of the pools of one bind."""

    pools: Sequence[PoolSnapshot]
    """Of each live worker."""
    youngest_s: float
    measured: Measured | None
    worker_timeout_s: float | None
    """After so many seconds, the server kills a worker; ``None``: unknown."""
    worker_timeout_assumed: bool

    def total(self, name: str) -> int:
        """Add up one counter of all pools."""
        return sum(getattr(pool, name) or 0 for pool in self.pools)


def warnings(sight: Sight) -> tuple[AdviceWarning, ...]:
    """Return what is known to be bad about the pools of one bind."""
    return tuple(
        AdviceWarning(look.__name__.lstrip("_"), text)
        for look in (
            *(_self_deadlock, _held, _too_small, _pool_timeout, _null_pool),
            *(_churn, _unlimited, _oversized),
        )
        for text in look(sight)
    )


def _self_deadlock(sight: Sight) -> Iterator[str]:
    waiters = [w for p in sight.pools for w in p.waiters if w.self_deadlock]
    if waiters:
        views = ", ".join(sorted({w.endpoint or w.thread or "-" for w in waiters}))
        yield (
            f"{len(waiters)} times, a thread waits for a connection while it holds one"
            f" ({views}). With T threads that take 2 each, fewer than T + 1"
            " connections can block all of them for good: give the second"
            " connection up, or allow for it."
        )


def _held(sight: Sight) -> Iterator[str]:
    """Who holds for long is no load: a larger pool is eaten up as well."""
    stuck, views = stuck_holders(sight.pools)
    if stuck:
        yield (
            f"{_timed_out(sight)}, while {views} held connections for as long as they"
            " waited, or longer. A larger pool will not help: what is held so long"
            " runs out at any size. See 'flask pool-status'."
        )
    held = sight.total("held_long")
    if held:
        who = _views(h for p in sight.pools for h in p.holders)
        yield (
            f"{count(held, 'connection')} held for long right now (longest: {who}):"
            " not part of the measured load until returned."
        )


def _too_small(sight: Sight) -> Iterator[str]:
    stuck, _ = stuck_holders(sight.pools)
    if sight.total("timeouts_total") and not stuck:
        holds = [p.hold_s.p95 for p in sight.pools if p.hold_s.p95 is not None]
        short = f" 95 % of the holds took at most {duration(max(holds))}:" * bool(holds)
        users = _users(sight.pools)
        most = f" Most of its time went to {users}." * bool(users)
        yield f"{_timed_out(sight)}.{short} the pool is too small for its load.{most}"


def _users(pools: Sequence[PoolSnapshot]) -> str:
    """Name the views that had most of the pools' time, up to three."""
    seconds: dict[str, float] = {}
    for view in (view for pool in pools for view in pool.views):
        who = view.endpoint or view.command or "others"
        seconds[who] = seconds.get(who, 0.0) + view.held_s
    whole = sum(seconds.values())
    most = sorted(seconds, key=lambda who: -seconds[who])[:3]
    return ", ".join(f"{w} ({percent(seconds[w] / whole)})" for w in most if whole)


def stuck_holders(pools: Sequence[PoolSnapshot]) -> tuple[bool, str]:
    """Return whether checkouts timed out on long holds, and the views of those."""
    found = [timeout for pool in pools for timeout in pool.recent_timeouts]
    long = [h for timeout in found for h in _throughout(timeout)]
    held = sum(len(timeout.holders) for timeout in found)
    return bool(held) and 2 * len(long) > held, _views(long)


def _throughout(timeout: PoolTimeout) -> list[Holder]:
    """Return who held a connection all the time that another waited for it."""
    return [h for h in timeout.holders if h.held_s >= 0.95 * timeout.waited_s]


def _views(holders: t.Iterable[Holder]) -> str:
    """Name those who hold most, up to three."""
    seconds: Counter[str] = Counter()
    for holder in holders:
        who = holder.endpoint or holder.command or holder.thread or "unknown"
        seconds[who] += max(1, round(1000 * holder.held_s))
    return ", ".join(who for who, _ in seconds.most_common(3))


def _timed_out(sight: Sight) -> str:
    return f"{count(sight.total('timeouts_total'), 'checkout')} timed out"


def _pool_timeout(sight: Sight) -> Iterator[str]:
    limit = sight.worker_timeout_s
    longest = max((p.pool_timeout or 0.0 for p in sight.pools), default=0.0)
    if limit is not None and longest >= limit:
        whose = "gunicorn's default: --worker-timeout, if yours is another"
        said = f" ({whose})" if sight.worker_timeout_assumed else ""
        yield (
            f"pool_timeout is {longest:g} s, and the server may kill a worker after"
            f" {limit:g} s{said}: the worker dies before the pool can say who holds"
            " its connections."
        )


def _null_pool(sight: Sight) -> Iterator[str]:
    if sight.pools[0].pool_class != "NullPool":
        return
    checkouts = sight.total("checkouts_total")
    connecting = sum(p.create_s.sum for p in sight.pools)
    share = connecting / (connecting + sum(p.hold_s.sum for p in sight.pools) or 1.0)
    rate = sight.measured.rate if sight.measured else 0.0
    if checkouts >= LEAST and (share >= 0.1 or rate >= 1):
        yield (
            f"NullPool connects anew for each checkout: {percent(share)} of the time"
            f" went into {checkouts} connects, and nothing limits how many are open"
            " at once. Unless a pooler such as PgBouncer stands in front of the"
            " database, use QueuePool: take 'poolclass' out of the options."
        )


def _churn(sight: Sight) -> Iterator[str]:
    if sight.pools[0].size is None:
        return
    checkouts = sight.total("checkouts_total")
    connects = sight.total("connects_total") - sight.total("invalidated_total")
    took = max((p.create_s.p95 or 0.0 for p in sight.pools), default=0.0)
    if checkouts >= LEAST and connects >= 0.2 * checkouts:
        yield (
            f"{connects} connects for {checkouts} checkouts (95 % took at most"
            f" {duration(took)}): connections beyond pool_size are closed when they"
            " come back. Raise pool_size; or is pool_recycle very short?"
        )


def _unlimited(sight: Sight) -> Iterator[str]:
    if sight.pools[0].size is not None and sight.pools[0].unlimited:
        yield (
            "The pool may open any number of connections (max_overflow is -1, or"
            " pool_size 0): one slow view can take all that the database has."
        )


def _oversized(sight: Sight) -> Iterator[str]:
    most = min((p.max or 0 for p in sight.pools), default=0)
    used = max((max(p.used_max, p.used) for p in sight.pools), default=0)
    enough = sight.total("checkouts_total") >= LEAST and sight.youngest_s >= _LONG
    if enough and most >= 10 and most >= 4 * used:
        yield (
            f"No worker ever used more than {used} of the {most} connections that its"
            f" pool may open, in {duration(sight.youngest_s)} at least; the worst case"
            " has room for them all the same."
        )
