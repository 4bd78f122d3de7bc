"""Work is reported as lost if, and only if, the database really loses it.

Each case runs three times on each database: in a view of an application, and with plain
SQLAlchemy once committed and once closed. The work is really lost if these two leave
different rows behind.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from typing import NamedTuple

import pytest
import sqlalchemy as sa
from flask import abort
from flask import Flask
from flask import stream_with_context
from postgres import brought_server
from postgres import fresh_database
from sqlalchemy import orm
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import Mapped
from sqlalchemy.schema import CreateTable

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import LostWork
from flask_scopedsession.errors import TransactionError


class Base(orm.DeclarativeBase):
    pass


links = sa.Table(
    "person_tag",
    Base.metadata,
    sa.Column("person_id", sa.ForeignKey("person.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
)


class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = orm.mapped_column(primary_key=True)


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = orm.mapped_column(primary_key=True)
    name: Mapped[str] = orm.mapped_column(sa.String(99))
    tags: Mapped[list[Tag]] = orm.relationship(secondary=links)


class Odd(Base):
    __tablename__ = "Odd Table"
    id: Mapped[int] = orm.mapped_column(primary_key=True)


person = Person.__table__
insert = sa.insert(Person)
nobody = sa.update(Person).where(Person.id == 99).values(name="x")
_numbers = itertools.count(1)


def temporary(**options: Any) -> sa.Table:
    """Return a temporary table with a name of its own."""
    name = f"scratch_{next(_numbers)}"
    columns = sa.Column("id", sa.Integer), sa.Column("name", sa.String(99))
    return sa.Table(name, sa.MetaData(), *columns, **options)


# The cases


class Case(NamedTuple):
    """A piece of work, and what is lost if nobody commits it."""

    work: Callable[[Any], Any]
    lost: dict[str, int]
    other: dict[str, dict[str, int]]
    """The same with a driver that has committed some of it: ``sqlite3`` without a real
    BEGIN, or psycopg2."""


ALL: dict[str, Case] = {}
SERVED: dict[str, Case] = {}
RETURNING: dict[str, Case] = {}
UPDATE_RETURNING: dict[str, Case] = {}
POSTGRESQL: dict[str, Case] = {}
SQLITE: dict[str, Case] = {}
MARIADB: dict[str, Case] = {}


def case(
    lost: dict[str, int] | None = None,
    on: dict[str, Case] = ALL,
    **other: dict[str, int],
) -> Callable[[Any], Any]:
    def add(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        on[work.__name__] = Case(work, lost or {}, other)
        return work

    return add


ONE = {"Person": 1}
TWO = {"Person": 2}


@case(ONE)
def orm_added(s):
    s.add(Person(name="x"))


@case(ONE)
def orm_flushed(s):
    s.add(Person(name="x"))
    s.flush()


@case(TWO)
def orm_flushed_and_added(s):
    orm_flushed(s)
    orm_added(s)


@case({"Person": 20})
def orm_flushed_many(s):
    s.add_all([Person(name=str(number)) for number in range(20)])
    s.flush()


@case(ONE)
def orm_changed(s):
    s.get(Person, 1).name = "x"


@case(TWO)
def orm_changed_and_flushed(s):
    for found in s.scalars(select(Person)):
        found.name = "x"
    s.flush()


@case(ONE)
def orm_deleted(s):
    s.delete(s.get(Person, 1))


@case(ONE)
def orm_deleted_and_flushed(s):
    s.delete(s.get(Person, 1))
    s.flush()


@case({"person_tag": 2})
def orm_many_to_many(s):
    s.get(Person, 1).tags = list(s.scalars(select(Tag)))
    s.flush()


@case(TWO)
def bulk_save(s):
    s.bulk_save_objects([Person(name="x"), Person(name="y")])


@case(TWO)
def bulk_insert(s):
    s.bulk_insert_mappings(Person, [{"name": "x"}, {"name": "y"}])


@case(TWO)
def bulk_update(s):
    s.bulk_update_mappings(Person, [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}])


@case(TWO)
def insert_of_a_list(s):
    s.execute(insert, [{"name": "x"}, {"name": "y"}])


@case(TWO)
def update_of_a_list(s):
    s.execute(sa.update(Person), [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}])


@case({"Person": 1})
def executemany_update(s):
    statement = sa.update(person).where(person.c.id == sa.bindparam("key"))
    parameters = [{"key": 1, "name": "x"}, {"key": 99, "name": "y"}]
    s.connection().execute(statement.values(name=sa.bindparam("name")), parameters)


@case()
def executemany_update_of_no_row(s):
    statement = sa.update(person).where(person.c.id == sa.bindparam("key"))
    parameters = [{"key": 98, "name": "x"}, {"key": 99, "name": "y"}]
    s.connection().execute(statement.values(name=sa.bindparam("name")), parameters)


@case(TWO)
def orm_update(s):
    s.execute(sa.update(Person).values(name="x"))


@case(ONE)
def query_delete(s):
    s.query(Person).filter(Person.id == 1).delete()


@case()
def update_of_no_row(s):
    s.execute(nobody)


@case()
def delete_of_no_row(s):
    s.execute(sa.delete(Person).where(Person.id == 99))


@case()
def insert_from_no_row(s):
    source = select(Person.name).where(Person.id == 99)
    s.execute(insert.from_select(["name"], source))


@case()
def text_update_of_no_row(s):
    s.execute(text("UPDATE person SET name = 'x' WHERE id = 99"))


@case(ONE)
def core_on_the_connection(s):
    s.connection().execute(sa.insert(person).values(name="x"))


@case(ONE)
def text_insert(s):
    s.execute(text("INSERT INTO person (name) VALUES ('x')"))


@case(ONE)
def text_update_in_lower_case(s):
    s.execute(text("update\n  person set name = 'x' where id = 1"))


@case(ONE)
def text_delete(s):
    s.execute(text("DELETE FROM person WHERE id = 1"))


@case(ONE)
def driver_sql(s):
    s.connection().exec_driver_sql("INSERT INTO person (name) VALUES ('x')")


@case(ONE)
def text_that_holds_sql(s):
    statement = "INSERT INTO person (name) VALUES ('; COMMIT; DELETE FROM tag --')"
    s.execute(text(statement))


@case()
def select_of_text_that_holds_sql(s):
    s.execute(text("SELECT 'INSERT INTO person', name FROM person")).all()
    s.execute(text("/* DELETE FROM tag */ SELECT 1 -- UPDATE person")).all()


@case(TWO)
def comments_in_front(s):
    text_insert(s)  # sqlite3 of Python 3.10 does not begin at the next one
    s.execute(text("-- by name\n/* the first */ DELETE FROM person WHERE id = 1"))


@case({"Odd": 1})
def quoted_name(s):
    s.execute(sa.insert(Odd).values(id=3))


@case({"Odd_Table": 1})
def quoted_name_in_text(s):
    name = s.get_bind().dialect.identifier_preparer.quote("Odd Table")
    s.execute(text(f"INSERT INTO {name} (id) VALUES (3)"))


@case()
def read_only(s):
    s.scalars(select(Person)).all()
    s.execute(text("SELECT * FROM person")).all()
    s.scalars(select(Person).with_for_update()).all()


@case()
def with_select(s):
    s.execute(text("WITH x AS (SELECT 1 AS n) SELECT n FROM x")).all()
    found = select(Person.id).where(Person.id == 1).cte("found")
    s.execute(select(found)).all()


@case()
def set_to_the_same_value(s):
    s.get(Person, 1).name = "ed"


# Ends


@case()
def committed(s):
    s.add(Person(name="x"))
    s.commit()


@case()
def committed_then_read(s):
    committed(s)
    s.scalars(select(Person)).all()


@case(ONE)
def committed_then_more(s):
    orm_flushed_many(s)
    s.commit()
    orm_flushed(s)


@case()
def rolled_back(s):
    orm_flushed(s)
    s.rollback()


@case(ONE)
def rolled_back_then_more(s):
    orm_flushed_many(s)
    s.rollback()
    text_insert(s)


@case()
def closed(s):
    orm_flushed(s)
    s.close()


@case()
def connection_committed(s):
    core_on_the_connection(s)
    s.connection().commit()


def driver_of(s):
    return s.connection().connection.dbapi_connection


@case()
def driver_committed(s):
    orm_flushed(s)
    driver_of(s).commit()


@case()
def driver_committed_then_read(s):
    driver_committed(s)
    s.execute(text("SELECT * FROM person")).all()
    s.scalars(select(Person)).all()


@case(ONE)
def driver_committed_then_more(s):
    orm_flushed_many(s)
    driver_of(s).commit()
    text_insert(s)


@case(ONE)
def driver_committed_then_read_and_more(s):
    orm_flushed_many(s)
    driver_of(s).commit()
    s.execute(text("SELECT * FROM person")).all()
    text_insert(s)


@case()
def driver_rolled_back_then_read(s):
    orm_flushed(s)
    driver_of(s).rollback()
    s.execute(text("SELECT * FROM person")).all()


@case(ONE, SERVED)
def detached_then_more(s):
    s.connection().detach()
    text_insert(s)


@case()
def text_commit(s):
    text_insert(s)
    s.execute(text("COMMIT"))


# psycopg2 does not notice the COMMIT, and sends no BEGIN before the next statement.
@case(ONE, psycopg2={})
def text_commit_then_more(s):
    s.execute(text("DELETE FROM person"))
    s.execute(text("COMMIT"))
    text_insert(s)


@case()
def text_rollback(s):
    text_insert(s)
    s.execute(text("ROLLBACK"))


@case()
def autocommit_for_one_transaction(s):
    s.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    orm_flushed(s)


@case(ONE)
def autocommit_then_more(s):
    s.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    orm_flushed_many(s)
    s.commit()
    text_insert(s)


@case()
def failed_flush_that_was_handled(s):
    s.add(Person(id=1, name="x"))
    with pytest.raises(sa.exc.IntegrityError):
        s.flush()


@case()
def failed_flush_that_was_rolled_back(s):
    failed_flush_that_was_handled(s)
    s.rollback()


@case(ONE)
def failed_flush_then_more(s):
    failed_flush_that_was_rolled_back(s)
    orm_added(s)


# Savepoints


@case()
def savepoint_rolled_back(s):
    savepoint = s.begin_nested()
    orm_flushed(s)
    savepoint.rollback()


@case(ONE)
def savepoint_rolled_back_after_work(s):
    orm_flushed(s)
    savepoint = s.begin_nested()
    s.execute(sa.delete(Tag))
    savepoint.rollback()


@case(ONE)
def savepoint_rolled_back_then_more(s):
    savepoint_rolled_back(s)
    text_insert(s)


@case(ONE, pysqlite={})
def savepoint_released(s):
    with s.begin_nested():
        orm_flushed(s)


@case(TWO)
def savepoint_released_after_work(s):
    orm_flushed(s)
    with s.begin_nested():
        orm_flushed(s)


@case({"Person": 1, "Tag": 2}, pysqlite=ONE)
def savepoint_released_then_more(s):
    with s.begin_nested():
        s.execute(sa.delete(Tag))
    orm_flushed(s)


@case({"Person": 3})
def savepoints_nested(s):
    orm_flushed(s)
    with s.begin_nested():
        orm_flushed(s)
        inner = s.begin_nested()
        s.execute(sa.delete(Tag))
        inner.rollback()
        orm_flushed(s)


@case()
def savepoints_nested_and_rolled_back(s):
    outer = s.begin_nested()
    with s.begin_nested():
        orm_flushed(s)
    outer.rollback()


@case(ONE)
def savepoint_of_a_failed_flush(s):
    orm_flushed(s)
    savepoint = s.begin_nested()
    failed_flush_that_was_handled(s)
    savepoint.rollback()


@case(ONE)
def savepoints_in_text(s):
    text_insert(s)
    s.execute(text("SAVEPOINT here"))
    s.execute(text("DELETE FROM tag"))
    s.execute(text("ROLLBACK TO SAVEPOINT here"))


@case(ONE, UPDATE_RETURNING)
def savepoints_of_one_name(s):
    text_insert(s)
    s.execute(text("SAVEPOINT here"))
    s.execute(text("DELETE FROM tag"))
    s.execute(text("SAVEPOINT here"))
    s.execute(text("DELETE FROM person"))
    s.execute(text("RELEASE SAVEPOINT here"))
    s.execute(text("ROLLBACK TO SAVEPOINT here"))


# Temporary tables


@case()
def temporary_table(s):
    table = temporary(prefixes=["TEMPORARY"])
    s.execute(CreateTable(table))
    s.execute(sa.insert(table).values(id=1))
    s.execute(sa.update(table).values(id=2))


@case(ONE)
def temporary_table_and_another(s):
    temporary_table(s)
    orm_flushed(s)


@case()
def temporary_table_in_text(s):
    name = temporary().name
    s.execute(text(f"CREATE TEMPORARY TABLE IF NOT EXISTS {name} (id INTEGER)"))
    s.execute(text(f"INSERT INTO {name} VALUES (1)"))
    s.execute(text(f"DELETE FROM {name}"))


@case()
def temporary_table_that_the_driver_created(s):
    table = temporary(prefixes=["TEMPORARY"])
    with closing(driver_of(s).cursor()) as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE {table.name} (id INT, name TEXT)")
    s.execute(sa.insert(table).values(id=1))


# RETURNING


@case(TWO, RETURNING)
def returning_fetched(s):
    rows = [{"name": "x"}, {"name": "y"}]
    assert len(s.scalars(insert.returning(Person.id), rows).all()) == 2


@case(TWO, RETURNING)
def returning_unfetched(s):
    s.execute(insert.returning(Person.id), [{"name": "x"}, {"name": "y"}])


@case(ONE, RETURNING)
def returning_one_unfetched(s):
    s.execute(insert.values(name="x").returning(Person.id))


@case(TWO, RETURNING)
def returning_partly_fetched(s):
    source = select(Person.name)
    result = s.execute(insert.from_select(["name"], source).returning(Person.id))
    result.fetchone()


@case(ONE, RETURNING)
def returning_objects(s):
    s.scalar(insert.values(name="x").returning(Person))


@case(TWO, RETURNING)
def returning_fetched_then_more(s):
    s.execute(insert.values(name="x").returning(Person.id)).all()
    s.scalars(select(Person)).all()
    orm_flushed(s)


@case(ONE, RETURNING)
def delete_returning(s):
    s.execute(sa.delete(Person).where(Person.id == 1).returning(Person.id)).all()


@case({}, RETURNING)
def delete_returning_no_row(s):
    s.execute(sa.delete(Person).where(Person.id == 99).returning(Person.id)).all()


@case(ONE, RETURNING)
def text_returning(s):
    s.execute(text("INSERT INTO person (name) VALUES ('x') RETURNING id")).all()


@case(ONE, RETURNING)
def text_returning_columns(s):
    statement = text("INSERT INTO person (name) VALUES ('x') RETURNING id")
    s.execute(statement.columns(id=sa.Integer)).all()


@case({}, RETURNING)
def returning_committed(s):
    s.execute(insert.values(name="x").returning(Person.id)).all()
    s.commit()
    s.execute(text("SELECT 1"))


@case({}, RETURNING)
def returning_rolled_back_to_a_savepoint(s):
    savepoint = s.begin_nested()
    s.execute(insert.values(name="x").returning(Person.id)).all()
    savepoint.rollback()


@case(TWO, UPDATE_RETURNING)
def update_returning(s):
    s.execute(sa.update(Person).values(name="x").returning(Person.id)).all()


@case({}, UPDATE_RETURNING)
def update_returning_no_row(s):
    s.execute(nobody.returning(Person.id)).all()


@case({}, UPDATE_RETURNING)
def update_returning_no_row_unfetched(s):
    s.execute(nobody.returning(Person.id))


@case({}, UPDATE_RETURNING)
def text_update_returning_no_row(s):
    s.execute(text("UPDATE person SET name = 'x' WHERE id = 99 RETURNING id")).all()


# What SQLite and PostgreSQL have in common, and MariaDB does not


def upsert(s, **values):
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.dialects import sqlite

    name = s.get_bind().dialect.name
    dialect = sqlite if name == "sqlite" else postgresql
    return dialect.insert(Person).values(**values)


@case(ONE, UPDATE_RETURNING)
def upsert_that_inserts(s):
    statement = upsert(s, id=3, name="x")
    s.execute(statement.on_conflict_do_nothing())


@case(ONE, UPDATE_RETURNING)
def upsert_that_updates(s):
    statement = upsert(s, id=1, name="x")
    s.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={"name": "x"})
    )


@case({}, UPDATE_RETURNING)
def upsert_that_does_nothing(s):
    s.execute(upsert(s, id=1, name="x").on_conflict_do_nothing())


@case({}, UPDATE_RETURNING)
def upsert_that_does_nothing_and_returns(s):
    statement = upsert(s, id=1, name="x").on_conflict_do_nothing()
    s.execute(statement.returning(Person.id)).all()


@case(ONE, UPDATE_RETURNING, pysqlite={})
def with_insert(s):
    source = "WITH x AS (SELECT 'a)b; delete from tag' AS n) "
    s.execute(text(source + "INSERT INTO person (name) SELECT n FROM x"))


@case(ONE, UPDATE_RETURNING, pysqlite={})
def with_update(s):
    source = "WITH x (n) AS (SELECT id FROM person WHERE (id = (1))) "
    s.execute(
        text(source + "UPDATE person SET name = 'x' WHERE id IN (SELECT n FROM x)")
    )


@case({}, UPDATE_RETURNING)
def with_update_of_no_row(s):
    source = "WITH x (n) AS (SELECT 99) "
    s.execute(
        text(source + "UPDATE person SET name = 'x' WHERE id IN (SELECT n FROM x)")
    )


@case(ONE, UPDATE_RETURNING, pysqlite={})
def core_with_update(s):
    found = select(Person.id).where(Person.id == 1).cte("found")
    statement = sa.update(person).where(person.c.id.in_(select(found.c.id)))
    s.connection().execute(statement.values(name="x"))


@case(ONE, UPDATE_RETURNING, pysqlite={})
def core_with_insert(s):
    found = select(Person.name).where(Person.id == 1).cte("found")
    s.execute(sa.insert(person).from_select(["name"], select(found.c.name)))


@case({}, UPDATE_RETURNING)
def temp_table_in_text(s):
    name = temporary().name
    s.execute(text(f'create temp table "{name}" as select 1 as id'))
    s.execute(text(f'insert into "{name}" values (2)'))


@case({}, UPDATE_RETURNING)
def temporary_schema(s):
    is_sqlite = s.get_bind().dialect.name == "sqlite"
    table = temporary(schema="temp" if is_sqlite else "pg_temp")
    s.execute(CreateTable(table))
    s.execute(sa.insert(table).values(id=1))
    name = f"{table.schema}.{table.name}"
    s.execute(text(f"INSERT INTO {name} (id) VALUES (1)"))


# One database


@case({"Person": 2}, POSTGRESQL)
def with_delete_that_feeds_an_insert(s):
    gone = "WITH gone AS (DELETE FROM tag RETURNING id) "
    s.execute(text(gone + "INSERT INTO person (name) SELECT 'x' FROM gone"))


@case(ONE, POSTGRESQL)
def core_merge_in_text(s):
    s.execute(
        text(
            "MERGE INTO person USING (VALUES (1)) AS x (n) ON id = n"
            " WHEN MATCHED THEN UPDATE SET name = 'x'"
        )
    )


@case(ONE, POSTGRESQL)
def update_only(s):
    s.execute(text("UPDATE ONLY public.person AS p SET name = 'x' WHERE p.id = 1"))


@case(ONE, POSTGRESQL)
def server_side_cursor_left_open(s):
    text_insert(s)
    options = {"yield_per": 1}
    s.info["kept"] = s.execute(select(Person.id), execution_options=options)
    s.info["kept"].fetchmany(1)


@case({}, POSTGRESQL)
def several_statements_of_which_one_commits(s):
    text_insert(s)
    write = "INSERT INTO person (name) VALUES ('x');"
    s.connection().exec_driver_sql(write + "COMMIT AND CHAIN")


@case({}, POSTGRESQL)
def several_statements_of_which_one_rolls_back(s):
    s.execute(text("SAVEPOINT a"))
    write = "INSERT INTO person (name) VALUES ('x');"
    s.connection().exec_driver_sql(write + "ROLLBACK TO a")


@case({}, POSTGRESQL)
def several_statements_of_which_the_last_has_rows(s):
    write = "UPDATE person SET name = 'x' WHERE id = 99;"
    s.connection().exec_driver_sql(write + "SELECT 1")


@case({}, POSTGRESQL)
def several_statements_of_which_one_creates_a_temporary_table(s):
    name = temporary().name
    create = f"SELECT 1; CREATE TEMPORARY TABLE {name} (id INT)"
    s.connection().exec_driver_sql(create)
    s.execute(text(f"INSERT INTO {name} VALUES (1)"))


@case(ONE, POSTGRESQL)
def a_write_before_several_statements(s):
    text_insert(s)
    s.connection().exec_driver_sql("SELECT 1; SELECT ';'")


@case(ONE, SQLITE)
def replace(s):
    s.execute(text("REPLACE INTO person (id, name) VALUES (1, 'x')"))


@case(ONE, SQLITE)
def insert_or_replace(s):
    s.execute(text("INSERT OR REPLACE INTO person (id, name) VALUES (1, 'x')"))


@case({}, SQLITE)
def insert_or_ignore(s):
    s.execute(text("INSERT OR IGNORE INTO person (id, name) VALUES (1, 'x')"))


@case(ONE, SQLITE)
def names_in_brackets(s):
    s.execute(text("INSERT INTO [person] ([name]) VALUES ('x')"))


@case(ONE, MARIADB)
def insert_ignore(s):
    s.execute(text("INSERT IGNORE INTO person (id, name) VALUES (3, 'x')"))


@case({}, MARIADB)
def insert_ignore_no_row(s):
    s.execute(text("INSERT IGNORE INTO person (id, name) VALUES (1, 'x')"))


@case(ONE, MARIADB)
def delete_with_a_join(s):
    s.execute(text("DELETE person FROM person JOIN tag USING (id) WHERE id = 1"))


@case({}, MARIADB)
def ddl_commits(s):
    text_insert(s)
    s.execute(text(f"CREATE TABLE {temporary().name} (id INT)"))


@case({}, MARIADB)
def ddl_commits_then_read(s):
    ddl_commits(s)
    s.execute(text("SELECT * FROM person")).all()


GROUPS = (ALL, SERVED, RETURNING, UPDATE_RETURNING, POSTGRESQL, SQLITE, MARIADB)
CASES = {name: each for group in GROUPS for name, each in group.items()}

# What runs them


def new_engine(database: Any, begin: str | None) -> sa.Engine:
    """Return a plain engine for the database, which begins as the application does."""
    engine = sa.create_engine(database.url, **database.options)
    if begin:

        @sa.event.listens_for(engine, "begin")
        def real_begin(connection: sa.Connection) -> None:
            options = connection.get_execution_options()
            if options.get("isolation_level") != "AUTOCOMMIT":
                connection.exec_driver_sql(f"BEGIN {begin}")

    return engine


def prepare(engine: sa.Engine) -> None:
    """Create the tables."""
    if engine.dialect.name == "sqlite":
        # No test here crashes the machine, so nothing needs to reach the disk.
        @sa.event.listens_for(engine, "connect")
        def do_not_sync(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)


# Made once, because a statement keeps its cache key.
TABLES = [person, Tag.__table__, Odd.__table__, links]
EMPTY = [sa.delete(table) for table in reversed(TABLES)]
READ = [select(table) for table in TABLES]
KEYS = [{"id": 1}, {"id": 2}]
FILL = [
    sa.insert(person).values([{"id": 1, "name": "ed"}, {"id": 2, "name": "ann"}]),
    sa.insert(Tag.__table__).values(KEYS),
    sa.insert(Odd.__table__).values(KEYS),
]


@cache
def filling(dialect: str) -> list[str]:
    """Return the statements that leave two rows in each table, as plain SQL."""
    engine = sa.create_mock_engine(f"{dialect}://", lambda: None)
    options = {"literal_binds": True}
    done = [
        str(each.compile(dialect=engine.dialect, compile_kwargs=options))
        for each in (*EMPTY, *FILL)
    ]
    if dialect == "postgresql":
        # Keys come from a sequence, which these rows do not use.
        done.append("ALTER SEQUENCE person_id_seq RESTART WITH 3")
        return ["; ".join(done)]
    return done


def fill(engine: sa.Engine) -> None:
    """Leave two rows in each table."""
    with engine.begin() as connection:
        for statement in filling(engine.dialect.name):
            connection.exec_driver_sql(statement)


class Truth:
    """What plain SQLAlchemy leaves in the database."""

    def __init__(self, database: Any, begin: str | None) -> None:
        self.engine = new_engine(database, begin)
        self.driver = None if begin else self.engine.dialect.driver
        prepare(self.engine)

    def rows(self) -> list[list[Any]]:
        with self.engine.connect() as connection:
            # Autoincremented keys go on after a rollback, except on SQLite.
            return [
                sorted(row[-1] for row in connection.execute(statement))
                for statement in READ
            ]

    def really_lost(self, work: Callable[[Any], Any]) -> bool:
        """Whether the rows depend on a ``commit()`` after the work."""
        found = []
        for last in (orm.Session.commit, orm.Session.close):
            fill(self.engine)
            with orm.Session(self.engine) as session:
                work(session)
                if (kept := session.info.get("kept")) is not None:
                    kept.close()
                if session.is_active:
                    with suppress(sa.exc.InvalidRequestError):
                        last(session)  # refused if the work has ended it by itself
            found.append(self.rows())
        return found[0] != found[1]

    def lost(self, name: str) -> dict[str, int]:
        """Return what is lost in a case, once it is sure that anything is."""
        each = CASES[name]
        lost = each.other.get(self.driver, each.lost)
        assert self.really_lost(each.work) == bool(lost), "a wrong case"
        return lost


class Bench:
    """One application."""

    def __init__(self, database: Any, label: str, folder: Any, **config: Any) -> None:
        self.label = label
        self.db = ScopedSession(model_class=Base)
        self.app = Flask(label, root_path=str(folder), instance_path=str(folder))
        self.app.config.update(
            TESTING=True,
            SQLALCHEMY_DATABASE_URI=database.url,
            SQLALCHEMY_ENGINE_OPTIONS=database.options,
            **config,
        )
        self.db.init_app(self.app)
        for name, each in CASES.items():
            view = self.view_of(each.work)
            self.app.add_url_rule(f"/{name}", endpoint=name, view_func=view)
        with self.app.app_context():
            self.engine = self.db.engine
        prepare(self.engine)

    def view_of(self, work: Callable[[Any], Any]) -> Callable[[], str]:
        def view() -> str:
            session = self.db.session()
            work(session)
            self.kept = session.info.pop("kept", None)
            return ""

        return view

    def visit(self, name: str, caplog: Any) -> tuple[Any, Any]:
        """Return what the snapshot and the log say that a view has lost."""
        caplog.clear()
        fill(self.engine)
        assert self.app.test_client().get(f"/{name}").status_code == 200
        if self.kept is not None:
            self.kept.close()
        logged = [
            record.scopedsession_lost
            for record in caplog.records
            if getattr(record, "scopedsession_event", None) == "lost_work"
        ]
        with self.app.app_context():
            snapshot = self.db.snapshot()
        assert snapshot.sessions == ()
        counted = [each.objects for each in snapshot.lost_work if each.endpoint == name]
        return counted, logged

    def check(self, name: str, lost: dict[str, int], caplog: Any) -> None:
        expected = [lost] if lost else []
        assert self.visit(name, caplog) == (expected, expected), self.label


@pytest.fixture(scope="module")
def benches(database, tmp_path_factory):
    """Applications with and without tracking, and on SQLite with a real BEGIN.

    Those that begin in the same way share the truth.
    """
    folder = tmp_path_factory.mktemp("app")
    made = {}
    begins = [None]
    if database.url.get_backend_name() == "sqlite":
        begins.append("DEFERRED")
    for begin in begins:
        config = {"SCOPEDSESSION_SQLITE_BEGIN": begin} if begin else {}
        made[Truth(database, begin)] = [
            Bench(
                database,
                f"tracking={tracking}, {begin}",
                folder,
                SCOPEDSESSION_TRACKING=tracking,
                **config,
            )
            for tracking in (True, False)
        ]
    yield made
    for truth, applications in made.items():
        for each in applications:
            each.db.dispose(each.app)
        truth.engine.dispose()


def check(benches, name, caplog):
    for truth, applications in benches.items():
        lost = truth.lost(name)
        for each in applications:
            each.check(name, lost, caplog)


@pytest.mark.parametrize("name", ALL)
def test_true_on_all(benches, name, caplog):
    check(benches, name, caplog)


@pytest.mark.databases("sqlite", "postgresql", "psycopg2", "pgbouncer", "mariadb")
@pytest.mark.parametrize("name", SERVED)
def test_true_outside_memory(benches, name, caplog):
    """What a database in memory would not survive."""
    check(benches, name, caplog)


@pytest.mark.parametrize("name", RETURNING)
def test_true_of_returning(benches, name, caplog):
    check(benches, name, caplog)


_STANDARD = ("sqlite", "memory", "postgresql", "psycopg2", "pgbouncer")


@pytest.mark.databases(*_STANDARD)
@pytest.mark.parametrize("name", UPDATE_RETURNING)
def test_true_of_sqlite_and_postgresql(benches, name, caplog):
    check(benches, name, caplog)


@pytest.mark.databases("postgresql", "psycopg2", "pgbouncer")
@pytest.mark.parametrize("name", POSTGRESQL)
def test_true_of_postgresql(benches, name, caplog):
    check(benches, name, caplog)


@pytest.mark.databases("sqlite", "memory")
@pytest.mark.parametrize("name", SQLITE)
def test_true_of_sqlite(benches, name, caplog):
    check(benches, name, caplog)


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize("name", MARIADB)
def test_true_of_mariadb(benches, name, caplog):
    check(benches, name, caplog)


# Two-phase transactions


def prepared(s):
    orm_flushed(s)
    s.prepare()


def prepared_and_committed(s):
    prepared(s)
    s.commit()


def prepared_and_rolled_back(s):
    prepared(s)
    s.rollback()


TWO_PHASE = {
    "left": (orm_flushed, [ONE]),
    "not flushed": (orm_added, [ONE]),
    "prepared and left": (prepared, [ONE]),
    "committed": (committed, []),
    "prepared and committed": (prepared_and_committed, []),
    "committed, then more": (committed_then_more, [ONE]),
    "rolled back": (rolled_back, []),
    "prepared and rolled back": (prepared_and_rolled_back, []),
    "read": (read_only, []),
}


@pytest.fixture(scope="module")
def two_phase_server(short_root):
    """A PostgreSQL server that allows prepared transactions."""
    with brought_server(short_root) as server:
        server.set(max_prepared_transactions=10)
        server.crash()
        server.start()
        yield server


@pytest.fixture(params=["psycopg", "psycopg2"])
def two_phase_url(two_phase_server, request):
    """A database of this server, for each driver."""
    with fresh_database(two_phase_server.url) as url:
        yield url.set(drivername=f"postgresql+{request.param}")


def test_release_of_a_prepared_transaction(make_app, two_phase_url):
    """Its owner decides: it may have prepared other databases, too."""
    db = ScopedSession(model_class=Base, session_options={"twophase": True})
    app = make_app(db, SQLALCHEMY_DATABASE_URI=two_phase_url)
    with app.app_context():
        db.create_all()
        db.session.add(Person(id=1, name="ed"))
        db.session().prepare()
        with pytest.raises(TransactionError, match="is prepared"):
            db.release()
        db.session.commit()
        assert db.session.get(Person, 1).name == "ed"
        db.release()


def check_two_phase(make_app, url, options, tracking):
    db = ScopedSession(model_class=Base, session_options={"twophase": True})
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=url,
        SQLALCHEMY_ENGINE_OPTIONS=options,
        SCOPEDSESSION_TRACKING=tracking,
    )
    for name, (work, _) in TWO_PHASE.items():
        app.add_url_rule(f"/{name}", name, lambda work=work: work(db.session()) or "")
    with app.app_context():
        db.drop_all()
        db.create_all()
        db.session.add(Person(id=1, name="ed"))
        db.session.commit()
        if db.engine.dialect.name == "postgresql":
            with db.engine.begin() as connection:
                connection.execute(text("ALTER SEQUENCE person_id_seq RESTART WITH 3"))
    for name in TWO_PHASE:
        assert app.test_client().get(f"/{name}").status_code == 200
    with app.app_context():
        lost = {each.endpoint: each.objects for each in db.snapshot().lost_work}
        assert db.engine.pool.checkedout() == 0
        assert db.session.connection().recover_twophase() == []
    wanted = {name: objects[0] for name, (_, objects) in TWO_PHASE.items() if objects}
    assert lost == wanted


@pytest.mark.parametrize("tracking", [True, False])
def test_two_phase_on_postgresql(make_app, two_phase_url, tracking):
    check_two_phase(make_app, two_phase_url, {}, tracking)


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize("tracking", [True, False])
def test_two_phase_on_mariadb(make_app, database, tracking):
    check_two_phase(make_app, database.url, database.options, tracking)


# Other scopes, binds and answers


@pytest.fixture
def make(make_app, database):
    """Make an application on the test's database, with tables that have two rows."""

    def make(db, *, options=(), **config):
        app = make_app(
            db,
            SQLALCHEMY_DATABASE_URI=database.url,
            SQLALCHEMY_ENGINE_OPTIONS={**database.options, **dict(options)},
            **config,
        )
        with app.app_context():
            db.drop_all()
            db.create_all()
            db.session.add_all([Person(name="ed"), Person(name="ann")])
            db.session.commit()
        return app

    return make


