"""prometheus-flask-exporter measures views that use ``db``."""

from __future__ import annotations

import pytest
from clients import Client
from models import Base
from models import User
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import PrometheusMetrics
from sqlalchemy import func
from sqlalchemy import select

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="prometheus-flask-exporter",
    url="https://github.com/rycus86/prometheus_flask_exporter",
    works="as it is",
    does="counts and times views, failed ones too, with a gauge that is read from `db`",
)

db = ScopedSession(model_class=Base)


@pytest.fixture
def shop(make_app, sqlite_url):
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(shop, registry=registry)

    @shop.post("/users/<name>")
    @metrics.counter("users_added", "Users added.")
    def add(name):
        db.session.add(User(name=name))
        db.session.commit()
        return ""

    @shop.get("/users/<int:ident>")
    def user(ident):
        return db.get_or_404(User, ident).name

    @shop.get("/bad")
    def bad():
        db.session.add(User())
        db.session.commit()

    def users():
        with shop.app_context():
            return db.session.scalar(select(func.count()).select_from(User))

    metrics.info("users_now", "Users in the database.").set_function(users)
    shop.config["PROPAGATE_EXCEPTIONS"] = False
    with shop.app_context():
        db.create_all()
    return shop


def test_metrics(shop):
    client = shop.test_client()
    client.post("/users/Ada")
    client.post("/users/Alan")
    assert client.get("/users/1").text == "Ada"
    assert client.get("/users/9").status_code == 404
    assert client.get("/bad").status_code == 500
    lines = client.get("/metrics").text.splitlines()
    assert "users_added_total 2.0" in lines
    assert "users_now 2.0" in lines
    for method, status in (("POST", 200), ("GET", 404), ("GET", 500)):
        count = 2.0 if method == "POST" else 1.0
        found = f'flask_http_request_total{{method="{method}",status="{status}"}}'
        assert f"{found} {count}" in lines
    with shop.app_context():
        assert db.engine.pool.checkedout() == 0
        assert db.snapshot().sessions == ()
