"""The account of a process's connections, against every kind of pool."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import time
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from inside import Owner
from inside import reader as _reading
from sqlalchemy import create_engine
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import insert
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.pool import AssertionPool
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import Pool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool import StaticPool
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession._pools import account as _ledger
from flask_scopedsession._pools import meters as _meters
from flask_scopedsession._pools import tracked_pool as _pool
from flask_scopedsession._pools.tracked_pool import returns_are_seen
from flask_scopedsession._pools.tracked_pool import tracked


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)


class OwnPool(Pool):
    """A pool of the user's own, with nothing but what SQLAlchemy demands."""

    def _do_get(self):
        return self._create_connection()

    def _do_return_conn(self, record):
        record.close()

    def recreate(self):
        return type(self)(
            self._creator,
            _dispatch=self.dispatch,
            dialect=self._dialect,
            reset_on_return=self._reset_on_return,
        )

    def dispose(self):
        pass


@pytest.fixture
def make(make_app, sqlite_url):
    """Make an extension in a pushed context, with the given engine options."""
    pushed = []

    def make(**options):
        config = {k: options.pop(k) for k in list(options) if k.isupper()}
        db = ScopedSession()
        app = make_app(
            db,
            SQLALCHEMY_DATABASE_URI=sqlite_url,
            SQLALCHEMY_ENGINE_OPTIONS=options,
            **config,
        )
        context = app.app_context()
        context.push()
        pushed.append(context)
        return db

    yield make
    for context in reversed(pushed):
        context.pop()


def pool_of(db):
    (pool,) = db.snapshot().pools
    return pool


def counts(db, *names):
    pool = pool_of(db)
    return tuple(getattr(pool, name) for name in names)


# Every pool class


@pytest.mark.parametrize(
    ("pool_class", "size", "most", "unlimited", "idle_after"),
    [
        (QueuePool, 5, 15, False, 1),
        (NullPool, None, None, True, 0),
        (StaticPool, None, None, None, 1),
        (SingletonThreadPool, 5, None, None, 1),
        (AssertionPool, None, None, None, 1),
        (OwnPool, None, None, None, 0),
    ],
)
def test_one_checkout(make, pool_class, size, most, unlimited, idle_after):
    """Used, idle and open are right for every class; what it cannot know is None."""
    db = make(poolclass=pool_class)
    assert counts(db, "used", "idle", "open", "checkouts_total") == (0, 0, 0, 0)
    with db.engine.connect() as connection:
        connection.execute(select(1))
        assert counts(db, "used", "idle", "open") == (1, 0, 1)
        (holder,) = pool_of(db).holders
        assert holder.connection == 1
        assert holder.in_transaction
    assert counts(db, "used", "idle", "open") == (0, idle_after, idle_after)
    assert counts(db, "checkouts_total", "connects_total") == (1, 1)
    pool = pool_of(db)
    assert pool.pool_class == pool_class.__name__
    assert (pool.size, pool.max, pool.unlimited) == (size, most, unlimited)
    assert pool.hold_s.count == 1
    assert pool.create_s.count == 1
    assert (pool.overflow is None) == (pool_class is not QueuePool)


def test_two_at_once(make):
    """Overflow is what is open beyond the size, and never negative."""
    db = make(pool_size=1, max_overflow=2)
    assert pool_of(db).overflow == 0
    with db.engine.connect(), db.engine.connect():
        assert counts(db, "used", "idle", "open", "overflow") == (2, 0, 2, 1)
        assert pool_of(db).used_pct == pytest.approx(66.67, abs=0.01)
    assert counts(db, "used", "idle", "open", "overflow") == (0, 1, 1, 0)


def test_static_pool_shares_one_connection(make):
    """Two who use the one connection are two holders, however they leave."""
    db = make(poolclass=StaticPool)
    first, second = db.engine.connect(), db.engine.connect()
    assert counts(db, "used", "open", "idle") == (2, 1, 0)
    second.close()
    assert counts(db, "used", "open") == (1, 1)
    first.close()
    assert counts(db, "used", "open", "idle") == (0, 1, 1)


def test_singleton_pool_counts_a_thread_once(make):
    """SingletonThreadPool hands a thread the same connection twice."""
    db = make(poolclass=SingletonThreadPool)
    with db.engine.connect():
        with db.engine.connect():
            assert counts(db, "used", "open") == (1, 1)
        assert counts(db, "used", "open") == (1, 1)
    assert counts(db, "used", "open") == (0, 1)


