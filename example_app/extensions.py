"""The extensions, which the factory initializes for an application."""

from __future__ import annotations

from pathlib import Path

from flask_migrate import Migrate

from flask_scopedsession import ScopedSession

from .models import AuditBase
from .models import Base

#: The models of `Base` are in the default bind, those of `AuditBase` in "audit".
db = ScopedSession(model_class=Base, binds={AuditBase: "audit"})

#: The folder is given because Flask-Migrate looks in the current one.
migrate = Migrate(db=db, directory=Path(__file__).with_name("migrations"))
