"""Frames as ``path:line function``, of the application's own code only."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from flask.views import MethodView
from flask.views import View

from flask_scopedsession._runtime import native
from flask_scopedsession._runtime.places import Places


@pytest.fixture
def places() -> Places:
    return Places(str(Path(__file__).parent))


def code_in(path: Path) -> Any:
    """Return a code object that was compiled from a file of this name."""
    return compile("pass", str(path), "exec")


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("shop/app.py", "app.py"),
        ("shop/views/orders.py", "views/orders.py"),
        ("models.py", "../models.py"),
        ("shop/venv/lib/python3/site-packages/x.py", None),
        ("venv/lib/python3/dist-packages/x.py", None),
        ("../elsewhere.py", None),
    ],
)
def test_code_of_the_application_and_its_project(
    short_tmp: Path, file: str, label: str | None
) -> None:
    root = short_tmp / "project" / "shop"
    root.mkdir(parents=True)
    code = code_in(root.parent / file)
    expected = None if label is None else f"{label}:7 <module>"
    assert Places(str(root)).innermost([(code, 7)]) == expected


def test_a_stack_is_reduced_to_own_places(places: Places) -> None:
    """The standard library, this package and generated code are left out."""
    own = code_in(Path(__file__))
    others = [
        json.dumps.__code__,
        native.original.__code__,
        compile("pass", "<string>", "exec"),
    ]
    raw = [*((code, 1) for code in others), (own, 2), (own, 3)]
    assert places.innermost(raw) == "test_places.py:2 <module>"
    assert places.stack(raw) == (
        "test_places.py:2 <module>",
        "test_places.py:3 <module>",
    )
    assert places.innermost([(code, 1) for code in others]) is None


def decorated(view: Any) -> Any:
    @functools.wraps(view)
    def wrapper(*args: Any) -> Any:
        return view(*args)

    return wrapper


def a_view() -> str:
    return "plain"


class Dispatching(View):
    def dispatch_request(self) -> str:
        return "class"


class Methods(MethodView):
    def get(self) -> str:
        return "method"


@pytest.mark.parametrize(
    ("view", "code"),
    [
        (a_view, a_view.__code__),
        (decorated(a_view), a_view.__code__),
        (Dispatching.as_view("x"), Dispatching.dispatch_request.__code__),
        (Methods.as_view("x"), Methods.get.__code__),
    ],
    ids=["function", "decorated", "class", "methods"],
)
def test_where_a_view_is_defined(places: Places, view: Any, code: Any) -> None:
    expected = f"test_places.py:{code.co_firstlineno} {code.co_name}"
    assert places.definition(view) == expected


@pytest.mark.parametrize("view", [None, len])
def test_a_view_without_a_place(places: Places, view: Any) -> None:
    assert places.definition(view) is None