def lost_in(app, db, work, status=200):
    """Return what a view loses that does some work."""
    app.add_url_rule("/work", "work", lambda: work(db.session()) or "")
    with app.test_client() as client:
        assert client.get("/work").status_code == status
    with app.app_context():
        return [each.objects for each in db.snapshot().lost_work]


def refused(s):
    text_insert(s)
    orm_added(s)
    return "no", 409


def aborted(s):
    refused(s)
    abort(400)


def failed(s):
    refused(s)
    raise LookupError


ANSWERS = {
    "status": (refused, 409),
    "abort": (aborted, 400),
    "handled": (failed, 200),
}


@pytest.mark.parametrize("scopefunc", [None, "thread", lambda: 1])
@pytest.mark.parametrize(("work", "status"), ANSWERS.values(), ids=ANSWERS)
def test_a_refusal_is_no_lost_work(make, caplog, scopefunc, work, status):
    """A view that answers with an error means to leave no trace."""
    db = ScopedSession(model_class=Base, scopefunc=scopefunc)
    app = make(db)
    app.register_error_handler(LookupError, lambda error: "sorry")
    assert lost_in(app, db, work, status) == []
    assert "ended without commit()" not in caplog.text


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("scopefunc", ["thread", lambda: 1])
def test_scopes_of_ones_own(make, caplog, scopefunc, tracking):
    db = ScopedSession(model_class=Base, scopefunc=scopefunc)
    app = make(db, SCOPEDSESSION_TRACKING=tracking)
    assert lost_in(app, db, orm_flushed_and_added) == [TWO]
    assert "GET /work -> work ended without commit()" in caplog.text


