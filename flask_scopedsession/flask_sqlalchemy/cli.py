"""What ``flask shell`` offers."""

from __future__ import annotations

import typing as t

from flask import current_app


def add_models_to_shell() -> dict[str, t.Any]:
    """Return the extension as ``db``, and every model by the name of its class."""
    db = current_app.extensions["sqlalchemy"]
    models = {each.class_.__name__: each.class_ for each in db.Model.registry.mappers}
    return {**models, "db": db}
