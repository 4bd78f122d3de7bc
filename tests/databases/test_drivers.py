"""The ledger, the checks and the commands, on every driver and database."""

from __future__ import annotations

import gc
import json
import time

import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy import NullPool
from sqlalchemy import select
from sqlalchemy import text
from traffic import check_books
from traffic import Crowd
from traffic import Row
from traffic import Tally
from traffic import together

from flask_scopedsession import ScopedSession

on_servers = pytest.mark.databases("postgresql", "psycopg2", "mariadb")
behind_pgbouncer = pytest.mark.databases("pgbouncer")
with_pools = pytest.mark.databases(
    "sqlite", "postgresql", "psycopg2", "pgbouncer", "mariadb"
)


def pool_of(db):
    (pool,) = db.snapshot().pools
    return pool


def holder_of(db):
    (holder,) = pool_of(db).holders
    return holder


# Who holds what


@on_servers
def test_backend_pids(make, backends):
    """A holder shows the number that the server knows the connection by."""
    db, app = make()
    with app.app_context():
        db.session.execute(select(1))
        assert {holder_of(db).backend_pid} == backends.ids()


@pytest.mark.databases("sqlite", "memory")
def test_no_backend_no_pid(make):
    db, app = make()
    with app.app_context():
        db.session.execute(select(1))
        assert holder_of(db).backend_pid is None


@behind_pgbouncer
def test_a_pid_that_pgbouncer_made_up(make):
    """What it tells its clients is a random number, and no process."""
    db, app = make(options={"pool_size": 8})
    with app.app_context():
        connections = [db.engine.connect() for _ in range(8)]
        pids = [holder.backend_pid for holder in pool_of(db).holders]
        for connection in connections:
            connection.close()
    # One in a thousand could be that of a process.
    assert pids.count(None) >= 6


@on_servers
def test_in_transaction(make, backends):
    """We say what the server says, from the first statement to the last."""
    db, app = make()

    def seen():
        holder = holder_of(db)
        (state,) = backends.states().values()
        assert holder.in_transaction == (state == "idle in transaction"), state
        assert (holder.idle_in_transaction_s is None) == (not holder.in_transaction)
        return holder.in_transaction

    with app.app_context(), db.engine.connect() as connection:
        connection.execute(select(Row))
        assert seen()
        first = holder_of(db).idle_in_transaction_s
        time.sleep(0.02)
        assert holder_of(db).idle_in_transaction_s > first
        connection.commit()
        assert not seen()
        connection.execute(select(Row))
        assert seen()
        connection.rollback()
        assert not seen()


@on_servers
@pytest.mark.parametrize("where", ["engine", "connection"])
def test_autocommit(make, backends, where):
    """With AUTOCOMMIT nobody is idle in a transaction, here or at the server."""
    level = {"isolation_level": "AUTOCOMMIT"}
    db, app = make(options=level if where == "engine" else {})
    with app.app_context(), db.engine.connect() as connection:
        if where == "connection":
            connection.execution_options(**level)
        connection.execute(select(Row))
        assert holder_of(db).in_transaction is False
        assert holder_of(db).idle_in_transaction_s is None
        assert list(backends.states().values()) == ["idle"]


@on_servers
def test_a_detached_connection(make, backends):
    """It leaves our books, and is closed by whoever took it."""
    db, app = make()
    with app.app_context():
        connection = db.engine.connect()
        connection.detach()
        assert (pool_of(db).used, pool_of(db).open) == (0, 0)
        assert connection.scalar(select(1)) == 1
        assert len(backends.ids()) == 1
        connection.close()
    assert check_books(db, app, lambda: len(backends.ids())) == 0


@on_servers
def test_an_invalidated_connection(make, backends):
    """Its backend is gone, another takes its place, and both are counted."""
    db, app = make()
    with app.app_context():
        db.session.execute(select(1))
        (before,) = backends.ids()
        db.session().invalidate()
        db.session.execute(select(1))
        after = holder_of(db).backend_pid
        assert after != before
        pool = pool_of(db)
        assert (pool.used, pool.open, pool.invalidated_total) == (1, 1, 1)
    assert check_books(db, app, lambda: len(backends.ids())) == 1
    assert backends.ids() == {after}


@on_servers
def test_dispose_under_use(make, backends):
    """What is out is closed as it returns, and not before."""
    db, app = make()
    with app.app_context():
        assert db.session.scalar(select(1)) == 1
        db.dispose()
        assert (pool_of(db).used, pool_of(db).open) == (1, 1)
        assert db.session.scalar(select(2)) == 2
    assert check_books(db, app, lambda: len(backends.ids())) == 0


# Requests


@with_pools
def test_many_at_once(make, database, backends):
    """Everybody gets an own session and an own answer; everything comes back."""
    db, app = make(options={"pool_size": 3, "max_overflow": 1})
    tally = Tally()

    def visit(client, chance):
        (tally.get if chance.random() < 0.7 else tally.post)(client)

    with Crowd(app, 6, visit) as crowd:
        crowd.wait_for(120)
    assert tally.failures == []
    tally.audit(database.url)
    server = database.direct.get_backend_name()
    counted = server != "sqlite" and database.url == database.direct
    opened = check_books(db, app, (lambda: len(backends.ids())) if counted else None)
    assert 1 <= opened <= 4


