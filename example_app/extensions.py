"""Extensions, made once; the factory binds them to an application."""

from __future__ import annotations

from flask_scopedsession import ScopedSession

from .models import AuditBase
from .models import Base

#: Models of `Base` live in the default bind, those of `AuditBase` in "audit".
db = ScopedSession(model_class=Base, binds={AuditBase: "audit"})
