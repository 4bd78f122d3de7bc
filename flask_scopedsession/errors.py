"""Every error that this package raises, in one tree.

An error that stands for one of Flask's or SQLAlchemy's also inherits from that, so that
code written for those keeps working.
"""

from __future__ import annotations

import sys
import typing as t

from sqlalchemy.exc import InvalidRequestError

__all__ = [
    "AppNotInitialized",
    "ConfigError",
    "ControlError",
    "IsolationError",
    "LostWork",
    "MixedBinds",
    "OutsideContext",
    "PingError",
    "ScopedSessionError",
    "SessionRemoved",
    "SetupError",
    "SharedSession",
    "TooManyStatements",
    "TransactionError",
    "UnknownBind",
    "UnsafeDirectory",
    "UnsavedWork",
]


#: The page with a section for each class. Once the documentation has a public address,
#: it goes here.
_PAGE = "docs/errors.md"


class ScopedSessionError(Exception):
    """Base of every error of this package."""

    def __init__(self, *args: t.Any) -> None:
        super().__init__(*args)
        if sys.version_info >= (3, 11):
            # A note, because logs and error trackers group errors by their messages.
            kinds = (c.__name__ for c in type(self).__mro__ if c.__module__ == __name__)
            self.add_note(f"Background on this error: {_PAGE}#{next(kinds).lower()}")


class ConfigError(ScopedSessionError, ValueError):
    """A configuration key or an argument is missing, wrong or contradictory.

    The message names the key or argument, what it must be, and never the value, which
    may hold a password. Correct it where it is set: on ``app.config`` before
    ``init_app``, in the environment, or in the call.
    """


class SetupError(ScopedSessionError, RuntimeError):
    """The extension was set up wrongly, such as twice for one application.

    Call :meth:`.ScopedSession.init_app` once for each application, with the
    application itself. For several databases use ``SQLALCHEMY_BINDS``.
    """


class AppNotInitialized(SetupError):
    """The current application was never given to :meth:`.ScopedSession.init_app`.

    Call ``db.init_app(app)`` in the factory that makes the application, and use the
    same ``db`` everywhere.
    """


class OutsideContext(ScopedSessionError, RuntimeError):
    """A session or engine was used where no application context is active.

    Flask has one during each request and command. Elsewhere, such as in a thread of
    your own or a script, use ``with app.app_context():``.
    """


class UnknownBind(ScopedSessionError, LookupError):
    """No bind of that name is configured.

    The message lists the binds that are. Add the missing one to ``SQLALCHEMY_BINDS``,
    or correct the name.
    """


class MixedBinds(ScopedSessionError, InvalidRequestError):
    """A statement uses tables of several databases, and can be sent to none.

    The message has a table or model of each. Use one statement for each database, or
    pass ``bind_arguments={"bind": engine}`` if one of them has all the tables.
    """


class SessionRemoved(ScopedSessionError, InvalidRequestError):
    """A session was used after its scope had ended and removed it.

    Something kept the session, or an object that loads from it, beyond the request or
    context, such as a thread or a generator. Use ``db.session`` there instead, and pass
    primary keys rather than objects.
    """


class SharedSession(ScopedSessionError, InvalidRequestError):
    """A session was used while another thread was using it.

    Two threads share an application context, and so its session and transaction. Give
    each thread a context of its own: ``with app.app_context():``.
    """


class LostWork(ScopedSessionError, RuntimeError):
    """A scope ended well, but with changes that were never committed.

    Raised only with ``SCOPEDSESSION_LOST_WORK = "raise"``. Call
    ``db.session.commit()`` to keep the changes, or ``db.session.rollback()`` to discard
    them.
    """


class TransactionError(ScopedSessionError, InvalidRequestError):
    """A transaction cannot be committed, or not at this place.

    The message says why. For example, a block inside :meth:`.ScopedSession.transaction`
    failed and its error was handled, so that everything was rolled back: let the error
    reach the outermost block.
    """


class UnsavedWork(ScopedSessionError, InvalidRequestError):
    """Changes would be lost by :meth:`.ScopedSession.release`.

    The message counts them. Call ``db.session.commit()`` to keep them, or
    ``db.session.rollback()`` to discard them, before ``db.release()``.
    """


class TooManyStatements(ScopedSessionError, AssertionError):
    """A block sent more statements than :meth:`.ScopedSession.count_statements` allows.

    The message has those that were sent most often, each with the line that sent it. If
    rows are loaded one by one, load them with the list, as by ``selectinload()``.
    """


class IsolationError(ScopedSessionError, RuntimeError):
    """Something cannot be rolled back, or not truly, inside :func:`.testing.isolate`.

    The message has the bind, the reason, and what to do instead. Nothing of it has
    become real. It is none of SQLAlchemy's errors, which applications handle.
    """


class PingError(ScopedSessionError):
    """The database could not be reached, or did not answer in time.

    The message has the driver's kind of error, such as ``connection refused``, and not
    its text, which may hold a password. Check that the server runs, that the URL is
    right, and that the timeout is long enough.
    """


class ControlError(ScopedSessionError):
    """The control socket could not be served or read.

    The message says why. The application itself works without it.
    """


class UnsafeDirectory(ControlError):
    """The control directory could be read or replaced by another user.

    It must belong to the user who runs the workers, and have mode 0700. Remove it, or
    set ``SCOPEDSESSION_CONTROL_DIR`` to a directory that no other user can write to.
    """
