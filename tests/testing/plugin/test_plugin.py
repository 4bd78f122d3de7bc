"""The pytest plugin: isolation, ``count_statements``, and what it costs others."""

from __future__ import annotations

import commands
import pytest
from suites import expected


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "beside"),
    [("function", ()), ("session", ()), ("session", ("flask", "asyncio", "randomly"))],
    ids=["app of each test", "app of the run", "beside others"],
)
def test_tests_are_isolated(inner, scope, beside):
    """Each finds what its own fixtures have made, and leaves nothing."""
    inner.use("isolated_conftest.py")
    names = ["isolated.py"]
    if "asyncio" in beside:
        names.append("asynchronous.py")
    env = {"SCOPE": scope, "URL": f"sqlite:///{inner.folder}/test.db"}
    ini = "-oscopedsession_isolation=true"
    suite = inner(*names, ini, beside=beside, env=env)
    assert suite.outcomes == expected(suite), suite.text


@pytest.mark.subprocess
@pytest.mark.slow
def test_fixture_isolates_one_test(inner):
    """Also without the option, and for a test that asks for it late."""
    (inner.folder / "test_one.py").write_text(ONE, encoding="utf-8")
    suite = inner("-oscopedsession_isolation=false")
    assert suite.outcomes == expected(suite), suite.text


ONE = """
import pytest
from shop import create_app, db, Item
from sqlalchemy import select

@pytest.fixture(scope="module")
def app(tmp_path_factory):
    app = create_app(f"sqlite:///{tmp_path_factory.mktemp('db')}/test.db")
    with app.app_context():
        db.create_all()
    yield app
    db.dispose(app)

def add(app, name):
    app.test_client().post("/items", data={"name": name})

@pytest.fixture
def item(app):
    add(app, "item")

def test_fine_fixture_before_it(item, app, db_isolation):
    add(app, "x")
    assert app.test_client().get("/items").json == ["item", "x"]

def test_fine_nothing_left(app):
    assert app.test_client().get("/items").json == []
    add(app, "real")

def test_fine_asked_for_late(app, request):
    request.getfixturevalue("db_isolation")
    add(app, "x")

@pytest.mark.real_commits
def test_fine_marked(app, db_isolation):
    add(app, "real")

class TestOwnFixture:
    @pytest.fixture
    def db_isolation(self):
        return "own"

    def test_fine_own(self, app, db_isolation):
        assert db_isolation == "own"
        add(app, "real")

@pytest.mark.parametrize("app", [None])
def test_fine_app_that_is_a_parameter(app):
    assert app is None

def test_fine_real_commits(app):
    assert app.test_client().get("/items").json == ["real", "real", "real"]
"""


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "scopedsession_leaks = fail",
            "scopedsession_leaks must be one of error, warn, ignore, not 'fail'.",
        ),
        (
            "scopedsession_isolation = maybe",
            "scopedsession_isolation must be true or false",
        ),
    ],
)
def test_wrong_option(inner, line, problem):
    """One line that names the option and what it may be, and no traceback."""
    (inner.folder / "pytest.ini").write_text(f"[pytest]\n{line}\n", encoding="utf-8")
    suite = inner()
    assert suite.code == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {problem}" in suite.text
    assert "Traceback" not in suite.text


@pytest.mark.subprocess
@pytest.mark.slow
def test_apps_that_do_not_use_the_extension(inner):
    """The fixtures say so."""
    (inner.folder / "test_plain.py").write_text(PLAIN, encoding="utf-8")
    suite = inner("-oscopedsession_isolation=true")
    assert suite.outcomes == {
        "test_counts": "ERROR",
        "test_isolated": "ERROR",
        "test_marked": "PASSED",
    }, suite.text
    for name in ("test_counts", "test_isolated"):
        assert "does not use Flask-ScopedSession." in suite.reasons[name]


PLAIN = """
import pytest
from flask import Flask

@pytest.fixture
def app():
    return Flask("plain")

@pytest.mark.real_commits
def test_counts(app, count_statements):
    pass

def test_isolated(app):
    pass

@pytest.mark.real_commits
def test_marked(app):
    pass
"""


@pytest.mark.subprocess
def test_suites_of_others_import_nothing(inner):
    """The plugin loads neither Flask nor SQLAlchemy, nor the package."""
    (inner.folder / "conftest.py").unlink()
    (inner.folder / "test_other.py").write_text(
        """
import sys

def test_fine_modules(request):
    assert request.config.pluginmanager.has_plugin("scopedsession")
    for name in ("flask", "sqlalchemy", "flask_scopedsession"):
        assert name not in sys.modules
""",
        encoding="utf-8",
    )
    inner(lean=False).check()


@pytest.mark.subprocess
def test_installed_plugin_leaves_the_package_to_be_measured():
    """Coverage that starts after pytest's plugins sees all lines of the package."""
    source = "import sys, pytest_scopedsession; print('flask' in sys.modules)"
    assert commands.run(["-c", source]).check().stdout == "False\n"