def test_an_error_in_a_view(make, database):
    """A view that raises leaves nothing behind, on any database."""
    db, app = make()
    tally = Tally()
    client = app.test_client()
    for _ in range(3):
        assert client.post("/rows/bad/broken").status_code == 418
        assert tally.post(client)
    with app.app_context():
        assert db.session.scalars(select(Row.token)).all() == tally.acknowledged


@on_servers
def test_the_next_user_meets_no_transaction(make, backends):
    """Whatever a view leaves open is over when its connection has returned."""
    db, app = make()
    with app.app_context():
        db.session.add(Row(token="lost"))
        db.session.flush()
        assert list(backends.states().values()) == ["idle in transaction"]
        db.session.info["meant"] = True
        db.session.remove()
    assert list(backends.states().values()) == ["idle"]


# What the drivers remark of it.
@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@with_pools
def test_a_result_that_nobody_reads_to_its_end(make, backends):
    """The connection is clean for whoever has it next."""
    db, app = make(options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 5})
    with app.app_context():
        db.session.add_all(Row(token=f"t{number}") for number in range(500))
        db.session.commit()
    for _ in range(3):
        with app.app_context():
            found = db.session.execute(
                select(Row), execution_options={"stream_results": True, "yield_per": 10}
            )
            assert found.fetchone() is not None
            db.session.remove()
            assert db.session.scalar(select(7)) == 7
        del found
        gc.collect()
    check_books(db, app)


# PgBouncer


@behind_pgbouncer
def test_a_backend_behind_pgbouncer_dies(make, database, backends):
    """It is PgBouncer's, which gets another: no request fails."""
    db, app = make()
    tally, client = Tally(), app.test_client()
    assert tally.post(client)
    assert backends.kill_all()
    assert tally.post(client)
    assert tally.failures == []
    tally.audit(database.url)
    check_books(db, app)


@behind_pgbouncer
def test_a_few_backends_for_many_connections(make, backends):
    """Who rests between transactions holds none of the server's connections."""
    db, app = make(options={"pool_size": 6})
    with app.app_context():
        connections = [db.engine.connect() for _ in range(6)]
        for connection in connections:
            connection.execute(select(Row))
            connection.commit()
        assert (pool_of(db).used, pool_of(db).open) == (6, 6)
        assert len(backends.ids()) == 1
        for connection in connections:
            connection.close()


# Ping


def version_of(database):
    """Return what the server itself says its version is."""
    query = {
        "postgresql": "SHOW server_version",
        "mysql": "SELECT VERSION()",
        "sqlite": "SELECT sqlite_version()",
    }[database.direct.get_backend_name()]
    engine = create_engine(database.direct, poolclass=NullPool)
    with engine.connect() as connection:
        return connection.scalar(text(query))


def test_ping(make):
    """One connection outside the pool, which is left as it was."""
    db, app = make()
    with app.app_context():
        before = (pool_of(db).open, pool_of(db).checkouts_total)
        assert 0 < db.ping() < 5
        assert (pool_of(db).open, pool_of(db).checkouts_total) == before


@on_servers
def test_ping_closes_its_connection(make, backends):
    db, app = make()
    with app.app_context():
        for _ in range(3):
            db.ping()
    assert check_books(db, app, lambda: len(backends.ids())) == 1


def test_db_ping_tells_the_version(make, database):
    _, app = make()
    result = app.test_cli_runner().invoke(args=["db-ping", "--json"])
    assert result.exit_code == 0, result.output
    (ping,) = json.loads(result.stdout)["pings"]
    assert ping["error"] is None
    assert ping["latency_s"] > 0
    # Of MariaDB, old SQLAlchemy takes the packager's number for a fourth part.
    assert version_of(database).startswith(".".join(ping["version"].split(".")[:3]))
    assert ping["version"] in app.test_cli_runner().invoke(args=["db-ping"]).output


@on_servers
def test_db_ping_when_the_database_is_not_there(make, database):
    """Exit code 4, and why, without the URL."""
    db, app = make()
    with app.app_context():
        db.engine.dispose()
        name = db.engine.url.database
    gone = database.url.set(database="nobody_made_this")
    other = Flask("other")
    other.config["SQLALCHEMY_DATABASE_URI"] = gone
    ScopedSession(other)
    result = other.test_cli_runner().invoke(args=["db-ping"])
    assert result.exit_code == 4
    assert "does not exist" in result.output or "unknown database" in result.output
    assert name not in result.output


@with_pools
def test_waiters_on_every_driver(make):
    """A pool that is exhausted says so, and recovers."""
    db, app = make(options={"pool_size": 2, "max_overflow": 0, "pool_timeout": 0.2})
    tally = Tally()
    together(4, lambda: tally.get(app.test_client(), hold=0.6))
    assert tally.kinds() == {"TimeoutError": 2}
    assert tally.get(app.test_client())
    check_books(db, app)
