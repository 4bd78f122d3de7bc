"""A scope that ends well, with changes that nobody committed."""

from __future__ import annotations

import pytest
from flask import abort
from models import Base
from models import User
from sqlalchemy import exc as sa_exc
from sqlalchemy import insert
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy import update

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import LostWork


@pytest.fixture
def db():
    return ScopedSession(model_class=Base)


@pytest.fixture
def make(db, make_app, sqlite_url):
    def make(**config):
        app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, **config)
        with app.app_context():
            db.create_all()
            db.session.add(User(id=1, name="ed"))
            db.session.commit()
        return app

    return make


def visit(app, work):
    """Do some work in a view, and return the response's status."""
    app.add_url_rule("/work", view_func=lambda: work() or "fine", endpoint="work")
    return app.test_client().get("/work").status_code


LOSING = {
    "added": lambda db: db.session.add(User(name="x")),
    "flushed": lambda db: (db.session.add(User(name="x")), db.session.flush()),
    "changed": lambda db: setattr(db.session.get(User, 1), "name", "x"),
    "deleted": lambda db: db.session.delete(db.session.get(User, 1)),
    "orm dml": lambda db: db.session.execute(update(User).values(name="x")),
    "core dml": lambda db: db.session.execute(insert(User.__table__).values(name="x")),
    "returning": lambda db: db.session.scalars(
        insert(User).returning(User.id), [{"name": "x"}]
    ).all(),
    "scalar": lambda db: db.session.scalar(
        insert(User).values(name="x").returning(User.id)
    ),
    "query": lambda db: db.session.query(User).update({"name": "x"}),
    "bulk": lambda db: db.session.bulk_save_objects([User(name="x")]),
    "bulk insert": lambda db: db.session.bulk_insert_mappings(User, [{"name": "x"}]),
    "bulk update": lambda db: db.session.bulk_update_mappings(
        User, [{"id": 1, "name": "x"}]
    ),
    "in an open savepoint": lambda db: (
        db.session.begin_nested(),
        db.session.add(User(name="x")),
        db.session.flush(),
    ),
    "after a commit": lambda db: (
        db.session.commit(),
        db.session.execute(update(User).values(name="x")),
    ),
}

SILENT = {
    "nothing": lambda db: None,
    "read": lambda db: db.session.scalars(select(User)).all(),
    "for update": lambda db: db.session.scalars(select(User).with_for_update()).all(),
    "same value": lambda db: setattr(db.session.get(User, 1), "name", "ed"),
    "committed": lambda db: (db.session.add(User(name="x")), db.session.commit()),
    "committed, then read": lambda db: (
        db.session.add(User(name="x")),
        db.session.commit(),
        db.session.scalars(select(User)).all(),
    ),
    "rolled back": lambda db: (
        db.session.add(User(name="x")),
        db.session.flush(),
        db.session.rollback(),
    ),
    "closed": lambda db: (db.session.add(User(name="x")), db.session.close()),
    "no rows": lambda db: db.session.bulk_insert_mappings(User, []),
    "abort": lambda db: (db.session.add(User(name="x")), abort(400)),
    "status": lambda db: (db.session.add(User(name="x")), ("no", 409))[1],
    "handled flush error": lambda db: handled(db),
}


def handled(db):
    db.session.add(User(id=1, name="x"))
    with pytest.raises(sa_exc.IntegrityError):
        db.session.flush()


@pytest.mark.parametrize("work", LOSING.values(), ids=LOSING)
def test_lost_work_is_reported(db, make, caplog, work):
    """The log says which view, how many, of what kind, and what to do."""
    assert visit(make(), lambda: work(db) and None) == 200
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert "GET /work -> work ended without commit()" in message
    assert "1 User" in message or "1 user" in message
    assert "db.session.commit()" in message


@pytest.mark.parametrize("work", SILENT.values(), ids=SILENT)
def test_no_false_alarm(db, make, caplog, work):
    visit(make(), lambda: work(db) if work in ANSWERS else work(db) and None)
    assert caplog.records == []