@pytest.mark.parametrize("tracking", [True, False])
def test_another_bind(make_app, database, caplog, tracking):
    """The sessions of all binds are judged, and add up."""
    db = ScopedSession(model_class=Base)
    bind = {"url": database.url, **database.options}
    app = make_app(
        db,
        SQLALCHEMY_BINDS={"default": bind, "other": bind},
        SCOPEDSESSION_TRACKING=tracking,
    )
    with app.app_context():
        for engine in db.engines.values():
            Base.metadata.drop_all(engine)
            Base.metadata.create_all(engine)

    def work(s):
        orm_flushed(db.get_session("other"))
        db.get_session("other").commit()
        text_insert(db.get_session("other"))
        s.scalars(select(Person)).all()

    assert lost_in(app, db, work) == [ONE]


@pytest.mark.parametrize("tracking", [True, False])
def test_an_engine_in_autocommit(make, caplog, tracking):
    """Each statement is committed; what was not sent is lost all the same."""
    db = ScopedSession(model_class=Base)
    options = {"isolation_level": "AUTOCOMMIT"}
    app = make(db, options=options, SCOPEDSESSION_TRACKING=tracking)

    def work(s):
        orm_flushed(s)
        text_insert(s)
        s.execute(sa.update(Person).values(name="y"))
        s.add(Tag())

    assert lost_in(app, db, work) == [{"Tag": 1}]


