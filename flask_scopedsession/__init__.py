"""SQLAlchemy sessions for Flask, scoped to the application context, in full view."""

from ._extension import ScopedSession

__all__ = ["ScopedSession"]

__version__ = "0.1.0"
