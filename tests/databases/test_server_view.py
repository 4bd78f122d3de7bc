"""``pool-status --server``: what real servers report, joined with what we report."""

from __future__ import annotations

import itertools
import json
import time
from contextlib import contextmanager
from contextlib import ExitStack

import psycopg
import pymysql
import pytest
from sqlalchemy import select
from sqlalchemy import text
from threads import Working
from traffic import Row
from waiting import wait_until

from flask_scopedsession import ScopedSession

on_servers = pytest.mark.databases("postgresql", "psycopg2", "mariadb")
on_postgresql = pytest.mark.databases("postgresql", "psycopg2")
behind_pgbouncer = pytest.mark.databases("pgbouncer")

SECRET = "swordfish"


@contextmanager
def serving(app, db):
    """Make this process a live worker of the app."""
    with app.app_context():
        db.serve_control("job")
        try:
            yield
        finally:
            db.session.remove()
            db.dispose()


@contextmanager
def stranger(url, name):
    """Connect without the app, under the name `name`."""
    if url.get_backend_name() == "postgresql":
        plain = url.set(drivername="postgresql").render_as_string(False)
        connection = psycopg.connect(plain, application_name=name)
    else:
        connection = pymysql.connect(
            unix_socket=url.query["unix_socket"],
            user=url.username,
            database=url.database,
            program_name=name,
            ssl_disabled=True,
        )
    try:
        yield connection
    finally:
        connection.close()


def execute(connection, query):
    with connection.cursor() as cursor:
        cursor.execute(query)


@pytest.fixture
def look():
    def look(app, *args):
        runner = app.test_cli_runner()
        result = runner.invoke(args=["pool-status", "--server", "--json", *args])
        assert result.exit_code == 0, result.output
        return json.loads(result.output)["servers"]

    return look


@pytest.fixture
def page(monkeypatch):
    def page(app, *args):
        result = app.test_cli_runner().invoke(args=["pool-status", "--server", *args])
        assert result.exit_code == 0, result.output
        return result.output

    return page


def settled(look, app, check):
    """Ask until the answer passes a check; return the first server.

    Connections younger than the workers' answers are not reported as unclaimed.
    """

    def found():
        (server,) = look(app)
        return server if check(server) else None

    return wait_until(found, every=0.2)


# Connections and their workers


@on_servers
def test_held_and_idle_connections_are_joined(make, look, page, backends):
    """By the server's process IDs: all of ours, with worker and bind, and no others."""
    db, app = make(options={"pool_size": 3})
    with serving(app, db):
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(db.engine.connect())
        db.session.execute(select(Row))
        (server,) = look(app)
        assert server["error"] is None
        assert server["joined"] is True
        # The server may need a moment to end the connection that asked.
        seen = {c["backend_pid"] for c in server["connections"]}
        wait_until(lambda: backends.ids() == seen)
        assert {c["bind"] for c in server["connections"]} == {"default"}
        states = {c["holder"] is not None: c["state"] for c in server["connections"]}
        assert states == {True: "idle in transaction", False: "idle"}
        (held,) = (c for c in server["connections"] if c["holder"])
        assert held["transaction_s"] >= 0
        assert server["unclaimed"] == server["waits"] == []
        assert "1 connection checked out and 1 idle" in page(app)


@on_servers
def test_asking_leaves_no_connection(make, look, backends):
    """The connection that asks is outside the pool, and closed afterwards."""
    db, app = make()
    with serving(app, db):
        db.session.execute(select(1))
        before = db.snapshot().pools[0]
        for _ in range(3):
            look(app)
        after = db.snapshot().pools[0]
        assert (after.open, after.connects_total) == (1, before.connects_total)
        assert after.backend_pids == before.backend_pids
        wait_until(lambda: backends.ids() == set(after.backend_pids))


@on_servers
def test_connections_that_no_worker_has_open(make, look, page, database):
    """Grouped by name and address, with the age of the oldest state; ours only."""
    db, app = make()
    with serving(app, db), ExitStack() as stack:
        db.session.execute(select(1))
        names = ["tests_app@gone:1", "tests_app@gone:1", "tests_app@far:2", "backup"]
        for name in names:
            other = stack.enter_context(stranger(database.direct, name))
            execute(other, "SELECT 1")
        server = settled(
            look, app, lambda s: sum(g["count"] for g in s["unclaimed"]) == 3
        )
        found = {g["application_name"]: g["count"] for g in server["unclaimed"]}
        assert found == {"tests_app@gone:1": 2, "tests_app@far:2": 1}
        assert all(g["oldest_s"] > 0 and g["client"] for g in server["unclaimed"])
        if database.direct.get_backend_name() == "postgresql":
            assert {g["state"] for g in server["unclaimed"]} == {"idle in transaction"}
        shown = page(app)
        assert "2× tests_app@gone:1 from local" in shown
        assert "backup" not in shown