def test_a_ready_made_pool(make_app, short_tmp):
    """A user's own pool object is listened to; its waits are unknown, not 0."""
    plain = create_engine(f"sqlite:///{short_tmp}/x.db").pool
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///ignored.db",
        SQLALCHEMY_ENGINE_OPTIONS={"pool": plain},
    )
    with app.app_context():
        assert db.engine.pool is plain
        with db.engine.connect() as connection:
            connection.execute(select(1))
            pool = pool_of(db)
            assert (pool.used, pool.open, pool.pool_class) == (1, 1, "QueuePool")
            assert pool.holders[0].in_transaction
        pool = pool_of(db)
        assert (pool.used, pool.idle, pool.hold_s.count) == (0, 1, 1)
        assert (pool.pending, pool.wait_s, pool.timeouts_total) == (None, None, None)


def test_tracked_class_looks_like_its_base():
    """SQLAlchemy names loggers after a pool's class, and users read them."""
    found = tracked(QueuePool)
    assert issubclass(found, QueuePool)
    assert tracked(QueuePool) is found
    assert (found.__module__, found.__name__) == (QueuePool.__module__, "QueuePool")


@pytest.mark.parametrize(
    "pool_class", [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool]
)
def test_sqlalchemy_still_returns_through_the_method_we_override(pool_class):
    """If this fails, SQLAlchemy has changed: hold times now cost a listener."""
    assert returns_are_seen(pool_class)
    assert "_do_return_conn" in vars(pool_class)


def test_max_overflow_is_still_where_we_read_it(make):
    """If this fails, SQLAlchemy has changed: ``max`` is unknown."""
    assert pool_of(make(pool_size=3, max_overflow=4)).max == 7


@pytest.mark.parametrize(
    "options", [{"max_overflow": -1}, {"pool_size": 0}], ids=["overflow", "size"]
)
def test_unlimited(make, options):
    pool = pool_of(make(**options))
    assert (pool.max, pool.unlimited, pool.used_pct) == (None, True, None)


# What pools lose count of


