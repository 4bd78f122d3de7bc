"""Settings and observations that are known to be bad, each in a sentence or two."""

from __future__ import annotations

import typing as t
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence

from .._format import ASYNC
from .._format import count
from .._format import duration
from .._format import percent
from ..snapshot import Holder
from ..snapshot import PoolSnapshot
from ..snapshot import PoolTimeout
from .demand import LEAST
from .report import AdviceWarning
from .report import Measured
from .report import ServerTotal

#: gunicorn's default for ``--timeout``, in seconds.
GUNICORN_TIMEOUT = 30.0

#: The age in seconds from which a worker's pool counts as oversized.
_LONG = 3600.0


class BindView(t.NamedTuple):
    """Everything that is known of the pools of one bind."""

    pools: Sequence[PoolSnapshot]
    """One of each live worker."""
    youngest_s: float
    """The age of the youngest worker."""
    measured: Measured | None
    worker_timeout_s: float | None
    """Seconds after which the server kills a worker; ``None``: unknown."""
    worker_timeout_assumed: bool

    def total(self, name: str) -> int:
        """Add up one counter of all pools."""
        return sum(getattr(pool, name) or 0 for pool in self.pools)


def warnings(view: BindView) -> tuple[AdviceWarning, ...]:
    """Return what is known to be bad about the pools of one bind."""
    return tuple(
        AdviceWarning(check.__name__.lstrip("_"), text)
        for check in (
            *(_self_deadlock, _held, _too_small, _pool_timeout, _null_pool),
            *(_churn, _unlimited, _oversized),
        )
        for text in check(view)
    )


def _self_deadlock(view: BindView) -> Iterator[str]:
    waiters = [w for p in view.pools for w in p.waiters if w.self_deadlock]
    if waiters:
        views = ", ".join(sorted({w.endpoint or w.thread or "-" for w in waiters}))
        yield (
            f"{count(len(waiters), 'thread')} waiting for a connection while holding"
            f" one ({views}). If T threads check out 2 connections each, fewer than"
            " T + 1 connections can block all of them for good. Use one connection, or"
            " make the pool large enough."
        )


def _held(view: BindView) -> Iterator[str]:
    """Long-held connections show a slow or stuck view, and would fill any pool."""
    stuck, views = stuck_holders(view.pools)
    if stuck:
        yield (
            f"{_timed_out(view)}, while {views} held connections for as long as they"
            " waited, or longer. A larger pool will not help: connections held for so"
            " long exhaust a pool of any size. See 'flask pool-status'."
        )
    held = view.total("held_long")
    if held:
        views = _views(h for p in view.pools for h in p.holders)
        yield (
            f"{count(held, 'connection')} held for long right now (longest: {views})."
            " A hold is part of the measured load only after the connection is"
            " returned."
        )


def _too_small(view: BindView) -> Iterator[str]:
    stuck, _ = stuck_holders(view.pools)
    if view.total("timeouts_total") and not stuck:
        holds = [p.hold_s.p95 for p in view.pools if p.hold_s.p95 is not None]
        short = f" 95 % of the holds took at most {duration(max(holds))}:" * bool(holds)
        users = _users(view.pools)
        most = f" Most of its time went to {users}." * bool(users)
        yield f"{_timed_out(view)}.{short} the pool is too small for its load.{most}"


def _users(pools: Sequence[PoolSnapshot]) -> str:
    """Name the views that used most of the pools' time, up to three."""
    seconds: dict[str, float] = {}
    for view in (view for pool in pools for view in pool.views):
        name = view.who or "others"
        seconds[name] = seconds.get(name, 0.0) + view.held_s
    whole = sum(seconds.values())
    most = sorted(seconds, key=lambda name: -seconds[name])[:3]
    return ", ".join(f"{n} ({percent(seconds[n] / whole)})" for n in most if whole)


def stuck_holders(pools: Sequence[PoolSnapshot]) -> tuple[bool, str]:
    """Return whether checkouts timed out on stuck holders, and the views of those."""
    found = [timeout for pool in pools for timeout in pool.recent_timeouts]
    long = [h for timeout in found for h in _throughout(timeout)]
    held = sum(len(timeout.holders) for timeout in found)
    return bool(held) and 2 * len(long) > held, _views(long)


