"""The panel of Flask-DebugToolbar shows the statements of the request."""

from __future__ import annotations

import pytest
from clients import Client

CLIENT = Client(
    name="Flask-DebugToolbar",
    url="https://flask-debugtoolbar.readthedocs.io/",
    works="drop-in",
    does="shows a request's statements, and the lines that sent them, in its SQLAlchemy"
    " panel",
)

SORTED = """
import re

import flask_debugtoolbar.panels.sqlalchemy
from flask import Flask
from flask_debugtoolbar import DebugToolbarExtension

from flask_scopedsession.flask_sqlalchemy import install_as_flask_sqlalchemy
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

install_as_flask_sqlalchemy()
app = Flask(__name__)
app.debug = True
app.config.update(SECRET_KEY="test", SQLALCHEMY_DATABASE_URI="sqlite://")
toolbar = DebugToolbarExtension(app)
db = SQLAlchemy(app)


@app.get("/")
def index():
    db.session.scalar(db.text("SELECT 40 + :more"), {"more": 2})
    return "<html><body></body></html>"


client = app.test_client()
page = client.get("/").text
for part in ("1 query", "SELECT 40 [+] [?]", "script.py:[0-9]+ .index."):
    print(re.search(part, page)[0])
try:
    client.get(re.search('href="(.*?sql_select.*?)"', page)[1].replace("&amp;", "&"))
except AttributeError as error:
    print(error)
db.dispose(app)
"""


@pytest.mark.subprocess
def test_the_panel(run_script):
    """In an application whose imports are in alphabetical order.

    Its link to run a statement again is broken by itself.
    """
    done = run_script(SORTED, python_args=("-W", "error")).check()
    assert done.stdout.splitlines() == [
        "1 query",
        "SELECT 40 + ?",
        "script.py:21 (index)",
        "'Engine' object has no attribute 'execute'",
    ]
