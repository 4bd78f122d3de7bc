"""``db.session.exec()`` of sqlmodel has its own types. Checked, never run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CursorResult
from sqlalchemy.orm import Session as PlainSession
from sqlmodel import Field
from sqlmodel import select
from sqlmodel import Session
from sqlmodel import SQLModel
from sqlmodel import update
from typing_extensions import assert_type

from flask_scopedsession import ScopedSession
from flask_scopedsession.views import Pagination


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str
    age: int


class Entry(SQLModel, table=True):
    __bind_key__ = "audit"
    id: int | None = Field(default=None, primary_key=True)


db: ScopedSession[Session] = ScopedSession(
    model_class=SQLModel,
    binds={Hero: "heroes"},
    session_options={"class_": Session},
)

assert_type(db.session(), Session)
assert_type(db.session.exec(select(Hero)).all(), Sequence[Hero])
assert_type(db.session.exec(select(Hero.name)).first(), str | None)
assert_type(
    db.session.exec(select(Hero.name, Hero.age)).all(), Sequence[tuple[str, int]]
)
assert_type(db.session().exec(select(Hero)).one(), Hero)
assert_type(db.session.get(Hero, 1), Hero | None)
assert_type(db.get_or_404(Hero, 1), Hero)
assert_type(db.first_or_404(select(Hero)), Hero)
assert_type(db.paginate(select(Hero)), Pagination[Hero])
assert_type(db.paginate_keyset(select(Hero)).items, list[Hero])
changed: CursorResult[Any] = db.session.exec(update(Hero))
db.session.exec("")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
db.session.remove()

plain: ScopedSession[PlainSession] = ScopedSession()
plain.session.exec(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