def test_detach(make):
    """A detached connection is nobody's any more, and its slot is free."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=0.2)
    connection = db.engine.connect()
    connection.detach()
    assert counts(db, "used", "open") == (0, 0)
    with db.engine.connect():
        assert counts(db, "used", "open") == (1, 1)
    connection.close()
    assert counts(db, "used", "idle", "open") == (0, 1, 1)
    assert pool_of(db).hold_s.count == 2


def test_detach_ends_the_hold(make):
    """The time after detach() is no time of the pool."""
    db = make()
    connection = db.engine.connect()
    connection.detach()
    time.sleep(0.05)
    connection.close()
    assert pool_of(db).hold_s.max < 0.05


@pytest.mark.parametrize("soft", [False, True])
def test_invalidate(make, soft):
    db = make()
    raw = db.engine.raw_connection()
    raw.invalidate(soft=soft)
    if soft:
        assert counts(db, "used", "open") == (1, 1)
        raw.close()
        assert counts(db, "used", "idle", "open") == (0, 1, 1)
    else:
        assert counts(db, "used", "idle", "open") == (0, 0, 0)
        assert pool_of(db).invalidated_total == 1
    with db.engine.connect():
        assert counts(db, "used", "open", "connects_total") == (1, 1, 2)


def test_dispose_with_connections_out(make):
    """What is out of a disposed pool is still out, and closed as it returns."""
    db = make(pool_size=2)
    first, second = db.engine.connect(), db.engine.connect()
    db.engine.dispose()
    assert counts(db, "used", "open", "idle") == (2, 2, 0)
    with db.engine.connect():
        assert counts(db, "used", "open", "idle") == (3, 3, 0)
    first.close()
    second.close()
    assert counts(db, "used", "open", "idle") == (0, 1, 1)


def test_dispose_closes_what_is_idle(make):
    db = make()
    db.engine.connect().close()
    db.engine.dispose()
    assert counts(db, "used", "open", "idle") == (0, 0, 0)


def test_the_pool_after_dispose_is_tracked(make):
    db = make(pool_size=1, max_overflow=0, pool_timeout=0.05)
    db.engine.dispose()
    with db.engine.connect():
        with pytest.raises(sa_exc.TimeoutError):
            db.engine.connect()
        assert counts(db, "used", "timeouts_total", "checkouts_total") == (1, 1, 1)


def test_a_raw_connection_kept_after_close(make):
    """A closed connection object that somebody still has holds nothing."""
    db = make()
    raw = db.engine.raw_connection()
    raw.close()
    time.sleep(0.05)
    assert counts(db, "used", "idle") == (0, 1)
    assert pool_of(db).hold_s.max < 0.05
    del raw
    assert pool_of(db).hold_s.count == 1


def test_a_connection_that_is_collected(make, caplog):
    """The garbage collector returns it; the account agrees."""
    db = make()
    gc.disable()
    try:
        raw = db.engine.raw_connection()
        raw.cycle = raw
        del raw
        assert counts(db, "used", "idle") == (1, 0)
    finally:
        gc.enable()
    gc.collect()
    assert counts(db, "used", "idle") == (0, 1)
    assert pool_of(db).hold_s.count == 1


def test_collected_in_the_middle_of_a_reading(make):
    """A return by the collector while this thread reads cannot deadlock."""
    db = make()
    account = db._states[next(iter(db._states))].ledger.pools["default"]
    done = threading.Event()

    def read_while_collecting():
        with account.meters.at_rest():
            raw = db_engine.raw_connection()
            raw.cycle = raw
            del raw
            for _ in range(5000):  # so that the meters want folding, too
                account.meters.waits.add(0.0)
                account.meters.held.add((0.0, Owner(None, None)))
            gc.collect()
            db_engine.connect().close()
        done.set()

    db_engine = db.engine
    thread = threading.Thread(target=read_while_collecting, daemon=True)
    thread.start()
    assert done.wait(10)
    thread.join(10)
    assert pool_of(db).hold_s.count == 5002


def test_a_failed_connect(make):
    """A checkout that fails leaves nobody waiting and nothing held."""
    db = make()

    @event.listens_for(db.engine, "do_connect")
    def refuse(*args):
        raise sa_exc.OperationalError("connect", {}, Exception("refused"))

    with pytest.raises(sa_exc.OperationalError):
        db.engine.connect()
    assert counts(db, "used", "open", "pending", "checkouts_total") == (0, 0, 0, 0)
    account = db._states[next(iter(db._states))].ledger.pools["default"]
    assert account.waiting == {}


def test_an_interrupted_checkout(make):
    """KeyboardInterrupt in the middle of a checkout leaves the account whole."""
    db = make()

    @event.listens_for(db.engine, "checkout")
    def interrupt(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.engine.connect()
    event.remove(db.engine, "checkout", interrupt)
    assert counts(db, "used", "open", "pending") == (0, 0, 0)
    with db.engine.connect():
        assert counts(db, "used", "open") == (1, 1)


# Waiting


def test_waiters(make, make_app):
    """Who waits is seen with how long, and counted no more once served."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=10)
    app = next(iter(db._states))
    held = db.engine.connect()

    def want():
        with app.app_context():
            db.engine.connect().close()

    with ThreadPoolExecutor(3, thread_name_prefix="eager") as threads:
        futures = [threads.submit(want) for _ in range(3)]
        wait_until(lambda: pool_of(db).pending == 3)
        pool = pool_of(db)
        assert {waiter.thread for waiter in pool.waiters} == {
            f"eager_{number}" for number in range(3)
        }
        assert pool.max_wait_s == max(waiter.waited_s for waiter in pool.waiters)
        assert not any(waiter.self_deadlock for waiter in pool.waiters)
        held.close()
        for future in futures:
            future.result(10)
    pool = pool_of(db)
    assert (pool.pending, pool.max_wait_s, pool.checkouts_total) == (0, 0.0, 4)
    assert pool.wait_s.max > 0


def test_a_checkout_in_passing_is_no_wait(make):
    """Only who needs somebody else's connection waits; connecting is no wait."""
    db = make(pool_size=2, max_overflow=0)
    app = next(iter(db._states))
    connecting, go_on = threading.Event(), threading.Event()

    @event.listens_for(db.engine, "do_connect")
    def slow(*args):
        connecting.set()
        assert go_on.wait(10)

    def want():
        with app.app_context():
            db.engine.connect().close()

    thread = threading.Thread(target=want)
    thread.start()
    assert connecting.wait(10)
    assert counts(db, "pending", "used") == (0, 0)
    go_on.set()
    thread.join(10)


