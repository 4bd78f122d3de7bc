"""``live_app`` with the metrics of all its workers."""

from __future__ import annotations

import live_app
from flask import Flask

from flask_scopedsession.metrics.prometheus import metrics_blueprint


def create_app() -> Flask:
    app = live_app.create_app()
    app.register_blueprint(metrics_blueprint(live_app.db))
    return app
