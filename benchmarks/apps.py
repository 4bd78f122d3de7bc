"""The application that every contestant serves, and its views.

The source of a view is the same for all. Only the expression for the session differs,
and whether a ``with`` statement opens the session.
"""

from __future__ import annotations

import textwrap
import time
import typing as t
from collections.abc import Callable

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import scoped_session
from werkzeug.test import EnvironBuilder

from .contestants import Access
from .contestants import Contestant
from .contestants import Database
from .contestants import InitApp

#: Options of every engine: usual for a web application, without pre-ping.
ENGINE = {
    "poolclass": sa.QueuePool,
    "pool_size": 5,
    "max_overflow": 10,
    "pool_timeout": 30,
    "pool_pre_ping": False,
}

#: Reads of the attribute in one request of W5.
READS = 1000


class Base(DeclarativeBase):
    """The base of the models."""


class Item(Base):
    """A row to read and to write."""

    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


#: Constructed once, because its construction costs all contestants the same.
BY_ID = sa.select(Item).where(Item.id == sa.bindparam("id"))

VIEWS = {
    "W1": "return 'ok'",
    "W2": "return {session}.scalars(BY_ID, {{'id': 1}}).one().name",
    "W3": """
        item = {session}.get(Item, 1)
        {session}.add(Item(name=item.name))
        {session}.commit()
        return 'ok'
        """,
    "W4": """
        for id in range(1, 11):
            {session}.scalars(BY_ID, {{'id': id}}).one()
        return 'ok'
        """,
    "W5-attribute": """
        for _ in range(READS):
            {session}.autoflush
        return 'ok'
        """,
    "W5-call": """
        for _ in range(READS):
            {session}.get_bind()
        return 'ok'
        """,
    "sleep": """
        {session}.scalars(BY_ID, {{'id': 1}}).one()
        sleep(HOLD)
        return 'ok'
        """,
    "cpu": """
        {session}.scalars(BY_ID, {{'id': 1}}).one()
        spin()
        return 'ok'
        """,
}

#: Seconds for which a view of W9 holds its connection.
HOLD = 0.002

_iterations = 0


def calibrate_spin() -> None:
    """Find how many iterations of a loop take :data:`HOLD` seconds of CPU time."""
    global _iterations  # noqa: PLW0603 - a constant of this machine
    sample = 20_000
    took = []
    for _ in range(15):
        began = time.perf_counter()
        _spin(sample)
        took.append(time.perf_counter() - began)
    _iterations = int(sample * HOLD / min(took))


def spin() -> None:
    """Compute for :data:`HOLD` seconds, without waiting."""
    _spin(_iterations)


def _spin(iterations: int) -> None:
    for _ in range(iterations):
        pass


def make_app(
    init_app: InitApp, database: Database, folder: str
) -> tuple[Flask, Access]:
    """Create an application with all views, as its factory does."""
    app = Flask("benchmarks", root_path=folder, instance_path=folder)
    access = init_app(app, database)
    for name in VIEWS:
        app.add_url_rule(f"/{name}", name, _view(name, access))
    return app, access


def _view(name: str, access: Access) -> Callable[[], str]:
    body = textwrap.dedent(VIEWS[name]).strip().format(session=access.session)
    # A view without a database opens no session by hand either.
    if access.opening is not None and name != "W1":
        body = f"{access.opening}\n{textwrap.indent(body, '    ')}"
    source = f"def view():\n{textwrap.indent(body, '    ')}\n"
    names = {
        **access.names,
        "BY_ID": BY_ID,
        "Item": Item,
        "READS": READS,
        "HOLD": HOLD,
        "sleep": time.sleep,
        "spin": spin,
    }
    exec(compile(source, f"<view {name}>", "exec"), names)  # noqa: S102
    return t.cast("Callable[[], str]", names["view"])


def build(contestant: Contestant, database: Database, folder: str) -> Flask:
    """Return the application of a contestant."""
    app, _ = make_app(contestant.build(), database, folder)
    return app


def fill(url: str) -> None:
    """Create the table and its first rows."""
    engine = sa.create_engine(url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [{"name": f"item {number}"} for number in range(1, 101)]
        connection.execute(sa.insert(Item), rows)
    engine.dispose()


def keep_sqlite_off_the_disk() -> None:
    """Keep SQLite from waiting for the disk, which is not measured here."""

    def connected(connection: t.Any, _: object) -> None:
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

    event.listen(sa.Engine, "connect", connected)


# -- called as WSGI, without a network -----------------------------------------


def environ(path: str) -> dict[str, t.Any]:
    """Return the WSGI environment of a GET request."""
    return EnvironBuilder(path=path).get_environ()


class BadStatus(Exception):
    """A request failed; the argument is its status."""


def _start(status: str, _: object, __: object = None) -> Callable[[bytes], object]:
    if not status.startswith("200"):
        raise BadStatus(status)
    return bytes


def call(app: Flask, request: dict[str, t.Any]) -> None:
    """Serve one request until its response is closed.

    :raises BadStatus: The status is not 200.
    """
    body = app(request.copy(), _start)
    try:
        for _ in body:
            pass
    finally:
        body.close()  # type: ignore[attr-defined]


# -- comparison of the settings ----------------------------------------------------


def settings_of(app: Flask, access: Access) -> dict[str, t.Any]:
    """Return the settings that must not differ between contestants."""
    with app.app_context():
        engine = access.engine()
        pool: t.Any = engine.pool
        found = {
            "pool": type(pool).__name__,
            "size": pool.size(),
            "max_overflow": pool._max_overflow,
            "timeout": pool.timeout(),
            "pre_ping": pool._pre_ping,
            "recycle": pool._recycle,
            "reset": str(pool._reset_on_return),
            "lifo": pool._pool.use_lifo,
            "isolation": engine.get_execution_options().get("isolation_level"),
        }
        if access.opening is not None:
            session = access.names["Session"]()
        else:
            session = eval(access.session, dict(access.names))  # noqa: S307
        if isinstance(session, scoped_session):
            session = session()
        found["autoflush"] = session.autoflush
        found["expire_on_commit"] = session.expire_on_commit
        session.close()
    return found
