"""Sentry's integrations of SQLAlchemy and Flask, in a process of their own.

What they change in both libraries cannot be undone.
"""

from __future__ import annotations

import json

import pytest
from clients import Client

CLIENT = Client(
    name="sentry-sdk",
    url="https://docs.sentry.io/platforms/python/",
    works="as it is",
    does="traces the statements of a request, and reports one that fails, with them",
)

INSERT = "INSERT INTO user (name) VALUES (?)"


@pytest.mark.subprocess
def test_what_sentry_is_told(run_script, sqlite_url):
    result = run_script("with_sentry.py", sqlite_url)
    told = json.loads(result.stdout)
    assert told == {
        "transactions": [["add", [["db", INSERT]]], ["add", [["db", INSERT]]]],
        "error": "IntegrityError",
        "in": "add",
        "breadcrumbs": [INSERT],
        "left": 0,
    }
