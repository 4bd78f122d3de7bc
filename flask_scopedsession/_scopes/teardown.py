"""How a scope ends: lost work is judged, and each session is closed for good."""

from __future__ import annotations

import logging
import sys
import typing as t
from collections import Counter
from threading import get_ident

from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.orm import Session

from ..errors import SessionRemoved
from .context import Context
from .ledger import Ledger
from .lost_work import has_changes
from .lost_work import report
from .lost_work import unflushed
from .responses import HANDLED
from .scope import Scope

if t.TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction

log = logging.getLogger("flask_scopedsession")


def end_scope(
    ledger: Ledger, scope: Scope, context: Context, error: BaseException | None
) -> BaseException | None:
    """Close a scope's sessions at the teardown of `context`, whatever happens.

    :param error: What the context ended with.
    :return: An error to raise: lost work, or what interrupted us.
    """
    sessions = scope.sessions
    lost: Counter[str] | None = None
    raising: BaseException | None = None
    try:
        if error is None and sessions and ledger.lost_work != "ignore":
            try:
                lost = _losing(ledger, scope, context)
            except BaseException as interrupt:  # noqa: BLE001 - raised at the end
                raising = interrupt
        for name, session in list(sessions.items()):
            failure = close_session(session)
            # Only now, so that the scope closes it later if this is interrupted.
            sessions.pop(name, None)
            if failure is not None:
                text = "session: close() failed in teardown"
                log.warning(text, exc_info=without_context(failure, error))
                if not isinstance(failure, Exception):
                    raising = raising or failure
    finally:
        if ledger.ending:
            ledger.ending.pop(get_ident(), None)
    if lost and raising is None:
        raising = report(ledger, scope, lost)
    return raising


def _losing(ledger: Ledger, scope: Scope, context: Context) -> Counter[str] | None:
    """Return what closing the sessions would lose, if the scope ends well.

    Connections add to it what they roll back as the sessions are closed.
    """
    if scope.status >= 400 or HANDLED in context.__dict__:
        return None
    found: Counter[str] | None = None
    for session in list(scope.sessions.values()):
        try:
            if has_changes(session):
                found = (found or Counter()) + unflushed(session)
        except Exception as problem:  # the user's own types, maybe
            text = "session: cannot tell what it changed"
            log.warning(text, exc_info=without_context(problem, None))
    if ledger.uncommitted:
        found = ledger.ending[get_ident()] = found or Counter()
    return found


def close_sessions(scope: Scope) -> list[BaseException]:
    """Close and forget a scope's sessions; return what went wrong."""
    failures: list[BaseException] = []
    for name, session in list(scope.sessions.items()):
        failure = close_session(session)
        scope.sessions.pop(name, None)
        if failure is not None:
            failures.append(failure)
    return failures


def close_forgotten(scope: Scope) -> None:
    """Close the sessions of a scope that was never torn down."""
    under_way = sys.exc_info()[1]
    for failure in close_sessions(scope):
        text = "a scope that was never torn down: close() failed"
        log.warning(text, exc_info=without_context(failure, under_way))


def close_session(session: Session) -> BaseException | None:
    """Close a session for good, and return what went wrong, if anything.

    Its connections go back to their pools whatever ``close()`` does. Afterwards the
    session refuses to take another one, which no scope would return.
    """
    failure: BaseException | None = None
    transaction = session.get_transaction()
    try:
        session.close()
        if session.get_transaction() is not None:
            _close_again(session)
    except BaseException as error:  # noqa: BLE001 - returned, for the caller to raise
        failure = error
        _discard(session, transaction, error)
    session.__dict__.update(_REFUSALS)
    return failure


def _close_again(session: Session) -> None:
    """Close what the application's ``close()``, or a listener, has begun anew."""
    session.__dict__.update(_REFUSALS)
    try:
        Session.close(session)
    except SessionRemoved:
        pass  # a listener tried once more, after the connections were returned


def _discard(
    session: Session,
    transaction: SessionTransaction | None,
    under_way: BaseException,
) -> None:
    """Throw away the connections that a failed ``close()`` has left checked out.

    SQLAlchemy stops at the first connection that fails.
    """
    open_ones: t.Any = getattr(transaction, "_connections", None) or {}
    left = {id(each[0]): each[0] for each in open_ones.values()}
    for throw_away in (session.invalidate, *(c.invalidate for c in left.values())):
        try:
            throw_away()
        except ResourceClosedError:
            pass  # it was returned
        except Exception as error:
            text = "session: cannot throw a connection away"
            log.warning(text, exc_info=without_context(error, under_way))


def without_context(
    failure: BaseException, under_way: BaseException | None
) -> BaseException:
    """Return an error to log, without the one that was handled when it was raised.

    That is the application's, and SQLAlchemy writes parameters into its errors.
    """
    each: BaseException | None = failure
    while under_way is not None and each is not None:
        if each.__context__ is under_way:
            each.__context__ = None
        if each.__cause__ is under_way:
            each.__cause__ = None
        each = each.__cause__ or each.__context__
    return failure


def _refuse(*_: t.Any, **__: t.Any) -> t.NoReturn:
    raise refusal()


def refusal() -> SessionRemoved:
    """Return the error of a session that is used after its end."""
    return SessionRemoved(
        "This session was removed when its scope ended, or by remove(). Use"
        " 'db.session' where the work is done instead of keeping a session, and"
        " load objects again in the new scope. What runs on after the response, as a"
        " stream or a thread does, opens its own: 'with app.app_context():'."
    )


#: What a removed session has instead of its methods. Private is the second, which every
#: use of a connection goes through; without it, only a use that names an engine itself
#: is not refused.
_REFUSALS = {
    "get_bind": _refuse,
    **(
        {"_connection_for_bind": _refuse}
        if hasattr(Session, "_connection_for_bind")
        else {}
    ),
}
