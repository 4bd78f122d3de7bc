"""SQLAlchemy-Utils: types, observers, and functions for databases."""

from __future__ import annotations

import uuid

import pytest
from clients import Client
from sqlalchemy import ForeignKey
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship
from sqlalchemy_utils import ChoiceType
from sqlalchemy_utils import create_database
from sqlalchemy_utils import database_exists
from sqlalchemy_utils import drop_database
from sqlalchemy_utils import EmailType
from sqlalchemy_utils import observes
from sqlalchemy_utils import UUIDType
from sqlalchemy_utils.observer import PropertyObserver

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="SQLAlchemy-Utils",
    url="https://sqlalchemy-utils.readthedocs.io/",
    works="as it is",
    does="stores its types, observes a relationship, creates and drops the database",
)

#: Its own one listens to all sessions of the process, also those of other tests.
observer = PropertyObserver()


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[uuid.UUID] = mapped_column(
        UUIDType(), primary_key=True, default=uuid.uuid4
    )
    email: Mapped[str] = mapped_column(EmailType)
    kind: Mapped[str] = mapped_column(ChoiceType([("a", "Adult"), ("c", "Child")]))
    orders: Mapped[list[Order]] = relationship(back_populates="customer")
    total: Mapped[int] = mapped_column(default=0)

    @observes("orders.price", observer=observer)
    def count_orders(self, prices):
        self.total = sum(prices)


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]
    customer_id: Mapped[uuid.UUID] = mapped_column(
        UUIDType(), ForeignKey("customer.id")
    )
    customer: Mapped[Customer] = relationship(back_populates="orders")


db = ScopedSession(model_class=Base)


@pytest.fixture(autouse=True)
def no_listeners_left():
    observer.register_listeners()
    yield
    observer.remove_listeners()


observer.remove_listeners()


@pytest.fixture
def shop(make_app, sqlite_url):
    return make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)


def test_types(shop):
    with shop.app_context():
        db.create_all()
        ada = Customer(email="Ada@Example.org", kind="a")
        db.session.add(ada)
        db.session.commit()
        ident = ada.id
    with shop.app_context():
        ada = db.get_or_404(Customer, ident)
        assert isinstance(ada.id, uuid.UUID)
        assert (ada.email, ada.kind.value) == ("ada@example.org", "Adult")


def test_observers(shop):
    with shop.app_context():
        db.create_all()
        ada = Customer(email="a@b.org", kind="a", orders=[Order(price=3)])
        ada.orders.append(Order(price=4))
        db.session.add(ada)
        db.session.commit()
        assert db.session.scalar(select(Customer.total)) == 7
        ada.orders[0].price = 10
        db.session.commit()
        assert db.session.scalar(select(Customer.total)) == 14


@pytest.mark.parametrize("server", ["sqlite_url", "pg_url"])
def test_databases(make_app, request, server):
    """By the URL of our engine, passwords and the name of the driver included."""
    url = request.getfixturevalue(server)
    new = f"{url}_new" if server == "sqlite_url" else url.replace("?", "_new?", 1)
    assert new != url
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=new)
    with shop.app_context():
        url = db.engine.url
        assert not database_exists(url)
        create_database(url)
        assert database_exists(url)
        db.create_all()
        db.dispose()
        drop_database(url)
        assert not database_exists(url)