def test_self_deadlock(make):
    """A thread that waits for a second connection while it holds the only one."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=10)
    app = next(iter(db._states))
    release = threading.Event()

    def want_two():
        with app.app_context(), db.engine.connect() as first:
            watcher = threading.Thread(
                target=lambda: release.wait(10) and first.invalidate()
            )
            watcher.start()
            db.engine.connect().close()
            watcher.join(10)

    thread = threading.Thread(target=want_two)
    thread.start()
    wait_until(lambda: pool_of(db).pending == 1)
    (waiter,) = pool_of(db).waiters
    assert waiter.self_deadlock
    release.set()
    thread.join(10)


def test_both_places_of_a_self_deadlock(make_app, sqlite_url):
    """Once a view was seen to nest, it is known where it took the first one."""
    db = ScopedSession()
    app = make_app(
        db,
        import_name=__name__,
        flask_options={"root_path": str(Path(__file__).parent)},
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 3, "max_overflow": 0},
    )

    @app.get("/nested")
    def nested():
        first = db.engine.connect()
        second = db.engine.connect()
        second.close()
        first.close()
        return ""

    client = app.test_client()
    client.get("/nested")
    out = [db._states[app].engines["default"].connect() for _ in range(2)]
    thread = threading.Thread(target=client.get, args=("/nested",))
    thread.start()
    with app.app_context():
        wait_until(lambda: pool_of(db).pending == 1)
        (waiter,) = pool_of(db).waiters
    out.pop().close()
    thread.join(10)
    out.pop().close()
    first = nested.__code__.co_firstlineno + 2
    assert waiter.self_deadlock
    assert waiter.holds_from == f"test_account.py:{first} nested"
    assert waiter.at == f"test_account.py:{first + 1} nested"


def test_a_view_that_does_not_nest_is_not_recorded(make_app, sqlite_url):
    """That would cost each checkout more than all else that the ledger does."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)

    @app.get("/")
    def view():
        for _ in range(2):
            with db.engine.connect() as connection:
                stack = db.snapshot().pools[0].holders[0].stack
                connection.close()
        return str(stack)

    assert app.test_client().get("/").text == "None"
    assert db._states[app].ledger.pools["default"].nesting == set()


class Mark:
    """Something of a hold's; it is freed with it."""


def test_owners_and_holds_free_each_other(make_app, sqlite_url):
    """Without the garbage collector, whoever closes first."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    gc.collect()
    gc.disable()
    try:
        found = []
        with app.app_context():
            connection = db.engine.connect()
            (hold,) = db._states[app].ledger.pools["default"].holds.values()
            hold.stack = Mark()
            found.append(weakref.ref(hold.stack))
            del hold
            connection.close()
            connection = db.engine.connect()
            (hold,) = db._states[app].ledger.pools["default"].holds.values()
            hold.stack = Mark()
            found.append(weakref.ref(hold.stack))
            del hold
        connection.close()
        del connection
        pool_meters = db._states[app].ledger.pools["default"].meters
        with pool_meters.at_rest():
            pass  # folded, so that no sample refers to the owner
        assert [each() for each in found] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("what", ["connections", "sessions"])
def test_what_is_noted_of_each_is_small(make, what):
    """Less than 2 KiB of memory for each that is open."""
    db = make(pool_size=500, max_overflow=0)
    app = next(iter(db._states))
    engine = db._states[app].engines["default"]
    contexts, opened = [], []

    def open_one():
        contexts.append(app.app_context())
        contexts[-1].push()
        opened.append(db.session() if what == "sessions" else engine.connect())

    def allocated():
        gc.collect()
        package = tracemalloc.Filter(True, f"{Path(_ledger.__file__).parent}/*")
        lines = tracemalloc.take_snapshot().filter_traces([package])
        return sum(line.size for line in lines.statistics("lineno"))

    tracemalloc.start()
    try:
        contextvars.copy_context().run(open_one)
        before = allocated()
        for _ in range(300):
            contextvars.copy_context().run(open_one)
        each = (allocated() - before) / 300
    finally:
        tracemalloc.stop()
    if what == "sessions":
        assert len(db.snapshot().sessions) == 301
    else:
        assert pool_of(db).used == 301
    for one in opened:
        one.close()
    assert 200 < each < 2048


def test_a_leak_of_the_same_thread_is_no_self_deadlock(make):
    """What an earlier request of this thread leaked is that request's fault."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=10)
    app = next(iter(db._states))
    kept = []

    def leak_then_want():
        with app.app_context():
            kept.append(db.engine.connect())
        with app.app_context():
            db.engine.connect().close()

    thread = threading.Thread(target=leak_then_want)
    thread.start()
    wait_until(lambda: pool_of(db).pending == 1)
    (waiter,) = pool_of(db).waiters
    kept.pop().close()
    thread.join(10)
    assert not waiter.self_deadlock


