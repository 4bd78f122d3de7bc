"""The pytest plugin finds what a test leaves open, and nothing else."""

from __future__ import annotations

import pytest
from suites import expected


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize(
    "beside", [(), ("flask", "asyncio", "randomly")], ids=["alone", "beside others"]
)
def test_leaks_fail_the_test_that_made_them(inner, beside):
    suite = inner("leaks.py", beside=beside)
    assert suite.outcomes == expected(suite), suite.text
    assert suite.reasons["test_leak_of_a_view"] == (
        "Failed: left open: a connection of 'default' checked out at shop.py:52"
        " connection by GET /connection -> connection (app 'shop'). Close it."
    )


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize("beside", [(), ("flask", "randomly")], ids=["alone", "beside"])
def test_what_wider_fixtures_hold_is_not_the_tests(inner, beside):
    suite = inner("wide.py", beside=beside)
    assert suite.outcomes == expected(suite), suite.text


@pytest.mark.subprocess
@pytest.mark.slow
def test_leaks_that_only_warn_or_are_ignored(inner):
    """A warning has the same text, and belongs to the test."""
    chosen = ["-k", "of_a_view or fine_after", "-W", "default"]
    suite = inner("leaks.py", *chosen, "-oscopedsession_leaks=warn").check()
    assert "test_leaks.py::test_leak_of_a_view\n" in suite.text
    assert "PytestWarning: left open: a connection of 'default'" in suite.text
    suite = inner("leaks.py", *chosen, "-oscopedsession_leaks=ignore").check()
    assert "left open" not in suite.text


@pytest.mark.subprocess
@pytest.mark.slow
def test_leaks_are_found_in_a_package_that_fixtures_import_late(inner):
    """An application that the test imports itself is watched as well."""
    (inner.folder / "conftest.py").unlink()
    (inner.folder / "test_late.py").write_text(LATE, encoding="utf-8")
    suite = inner()
    assert suite.outcomes == expected(suite), suite.text


LATE = """
import sys
import pytest

@pytest.fixture(scope="module")
def context():
    assert "flask_scopedsession" not in sys.modules
    from shop import create_app
    with create_app("sqlite://").app_context() as context:
        yield context

def test_fine_context(context):
    from shop import db
    db.session.connection()

def test_leak_in_the_test(context):
    context.app.test_client().get("/connection")
"""
