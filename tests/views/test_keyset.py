"""Pages by bookmark show each row exactly once, forwards and backwards."""

from __future__ import annotations

import base64
import datetime as dt
import enum
import itertools
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from databases import a_database
from flask import Flask
from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy.orm import aliased
from sqlalchemy.orm import contains_eager
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import joinedload
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship
from sqlalchemy.orm import with_polymorphic
from werkzeug.exceptions import NotFound

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.views import _bookmarks

# Not twice on the same driver: how an engine pools makes no difference to a statement.
pytestmark = pytest.mark.databases(
    "sqlite", "postgresql", "psycopg2", "mariadb", "pgbouncer"
)


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"
    BLUE = "b"


class Upper(sa.types.TypeDecorator[str]):
    """Is stored in another order than it has in Python."""

    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value[::-1]

    process_result_value = process_bind_param


class Base(DeclarativeBase):
    type_annotation_map = {str: sa.String(50)}  # noqa: RUF012


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int | None]
    must: Mapped[int]
    text: Mapped[str | None]
    color: Mapped[Color | None]
    ratio: Mapped[float | None] = mapped_column(sa.Double)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(20, 5))
    at: Mapped[dt.datetime | None]
    day: Mapped[dt.date | None]
    flag: Mapped[bool | None]
    code: Mapped[uuid.UUID | None]
    data: Mapped[bytes | None]
    odd: Mapped[str | None] = mapped_column(Upper)
    seen: Mapped[dt.datetime | None] = mapped_column(sa.DateTime(timezone=True))
    time: Mapped[dt.time | None]
    span: Mapped[dt.timedelta | None]
    parts: Mapped[list[Part]] = relationship(back_populates="thing")


class Part(Base):
    __tablename__ = "part"
    thing_id: Mapped[int] = mapped_column(sa.ForeignKey(Thing.id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None]
    thing: Mapped[Thing] = relationship(back_populates="parts")


class Animal(Base):
    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "animal",
    }


class Dog(Animal):
    __tablename__ = "dog"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
    age: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Real(Base):
    __tablename__ = "real_"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(sa.REAL)


no_key = sa.Table("no_key", sa.MetaData(), sa.Column("x", sa.Integer))


@pytest.fixture(scope="module")
def kept(
    db_value: str, request: pytest.FixtureRequest, tmp_path_factory: Any
) -> Iterator[Any]:
    """One database for all tests of this module, which ``app`` empties."""
    folder = tmp_path_factory.mktemp("keyset")
    with a_database(db_value, folder, request.getfixturevalue) as found:
        engine = sa.create_engine(found.url, **found.options)
        Base.metadata.create_all(engine)
        engine.dispose()
        yield found


@pytest.fixture
def db() -> ScopedSession[Any]:
    return ScopedSession(model_class=Base)


@pytest.fixture
def app(db: Any, kept: Any, make_app: Callable[..., Flask]) -> Iterator[Flask]:
    options = dict(kept.options)
    if kept.url.get_driver_name() == "pymysql":
        zero = "SET sql_mode = CONCAT(@@sql_mode, ',NO_AUTO_VALUE_ON_ZERO')"
        options["connect_args"] = {"init_command": zero}
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=kept.url,
        SQLALCHEMY_ENGINE_OPTIONS=options,
        SECRET_KEY="secret",
    )
    with app.app_context():
        for table in (Part, Thing):
            db.session.execute(sa.delete(table))
        db.session.commit()
    return app


@pytest.fixture
def some(db: Any, app: Flask) -> Iterator[None]:
    """Nine things with ties and NULL, and two parts of all but the last."""
    with app.app_context():
        things = [
            {"id": i, "must": i % 2, "number": (None, 1, 2)[i % 3]} for i in range(9)
        ]
        parts = [
            {"thing_id": i, "number": k, "name": None if k else "x"}
            for i, k in itertools.product(range(8), range(2))
        ]
        db.session.execute(sa.insert(Thing), things)
        db.session.execute(sa.insert(Part), parts)
        db.session.commit()
        yield


