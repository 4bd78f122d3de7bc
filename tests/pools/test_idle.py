"""Connections that were idle for long are tested before use, on a real PostgreSQL."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import create_engine
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import text

from flask_scopedsession import ScopedSession

BACKEND = text("SELECT pg_backend_pid()")


@pytest.fixture
def make(make_app, pg_url):
    def make(**config):
        db = ScopedSession()
        config.setdefault("SQLALCHEMY_ENGINE_OPTIONS", {"pool_size": 3})
        return db, make_app(db, SQLALCHEMY_DATABASE_URI=pg_url, **config)

    return make


@pytest.fixture
def kill(pg_url):
    """Terminate backends, and return once they are gone."""
    engine = create_engine(pg_url, isolation_level="AUTOCOMMIT")

    def kill(*pids):
        with engine.connect() as connection:
            for pid in pids:
                connection.execute(text(f"SELECT pg_terminate_backend({pid}, 5000)"))

    yield kill
    engine.dispose()


def backend(db, app):
    with app.app_context():
        return db.session.scalar(BACKEND)


def test_a_backend_killed_while_its_connection_was_idle(make, kill):
    """The next request gets another connection, and does not notice."""
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=0.05)
    dead = backend(db, app)
    kill(dead)
    time.sleep(0.06)
    assert backend(db, app) != dead
    with app.app_context():
        pool = db.snapshot().pools[0]
    assert (pool.invalidated_total, pool.open, pool.used) == (1, 1, 0)


def test_its_neighbours_are_tested_too(make, kill):
    """Once one is found dead, the others are tested, however briefly idle."""
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=1)
    with app.app_context():
        connections = [db.engine.connect() for _ in range(3)]
        first, second, third = (each.scalar(BACKEND) for each in connections)
        connections[1].close()
        connections[2].close()
        time.sleep(1)
        connections[0].close()
        kill(first, second)
        # The second is tested after its long idle time, and the first because of it.
        assert db.session.scalar(BACKEND) == third
        db.session.remove()
        for _ in range(6):
            assert db.session.scalar(BACKEND) not in (first, second)
            db.session.remove()
        assert db.snapshot().pools[0].invalidated_total == 2


def test_all_dead_at_once(make, kill):
    """More dead connections than attempts: still no failed request."""
    db, app = make(
        SCOPEDSESSION_PING_IDLE_AFTER=0.05,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 8},
    )
    with app.app_context():
        connections = [db.engine.connect() for _ in range(8)]
        dead = [connection.scalar(BACKEND) for connection in connections]
        for connection in connections:
            connection.close()
    kill(*dead)
    time.sleep(0.06)
    assert backend(db, app) not in dead


def test_what_was_idle_briefly_is_not_tested(make):
    """Under load the test costs nothing: no round trip is made."""
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=60)
    pings = count_pings(db, app)
    for _ in range(5):
        backend(db, app)
    assert pings == []


def test_zero_tests_every_time(make):
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=0)
    pings = count_pings(db, app)
    for _ in range(5):
        backend(db, app)
    assert len(pings) == 4  # the first one was fresh


def test_none_is_off(make, kill):
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=None)
    kill(backend(db, app))
    with pytest.raises(sa_exc.OperationalError):
        backend(db, app)


def count_pings(db, app):
    with app.app_context():
        dialect = db.engine.dialect
    pings = []
    original = dialect.do_ping

    def do_ping(connection):
        pings.append(connection)
        return original(connection)

    dialect.do_ping = do_ping
    return pings


def test_a_test_that_fails_otherwise(make):
    """An error that is no disconnection goes on, and the connection is dropped."""
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=0)
    backend(db, app)
    with app.app_context():

        def do_ping(connection):
            raise KeyboardInterrupt

        db.engine.dialect.do_ping = do_ping
        with pytest.raises(KeyboardInterrupt):
            db.engine.connect()
        del db.engine.dialect.do_ping
        pool = db.snapshot().pools[0]
        assert (pool.used, pool.open, pool.pending) == (0, 0, 0)
        assert db.session.scalar(text("SELECT 1")) == 1


def test_the_server_is_gone(make, kill):
    """When no new connection can be made the error is the driver's; nothing leaks."""
    db, app = make(SCOPEDSESSION_PING_IDLE_AFTER=0)
    dead = backend(db, app)
    kill(dead)
    with app.app_context():
        engine = db.engine

    @event.listens_for(engine, "do_connect")
    def refuse(*args):
        raise engine.dialect.loaded_dbapi.OperationalError("refused")

    for _ in range(3):
        with pytest.raises(sa_exc.OperationalError):
            backend(db, app)
    event.remove(engine, "do_connect", refuse)
    assert backend(db, app) != dead
    with app.app_context():
        assert db.snapshot().pools[0].used == 0


def test_backend_pids(make):
    """Holders show the server's process id, as pg_stat_activity does."""
    db, app = make()
    with app.app_context():
        pid = db.session.scalar(BACKEND)
        (holder,) = db.snapshot().pools[0].holders
    assert holder.backend_pid == pid
