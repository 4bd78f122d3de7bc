"""Print what Sentry is told of a request that works, and of one that fails."""

from __future__ import annotations

import json
import sys

import sentry_sdk
from flask import Flask
from sentry_sdk.integrations.flask import FlaskIntegration
from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration
from sentry_sdk.transport import Transport
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession


class Kept(Transport):
    """A transport that sends nothing."""

    def __init__(self):
        super().__init__()
        self.events = []

    def capture_envelope(self, envelope):
        self.events += [item.payload.json for item in envelope.items]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


transport = Kept()
sentry_sdk.init(
    "https://key@sentry.invalid/1",
    transport=transport,
    traces_sample_rate=1.0,
    default_integrations=False,
    integrations=[FlaskIntegration(), SqlalchemyIntegration()],
)
db = ScopedSession(model_class=Base)
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
db.init_app(app)


@app.post("/users/<name>")
def add(name):
    db.session.add(User(name=name))
    db.session.commit()
    return ""


with app.app_context():
    db.create_all()
client = app.test_client()
client.post("/users/Ada")
client.post("/users/Ada")
sentry_sdk.flush()

transactions = [each for each in transport.events if each.get("type") == "transaction"]
(error,) = [each for each in transport.events if "exception" in each]
with app.app_context():
    left = len(db.snapshot().sessions) + db.engine.pool.checkedout()
    db.session.execute(text("SELECT 1"))
    db.session.remove()
    db.dispose()
print(
    json.dumps(
        {
            "transactions": [
                (
                    each["transaction"],
                    [(span["op"], span["description"]) for span in each["spans"]],
                )
                for each in transactions
            ],
            "error": error["exception"]["values"][-1]["type"],
            "in": error["transaction"],
            "breadcrumbs": [each["message"] for each in error["breadcrumbs"]["values"]],
            "left": left,
        }
    )
)
