from __future__ import annotations

import pytest
from shop import create_app
from shop import db


@pytest.fixture
def app():
    app = create_app("sqlite://")
    with app.app_context():
        db.create_all()
    yield app
    db.dispose(app)
