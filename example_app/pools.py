"""The dashboard at ``/pools/``, for the machine that the application runs on."""

from __future__ import annotations

import re
from ipaddress import ip_address

from flask import Flask
from flask import request

from flask_scopedsession.dashboard import dashboard

from .extensions import db

#: The names by which a browser on this machine reaches the application.
HOSTS = {"localhost", "127.0.0.1", "[::1]"}


def init_app(app: Flask) -> None:
    """Add the page.

    The example has no users. A real application asks who it is:
    ``authorize=lambda: current_user.is_authenticated and current_user.is_admin``.
    """
    app.register_blueprint(dashboard(db, authorize=may_see), url_prefix="/pools")


def may_see() -> bool:
    """Return whether the request comes from this machine, and from no proxy.

    Behind a proxy on this machine, each request comes from this machine. A proxy adds a
    header, or is reached by another name. So is a website that points its own name to
    127.0.0.1, to read in the visitor's browser what is here.
    """
    host = re.sub(r":\d+$", "", request.host)
    proxied = {"Forwarded", "X-Forwarded-For", "Via"} & {*request.headers.keys()}
    return is_loopback(request.remote_addr) and not proxied and host in HOSTS


def is_loopback(address: str | None) -> bool:
    """Return whether an address is this machine's own."""
    try:
        return ip_address(address or "").is_loopback
    except ValueError:
        return False