def walk(db: Any, statement: Any, per_page: int) -> list[Any]:
    """Return the items of all pages, which are the same forwards and backwards."""
    page = db.paginate_keyset(statement, per_page=per_page)
    assert page.previous is None
    there = [page.items]
    while page.has_next:
        assert len(page.items) == per_page
        page = db.paginate_keyset(statement, per_page=per_page, bookmark=page.next)
        there.append(page.items)
    assert page.next is None
    back = [page.items]
    while page.previous is not None:
        page = db.paginate_keyset(statement, per_page=per_page, bookmark=page.previous)
        assert page.has_next
        back.insert(0, page.items)
    items = list(itertools.chain(*there))
    assert list(itertools.chain(*back)) == items
    return items


# At random

NAMES = ("number", "must", "text", "color", "ratio", "price", "at", "day", "flag")
MORE = ("code", "data", "odd", "seen", "time", "span")
COLUMNS = {name: getattr(Thing, name) for name in (*NAMES, *MORE, "id")}
# All that UTF-8 has. With "codec", Hypothesis would encode each of a million to know.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(characters, max_size=4)
VALUES: dict[str, Any] = {
    "number": st.integers(-3, 3),
    "text": st.sampled_from(["", "a", "B", "b", "ä", "Z", "'", " "]) | texts,
    "color": st.sampled_from(Color),
    "ratio": st.floats(width=64),
    "price": st.decimals(-999, 999, places=5),
    "at": st.datetimes(dt.datetime(1900, 1, 1)),
    "day": st.dates(dt.date(1900, 1, 1)),
    "flag": st.booleans(),
    "code": st.uuids(),
    "data": st.binary(max_size=3),
    "odd": texts,
    "seen": st.datetimes(dt.datetime(1900, 1, 1), timezones=st.just(dt.timezone.utc)),
    "time": st.times(),
    "span": st.timedeltas(dt.timedelta(-999), dt.timedelta(999)),
}
things = st.fixed_dictionaries(
    {"must": st.integers(-2, 2)},
    optional={name: st.none() | value for name, value in VALUES.items()},
)
orders = st.lists(
    st.tuples(
        st.sampled_from(sorted(COLUMNS)),
        st.booleans(),
        st.sampled_from(["", "nulls_first", "nulls_last"]),
    ),
    max_size=3,
)
wrappers: list[Callable[[Any], Any]] = [
    lambda column: column,
    lambda column: sa.case((column.is_(None), None), else_=column),
]


@pytest.mark.slow
@pytest.mark.databases("sqlite", "postgresql", "psycopg2")
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(things, max_size=9), orders, st.integers(1, 4), st.sampled_from(wrappers)
)
def test_any_rows_in_any_order(
    db: Any, app: Flask, rows: Any, order: Any, per_page: int, wrap: Any
) -> None:
    """The order is the database's own, and no row is lost or repeated."""
    clauses = []
    for name, down, nulls in order:
        clause = wrap(COLUMNS[name])
        clause = clause.desc() if down else clause
        clauses.append(getattr(clause, nulls)() if nulls else clause)
    last = bool(order) and order[-1][1]
    by_key = Thing.id.desc() if last else Thing.id
    with app.app_context():
        db.session.execute(sa.delete(Thing))
        db.session.add_all([Thing(**row) for row in rows])
        db.session.commit()
        for selected in ([Thing], [Thing.id, Thing.text], [Thing.text]):
            statement = select(*selected).order_by(*clauses)
            expected = db.session.execute(
                select(*selected).order_by(*clauses, by_key)
            ).all()
            if len(selected) == 1:
                expected = [row[0] for row in expected]
            assert walk(db, statement, per_page) == expected


# Statements

