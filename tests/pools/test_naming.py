"""What connections are called at the server; a name that the user set is kept."""

from __future__ import annotations

import os
import socket

import pytest
from sqlalchemy import create_engine
from sqlalchemy import event

from flask_scopedsession import ScopedSession
from flask_scopedsession._pools.naming import family
from flask_scopedsession._pools.naming import family_of
from flask_scopedsession._pools.naming import name_connections
from flask_scopedsession._pools.naming import process_name

POSTGRESQL = ["psycopg", "psycopg2"]


class Refused(Exception):
    """Ends an attempt to connect before anything is sent."""


def arguments(url, **options):
    """Return the arguments that the driver's connect() would get."""
    engine = create_engine(url, **options)
    found = {}

    def refuse(*cargs, **cparams):
        found.update(cparams)
        raise Refused

    engine.dialect.connect = refuse
    name_connections(engine, "shop")
    with pytest.raises(Refused):
        engine.raw_connection()
    return found


@pytest.fixture(autouse=True)
def no_names_in_the_environment(monkeypatch):
    for name in ("PGAPPNAME", "PGOPTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("app_name", "host", "pid", "expected"),
    [
        ("shop", "web-1", 4711, "shop@web-1:4711"),
        ("shop", "web-1.example.org", 4711, "shop@web-1:4711"),
        ("shop", "10.0.0.12", 4711, "shop@10.0.0.12:4711"),
        ("Müller & Söhne", "wéb", 1, "M_ller___S_hne@w_b:1"),
        ("a@b", "x\x1b[31m", 1, "a_b@x__31m:1"),
        ("shop", "h" * 60 + "-7kq2x", 4194304, f"shop@{'h' * 44}-7kq2x:4194304"),
        ("a" * 80, "h" * 80, 4194304, f"{'a' * 24}@{'h' * 30}:4194304"),
        ("a" * 80, "h" * 80, 2**32, f"{'a' * 24}@{'h' * 27}:4294967296"),
        ("", "", 1, "@:1"),
    ],
)
def test_process_name(app_name, host, pid, expected):
    """At most 63 bytes of ASCII; the process ID is never cut."""
    name = process_name(app_name, host, pid)
    assert name == expected
    assert len(name.encode("ascii")) <= 63
    assert name.startswith(family(app_name))


def test_family():
    """The beginning of a name that this process made, and of no other name."""
    mine = process_name("a" * 80, "web-1", os.getpid())
    assert family_of(mine) == family("a" * 80)
    assert family_of(process_name("shop", "web-1", os.getpid() + 1)) is None
    assert family_of("psql") is family_of("") is None


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_postgresql(driver):
    """libpq uses it if there is no other name."""
    found = arguments(f"postgresql+{driver}://db/shop")
    assert found["fallback_application_name"] == process_name(
        "shop", socket.gethostname(), os.getpid()
    )
    assert "application_name" not in found


@pytest.mark.parametrize("driver", POSTGRESQL)
@pytest.mark.parametrize(
    ("query", "connect_args"),
    [
        ("?options=-c%20application_name%3Dmine", {}),
        ("?options=-capplication_name%3Dmine", {}),
        ("?options=--application-name%3Dmine", {}),
        ("", {"options": "-c statement_timeout=5000 -c APPLICATION_NAME=mine"}),
        ("?fallback_application_name=mine", {}),
    ],
)
def test_a_name_among_the_options(driver, query, connect_args):
    """It is kept, because no name is sent that would override it."""
    found = arguments(
        f"postgresql+{driver}://db/shop{query}", connect_args=connect_args
    )
    assert found.get("fallback_application_name", "mine") == "mine"


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_other_options(driver):
    options = "-c statement_timeout=5000"
    found = arguments(
        f"postgresql+{driver}://db/shop", connect_args={"options": options}
    )
    assert found["options"] == options
    assert found["fallback_application_name"].startswith("shop@")


def test_options_in_the_environment(monkeypatch):
    url = "postgresql+psycopg://db/shop"
    monkeypatch.setenv("PGOPTIONS", "-c application_name=mine")
    assert "fallback_application_name" not in arguments(url)
    # The options of a URL replace those of the environment.
    found = arguments(url, connect_args={"options": "-c work_mem=64MB"})
    assert "fallback_application_name" in found


@pytest.mark.parametrize("dialect", ["mysql", "mariadb"])
def test_pymysql(dialect):
    url = f"{dialect}+pymysql://db/shop"
    assert arguments(url)["program_name"].startswith("shop@")
    assert arguments(f"{url}?program_name=mine")["program_name"] == "mine"
    for name in ("mine", ""):
        found = arguments(url, connect_args={"program_name": name})
        assert found["program_name"] == name


def test_other_drivers():
    """A driver without a known argument for a name is left alone."""
    engine = create_engine("sqlite://")
    name_connections(engine, "shop")
    assert engine.dialect.connect.__func__ is type(engine.dialect).connect


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://db/shop", "mysql+pymysql://db/shop", "sqlite://"]
)
def test_statements_stay_fast(make_app, url, tracking):
    """Any listener on an event of the dialect would slow each execution down."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=url, SCOPEDSESSION_TRACKING=tracking)
    with app.app_context():
        assert not db.engine.dialect._has_events
        assert not db.engine._has_events


def test_a_listener_of_the_applications_can_change_the_name():
    """It is called before the name is added."""
    engine = create_engine("postgresql+psycopg://db/shop")
    found = {}

    def refuse(*cargs, **cparams):
        found.update(cparams)
        raise Refused

    engine.dialect.connect = refuse
    name_connections(engine, "shop")

    @event.listens_for(engine, "do_connect")
    def name(dialect, entry, cargs, cparams):
        cparams["fallback_application_name"] = "mine"

    with pytest.raises(Refused):
        engine.raw_connection()
    assert found["fallback_application_name"] == "mine"
