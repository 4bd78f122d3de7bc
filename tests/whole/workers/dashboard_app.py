"""``live_app`` with the dashboard, for everybody without the cookie ``refuse``.

Its value is the status of the answer, which is a page to log in.
"""

from __future__ import annotations

import live_app
from flask import Flask
from flask import request

from flask_scopedsession.dashboard import dashboard


def may_see() -> bool | tuple[str, int]:
    status = request.cookies.get("refuse")
    return status is None or ("Log in here", int(status))


def create_app() -> Flask:
    app = live_app.create_app()
    app.register_blueprint(
        dashboard(live_app.db, authorize=may_see), url_prefix="/pools"
    )
    return app
