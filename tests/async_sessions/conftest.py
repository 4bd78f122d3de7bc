"""An application with a table on each async driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from models import Base
from sqlalchemy import make_url

from flask_scopedsession import ScopedSession


@pytest.fixture
def db() -> ScopedSession:
    return ScopedSession(model_class=Base)


@pytest.fixture(params=["memory", "asyncpg"])
def url(request: pytest.FixtureRequest, sqlite_url: str) -> str:
    """The URL of an empty database, with an async driver."""
    if request.param == "memory":
        return "sqlite+aiosqlite://"
    if request.param == "aiosqlite":
        return sqlite_url.replace("sqlite:", "sqlite+aiosqlite:")
    found = make_url(request.getfixturevalue("pg_url"))
    name = f"postgresql+{request.param}"
    return found.set(drivername=name).render_as_string(hide_password=False)


@pytest.fixture
def make(make_app: Callable[..., Flask], db: ScopedSession) -> Callable[..., Flask]:
    """Create applications with the table in the async bind ``default``."""

    def made(url: str, **config: Any) -> Flask:
        binds = {"SQLALCHEMY_ASYNC_BINDS": {"default": url}, **config}
        app = make_app(db, **binds)

        async def create() -> None:
            connection = await db.async_session.connection()
            await connection.run_sync(Base.metadata.create_all)
            await db.async_session.commit()

        with app.app_context():
            app.ensure_sync(create)()
        return app

    return made


@pytest.fixture
def shop(make: Callable[..., Flask], url: str) -> Flask:
    return make(url)