@on_postgresql
def test_a_shared_name_of_the_users(make, look, database):
    """Connections of that name are ours, and told apart only by their process IDs."""
    db, app = make(connect_args={"application_name": "shop"})
    with serving(app, db), ExitStack() as stack:
        db.session.execute(select(1))
        for name in ("shop", "shop_too"):
            stack.enter_context(stranger(database.direct, name))
        server = settled(look, app, lambda s: s["unclaimed"])
        ((name, count),) = {
            (g["application_name"], g["count"]) for g in server["unclaimed"]
        }
        assert (name, count) == ("shop", 1)
        assert len(server["connections"]) == 1


# Locks


@on_servers
def test_blocked_by_a_stranger(make, look, page, database):
    """The blocker is named by what the server knows of it."""
    db, app = make()
    with serving(app, db), stranger(database.direct, "nightly_export") as other:
        db.session.add(Row(token="wanted"))
        db.session.commit()
        execute(other, "BEGIN")
        execute(other, f"UPDATE row_kept SET token = '{SECRET}'")

        def want():
            with app.app_context(), db.engine.connect() as connection:
                connection.execute(
                    text("UPDATE row_kept SET token = :token"), {"token": SECRET}
                )

        work = Working(want, "work")
        server = settled(look, app, lambda s: s["waits"])
        (wait,) = server["waits"]
        (blocker,) = wait["blockers"]
        assert wait["waiting"]["holder"]["thread"] == "work"
        assert wait["waiting"]["blocked_by"] == [blocker["backend_pid"]]
        assert blocker["pid"] is blocker["holder"] is None
        assert blocker["application_name"] == "nightly_export"
        assert blocker["state"] == "idle in transaction"
        shown = page(app, "--verbose")
        assert "waits for a lock held by nightly_export from local" in shown
        # Some drivers write parameters into the text of statements.
        assert SECRET not in shown
        assert SECRET not in json.dumps(server)
        other.rollback()
        work.result()
        assert look(app)[0]["waits"] == []


# Limits


def setting(db, name):
    return int(db.session.scalar(text(f"SHOW {name}")))


@on_postgresql
def test_what_the_server_has_left(make, look, page, database):
    """Its limit, less what is reserved and what others use."""
    db, app = make(options={"pool_size": 90, "max_overflow": 15})
    with serving(app, db), stranger(database.direct, "backup"):
        most = setting(db, "max_connections")
        reserved = setting(db, "superuser_reserved_connections")
        reserved += setting(db, "reserved_connections")
        usable = most - reserved
        limit = settled(look, app, lambda s: s["limits"][0]["others"] == 1)["limits"][0]
        assert limit == {
            "scope": "server",
            "limit": most,
            "reserved": reserved,
            "in_use": 2,
            "others": 1,
            "left": usable - 1,
            "workers": 1,
            "may_open": 105,
            "unlimited": False,
        }
        shown = page(app)
        assert (
            f"1 worker may open 105; {usable - 1} of the server's {usable} connections"
            " are left (1 used by others): lower pool_size, max_overflow or the number"
            f" of workers (at most {usable - 1} for each worker fit)"
        ) in shown


@on_postgresql
def test_two_databases_of_one_server_share_its_limit(make, look, database):
    """The workers' pools count for both, and their connections are not "others"."""
    db, app = make(
        options={"pool_size": 2, "max_overflow": 3},
        SQLALCHEMY_BINDS={
            "same": database.url,
            "other": {"url": database.url.set(database="postgres"), "pool_size": 7},
        },
    )
    with serving(app, db):
        for engine in db.engines.values():
            with engine.connect() as connection:
                connection.execute(select(1))
        first, second = look(app)
        assert (first["binds"], second["binds"]) == (["default", "same"], ["other"])
        for server in (first, second):
            (limit,) = server["limits"]
            assert (limit["in_use"], limit["others"], limit["workers"]) == (3, 0, 1)
            assert limit["may_open"] == 5 + 5 + 10
        assert len(first["connections"]) == 2
        (server,) = look(app, "--bind", "other")
        assert server["binds"] == ["other"]


_numbers = itertools.count(1)


