"""SQLAlchemy-Continuum keeps the versions of each row."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from clients import Client
from flask_login import current_user
from flask_login import login_required
from flask_login import login_user
from flask_login import LoginManager
from flask_login import UserMixin
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy_continuum import count_versions
from sqlalchemy_continuum import make_versioned
from sqlalchemy_continuum import Operation
from sqlalchemy_continuum import remove_versioning
from sqlalchemy_continuum import transaction_class
from sqlalchemy_continuum import version_class
from sqlalchemy_continuum import VersioningManager
from sqlalchemy_continuum.plugins import FlaskPlugin

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="SQLAlchemy-Continuum",
    url="https://sqlalchemy-continuum.readthedocs.io/",
    works="as it is",
    does="keeps a version for each change of a request, and reverts to one",
)


@pytest.fixture
def version():
    """Version models, until the test ends: it listens to all of SQLAlchemy."""
    with ExitStack() as stack:

        def version(**options):
            manager = VersioningManager()
            make_versioned(manager=manager, **options)
            stack.callback(remove_versioning, manager=manager)

        yield version


@pytest.fixture
def shop(version, make_app, sqlite_url):
    version(user_cls=None)

    class Base(DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]

    Base.registry.configure()
    db = ScopedSession(model_class=Base)
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)

    @shop.put("/articles/<int:ident>/<title>")
    def write(ident, title):
        db.session.merge(Article(id=ident, title=title))
        db.session.commit()
        return ""

    @shop.get("/articles/<int:ident>")
    def read(ident):
        article = db.get_or_404(Article, ident)
        return [version.title for version in article.versions]

    @shop.post("/articles/<int:ident>/revert")
    def revert(ident):
        db.get_or_404(Article, ident).versions[0].revert()
        db.session.commit()
        return ""

    @shop.delete("/articles/<int:ident>")
    def delete(ident):
        db.session.delete(db.get_or_404(Article, ident))
        db.session.commit()
        return ""

    with shop.app_context():
        db.create_all()
    return shop, db, Article


def test_versions(shop):
    app, db, article = shop
    client = app.test_client()
    client.put("/articles/1/draft")
    client.put("/articles/1/final")
    assert client.get("/articles/1").json == ["draft", "final"]
    client.post("/articles/1/revert")
    assert client.get("/articles/1").json == ["draft", "final", "draft"]
    with app.app_context():
        assert count_versions(db.session.get(article, 1)) == 3
        transactions = db.session.scalars(select(transaction_class(article))).all()
        assert len(transactions) == 3


def test_a_deletion(shop):
    app, db, article = shop
    client = app.test_client()
    client.put("/articles/1/draft")
    client.delete("/articles/1")
    assert client.get("/articles/1").status_code == 404
    with app.app_context():
        version = version_class(article)
        kinds = db.session.scalars(
            select(version.operation_type).order_by(version.transaction_id)
        )
        assert kinds.all() == [Operation.INSERT, Operation.DELETE]


def test_nothing_is_kept_of_what_fails(shop):
    app, db, article = shop
    with app.app_context():
        db.session.add(article(title="draft"))
        db.session.flush()
        db.session.rollback()
    with app.app_context():
        assert db.session.scalars(select(version_class(article))).all() == []
        assert db.snapshot().lost_work == ()


@pytest.mark.parametrize("protected", [True, False])
def test_who_changed_it(version, make_app, sqlite_url, protected):
    """By its plugin for Flask: the user, loaded before or within the flush."""
    version(plugins=[FlaskPlugin()])

    class Base(DeclarativeBase):
        pass

    class User(UserMixin, Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]

    Base.registry.configure()
    db = ScopedSession(model_class=Base)
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SECRET_KEY="test")
    manager = LoginManager(shop)
    manager.user_loader(lambda ident: db.session.get(User, ident))

    @shop.post("/login")
    def login():
        login_user(db.get_or_404(User, 7))
        return ""

    def write(title):
        db.session.add(Article(title=title))
        db.session.commit()
        return current_user.name

    view = login_required(write) if protected else write
    shop.add_url_rule("/articles/<title>", "write", view, methods=["POST"])
    with shop.app_context():
        db.create_all()
        db.session.add(User(id=7, name="Ada"))
        db.session.commit()
    client = shop.test_client()
    client.post("/login")
    assert client.post("/articles/draft").text == "Ada"
    with shop.app_context():
        transaction = db.session.scalars(select(transaction_class(Article))).one()
        assert (transaction.user.name, transaction.remote_addr) == ("Ada", "127.0.0.1")
