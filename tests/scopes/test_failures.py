"""Errors in the application's own code: the pool is whole afterwards, always."""

from __future__ import annotations

import gc
import re
import shutil
from importlib.metadata import version

import pytest
from models import Base
from models import User
from sqlalchemy import create_engine
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import text

from flask_scopedsession import ScopedSession

SELECT = text("SELECT 1")


class Killed(BaseException):
    """As greenlet's ``GreenletExit``: not an Exception."""


ERRORS = [RuntimeError, KeyboardInterrupt, SystemExit, Killed]


@pytest.fixture
def db():
    return ScopedSession(model_class=Base)


@pytest.fixture
def kept():
    """Sessions that somebody keeps: they end by being removed, not by being freed."""
    return []


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """An SQLite file with the tables, to copy."""
    path = tmp_path_factory.mktemp("tables") / "empty.db"
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()
    return path


@pytest.fixture(params=[True, False], ids=["tracked", "untracked"])
def shop(request, db, make_app, short_tmp, tables, flask_class):
    """Two binds whose pools have one connection each."""
    shutil.copyfile(tables, short_tmp / "a.db")
    shop = make_app(
        db,
        flask_class=flask_class,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/a.db",
        SQLALCHEMY_BINDS={"b": f"sqlite:///{short_tmp}/b.db"},
        SQLALCHEMY_ENGINE_OPTIONS={
            "pool_size": 1,
            "max_overflow": 0,
            "pool_timeout": 0.2,
        },
        SCOPEDSESSION_TRACKING=request.param,
    )

    @shop.get("/")
    def view():
        use_both(db)
        return "fine"

    return shop


def use_both(db):
    for engine in db.engines.values():
        db.session.execute(SELECT, bind_arguments={"bind": engine})
    db.get_session("b").rollback()


def whole(db, shop):
    """Whether each pool counts nothing out, and hands out all that it has."""
    with shop.app_context():
        snapshot = db.snapshot()
        assert snapshot.sessions == ()
        for pool in snapshot.pools:
            assert (pool.used, pool.pending) == (0, 0)
        for engine in db.engines.values():
            assert engine.pool.checkedout() == 0
            engine.connect().close()
    return True


def fail(error):
    def failing(*args, **kwargs):
        raise error("on purpose")

    return failing


def visit(shop, error):
    try:
        shop.test_client().get("/")
    except BaseException as caught:  # noqa: BLE001 - in a group on Flask 3.2, perhaps
        found = caught
        while hasattr(found, "exceptions"):
            found = found.exceptions[0]
        assert isinstance(found, error)
        return True
    return False


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "where", ["before", "view", "after", "teardown_request", "teardown", "own_teardown"]
)
def test_an_error_in_the_application(db, shop, kept, where, error):
    """In each kind of function, with the session in use."""

    def failing(*args):
        use_both(db)
        if where != "teardown":  # Flask 3.1 and older do not come to ours then
            kept.append(db.session())
        raise error("on purpose")

    {
        "before": lambda: shop.before_request(failing),
        "view": lambda: shop.view_functions.update(view=failing),
        "after": lambda: shop.after_request(failing),
        "teardown_request": lambda: shop.teardown_request(failing),
        "teardown": lambda: shop.teardown_appcontext(failing),
        "own_teardown": lambda: shop.teardown_appcontext_funcs.insert(0, failing),
    }[where]()
    assert visit(shop, error)
    gc.collect()  # tracebacks
    if failing in shop.teardown_appcontext_funcs:
        shop.teardown_appcontext_funcs.remove(failing)
    assert whole(db, shop)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_in_close(db, shop, error, monkeypatch):
    """An Exception is logged and the answer stands; anything else goes on."""

    @shop.get("/close")
    def close():
        use_both(db)
        monkeypatch.setattr(db.session(), "close", fail(error))
        return "fine"

    shop.view_functions["view"] = shop.view_functions["close"]
    assert visit(shop, error) is (error is not RuntimeError)
    gc.collect()
    assert whole(db, shop)


