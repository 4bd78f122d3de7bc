"""What SQLAlchemy's chapter on contextual sessions promises, through ``db.session``."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from models import Base
from models import User
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import OutsideContext
from flask_scopedsession.errors import SetupError
from flask_scopedsession.errors import UnknownBind


@pytest.fixture
def db():
    return ScopedSession(model_class=Base)


@pytest.fixture
def shop(db, make_app, sqlite_url):
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with shop.app_context():
        db.create_all()
    return shop


def test_it_is_a_scoped_session(db, shop):
    """``db.session`` is SQLAlchemy's class, and calling it gives a Session."""
    assert isinstance(db.session, scoped_session)
    with shop.app_context():
        assert isinstance(db.session(), Session)
        assert db.session().bind is db.engine


def test_the_same_one_within_a_scope(db, shop):
    """Calling it again in the same scope gives the same session."""
    with shop.app_context():
        assert db.session() is db.session()
        assert db.session() is db.get_session()
        assert db.session() is db.get_session("default")


def test_another_one_in_another_scope(db, shop):
    """Nested contexts have sessions of their own, and get the outer one back."""
    with shop.app_context():
        outer = db.session()
        with shop.app_context():
            inner = db.session()
            assert inner is not outer
        assert db.session() is outer


def test_implicit_method_access(db, shop):
    """Methods and attributes of the session are there without calling it."""
    with shop.app_context():
        db.session.add(User(name="ed"))
        db.session.commit()
        assert db.session.scalars(select(User.name)).all() == ["ed"]
        assert db.session.get(User, 1) in db.session
        assert db.session.is_active


def test_arguments_for_a_new_session(db, shop):
    """Arguments are for the session that is made by this very call."""
    with shop.app_context():
        assert db.session(autoflush=False).autoflush is False
        assert db.session().autoflush is False


def test_arguments_with_a_session_present(db, shop):
    """Arguments fail as SQLAlchemy's do once there is a session."""
    with shop.app_context():
        db.session()
        with pytest.raises(sa_exc.InvalidRequestError, match="already present"):
            db.session(autoflush=False)


def test_remove(db, shop):
    """``remove()`` rolls back, gives the connection back; the next call is new."""
    with shop.app_context():
        first = db.session()
        first.add(User(name="lost"))
        first.flush()
        assert db.snapshot().pools[0].used == 1
        db.session.remove()
        assert not db.session.registry.has()
        assert db.snapshot().pools[0].used == 0
        assert db.session() is not first
        assert db.session.scalars(select(User)).all() == []


def test_remove_twice_and_without_a_session(db, shop):
    """Removing nothing is nothing, also without a context."""
    db.session.remove()
    with shop.app_context():
        db.session.remove()
        db.session()
        db.session.remove()
        db.session.remove()


def test_without_a_context(db, shop):
    """Use raises and says what to do; ``has()`` is false."""
    assert not db.session.registry.has()
    for use in (db.session, lambda: db.session.scalars(select(1)), db.get_session):
        with pytest.raises(OutsideContext, match=r"with app\.app_context\(\)"):
            use()
    with pytest.raises(RuntimeError):
        db.session()


def test_configure_applies_to_every_app(db, make_app):
    """``configure()`` counts from the next session on, in all applications."""
    apps = [make_app(db, import_name=name) for name in ("one", "two")]
    db.session.configure(expire_on_commit=False, info={"a": 1})
    for each in apps:
        with each.app_context():
            assert db.session().expire_on_commit is False
            assert db.session().info == {"a": 1}


def test_configure_with_a_session_present(db, shop):
    """It warns as SQLAlchemy does, and leaves the present session alone."""
    with shop.app_context():
        session = db.session()
        with pytest.warns(sa_exc.SAWarning, match="already present"):
            db.session.configure(autoflush=False)
        assert session.autoflush
        db.session.remove()
        assert not db.session().autoflush


def test_session_options(make_app):
    """The configuration's session options win over the constructor's."""
    db = ScopedSession(session_options={"autoflush": False, "expire_on_commit": False})
    app = make_app(db, SQLALCHEMY_SESSION_OPTIONS={"expire_on_commit": True})
    with app.app_context():
        assert db.session().autoflush is False
        assert db.session().expire_on_commit is True


def test_a_session_class_of_ones_own(make_app):
    class Mine(Session):
        def hello(self):
            return "hello"

    db = ScopedSession(session_options={"class_": Mine})
    with make_app(db).app_context():
        assert isinstance(db.session(), Mine)
        assert db.session().hello() == "hello"
        assert isinstance(db.sessionmaker(), Mine)


