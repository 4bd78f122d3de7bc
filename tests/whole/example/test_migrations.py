"""The example's tables come from its migrations, and are those of its models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from flask import Flask

import example_app
from example_app import create_app
from example_app.extensions import db
from example_app.models import Airport

MIGRATIONS = Path(example_app.__file__).with_name("migrations")


def differences(app: Flask) -> list[Any]:
    """Compare the databases of both binds with the models."""
    found = []
    with app.app_context():
        for name, engine in db.engines.items():
            options = {"version_table": f"alembic_version_{name}", "compare_type": True}
            metadata = db.metadatas[None if name == "default" else name]
            with engine.connect() as connection:
                context = MigrationContext.configure(connection, opts=options)
                found += compare_metadata(context, metadata)
    return found


def run(app: Flask, *args: str) -> None:
    result = app.test_cli_runner().invoke(args=["db", *args])
    assert result.exit_code == 0, result.output


def change(app: Flask, *statements: str) -> None:
    with app.app_context(), db.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_the_migrations_make_the_tables_of_the_models(example: Flask) -> None:
    """``import-airports`` has run them; no table comes from anywhere else."""
    assert differences(example) == []
    with example.app_context():
        audit = sa.inspect(db.get_engine("audit")).get_table_names()
    assert audit == ["alembic_version_audit", "audit_entry"]
    run(example, "check")


def test_a_difference_is_found(example: Flask) -> None:
    """Else the test above would be worth nothing."""
    change(example, "DROP INDEX ix_flight_date")
    assert [difference[0] for difference in differences(example)] == ["add_index"]


def test_down_and_up(example: Flask) -> None:
    run(example, "downgrade", "base")
    with example.app_context():
        assert sa.inspect(db.engine).get_table_names() == ["alembic_version_default"]
    run(example, "upgrade")
    assert differences(example) == []


def test_a_database_from_before_the_migrations(example: Flask) -> None:
    """It keeps its rows."""
    change(example, "DROP TABLE alembic_version_default", "DROP TABLE job")
    run(example, "upgrade")
    assert differences(example) == []
    with example.app_context():
        assert db.session.get(Airport, "EDDF") is not None


def test_a_new_migration(example: Flask, tmp_path: Path) -> None:
    """``flask db migrate`` writes one that needs no change, and nothing of the app."""
    folder = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    change(example, "DROP TABLE job")
    run(example, "migrate", "-d", str(folder), "-m", "jobs", "--rev-id", "0002")
    source = (folder / "versions" / "0002_jobs.py").read_text(encoding="utf-8")
    assert "sa.DateTime(timezone=True)" in source
    assert "example_app" not in source
    run(example, "upgrade", "-d", str(folder))
    assert differences(example) == []


def test_binds_in_one_database(tmp_path: Path) -> None:
    """Each has a revision of its own, and neither waits for the other's lock."""
    url = f"sqlite:///{tmp_path / 'one.sqlite3'}"
    app = create_app(
        {"SQLALCHEMY_DATABASE_URI": url, "SQLALCHEMY_BINDS": {"audit": url}}
    )
    run(app, "upgrade")
    with app.app_context():
        names = sa.inspect(db.engine).get_table_names()
    assert {"airport", "audit_entry", "alembic_version_audit"} <= set(names)
    db.dispose(app)


def test_postgresql(pg_url: str, make_example: Callable[..., Flask]) -> None:
    app = make_example(SQLALCHEMY_DATABASE_URI=pg_url)
    run(app, "upgrade")
    assert differences(app) == []
    run(app, "downgrade", "base")
