"""The documentation's table is that of the tests in this folder."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest
from clients import clients
from clients import MODULES
from clients import PAGE
from clients import table
from clients import TESTS


def test_the_page_has_the_table():
    """``python tests/support/clients.py`` writes it."""
    assert table() in PAGE.read_text(encoding="utf-8")


def test_each_module_names_its_client():
    named = {test for test, _ in clients()}
    others = {"test_grafana.py", "test_peers.py", "test_table.py"}
    assert named == {path.name for path in MODULES} - others


@pytest.mark.parametrize(
    ("test", "name"), [(test, c.name) for test, c in clients() if c.works == "recipe"]
)
def test_each_recipe_is_run(test, name):
    """By the test of its library."""
    assert f'recipe("{name}"' in (TESTS / test).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("library", "page"),
    [
        ("flask_sqlalchemy", "plain-core.md"),
        ("flask_sqlalchemy_lite", "flask-sqlalchemy-lite.md"),
    ],
)
def test_every_name_that_people_move_from_is_documented(library, page):
    """The pages on moving in have every public name and argument of ``SQLAlchemy``."""
    found = import_module(library).SQLAlchemy
    arguments = set(inspect.signature(found).parameters) - {"app"}
    names = {name for name in vars(found) if not name.startswith("_")} | arguments
    assert {"init_app", "session_options"} < names
    text = (PAGE.parent / page).read_text(encoding="utf-8")
    assert names - set(re.findall(r"\w+", text)) == set()
