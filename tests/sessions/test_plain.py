"""Sessions are plain: what a class, a tool or a listener does with one works."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import orm
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import Mapped

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import SessionRemoved


class Base(orm.DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = orm.mapped_column(primary_key=True)
    name: Mapped[str]
    posts: Mapped[list[Post]] = orm.relationship()


class Post(Base):
    __tablename__ = "post"
    id: Mapped[int] = orm.mapped_column(primary_key=True)
    user_id: Mapped[int] = orm.mapped_column(sa.ForeignKey("user.id"))


@pytest.fixture
def make(make_app, sqlite_url):
    """Make an extension with a session class, its application, and one user."""

    def make(class_=None, **config):
        options = {} if class_ is None else {"class_": class_}
        db = ScopedSession(model_class=Base, session_options=options)
        app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, **config)
        with app.app_context():
            db.create_all()
            with db.engine.begin() as connection:
                connection.execute(sa.insert(User).values(id=1, name="ed"))
        return db, app

    return make


def serve(db, app, work, times=5):
    """Do some work in requests, and return the texts and connects that it took."""
    statements, connects = [], []

    def executed(connection, cursor, statement, *rest):
        statements.append(statement)

    with app.app_context():
        engine = db.engine
        engine.dispose()
    event.listen(engine, "after_cursor_execute", executed)
    event.listen(engine, "connect", lambda *_: connects.append(1))
    app.add_url_rule("/work", "work", lambda: work() or "")
    for _ in range(times):
        assert app.test_client().get("/work").status_code == 200
        assert engine.pool.checkedout() == 0
    return statements, len(connects)


def reported(caplog):
    """Return the messages of the extension."""
    return [r.getMessage() for r in caplog.records if r.name == "flask_scopedsession"]


# The class


class Own(orm.Session):
    color = "green"


@pytest.mark.parametrize("class_", [None, Own])
def test_nothing_is_overridden(make, class_):
    """Between the user's class and the session is at most sessionmaker's own."""
    db, app = make(class_)
    plain = type(orm.sessionmaker(class_=class_ or orm.Session)())
    with app.app_context():
        session = db.session()
        made = type(session)
        assert isinstance(session, class_ or orm.Session)
        assert made.__bases__ == plain.__bases__
        assert vars(made).keys() == vars(plain).keys()
        methods = {name for name in dir(orm.Session) if callable(getattr(made, name))}
        assert not methods & vars(session).keys()


def test_a_first_parameter_of_another_name(make):
    class Session(orm.Session):
        def execute(self, query, *args, **kwargs):
            self.info["queries"] = self.info.get("queries", 0) + 1
            return super().execute(query, *args, **kwargs)

    db, app = make(Session)
    with app.app_context():
        assert db.session().execute(query=select(User.name)).scalar() == "ed"
        assert db.session.execute(select(User.name)).scalar() == "ed"
        assert db.session.info["queries"] == 2


def test_a_class_that_wraps_execute(make, caplog):
    """As sqlmodel's ``exec()`` does."""

    class Session(orm.Session):
        def exec(self, statement, *, params=None):
            results = super().execute(statement, params=params)
            return results.scalars() if isinstance(statement, sa.Select) else results

    db, app = make(Session)

    def work():
        assert db.session().exec(select(User.name)).one() == "ed"
        assert db.session().exec(sa.delete(User)).rowcount == 1

    serve(db, app, work, times=1)
    assert "(1 User)" in caplog.text


@pytest.fixture
def two(make_app, short_tmp):
    """Two databases, and a session class that sends all to the default one."""
    engines = {}

    class Routing(orm.Session):
        def get_bind(self, mapper=None, **_):
            return engines["default"]

    db = ScopedSession(model_class=Base, session_options={"class_": Routing})
    app = make_app(
        db,
        SQLALCHEMY_BINDS={
            name: f"sqlite:///{short_tmp}/{name}.db" for name in ("default", "audit")
        },
    )
    with app.app_context():
        engines.update(db.engines)
        for engine in engines.values():
            Base.metadata.create_all(engine)
    return db, app


def test_a_class_that_routes(two):
    """The session of another bind is bound to that bind alone."""
    db, app = two
    with app.app_context():
        audit = db.get_session("audit")
        audit.add(User(name="a"))
        audit.execute(sa.insert(User.__table__).values(name="b"))
        audit.execute(text("INSERT INTO user (name) VALUES ('c')"))
        audit.commit()
        with db.get_engine("audit").connect() as connection:
            assert set(connection.scalars(select(User.name))) == {"a", "b", "c"}
        assert db.session.scalars(select(User)).all() == []
        db.session.remove()
        with pytest.raises(SessionRemoved):
            audit.execute(text("SELECT 1"))


