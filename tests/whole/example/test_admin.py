"""The example's admin page, which is there only if it is switched on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

# Flask-Admin takes db itself only from Flask-SQLAlchemy.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Passing a session object directly is deprecated:DeprecationWarning"
    ),
    # SQLAlchemy 2.0.0 and 2.0.1 do not check version counters on SQLite, and warn.
    pytest.mark.filterwarnings(
        "ignore:.* does not support updated rowcount:sqlalchemy.exc.SAWarning"
    ),
]

FLIGHT = {
    "number": "LH400",
    "date": "2025-07-01",
    "origin": "EDDF",
    "destination": "KJFK",
    "minutes": 510,
}

CORRECTED = {
    "number": "lh 401",
    "date": "2025-07-02",
    "minutes": "480",
    "remarks": "calm\nlate",
}


@pytest.fixture
def admin(make_example: Callable[..., Flask]) -> FlaskClient:
    client = make_example(EXAMPLE_ADMIN=True, SECRET_KEY="test").test_client()
    log(client)
    return client


def log(admin: FlaskClient, **fields: Any) -> None:
    assert admin.post("/api/flights", json={**FLIGHT, **fields}).status_code == 201


def audited(admin: FlaskClient) -> list[str]:
    return [entry["action"] for entry in admin.get("/api/audit").json["entries"]]


def save(admin: FlaskClient, **fields: Any) -> TestResponse:
    """Open the form, and send it with the token and the version that it has."""
    page = admin.get("/admin/edit/?id=1").text
    hidden = dict(re.findall(r'name="(\w+)" type="hidden" value="([^"]*)"', page))
    assert hidden.keys() == {"csrf_token", "version"}
    data = {**CORRECTED, **hidden, **fields}
    return admin.post("/admin/edit/?id=1", data=data, follow_redirects=True)


def test_it_lists_the_log(admin: FlaskClient) -> None:
    """And searches it."""
    log(admin, number="OS87")
    page = admin.get("/admin/").text
    assert "LH400" in page
    assert "OS87" in page
    page = admin.get("/admin/?search=os87").text
    assert "LH400" not in page
    assert "OS87" in page


def test_it_edits(admin: FlaskClient) -> None:
    """As the log does: what was entered is normalised, and the change recorded."""
    page = save(admin)
    assert page.request.path == "/admin/"
    assert "successfully saved" in page.text
    flight = admin.get("/api/flights/1").json
    assert (flight["number"], flight["date"]) == ("LH401", "2025-07-02")
    assert (flight["minutes"], flight["remarks"]) == (480, "calm\nlate")
    assert flight["version"] == 2
    assert audited(admin) == ["changed", "created"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"number": "nonsense"}, "Enter a flight number"),
        ({"minutes": "0"}, "Enter a whole number from 1 to 1440."),
        ({"number": "OS87", "date": "2025-07-01"}, "is in the log already"),
        ({"version": "7"}, "Somebody else has changed this flight"),
        ({"version": "x"}, "Send the &#39;version&#39;"),
        ({"csrf_token": "forged"}, ""),
    ],
)
def test_it_refuses(admin: FlaskClient, fields: dict[str, str], says: str) -> None:
    """The form is shown again, and nothing is stored."""
    log(admin, number="OS87")
    page = save(admin, **fields)
    assert page.request.path == "/admin/edit/"
    assert says in page.text
    assert admin.get("/api/flights/1").json["version"] == 1
    assert audited(admin) == ["created", "created"]


def test_an_edit_of_an_old_version(admin: FlaskClient) -> None:
    """Another one that was made while the form was open is not overwritten."""
    admin.put("/api/flights/1", json={**FLIGHT, "minutes": 470, "version": 1})
    assert "Somebody else has changed this flight" in save(admin, version="1").text
    assert admin.get("/api/flights/1").json["minutes"] == 470


def test_it_neither_creates_nor_deletes(admin: FlaskClient) -> None:
    for path in ("/admin/new/", "/admin/delete/", "/admin/action/"):
        admin.post(path, data={"id": "1", "action": "delete", "rowid": "1"})
    assert admin.get("/api/flights").json["total"] == 1


def test_it_is_hidden(browser: FlaskClient) -> None:
    """Without the switch, there is no such page."""
    assert browser.get("/admin/").status_code == 404
    assert "Admin" not in browser.get("/").text


def test_it_is_switched_on_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, make_example: Callable[..., Flask]
) -> None:
    """With a key for the session; the error says what to set."""
    monkeypatch.setenv("EXAMPLE_ADMIN", "1")
    with pytest.raises(RuntimeError, match="Set FLASK_SECRET_KEY"):
        make_example()
    monkeypatch.setenv("FLASK_SECRET_KEY", "test")
    client = make_example().test_client()
    assert 'href="/admin/"' in client.get("/").text
    assert client.get("/admin/").status_code == 200