def test_what_is_new_is_flushed_before_a_select(db, shop):
    """As by SQLAlchemy, with all that hears of it."""
    flushed = []
    with shop.app_context():
        event.listen(db.session(), "after_flush", lambda *_: flushed.append(1))
        assert db.session.scalars(select(User.name)).all() == []
        assert flushed == []
        db.session.add(User(name="ed"))
        assert db.session.scalars(select(User.name)).all() == ["ed"]
        assert flushed == [1]
        with db.session.no_autoflush:
            db.session.add(User(name="wendy"))
            assert db.session.scalars(select(User.name)).all() == ["ed"]
        assert db.session.scalars(select(User.name)).all() == ["ed", "wendy"]
        assert flushed == [1, 1]


def test_a_flush_of_ones_own_is_called_before_each_select(make_app, sqlite_url):
    """Also where nothing is to be flushed, as SQLAlchemy does."""
    flushes = []

    class Mine(Session):
        def flush(self, *args, **kwargs):
            flushes.append(1)
            super().flush(*args, **kwargs)

    db = ScopedSession(model_class=Base, session_options={"class_": Mine})
    with make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url).app_context():
        db.create_all()
        db.session.scalars(select(User.name)).all()
        assert flushes == [1]


def test_a_method_that_was_patched_in_the_class_is_called(db, shop, monkeypatch):
    """As tools do that trace what an application does, at any time."""
    called = []

    def execute(self, *args, **kwargs):
        called.append(args)
        return original(self, *args, **kwargs)

    original = Session.execute
    monkeypatch.setattr(Session, "execute", execute)
    with shop.app_context():
        assert db.session.execute(text("SELECT 1")).scalar() == 1
        assert len(called) == 1


def test_an_unknown_session_option(make_app):
    """It is refused at once, and by name."""
    db = ScopedSession()
    with pytest.raises(ConfigError, match="'autoflsh'.*'autoflush'"):
        make_app(db, SQLALCHEMY_SESSION_OPTIONS={"autoflsh": False})


def test_options_of_ones_own_class(make_app):
    """A class that takes more than SQLAlchemy's can be given that."""

    class Mine(Session):
        def __init__(self, *args, tenant=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.tenant = tenant

    db = ScopedSession(session_options={"class_": Mine, "tenant": 1})
    with make_app(db).app_context():
        assert db.session().tenant == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"engine_options": 5},
        {"session_options": ["x"]},
        {"session_options": {"bind": None}},
        {"session_options": {"class_": int}},
        {"binds": 5},
        {"binds": {Base: 5}},
        {"binds": {"Base": "audit"}},
        {"model_class": int},
    ],
    ids=str,
)
def test_wrong_arguments(arguments):
    """Each is one error that names the argument."""
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        ScopedSession(**arguments)


def test_something_else_than_an_app():
    with pytest.raises(SetupError, match=r"init_app\(\) needs a Flask application"):
        ScopedSession().init_app(None)


def test_query_property(db, shop):
    User.query = db.session.query_property()
    try:
        with shop.app_context():
            db.session.add(User(name="wendy"))
            db.session.commit()
            assert User.query.filter_by(name="wendy").one().id == 1
    finally:
        del User.query


def test_registry(db, shop):
    """``registry`` has, sets and clears as SQLAlchemy's does."""
    with shop.app_context():
        registry = db.session.registry
        assert not registry.has()
        mine = db.sessionmaker()
        registry.set(mine)
        assert registry.has()
        assert db.session() is mine
        registry.clear()
        assert not registry.has()
        mine.close()


def test_a_foreign_session_in_the_registry(db, shop):
    """A plain session that was set is closed with the scope, as any other."""
    with shop.app_context():
        plain = Session(db.engine)
        db.session.registry.set(plain)
        assert db.session() is plain
        plain.execute(text("SELECT 1"))
    with shop.app_context():
        assert db.snapshot().pools[0].used == 0
        assert db.snapshot().sessions == ()


def test_events_at_import_time(make_app):
    """Listeners can be attached before there is an app, and hear every app."""
    db = ScopedSession()
    heard = []
    event.listen(db.session, "after_commit", heard.append)
    for name in ("one", "two"):
        with make_app(db, import_name=name).app_context():
            db.session.execute(text("SELECT 1"))
            db.session.commit()
            assert heard[-1] is db.session()
    assert len(heard) == 2


def test_events_of_one_extension_only(make_app):
    """What listens to one extension's sessions does not hear another's."""
    mine, other = ScopedSession(), ScopedSession()
    heard = []
    event.listen(mine.session, "after_commit", heard.append)
    with make_app(other).app_context():
        other.session.execute(text("SELECT 1"))
        other.session.commit()
    assert heard == []


def test_sessionmaker(db, shop):
    """``db.sessionmaker`` makes sessions of no scope, of the same class."""
    with shop.app_context():
        assert isinstance(db.sessionmaker, sessionmaker)
        with db.sessionmaker() as session:
            assert session is not db.session()
            assert type(session) is type(db.session())
        with db.sessionmaker.begin() as session:
            session.add(User(name="kept"))
        assert db.session.scalar(select(User.name)) == "kept"


# The request flow


