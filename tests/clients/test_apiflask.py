"""APIFlask's pagination takes what ``db.paginate()`` returns."""

from __future__ import annotations

import pytest
from apiflask import APIFlask
from apiflask import pagination_builder
from apiflask import PaginationModel
from apiflask import PaginationSchema
from apiflask import Schema
from apiflask.fields import Integer
from apiflask.fields import List
from apiflask.fields import Nested
from apiflask.validators import Range
from clients import Client
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="APIFlask",
    url="https://apiflask.com/",
    works="as it is",
    does="pages a statement with `pagination_builder` and `PaginationSchema`",
)


class Base(DeclarativeBase):
    pass


class Pet(Base):
    __tablename__ = "pet"
    id: Mapped[int] = mapped_column(primary_key=True)


class PetQuery(Schema):
    page = Integer(load_default=1)
    per_page = Integer(load_default=10, validate=Range(max=30))


class PetOut(Schema):
    id = Integer()


class PetsOut(Schema):
    pets = List(Nested(PetOut))
    pagination = Nested(PaginationSchema)


db = ScopedSession(model_class=Base)


@pytest.fixture
def client(make_app, sqlite_url):
    app = make_app(db, flask_class=APIFlask, SQLALCHEMY_DATABASE_URI=sqlite_url)

    @app.get("/pets")
    @app.input(PetQuery, location="query")
    @app.output(PetsOut)
    def pets(query_data):
        page = db.paginate(select(Pet).order_by(Pet.id), **query_data)
        return {"pets": page.items, "pagination": pagination_builder(page)}

    @app.get("/pydantic")
    @app.output(PaginationModel)
    def pydantic():
        page = db.paginate(select(Pet).order_by(Pet.id))
        return pagination_builder(page, schema_type="pydantic")

    with app.app_context():
        db.create_all()
        db.session.add_all([Pet() for _ in range(23)])
        db.session.commit()
    return app.test_client()


def test_a_page(client):
    """With its items, the numbers and the links of APIFlask's schema."""
    found = client.get("/pets?page=2").json
    assert [pet["id"] for pet in found["pets"]] == [*range(11, 21)]
    url = "http://localhost/pets?page={}&per_page=10"
    assert found["pagination"] == {
        "page": 2,
        "per_page": 10,
        "pages": 3,
        "total": 23,
        "first": url.format(1),
        "prev": url.format(1),
        "current": url.format(2),
        "next": url.format(3),
        "last": url.format(3),
    }


def test_the_first_and_the_last(client):
    """There is no link beyond them."""
    first = client.get("/pets").json["pagination"]
    last = client.get("/pets?page=3").json
    assert (first["prev"], last["pagination"]["next"]) == ("", "")
    assert [pet["id"] for pet in last["pets"]] == [21, 22, 23]


def test_bad_numbers(client):
    assert client.get("/pets?page=4").status_code == 404
    assert client.get("/pets?per_page=31").status_code == 422


def test_pydantic(client):
    assert client.get("/pydantic?per_page=5").json["pages"] == 5