def test_timeouts(make, caplog):
    """A timeout is counted, remembered with the holders, and explained."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=0.05)
    with db.engine.connect() as holder:
        holder.execute(select(1))
        with pytest.raises(sa_exc.TimeoutError) as caught:
            db.engine.connect()
        for _ in range(6):
            with pytest.raises(sa_exc.TimeoutError):
                db.engine.connect()
    error = caught.value
    assert "QueuePool limit of size 1 overflow 0 reached" in str(error)
    assert error.code == "3o7r"
    assert [one.thread for one in error.holders] == ["MainThread"]
    if sys.version_info >= (3, 11):
        assert "MainThread" in error.__notes__[0]
    pool = pool_of(db)
    assert (pool.timeouts_total, pool.timeouts_60s) == (7, 7)
    assert len(pool.recent_timeouts) == 5
    latest = pool.recent_timeouts[-1]
    assert latest.waited_s >= 0.05
    assert latest.holders[0].held_s > 0.3
    # One record, however many time out at once.
    assert len([r for r in caplog.records if "pool timeout" in r.message]) == 1


def test_wedged(make, monkeypatch):
    """Somebody has waited for seconds, and nothing came back for as long."""
    monkeypatch.setattr("flask_scopedsession._live.reader.WEDGED_AFTER", 0.1)
    db = make(pool_size=1, max_overflow=0, pool_timeout=10)
    app = next(iter(db._states))
    held = db.engine.connect()
    assert db.snapshot().state == "saturated"

    def want():
        with app.app_context():
            db.engine.connect().close()

    thread = threading.Thread(target=want)
    thread.start()
    wait_until(lambda: db.snapshot().state == "wedged")
    assert pool_of(db).wedged
    held.close()
    thread.join(10)
    assert db.snapshot().state == "ok"


# Many threads


@pytest.mark.parametrize("pool_class", [QueuePool, NullPool])
def test_fifty_threads(make, pool_class):
    """Under 50 threads every sum is exact, and no reading is out of bounds."""
    # No overflow: SQLAlchemy's queue does not wake a waiter when one is closed.
    limits = {"pool_size": 8, "max_overflow": 0} if pool_class is QueuePool else {}
    db = make(poolclass=pool_class, **limits)
    app = next(iter(db._states))
    start = threading.Barrier(51, timeout=30)
    seen = []

    def work(number):
        start.wait()
        for turn in range(20):
            with app.app_context():
                db.session.execute(select(1))
                if (number + turn) % 7 == 0:
                    db.session().invalidate()
                elif (number + turn) % 5 == 0:
                    db.session.connection().detach()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        seen.append(pool_of(db))
        time.sleep(0.001)
    pool = pool_of(db)
    assert counts(db, "used", "pending", "checkouts_total") == (0, 0, 1000)
    assert pool.hold_s.count == pool.wait_s.count == 1000
    assert pool.open == pool.idle
    if pool_class is QueuePool:
        assert pool.idle == db.engine.pool.checkedin() - empty_slots(db.engine.pool)
        assert all(0 <= each.used <= 8 for each in seen)
    assert all(each.idle >= 0 and each.open >= 0 for each in seen)
    assert db.snapshot().sessions == ()


def empty_slots(pool):
    """Count the invalidated records that wait to be connected again."""
    return sum(record.dbapi_connection is None for record in pool._pool.queue)


def test_meters_stay_bounded(make):
    """Samples are folded as they gather, also when nobody ever looks."""
    db = make()
    account = db._states[next(iter(db._states))].ledger.pools["default"]
    for _ in range(5000):
        db.engine.connect().close()
    assert len(account.meters.waits.fresh) <= _meters.UNFOLDED + 1
    assert len(account.meters.held.fresh) <= _meters.UNFOLDED + 1
    assert pool_of(db).checkouts_total == 5000


# Who holds


def test_holder_of_a_view(make_app, sqlite_url):
    """Endpoint, rule, method, thread, session, and the line where it is now."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        flask_options={"root_path": __file__.rpartition("/")[0]},
    )
    found = {}

    @app.post("/orders/<int:id>")
    def show(id):
        db.session.execute(select(1))
        found["line"] = sys._getframe().f_lineno + 1
        found["snapshot"] = db.snapshot()
        return ""

    app.test_client().post("/orders/42?token=secret")
    (holder,) = found["snapshot"].pools[0].holders
    (session,) = found["snapshot"].sessions
    for one in (holder, session):
        assert (one.endpoint, one.method) == ("show", "POST")
        assert one.rule == "/orders/<int:id>"
        assert one.thread == threading.current_thread().name
        assert one.thread_alive
        assert one.command is None
    assert holder.at == f"test_account.py:{found['line']} show"
    assert holder.session == session.session
    assert holder.request_over is False
    assert session.connections == (holder.connection,)
    assert session.state == "idle in transaction"
    assert holder.idle_in_transaction_s is not None
    assert holder.sql is None


