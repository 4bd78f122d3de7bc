"""``db.transaction()``, ``db.transactional()`` and ``db.release()``."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from databases import a_database
from databases import Database
from flask import abort
from flask import Flask
from models import Base
from models import User
from sqlalchemy import create_engine
from sqlalchemy import delete
from sqlalchemy import event
from sqlalchemy import ForeignKey
from sqlalchemy import insert
from sqlalchemy import inspect
from sqlalchemy import select
from sqlalchemy import String
from sqlalchemy import text
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import relationship

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import OutsideContext
from flask_scopedsession.errors import TransactionError
from flask_scopedsession.errors import UnsavedWork

db = ScopedSession(model_class=Base)


@pytest.fixture(scope="module")
def database(
    db_value: str, request: pytest.FixtureRequest, tmp_path_factory: Any
) -> Iterator[Database]:
    """One database for all tests of this module, which create their tables anew."""
    folder = tmp_path_factory.mktemp("database")
    with a_database(db_value, folder, request.getfixturevalue) as found:
        yield found


@pytest.fixture
def bare(make_app: Callable[..., Flask], sqlite_url: str) -> Flask:
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI=sqlite_url, SQLALCHEMY_BINDS={"audit": "sqlite://"}
    )
    with app.app_context():
        db.create_all()
    return app


@pytest.fixture
def context(bare: Flask) -> Iterator[None]:
    with bare.app_context():
        yield


def names() -> list[str]:
    """Return the names that are committed."""
    with db.engine.connect() as connection:
        return sorted(connection.scalars(select(User.name)))


def in_use() -> int:
    return sum(pool.used for pool in db.snapshot().pools)


# transaction()


@pytest.mark.usefixtures("context")
def test_block_commits_at_its_end() -> None:
    """The value is the session, and what was done before the block is included."""
    db.session.add(User(name="before"))
    with db.transaction() as session:
        assert session is db.session()
        session.add(User(name="inside"))
        assert names() == []
    assert names() == ["before", "inside"]
    assert in_use() == 0


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_block_rolls_back_on_an_exception(error: type[BaseException]) -> None:
    """All of it, and any exception. The session can be used again."""
    db.session.add(User(name="before"))
    db.session.flush()
    with pytest.raises(error), db.transaction():  # noqa: PT012
        db.session.add(User(name="inside"))
        raise error
    assert names() == []
    assert in_use() == 0
    with db.transaction():
        db.session.add(User(name="after"))
    assert names() == ["after"]


def test_abort_rolls_back(bare: Flask) -> None:
    @bare.post("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        with db.transaction():
            db.session.add(User(name=str(status)))
            if status == 404:
                abort(status)
        return "", status

    for status in (404, 201):
        assert bare.test_client().post(f"/{status}").status_code == status
    with bare.app_context():
        assert names() == ["201"]


@pytest.mark.usefixtures("context")
def test_inner_block_leaves_the_commit_to_the_outermost() -> None:
    with db.transaction():
        with db.transaction():
            db.session.add(User(name="inner"))
        assert names() == []
        with db.transaction():
            db.session.add(User(name="second"))
    assert names() == ["inner", "second"]


@pytest.mark.usefixtures("context")
def test_failed_inner_block_prevents_the_commit() -> None:
    """Even if its error is handled; the error of the outermost has it as its cause."""
    with pytest.raises(TransactionError, match="its error was handled") as info:  # noqa: PT012, SIM117
        with db.transaction():
            db.session.add(User(name="outer"))
            with suppress(ValueError), db.transaction():
                raise ValueError("inner")
            with db.transaction():
                db.session.add(User(name="later"))
    assert isinstance(info.value.__cause__, ValueError)
    assert isinstance(info.value, InvalidRequestError)
    assert names() == []
    with db.transaction():  # the next one is not affected
        db.session.add(User(name="next"))
    assert names() == ["next"]


@pytest.mark.usefixtures("context")
def test_savepoint_may_fail_inside() -> None:
    with db.transaction():
        db.session.add(User(name="kept"))
        with suppress(ValueError), db.session.begin_nested():
            db.session.add(User(name="undone"))
            raise ValueError
    assert names() == ["kept"]


@pytest.mark.usefixtures("context")
def test_handled_failure_of_a_flush_is_not_passed_over() -> None:
    """SQLAlchemy's own ``with session.begin()`` would end as if all were well."""
    with pytest.raises(PendingRollbackError), db.transaction():  # noqa: PT012
        db.session.add(User(id=1, name="lost"))
        db.session.flush()
        db.session.add(User(id=1, name="again"))
        with suppress(IntegrityError):
            db.session.flush()
    assert names() == []
    assert in_use() == 0


