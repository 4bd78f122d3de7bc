"""Two threads with one session: refused at once, reported within a transaction.

A context that is handed to another thread, by ``contextvars.copy_context()`` or an
executor that does so, takes its session along. The rule:

-   A call on a session while another thread is in the midst of one raises
    :exc:`.SharedSession`.
-   When a transaction goes from one thread to another, the one that had it must have
    ended, or wait for others: that is how an async view takes over from a
    ``before_request`` function, and gives back. If it is at work, the log says so,
    once for each view.
"""

from __future__ import annotations

import logging
import os
import typing as t

from ..errors import SharedSession
from .scope import at_work
from .scope import described
from .scope import is_inside
from .scope import Owner
from .scope import Responsible
from .scope import responsible
from .scope import stack_of

if t.TYPE_CHECKING:
    from .._application import AppState
    from .._pools.account import SessionEntry
    from ..snapshot import ThreadPlace

log = logging.getLogger("flask_scopedsession")

#: On a session: who is in the midst of a call of it.
_USER = "_scopedsession_user"

#: The code whose calls are told from the marks that an exception left behind.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CALLS = os.path.join(_PACKAGE, "_sessions", "factory.py")


class OneThreadAtATime:
    """What a session knows of the threads that call it."""

    _scopedsession_state: AppState | None = None
    """Set for a session of a scope; only those are reported."""
    _scopedsession_entry: SessionEntry | None = None
    _scopedsession_by: Owner | None = None
    """Who called it last."""
    _scopedsession_ended = False
    """Its scope is over: whoever is in the midst of a call closes it afterwards."""

    def _scopedsession_take(self, user: tuple[int], mine: tuple[int]) -> None:
        """Begin a call where `user` seems to be in the midst of one.

        :raises SharedSession: It is.
        """
        if self._scopedsession_busy(user):
            raise SharedSession(self._scopedsession_say(None))
        self.__dict__[_USER] = mine
        by = self._scopedsession_by
        if by is None or by.ident != mine[0]:
            self._scopedsession_handed_over()

    def _scopedsession_busy(self, user: tuple[int]) -> bool:
        """Whether the thread that left its mark is in a call of ours indeed.

        What raises between two lines, as Ctrl-C does, may have left it behind.
        """
        by = self._scopedsession_by
        if by is None or by.ident != user[0]:
            return True  # it is about to say who it is
        return is_inside(by, _CALLS)

    def _scopedsession_handed_over(self) -> None:
        """Note that another thread goes on, and report it if the last one does too.

        The caller has left its mark. What is raised here takes it away.
        """
        try:
            self._scopedsession_report()
        except BaseException:
            self.__dict__.pop(_USER, None)
            raise

    def _scopedsession_report(self) -> None:
        before, self._scopedsession_by = self._scopedsession_by, Owner(None, None)
        state = self._scopedsession_state
        if before is None or state is None or not self.in_transaction():
            return
        if not at_work(before):
            return
        entry = self._scopedsession_entry
        who = described(None if entry is None else entry.owner)
        if state.first_report(f"{who} shares"):
            log.warning("%s", self._scopedsession_say(before))

    def _scopedsession_say(self, before: Owner | None) -> str:
        """Note both threads and their lines in the ledger, and name them."""
        entry, state = self._scopedsession_entry, self._scopedsession_state
        owner = None if entry is None else entry.owner
        there = _place(entry, before or self._scopedsession_by)
        here = _place(entry, Owner(None, None))
        if state is not None:
            from ..snapshot import SharedUse
            from ..snapshot._json import timestamp

            who = Responsible() if owner is None else responsible(owner)
            state.ledger.shared.append(
                SharedUse(
                    at_time=timestamp(),
                    **who._asdict(),
                    refused=before is None,
                    threads=(there, here),
                )
            )
        what = "use one session in one transaction" if before else "call one session"
        return (
            f"{described(owner)}: two threads {what} at the same time,"
            f" {_named(there)} and {_named(here)}. Give each thread a"
            " context of its own, 'with app.app_context():', and hand over primary"
            " keys instead of objects."
        )

    if t.TYPE_CHECKING:

        def in_transaction(self) -> bool: ...


def _place(entry: SessionEntry | None, owner: Owner | None) -> ThreadPlace:
    """Return a thread, and the line of the app's own code that it is at."""
    from .._runtime.places import Places
    from ..snapshot import ThreadPlace

    if owner is None:
        return ThreadPlace("one that is unknown")
    context = None if entry is None or entry.context is None else entry.context()
    at = None
    if context is not None:
        at = Places(context.app.root_path).innermost(stack_of(owner))
    return ThreadPlace(owner.thread.name, at)


def _named(place: ThreadPlace) -> str:
    return f"{place.thread!r}" + (f" at {place.at}" if place.at else "")
