"""Rows or a 404, and pages by number: each item is on exactly one page."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from databases import a_database
from flask import Flask
from sqlalchemy import event
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import aliased
from sqlalchemy.orm import contains_eager
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import joinedload
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship
from sqlalchemy.orm import selectinload
from sqlalchemy.orm import Session
from sqlalchemy.orm import undefer
from werkzeug.exceptions import NotFound

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError

# Not twice on the same driver: how an engine pools makes no difference to a statement.
pytestmark = pytest.mark.databases(
    "sqlite", "postgresql", "psycopg2", "mariadb", "pgbouncer"
)


class Base(DeclarativeBase):
    pass


class AuditBase(DeclarativeBase):
    pass


class Entry(AuditBase):
    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True)


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(99))
    nickname: Mapped[str | None] = mapped_column(sa.String(99), deferred=True)
    books: Mapped[list[Book]] = relationship(
        back_populates="author", order_by="Book.id"
    )


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(sa.String(99))
    author_id: Mapped[int] = mapped_column(sa.ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


class Chapter(Base):
    __tablename__ = "chapter"
    book_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    lines: Mapped[list[Line]] = relationship()


class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int]
    number: Mapped[int]
    __table_args__ = (
        sa.ForeignKeyConstraint(
            ["book_id", "number"], ["chapter.book_id", "chapter.number"]
        ),
    )


class Tag(Base):
    __tablename__ = "tag"
    name: Mapped[str] = mapped_column(sa.String(99), primary_key=True)


class Shape(Base):
    __tablename__ = "shape"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(9))
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "shape",
        "with_polymorphic": "*",
    }


class Square(Shape):
    __tablename__ = "square"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Shape.id), primary_key=True)
    size: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "square"}  # noqa: RUF012


class Small(Base):
    __tablename__ = "small"
    id: Mapped[int] = mapped_column(
        sa.SmallInteger, primary_key=True, autoincrement=False
    )


@pytest.fixture(scope="module")
def kept(
    db_value: str, request: pytest.FixtureRequest, tmp_path_factory: Any
) -> Iterator[dict[str, Any]]:
    """The configuration with databases for all tests of this module.

    They have ten authors with three books each, six chapters with two lines each, and
    an entry. Tests leave them as they are.
    """
    folder = tmp_path_factory.mktemp("pages")
    audit = sa.create_engine(f"sqlite:///{folder / 'audit.db'}")
    with a_database(db_value, folder, request.getfixturevalue) as found:
        engine = sa.create_engine(found.url, **found.options)
        for base, bind in ((Base, engine), (AuditBase, audit)):
            base.metadata.create_all(bind)
        with Session(engine) as session, Session(audit) as audits:
            for i in range(10):
                books = [Book(title=f"{i}.{k}") for k in range(3)]
                session.add(Author(name=f"author {i % 4}", books=books))
                session.flush()
            for i in range(6):
                lines = [Line() for _ in range(2)]
                session.add(Chapter(book_id=i // 2, number=i % 2, lines=lines))
            audits.add(Entry(id=7))
            session.commit()
            audits.commit()
        engine.dispose()
        audit.dispose()
        yield {
            "SQLALCHEMY_DATABASE_URI": found.url,
            "SQLALCHEMY_ENGINE_OPTIONS": found.options,
            "SQLALCHEMY_BINDS": {"audit": audit.url},
        }


@pytest.fixture
def db() -> ScopedSession[Any]:
    return ScopedSession(model_class=Base, binds={AuditBase: "audit"})


@pytest.fixture
def app(db: Any, kept: Any, make_app: Callable[..., Flask]) -> Flask:
    return make_app(db, **kept)


@pytest.fixture
def context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


def all_pages(db: Any, statement: Any, per_page: int) -> list[Any]:
    """Return the items of all pages, which are full and agree on the total."""
    page = db.paginate(statement, page=1, per_page=per_page)
    found = list(page)
    while page.has_next:
        assert len(page.items) == per_page
        page = page.next(error_out=True)
        found += page.items
    last = db.paginate(statement, page=page.page, per_page=per_page)
    assert last.total == page.total == len(found)
    assert page.pages == (page.page if found else 0)
    return found


def sent_to(db: Any) -> list[str]:
    """Return a list to which each statement is added that is sent from now on."""
    sent: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    return sent


# A row, or 404


@pytest.mark.usefixtures("context")
def test_get_or_404(db: Any) -> None:
    assert db.get_or_404(Author, 1).id == 1
    assert db.get_or_404(Chapter, (1, 0)).book_id == 1
    assert db.get_or_404(Chapter, {"book_id": 1, "number": 0}).book_id == 1
    assert db.get_or_404(Entry, 7).id == 7
    author = db.get_or_404(Author, 2, options=[undefer(Author.nickname)])
    assert "nickname" in author.__dict__
    with pytest.raises(NotFound, match="No such author"):
        db.get_or_404(Author, 99, description="No such author.")


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(
    ("entity", "ident"),
    [
        (Author, 2**31),
        (Author, 2**63),
        (Author, -(2**70)),
        (Author, "9" * 30),
        (Author, "x"),
        (Author, ""),
        (Small, 2**15),
        (Chapter, (1, 2**70)),
        (Chapter, {"book_id": 2**70, "number": 0}),
        (Entry, 2**70),
        (Tag, "\0"),
        (Tag, "x" * 1000),
    ],
)
def test_a_key_that_no_row_can_have_is_not_found(
    db: Any, entity: Any, ident: Any
) -> None:
    """Not an error of the driver, after which PostgreSQL refuses all else."""
    db.session.add(Tag(name="kept"))
    with pytest.raises(NotFound):
        db.get_or_404(entity, ident)
    db.session.commit()
    tag = db.get_or_404(Tag, "kept")
    assert tag.name == "kept"
    db.session.delete(tag)
    db.session.commit()


@pytest.mark.usefixtures("context")
def test_first_or_404(db: Any) -> None:
    by_id = select(Author).order_by(Author.id)
    assert db.first_or_404(by_id).id == 1
    assert len(db.first_or_404(by_id.options(joinedload(Author.books))).books) == 3
    eager = by_id.join(Author.books).options(contains_eager(Author.books))
    assert len(db.first_or_404(eager).books) == 3
    assert db.first_or_404(select(Author.nickname)) is None  # this row exists
    row = db.first_or_404(select(Author.id, Author.name).order_by(Author.id))
    assert (row.id, row.name) == (1, "author 0")
    assert db.first_or_404(sa.insert(Tag).values(name="a").returning(Tag.name)) == "a"
    assert db.first_or_404(sa.text("SELECT 1")) == 1
    with pytest.raises(NotFound, match="Nobody"):
        db.first_or_404(by_id.where(Author.id == 99), description="Nobody.")


@pytest.mark.usefixtures("context")
def test_one_or_404(db: Any) -> None:
    one = select(Author).where(Author.id == 1)
    assert db.one_or_404(one).id == 1
    assert db.one_or_404(one.join(Author.books)).id == 1
    assert len(db.one_or_404(one.options(joinedload(Author.books))).books) == 3
    assert db.one_or_404(select(Author.nickname).where(Author.id == 1)) is None
    name = select(Author.name, Author.id).where(Author.id == 1)
    assert db.one_or_404(name).name == "author 0"
    for wrong in (
        one.where(Author.id == 99),
        select(Author),
        select(Author.name).where(Author.name == "author 0"),
    ):
        with pytest.raises(NotFound, match="Not one"):
            db.one_or_404(wrong, description="Not one.")


# Pages


other = aliased(Author)
STATEMENTS: dict[str, Any] = {
    "plain": select(Author).order_by(Author.id.desc()),
    "unordered": select(Author),
    "alias": select(other).order_by(other.name, other.id),
    "joinedload": select(Author)
    .options(joinedload(Author.books))
    .order_by(Author.name, Author.id),
    "joined": select(Author).join(Author.books).order_by(Author.name, Author.id),
    "joined, by the joined": select(Author)
    .join(Author.books)
    .order_by(Book.title.desc()),
    "joined, unordered": select(Author).join(Author.books),
    "joined alias": select(other).join(other.books).order_by(other.id),
    "contains_eager": select(Author)
    .join(Author.books)
    .options(contains_eager(Author.books))
    .order_by(Author.name.desc(), Author.id, Book.id),
    "outer join": select(Author)
    .select_from(Book)
    .outerjoin(Author, (Author.id == Book.author_id) & (Book.title > "3"))
    .order_by(Author.id),
    "where": select(Author).where(Author.id == Book.author_id).order_by(Author.id),
    "distinct": select(Author).join(Author.books).distinct().order_by(Author.id),
    "text": select(Author).join(Author.books).order_by("name", sa.desc("id")),
    "group by": select(Author)
    .join(Author.books)
    .group_by(Author.id)
    .having(func.count(Book.id) > 1)
    .order_by(func.max(Book.title).desc()),
    "two keys": select(Chapter).join(Chapter.lines).order_by(Line.id.desc()),
    "value": select(Author.name).order_by(Author.name),
    "distinct value": select(Author.name).distinct().order_by(Author.name),
    "rows": select(Author.id, Book.id, Book.title)
    .join(Author.books)
    .order_by(Book.id.desc()),
    "entities": select(Author, Book).join(Author.books).order_by(Book.id),
    "selectinload": select(Author, Book)
    .join(Author.books)
    .options(selectinload(Author.books))
    .order_by(Book.id),
    "groups": select(Author.name, func.count().label("n"))
    .group_by(Author.name)
    .order_by(sa.desc("n"), Author.name),
    "core": sa.select(Author.__table__.c.name, Author.__table__.c.id).order_by("id"),
    "none": select(Author).where(sa.false()),
    "audit": select(Entry).order_by(Entry.id),
}


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("name", STATEMENTS)
def test_each_item_is_on_exactly_one_page(db: Any, name: str) -> None:
    """Pages are full, and the total is right, whatever the statement joins."""
    statement = STATEMENTS[name]
    result = db.session.execute(statement)
    if name in ("joinedload", "contains_eager"):
        result = result.unique()
    rows = list(result)
    [selected, *more] = statement.column_descriptions
    entity = not more and selected["expr"] is selected.get("entity")
    if entity:
        rows = [row for row in dict.fromkeys(rows) if row[0] is not None]
    expected = rows if more else [row[0] for row in rows]
    for per_page in (3, 100):
        found = all_pages(db, statement, per_page)
        if "unordered" in name:
            assert sorted(map(id, found)) == sorted(map(id, expected))
        else:
            assert found == expected


@pytest.mark.databases("postgresql")
@pytest.mark.usefixtures("context")
def test_distinct_on_keeps_the_first_of_the_order(db: Any) -> None:
    distinct_on = getattr(postgresql, "distinct_on", None)
    statement = select(Author).join(Author.books)
    if distinct_on is None:  # SQLAlchemy 2.0
        statement = statement.distinct(Author.name)
    else:
        statement = statement.ext(distinct_on(Author.name))
    statement = statement.order_by(Author.name, Book.title.desc())
    expected = db.session.scalars(statement).all()
    assert [author.id for author in expected] == [9, 10, 7, 8]
    assert all_pages(db, statement, 3) == expected


@pytest.mark.usefixtures("context")
def test_loaded_collections_are_complete(db: Any) -> None:
    """A join's matches are those of the statement, as without pages."""
    for name in ("joinedload", "contains_eager"):
        db.session.expunge_all()
        for author in all_pages(db, STATEMENTS[name], 4):
            assert len(author.__dict__["books"]) == 3
    db.session.expunge_all()
    some = STATEMENTS["contains_eager"].where(Book.title.like("%.1"))
    assert [len(author.books) for author in db.paginate(some)] == [1] * 10