other = aliased(Thing)
lower = select(Part.thing_id.label("n"), Part.number).subquery()
STATEMENTS: dict[str, tuple[Any, list[Any]]] = {
    "unordered": (select(Thing), []),
    "desc": (select(Thing).order_by(Thing.number.desc()), [Thing.id.desc()]),
    "alias": (select(other).order_by(other.number), [other.id]),
    "text": (select(Thing).order_by("number", sa.desc("must")), [Thing.id.desc()]),
    "label": (
        select(Thing.id, Thing.number.label("n")).order_by(sa.desc("n")),
        [Thing.id.desc()],
    ),
    "label of an expression": (
        select(Thing.id, func.coalesce(Thing.number, 5).label("n")).order_by("n"),
        [Thing.id],
    ),
    "expression": (
        select(Thing).order_by(-Thing.must, func.coalesce(Thing.number, 5)),
        [Thing.id],
    ),
    "collate": (
        select(Thing).order_by(Thing.text.collate("C").desc()),
        [Thing.id.desc()],
    ),
    "joinedload": (
        select(Thing).options(joinedload(Thing.parts)).order_by(Thing.number),
        [Thing.id],
    ),
    "joined": (select(Thing).join(Thing.parts).order_by(Thing.number), [Thing.id]),
    "joined alias": (select(other).join(other.parts).order_by(other.must), [other.id]),
    "joined expression": (
        select(Thing)
        .join(Thing.parts)
        .order_by(func.coalesce(Thing.number, 5).desc().nulls_last()),
        [Thing.id.desc()],
    ),
    "contains_eager": (
        select(Thing)
        .join(Thing.parts)
        .options(contains_eager(Thing.parts))
        .order_by(Thing.number.desc()),
        [Thing.id.desc()],
    ),
    "two keys": (select(Part).order_by(Part.name), [Part.thing_id, Part.number]),
    "two keys, joined": (
        select(Part).join(Part.thing).order_by(Part.name.desc()),
        [Part.thing_id.desc(), Part.number.desc()],
    ),
    "rows": (
        select(Thing, Part.name).join(Thing.parts).order_by(Part.name, Thing.number),
        [Thing.id, Part.thing_id, Part.number],
    ),
    "rows, many to one": (
        select(Part, Thing.number)
        .join(Part.thing)
        .options(joinedload(Part.thing))
        .order_by(Thing.number.desc()),
        [Part.thing_id.desc(), Part.number.desc()],
    ),
    "outer join": (
        select(Thing.id, Part)
        .outerjoin(Part, Part.thing_id == Thing.id + 3)
        .order_by(Part.number),
        [Thing.id, Part.thing_id],
    ),
    "core": (
        sa.select(Thing.__table__.c.number).order_by(Thing.__table__.c.number),
        [Thing.__table__.c.id],
    ),
    "none": (select(Thing).where(sa.false()), []),
}


@pytest.mark.databases("sqlite", "postgresql", "mariadb")
@pytest.mark.usefixtures("some")
@pytest.mark.parametrize("name", STATEMENTS)
def test_each_item_is_on_exactly_one_page(
    db: Any, name: str, request: pytest.FixtureRequest
) -> None:
    statement, more = STATEMENTS[name]
    dialect = db.engine.dialect.name
    if db.engine.dialect.driver == "pymysql":
        dialect = "mariadb"
    if name == "collate" and dialect != "postgresql":
        collation = {"sqlite": "NOCASE", "mariadb": "latin1_bin"}[dialect]
        statement = select(Thing).order_by(Thing.text.collate(collation).desc())
    if name == "joined expression" and dialect == "mariadb":  # it lacks NULLS LAST
        by = func.coalesce(Thing.number, 5).desc()
        statement = select(Thing).join(Thing.parts).order_by(by)
    result = db.session.execute(statement.order_by(*(more or [Thing.id])))
    rows = list(result.unique())
    [_, *others] = statement.column_descriptions
    expected = rows if others else [row[0] for row in rows]
    if name == "core":  # equal values are different items
        expected = [None] * 3 + [1] * 3 + [2] * 3
        if db.engine.dialect.name == "postgresql":
            expected = expected[3:] + expected[:3]
    # A bookmark of each item; pages of several, the last one not full; one page.
    for per_page in (1, 4, 100):
        found = walk(db, statement, per_page)
        assert found == expected


@pytest.mark.databases("sqlite", "postgresql", "mariadb")
@pytest.mark.usefixtures("some")
def test_rows_without_the_column_of_a_subclass_are_shown(db: Any) -> None:
    """NULL is there by an outer join, although the column is declared NOT NULL."""
    animals = [Dog(id=i, age=i % 3) if i % 2 else Animal(id=i) for i in range(9)]
    db.session.add_all(animals)
    db.session.flush()
    everyone = with_polymorphic(Animal, "*", flat=True)
    for statement in (
        select(everyone).order_by(everyone.Dog.age),
        select(everyone).order_by(everyone.Dog.age.desc()),
        select(everyone, Thing.id)
        .join(Thing, Thing.id == everyone.id)
        .order_by(everyone.Dog.age),
    ):
        found = walk(db, statement, 2)
        assert len(found) == len(set(found)) == 9


