"""The account of one bind's pool: connections, waiters, timeouts and durations."""

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
from flask import current_app
from inside import reader as _reader
from sqlalchemy import create_engine
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
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
from threads import in_thread
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession._pools import account as _account
from flask_scopedsession._pools import meters as _meters
from flask_scopedsession._pools import statements as _statements
from flask_scopedsession._pools import tracked_pool as _tracked_pool
from flask_scopedsession._pools.tracked_pool import pool_class
from flask_scopedsession._pools.tracked_pool import returns_are_seen


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


def account_of(db):
    return db._application_of(this_app()).accounts["default"]


def this_app():
    return current_app._get_current_object()


def engine_of(db, app):
    with app.app_context():
        return db.engine


def counts(db, *names):
    pool = pool_of(db)
    return tuple(getattr(pool, name) for name in names)


# Every pool class


@pytest.mark.parametrize(
    ("base", "size", "most", "unlimited", "idle_after"),
    [
        (QueuePool, 5, 15, False, 1),
        (NullPool, None, None, True, 0),
        (StaticPool, None, None, None, 1),
        (SingletonThreadPool, 5, None, None, 1),
        (AssertionPool, None, None, None, 1),
        (OwnPool, None, None, None, 0),
    ],
)
def test_one_checkout(make, base, size, most, unlimited, idle_after):
    """Used, idle and open are right for every class; what it cannot know is None."""
    db = make(poolclass=base)
    assert counts(db, "used", "idle", "open", "checkouts_total") == (0, 0, 0, 0)
    with db.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        assert counts(db, "used", "idle", "open") == (1, 0, 1)
        (holder,) = pool_of(db).holders
        assert holder.connection == 1
        assert holder.in_transaction
    assert counts(db, "used", "idle", "open") == (0, idle_after, idle_after)
    assert counts(db, "checkouts_total", "connects_total") == (1, 1)
    pool = pool_of(db)
    assert pool.pool_class == base.__name__
    assert (pool.size, pool.max, pool.unlimited) == (size, most, unlimited)
    assert pool.hold_s.count == 1
    assert pool.create_s.count == 1
    assert (pool.overflow is None) == (base is not QueuePool)


def test_two_at_once(make):
    """Overflow counts the connections beyond the size, and is never negative."""
    db = make(pool_size=1, max_overflow=2)
    assert pool_of(db).overflow == 0
    with db.engine.connect(), db.engine.connect():
        assert counts(db, "used", "idle", "open", "overflow") == (2, 0, 2, 1)
        assert pool_of(db).used_pct == pytest.approx(66.67, abs=0.01)
    assert counts(db, "used", "idle", "open", "overflow") == (0, 1, 1, 0)


class Labelled(QueuePool):
    """A pool class that has slots of its own."""

    __slots__ = ("label",)