def test_holder_whose_request_is_over(make_app, sqlite_url):
    """A leaked connection is named by where its view is defined."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        flask_options={"root_path": __file__.rpartition("/")[0]},
    )
    kept = []

    @app.get("/leak")
    def leak():
        kept.append(db.engine.connect())
        return ""

    app.test_client().get("/leak")
    with app.app_context():
        (holder,) = db.snapshot().pools[0].holders
    line = leak.__code__.co_firstlineno
    assert (holder.endpoint, holder.at) == ("leak", f"test_account.py:{line} leak")
    assert holder.request_over
    kept.pop().close()


def test_holder_with_stacks(make_app, sqlite_url):
    """With SCOPEDSESSION_STACKS it is named by where it was checked out."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SCOPEDSESSION_STACKS=True,
        flask_options={"root_path": __file__.rpartition("/")[0]},
    )
    kept = []

    def take():
        kept.append(db.engine.connect())

    @app.get("/leak")
    def leak():
        take()
        return ""

    app.test_client().get("/leak")
    with app.app_context():
        (holder,) = db.snapshot().pools[0].holders
    line = take.__code__.co_firstlineno + 1
    assert holder.at == f"test_account.py:{line} take"
    assert holder.stack[0] == holder.at
    assert holder.stack[1].endswith(" leak")
    kept.pop().close()