@pytest.mark.databases("sqlite")
@pytest.mark.usefixtures("some")
def test_loaded_collections_are_complete(db: Any) -> None:
    for name in ("joinedload", "contains_eager"):
        db.session.expunge_all()
        for thing in walk(db, STATEMENTS[name][0], 3):
            assert len(thing.__dict__["parts"]) == (2 if thing.id < 8 else 0)
    row = db.paginate_keyset(STATEMENTS["rows"][0]).items[-1]
    assert (row.name, row.Thing, row._fields) == ("x", row[0], ("Thing", "name"))


@pytest.mark.databases("sqlite", "postgresql", "mariadb")
@pytest.mark.usefixtures("some")
def test_an_order_that_would_lose_rows_is_refused(db: Any) -> None:
    things = select(Thing)
    refused = [
        (things.group_by(Thing.id), "GROUP BY"),
        (things.distinct(), "DISTINCT"),
        (things.limit(3), "LIMIT"),
        (sa.union(things, things), "needs a select"),
        (things.join(Thing.parts).order_by(Part.name), "part.name.*another table"),
        (things.order_by(func.random()), r"random\(\)"),
        (things.order_by(Thing.at < func.now()), r"now\(\)"),
        (things.order_by(func.row_number().over(order_by=Thing.id)), "window"),
        (things.order_by(sa.text("number")), "is text"),
        (things.order_by("nothing"), "is text"),
        (select(lower.c.n).order_by(lower.c.n), "primary key"),
        (select(no_key.c.x), "'no_key' apart"),
        (select(sa.literal(1)), "which tables"),
        (
            select(Thing, Part.name).join(Thing.parts).options(joinedload(Thing.parts)),
            "selectinload",
        ),
    ]
    if db.engine.dialect.name == "postgresql":
        refused.append((select(Real).order_by(Real.value), "real_.value.*precision"))
    for statement, message in refused:
        with pytest.raises(ConfigError, match=message):
            db.paginate_keyset(statement)


@pytest.mark.databases("postgresql")
@pytest.mark.usefixtures("some")
def test_a_value_that_no_bookmark_can_have_is_refused_by_name(db: Any) -> None:
    network = sa.cast("10.0.0.1", sa.dialects.postgresql.INET)
    with pytest.raises(ConfigError, match="of the type IPv4Address"):
        db.paginate_keyset(select(Thing).order_by(network), per_page=1)


@pytest.mark.databases("sqlite")
@pytest.mark.usefixtures("some")
def test_null_where_there_should_be_none_is_refused_by_name(db: Any) -> None:
    """Else such rows would be lost without a word."""
    table = sa.Table(
        "thing",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
    )
    with pytest.raises(ConfigError, match=r"NULL in thing\.number"):
        db.paginate_keyset(select(table.c.id).order_by(table.c.number))


# Bookmarks


@pytest.mark.databases("sqlite")
def test_page_and_size_are_taken_from_the_request(
    db: Any, app: Flask, some: None
) -> None:
    things = select(Thing).order_by(Thing.id)
    page = db.paginate_keyset(things, per_page=2)
    with app.test_request_context(query_string={"bookmark": page.next, "per_page": 3}):
        page = db.paginate_keyset(things)
        assert [thing.id for thing in page] == [2, 3, 4]
        assert page.per_page == 3
        assert db.paginate_keyset(things, max_per_page=1).per_page == 1
    with app.test_request_context("/?per_page=0"), pytest.raises(NotFound):
        db.paginate_keyset(things)
    with pytest.raises(ConfigError, match="max_per_page"):
        db.paginate_keyset(things, max_per_page=0)


