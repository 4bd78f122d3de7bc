"""An application that keeps rows, on a real database."""

from __future__ import annotations

import pytest
from traffic import add_views
from traffic import Base

from flask_scopedsession import ScopedSession


@pytest.fixture
def make(make_app, database):
    """Make the application, on the test's database or on ``url``."""

    def make(url=None, *, connect_args=(), options=(), **config):
        db = ScopedSession(model_class=Base)
        own = {**database.options.get("connect_args", {}), **dict(connect_args)}
        app = make_app(
            db,
            SQLALCHEMY_DATABASE_URI=url or database.url,
            SQLALCHEMY_ENGINE_OPTIONS={
                **database.options,
                **dict(options),
                "connect_args": own,
            },
            **config,
        )
        add_views(app, db)
        with app.app_context():
            db.create_all()
        return db, app

    return make