def test_a_dead_thread_is_no_other_thread(make_app, sqlite_url):
    """A dead holder is not taken for a new thread that got its ident."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        flask_options={"root_path": __file__.rpartition("/")[0]},
    )
    kept = []

    def leak():
        context = app.app_context()
        context.push()
        kept.append((context, db.engine.connect()))

    thread = threading.Thread(target=leak, name="first")
    thread.start()
    thread.join(10)
    stay = threading.Event()

    def elsewhere():
        stay.wait(10)

    others = [threading.Thread(target=elsewhere) for _ in range(5)]
    for other in others:
        other.start()
    assert thread.ident in {other.ident for other in others}
    with app.app_context():
        (holder,) = db.snapshot().pools[0].holders
    stay.set()
    for other in others:
        other.join(10)
    assert (holder.thread, holder.thread_alive, holder.at) == ("first", False, None)
    kept.pop()[1].close()


@pytest.mark.parametrize("show", [False, True])
def test_statement_text_only_on_demand(make, show):
    """SQL is shown when asked for, its parameters never."""
    db = make(SCOPEDSESSION_SHOW_SQL=show)
    with db.engine.connect() as connection:
        connection.execute(text("SELECT :secret"), {"secret": "canary"})
        (holder,) = pool_of(db).holders
    assert holder.sql == ("SELECT ?" if show else None)


def test_transaction_states(make):
    """Begun, in a transaction, committed: as SQLAlchemy has it."""
    db = make()
    session = db.session()

    def state():
        return db.snapshot().sessions[0].state

    assert state() == "idle"
    session.begin()
    assert state() == "begun"
    session.execute(select(1))
    assert state() == "idle in transaction"
    session.commit()
    assert state() == "idle"
    session.execute(select(1))
    session.rollback()
    assert state() == "idle"


def test_needs_rollback(make):
    """After a flush that failed, until somebody rolls back."""
    db = make()
    Base.metadata.create_all(db.engine)
    db.session.execute(insert(Thing).values(id=1))
    db.session.add(Thing(id=1))
    with pytest.raises(sa_exc.IntegrityError):
        db.session.flush()
    assert db.snapshot().sessions[0].state == "needs rollback"
    db.session.rollback()
    assert db.snapshot().sessions[0].state == "idle"


def test_autocommit_is_no_transaction(make):
    db = make(isolation_level="AUTOCOMMIT")
    with db.engine.connect() as connection:
        connection.execute(select(1))
        (holder,) = pool_of(db).holders
        assert holder.in_transaction is False
        assert holder.idle_in_transaction_s is None


def test_core_transactions(make):
    db = make()
    with db.engine.connect() as connection:
        assert pool_of(db).holders[0].in_transaction is None
        connection.execute(select(1))
        assert pool_of(db).holders[0].in_transaction is True
        connection.commit()
        assert pool_of(db).holders[0].in_transaction is False


def test_a_running_statement_is_not_idle(make):
    """While a statement runs its holder is in a transaction, and not idle."""
    db = make()
    app = next(iter(db._states))
    running, finish = threading.Event(), threading.Event()

    def wait():
        running.set()
        finish.wait(10)
        return 1

    @event.listens_for(db.engine, "connect")
    def add_function(connection, record):
        connection.create_function("wait", 0, wait)

    def work():
        with app.app_context():
            db.session.execute(text("SELECT wait()"))

    thread = threading.Thread(target=work)
    thread.start()
    assert running.wait(10)
    (holder,) = pool_of(db).holders
    (session,) = db.snapshot().sessions
    finish.set()
    thread.join(10)
    assert holder.in_transaction
    assert holder.idle_in_transaction_s is None
    assert session.state == "holding"


def test_sessions_of_no_scope(make):
    """A session of ``db.sessionmaker`` is seen while it has a connection."""
    db = make()
    with db.sessionmaker() as session:
        session.execute(select(1))
        (found,) = db.snapshot().sessions
        assert (found.scope, found.state) == ("none", "idle in transaction")
    assert db.snapshot().sessions == ()


def test_counts_of_a_session(make):
    db = make()
    Base.metadata.create_all(db.engine)
    db.session.add_all([Thing(), Thing(), Thing()])
    db.session.commit()
    things = db.session.scalars(select(Thing)).all()
    db.session.delete(things[0])
    db.session.add(Thing())
    (found,) = db.snapshot().sessions
    assert (found.new, found.deleted, found.identity) == (1, 1, 3)
    db.session.rollback()


def test_a_command_is_named(make_app, sqlite_url):
    """What a command holds bears the command's name, without its arguments."""
    import click

    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    found = []

    @app.cli.command("nightly")
    @click.argument("secret")
    def nightly(secret):
        db.session.execute(select(1))
        found.append(db.snapshot())

    app.test_cli_runner().invoke(args=["nightly", "canary"], catch_exceptions=False)
    (holder,) = found[0].pools[0].holders
    assert holder.command == "nightly"
    assert found[0].sessions[0].command == "nightly"
    assert "canary" not in str(found[0].to_dict())


# Over time


@pytest.fixture
def clock(monkeypatch):
    """Let time pass for the ledger when the test says so."""

    class Clock:
        ahead = 0.0

        def __call__(self):
            return time.perf_counter() + self.ahead

    clock = Clock()
    for module in (_ledger, _meters, _pool, _reading):
        monkeypatch.setattr(module, "perf_counter", clock)
    return clock


def test_the_last_minute(make, clock):
    """What is older counts since the start only; a new wait is of the new minute."""
    db = make()
    db.engine.connect().close()
    clock.ahead += 300
    connection = db.engine.connect()
    found = pool_of(db)
    assert (found.wait_s.count, found.wait_60s.count) == (2, 1)
    assert (found.create_s.count, found.create_60s.count) == (1, 0)
    assert (found.hold_s.count, found.hold_60s.count) == (1, 0)
    connection.close()
    found = pool_of(db)
    assert (found.hold_s.count, found.hold_60s.count) == (2, 1)
    assert 60 <= found.window_s <= 70


