"""What requests meet when the database fails them, and what is left afterwards."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import threading
import time
from contextlib import contextmanager
from contextlib import ExitStack

import psycopg
import psycopg2
import pytest
import sqlalchemy
from databases import Backends
from postgres import fresh_database
from sqlalchemy import exc as sa_exc
from sqlalchemy import literal
from sqlalchemy import select
from traffic import add_views
from traffic import Base
from traffic import books
from traffic import check_books
from traffic import Crowd
from traffic import Row
from traffic import Tally
from traffic import together
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import PingError

pytestmark = pytest.mark.slow

on_servers = pytest.mark.databases("postgresql", "psycopg2", "mariadb")
on_postgresql = pytest.mark.databases("postgresql", "psycopg2")

#: Seconds that a connection may rest untested, in these tests; what has rested, and
#: what has not.
RESTED, FRESH = 0.05, 60.0


@contextmanager
def in_background(work):
    """Run ``work`` in a thread, and wait for its end."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
        assert not thread.is_alive()


def open_connections(app, count):
    """Let the pool open so many connections, and all of them rest."""
    tally = Tally()
    together(count, lambda: tally.get(app.test_client(), hold=0.3))
    assert tally.failures == tally.strange == []


def check(db, app, tally, url):
    """At the end: everything acknowledged is kept, and nothing leaked."""
    tally.audit(url)
    backends = Backends(url)
    return check_books(db, app, lambda: len(backends.ids()))


# Killed


@on_servers
def test_all_killed_while_they_rested(make, database, backends):
    """No request fails, though every connection of the pool is dead."""
    db, app = make(options={"pool_size": 5}, SCOPEDSESSION_PING_IDLE_AFTER=RESTED)
    open_connections(app, 5)
    assert len(backends.kill_all()) == 5
    time.sleep(2 * RESTED)
    tally = Tally()
    together(5, lambda: [tally.post(app.test_client()) for _ in range(4)])
    assert tally.failures == []
    check(db, app, tally, database.direct)


@on_servers
def test_all_killed_a_moment_ago(make, database, backends):
    """One request fails, not one for each connection of the pool."""
    db, app = make(options={"pool_size": 5}, SCOPEDSESSION_PING_IDLE_AFTER=FRESH)
    open_connections(app, 5)
    backends.kill_all()
    tally, client = Tally(), app.test_client()
    for _ in range(10):
        tally.post(client)
    assert len(tally.failures) == 1
    check(db, app, tally, database.direct)


@on_servers
def test_killed_in_a_transaction(make, database, backends):
    """That request fails, and its row is not there; nobody else notices."""
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=FRESH)
    tally, others = Tally(), Tally()

    def holder():
        with app.app_context():
            (pool,) = db.snapshot().pools
        found = [each for each in pool.holders if each.endpoint == "add"]
        return found and found[0].idle_in_transaction_s and found[0].backend_pid

    def visit(client, chance):
        others.get(client)

    with Crowd(app, 3, visit) as crowd:
        with in_background(lambda: tally.post(app.test_client(), hold=1.5)):
            backends.kill(wait_until(holder))
        crowd.wait_for(20)
    assert len(tally.failures) == 1
    assert others.failures == others.strange == []
    assert tally.post(app.test_client())
    with app.app_context():
        assert db.session.scalars(select(Row.token)).all() == tally.acknowledged
    check(db, app, tally, database.direct)


@on_servers
def test_a_view_that_tries_again(make, database, backends):
    """After rollback() the same session goes on, with another connection."""
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=FRESH)
    with app.app_context():
        db.session.add(Row(token="first"))
        db.session.flush()
        backends.kill_all()
        db.session.add(Row(token="second"))
        with pytest.raises(sa_exc.DBAPIError) as caught:
            db.session.commit()
        assert caught.value.connection_invalidated
        db.session.rollback()
        db.session.add(Row(token="third"))
        db.session.commit()
        assert db.session.scalars(select(Row.token)).all() == ["third"]
    check_books(db, app, lambda: len(backends.ids()))


@pytest.mark.databases("mariadb")
def test_the_server_ends_what_rests_for_long(make, database):
    """``wait_timeout`` of the server is no failed request."""
    db, app = make(
        connect_args={"init_command": "SET SESSION wait_timeout = 1"},
        SCOPEDSESSION_PING_IDLE_AFTER=RESTED,
    )
    tally, client = Tally(), app.test_client()
    backends = Backends(database.direct)
    assert tally.post(client)
    wait_until(lambda: not backends.ids())
    assert tally.post(client)
    check(db, app, tally, database.direct)


