"""A configuration of gunicorn: its workers share what was imported before they started.

See ``lean.py``. Each worker still imports the application and the package itself.
"""

import gc

gc.disable()

import flask  # noqa: E402, F401
import sqlalchemy.orm  # noqa: E402, F401

gc.freeze()
gc.enable()
