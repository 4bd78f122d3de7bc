"""An application that keeps rows, on a real database."""

from __future__ import annotations

from pathlib import Path

import pytest
from databases import a_database
from faults import FaultProxy
from traffic import add_views
from traffic import Base

from flask_scopedsession import ScopedSession


@pytest.fixture(scope="module")
def database(db_name, db_value, request, tmp_path_factory):
    """One database for all tests of a module, which ``make`` empties."""
    folder = tmp_path_factory.mktemp("database")
    with a_database(db_value, folder, request.getfixturevalue) as found:
        yield found


@pytest.fixture
def make(make_app, database):
    """Make the application, on the test's database or on ``url``."""

    def make(url=None, *, connect_args=(), options=(), **config):
        db = ScopedSession(model_class=Base)
        own = {**database.options.get("connect_args", {}), **dict(connect_args)}
        app = make_app(
            db,
            SQLALCHEMY_DATABASE_URI=url or database.url,
            SQLALCHEMY_ENGINE_OPTIONS={**dict(options), "connect_args": own},
            **config,
        )
        add_views(app, db)
        with app.app_context():
            db.drop_all()
            db.create_all()
        return db, app

    return make


@pytest.fixture
def proxy(database):
    """A proxy in front of the test's database server."""
    query = database.direct.query
    socket = query.get("unix_socket") or f"{query['host']}/.s.PGSQL.5432"
    with FaultProxy(Path(socket)) as proxy:
        yield proxy


@pytest.fixture
def proxied(database, proxy):
    """The URL of the test's database, through the proxy."""
    url = database.url.difference_update_query(["host", "port", "unix_socket"])
    return url.set(host=proxy.host, port=proxy.port)
