"""Flask-Session keeps sessions in the database, through the drop-in's engines."""

from __future__ import annotations

import pytest
from clients import Client

CLIENT = Client(
    name="Flask-Session",
    url="https://flask-session.readthedocs.io/",
    works="drop-in",
    does="stores, loads and deletes a session, in the default bind and in another; its"
    " connections are those that the commands show",
)

SORTED = """
import sys

import flask_session.sqlalchemy
from flask import Flask
from flask import session
from flask_session import Session

from flask_scopedsession.flask_sqlalchemy import install_as_flask_sqlalchemy
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy

install_as_flask_sqlalchemy()


def make_app(bind):
    app = Flask(__name__, instance_path=sys.argv[1])
    app.config.update(
        SQLALCHEMY_DATABASE_URI="sqlite:///main.db",
        SQLALCHEMY_BINDS={"other": "sqlite:///other.db"},
        SESSION_TYPE="sqlalchemy",
        SESSION_SQLALCHEMY_BIND_KEY=bind,
    )
    db = app.config["SESSION_SQLALCHEMY"] = SQLAlchemy(app)
    Session(app)

    @app.post("/<name>")
    def store(name):
        session["name"] = name
        return ""

    @app.get("/")
    def load():
        held = [pool.bind for pool in db.snapshot().pools if pool.used]
        return f"{session.get('name')} {held}"

    @app.delete("/")
    def delete():
        session.clear()
        return ""

    return app, db


for bind in (None, "other"):
    app, db = make_app(bind)

    def rows():
        with app.app_context():
            return db.session.query(app.session_interface.sql_session_model).count()

    client = app.test_client()
    client.post("/Ada")
    print(client.get("/").text, app.test_client().get("/").text, rows())
    client.delete("/")
    print(client.get("/").text, rows())
    db.dispose(app)
"""


@pytest.mark.subprocess
def test_a_session(run_script, short_tmp):
    """In an application whose imports are in alphabetical order."""
    warnings = (
        "error",
        # Its own.
        "ignore:datetime.datetime.utcnow() is deprecated:DeprecationWarning",
        "ignore:'db.get_engine()' is deprecated:DeprecationWarning",
    )
    options = [arg for warning in warnings for arg in ("-W", warning)]
    done = run_script(SORTED, str(short_tmp), python_args=options).check()
    assert done.stdout.splitlines() == [
        "Ada ['default'] None [] 1",
        "None [] 0",
        "Ada ['other'] None [] 1",
        "None [] 0",
    ]
    assert done.stderr == ""
