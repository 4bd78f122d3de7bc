"""The async functions that Flask runs, and the sessions that are made in them.

Flask runs each in an event loop of its own. A connection of asyncio belongs to the loop
that opened it, and the loop is gone before any teardown function is called. So each
call closes its sessions itself, as its last step inside the loop.
"""

from __future__ import annotations

import asyncio
import typing as t
import weakref
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps

from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.ext.asyncio import AsyncSession

from .._format import ASYNC
from .._runtime.logs import fields
from .._runtime.logs import log
from .._scopes.context import Context
from .._scopes.context import current_context
from .._scopes.ledger import Ledger
from .._scopes.scope import new_scope
from .._scopes.scope import SCOPE
from .._scopes.teardown import close_session
from .._scopes.teardown import discard
from .._scopes.teardown import refuse_use
from .._sessions.unsaved import unsaved
from ..errors import OutsideContext
from ..errors import SessionRemoved

if t.TYPE_CHECKING:
    from flask import Flask

#: The async function that the current code is in.
_CALL: ContextVar[Call | None] = ContextVar("flask_scopedsession_call", default=None)

#: How often a session is tried to be closed that another task uses, and the seconds in
#: between: a driver gives up to connect after a minute.
_MOST_TRIES, _PAUSE = 6000, 0.01

_ELSEWHERE = (
    " Use it in an 'async def' view, or in another async function that Flask calls."
    " Elsewhere, as in a command, run the function by app.ensure_sync(function)()."
)


class Place:
    """The sessions of one application context in one call."""

    def __init__(self, call: Call, ledger: Ledger, context: Context) -> None:
        self.sessions: dict[str, AsyncSession] = {}
        """By the name of the bind."""
        self._ledger = ledger
        scope = self.scope = new_scope(self)
        # Its statements, and what it loses, count for the request.
        scope.parent = context.__dict__.get(SCOPE) or ledger.enter(context)
        own = context is not call.context and asyncio.current_task()
        scope.task = weakref.ref(own or call.task)
        ledger.live.add(scope)

    def add(self, name: str, session: AsyncSession) -> None:
        """Keep a session until the end."""
        self.sessions[name] = session
        self.scope.sessions[ASYNC + name] = session.sync_session

    def note_loss(self) -> None:
        """Note what the end is going to lose; the context's teardown judges it."""
        parent = self.scope.parent
        for session in self.sessions.values():
            lost = _unsaved(session)
            if lost and parent is not None:
                parent.lost = lost if parent.lost is None else parent.lost + lost

    async def close(self) -> None:
        """Close the sessions for good; what goes wrong is logged."""
        scope = self.scope
        for name, session in list(self.sessions.items()):
            failure = await _close(session)
            self.sessions.pop(name, None)
            scope.sessions.pop(ASYNC + name, None)
            if failure is not None:
                text = (
                    "async session: close() failed, and its connections are thrown"
                    " away. If a task still used it, await the task before the function"
                    " returns"
                )
                log.warning(text, exc_info=failure, extra=fields("end_failed"))
        if scope.last is not None and scope.last.scope is scope:
            scope.last.account.record_checkouts(scope)  # it is leaked
        self._ledger.leave(scope)


class Call:
    """One async function that Flask runs, and the sessions made in it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.task = t.cast("asyncio.Task[t.Any]", asyncio.current_task())
        self.context = current_context(None)
        self.places: dict[t.Any, Place] = {}
        """By application context."""
        self.over = False
        self._closing: set[asyncio.Task[None]] = set()

    def leave(self, context: t.Any, error: BaseException | None) -> None:
        """Close the sessions of a context that the call has pushed, and that ends."""
        place = self.places.pop(context, None)
        if place is not None:
            if error is None:
                place.note_loss()
            closing = self.loop.create_task(place.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def end(self, *, failed: bool) -> None:
        """Close all sessions, also if the call is cancelled meanwhile."""
        self.over = True
        if not failed:
            for place in self.places.values():
                place.note_loss()
        if not self.places and not self._closing:
            return
        closing = asyncio.ensure_future(self._close())
        interrupt = None
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError as error:
                interrupt = error
        try:
            if interrupt is not None:
                raise interrupt
        finally:
            interrupt = None  # else the error and this frame keep each other alive

    async def _close(self) -> None:
        for place in self.places.values():
            await place.close()
        await asyncio.gather(*self._closing)


def end_sessions_with_calls(app: Flask) -> None:
    """Let each async function that Flask runs close the sessions made in it.

    ``Flask.async_to_sync()`` is documented as one to override, and may be.
    """
    inner = app.async_to_sync

    def async_to_sync(
        func: Callable[..., t.Coroutine[t.Any, t.Any, t.Any]],
    ) -> Callable[..., t.Any]:
        @wraps(func)
        async def call(*args: t.Any, **kwargs: t.Any) -> t.Any:
            this, failed = Call(), True
            token = _CALL.set(this)
            try:
                result = await func(*args, **kwargs)
                failed = False
            finally:
                try:
                    await this.end(failed=failed)
                finally:
                    _CALL.reset(token)  # asgiref takes what is set back to the caller
            return result

        return inner(call)

    def context_ends(error: BaseException | None) -> None:
        call = _CALL.get()
        if call is not None:
            call.leave(current_context(None), error)

    own: t.Any = app
    own.async_to_sync = async_to_sync
    app.teardown_appcontext(context_ends)


def current_call() -> Call:
    """Return the async function that the current code is in.

    :raises OutsideContext: There is none, or its event loop does not run here.
    :raises SessionRemoved: It has returned, and closed its sessions.
    """
    call = _CALL.get()
    if call is None:
        raise OutsideContext(
            "'db.async_session' was used outside an async function of Flask's."
            + _ELSEWHERE
        )
    if call.over:
        _refuse()
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is not call.loop:
        raise OutsideContext(
            "'db.async_session' was used in another event loop or thread than that of"
            " its async function, where its connections are of no use." + _ELSEWHERE
        )
    return call


def current_place() -> Place | None:
    """Return the current call's sessions in the current context, if there are any."""
    call = _CALL.get()
    return None if call is None else call.places.get(current_context(None))


async def _close(session: AsyncSession) -> BaseException | None:
    """Close a session for good, and return what went wrong, if anything."""
    sync = session.sync_session
    failure: BaseException | None = None
    for _ in range(_MOST_TRIES):
        transaction = sync.get_transaction()
        try:
            await session.close()
        except IllegalStateChangeError as error:
            # A task that was not awaited is opening a connection, or commits. Once it
            # is done, there is something to close.
            failure = error
            refuse_use(sync, _refuse)
            await asyncio.sleep(_PAUSE)
        except BaseException as error:  # noqa: BLE001 - returned
            await session.run_sync(discard, transaction, None, error)
            failure = error
            break
        else:
            failure = None
            break
    if sync.in_transaction():
        # The application's close(), or a listener, has begun it anew.
        await session.run_sync(close_session)
    refuse_use(sync, _refuse)
    try:
        return failure
    finally:
        failure = None  # else the error and this frame keep each other alive


def _unsaved(session: AsyncSession) -> Counter[str]:
    sync = session.sync_session
    if not sync.is_active:
        return Counter()  # a flush failed, and the application handled that
    try:
        return unsaved(sync) or Counter()
    except Exception:  # noqa: BLE001 - a connection was invalidated
        return Counter()


def _refuse(*_: t.Any, **__: t.Any) -> t.NoReturn:
    raise SessionRemoved(
        "This async session was removed when the async function that made it ended, or"
        " by remove(). Use 'db.async_session' where the work is done, and await every"
        " task before the function returns."
    )