@pytest.mark.usefixtures("context")
def test_commit_in_the_middle_of_a_block() -> None:
    """It ends the block's transaction, so SQLAlchemy refuses what comes after it."""
    with pytest.raises(InvalidRequestError, match="closed transaction"):  # noqa: PT012, SIM117
        with db.transaction():
            db.session.add(User(name="first"))
            db.session.commit()
            db.session.scalars(select(User))
    assert names() == ["first"]
    db.session.scalars(select(User)).all()
    with db.transaction():  # which began before the block
        db.session.commit()
        with pytest.raises(InvalidRequestError, match="closed transaction"):
            db.session.scalars(select(User))
    with db.transaction():
        db.session.add(User(name="last"))
        db.session.commit()
    with db.transaction():
        db.session.add(User(name="undone"))
        db.session.rollback()
    assert names() == ["first", "last"]


@pytest.mark.usefixtures("context")
def test_removed_session_is_not_committed_in_silence() -> None:
    with pytest.raises(TransactionError, match="removed inside"), db.transaction():  # noqa: PT012
        db.session.add(User(name="lost"))
        db.session.remove()
        db.session.add(User(name="of no block"))
    db.session.remove()
    with pytest.raises(ZeroDivisionError), db.transaction():  # noqa: PT012
        db.session.remove()
        raise ZeroDivisionError
    assert names() == []


@pytest.mark.usefixtures("context")
def test_transaction_that_was_begun_before() -> None:
    """By hand, for a savepoint, or by SQLAlchemy's own block: our block commits it."""
    db.session.begin()
    with db.transaction():
        db.session.add(User(name="begun"))
    with db.session.begin_nested():
        db.session.add(User(name="savepoint"))
    with db.transaction():
        db.session.add(User(name="after"))
    with db.session.begin(), db.transaction():
        db.session.add(User(name="inside"))
    with suppress(ValueError), db.session.begin(), db.transaction():
        db.session.add(User(name="undone"))
        raise ValueError
    with db.transaction(), pytest.raises(InvalidRequestError, match="already begun"):
        db.session.begin()
    db.session.scalars(select(User)).all()  # SQLAlchemy's block has left nothing
    assert names() == ["after", "begun", "inside", "savepoint"]


def test_nested_contexts_have_blocks_of_their_own(bare: Flask) -> None:
    with bare.app_context(), db.transaction():
        with bare.app_context(), db.transaction():
            db.session.add(User(name="inner"))
        assert names() == ["inner"]


def test_outside_of_a_context(bare: Flask) -> None:
    with pytest.raises(OutsideContext), db.transaction():
        pass
    with pytest.raises(OutsideContext):
        db.release()


def test_failed_commit_rolls_back(make_app: Callable[..., Flask], pg_url: str) -> None:
    class Deferred(DeclarativeBase):
        pass

    class Node(Deferred):
        __tablename__ = "node"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int | None] = mapped_column(
            ForeignKey("node.id", deferrable=True, initially="DEFERRED")
        )

    nodes = ScopedSession(model_class=Deferred)
    app = make_app(nodes, SQLALCHEMY_DATABASE_URI=pg_url)
    with app.app_context():
        nodes.create_all()
        with pytest.raises(IntegrityError), nodes.transaction():
            nodes.session.add(Node(id=1, parent_id=2))
        assert nodes.session.scalars(select(Node)).all() == []


# transactional()


@pytest.mark.usefixtures("context")
def test_decorated_function_runs_in_a_transaction() -> None:
    @db.transactional()
    def add(name: str, *, fails: bool = False) -> str:
        """Add a user."""
        db.session.add(User(name=name))
        if fails:
            raise ValueError
        return name

    assert add("a") == "a"
    assert (add.__name__, add.__doc__) == ("add", "Add a user.")
    with pytest.raises(ValueError):
        add("b", fails=True)
    assert names() == ["a"]
    with db.transaction():
        add("c")
        assert names() == ["a"]
    assert names() == ["a", "c"]


