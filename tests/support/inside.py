"""The private names that tests outside of their own room use.

No other file imports them from there, which ``whole/test_layout.py`` checks: so this is
the one place to change when a private module is moved or rewritten.
"""

from __future__ import annotations

from flask_scopedsession._application import of as application_of
from flask_scopedsession._control import directory
from flask_scopedsession._control import endpoint
from flask_scopedsession._control import server
from flask_scopedsession._control.protocol import encode
from flask_scopedsession._control.server import SERVER
from flask_scopedsession._databases.ping import PingResult
from flask_scopedsession._format import duration
from flask_scopedsession._format import some
from flask_scopedsession._format import sql_shown
from flask_scopedsession._live import reader
from flask_scopedsession._live.worker import LiveView
from flask_scopedsession._pools import fair_queue
from flask_scopedsession._pools import tracked_pool
from flask_scopedsession._pools.naming import process_name
from flask_scopedsession._pools.slot import SLOT
from flask_scopedsession._pools.slot import Slot
from flask_scopedsession._pools.tracked_pool import limits
from flask_scopedsession._pools.tracked_pool import pool_class
from flask_scopedsession._pools.tracked_pool import returns_are_seen
from flask_scopedsession._scopes import context
from flask_scopedsession._scopes import lost_work
from flask_scopedsession._scopes import teardown
from flask_scopedsession._settings.keys import KEYS
from flask_scopedsession._settings.urls import safe_url
from flask_scopedsession._terminal.advice import render_advice
from flask_scopedsession._terminal.charts import FULL
from flask_scopedsession._terminal.charts import History
from flask_scopedsession._terminal.charts import Refresh
from flask_scopedsession._terminal.page import fold
from flask_scopedsession._terminal.pools import render_pools
from flask_scopedsession._terminal.sessions import render_sessions
from flask_scopedsession.snapshot._json import Reading
from flask_scopedsession.snapshot._servers import ConnectionLimit
from flask_scopedsession.snapshot._servers import LockWait
from flask_scopedsession.snapshot._servers import ServerConnection
from flask_scopedsession.snapshot._servers import ServerView
from flask_scopedsession.snapshot._servers import Unclaimed

__all__ = [
    "FULL",
    "KEYS",
    "SERVER",
    "SLOT",
    "ConnectionLimit",
    "History",
    "LiveView",
    "LockWait",
    "PingResult",
    "Reading",
    "Refresh",
    "ServerConnection",
    "ServerView",
    "Slot",
    "Unclaimed",
    "application_of",
    "context",
    "directory",
    "duration",
    "encode",
    "endpoint",
    "fair_queue",
    "fold",
    "limits",
    "lost_work",
    "pool_class",
    "process_name",
    "reader",
    "render_advice",
    "render_pools",
    "render_sessions",
    "returns_are_seen",
    "safe_url",
    "server",
    "some",
    "sql_shown",
    "teardown",
    "tracked_pool",
]