class Always(sa.ColumnElement[int]):
    """A construct that SQLAlchemy can render for SQLite only."""

    type = sa.Integer()
    inherit_cache = True


@compiles(Always, "sqlite")
def _render(element: Any, compiler: Any, **kw: Any) -> str:
    return "1"


@pytest.mark.databases("sqlite")
@pytest.mark.usefixtures("context")
def test_a_construct_for_one_database_only(db: Any) -> None:
    statement = select(Author).where(Always() == 1).order_by(Author.id)
    assert len(all_pages(db, statement, 3)) == 10
    assert len(all_pages(db, select(Author.name).where(Always() == 1), 3)) == 10
    page = db.paginate_keyset(statement, per_page=9)
    page = db.paginate_keyset(statement, bookmark=page.next)
    assert [author.id for author in page] == [10]


@pytest.mark.usefixtures("context")
def test_statements_that_have_no_pages_are_refused(db: Any) -> None:
    authors = select(Author).order_by(Author.id)
    for statement, message in (
        (authors.limit(5), "LIMIT"),
        (authors.offset(5), "OFFSET"),
        (sa.union(authors, authors), r"needs a select\(\), not CompoundSelect"),
        (db.session.query(Author), "not Query"),
        (Author, "not"),
        (
            select(Author, Book.id)
            .join(Author.books)
            .options(joinedload(Author.books)),
            "selectinload",
        ),
        (authors.join(Author.books).order_by(sa.text("id")), "'id'.*, which is text"),
    ):
        with pytest.raises(ConfigError, match=message):
            db.paginate(statement)


