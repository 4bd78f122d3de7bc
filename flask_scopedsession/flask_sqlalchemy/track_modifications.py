"""Signals with the objects that a commit writes.

Sent only with ``SQLALCHEMY_TRACK_MODIFICATIONS``. The sender is the application.
"""

from __future__ import annotations

import typing as t
import weakref

import sqlalchemy as sa
from blinker import NamedSignal
from blinker import Namespace
from flask import current_app
from flask import has_app_context
from sqlalchemy import event
from sqlalchemy.orm import Session

from .session import _current_app

if t.TYPE_CHECKING:
    from sqlalchemy.orm import scoped_session

_signals = Namespace()

models_committed: NamedSignal = _signals.signal("models-committed")
"""Sent after a commit, with ``changes``: objects, each with ``"insert"``, ``"update"``
or ``"delete"``."""

before_models_committed: NamedSignal = _signals.signal("before-models-committed")
"""Sent before a commit, with the same ``changes``."""

_CHANGES = "_flask_sqlalchemy_changes"


#: Sessions that listen. SQLAlchemy's own list goes by ids, which are used again.
_listening: weakref.WeakSet[scoped_session[t.Any]] = weakref.WeakSet()


def listen(session: scoped_session[t.Any]) -> None:
    """Begin to send the signals for sessions."""
    if session in _listening:
        return
    _listening.add(session)
    event.listen(session, "before_flush", _note)
    event.listen(session, "before_commit", _send_before)
    event.listen(session, "after_commit", _send_after)
    event.listen(session, "after_rollback", _forget)


def _tracked() -> bool:
    return has_app_context() and bool(
        current_app.config["SQLALCHEMY_TRACK_MODIFICATIONS"]
    )


def _note(session: Session, *_: object) -> None:
    if not _tracked():
        return
    changes = session.info.setdefault(_CHANGES, {})
    for objects, operation in (
        (session.new, "insert"),
        ([each for each in session.dirty if session.is_modified(each)], "update"),
        (session.deleted, "delete"),
    ):
        for each in objects:
            state = sa.inspect(each)
            changes[state.identity_key or id(each)] = (each, operation)


def _send_before(session: Session) -> None:
    _note(session)
    _send(before_models_committed, session)


def _send_after(session: Session) -> None:
    _send(models_committed, session)
    _forget(session)


def _send(signal: t.Any, session: Session) -> None:
    changes = session.info.get(_CHANGES)
    if changes and _tracked():
        signal.send(_current_app(), changes=list(changes.values()))


def _forget(session: Session) -> None:
    session.info.pop(_CHANGES, None)
