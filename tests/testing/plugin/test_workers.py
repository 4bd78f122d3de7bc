"""``database_for_worker()``: a database of its own for each process of pytest-xdist."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine
from sqlalchemy import make_url
from sqlalchemy import text
from sqlalchemy import URL
from suites import expected

from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import SetupError
from flask_scopedsession.testing import database_for_worker


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("sqlite:///test.db", "sqlite:///test_gw3.db"),
        ("sqlite:////a.b/test", "sqlite:////a.b/test_gw3"),
        ("sqlite:///file:test.db?uri=true", "sqlite:///file:test_gw3.db?uri=true"),
        ("sqlite://", "sqlite://"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ({"drivername": "sqlite", "database": "a.db"}, "sqlite:///a_gw3.db"),
        (URL.create("sqlite", database="a.db"), "sqlite:///a_gw3.db"),
    ],
)
def test_files(worker, url, own):
    assert database_for_worker(url) == make_url(own)


@pytest.mark.parametrize("url", ["sqlite:///test.db", "mysql+pymysql://u:p@h/test"])
def test_unchanged_in_one_process(monkeypatch, url):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert database_for_worker(url) == make_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql+pymysql://u:s3cret@h/test",
        "postgresql+psycopg://u:s3cret@h",
        "postgresql+psycopg://u:s3cret@h/" + 60 * "x",
        "no url s3cret",
        "",
        None,
    ],
)
def test_wrong_url(worker, url):
    with pytest.raises(ConfigError, match=r"database_for_worker\(url\)") as caught:
        database_for_worker(url)
    assert "s3cret" not in str(caught.value)


def test_postgresql_database_is_created_once(worker, pg_url):
    own = database_for_worker(pg_url)
    assert own.database == f"{make_url(pg_url).database}_gw3"
    run_sql(own, "CREATE TABLE kept (id int)")
    assert database_for_worker(pg_url) == own
    assert run_sql(own, "INSERT INTO kept VALUES (1) RETURNING id") == 1


def test_name_that_needs_quotes(worker, pg_server):
    own = database_for_worker(pg_server.set(database='My "test"'))
    assert run_sql(own, "SELECT current_database()") == 'My "test"_gw3'


def test_user_who_may_not_create_it(worker, pg_url):
    run_sql(pg_url, "DROP ROLE IF EXISTS humble")
    run_sql(pg_url, "CREATE ROLE humble LOGIN PASSWORD 's3cret'")
    humble = make_url(pg_url).set(username="humble", password="s3cret")
    reason = r"(?s)_gw3': permission denied.*CREATEDB"
    with pytest.raises(SetupError, match=reason) as caught:
        database_for_worker(humble)
    assert "s3cret" not in str(caught.value)


def run_sql(url, statement):
    engine = create_engine(url)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        found = result.scalar() if result.returns_rows else None
    engine.dispose()
    return found


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_isolated_tests_in_parallel(inner, kind, request):
    """Each process has its own database, in which each test is isolated."""
    inner.use("isolated_conftest.py")
    url = f"sqlite:///{inner.folder}/test.db"
    if kind == "postgresql":
        url = request.getfixturevalue("pg_url")
    env = {"SCOPE": "session", "URL": url, "PGUSER": None}
    options = ("-oscopedsession_isolation=true", "-n2", "--dist=each")
    suite = inner("isolated.py", *options, env=env)
    assert suite.outcomes == expected(suite), suite.text