@pytest.mark.databases("sqlite")
def test_page_and_size_are_taken_from_the_request(db: Any, app: Flask) -> None:
    authors = select(Author).order_by(Author.id)
    with app.test_request_context("/?page=3&per_page=4"):
        page = db.paginate(authors)
        assert (page.page, page.per_page, page.max_per_page) == (3, 4, 100)
        assert [author.id for author in page] == [9, 10]
        assert (page.first, page.last, page.total, page.pages) == (9, 10, 10, 3)
        assert (page.has_prev, page.prev_num) == (True, 2)
        assert (page.has_next, page.next_num) == (False, None)
        assert page.prev().items[0].id == 5
        assert list(page.next()) == []
        assert db.paginate(authors, page=1, per_page=2).next_num == 2
        assert db.paginate(authors, max_per_page=2).per_page == 2
        assert db.paginate(authors, page="2").page == 2
    with app.test_request_context("/?per_page=9999"):
        assert db.paginate(authors).per_page == 100
        assert db.paginate(authors, max_per_page=None).per_page == 9999
    with app.app_context():
        page = db.paginate(authors, page=1)
        assert (page.page, page.per_page, page.has_prev, page.prev_num) == (
            1,
            20,
            False,
            None,
        )
        assert page.prev().page == 1


BAD = ["0", "-1", "x", "", "1.5", " 1", "1_0", "\u0663", "9" * 30, "9" * 5000, "1\0"]


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("argument", ["page", "per_page"])
@pytest.mark.parametrize("value", BAD, ids=range(len(BAD)))
def test_a_wrong_page_is_not_found(
    db: Any, app: Flask, argument: str, value: str
) -> None:
    authors = select(Author).order_by(Author.id)
    with app.test_request_context(query_string={argument: value}):
        with pytest.raises(NotFound):
            db.paginate(authors)
        page = db.paginate(authors, error_out=False)
        assert (page.page, page.per_page, page.total) == (1, 20, 10)


