"""Flask-SQLAlchemy 3.1's public API on this package's engines, sessions and live view.

Change the import, and keep the code::

    from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

The modules here have the names that those of Flask-SQLAlchemy have.
"""

from __future__ import annotations

import typing as t

from ._alias import install_as_flask_sqlalchemy
from .extension import SQLAlchemy

__all__ = ["SQLAlchemy", "install_as_flask_sqlalchemy"]

__version__ = "3.1.1"
"""The version of Flask-SQLAlchemy whose API this is."""

_MOVED = {
    "BaseQuery": "flask_sqlalchemy.query.Query",
    "Model": "flask_sqlalchemy.model.Model",
    "Pagination": "flask_sqlalchemy.pagination.Pagination",
    "SignallingSession": "flask_sqlalchemy.session.Session",
    "get_debug_queries": "flask_sqlalchemy.record_queries.get_recorded_queries",
    "before_models_committed": "flask_sqlalchemy.track_modifications",
    "models_committed": "flask_sqlalchemy.track_modifications",
}


def __getattr__(name: str) -> t.NoReturn:
    if name in _MOVED:
        raise ImportError(
            f"{name!r} was here in Flask-SQLAlchemy 2. Since its version 3 it is"
            f" {_MOVED[name]}."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