@pytest.mark.parametrize("error", [*ERRORS, sa_exc.OperationalError])
@pytest.mark.parametrize("name", ["default", "b"])
def test_one_of_two_binds_that_cannot_roll_back(db, shop, name, error, caplog):
    """The other's connection comes back all the same."""
    with shop.app_context():
        engine = db.engines[name]

    def failing(connection):
        if error is sa_exc.OperationalError:
            raise error("ROLLBACK", {}, Exception("gone"))
        raise error("on purpose")

    caplog.set_level("CRITICAL")
    shop.view_functions["view"] = lambda: (
        use_both(db),
        event.listen(engine, "rollback", failing),
        "fine",
    )[-1]
    gc.collect()
    gc.disable()
    try:
        visit(shop, error)
        event.remove(engine, "rollback", failing)
        assert whole(db, shop)
    finally:
        gc.enable()


SESSION_EVENTS = [
    "after_begin",
    "do_orm_execute",
    "before_flush",
    "after_flush",
    "after_transaction_create",
    "after_transaction_end",
    "before_commit",
    "after_commit",
    "after_rollback",
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", SESSION_EVENTS)
def test_an_error_in_a_listener_of_the_session(db, shop, kept, name, error, caplog):
    """Whatever the listener is called for, what was taken goes back."""
    caplog.set_level("CRITICAL")

    def view():
        kept.append(db.session())
        use_both(db)
        db.session.commit()
        event.listen(db.session, name, failing)
        db.session.add(User(name="x"))
        db.session.flush()
        db.session.execute(SELECT)
        db.session.commit()
        db.session.execute(SELECT)
        db.session.rollback()
        return "fine"

    failing = fail(error)
    shop.view_functions["view"] = view
    # SQLAlchemy may raise another error in turn.
    assert visit(shop, BaseException)
    event.remove(db.session, name, failing)
    gc.collect()
    assert whole(db, shop)


#: Less "checkin": SQLAlchemy then loses the pool's entry (_ConnectionRecord.checkin()).
ENGINE_EVENTS = [
    "begin",
    "before_cursor_execute",
    "after_cursor_execute",
    "commit",
    "rollback",
    "checkout",
    "reset",
]


#: SQLAlchemy 2.0.0 loses a connection when "reset" is interrupted; 2.0.58 does not.
SQLALCHEMY = [int(part) for part in re.findall(r"\d+", version("sqlalchemy"))[:3]]
RESET_IS_SAFE = SQLALCHEMY >= [2, 0, 58]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (name, error)
        for name in ENGINE_EVENTS
        for error in ERRORS
        if RESET_IS_SAFE or name != "reset" or issubclass(error, Exception)
    ],
)
def test_an_error_in_a_listener_of_the_engine(db, shop, kept, name, error, caplog):
    """The same for the engine's and the pool's, for each that SQLAlchemy survives."""
    caplog.set_level("CRITICAL")
    failing = fail(error)

    def view():
        kept.append(db.session())
        with_engine = db.engine
        event.listen(with_engine, name, failing)
        db.session.add(User(name="x"))
        db.session.commit()
        db.session.execute(SELECT)
        db.session.rollback()
        return "fine"

    shop.view_functions["view"] = view
    visit(shop, BaseException)
    with shop.app_context():
        event.remove(db.engine, name, failing)
    gc.collect()
    assert whole(db, shop)


def test_an_error_in_the_comparison_of_changes(db, shop, caplog):
    """What is no Exception goes on, after the session was closed."""

    class Odd(str):
        __slots__ = ()

        def __eq__(self, other):
            raise Killed

        __hash__ = str.__hash__

    with shop.app_context():
        db.session.add(User(id=1, name="ed"))
        db.session.commit()

    context = shop.app_context()
    with pytest.raises(BaseException) as caught, context:
        db.session.get(User, 1).name = Odd("x")
    found = caught.value
    while hasattr(found, "exceptions"):
        (found,) = found.exceptions
    assert isinstance(found, Killed)
    # The context is alive, and the session closed all the same.
    assert context is not None
    assert whole(db, shop)
