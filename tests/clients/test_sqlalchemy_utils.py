"""SQLAlchemy-Utils: types, observers, and functions for databases.

In a process of its own: from its import on, it listens to all sessions and mappers.
"""

from __future__ import annotations

import json

import pytest
from clients import Client
from sqlalchemy import make_url

CLIENT = Client(
    name="SQLAlchemy-Utils",
    url="https://sqlalchemy-utils.readthedocs.io/",
    works="as it is",
    does="stores its types, observes a relationship, creates and drops the database",
)


@pytest.mark.subprocess
@pytest.mark.parametrize("server", ["sqlite_url", "pg_url"])
def test_what_it_does(run_script, request, server):
    """By the URL of our engine, the name of the driver and the password included."""
    url = make_url(request.getfixturevalue(server))
    new = url.set(database=f"{url.database}_new").render_as_string(hide_password=False)
    result = run_script("with_sqlalchemy_utils.py", new)
    assert json.loads(result.stdout) == {
        "before": False,
        "created": True,
        "values": ["UUID", "ada@example.org", "Adult"],
        "observed": [7, 17],
        "after": False,
    }