def test_decorated_views(bare: Flask) -> None:
    """Plain and async ones; a returned error response commits, ``abort()`` does not."""

    @bare.post("/plain/<name>")
    @db.transactional()
    def plain(name: str) -> tuple[str, int]:
        db.session.add(User(name=name))
        return "", 400

    @bare.post("/async/<name>")
    @db.transactional(retries=1)
    async def wait(name: str) -> str:
        await asyncio.sleep(0)
        db.session.add(User(name=name))
        return ""

    client = bare.test_client()
    assert client.post("/plain/a").status_code == 400
    assert client.post("/async/b").status_code == 200
    with bare.app_context():
        assert names() == ["a", "b"]


def test_what_cannot_be_decorated() -> None:
    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigError, match="generator generator"):
        db.transactional()(generator)
    with pytest.raises(ConfigError, match=r"write '@db.transactional\(\)'"):
        db.transactional(generator)  # type: ignore[arg-type]
    for wrong in (-1, "many", None, 1.5, True):
        with pytest.raises(ConfigError, match=r"transactional\(retries=...\)"):
            db.transactional(retries=wrong)  # type: ignore[arg-type]


class Conflicts:
    """Fails a number of times as PostgreSQL does."""

    def __init__(self, times: int, state: str = "40001") -> None:
        self.left = times
        self.error = Exception(state)
        self.error.sqlstate = state  # type: ignore[attr-defined]
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        db.session.add(User(name=f"call {self.calls}"))
        db.session.flush()
        if self.left:
            self.left -= 1
            raise OperationalError("UPDATE", {}, self.error)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.mark.usefixtures("context")
def test_retries(waits: list[float]) -> None:
    """So many, with growing waits; what failed attempts did is undone."""
    conflicts = Conflicts(5)
    db.transactional(retries=5)(conflicts)()
    assert names() == ["call 6"]
    assert len(waits) == 5
    assert all(a < b for a, b in pairwise(waits))
    conflicts = Conflicts(2)
    with pytest.raises(OperationalError):
        db.transactional(retries=1)(conflicts)()
    assert conflicts.calls == 2
    with pytest.raises(OperationalError):
        db.transactional()(Conflicts(1))()
    assert names() == ["call 6"]


@pytest.mark.usefixtures("context")
def test_waits_are_random(waits: list[float]) -> None:
    for _ in range(10):
        db.transactional(retries=1)(Conflicts(1))()
    assert len(set(waits)) == 10
    assert all(0 < wait <= 0.1 for wait in waits)


@pytest.mark.usefixtures("context", "waits")
@pytest.mark.parametrize(
    "case", ["other error", "inside", "unsaved", "flushed", "core"]
)
def test_what_is_not_repeated(case: str) -> None:
    """Anything but a conflict, and where work would be lost by it."""
    conflicts = Conflicts(1, "23505" if case == "other error" else "40001")
    call = db.transactional(retries=3)(conflicts)
    if case in ("unsaved", "flushed"):
        db.session.add(User(name="before"))
    if case == "flushed":
        db.session.flush()
    if case == "core":
        db.session.execute(insert(User), {"name": "before"})
    with pytest.raises(OperationalError):  # noqa: PT012
        if case == "inside":
            with db.transaction():
                call()
        call()
    assert conflicts.calls == 1
    assert names() == []


@pytest.mark.usefixtures("context", "waits")
def test_what_was_committed_is_not_repeated() -> None:
    conflicts = Conflicts(1)

    @db.transactional(retries=3)
    def call() -> None:
        db.session.add(User(name="committed"))
        db.session.commit()
        raise OperationalError("SELECT", {}, conflicts.error)

    with pytest.raises(OperationalError):
        call()
    assert names() == ["committed"]


@pytest.mark.usefixtures("context", "waits")
def test_half_a_commit_is_not_repeated() -> None:
    """Of two databases, the first may have committed when the second refuses."""
    conflicts = Conflicts(0)

    @db.transactional(retries=3)
    def call() -> None:
        conflicts()
        audit = {"bind": db.get_engine("audit")}
        db.session.execute(text("SELECT 1"), bind_arguments=audit)
        event.listen(db.session, "before_commit", refuse, once=True)

    def refuse(session: Any) -> None:
        raise OperationalError("COMMIT", {}, Conflicts(0).error)

    try:
        with pytest.raises(OperationalError):
            call()
    finally:
        event.remove(db.session, "before_commit", refuse)
    assert conflicts.calls == 1