@pytest.mark.databases("pgbouncer")
def test_pgbouncer_drops_its_clients(make, database):
    """As when it is started again: no request fails where they had rested."""
    db, app = make(options={"pool_size": 3}, SCOPEDSESSION_PING_IDLE_AFTER=RESTED)
    open_connections(app, 3)
    console = psycopg2.connect(
        host=database.url.query["host"], port=6432, dbname="pgbouncer", user="postgres"
    )
    console.autocommit = True
    with console.cursor() as cursor:
        cursor.execute(f"KILL {database.url.database}")
        cursor.execute(f"RESUME {database.url.database}")
    console.close()
    time.sleep(2 * RESTED)
    tally = Tally()
    together(3, lambda: tally.post(app.test_client()))
    assert tally.failures == []
    tally.audit(database.direct)
    check_books(db, app)


@pytest.mark.databases("pgbouncer")
def test_killed_behind_pgbouncer(make, database, backends):
    """It replaces what rested, even a moment ago; a transaction dies with its own."""
    db, app = make(options={"pool_size": 3}, SCOPEDSESSION_PING_IDLE_AFTER=FRESH)
    open_connections(app, 3)
    assert backends.kill_all()
    tally = Tally()
    together(3, lambda: tally.post(app.test_client()))
    assert tally.failures == []
    with app.app_context():
        db.session.add(Row(token="lost"))
        db.session.flush()
        backends.kill_all()
        with pytest.raises(sa_exc.DBAPIError):
            db.session.scalar(select(Row.token))
        db.session.rollback()
        assert db.session.scalar(select(literal("goes on"))) == "goes on"
    tally.audit(database.direct)
    check_books(db, app)


@on_servers
def test_dispose_under_load(make, database):
    """No request fails, and no connection of the old pools stays open."""
    db, app = make(options={"pool_size": 3})
    tally = Tally()

    def visit(client, chance):
        (tally.get if chance.random() < 0.5 else tally.post)(client)

    with Crowd(app, 4, visit) as crowd:
        for _ in range(6):
            crowd.wait_for(8)
            db.dispose(app)
    assert tally.failures == []
    assert check(db, app, tally, database.direct) <= 4


# Between us and the server


@on_servers
def test_the_answer_to_commit_is_lost(make, database, proxy, proxied):
    """Nobody knows, so the request fails; the row is there once, or not at all."""
    db, app = make(proxied)
    tally, client = Tally(), app.test_client()
    assert tally.post(client)
    proxy.cut_answer_to(b"COMMIT")
    assert not tally.post(client)
    assert tally.post(client)
    (failure,) = tally.failures
    with app.app_context():
        kept = db.session.scalars(select(Row.token)).all()
    assert sorted(kept) == sorted([*tally.acknowledged, failure.token])
    check(db, app, tally, database.direct)


@on_servers
def test_cut_in_the_middle_of_an_answer(make, database, proxy, proxied):
    """An error, never half an answer; then all is well."""
    db, app = make(proxied)
    long = "x" * 50_000
    with app.app_context():
        assert db.session.scalar(select(literal(long))) == long
        proxy.cut_after(20_000)
        with pytest.raises(sa_exc.DBAPIError):
            db.session.scalar(select(literal(long)))
        db.session.rollback()
        assert db.session.scalar(select(literal(long))) == long
    check(db, app, Tally(), database.direct)


@on_servers
def test_cut_while_the_first_connection_is_made(
    make, make_app, database, proxied, proxy
):
    """The request fails, and what was half open is in nobody's books."""
    before, app_before = make()
    before.dispose(app_before)
    db = ScopedSession(model_class=Base)
    app = make_app(db, SQLALCHEMY_DATABASE_URI=proxied)
    add_views(app, db)
    mysql = database.url.get_backend_name() == "mysql"
    proxy.cut_answer_to(b"sql_mode" if mysql else b"version()")
    tally, client = Tally(), app.test_client()
    assert not tally.post(client)
    if sqlalchemy.__version__.startswith("2.0."):
        gc.collect()  # it leaves the connection open until then
    assert check(db, app, tally, database.direct) == 0
    assert tally.post(client)
    assert check(db, app, tally, database.direct) == 1


