"""OpenTelemetry's instrumentation of SQLAlchemy and Flask."""

from __future__ import annotations

import logging

import pytest
import sqlalchemy as sa
from clients import Client
from clients import recipe
from models import Base
from models import User
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="OpenTelemetry",
    url="https://opentelemetry-python-contrib.readthedocs.io/",
    works="recipe",
    does="traces a request with its connects and statements, in one and in two binds",
)

db = ScopedSession(model_class=Base)


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def shop(make_app, sqlite_url, short_tmp, provider):
    binds = {"audit": f"sqlite:///{short_tmp / 'audit.db'}"}
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SQLALCHEMY_BINDS=binds)

    @shop.get("/users/<int:ident>")
    def user(ident):
        db.get_session("audit").execute(sa.text("SELECT 42"))
        return db.get_or_404(User, ident).name

    with shop.app_context():
        db.create_all()
        db.session.add(User(name="Ada"))
        db.session.commit()
    before = sa.create_engine, sa.Engine.connect
    instrument = recipe("OpenTelemetry", db=db)["instrument"]
    instrument(shop, provider)
    yield shop
    SQLAlchemyInstrumentor().uninstrument()
    FlaskInstrumentor.uninstrument_app(shop)
    assert (sa.create_engine, sa.Engine.connect) == before


def test_a_request(shop, exporter):
    """Its statements are children of its span; each engine is traced, once."""
    assert shop.test_client().get("/users/1").text == "Ada"
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [
        "connect",
        f"SELECT {shop.instance_path}/audit.db",
        "connect",
        f"SELECT {shop.instance_path}/test.db",
        "GET /users/<int:ident>",
    ]
    request = spans[-1]
    assert {span.parent.span_id for span in spans[:-1]} == {request.context.span_id}
    assert spans[3].attributes["db.system"] == "sqlite"
    assert "FROM user" in spans[3].attributes["db.statement"]
    assert request.attributes["http.status_code"] == 200


def test_a_statement_that_fails(shop, exporter):
    with shop.app_context(), pytest.raises(sa.exc.OperationalError):
        db.session.execute(sa.text("SELECT * FROM missing"))
    span = exporter.get_finished_spans()[-1]
    assert not span.status.is_ok
    assert "no such table" in span.status.description


def test_it_counts_as_before(shop):
    """Our own account is not disturbed."""
    with shop.app_context():
        with db.count_statements() as sent:
            db.session.scalars(select(User)).all()
        assert len(sent) == 1
        assert db.snapshot().pools[0].used == 1
        db.session.remove()
        assert db.snapshot().pools[0].used == 0


def test_before_init_app(make_app, provider, exporter):
    """It needs no engines then, and traces each once."""
    instrumentor = SQLAlchemyInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    try:
        own = ScopedSession()
        with make_app(own).app_context():
            own.session.execute(sa.text("SELECT 42"))
    finally:
        instrumentor.uninstrument()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["connect", "SELECT :memory:"]


def test_without_the_recipe(provider, caplog):
    """The check that the recipe passes by: can it go?"""
    instrumentor = SQLAlchemyInstrumentor()
    refused = sa.__version__ >= "2.1"
    with caplog.at_level(logging.ERROR):
        instrumentor.instrument(tracer_provider=provider)
    try:
        assert instrumentor.is_instrumented_by_opentelemetry is not refused
        assert ("falls outside of that range" in caplog.text) is refused
    finally:
        if not refused:
            instrumentor.uninstrument()