@pytest.mark.usefixtures("context", "waits")
def test_what_another_block_owns_is_not_repeated() -> None:
    conflicts = Conflicts(1)
    with pytest.raises(OperationalError), db.session.begin():
        db.transactional(retries=3)(conflicts)()
    assert conflicts.calls == 1


@pytest.mark.usefixtures("context", "waits")
def test_reads_before_do_not_prevent_a_retry() -> None:
    """As of a user that was loaded before the view."""
    with db.transaction():
        db.session.add(User(name="z"))
    user = db.session.scalars(select(User)).one()
    db.transactional(retries=1)(Conflicts(1))()
    assert user.name == "z"
    assert names() == ["call 2", "z"]


CLASH = """
import json, sys
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from flask_scopedsession import ScopedSession

url, mode, order = sys.argv[1:]
level = "SERIALIZABLE" if mode == "serializable" else "READ COMMITTED"
db = ScopedSession(engine_options={"isolation_level": level})
app = Flask("clash")
app.config["SQLALCHEMY_DATABASE_URI"] = url
db.init_app(app)
calls = []


def say(word):
    print(word, flush=True)
    sys.stdin.readline()


@db.transactional(retries=4)
def work():
    calls.append(1)
    add = text("UPDATE account SET amount = amount + 1 WHERE id = :id")
    read = text("SELECT sum(amount) FROM account")
    if mode == "serializable":
        # Each reads what the other writes.
        db.session.scalar(read)
        if len(calls) == 1:
            say("read")
        db.session.execute(add, {"id": order})
        if len(calls) == 1:
            say("written")
        return
    for number, account in enumerate((order, 3 - int(order))):
        db.session.execute(add, {"id": account})
        if number == 0 and len(calls) == 1:
            say("read")


with app.app_context():
    work()
    db.dispose()
print(json.dumps(len(calls)), flush=True)
"""


