"""Each Flask by its own rules, and older ones by those announced for 3.2 as well."""

from __future__ import annotations

import pytest
from flask import Flask
from inside import tracked_pool

from flask_scopedsession._scopes import context as _context
from flask_scopedsession._scopes import scope
from flask_scopedsession._scopes import streams

REAL = _context.REQUESTS_OWN_THEIR_CONTEXT


@pytest.fixture(
    params=[True] if REAL else [False, True],
    ids=lambda new: "own contexts" if new else "shared contexts",
)
def new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether each request has a context of its own."""
    found: bool = request.param
    if found != REAL:
        for module in (_context, scope, streams):
            monkeypatch.setattr(module, "REQUESTS_OWN_THEIR_CONTEXT", found)
        for module in (_context, scope, tracked_pool):
            name = "current_request_context"
            monkeypatch.setattr(module, name, _context._no_request_context)
    return found


@pytest.fixture
def flask_class(new: bool) -> type[Flask]:
    """A Flask with these rules."""
    if REAL or not new:
        return Flask
    from merged import Merged  # of classes that 3.2 does not have

    return Merged
