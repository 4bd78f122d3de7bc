"""``live_app`` with the dashboard, for everybody without the cookie ``refuse``."""

from __future__ import annotations

import live_app
from flask import Flask
from flask import request

from flask_scopedsession.dashboard import dashboard


def create_app() -> Flask:
    app = live_app.create_app()
    app.register_blueprint(
        dashboard(live_app.db, authorize=lambda: "refuse" not in request.cookies),
        url_prefix="/pools",
    )
    return app
