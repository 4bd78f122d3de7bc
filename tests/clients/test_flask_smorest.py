"""flask-smorest pages statements through ``db.paginate()``."""

from __future__ import annotations

import json

import marshmallow as ma
import pytest
from clients import Client
from clients import recipe
from flask_smorest import Api
from flask_smorest import Blueprint
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="flask-smorest",
    url="https://flask-smorest.readthedocs.io/",
    works="recipe",
    does="pages a statement with `@blp.paginate`, and documents it",
)


class Base(DeclarativeBase):
    pass


class Pet(Base):
    __tablename__ = "pet"
    id: Mapped[int] = mapped_column(primary_key=True)


class PetSchema(ma.Schema):
    id = ma.fields.Integer()


db = ScopedSession(model_class=Base)


@pytest.fixture
def client(make_app, sqlite_url):
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        API_TITLE="Pets",
        API_VERSION="1",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
    )
    blp = Blueprint("pets", __name__)
    names = {"db": db, "blp": blp, "select": select, "Pet": Pet, "PetSchema": PetSchema}
    recipe("flask-smorest", **names)
    Api(app).register_blueprint(blp)
    with app.app_context():
        db.create_all()
        db.session.add_all([Pet() for _ in range(23)])
        db.session.commit()
    return app.test_client()


def page(client, query=""):
    response = client.get(f"/pets{query}")
    assert response.status_code == 200
    found = [each["id"] for each in response.json]
    return found, json.loads(response.headers["X-Pagination"])


def test_pages(client):
    """Each has its items, and the header the numbers of all pages."""
    found, about = page(client, "?page=2")
    assert found == [*range(11, 21)]
    assert about == {
        "total": 23,
        "total_pages": 3,
        "first_page": 1,
        "last_page": 3,
        "page": 2,
        "previous_page": 1,
        "next_page": 3,
    }
    assert page(client, "?page=3&page_size=10")[0] == [21, 22, 23]
    assert len(page(client, "?page_size=50")[0]) == 23
    assert page(client, "?page=9")[0] == []
    assert page(client, "?page=9")[1]["total"] == 23


@pytest.mark.parametrize("query", ["page_size=51", "page=0", "page=x"])
def test_bad_numbers(client, query):
    assert client.get(f"/pets?{query}").status_code == 422


def test_the_page_sends_no_more_than_it_needs(client):
    """One statement for the items, and one for the total."""
    with db.count_statements() as count:
        page(client, "?page=2")
    assert len(count) == 2


def test_the_documentation(client):
    get = client.get("/openapi.json").json["paths"]["/pets"]["get"]
    assert [each["name"] for each in get["parameters"]] == ["page", "page_size"]
