"""The example's dashboard, which is for the machine that it runs on."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient


def test_this_machine_sees_it(browser: FlaskClient) -> None:
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]"):
        reply = browser.get("/pools/", headers={"Host": host})
        assert reply.status_code == 200
        assert "Pools of example_app" in reply.text


@pytest.mark.parametrize(
    "asked",
    [
        {"environ_overrides": {"REMOTE_ADDR": "192.0.2.1"}},
        {"environ_overrides": {"REMOTE_ADDR": ""}},
        {"headers": {"X-Forwarded-For": "127.0.0.1"}},
        {"headers": {"Host": "airports.example"}},
        {"headers": {"Host": "localhost.example:8000"}},
    ],
)
def test_others_do_not(browser: FlaskClient, asked: dict[str, Any]) -> None:
    """Nor those behind a proxy, nor a website with a name for this machine."""
    for path in ("", "content", "status.json"):
        assert browser.get(f"/pools/{path}", **asked).status_code == 403
