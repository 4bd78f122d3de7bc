"""``live_app`` with the mistake of a context that is pushed at import."""

from __future__ import annotations

from live_app import create_app

app = create_app()
app.app_context().push()