@pytest.mark.usefixtures("context")
def test_a_page_beyond_the_last(db: Any) -> None:
    for page in (3, 2**31 - 1):
        with pytest.raises(NotFound):
            db.paginate(select(Author), page=page, per_page=5)
        for count in (True, False):
            found = db.paginate(select(Author), page=page, error_out=False, count=count)
            assert found.items == []
            assert (found.first, found.last, found.has_next) == (0, 0, False)
            assert found.total == (10 if count else None)
    assert db.paginate(select(Tag)).total == 0
    assert db.paginate(select(Tag), count=False).pages == 0


@pytest.mark.databases("sqlite")
@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("argument", ["page", "per_page", "max_per_page"])
def test_a_wrong_argument_is_refused(db: Any, argument: str) -> None:
    """The error names the argument."""
    value: Any = 0 if argument == "max_per_page" else 2.5
    with pytest.raises(ConfigError, match=argument):
        db.paginate(select(Author), **{argument: value})


@pytest.mark.databases("sqlite")
@pytest.mark.usefixtures("context")
def test_numbers_for_links(db: Any) -> None:
    """Those of Flask-SQLAlchemy's documentation."""
    page = db.paginate(select(Author), page=1, per_page=1)
    page.total, page.page = 20, 7
    expected = [1, 2, None, 5, 6, 7, 8, 9, 10, 11, None, 19, 20]
    assert list(page.iter_pages()) == expected
    assert list(page.iter_pages(left_edge=0, right_edge=0)) == [None, *range(5, 12)]
    assert list(page.iter_pages(right_current=10**12)) == [1, 2, None, *range(5, 21)]
    page.total = 3
    assert list(page.iter_pages()) == [1, 2, 3]
    page.total = None
    assert list(page.iter_pages()) == []


@pytest.mark.databases("sqlite")
@pytest.mark.usefixtures("context")
def test_only_joins_of_the_statement_are_paged_by_keys(db: Any) -> None:
    """Not those that load relationships, which SQLAlchemy pages itself."""
    sent = sent_to(db)
    db.paginate(select(Author).options(joinedload(Author.books)), count=False)
    db.paginate(select(Book).options(joinedload(Book.author)), count=False)
    assert len(sent) == 2
    db.session.add_all([Shape(id=1), Square(id=2, size=2), Square(id=3)])
    db.session.flush()
    sent.clear()
    assert [each.id for each in db.paginate(select(Shape).order_by(Shape.id))] == [
        1,
        2,
        3,
    ]
    by_size = select(Square).order_by(Square.size.desc())
    assert [each.id for each in db.paginate(by_size)] == [2, 3]
    page = db.paginate_keyset(by_size, per_page=1)
    page = db.paginate_keyset(by_size, per_page=1, bookmark=page.next)
    assert [each.id for each in page] == [3]
    assert len(sent) == 4
    sent.clear()
    db.paginate(select(Author).join(Author.books), count=False)
    assert len(sent) == 2


@pytest.mark.databases("sqlite")
@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"per_page": 4}, 2),
        ({"per_page": 4, "count": False}, 1),
        ({"per_page": 4, "page": 3}, 1),
        ({}, 1),
    ],
)
def test_items_are_counted_only_if_need_be(
    db: Any, arguments: Any, expected: int
) -> None:
    sent = sent_to(db)
    db.paginate(select(Author).order_by(Author.id), **arguments)
    assert len(sent) == expected


@pytest.mark.subprocess
def test_nothing_is_imported_before_it_is_used(run_script: Any) -> None:
    """An application that uses none of this does not pay for it."""
    run_script(
        """
import sys
from flask import Flask
from flask_scopedsession import ScopedSession
app = Flask("t")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db = ScopedSession(app)
with app.app_context():
    db.session.connection()
assert "flask_scopedsession.views" not in sys.modules
"""
    ).check()