@on_servers
def test_refused(make, database, proxy, proxied):
    """Who needs a new connection fails at once, and the pool keeps its count."""
    db, app = make(
        proxied,
        options={"pool_size": 2, "max_overflow": 1, "pool_timeout": 5},
        SCOPEDSESSION_PING_IDLE_AFTER=RESTED,
    )
    tally, client = Tally(), app.test_client()
    proxy.refuse()
    for _ in range(5):
        assert tally.post(client)  # on the connection that is there
    proxy.cut()
    began = time.perf_counter()
    for _ in range(10):
        tally.post(client)
    assert time.perf_counter() - began < 5
    assert tally.kinds() == {"OperationalError": 10}
    assert books(db, app) == (0, 0, 0, 0)
    proxy.forward()
    together(3, lambda: tally.post(app.test_client(), hold=0.3))
    assert tally.kinds() == {"OperationalError": 10}
    check(db, app, tally, database.direct)


def driver_timeout(database):
    """Return the arguments with which a driver waits a second or two to connect."""
    if database.url.get_driver_name() == "pymysql":
        # Its connect_timeout ends when the socket is connected.
        return {"connect_timeout": 1, "read_timeout": 1}
    return {"connect_timeout": 2}


@on_servers
def test_never_an_answer_with_a_timeout(make, database, proxy, proxied):
    """Requests fail after the driver's or the pool's timeout, whichever is first."""
    db, app = make(
        proxied,
        options={"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.5},
        connect_args=driver_timeout(database),
    )
    db.dispose(app)
    proxy.hang()
    tally = Tally()
    began = time.perf_counter()
    together(4, lambda: tally.post(app.test_client()))
    assert time.perf_counter() - began < 10
    assert tally.kinds() == {"OperationalError": 2, "TimeoutError": 2}
    assert books(db, app) == (0, 0, 0, 0)
    proxy.forward()
    together(2, lambda: tally.post(app.test_client(), hold=0.3))
    assert len(tally.failures) == 4
    check(db, app, tally, database.direct)


@on_servers
@pytest.mark.parametrize("rested", [False, True], ids=["new", "rested"])
def test_never_an_answer_without_a_timeout(make, database, proxy, proxied, rested):
    """Others fail after the pool's timeout; who hangs goes on as it answers."""
    db, app = make(
        proxied,
        options={"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.3},
        SCOPEDSESSION_PING_IDLE_AFTER=RESTED,
    )
    if rested:
        time.sleep(2 * RESTED)
    else:
        db.dispose(app)
    proxy.hang()
    tally = Tally()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(in_background(lambda: tally.post(app.test_client())))
        wait_until(lambda: len(tally.failures) == 2)
        with app.app_context():
            (pool,) = db.snapshot().pools
        assert (pool.timeouts_total, pool.used) == (2, 0)
        proxy.forward()
    assert tally.kinds() == {"TimeoutError": 2}
    assert len(tally.acknowledged) == 2
    check(db, app, tally, database.direct)


@on_servers
def test_ping_gets_no_answer(make, database, proxy, proxied):
    """It gives up in time, and what it had begun ends when the server answers."""
    db, app = make(proxied)
    proxy.hang()
    began = time.perf_counter()
    with app.app_context(), pytest.raises(PingError, match="no answer within 0.2 s"):
        db.ping(timeout=0.2)
    assert time.perf_counter() - began < 2
    result = app.test_cli_runner().invoke(args=["db-ping", "--timeout", "0.2"])
    assert result.exit_code == 4
    proxy.forward()
    check(db, app, Tally(), database.direct)
    with app.app_context():
        assert db.ping() > 0


@on_servers
def test_silent_in_the_middle_of_a_request(make, database, proxy, proxied):
    """The request waits with the server, and ends as if nothing had been."""
    db, app = make(proxied)
    tally = Tally()
    with in_background(lambda: tally.post(app.test_client(), hold=0.3)):
        time.sleep(0.15)
        proxy.hang()
        time.sleep(0.3)
        assert tally.acknowledged == []
        proxy.forward()
    assert tally.failures == []
    check(db, app, tally, database.direct)


@on_servers
def test_a_slow_network(make, database, proxy, proxied):
    """Everything takes longer, and nothing else happens."""
    db, app = make(proxied)
    proxy.delay(0.02)
    tally = Tally()
    together(4, lambda: tally.post(app.test_client()))
    with app.app_context():
        assert db.ping() > 0.04
    assert tally.failures == []
    check(db, app, tally, database.direct)


# A file


@pytest.mark.databases("sqlite")
def test_a_locked_file(make, database):
    """Who cannot write in time fails; who reads does not; nothing leaks."""
    db, app = make(connect_args={"timeout": 0.1})
    tally, client = Tally(), app.test_client()
    other = sqlite3.connect(database.url.database)
    other.execute("BEGIN IMMEDIATE")
    assert not tally.post(client)
    assert tally.get(client)
    other.rollback()
    other.close()
    assert tally.post(client)
    assert tally.kinds() == {"OperationalError": 1}
    tally.audit(database.url)
    check_books(db, app)


# The server itself


@pytest.fixture
def frail(frail_server, database):
    """A database on the server that may crash, for the driver that was selected."""
    with fresh_database(frail_server.url) as url:
        yield url.set(drivername=database.url.drivername)


@on_postgresql
@pytest.mark.parametrize("how", ["stopped", "a backend dies"])
def test_restarted_under_load(make, frail, frail_server, how):
    """Only requests that began before it was back fail; we need no restart."""
    db, app = make(frail, options={"pool_size": 4}, SCOPEDSESSION_PING_IDLE_AFTER=FRESH)
    backends = Backends(frail)
    tally = Tally()

    def visit(client, chance):
        if not (tally.get if chance.random() < 0.3 else tally.post)(client):
            time.sleep(0.05)

    with Crowd(app, 6, visit) as crowd:
        crowd.wait_for(40)
        if how == "stopped":
            frail_server.crash()
            wait_until(lambda: len(tally.failures) > 6)
            frail_server.start()
        else:
            # Its postmaster ends all others then, and starts them again.
            os.kill(next(iter(backends.ids())), signal.SIGKILL)
            wait_until(lambda: tally.failures)
            wait_until(lambda: accepts(frail))
        back = time.perf_counter()
        crowd.wait_for(100)
    assert tally.failures
    assert [each for each in tally.failures if each.began > back] == []
    check(db, app, tally, frail)


def accepts(url):
    """Whether the server takes connections."""
    try:
        Backends(url).ids()
    except sa_exc.OperationalError:
        return False
    return True


@on_postgresql
def test_restarted_while_all_rested(make, frail, frail_server):
    """No request fails."""
    db, app = make(
        frail, options={"pool_size": 3}, SCOPEDSESSION_PING_IDLE_AFTER=RESTED
    )
    tally = Tally()
    together(3, lambda: tally.post(app.test_client(), hold=0.2))
    frail_server.crash()
    frail_server.start()
    together(3, lambda: tally.post(app.test_client(), hold=0.2))
    assert tally.failures == []
    check(db, app, tally, frail)


def full(connect):
    """Whether the server takes no further connection."""
    try:
        connect()
    except psycopg.OperationalError as error:
        return "too many clients" in str(error)
    return False


@on_postgresql
def test_max_connections(make, frail, frail_server):
    """Who finds a connection in the pool is served; others are told; then all are."""
    db, app = make(
        frail,
        options={"pool_size": 5, "max_overflow": 0, "pool_timeout": 5},
        SCOPEDSESSION_PING_IDLE_AFTER=RESTED,
    )
    open_connections(app, 2)
    tally = Tally()
    url = frail_server.url.set(drivername="postgresql").render_as_string(False)
    with ExitStack() as stack:
        while not full(lambda: stack.enter_context(psycopg.connect(url))):
            pass
        together(4, lambda: tally.post(app.test_client(), hold=0.5))
        assert len(tally.acknowledged) == 2
        assert tally.kinds() == {"OperationalError": 2}
        result = app.test_cli_runner().invoke(args=["db-ping"])
        assert result.exit_code == 4
        assert "too many clients" in result.output
        assert books(db, app)[0] == books(db, app)[2] == 0
        assert tally.post(app.test_client())
    together(5, lambda: tally.post(app.test_client(), hold=0.3))
    assert len(tally.failures) == 2
    assert check(db, app, tally, frail) == 5