class Silent(sqlite3.Connection):
    """Says as little as the connections of pyodbc and pg8000 do."""

    in_transaction = None


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize(
    ("work", "lost"),
    [
        (orm_flushed, []),
        (committed_then_more, []),
        (update_of_no_row, []),
        (lambda s: s.add(Tag()), [{"Tag": 1}]),
    ],
)
def test_a_driver_that_does_not_tell(make_app, sqlite_url, work, lost, tracking):
    """What was sent may be committed where nobody saw it; what never was is lost."""
    db = ScopedSession(model_class=Base)
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"factory": Silent}},
        SCOPEDSESSION_TRACKING=tracking,
    )
    with app.app_context():
        db.create_all()
        db.session.add(Person(name="ed"))
        db.session.commit()
    assert lost_in(app, db, work) == lost


@pytest.mark.databases("postgresql", "psycopg2")
def test_a_schema_named_temp(make):
    """It is temporary on SQLite, and one like any other on PostgreSQL."""
    db = ScopedSession(model_class=Base)

    def work(s):
        s.execute(text("CREATE SCHEMA temp"))
        s.execute(text("CREATE TABLE temp.real (id INTEGER)"))
        s.execute(text("INSERT INTO temp.real (id) VALUES (3)"))

    assert lost_in(make(db), db, work) == [{"real": 1}]