def test_a_burst_that_is_over(make, clock):
    """How much was in use, and how many waited, is known a minute later."""
    db = make(pool_size=2, max_overflow=0, pool_timeout=10)
    engine = db.engine
    out = [engine.connect() for _ in range(2)]
    waiters = [threading.Thread(target=lambda: engine.connect().close()) for _ in "ab"]
    for thread in waiters:
        thread.start()
    wait_until(lambda: pool_of(db).pending == 2)
    for connection in out:
        connection.close()
    for thread in waiters:
        thread.join(10)
    clock.ahead += 30
    found = pool_of(db)
    assert (found.used, found.used_max_60s, found.used_max) == (0, 2, 2)
    assert (found.pending, found.pending_max_60s, found.pending_max) == (0, 2, 2)
    clock.ahead += 60
    found = pool_of(db)
    assert (found.used_max_60s, found.used_max) == (0, 2)
    assert (found.pending_max_60s, found.pending_max) == (0, 2)


def test_a_pool_whose_waiters_are_unknown(make):
    """It says so, rather than that there were none."""
    db = make(poolclass=OwnPool)
    db.engine.connect().close()
    assert (pool_of(db).pending_max, pool_of(db).pending_max_60s) == (None, None)
    assert pool_of(db).used_max == 1


def test_nobody_waits_for_a_pool_without_limit(make):
    db = make(poolclass=NullPool)
    out = [db.engine.connect() for _ in range(3)]
    assert (pool_of(db).used_max, pool_of(db).pending_max) == (3, 0)
    for connection in out:
        connection.close()


def test_the_views_that_use_the_pool(make_app, clock):
    """By share of its time; who holds a connection right now counts, too."""
    db = ScopedSession()
    app = make_app(db)
    kept = []

    @app.get("/quick")
    def quick():
        db.session.execute(text("SELECT 1"))
        return ""

    @app.get("/slow/<name>")
    def slow(name):
        db.session.execute(text("SELECT 1"))
        clock.ahead += 3
        return ""

    @app.get("/keep")
    def keep():
        kept.append(db.engine.connect())
        return ""

    client = app.test_client()
    for path in ("/quick", "/slow/a", "/slow/b", "/keep"):
        client.get(path)
    clock.ahead += 2
    with app.app_context():
        views = pool_of(db).views
    assert [(v.endpoint, v.method, v.rule, v.checkouts_total) for v in views] == [
        ("slow", "GET", "/slow/<name>", 2),
        ("keep", "GET", "/keep", 1),
        ("quick", "GET", "/quick", 1),
    ]
    assert [round(v.share, 2) for v in views] == [0.75, 0.25, 0.0]
    assert [round(v.held_s) for v in views] == [6, 2, 0]
    clock.ahead += 94
    with app.app_context():
        views = pool_of(db).views
    assert [(v.endpoint, round(v.held_s), round(v.share_60s)) for v in views[:1]] == [
        ("keep", 96, 1)
    ]
    kept.pop().close()


def test_a_session_opened_before_the_rule_is_matched(make_app):
    """As an interface for server-side sessions does; its view is known all the same."""
    db = ScopedSession()
    app = make_app(db)

    class Interface(type(app.session_interface)):
        def open_session(self, app, request):
            db.session.execute(text("SELECT 1"))
            return super().open_session(app, request)

    app.session_interface = Interface()

    @app.get("/view")
    def view():
        return ""

    assert app.test_client().get("/view").status_code == 200
    with app.app_context():
        (found,) = pool_of(db).views
    assert (found.endpoint, found.rule) == ("view", "/view")


def test_how_old_connections_were_when_they_died(make, clock):
    db = make()
    with db.engine.connect() as connection:
        clock.ahead += 600
        connection.invalidate()
    found = pool_of(db)
    assert (found.invalidated_total, found.invalidated_60s) == (1, 1)
    assert round(found.invalidated_age_s.max) == 600
    clock.ahead += 70
    assert pool_of(db).invalidated_60s == 0


def test_how_long_a_statement_has_been_running(make):
    """Told while it runs; idle before and after."""
    db = make()
    inside, go_on = threading.Event(), threading.Event()

    def work():
        with engine.connect() as connection:
            connection.connection.driver_connection.create_function(
                "wait", 0, lambda: (inside.set(), go_on.wait(10)) and 1
            )
            connection.execute(text("SELECT wait()"))

    engine = db.engine
    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    (holder,) = pool_of(db).holders
    assert holder.running_s > 0
    assert holder.idle_in_transaction_s is None
    go_on.set()
    thread.join(10)
    assert pool_of(db).holders == ()