def test_a_pool_class_with_slots(make):
    db = make(poolclass=Labelled, pool_size=2, max_overflow=0)
    db.engine.pool.label = "mine"
    with db.engine.connect():
        assert counts(db, "used", "open") == (1, 1)
    db.dispose()
    assert counts(db, "used", "open") == (0, 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_static_pool_shares_one_connection(make, order):
    """Several users of the one connection count as at most one holder."""
    db = make(poolclass=StaticPool)
    users = [db.engine.connect() for _ in order]
    assert counts(db, "used", "open", "idle") == (1, 1, 0)
    for number in order:
        users[number].close()
        used, opened, idle = counts(db, "used", "open", "idle")
        assert (opened, used + idle) == (1, 1)
    assert counts(db, "used", "open", "idle") == (0, 1, 1)
    assert counts(db, "checkouts_total", "connects_total") == (3, 1)
    with db.engine.connect():
        assert counts(db, "used", "open", "idle") == (1, 1, 0)


def test_a_shared_connection_has_one_holder(make):
    """It counts for the first of those that share it."""
    db = make(poolclass=StaticPool, connect_args={"check_same_thread": False})
    app = this_app()

    def share():
        with app.app_context(), db.engine.connect():
            return pool_of(db).holders[0].thread

    with db.engine.connect():
        assert in_thread(share, "second") == threading.current_thread().name


def test_singleton_pool_counts_a_thread_once(make):
    """SingletonThreadPool hands a thread the same connection twice."""
    db = make(poolclass=SingletonThreadPool)
    with db.engine.connect():
        with db.engine.connect():
            assert counts(db, "used", "open") == (1, 1)
        assert counts(db, "used", "open") == (1, 1)
    assert counts(db, "used", "open") == (0, 1)


def test_a_ready_made_pool(make_app, short_tmp):
    """A pool that the application made: its waits are unknown, not 0."""
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
            connection.exec_driver_sql("BEGIN")
            pool = pool_of(db)
            assert (pool.used, pool.open, pool.pool_class) == (1, 1, "QueuePool")
            assert pool.holders[0].in_transaction
        pool = pool_of(db)
        assert (pool.used, pool.idle, pool.hold_s.count) == (0, 1, 1)
        assert (pool.pending, pool.wait_s, pool.timeouts_total) == (None, None, None)


def test_a_ready_made_pool_that_was_used_before(make_app, short_tmp):
    """A connection that was opened earlier counts from its first checkout on."""
    plain = create_engine(f"sqlite:///{short_tmp}/x.db").pool
    early = plain.connect()
    plain.connect().close()
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_ENGINE_OPTIONS={"pool": plain})
    with app.app_context():
        with db.engine.connect() as connection:
            connection.exec_driver_sql("CREATE TABLE item (id INTEGER)")
            assert counts(db, "used", "open", "connects_total") == (1, 1, 0)
            assert pool_of(db).holders[0].connection == 1
        assert counts(db, "used", "idle", "open") == (0, 1, 1)
        early.close()
        with db.engine.connect(), db.engine.connect() as connection:
            assert counts(db, "used", "open") == (2, 2)
            connection.detach()
            assert counts(db, "used", "open") == (1, 1)
        with db.engine.connect() as connection:
            connection.invalidate()
            assert counts(db, "used") == (0,)


@pytest.mark.parametrize("fair", [True, False])
def test_a_tracked_class_looks_like_its_base(fair):
    """SQLAlchemy names loggers after a pool's class, and users read them."""
    found = pool_class(QueuePool, fair=fair, tracked=True)
    assert issubclass(found, QueuePool)
    assert pool_class(QueuePool, fair=fair, tracked=True) is found
    assert (found.__module__, found.__name__) == (QueuePool.__module__, "QueuePool")


@pytest.mark.parametrize(
    "base", [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool]
)
def test_sqlalchemy_still_returns_through_the_method_we_override(base):
    """If this fails, SQLAlchemy has changed: hold times now cost a listener."""
    assert returns_are_seen(base)
    assert "_do_return_conn" in vars(base)


def test_max_overflow_is_still_where_we_read_it(make):
    """If this fails, SQLAlchemy has changed: ``max`` is unknown."""
    assert pool_of(make(pool_size=3, max_overflow=4)).max == 7


@pytest.mark.parametrize(
    "options", [{"max_overflow": -1}, {"pool_size": 0}], ids=["overflow", "size"]
)
def test_unlimited(make, options):
    pool = pool_of(make(**options))
    assert (pool.max, pool.unlimited, pool.used_pct) == (None, True, None)


# What pools do not count


def test_detach(make):
    """A detached connection no longer counts, and its slot is free."""
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
    """What happens after detach() does not count as held."""
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
    """Connections of the old pool are still out, and closed when they are returned."""
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
    """A reference to a connection that was returned holds nothing."""
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


def test_a_connection_that_is_collected_during_a_reading(make):
    """A return by the collector while this thread reads cannot deadlock."""
    db = make()
    account = account_of(db)
    done = threading.Event()

    def read_while_collecting():
        with account.meters.aggregated():
            raw = db_engine.raw_connection()
            raw.cycle = raw
            del raw
            for _ in range(5000):  # so that a return has to aggregate, too
                account.meters.waits.add(0.0)
                account.meters.held.add((0.0, None, None, None, 0))
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
    account = account_of(db)
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


def test_an_interrupted_return(make, monkeypatch):
    """The pool has the connection back, and the next one to use it is its holder."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=0.2)
    app, account = this_app(), account_of(db)

    def interrupted(account, slot):
        raise KeyboardInterrupt

    def hold_and_leave():
        with app.app_context():
            connection = db.engine.connect()
            with monkeypatch.context() as patch:
                patch.setattr(type(account), "check_in", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    connection.close()

    in_thread(hold_and_leave, "before")
    assert counts(db, "used", "open", "holders") == (0, 1, ())
    with db.engine.connect():
        (holder,) = pool_of(db).holders
        assert holder.thread == threading.current_thread().name
    assert counts(db, "used", "open", "idle") == (0, 1, 1)


# Waiting


def test_waiters(make, make_app):
    """Waiting threads are listed with how long they wait, until they are served."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=10)
    app = this_app()
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


