"""Tests keep to the rooms of the package, and to its public names."""

from __future__ import annotations
import __future__

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "flask_scopedsession"
ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


# Tests


def imported(source: str) -> Iterator[list[str]]:
    """Return what is imported from the package, each as the parts of its name."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, *parts = name.split(".")
            if top == PACKAGE:
                yield parts


def out_of_place(source: str, room: str) -> list[str]:
    """Return the private names of other rooms that a test imports."""
    return [
        ".".join([PACKAGE, *parts])
        for parts in imported(source)
        if any(re.match("_(?!_)", part) for part in parts)
        and parts[0] not in (room, f"_{room}")
    ]


def test_private_names_are_imported_in_their_own_room_only() -> None:
    """Else through ``support/inside.py``, so that a rewrite has one file to change."""
    inside = TESTS / "support" / "inside.py"
    wrong = {}
    for path in TESTS.rglob("*.py"):
        room = path.relative_to(TESTS).parts[0]
        found = out_of_place(path.read_text(encoding="utf-8"), room)
        if found and path != inside:
            wrong[str(path.relative_to(TESTS))] = found
    assert wrong == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from flask_scopedsession import ScopedSession", []),
        ("from flask_scopedsession.snapshot import Survey", []),
        ("from flask_scopedsession.__main__ import main", []),
        ("from flask_scopedsession._pools.account import Ledger", []),
        ("from sqlalchemy._private import name", []),
        ("import flask_scopedsession._live", [f"{PACKAGE}._live"]),
        ("from flask_scopedsession import _live", [f"{PACKAGE}._live"]),
        (
            "def f():\n    from flask_scopedsession._live.reader import Reader",
            [f"{PACKAGE}._live.reader.Reader"],
        ),
        (
            "from flask_scopedsession.snapshot._json import timestamp",
            [f"{PACKAGE}.snapshot._json.timestamp"],
        ),
    ],
)
def test_what_a_test_of_the_pools_may_import(source: str, expected: list[str]) -> None:
    assert out_of_place(source, "pools") == expected


# Public names


def exposed(name: str) -> set[str]:
    """Return the public names of a module that are its own or the package's."""
    found = set()
    for key, value in vars(importlib.import_module(name)).items():
        defined = inspect.isclass(value) or inspect.isroutine(value)
        foreign = (
            inspect.ismodule(value)
            or isinstance(value, __future__._Feature)
            or (defined and not value.__module__.startswith(PACKAGE))
        )
        if not key.startswith("_") and not foreign:
            found.add(key)
    return found


@pytest.mark.parametrize(
    "module",
    [
        *("", ".cli", ".dashboard", ".errors", ".flask_sqlalchemy", ".snapshot"),
        *(".testing", ".views"),
    ],
)
def test_all_is_exactly_what_a_module_exposes(module: str) -> None:
    """No public name is missing from ``__all__``, and none is there by accident."""
    listed = importlib.import_module(PACKAGE + module).__all__
    assert len(listed) == len(set(listed))
    assert set(listed) == exposed(PACKAGE + module)