def test_a_stream(make, caplog):
    """The scope lasts as long as the response's body."""
    db = ScopedSession(model_class=Base)
    app = make(db)

    def stream():
        yield "one"
        orm_flushed(db.session())
        yield "two"

    app.add_url_rule("/stream", "stream", lambda: stream_with_context(stream()))
    response = app.test_client().get("/stream")
    assert response.text == "onetwo"
    response.close()
    with app.app_context():
        (lost,) = db.snapshot().lost_work
    assert (lost.endpoint, lost.objects) == ("stream", ONE)


def test_a_line_outside_of_requests(make_app, sqlite_url, caplog):
    """Each line that ends a scope is reported once."""
    db = ScopedSession(model_class=Base)
    app = make_app(
        db,
        flask_options={"root_path": str(Path(__file__).parent)},
        SQLALCHEMY_DATABASE_URI=sqlite_url,
    )
    with app.app_context():
        db.create_all()
    for _ in range(3):
        with app.app_context():
            orm_added(db.session())
        with app.app_context():
            orm_flushed(db.session())
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2
    assert all("test_lost_work.py:" in message for message in logged)
    with app.app_context():
        assert [each.objects for each in db.snapshot().lost_work] == [{"Person": 6}]


def test_raise_is_judged_as_the_scope_ends(make, caplog):
    """In tests and debug mode only, which may be set after ``init_app()``."""
    db = ScopedSession(model_class=Base)
    app = make(db, SCOPEDSESSION_LOST_WORK="raise", TESTING=False)
    app.add_url_rule("/work", "work", lambda: orm_flushed(db.session()) or "")
    assert app.test_client().get("/work").status_code == 200
    assert "GET /work -> work ended without commit()" in caplog.text
    for setting in ("TESTING", "DEBUG"):
        app.config[setting] = True
        with pytest.raises(Exception) as caught:
            app.test_client().get("/work")
        found = caught.value
        while hasattr(found, "exceptions"):  # Flask 3.2 raises a group
            (found,) = found.exceptions
        assert isinstance(found, LostWork)
        app.config[setting] = False
        with app.app_context():
            assert db.snapshot().sessions == ()