# close()


class Tenants(orm.Session):
    """Resets what it has set, if a transaction is open."""

    def close(self):
        if self.in_transaction():
            self.execute(text("SELECT 'RESET'"))
        super().close()


class ExecutesAfterwards(orm.Session):
    def close(self):
        super().close()
        self.execute(text("SELECT 'RESET'"))


class Commits(orm.Session):
    def close(self):
        self.commit()
        super().close()


class Flushes(orm.Session):
    def close(self):
        self.flush()
        super().close()


@pytest.mark.parametrize("class_", [Tenants, ExecutesAfterwards])
def test_close_that_executes(make, caplog, class_):
    """It really does, and costs no connection."""
    db, app = make(class_)
    statements, connects = serve(db, app, lambda: db.session.get(User, 1) and None)
    assert statements.count("SELECT 'RESET'") == 5
    assert connects == 1
    with app.app_context():
        db.session.get(User, 1)
        db.session.remove()
        db.session.get(User, 1)
    assert reported(caplog) == []


def count(db, app):
    with app.app_context(), db.engine.connect() as connection:
        return connection.scalar(select(sa.func.count()).select_from(User))


def test_close_that_commits(make, caplog):
    """What it commits is not lost, whether it was flushed before or not."""
    db, app = make(Commits)

    def work():
        db.session.add(User(name="x"))
        db.session.flush()
        db.session.add(User(name="y"))
        db.session.get(User, 1).name += "+"

    assert serve(db, app, work)[1] == 1
    assert count(db, app) == 11
    assert reported(caplog) == []
    with app.app_context():
        db.session.add(User(name="z"))
        db.session.remove()
    assert count(db, app) == 12


def test_close_that_flushes(make, caplog):
    """What it flushes is lost, and counted once."""
    db, app = make(Flushes)

    def work():
        db.session.add(User(name="x"))
        db.session.flush()
        db.session.add(User(name="y"))
        db.session.get(User, 1).name = "z"

    assert serve(db, app, work)[1] == 1
    assert count(db, app) == 1
    with app.app_context():
        (lost,) = db.snapshot().lost_work
    assert (lost.scopes_total, lost.objects) == (5, {"User": 15})


def test_close_that_commits_a_deletion(make, caplog):
    db, app = make(Commits)
    serve(db, app, lambda: db.session.delete(db.session.get(User, 1)), times=1)
    assert count(db, app) == 0
    assert reported(caplog) == []


def test_close_that_flushes_a_deletion(make, caplog):
    db, app = make(Flushes)
    serve(db, app, lambda: db.session.delete(db.session.get(User, 1)), times=1)
    assert count(db, app) == 1
    assert "(1 User)" in caplog.text


def test_close_that_raises(make, caplog):
    """The connection is thrown away; ``remove()`` raises, a teardown logs."""

    class Session(orm.Session):
        def close(self):
            raise LookupError

    db, app = make(Session)
    serve(db, app, lambda: db.session.get(User, 1) and None)
    assert reported(caplog) == ["session: close() failed in teardown"] * 5
    with app.app_context():
        session = db.session()
        session.get(User, 1)
        with pytest.raises(LookupError):
            db.session.remove()
        assert not db.session.registry.has()
        assert db.engine.pool.checkedout() == 0


@pytest.mark.parametrize("scopefunc", ["thread", lambda: 1])
def test_close_that_raises_in_other_scopes(make_app, scopefunc):
    class Session(orm.Session):
        def close(self):
            raise LookupError

    options = {"class_": Session}
    db = ScopedSession(session_options=options, scopefunc=scopefunc)
    with make_app(db).app_context():
        db.session.execute(text("SELECT 1"))
        with pytest.raises(LookupError):
            db.session.remove()
        assert not db.session.registry.has()


def test_a_listener_that_executes(make, caplog):
    """At the end of a transaction; not again by the transaction it begins."""
    db, app = make()
    begun = []

    def ended(session, transaction):
        if transaction.parent is None:
            begun.append(1)
            session.execute(text("SELECT 'RESET'"))

    event.listen(db.session, "after_transaction_end", ended)
    statements, connects = serve(db, app, lambda: db.session.get(User, 1) and None)
    assert statements.count("SELECT 'RESET'") == 5
    assert len(begun) == 10
    assert connects == 1
    with app.app_context():
        db.session.get(User, 1)
        db.session.remove()
        assert db.engine.pool.checkedout() == 0
    assert reported(caplog) == []


# Events and configure()


