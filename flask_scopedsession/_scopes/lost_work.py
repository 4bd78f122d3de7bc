"""Lost work: a scope ends well, but with changes that nobody committed.

A scope is judged only if no error was raised or handled, and the response is no error
either. What was sent to the database is known to the connection (``_pools.writes``):
the rollback that closes the session adds it, if the driver says that a transaction is
open. What was never flushed is known to the session.
"""

from __future__ import annotations

import typing as t
from collections import Counter
from collections.abc import Mapping

from sqlalchemy import event
from sqlalchemy.orm import Session

from .._format import amounts
from .._runtime.logs import fields
from .._runtime.logs import log
from .._runtime.stacks import own_stack
from .._settings.keys import LOST_WORK
from .._settings.keys import read_key
from .._settings.values import is_on
from ..errors import ConfigError
from ..errors import LostWork
from ..errors import ScopedSessionError
from .context import Context
from .jobs import is_error_handled
from .ledger import Ledger
from .responses import HANDLED
from .responses import STATUS
from .scope import described
from .scope import name_job
from .scope import responsible
from .scope import Scope

# Private: whether nothing is new, deleted or modified. Without it, public collections
# are built to tell.
is_clean: t.Callable[[Session], bool] | None = getattr(Session, "_is_clean", None)


def is_judged(context: Context) -> bool:
    """Whether the request was answered without an error, so that lost work counts."""
    return getattr(context, STATUS, 0) < 400 and not getattr(context, HANDLED, False)


def unflushed(session: Session) -> Counter[str]:
    """Count the objects that closing `session` would lose, by class.

    None, once the application's own ``close()`` has flushed them after all.
    """
    if not session.is_active:
        return Counter()  # a flush failed, and the application handled that
    found = changed(session)
    if found:
        event.listen(session, "after_flush", lambda *_: found.clear())
    return found


def changed(session: Session) -> Counter[str]:
    """Count the objects that are new, deleted or modified and not flushed, by class."""
    found: Counter[str] = Counter()
    for one in (*session.new, *session.deleted):
        found[type(one).__name__] += 1
    if session.identity_map.check_modified():
        for one in session.dirty:
            if session.is_modified(one):
                found[type(one).__name__] += 1
    return found


def by_model(changes: Mapping[str, int], names: Mapping[str, str]) -> Counter[str]:
    """Count changes by model, which may be there by its table's name, too.

    :param names: The model of a table, by the table's name.
    """
    found: Counter[str] = Counter()
    for name, amount in changes.items():
        found[names.get(name, name)] += amount
    return found


def report(
    ledger: Ledger, scope: Scope, lost: Counter[str]
) -> ScopedSessionError | None:
    """Count and log what a scope has lost.

    :return: The error to raise, if the application wants one: in debug mode and tests
        only. Both are looked at now, since they may be set after ``init_app()``.
    """
    app = ledger.app()
    policy, raises = ledger.lost_work, False
    if app is not None:
        try:
            policy = read_key(app.config, LOST_WORK)
            raises = is_on(app.config, "DEBUG") or is_on(app.config, "TESTING")
        except ConfigError as error:
            return error
    if policy == "ignore" or (scope.work is not None and is_error_handled()):
        return None
    name_job(scope)  # of an eager task within a request
    lost = by_model(lost, ledger.model_names())
    who = responsible(scope)
    ledger.count_lost(who, lost)
    place = None
    if who.name is None:
        # Without a name, the line that ends the scope tells them apart.
        place = ledger.places.innermost(own_stack())
    where = f" at {place}" if place else ""
    session = "db.async_session" if scope.lost else "db.session"
    message = (
        f"{described(scope)}{where} ended without commit(): unsaved changes were"
        f" rolled back ({amounts(lost)}). Call {session}.commit(), or"
        f" {session}.rollback() if that was meant."
    )
    if policy == "raise" and raises:
        return LostWork(message)
    about = (*who, place)
    if not any(about) or ledger.first_report(("lost work", *about)):
        log.warning(
            "%s",
            message,
            extra=fields(
                "lost_work",
                endpoint=who.endpoint,
                command=who.command,
                job=who.job,
                lost=dict(lost),
            ),
        )
    return None
