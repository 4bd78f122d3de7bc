"""What our connections are called at a real server."""

from __future__ import annotations

import os
import socket
import textwrap

import psycopg
import pytest
from inside import process_name
from sqlalchemy import text

from flask_scopedsession import ScopedSession

on_postgresql = pytest.mark.databases("postgresql", "psycopg2", "pgbouncer")

MINE = text("SELECT current_setting('application_name')")


@pytest.fixture(autouse=True)
def no_names_in_the_environment(monkeypatch):
    for name in ("PGAPPNAME", "PGOPTIONS", "PGSERVICE", "PGSERVICEFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def named(make, database):
    """Return what the connections of an app are called."""

    def named(query=(), **connect_args):
        url = database.url.update_query_dict(dict(query))
        db, app = make(url, connect_args=connect_args)
        with app.app_context():
            return db.session.scalar(MINE)

    return named


@on_postgresql
def test_app_host_and_pid(named):
    expected = process_name("tests_app", socket.gethostname(), os.getpid())
    assert named() == expected


@on_postgresql
def test_a_name_of_the_users(named, monkeypatch):
    """It is kept, wherever it is set."""
    assert named({"application_name": "in_the_url"}) == "in_the_url"
    assert named(application_name="an_argument") == "an_argument"
    monkeypatch.setenv("PGAPPNAME", "of_the_environment")
    assert named() == "of_the_environment"


# With PgBouncer, a connection without a name keeps that of the client before it.
@pytest.mark.databases("postgresql", "psycopg2")
def test_an_empty_name(named, monkeypatch):
    """An empty name is kept, too, so that a connection can have none."""
    assert named({"application_name": ""}) == ""
    assert named(application_name="") == ""
    monkeypatch.setenv("PGAPPNAME", "")
    assert named() == ""


# PgBouncer refuses options.
@pytest.mark.databases("postgresql", "psycopg2")
def test_a_name_in_the_options(named, monkeypatch, short_tmp):
    option = "-c application_name=mine"
    assert named({"options": option}) == "mine"
    assert named(options=option) == "mine"
    monkeypatch.setenv("PGOPTIONS", option)
    assert named() == "mine"
    monkeypatch.delenv("PGOPTIONS")
    service = short_tmp / "services"
    service.write_text("[shop]\napplication_name=of_the_service\n")
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    assert named({"service": "shop"}) == "of_the_service"


@on_postgresql
def test_ping_has_the_name(make, database, monkeypatch):
    """The engine's events apply to its connection."""
    db, app = make()
    seen = []
    with app.app_context():
        dialect = db.engine.dialect

        def do_ping(connection):
            with connection.cursor() as cursor:
                cursor.execute(str(MINE))
                seen.append(cursor.fetchone()[0])
            return True

        monkeypatch.setattr(dialect, "do_ping", do_ping)
        db.ping()
    assert seen == [process_name("tests_app", socket.gethostname(), os.getpid())]


@pytest.mark.databases("postgresql")
def test_a_creator_names_its_own(make_app, database):
    """The application connects by itself, so no name is set."""
    url = database.url.set(drivername="postgresql").render_as_string(False)
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=database.url,
        SQLALCHEMY_ENGINE_OPTIONS={"creator": lambda: psycopg.connect(url)},
    )
    with app.app_context():
        assert db.session.scalar(MINE) == ""


@pytest.mark.databases("mariadb")
def test_mariadb(make, database):
    """PyMySQL sends the name as an attribute, which the performance schema shows."""
    query = text(
        "SELECT attr_value FROM performance_schema.session_account_connect_attrs"
        " WHERE processlist_id = CONNECTION_ID() AND attr_name = 'program_name'"
    )
    db, app = make()
    expected = process_name("tests_app", socket.gethostname(), os.getpid())
    with app.app_context():
        assert db.session.scalar(query) == expected


@pytest.mark.subprocess
def test_a_fork_has_its_own_name(run_script, pg_url):
    """The engine is made before the fork, and the connection in the child."""
    source = """
        import os, sys
        from flask import Flask
        from sqlalchemy import text
        from flask_scopedsession import ScopedSession

        db = ScopedSession()
        app = Flask("forks")
        app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
        db.init_app(app)

        def say():
            with app.app_context():
                name = db.session.scalar(text("SHOW application_name"))
            db.dispose(app)
            mine = name.endswith(f":{os.getpid()}")
            print(name.startswith("forks@"), mine, flush=True)

        say()
        if os.fork() == 0:
            say()
            os._exit(0)
        os.wait()
        """
    result = run_script(textwrap.dedent(source), pg_url).check()
    assert result.stdout == "True True\n" * 2
