"""The airports of the world and a flight log: how to use Flask-ScopedSession."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flask import Flask

from . import commands
from . import config as settings
from . import errors
from . import faults
from . import pools
from .extensions import db
from .extensions import migrate
from .views import airports
from .views import api
from .views import flights
from .views import statistics

__all__ = ["create_app"]


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Create the application.

    Later settings override earlier ones: the defaults in ``config.py``, the
    ``FLASK_…`` environment variables, then *config*.

    The factory does not use a database, so the application can be created (and
    ``flask pool-status`` can run) while the database is down.
    """
    app = Flask(__name__, instance_path=os.environ.get("EXAMPLE_INSTANCE_PATH"))
    app.config.from_mapping(settings.defaults())
    app.config.from_prefixed_env()
    app.config.from_mapping(config)

    db.init_app(app)
    migrate.init_app(app)
    commands.init_app(app)
    errors.init_app(app)

    app.register_blueprint(airports.bp)
    app.register_blueprint(flights.bp)
    app.register_blueprint(statistics.bp)
    app.register_blueprint(api.bp)
    pools.init_app(app)

    if app.config["EXAMPLE_FAULTS"]:
        app.register_blueprint(faults.bp)

    if app.config["EXAMPLE_ADMIN"]:
        from . import admin  # imports WTForms, which nothing else here needs

        admin.init_app(app)

    return app
