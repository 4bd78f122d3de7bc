"""What users' type checkers see. Checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import Coroutine
from collections.abc import Mapping
from typing import Any
from typing import overload
from typing import TypeVar

from flask import Blueprint
from flask import Flask
from sqlalchemy import Engine
from sqlalchemy import insert
from sqlalchemy import MetaData
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import Update
from sqlalchemy import update
from sqlalchemy.ext.asyncio import async_scoped_session
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker
from typing_extensions import assert_type

from flask_scopedsession import ScopedSession
from flask_scopedsession.dashboard import dashboard
from flask_scopedsession.snapshot import PoolSnapshot
from flask_scopedsession.snapshot import Survey
from flask_scopedsession.snapshot import WorkerSnapshot
from flask_scopedsession.views import KeysetPage
from flask_scopedsession.views import Pagination


class Base(DeclarativeBase):
    pass


T = TypeVar("T")


class OwnSession(Session):
    @overload
    def exec(self, statement: Select[T]) -> list[T]: ...
    @overload
    def exec(self, statement: Update) -> int: ...
    def exec(self, statement: Any) -> Any:
        """As sqlmodel has it."""

    def tenant(self) -> str:
        return "north"


# A plain extension has plain sessions.


class Mixin:
    pass


db = ScopedSession(
    model_class=Base, binds={Base: "audit", Mixin: "audit", Base.metadata: "audit"}
)
db.init_app(Flask(__name__))

assert_type(db.session, scoped_session[Session])
db.session.comit()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
assert_type(db.session(), Session)
assert_type(db.get_session(), Session)
assert_type(db.get_session("audit"), Session)
assert_type(db.async_session, async_scoped_session[AsyncSession])
assert_type(db.async_session(), AsyncSession)
assert_type(db.get_async_session("audit"), AsyncSession)
assert_type(db.sessionmaker, sessionmaker[Session])
assert_type(db.engine, Engine)
assert_type(db.engines, Mapping[str, Engine])
assert_type(db.get_engine("audit"), Engine)
assert_type(db.metadata, MetaData)
assert_type(db.metadatas, Mapping[str | None, MetaData])
db.create_all(["audit", None])
db.drop_all(bind_key=None)
db.reflect("audit")
assert_type(db.snapshot(), WorkerSnapshot)
assert_type(db.snapshot().pools, tuple[PoolSnapshot, ...])
assert_type(db.workers(timeout=0.5), Survey)
assert_type(db.workers().to_dict(), dict[str, Any])
assert_type(db.ping(), float)

with db.count_statements(at_most=3) as sent:
    pass
assert_type(len(sent), int)
assert_type(sent.statements[0].text, str)
assert_type(sent.statements[0].duration, float)
assert_type(sent.repeated[0].at, str | None)

# A session class of one's own is known wherever a session comes out.

own: ScopedSession[OwnSession] = ScopedSession(session_options={"class_": OwnSession})
assert_type(own.session(), OwnSession)
assert_type(own.get_session(), OwnSession)
assert_type(own.sessionmaker(), OwnSession)
assert_type(own.session.tenant(), Any)
assert_type(own.session.exec(update(Base)), int)
assert_type(own.session.in_transaction(), Any)
assert_type(own.session.is_active, bool)
own.session.exec("")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
own.session.remove()
assert_type(own.get_session().tenant(), str)
with own.transaction() as own_session:
    assert_type(own_session, OwnSession)


# What a decorated function takes and returns stays the same.


@db.transactional(retries=3)
def add(name: str, *, times: int = 1) -> str:
    return name * times


@db.transactional()
async def wait(name: str) -> str:
    return name


assert_type(add("a", times=2), str)
waiting: Coroutine[Any, Any, str] = wait("a")
add(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# What views use follows the entity or statement.


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


assert_type(db.get_or_404(User, 1, description="No such user."), User)
assert_type(db.first_or_404(select(User)), User)
assert_type(db.one_or_404(select(User.name)), str)
assert_type(db.one_or_404(insert(User).returning(User.id)), int)
print(db.first_or_404(select(User.id, User.name)).name)
_id, _name = db.one_or_404(select(User.id, User.name))._t
assert_type(_name, str)
assert_type(db.paginate(select(User)), Pagination[User])
assert_type(db.paginate(select(User)).items, list[User])
assert_type(db.paginate(select(User)).next(), Pagination[User])
assert_type(list(db.paginate(select(User.name), page=2, count=False)), list[str])
assert_type(db.paginate_keyset(select(User)), KeysetPage[User])
assert_type(db.paginate_keyset(select(User.name), bookmark="x").items, list[str])
assert_type(db.paginate_keyset(select(User)).next, str | None)
for _row in db.paginate_keyset(select(User.id, User.name)):
    assert_type(_row._t[1], str)
for _row in db.paginate(select(User.id, User.name)):
    assert_type(_row._t[1], str)


# Who may see the dashboard.


async def may_see() -> bool:
    return True


assert_type(dashboard(db), Blueprint)
assert_type(dashboard(db, authorize=lambda: "anything"), Blueprint)
assert_type(dashboard(db, authorize=may_see), Blueprint)
dashboard(db, authorize=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
