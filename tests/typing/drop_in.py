"""What users' type checkers see of the drop-in. Checked, never run."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy import MetaData
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import MappedAsDataclass
from sqlalchemy.orm import scoped_session
from typing_extensions import assert_type

from flask_scopedsession.flask_sqlalchemy import SQLAlchemy
from flask_scopedsession.flask_sqlalchemy.model import BindMixin
from flask_scopedsession.flask_sqlalchemy.model import Model
from flask_scopedsession.flask_sqlalchemy.model import NameMixin
from flask_scopedsession.flask_sqlalchemy.pagination import Pagination
from flask_scopedsession.flask_sqlalchemy.query import Query
from flask_scopedsession.flask_sqlalchemy.session import Session


class Base(BindMixin, NameMixin, Model, DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class User(Base):
    id: Mapped[int] = mapped_column(primary_key=True)


# mypy knows no class by an attribute of an object. pyright does.
class Role(db.Model):  # type: ignore[name-defined,misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class DataBase(MappedAsDataclass, BindMixin, NameMixin, Model, DeclarativeBase):
    pass


class Point(DataBase):
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str]


assert_type(User(id=1), User)
assert_type(Role(name="x"), Role)
assert_type(Point("x"), Point)
Point(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
assert_type(User.id, InstrumentedAttribute[int])
assert_type(User.query, Query[Any])
assert_type(db.get_or_404(User, 1), User)
assert_type(db.get_or_404(Role, 1), Role)
assert_type(db.session, scoped_session[Session])
assert_type(db.paginate(select(User)), Pagination)
assert_type(db.engine, Engine)
assert_type(db.engines["audit"], Engine)
assert_type(db.metadatas[None], MetaData)