@pytest.mark.databases("sqlite", "postgresql", "mariadb")
@pytest.mark.usefixtures("some")
def test_a_bad_bookmark_is_not_found(db: Any, app: Flask) -> None:
    """Whatever it is, and nothing of it reaches the database."""
    things = select(Thing).order_by(Thing.number)
    good = db.paginate_keyset(things, per_page=2).next
    position = len(good) // 2
    changed = "A" if good[position] != "A" else "B"
    pickled = base64.urlsafe_b64encode(b"cos\nsystem\n(S'false'\ntR.").decode()
    plain = base64.urlsafe_b64encode(b'[false,false,[1,"1; DROP TABLE"]]').decode()
    bad: list[Any] = [
        "",
        "=",
        "x",
        good[:-1],
        good[1:],
        good + "A",
        good[:position] + changed + good[position + 1 :],
        pickled,
        plain,
        "\0",
        "ä",
        "\ud800",
        "'; DROP TABLE thing; --",
        "A" * 100_000,
        b"x",
        5,
        # of another order, and so perhaps with values of other types
        db.paginate_keyset(things.order_by(Thing.id.desc()), per_page=2).next,
        db.paginate_keyset(select(Thing).order_by(Thing.text), per_page=2).next,
        db.paginate_keyset(select(Part), per_page=2).next,
    ]
    for bookmark in bad:
        with pytest.raises(NotFound):
            db.paginate_keyset(things, bookmark=bookmark)
        if isinstance(bookmark, str) and bookmark != "\ud800":
            with (
                app.test_request_context(query_string={"bookmark": bookmark}),
                pytest.raises(NotFound),
            ):
                db.paginate_keyset(things)
    assert len(db.paginate_keyset(things, bookmark=good).items) == 7
    assert len(good) == len(db.paginate_keyset(things, per_page=1).next)


@pytest.mark.databases("sqlite")
def test_a_bookmark_shows_no_value(db: Any, app: Flask) -> None:
    secret = "only the database knows"
    with app.app_context():
        for i in range(3):
            db.session.add(Thing(id=i, must=1, text=f"{secret}{i}"))
        db.session.commit()
        things = select(Thing.id).order_by(Thing.text)
        page = db.paginate_keyset(things, per_page=1)
        sealed = base64.urlsafe_b64decode(page.next + "==")
        assert secret.encode() not in sealed
        assert page.next == db.paginate_keyset(things, per_page=1).next
        assert page.next not in (
            db.paginate_keyset(things, per_page=1, bookmark=page.next).next,
            db.paginate_keyset(things, per_page=1, bookmark=page.next).previous,
        )


@pytest.mark.databases("sqlite")
@pytest.mark.usefixtures("some")
def test_rows_that_come_and_go_move_no_others(db: Any) -> None:
    things = select(Thing).order_by(Thing.number, Thing.id)
    expected = [thing.id for thing in db.session.scalars(things)]
    page = db.paginate_keyset(things, per_page=3)
    second = db.paginate_keyset(things, per_page=3, bookmark=page.next)
    db.session.execute(sa.delete(Part))
    db.session.delete(page.items[-1])  # the row of the bookmark
    db.session.add(Thing(id=99, must=0, number=None))  # before it
    db.session.flush()
    again = db.paginate_keyset(things, per_page=3, bookmark=page.next)
    assert [thing.id for thing in again] == [99, *expected[3:5]]
    assert again.items[1:] == second.items[:2]

    last = db.paginate_keyset(things, per_page=100, bookmark=page.next)
    for thing in last:
        db.session.delete(thing)
    db.session.flush()
    empty = db.paginate_keyset(things, per_page=3, bookmark=page.next)
    assert (empty.items, empty.has_next) == ([], False)
    back = db.paginate_keyset(things, per_page=3, bookmark=empty.previous)
    assert [thing.id for thing in back] == expected[:2]
    for thing in back:
        db.session.delete(thing)
    db.session.flush()
    nothing = db.paginate_keyset(things, bookmark=back.next)
    assert nothing.items == []
    db.session.add(Thing(id=0, must=0))
    db.session.flush()
    assert db.paginate_keyset(things, bookmark=nothing.previous).items[0].id == 0


@pytest.mark.databases("sqlite")
def test_the_secret_key_may_be_rotated(db: Any, app: Flask, some: None) -> None:
    things = select(Thing)
    old = db.paginate_keyset(things, per_page=2).next
    app.config["SECRET_KEY"] = b"another"
    with pytest.raises(NotFound):
        db.paginate_keyset(things, bookmark=old)
    app.config["SECRET_KEY_FALLBACKS"] = ["secret"]
    assert len(db.paginate_keyset(things, bookmark=old).items) == 7


@pytest.mark.databases("sqlite")
def test_without_a_secret_key_bookmarks_are_of_one_process(
    db: Any, app: Flask, some: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, once."""
    _bookmarks._key_of_process.cache_clear()  # another test may have asked for it
    app.config["SECRET_KEY"] = None
    assert len(walk(db, select(Thing), 2)) == 9
    [record] = [each for each in caplog.records if "SECRET_KEY" in each.message]
    assert record.levelname == "WARNING"