def test_connecting_is_not_waiting(make):
    """A thread waits only when it needs a connection that another thread holds."""
    db = make(pool_size=2, max_overflow=0)
    app = this_app()
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


@pytest.mark.parametrize("fair", [True, False])
def test_connecting_without_the_pool_is_not_waiting(make, fair):
    """As an application does that listens for notifications."""
    db = make(pool_size=1, max_overflow=0, SCOPEDSESSION_FAIR_POOL=fair)
    app, engine = this_app(), db.engine

    def want():
        with app.app_context():
            engine.connect().close()

    engine.dialect.connect(":memory:").close()
    held = in_thread(engine.connect)
    assert counts(db, "used", "pending", "pending_max") == (1, 0, 0)
    thread = threading.Thread(target=want)
    thread.start()
    wait_until(lambda: pool_of(db).pending == 1)
    held.close()
    thread.join(10)
    assert counts(db, "used", "pending", "pending_max") == (0, 0, 1)


def test_self_deadlock(make):
    """A thread that waits for a second connection while it holds the only one."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=10)
    app = this_app()
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
    """Once a view has nested checkouts, the line of each later checkout is recorded."""
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
    out = [engine_of(db, app).connect() for _ in range(2)]
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
    """Recording the line would cost each checkout more than the rest of the account."""
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


class Mark:
    """An object that is freed with the scope that refers to it."""


@pytest.mark.parametrize("first", ["connection", "context"])
def test_scopes_are_freed_without_the_collector(make_app, sqlite_url, first):
    """Whether the connection is returned before its context ends, or after."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    gc.collect()
    gc.disable()
    try:
        with app.app_context():
            connection = db.engine.connect()
            ((slot, scope, _),) = account_of(db).out()
            scope.thread = Mark()
            freed = weakref.ref(scope.thread)
            if first == "connection":
                connection.close()
        connection.close()
        del slot, scope, connection
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("what", ["connections", "sessions"])
def test_memory_of_each(make, what):
    """Less than 2 KiB for each open connection or session."""
    db = make(pool_size=500, max_overflow=0)
    app = this_app()
    engine = engine_of(db, app)
    contexts, opened = [], []

    def open_one():
        contexts.append(app.app_context())
        contexts[-1].push()
        opened.append(db.session() if what == "sessions" else engine.connect())

    def allocated():
        gc.collect()
        package = tracemalloc.Filter(True, f"{Path(_account.__file__).parents[1]}/*")
        lines = tracemalloc.take_snapshot().filter_traces([package])
        return sum(line.size for line in lines.statistics("lineno"))

    tracemalloc.start()
    try:
        contextvars.copy_context().run(open_one)
        before = allocated()
        for _ in range(200):
            contextvars.copy_context().run(open_one)
        each = (allocated() - before) / 200
    finally:
        tracemalloc.stop()
    if what == "sessions":
        assert len(db.snapshot().sessions) == 201
    else:
        assert pool_of(db).used == 201
    for one in opened:
        one.close()
    assert 200 < each < 2048


def test_a_leak_of_the_same_thread_is_no_self_deadlock(make):
    """An earlier context of this thread has leaked the connection."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=10)
    app = this_app()
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


def test_a_timeout_that_cannot_be_explained(make, caplog):
    """The application gets SQLAlchemy's error all the same."""
    db = make(pool_size=1, max_overflow=0, pool_timeout=0.05)

    def fail():
        raise ValueError("on purpose")

    account_of(db).describe = fail
    with (
        db.engine.connect(),
        pytest.raises(sa_exc.TimeoutError, match="QueuePool limit") as caught,
    ):
        db.engine.connect()
    assert caught.value.holders == ()
    assert "on purpose" in caplog.text
    assert counts(db, "timeouts_total", "pending") == (1, 0)


def test_wedged(make, monkeypatch):
    """A thread has waited for seconds, and nothing was returned for as long."""
    monkeypatch.setattr("flask_scopedsession._live.reader.WEDGED_AFTER", 0.1)
    db = make(pool_size=1, max_overflow=0, pool_timeout=10)
    app = this_app()
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


