"""Use SQLAlchemy-Utils through ``db``, and print what it stored."""

from __future__ import annotations

import json
import sys
import uuid

from flask import Flask
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

from flask_scopedsession import ScopedSession


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

    @observes("orders.price")
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
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
db.init_app(app)
told = {}

with app.app_context():
    url = db.engine.url
    told["before"] = database_exists(url)
    create_database(url)
    told["created"] = database_exists(url)
    db.create_all()
    ada = Customer(email="Ada@Example.org", kind="a", orders=[Order(price=3)])
    ada.orders.append(Order(price=4))
    db.session.add(ada)
    db.session.commit()
    ident = ada.id

with app.app_context():
    ada = db.get_or_404(Customer, ident)
    told["values"] = [type(ada.id).__name__, ada.email, ada.kind.value]
    told["observed"] = [db.session.scalar(select(Customer.total))]
    ada.orders[0].price += 10
    db.session.commit()
    told["observed"].append(db.session.scalar(select(Customer.total)))

with app.app_context():
    db.dispose()
    drop_database(url)
    told["after"] = database_exists(url)
print(json.dumps(told))
