"""Run the migrations of every bind: ``flask db upgrade``, ``flask db migrate``."""

from __future__ import annotations

from typing import Any
from typing import Literal

from alembic import context
from flask import current_app

from example_app.extensions import db
from example_app.models import UTCDateTime


def render_type(_kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write SQLAlchemy's types only: the application's may change or go."""
    return "sa.DateTime(timezone=True)" if isinstance(item, UTCDateTime) else False


def run() -> None:
    """Migrate one bind after the other, each in a transaction of its own.

    Each bind has a table of its own with its revision. After a failure, the next run
    continues where this one stopped, and binds can share a database.
    """
    options = current_app.extensions["migrate"].configure_args
    metadatas = db.metadatas

    for name, engine in db.engines.items():
        with engine.connect() as connection:
            context.configure(
                connection=connection,
                target_metadata=metadatas[None if name == "default" else name],
                render_item=render_type,
                version_table=f"alembic_version_{name}",
                upgrade_token=f"{name}_upgrades",
                downgrade_token=f"{name}_downgrades",
                **options,
            )
            with context.begin_transaction():
                context.run_migrations(bind=name)


run()
