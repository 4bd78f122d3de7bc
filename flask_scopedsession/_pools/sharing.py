"""Two threads that use one connection at the same time.

SQLAlchemy refuses only a simultaneous flush or commit. A session that merely goes from
one thread to another, as in an async view, is legitimate: only statements that overlap
are reported.
"""

from __future__ import annotations

import threading
import typing as t
from threading import get_ident

from .._runtime.logs import fields
from .._runtime.logs import log
from .._runtime.native import current_greenlet
from .._runtime.places import Places
from .._runtime.stacks import own_stack
from .._runtime.stacks import RawStack
from .._runtime.stacks import stack_of_thread
from .._scopes.scope import described
from .._scopes.scope import Responsible
from .._scopes.scope import responsible
from .._settings.values import is_on
from ..errors import SharedSession

if t.TYPE_CHECKING:
    from ..snapshot import ThreadPlace
    from .slot import Slot


def note_sharing(slot: Slot) -> None:
    """Note that another thread's statement is running on a connection.

    :raises SharedSession: In debug mode.
    """
    runner = slot.runner
    if runner is None or runner == get_ident():
        return  # it has just ended; or a function that SQLite calls runs a statement
    error = _report(slot, runner, refused=_is_debug(slot))
    if _is_debug(slot):
        raise error


def abandon(slot: Slot, connection: t.Any) -> None:
    """Keep a connection out of the pool on which another thread's statement runs.

    That thread closes it when its statement ends. A rollback now would put it back
    into the pool while it is in use; raising alone would lose the pool's slot.

    :raises SharedSession: Always, if there is such a thread.
    """
    runner = slot.runner
    if runner is None or runner == get_ident():
        return
    driver = slot.abandoned = slot.driver
    # If that thread ended its statement just before, it has not seen our request.
    has_ended = slot.runner is None
    connection.detach()
    # Detached, so this closes nothing: SQLAlchemy forgets the connection, which it
    # would close under the other thread's statement.
    connection.invalidate()
    if has_ended:
        driver.close()
    raise _report(slot, runner, refused=True)


def _is_debug(slot: Slot) -> bool:
    app = slot.account.ledger.app()
    return app is not None and is_on(app.config, "DEBUG")


def _report(slot: Slot, runner: int, *, refused: bool) -> SharedSession:
    """Note both threads and their lines, and log it once per view."""
    from ..snapshot import SharedUse
    from ..snapshot._json import timestamp

    ledger, scope = slot.account.ledger, slot.scope
    there = _place(ledger.places, runner)
    here = _place(ledger.places, None)
    who = Responsible() if scope is None else responsible(scope)
    ledger.shared.append(
        SharedUse(
            at_time=timestamp(),
            **who._asdict(),
            refused=refused,
            threads=(there, here),
        )
    )
    view = "A scope" if scope is None else described(scope)
    message = (
        f"{view}: two threads use one connection at the same time, {_named(there)} and"
        f" {_named(here)}. Give each thread a context of its own, 'with"
        " app.app_context():', and hand over primary keys instead of objects."
    )
    # Without a name, the lines tell one use from another.
    about = who if who.name else (there.at, here.at)
    if ledger.first_report(("shared", about)):
        log.warning(
            "%s",
            message,
            extra=fields(
                "shared_session",
                endpoint=who.endpoint,
                command=who.command,
                job=who.job,
                threads=[each.to_dict() for each in (there, here)],
            ),
        )
    return SharedSession(message)


def _place(places: Places, ident: int | None) -> ThreadPlace:
    """Return a thread, and the line of the app's own code that it is at."""
    from ..snapshot import ThreadPlace

    if ident is None:
        return ThreadPlace(
            threading.current_thread().name, places.innermost(own_stack())
        )
    names = [each.name for each in threading.enumerate() if each.ident == ident]
    # Under gevent, an ident is a greenlet's, and no stack has it.
    stack: RawStack = () if current_greenlet() else stack_of_thread(ident)
    return ThreadPlace(names[0] if names else "another", places.innermost(stack))


def _named(place: ThreadPlace) -> str:
    return f"{place.thread!r}" + (f" at {place.at}" if place.at else "")
