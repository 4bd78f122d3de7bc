"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade(bind: str) -> None:
    """Change the database of one bind."""
    globals()[f"upgrade_{bind}"]()


def downgrade(bind: str) -> None:
    """Undo the change of one bind."""
    globals()[f"downgrade_{bind}"]()

<% from example_app.extensions import db %>
% for bind in db.engines:

def upgrade_${bind}() -> None:
    """Change the bind "${bind}"."""
    ${context.get(f"{bind}_upgrades", "pass")}


def downgrade_${bind}() -> None:
    """Undo the change of the bind "${bind}"."""
    ${context.get(f"{bind}_downgrades", "pass")}

% endfor
