"""How a scope ends: lost work is judged, and each session is closed for good."""

from __future__ import annotations

import sys
import typing as t
from collections import Counter
from contextlib import suppress
from threading import get_ident

from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.orm import Session

from .._runtime.logs import fields
from .._runtime.logs import log
from ..errors import SessionRemoved
from .context import Context
from .ledger import Ledger
from .lost_work import is_clean
from .lost_work import is_judged
from .lost_work import report
from .lost_work import unflushed
from .scope import Scope

if t.TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction

# Private: what every use of a connection by a session goes through. Without it, a use
# that names an engine itself is not refused after the session's end.
_HAS_ONE_WAY = hasattr(Session, "_connection_for_bind")


def end_scope(
    ledger: Ledger, scope: Scope, context: Context, error: BaseException | None
) -> BaseException | None:
    """Close a scope's sessions at the teardown of `context`, whatever happens.

    :param error: What the context ended with.
    :return: An error to raise: lost work, or what interrupted us.
    """
    sessions = scope.sessions
    losing: list[Counter[str]] = []
    rolled_back: Counter[str] | None = None
    raising: BaseException | None = None
    try:
        # How the request was answered is asked only if something may be lost.
        may_lose = error is None and ledger.lost_work != "ignore"
        if may_lose and scope.lost is not None and is_judged(context):
            losing.append(scope.lost)
        for name, session in list(sessions.items()):
            try:
                if (
                    may_lose
                    and (
                        ledger.uncommitted
                        or losing
                        or is_clean is None
                        or not is_clean(session)
                    )
                    and is_judged(context)
                ):
                    if rolled_back is None:
                        # Connections add what they roll back as sessions are closed.
                        rolled_back = ledger.ending[get_ident()] = Counter()
                        losing.append(rolled_back)
                    losing.append(_unflushed(session))
            except BaseException as interrupt:  # noqa: BLE001 - raised at the end
                raising = raising or interrupt
            failure = close_session(session, ledger, scope)
            # Only now, so that the scope closes it later if this is interrupted.
            sessions.pop(name, None)
            if failure is not None:
                text = "session: close() failed in teardown"
                cause = without_context(failure, error)
                log.warning(text, exc_info=cause, extra=fields("end_failed"))
                if not isinstance(failure, Exception):
                    raising = raising or failure
        if scope.last is not None and scope.last.scope is scope:
            scope.last.account.record_checkouts(scope)  # it is leaked
    finally:
        if ledger.ending:
            ledger.ending.pop(get_ident(), None)
    if losing and raising is None:
        lost = sum(losing, Counter[str]())
        if lost:
            raising = report(ledger, scope, lost)
    return raising


def _unflushed(session: Session) -> Counter[str]:
    try:
        return unflushed(session)
    except Exception as problem:  # the user's own types, maybe
        text = "session: cannot tell what it changed"
        cause = without_context(problem, None)
        log.warning(text, exc_info=cause, extra=fields("end_failed"))
    return Counter()


def close_sessions(ledger: Ledger, scope: Scope) -> list[BaseException]:
    """Close and forget a scope's sessions; return what went wrong."""
    failures: list[BaseException] = []
    for name, session in list(scope.sessions.items()):
        failure = close_session(session, ledger, scope)
        scope.sessions.pop(name, None)
        if failure is not None:
            failures.append(failure)
    return failures


def close_forgotten(ledger: Ledger, scope: Scope) -> None:
    """Close the sessions of a scope that was never torn down."""
    under_way = sys.exc_info()[1]
    for failure in close_sessions(ledger, scope):
        text = "a scope that was never torn down: close() failed"
        cause = without_context(failure, under_way)
        log.warning(text, exc_info=cause, extra=fields("end_failed"))


def close_session(
    session: Session, ledger: Ledger | None = None, scope: Scope | None = None
) -> BaseException | None:
    """Close a session for good, and return what went wrong, if anything.

    Its connections go back to their pools whatever ``close()`` does. Afterwards the
    session refuses to take another one, which no scope would return.

    :param ledger: Knows which connections a failed ``close()`` has left checked out.
    :param scope: Whose last connection tells whether there is anything left to close.
    """
    failure: BaseException | None = None
    transaction = session.get_transaction()
    try:
        session.close()
        last = None if scope is None else scope.last
        if last is None or last.scope is not None:
            _close_again(session)
    except BaseException as error:  # noqa: BLE001 - returned, for the caller to raise
        failure = error
        discard(session, transaction, ledger, error)
    refuse_use(session, _refuse)
    try:
        return failure
    finally:
        failure = None  # else the error and this frame keep each other alive


def refuse_use(session: Session, refuse: t.Callable[..., t.NoReturn]) -> None:
    """Let a session take no further connection: `refuse` is called instead."""
    own: t.Any = session
    own.get_bind = refuse
    if _HAS_ONE_WAY:
        own._connection_for_bind = refuse


def _close_again(session: t.Any) -> None:
    """Close what the application's ``close()``, or a listener, has begun anew."""
    if session.get_transaction() is None:
        return
    session.get_bind = session._connection_for_bind = _refuse
    # A listener may try once more, after the connections were returned.
    with suppress(SessionRemoved):
        Session.close(session)


def discard(
    session: Session,
    transaction: SessionTransaction | None,
    ledger: Ledger | None,
    under_way: BaseException,
) -> None:
    """Throw away the connections that a failed ``close()`` has left checked out.

    SQLAlchemy stops at the first connection that fails. If an exception such as Ctrl-C
    interrupts it, a connection may be held by nothing but that exception's traceback.
    """
    of_session = [connection for connection, *_ in connections_of(transaction)]
    here = [p for a in (ledger.accounts if ledger else ()) for p in a.held_here()]
    for connection in (session, *of_session):
        _throw_away(connection, under_way)
    # If there are more, some are not the session's, and nothing says which.
    for proxied in here if len(here) <= len(of_session) else ():
        if proxied.is_valid:
            _throw_away(proxied, under_way)


def connections_of(
    transaction: SessionTransaction | None,
) -> list[tuple[t.Any, ...]]:
    """Return the connections that a session uses, each with its transaction.

    Private: SQLAlchemy has no way to ask a session that does not begin a transaction.
    Without the name, no connection is known to belong to a session.
    """
    known: t.Any = getattr(transaction, "_connections", None) or {}
    # By each engine and connection: some are there twice.
    return list(dict.fromkeys(known.values()))


def _throw_away(connection: t.Any, under_way: BaseException) -> None:
    try:
        connection.invalidate()
    except ResourceClosedError:
        pass  # it was returned
    except Exception as error:
        text = "session: cannot throw a connection away"
        cause = without_context(error, under_way)
        log.warning(text, exc_info=cause, extra=fields("end_failed"))


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