def _throughout(timeout: PoolTimeout) -> list[Holder]:
    """Return the holders that held a connection all the time that another waited."""
    return [h for h in timeout.holders if h.held_s >= 0.95 * timeout.waited_s]


def _views(holders: t.Iterable[Holder]) -> str:
    """Name the views that hold most, up to three."""
    milliseconds: Counter[str] = Counter()
    for holder in holders:
        name = holder.who or holder.thread or "unknown"
        milliseconds[name] += max(1, round(1000 * holder.held_s))
    return ", ".join(name for name, _ in milliseconds.most_common(3))


def _timed_out(view: BindView) -> str:
    return f"{count(view.total('timeouts_total'), 'checkout')} timed out"


def _pool_timeout(view: BindView) -> Iterator[str]:
    limit = view.worker_timeout_s
    longest = max((p.pool_timeout or 0.0 for p in view.pools), default=0.0)
    if limit is not None and longest >= limit:
        default = "gunicorn's default; pass --worker-timeout if yours differs"
        said = f" ({default})" if view.worker_timeout_assumed else ""
        yield (
            f"pool_timeout is {longest:g} s, and the server may kill a worker after"
            f" {limit:g} s{said}: the worker is killed before the pool can report the"
            " holders of its connections."
        )


def _null_pool(view: BindView) -> Iterator[str]:
    if view.pools[0].pool_class != "NullPool":
        return
    checkouts = view.total("checkouts_total")
    connecting = sum(p.create_s.sum for p in view.pools)
    share = connecting / (connecting + sum(p.hold_s.sum for p in view.pools) or 1.0)
    rate = view.measured.rate if view.measured else 0.0
    if checkouts >= LEAST and (share >= 0.1 or rate >= 1):
        remedy = "use QueuePool: remove 'poolclass' from the options."
        if view.pools[0].bind.startswith(ASYNC):
            remedy = "use 'db.session', whose connections are pooled."
        yield (
            f"NullPool opens a connection for each checkout: {percent(share)} of the"
            f" time went into {checkouts} connects, and nothing limits how many are"
            " open at a time. Unless there is a pooler such as PgBouncer in front of"
            f" the database, {remedy}"
        )


def _churn(view: BindView) -> Iterator[str]:
    if view.pools[0].size is None:
        return
    checkouts = view.total("checkouts_total")
    connects = view.total("connects_total") - view.total("invalidated_total")
    took = max((p.create_s.p95 or 0.0 for p in view.pools), default=0.0)
    if checkouts >= LEAST and connects >= 0.2 * checkouts:
        yield (
            f"{connects} connects for {checkouts} checkouts (95 % took at most"
            f" {duration(took)}): connections beyond pool_size are closed when they"
            " are returned. Raise pool_size, unless pool_recycle is very short."
        )


def _unlimited(view: BindView) -> Iterator[str]:
    if view.pools[0].size is not None and view.pools[0].unlimited:
        yield (
            "The pool may open any number of connections (max_overflow is -1, or"
            " pool_size 0): one slow view can exhaust the database's connections."
        )


def _oversized(view: BindView) -> Iterator[str]:
    most = min((p.max or 0 for p in view.pools), default=0)
    used = max((max(p.used_max, p.used) for p in view.pools), default=0)
    enough = view.total("checkouts_total") >= LEAST and view.youngest_s >= _LONG
    if enough and most >= 10 and most >= 4 * used:
        yield (
            f"No worker used more than {used} of the {most} connections that its pool"
            f" may open, in at least {duration(view.youngest_s)}, but the worst case"
            " counts them all."
        )


def over_limit(total: ServerTotal) -> Iterator[AdviceWarning]:
    """Yield a warning if the workers may open more than their server accepts."""
    most = total.limit
    if most is None:
        return
    if total.now is None or total.now > most:
        opens = "any number of" if total.now is None else f"{total.now}"
        yield AdviceWarning(
            "over_limit",
            f"{count(total.workers, 'worker')} may open {opens} connections, but the"
            f" server accepts only {most} and refuses more.",
        )
    if total.has_advice and total.advised is not None and total.advised > most:
        each = most // total.workers
        yield AdviceWarning(
            "advice_over_limit",
            f"With the advice, the workers may open {total.advised}, which is also more"
            f" than the server accepts. It has room for {each} per worker, for all"
            " binds together. Run fewer workers, hold connections for a shorter time,"
            " or use a pooler such as PgBouncer.",
        )