def test_lazily_created_in_a_request(db, shop):
    """A request that does not use the session never makes one."""
    seen = []

    @shop.get("/idle")
    def idle():
        seen.append(db.session.registry.has())
        return ""

    shop.test_client().get("/idle")
    assert seen == [False]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_removed_when_the_request_ends(db, shop, error):
    """The session ends with its request, also after an exception."""
    seen = []

    @shop.get("/")
    def view():
        db.session.add(User(name="x"))
        db.session.flush()
        seen.append(db.session())
        if error is not None:
            raise error
        db.session.rollback()
        return ""

    shop.config["PROPAGATE_EXCEPTIONS"] = False
    try:
        shop.test_client().get("/")
    except KeyboardInterrupt:
        assert error is KeyboardInterrupt
    with shop.app_context():
        assert not db.session.registry.has()
        assert db.snapshot().sessions == ()
        assert db.snapshot().pools[0].used == 0
    assert len(seen) == 1


def test_concurrent_requests(db, shop):
    """Under a threaded server, every request has a session of its own."""
    barrier = threading.Barrier(8, timeout=10)

    @shop.get("/<int:number>")
    def view(number):
        session = db.session()
        db.session.add(User(id=1000 + number, name=str(number)))
        barrier.wait()
        assert db.session() is session
        names = [user.name for user in db.session.new]
        barrier.wait()
        db.session.rollback()
        return {"names": names, "session": id(session)}

    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: shop.test_client().get(f"/{n}").json, range(8))
        )
    assert [a["names"] for a in answers] == [[str(n)] for n in range(8)]
    assert len({a["session"] for a in answers}) == 8
    with shop.app_context():
        assert db.snapshot().pools[0].used == 0
        assert db.snapshot().sessions == ()


# Binds


class Audit(DeclarativeBase):
    pass


class Entry(Audit):
    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


@pytest.fixture
def two(make_app, short_tmp):
    db = ScopedSession(model_class=Base, binds={Audit: "audit"})
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/main.db",
        SQLALCHEMY_BINDS={"audit": f"sqlite:///{short_tmp}/audit.db"},
    )
    with app.app_context():
        db.create_all()
        yield db


def test_models_go_to_their_bind(two):
    """The scope's session sends each model to the bind it lives in."""
    two.session.add_all([User(name="ed"), Entry(what="ed came")])
    two.session.commit()
    for name, table in (("default", "user"), ("audit", "entry")):
        with two.engines[name].connect() as connection:
            found = connection.scalars(text("SELECT name FROM sqlite_master"))
            assert found.all() == [table]
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 1


def test_get_session_of_a_bind(two):
    """A bind's session is a second one of the same scope, bound to it alone."""
    audit = two.get_session("audit")
    assert audit is two.get_session("audit")
    assert audit is not two.session()
    assert audit.bind is two.get_engine("audit")
    assert audit.execute(text("SELECT name FROM sqlite_master")).scalar() == "entry"
    two.session.remove()
    assert two.get_session("audit") is not audit


def test_unknown_bind(two):
    for use in (two.get_session, two.get_engine):
        with pytest.raises(UnknownBind, match="'nope'.*SQLALCHEMY_BINDS.*audit"):
            use("nope")


def test_engines_are_read_only(two):
    assert sorted(two.engines) == ["audit", "default"]
    with pytest.raises(TypeError):
        two.engines["other"] = two.engine


def test_metadatas(two):
    """What Flask-Migrate and Flask-Alembic look for."""
    assert two.Model is Base
    assert two.metadata is Base.metadata
    assert dict(two.metadatas) == {None: Base.metadata, "audit": Audit.metadata}


def test_create_and_drop_one_bind(two):
    def tables(name):
        with two.engines[name].connect() as connection:
            return connection.scalars(text("SELECT name FROM sqlite_master")).all()

    two.drop_all("audit")
    assert tables("audit") == []
    assert tables("default") == ["user"]
    two.drop_all()
    assert tables("default") == []
    two.create_all("audit")
    assert tables("audit") == ["entry"]


def test_one_model_in_another_bind(make_app, short_tmp):
    """A single model, or a table, can live elsewhere than its base."""

    class Own(DeclarativeBase):
        pass

    class Here(Own):
        __tablename__ = "here"
        id: Mapped[int] = mapped_column(primary_key=True)

    class There(Own):
        __tablename__ = "there"
        id: Mapped[int] = mapped_column(primary_key=True)

    db = ScopedSession(model_class=Own, binds={There: "other"})
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/main.db",
        SQLALCHEMY_BINDS={"other": f"sqlite:///{short_tmp}/other.db"},
    )
    with app.app_context():
        db.create_all()
        db.session.add_all([Here(), There()])
        db.session.commit()
        for name, table in (("default", "here"), ("other", "there")):
            with db.engines[name].connect() as connection:
                found = connection.scalars(text("SELECT name FROM sqlite_master"))
                assert found.all() == [table]


def test_flask_shell_has_db(db, shop):
    assert shop.make_shell_context()["db"] is db