@pytest.mark.subprocess
@pytest.mark.databases("postgresql", "psycopg2", "mariadb")
@pytest.mark.parametrize("mode", ["serializable", "deadlock"])
def test_two_processes(short_tmp: Path, db_url: str, db_name: str, mode: str) -> None:
    """One of two transactions that cannot both succeed is repeated; none is lost."""
    if db_name == "mariadb" and mode == "serializable":
        return  # it locks what is read, so that this is a deadlock, too
    url, engine = db_url, create_engine(db_url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS account"))
        connection.execute(
            text("CREATE TABLE account (id INT PRIMARY KEY, amount INT)")
        )
        connection.execute(text("INSERT INTO account VALUES (1, 0), (2, 0)"))
    script = short_tmp / "clash.py"
    script.write_text(CLASH)
    pair = [
        subprocess.Popen(
            [sys.executable, str(script), url, mode, order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in "12"
    ]

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def go_on() -> None:
        for process in pair:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    steps = ["read", "written"] if mode == "serializable" else ["read"]
    for step in steps:
        assert [line(each) for each in pair] == [step, step]
        go_on()
    calls = [json.loads(line(each)) for each in pair]
    assert [each.wait(20) for each in pair] == [0, 0]
    for each in pair:
        assert each.stdin is not None
        assert each.stdout is not None
        each.stdin.close()
        each.stdout.close()
    assert sorted(calls) in ([1, 2], [1, 3])
    with engine.connect() as connection:
        total = connection.scalar(text("SELECT sum(amount) FROM account"))
    engine.dispose()
    assert total == (2 if mode == "serializable" else 4)


def test_snapshot_conflict_of_sqlite(
    make_app: Callable[..., Flask], sqlite_url: str
) -> None:
    """In WAL mode, one who read an old version cannot write."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SCOPEDSESSION_SQLITE_BEGIN="DEFERRED",
        SCOPEDSESSION_SQLITE_PRAGMAS={"journal_mode": "WAL"},
    )
    calls = []

    @db.transactional(retries=1)
    def rename(name: str) -> None:
        calls.append(name)
        user = db.session.scalars(select(User)).one()
        if len(calls) == 1:
            with db.engine.begin() as other:
                other.execute(update(User).values(name="other"))
        user.name = f"{user.name} {name}"

    with app.app_context():
        db.create_all()
        with db.transaction():
            db.session.add(User(name="one"))
        if sys.version_info >= (3, 11):
            rename("two")
            assert names() == ["other two"]
            assert len(calls) == 2
        else:  # the driver does not tell it from a lock
            with pytest.raises(OperationalError):
                rename("two")
            db.session.rollback()


# release()


class Shop(DeclarativeBase):
    pass


class Author(Shop):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Shop):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


shop = ScopedSession(model_class=Shop)


@pytest.fixture
def stocked(make_app: Callable[..., Flask], db_url: str) -> Iterator[None]:
    app = make_app(
        shop,
        SQLALCHEMY_DATABASE_URI=db_url,
        SQLALCHEMY_BINDS={"audit": db_url},
        # Else the end of a savepoint commits.
        SCOPEDSESSION_SQLITE_BEGIN="DEFERRED",
    )
    with app.app_context():
        shop.drop_all()
        shop.create_all()
        Shop.metadata.create_all(shop.get_engine("audit"))  # in memory, it is another
        with shop.transaction():
            shop.session.add(Author(name="ann", books=[Book()]))
        shop.session.remove()
        yield


@pytest.mark.usefixtures("stocked")
def test_release_gives_connections_back() -> None:
    """Loaded objects keep their values, and load the rest when that is needed."""
    author = shop.session.scalars(select(Author)).one()
    shop.get_session("audit").scalars(select(Author)).all()
    assert sum(pool.used for pool in shop.snapshot().pools) == 2
    shop.release()
    assert sum(pool.used for pool in shop.snapshot().pools) == 0
    assert author.name == "ann"
    assert author in shop.session
    assert sum(pool.used for pool in shop.snapshot().pools) == 0
    assert [book.id for book in author.books] == [1]
    author.name = "bea"
    shop.session.commit()
    assert inspect(author).expired_attributes >= {"name"}  # as ever
    assert author.name == "bea"


@pytest.mark.usefixtures("stocked")
def test_release_without_anything_to_release() -> None:
    shop.release()
    assert not shop.session.registry.has()
    shop.session()
    shop.release()
    shop.session.get(Author, 1)
    shop.release()
    shop.release()


def add() -> None:
    shop.session.add(Author(name="new"))


def change() -> None:
    shop.session.scalars(select(Author)).one().name = "other"


def remove() -> None:
    shop.session.delete(shop.session.scalars(select(Book)).one())


def flush() -> None:
    add()
    shop.session.flush()


def flush_change() -> None:
    change()
    shop.session.flush()


def flush_deletion() -> None:
    remove()
    shop.session.flush()


def bulk_update() -> None:
    shop.session.execute(update(Author).values(name="x"))


def bulk_delete() -> None:
    shop.session.execute(delete(Book))


def core_insert() -> None:
    shop.session.connection().execute(insert(Author.__table__), {"name": "core"})


def sql_text() -> None:
    shop.session.execute(text("UPDATE author SET name = 'y'"))


def returning() -> None:
    shop.session.scalar(insert(Author).values(name="r").returning(Author.id))


def savepoint() -> None:
    with shop.session.begin_nested():
        add()


def of_other_session() -> None:
    shop.session.get(Author, 1)
    shop.session.rollback()
    shop.get_session("audit").add(Author(name="audit"))
    shop.get_session("audit").flush()


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    ("work", "shown"),
    [
        (add, "1 Author"),
        (change, "1 Author"),
        (remove, "1 Book"),
        (flush, "1 Author"),
        (flush_change, "1 Author"),
        (flush_deletion, "1 Book"),
        (bulk_update, "1 Author"),
        (bulk_delete, "1 Book"),
        (core_insert, "1 Author"),
        (sql_text, "1 Author"),
        (returning, "1 Author"),
        (savepoint, "1 Author"),
        (of_other_session, "1 Author"),
    ],
)
def test_release_refuses_to_lose(work: Callable[[], None], shown: str) -> None:
    """The work is still there after the error, and can be committed."""
    work()
    with pytest.raises(UnsavedWork) as info:
        shop.release()
    named = "db.get_session('audit')" if work is of_other_session else "db.session,"
    assert f"({shown})" in str(info.value)
    assert named in str(info.value)
    writer = shop.get_session("audit" if work is of_other_session else None)
    assert writer.in_transaction()
    committed = []
    event.listen(writer, "after_commit", lambda _: committed.append(1))
    writer.commit()
    assert committed
    shop.release()


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    "work",
    [add, flush, core_insert, savepoint],
)
def test_release_after_a_rollback(work: Callable[[], None]) -> None:
    """What was rolled back on purpose is not lost by it, savepoints included."""
    work()
    shop.session.rollback()
    shop.session.get(Author, 1)
    with shop.session.begin_nested() as nested:
        flush()
        nested.rollback()
    shop.session.execute(update(Author).where(Author.id == 99).values(name="none"))
    shop.release()
    assert shop.session.scalars(select(Author.name)).all() == ["ann"]


@pytest.mark.usefixtures("stocked")
def test_release_inside_a_block() -> None:
    """It would end the transaction that the block owns."""
    with shop.transaction():
        shop.session.get(Author, 1)
        with pytest.raises(TransactionError, match="inside a transaction"):
            shop.release()
        flush()
    with shop.session.begin():
        shop.release()  # nothing is lost; SQLAlchemy refuses what comes after it
    with shop.session.begin_nested(), pytest.raises(TransactionError):
        shop.release()
    shop.session.rollback()
    assert len(shop.session.scalars(select(Author)).all()) == 2


@pytest.mark.usefixtures("stocked")
def test_release_under_autocommit() -> None:
    """What is committed already is not lost."""
    shop.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    bulk_update()
    shop.release()
    assert shop.session.scalars(select(Author.name)).all() == ["x"]


@pytest.mark.databases("psycopg2")
@pytest.mark.usefixtures("stocked")
def test_release_does_not_cut_a_result_short_in_silence() -> None:
    shop.session.add(Author(name="bea"))
    shop.session.commit()
    options = {"yield_per": 1}
    rows = shop.session.execute(select(Author), execution_options=options)
    next(rows)
    shop.release()
    with pytest.raises(DBAPIError):
        rows.all()


@pytest.mark.usefixtures("stocked")
def test_release_after_a_failed_flush() -> None:
    shop.session.add(Author(id=1, name="again"))
    with pytest.raises(IntegrityError):
        shop.session.flush()
    with pytest.raises(TransactionError, match="has failed"):
        shop.release()
    shop.session.rollback()
    shop.release()


@pytest.mark.parametrize("lost_work", ["warn", "ignore"])
def test_release_without_tracking(
    make_app: Callable[..., Flask], sqlite_url: str, lost_work: str
) -> None:
    """Where nothing is noted, it cannot know, and says so."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SCOPEDSESSION_TRACKING=False,
        SCOPEDSESSION_LOST_WORK=lost_work,
    )
    with app.app_context():
        db.create_all()
        with db.transaction():
            db.session.add(User(name="a"))
        db.release()
        db.session.execute(update(User).values(name="b"))
        with pytest.raises(UnsavedWork) as info:
            db.release()
        assert ("cannot tell" in str(info.value)) is (lost_work == "ignore")
        db.session.commit()
        assert names() == ["b"]


def test_release_in_a_session_that_joined_a_transaction(
    make_app: Callable[..., Flask], sqlite_url: str
) -> None:
    """As tests do that roll back everything: what is committed there is no loss."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SCOPEDSESSION_SQLITE_BEGIN="DEFERRED",  # for savepoints
    )
    with app.app_context(), db.engine.connect() as connection:
        db.create_all()
        for mode in ("create_savepoint", "rollback_only"):
            with connection.begin() as transaction:
                db.session.remove()
                db.session(bind=connection, join_transaction_mode=mode)
                db.session.add(User(name="set up"))
                db.session.commit()
                db.session.scalars(select(User)).all()
                db.release()
                db.session.add(User(name="unsaved"))
                if mode == "create_savepoint":
                    db.session.flush()
                with pytest.raises(UnsavedWork):
                    db.release()
                db.session.rollback()
                transaction.rollback()


def test_another_thread_gets_the_connection(make_app: Any, sqlite_url: str) -> None:
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0},
    )
    got = threading.Event()

    def other() -> None:
        with app.app_context():
            db.session.scalars(select(User)).all()
            got.set()

    with app.app_context():
        db.create_all()
        db.session.scalars(select(User)).all()
        thread = threading.Thread(target=other)
        thread.start()
        assert not got.wait(0.05)
        db.release()
        assert got.wait(5)
    thread.join()