def test_events_at_import_time(make_app):
    """Before ``init_app()``, for every application of this extension alone."""
    db, other = ScopedSession(), ScopedSession()
    began = []
    event.listen(db.session, "after_begin", lambda session, *_: began.append(session))
    apps = [make_app(db), make_app(db)]
    for app in apps:
        with app.app_context():
            db.session.execute(text("SELECT 1"))
            assert began.pop() is db.session()
    with make_app(other).app_context():
        other.session.execute(text("SELECT 1"))
    engine = sa.create_engine("sqlite://")
    with orm.Session(engine) as session:
        session.execute(text("SELECT 1"))
    engine.dispose()
    assert began == []
    with apps[0].app_context():
        event.listen(db.session, "before_commit", began.append)
        db.session.commit()
        assert began == [db.session()]


def test_events_of_a_class_that_extensions_share(make_app):
    """A listener of one extension does not hear of the other's sessions."""
    options = {"class_": Own}
    db, other = (ScopedSession(session_options=options) for _ in range(2))
    began = []
    event.listen(db.session, "after_begin", lambda *_: began.append("db"))
    event.listen(other.session, "after_begin", lambda *_: began.append("other"))
    with make_app(other).app_context():
        other.session.execute(text("SELECT 1"))
    assert began == ["other"]


def test_configure(make_app):
    """Applies from the next session on, whether apps were made before or after."""
    db = ScopedSession()
    before = make_app(db)
    db.session.configure(expire_on_commit=False, info={"a": 1})
    for app in (before, make_app(db)):
        with app.app_context():
            assert db.session().expire_on_commit is False
            assert db.session.info == {"a": 1}
            assert db.get_session() is db.session()


# After the end


def load_lazily(session, engine, user):
    session.add(user)
    user.posts  # noqa: B018


def refresh(session, engine, user):
    session.add(user)
    session.refresh(user)


def expired(session, engine, user):
    session.add(user)
    session.expire(user)
    user.name  # noqa: B018


def flush(session, engine, user):
    session.add(User(name="x"))
    session.flush()


def commit(session, engine, user):
    session.add(User(name="x"))
    session.commit()


def in_begin(session, engine, user):
    with session.begin():
        session.execute(text("SELECT 1"))


def in_begin_nested(session, engine, user):
    with session.begin_nested():
        session.execute(text("SELECT 1"))


def bound(engine):
    return {"bind": engine}


USES = {
    "execute": lambda s, e, u: s.execute(text("SELECT 1")),
    "execute with a bind": lambda s, e, u: s.execute(
        text("SELECT 1"), bind_arguments=bound(e)
    ),
    "scalar": lambda s, e, u: s.scalar(select(User)),
    "scalars": lambda s, e, u: s.scalars(select(User)),
    "scalars with a bind": lambda s, e, u: s.scalars(
        select(User), bind_arguments=bound(e)
    ),
    "insert": lambda s, e, u: s.execute(sa.insert(User).values(name="x")),
    "connection": lambda s, e, u: s.connection(),
    "connection with a bind": lambda s, e, u: s.connection(bind_arguments=bound(e)),
    "get_bind": lambda s, e, u: s.get_bind(),
    "get": lambda s, e, u: s.get(User, 1),
    "get with a bind": lambda s, e, u: s.get(User, 1, bind_arguments=bound(e)),
    "query": lambda s, e, u: s.query(User).all(),
    "query.get": lambda s, e, u: s.query(User).count(),
    "merge": lambda s, e, u: s.merge(User(id=1, name="x")),
    "bulk": lambda s, e, u: s.bulk_save_objects([User(name="x")]),
    "bulk insert": lambda s, e, u: s.bulk_insert_mappings(User, [{"name": "x"}]),
    "lazy load": load_lazily,
    "refresh": refresh,
    "expired": expired,
    "flush": flush,
    "commit": commit,
    "begin": in_begin,
    "begin_nested": in_begin_nested,
}


@pytest.mark.parametrize("how", ["context", "remove"])
@pytest.mark.parametrize("class_", [None, Tenants])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_removed_session_takes_no_connection(make, how, class_, use):
    db, app = make(class_)
    with app.app_context():
        session, engine = db.session(), db.engine
        user = session.get(User, 1)
        if how == "remove":
            db.session.remove()
    with pytest.raises(SessionRemoved, match="This session was removed"):
        use(session, engine, user)
    assert engine.pool.checkedout() == 0


def test_a_removed_session_without_a_connection(make):
    """What takes no connection does no harm, and works as with any closed session."""
    db, app = make()
    with app.app_context():
        session = db.session()
        user = session.get(User, 1)
    with pytest.raises(orm.exc.DetachedInstanceError):
        user.posts  # noqa: B018
    with session.begin():
        session.add(User(name="x"))
        assert len(session.new) == 1
        session.expunge_all()
        session.flush()
    assert session.in_transaction() is False
    session.commit()
    session.rollback()
    session.close()