ANSWERS = (SILENT["status"],)


@pytest.mark.parametrize("begin", [None, "DEFERRED"])
def test_a_session_within_a_transaction_of_a_test(db, make, caplog, begin):
    """What a scope rolls back to its savepoint is lost, and nothing else is."""
    app = make(SCOPEDSESSION_SQLITE_BEGIN=begin)
    with app.app_context():
        engine, maker = db.engine, db.sessionmaker
    with engine.connect() as connection, connection.begin() as transaction:
        if begin is None:
            connection.exec_driver_sql("BEGIN")
        maker.configure(bind=connection, join_transaction_mode="create_savepoint")
        for number in range(2):
            with app.app_context():
                db.session.add(User(name=f"kept {number}"))
                db.session.commit()
                db.session.add(User(name="rolled back"))
                db.session.flush()
                db.session.rollback()
        assert caplog.records == []
        visit(app, lambda: db.session.execute(insert(User), [{"name": "x"}]) and None)
        assert "(1 User)" in caplog.records.pop().getMessage()
        with app.app_context():
            names = db.session.scalars(select(User.name)).all()
        transaction.rollback()
    assert names == ["ed", "kept 0", "kept 1"]
    assert caplog.records == []


def test_an_error_is_no_lost_work(db, make, caplog):
    """A view that raises loses its work on purpose."""
    app = make(PROPAGATE_EXCEPTIONS=False)

    def work():
        db.session.add(User(name="x"))
        raise RuntimeError("on purpose")

    caplog.set_level("WARNING", "flask_scopedsession")
    assert visit(app, work) == 500
    assert [r for r in caplog.records if r.name == "flask_scopedsession"] == []


@pytest.mark.parametrize("status", [200, 302])
def test_a_handled_error_is_no_lost_work(db, make, caplog, status):
    """Also where its handler answers as if nothing had happened, or sends elsewhere."""
    app = make()
    app.register_error_handler(ValueError, lambda error: ("sorry", status))

    def work():
        db.session.add(User(name="x"))
        raise ValueError

    assert visit(app, work) == status
    assert caplog.records == []
    with app.app_context():
        assert db.snapshot().lost_work == ()


def test_it_is_counted(db, make):
    """For each view, each time, with what was lost; the log has it only once."""
    app = make()
    app.add_url_rule(
        "/add/<int:number>",
        "add",
        lambda number: db.session.add_all([User(name="x")] * number) or "",
    )
    for _ in range(2):
        app.test_client().get("/add/1")
    with app.app_context():
        db.session.execute(text("DELETE FROM user WHERE id = 99"))
        (lost,) = db.snapshot().lost_work
    assert (lost.endpoint, lost.method, lost.rule) == (
        "add",
        "GET",
        "/add/<int:number>",
    )
    assert (lost.scopes_total, lost.objects) == (2, {"User": 2})


def test_once_per_view(db, make, caplog):
    app = make()
    for name in ("one", "two"):
        app.add_url_rule(
            f"/{name}",
            view_func=lambda: db.session.add(User(name="x")) or "",
            endpoint=name,
        )
    for path in ("/one", "/one", "/two", "/one"):
        app.test_client().get(path)
    assert [r.getMessage().split()[3] for r in caplog.records] == ["one", "two"]


def test_kinds_are_counted(db, make, caplog):
    def work():
        db.session.add_all([User(name="x"), User(name="y")])
        db.session.flush()
        db.session.add(User(name="z"))

    visit(make(), work)
    assert "(3 User)" in caplog.text


def test_only_the_last_transaction_is_counted(db, make, caplog):
    """What an earlier one committed is not lost."""

    def work():
        db.session.add_all([User(name="x"), User(name="y")])
        db.session.commit()
        db.session.add(User(name="z"))
        db.session.flush()

    visit(make(), work)
    assert "(1 User)" in caplog.text


def test_outside_requests(db, make, caplog):
    """A script's context is a scope like any other."""
    with make().app_context():
        db.session.add(User(name="x"))
    assert "ended without commit()" in caplog.text