@pytest.mark.parametrize("base", [QueuePool, NullPool])
def test_fifty_threads(make, base):
    """Under 50 threads every sum is exact, and no reading is out of bounds."""
    # No overflow: SQLAlchemy's queue does not wake a waiter when one is closed.
    limits = {"pool_size": 8, "max_overflow": 0} if base is QueuePool else {}
    db = make(poolclass=base, **limits)
    app = this_app()
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
    if base is QueuePool:
        assert pool.idle == db.engine.pool.checkedin() - empty_slots(db.engine.pool)
        assert all(0 <= each.used <= 8 for each in seen)
    assert all(each.idle >= 0 and each.open >= 0 for each in seen)
    assert db.snapshot().sessions == ()


def empty_slots(pool):
    """Count the invalidated records that wait to be connected again."""
    return sum(record.dbapi_connection is None for record in pool._pool.queue)


def test_meters_stay_bounded(make):
    """Samples are aggregated as connections are returned, without any reader."""
    db = make()
    account = account_of(db)
    for _ in range(5000):
        db.engine.connect().close()
    assert len(account.meters.waits.samples) <= _meters.PENDING + 1
    assert len(account.meters.held.samples) <= _meters.PENDING + 1
    assert pool_of(db).checkouts_total == 5000


# Over time


@pytest.fixture
def clock(monkeypatch):
    """Let time pass when the test says so."""

    class Clock:
        ahead = 0.0

        def __call__(self):
            return time.perf_counter() + self.ahead

    clock = Clock()
    for module in (_account, _meters, _statements, _tracked_pool, _reader):
        monkeypatch.setattr(module, "perf_counter", clock)
    return clock


def test_the_last_minute(make, clock):
    """Older samples count only in the totals, and new ones in the last minute."""
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
    """How many were in use and how many waited is known for a minute."""
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


def test_the_first_checkout_after_a_quiet_time(make, clock):
    """It counts in the last minute once it was returned, too."""
    db = make()
    db.engine.connect().close()
    clock.ahead += 300
    db.engine.connect().close()
    found = pool_of(db)
    assert (found.wait_s.count, found.wait_60s.count) == (2, 1)
    assert (found.hold_s.count, found.hold_60s.count) == (2, 1)


def test_a_connection_that_was_held_for_minutes(make, clock):
    """It was in use in the last minute, although it was checked out before that."""
    db = make()
    connection = db.engine.connect()
    clock.ahead += 300
    connection.close()
    assert counts(db, "used", "used_max_60s") == (0, 1)
    clock.ahead += 80
    assert counts(db, "used_max", "used_max_60s") == (1, 0)


def test_a_pool_whose_waiters_are_unknown(make):
    """Unknown is not the same as none."""
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
    """By share of its time, connections that are still checked out included."""
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
    assert [v.statements_total for v in views] == [2, 0, 1]
    assert [v.statements_60s for v in views] == [2, 0, 1]
    assert [round(v.held_s) for v in views] == [6, 2, 0]
    clock.ahead += 94
    with app.app_context():
        views = pool_of(db).views
    assert [(v.endpoint, round(v.held_s), round(v.share_60s)) for v in views[:1]] == [
        ("keep", 96, 1)
    ]
    kept.pop().close()


def test_the_views_that_send_most_statements(make_app, clock):
    """They are among the views, also if 20 others take more time; by bind."""
    db = ScopedSession()
    binds = {"default": "sqlite://", "audit": "sqlite://"}
    app = make_app(db, SQLALCHEMY_BINDS=binds)

    def visit(number):
        with app.test_request_context(f"/{number}", method=f"SLOW{number}"):
            db.session.execute(text("SELECT 1"))
            clock.ahead += 3

    for number in range(30):
        visit(number)

    @app.get("/many")
    def many():
        for _ in range(7):
            db.session.execute(text("SELECT 1"))
            db.session.commit()
        db.get_session("audit").execute(text("SELECT 1"))
        views = {view.endpoint: view for view in db.snapshot().pools[1].views}
        return [views["many"].statements_total]

    # Those of the connection that is still out count as well.
    assert app.test_client().get("/many").json == [1]
    with app.app_context():
        views = db.snapshot().pools[0].views
    assert len(views) == 25
    assert [v.statements_total for v in views if v.endpoint == "many"] == [7]
    assert {v.statements_total for v in views if v.endpoint != "many"} == {1}


def test_a_session_opened_before_the_rule_is_matched(make_app):
    """As a server-side session interface does: the view is still known."""
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