@pytest.fixture
def plain_role(database):
    """A role without rights, with a CONNECTION LIMIT; so has the database."""
    role = f"plain_{database.direct.database}_{next(_numbers)}"
    with stranger(database.direct, "admin") as admin:
        admin.autocommit = True
        execute(admin, f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 7")
        execute(admin, f"GRANT ALL ON SCHEMA public TO {role}")
        execute(admin, f"ALTER DATABASE {database.direct.database} CONNECTION LIMIT 12")
        yield role
        execute(admin, f"ALTER DATABASE {database.direct.database} CONNECTION LIMIT -1")
        execute(admin, f"DROP OWNED BY {role}")
        execute(admin, f"DROP ROLE {role}")


@on_postgresql
def test_limits_of_role_and_database_without_rights(
    make_app, database, plain_role, look, page
):
    """Each limit is shown, and a note says what our role may not see."""

    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=database.url.set(username=plain_role))
    with serving(app, db):
        db.session.execute(select(1))
        (server,) = look(app)
        (note,) = server["notes"]
        assert "other roles" in note
        found = {limit["scope"]: limit for limit in server["limits"]}
        assert list(found) == ["server", "database", "role"]
        assert (found["role"]["left"], found["role"]["may_open"]) == (7, 15)
        # The connection that made the role is open as well.
        assert found["database"]["others"] == found["server"]["others"] == 1
        assert found["database"]["left"] == 11
        shown = page(app)
        assert note in shown
        assert (
            "7 of the role's CONNECTION LIMIT of 7 are left (0 used by others):"
            in shown
        )


@pytest.mark.databases("mariadb")
def test_what_mariadb_has_left(make, look, database):
    db, app = make()
    with serving(app, db), stranger(database.direct, "backup"):
        db.session.execute(select(1))
        most = db.session.scalar(text("SELECT @@max_connections"))
        limit = settled(look, app, lambda s: s["limits"][0]["others"] == 1)["limits"][0]
        assert limit["scope"] == "server"
        assert (limit["limit"], limit["left"]) == (most, most - 1)
        assert (limit["workers"], limit["may_open"]) == (1, 15)


@pytest.mark.databases("mariadb")
def test_mariadb_without_rights(make_app, database, look):
    """Ours are joined nevertheless, and a note says what cannot be read."""

    with stranger(database.direct, "admin") as admin:
        execute(admin, "CREATE USER plain WITH MAX_USER_CONNECTIONS 9")
        execute(admin, f"GRANT ALL ON {database.direct.database}.* TO plain")
        db = ScopedSession()
        app = make_app(db, SQLALCHEMY_DATABASE_URI=database.url.set(username="plain"))
        try:
            with serving(app, db):
                db.session.execute(select(1))
                (server,) = look(app)
                assert server["notes"] == [
                    "transactions and lock waits cannot be read: that takes more rights"
                ]
                assert len(server["connections"]) == 1
                found = {limit["scope"]: limit for limit in server["limits"]}
                assert (found["role"]["limit"], found["role"]["left"]) == (9, 9)
                assert found["server"]["others"] == 1
        finally:
            execute(admin, "DROP USER plain")


# Nothing to join


@behind_pgbouncer
def test_behind_a_pooler(make, look, page, database):
    """The driver's process IDs are the pooler's: nothing is joined or unclaimed."""
    db, app = make(options={"pool_size": 4})
    with serving(app, db), stranger(database.direct, "tests_app@gone:1"):
        db.session.execute(select(1))
        (server,) = look(app)
        assert server["joined"] is False
        assert server["notes"] == [
            "behind a pooler: connections are not joined with the workers'"
        ]
        assert server["connections"] == server["unclaimed"] == []
        (limit,) = server["limits"]
        assert limit["others"] is limit["left"] is None
        assert limit["in_use"] >= 1
        shown = page(app)
        assert "behind a pooler" in shown
        assert "left" not in shown


@pytest.mark.databases("sqlite", "memory")
def test_no_server(make, look, page):
    db, app = make()
    with serving(app, db):
        (server,) = look(app)
        assert server["error"] == "no server: SQLite has none"
        assert "no server: SQLite has none" in page(app)


@on_servers
def test_a_server_that_does_not_answer(make, look, page, proxy, proxied):
    """One line says so, after the timeout; the workers are shown nevertheless."""
    db, app = make(proxied)
    with serving(app, db):
        db.session.execute(select(1))
        proxy.hang()
        began = time.perf_counter()
        (server,) = look(app, "--timeout", "0.3")
        shown = page(app, "--timeout", "0.3")
        assert time.perf_counter() - began < 10
        proxy.forward()
        assert server["error"] == "no answer within 0.3 s"
        assert "1/15" in shown
        assert "no answer within 0.3 s" in shown


@on_postgresql
def test_a_server_that_refuses(make, make_app, look, page, database):
    """Of the driver's message, only words that are known to be safe are shown."""

    gone = database.url.set(database="nobody_made_this", password=SECRET)
    app = make_app(ScopedSession(), SQLALCHEMY_DATABASE_URI=gone)
    (server,) = look(app)
    assert server["error"].startswith("OperationalError (")
    assert "does not exist" in server["error"]
    shown = page(app)
    assert server["error"] in shown
    assert SECRET not in shown
    assert "FATAL" not in shown