def test_no_values_in_the_log(db, make, caplog):
    visit(make(), lambda: db.session.add(User(name="canary")))
    assert "canary" not in caplog.text


def test_raise(db, make):
    """``"raise"`` fails the request, after the session was removed."""
    app = make(SCOPEDSESSION_LOST_WORK="raise")
    with pytest.raises(Exception) as caught:
        visit(app, lambda: db.session.add(User(name="x")))
    found = caught.value
    # Flask 3.2 raises what teardowns raise in a group.
    while hasattr(found, "exceptions"):
        (found,) = found.exceptions
    assert isinstance(found, LostWork)
    assert "GET /work -> work" in str(found)
    with app.app_context():
        assert db.snapshot().sessions == ()


def test_raise_only_warns_in_production(db, make, caplog):
    """It is judged when a scope ends: not in debug mode, and not while testing."""
    app = make(SCOPEDSESSION_LOST_WORK="raise", TESTING=False, DEBUG=False)
    assert visit(app, lambda: db.session.add(User(name="x"))) == 200
    assert "GET /work -> work ended without commit()" in caplog.text
    for flag in ("TESTING", "DEBUG"):
        app.config.update({"TESTING": False, "DEBUG": False, flag: True})
        with pytest.raises(Exception, match=r"work ended without commit|teardown"):
            app.test_client().get("/work")


def test_policy_set_after_init_app(db, make, caplog):
    """It is read when a scope ends, as the tests of a factory's app set it late."""
    app = make(DEBUG="False")
    app.config["SCOPEDSESSION_LOST_WORK"] = "ignore"
    assert visit(app, lambda: db.session.add(User(name="x"))) == 200
    assert caplog.records == []
    app.config["SCOPEDSESSION_LOST_WORK"] = "shout"
    with pytest.raises(Exception, match="SCOPEDSESSION_LOST_WORK must be|teardown"):
        app.test_client().get("/work")
    app.config["SCOPEDSESSION_LOST_WORK"] = "raise"
    with pytest.raises(Exception, match=r"ended without commit|teardown"):
        app.test_client().get("/work")
    # From the environment, a flag is text.
    app.config["TESTING"] = "False"
    assert app.test_client().get("/work").status_code == 200
    assert "GET /work -> work ended without commit()" in caplog.text


def test_policy_set_after_it_was_ignored(db, make, caplog):
    """What is needed to judge was left out, which is said once."""
    app = make(SCOPEDSESSION_LOST_WORK="ignore")
    app.config["SCOPEDSESSION_LOST_WORK"] = "raise"
    assert visit(app, lambda: db.session.add(User(name="x"))) == 200
    assert app.test_client().get("/work").status_code == 200
    (record,) = caplog.records
    assert record.getMessage().startswith("SCOPEDSESSION_LOST_WORK changed after")


def test_ignore(db, make, caplog):
    visit(
        make(SCOPEDSESSION_LOST_WORK="ignore"), lambda: db.session.add(User(name="x"))
    )
    assert caplog.records == []


def test_changes_that_cannot_be_compared(db, make, caplog):
    """A type whose values refuse to be compared does not keep the session open."""

    class Odd(str):
        __slots__ = ()

        def __eq__(self, other):
            raise ValueError("ambiguous")

        __hash__ = str.__hash__

    app = make()
    visit(app, lambda: setattr(db.session.get(User, 1), "name", Odd("x")))
    assert "cannot tell what it changed" in caplog.text
    with app.app_context():
        assert db.snapshot().sessions == ()
        assert db.snapshot().pools[0].used == 0


def test_two_binds(make_app, short_tmp, caplog):
    """The session of another bind is looked at as well."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/a.db",
        SQLALCHEMY_BINDS={"b": f"sqlite:///{short_tmp}/b.db"},
    )
    with app.app_context():
        Base.metadata.create_all(db.get_engine("b"))
        db.session.execute(text("SELECT 1"))
        db.get_session("b").add(User(name="x"))
    assert "1 User" in caplog.text
