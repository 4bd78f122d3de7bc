"""An application's table, and all ways in which an application can write to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from flask import current_app
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(40), unique=True)


INSERT = "INSERT INTO item (name) VALUES ('{}')"


def names(db: Any) -> list[str]:
    with db.engine.connect() as connection:
        return list(connection.scalars(sa.select(Item.name).order_by(Item.id)))


# -- ways of writing ------------------------------------------------------------


def by_session(db: Any, name: str) -> None:
    db.session.add(Item(name=name))
    db.session.commit()


def by_second_session(db: Any, name: str) -> None:
    with db.sessionmaker() as session, session.begin():
        session.add(Item(name=name))


def by_savepoint(db: Any, name: str) -> None:
    with db.session.begin_nested():
        db.session.add(Item(name=name))
    db.session.commit()


def by_begin(db: Any, name: str) -> None:
    with db.engine.begin() as connection:
        connection.execute(sa.insert(Item).values(name=name))


def by_connect(db: Any, name: str) -> None:
    with db.engine.connect() as connection:
        connection.execute(sa.text(INSERT.format(name)))
        connection.commit()


def by_raw(db: Any, name: str) -> None:
    raw = db.engine.raw_connection()
    cursor = raw.cursor()
    cursor.execute(INSERT.format(name))
    cursor.close()
    raw.commit()
    raw.close()


def by_driver_sql(db: Any, name: str) -> None:
    """The driver's connection itself, and statements that control the transaction."""
    raw = db.engine.raw_connection()
    cursor = raw.driver_connection.cursor()
    cursor.execute("BEGIN")
    cursor.execute(INSERT.format(name))
    cursor.execute("COMMIT")
    raw.close()


def by_executemany(db: Any, name: str) -> None:
    with db.engine.begin() as connection:
        connection.execute(sa.insert(Item), [{"name": name}, {"name": f"{name} 2"}])
        connection.execute(sa.delete(Item).where(Item.name == f"{name} 2"))


def by_thread(db: Any, name: str) -> None:
    app = current_app._get_current_object()  # type: ignore[attr-defined]

    def work() -> None:
        with app.app_context():
            by_session(db, name)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


WAYS: list[Callable[[Any, str], None]] = [
    by_session,
    by_second_session,
    by_savepoint,
    by_begin,
    by_connect,
    by_raw,
    by_driver_sql,
    by_executemany,
    by_thread,
]
