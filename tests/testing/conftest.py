"""An application with one row, on each database."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import a_database
from items import Base
from items import by_session
from items import Item
from items import names

from flask_scopedsession import ScopedSession


@pytest.fixture(scope="module")
def database(db_name, db_value, request, tmp_path_factory):
    """One database for all tests of a module, which ``flask_app`` empties."""
    folder = tmp_path_factory.mktemp("database")
    with a_database(db_value, folder, request.getfixturevalue) as found:
        yield found


@pytest.fixture
def flask_app(make_app, database):
    """An application with one row on the test's database, which it still has after."""
    db = ScopedSession(model_class=Base)
    app = make_app(
        db,
        flask_options={"root_path": str(Path(__file__).parent)},
        SQLALCHEMY_DATABASE_URI=database.url,
        SQLALCHEMY_ENGINE_OPTIONS=database.options,
    )
    app.extensions["db"] = db
    with app.app_context():
        db.create_all()
        db.session.execute(sa.delete(Item))
        db.session.commit()
        by_session(db, "kept")
    yield app
    with app.app_context():
        assert names(db) == ["kept"]
        assert db.snapshot().pools[0].used == 0
        by_session(db, "real")
        assert names(db) == ["kept", "real"]


@pytest.fixture
def db(flask_app):
    return flask_app.extensions["db"]
