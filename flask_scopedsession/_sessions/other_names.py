"""Names that ``db`` has in Flask-SQLAlchemy and Flask-SQLAlchemy-Lite, and not here."""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import orm

_INSTEAD = {
    "Pagination": "Import it: from flask_scopedsession.views import Pagination.",
    "Query": "Use db.session.query(Model), or select() and db.session.scalars().",
    "Table": "Import it from sqlalchemy: Table(name, db.metadata, ...), with"
    " info={'bind_key': name} for a table in another bind.",
    "get_or_abort": "Use db.get_or_404(), or db.session.get() and abort().",
    "one_or_abort": "Use db.one_or_404(), or db.session.scalars() and abort().",
    "test_isolation": "Use isolate(app) of flask_scopedsession.testing.",
}
_ASYNC = (
    "Async views can use db.session. For async drivers, set SQLALCHEMY_ASYNC_BINDS, and"
    " use db.async_session."
)


def instead_of(name: str) -> str | None:
    """Return a sentence on what to write instead of ``db.<name>``, if it is known."""
    if name in _INSTEAD:
        return _INSTEAD[name]
    if name.startswith(("async_", "get_async_")):
        return _ASYNC
    for module in (sqlalchemy, orm):
        if not name.startswith("_") and hasattr(module, name):
            return f"Import it: from {module.__name__} import {name}."
    return None
