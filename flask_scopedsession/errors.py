"""Every error that this package raises, in one tree.

An error that stands for one of Flask's or SQLAlchemy's also inherits from it,
so that code written against those keeps working.
"""

from __future__ import annotations

from sqlalchemy.exc import InvalidRequestError

__all__ = [
    "AppNotInitialized",
    "ConfigError",
    "ControlError",
    "LostWork",
    "OutsideContext",
    "PingError",
    "ScopedSessionError",
    "SessionRemoved",
    "SetupError",
    "SharedSession",
    "UnknownBind",
    "UnsafeDirectory",
]


class ScopedSessionError(Exception):
    """Base of every error of this package."""


class ConfigError(ScopedSessionError, ValueError):
    """A configuration key or argument is missing, malformed or contradictory."""


class SetupError(ScopedSessionError, RuntimeError):
    """The extension was set up wrongly, such as twice for one application."""


class AppNotInitialized(SetupError):
    """The current application was never given to :meth:`.ScopedSession.init_app`."""


class OutsideContext(ScopedSessionError, RuntimeError):
    """A session or engine was asked for where no application context is active."""


class UnknownBind(ScopedSessionError, LookupError):
    """No bind of that name is configured."""


class SessionRemoved(ScopedSessionError, InvalidRequestError):
    """A session was used after its scope had ended."""


class SharedSession(ScopedSessionError, InvalidRequestError):
    """A session was called while another thread was in the midst of a call of it."""


class LostWork(ScopedSessionError, RuntimeError):
    """A scope ended well, but its changes were never committed."""


class PingError(ScopedSessionError):
    """The database could not be reached, or did not answer in time."""


class ControlError(ScopedSessionError):
    """The live view could not be offered, or not be read."""


class UnsafeDirectory(ControlError):
    """The control directory could be read or replaced by somebody else."""
