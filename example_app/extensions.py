"""The extensions, which the factory initializes for an application."""

from __future__ import annotations

from flask_scopedsession import ScopedSession

from .models import AuditBase
from .models import Base

#: The models of `Base` are in the default bind, those of `AuditBase` in "audit".
db = ScopedSession(model_class=Base, binds={AuditBase: "audit"})
