"""After a fork, the child never touches the parent's sockets.

Each script runs in a new interpreter, with warnings as errors.
"""

from __future__ import annotations

import textwrap

import pytest

pytestmark = pytest.mark.subprocess

HEAD = """
import ctypes, os, sys, traceback
from flask import Flask
from sqlalchemy import select, text
from flask_scopedsession import ScopedSession

db = ScopedSession()
app = Flask("forks")
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 2}
db.init_app(app)

def child(work, fork=os.fork):
    "Run `work` in a fork; return what it returned, as text."
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            os.write(write, str(work()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os.close(write)
            if EXIT_NICELY:
                sys.exit(code)
            os._exit(code)
    os.close(write)
    with open(read) as answer:
        found = answer.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    return found

EXIT_NICELY = False
fork_without_hooks = ctypes.PyDLL(None).fork
"""

PID = 'text("SELECT pg_backend_pid()")'


@pytest.fixture
def fork(run_script, pg_url):
    def run(body, *, url=pg_url, **kwargs):
        source = HEAD + textwrap.dedent(body)
        # "error" alone does not catch the warning about a fork with threads.
        strict = ("-W", "error", "-W", "always::DeprecationWarning")
        result = run_script(source, url, python_args=strict, **kwargs)
        assert (result.code, result.stderr) == (0, ""), result.stderr
        return result.stdout.split()

    return run


def test_the_child_opens_its_own_connection(fork):
    """The child neither uses nor closes pooled connections of the parent."""
    mine, childs, mine_again = fork(
        f"""
        def backend():
            with app.app_context():
                return db.session.scalar({PID})
        print(backend(), child(backend), backend())
        """
    )
    assert mine == mine_again != childs


@pytest.mark.parametrize("nicely", [True, False], ids=["sys.exit", "os._exit"])
def test_the_parents_transaction_continues(fork, nicely):
    """A fork during a transaction does not disturb the parent's transaction."""
    (answer,) = fork(
        f"""
        EXIT_NICELY = {nicely}
        with app.app_context():
            db.session.execute(text("CREATE TABLE t (x int)"))
            session = db.session()
            def work():
                assert not db.session.registry.has()
                assert db.session() is not session
                db.session.execute(text("SELECT 1"))
                db.session.remove()
                import gc; gc.collect()
                return "fine"
            assert child(work) == "fine"
            db.session.execute(text("INSERT INTO t VALUES (42)"))
            db.session.commit()
            print(db.session.scalar(text("SELECT x FROM t")))
        """
    )
    assert answer == "42"


def test_without_tracking(fork):
    """The same without tracking."""
    (answer,) = fork(
        """
        EXIT_NICELY = True
        app = Flask("untracked")
        app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
        app.config["SCOPEDSESSION_TRACKING"] = False
        db.init_app(app)
        with app.app_context():
            session = db.session()
            session.execute(text("CREATE TABLE t (x int)"))
            def work():
                assert db.session() is not session
                return db.session.scalar(text("SELECT 1"))
            assert child(work) == "1"
            session.execute(text("INSERT INTO t VALUES (42)"))
            session.commit()
            print(session.scalar(text("SELECT x FROM t")))
        """
    )
    assert answer == "42"


def test_the_childs_ledger_is_its_own(fork):
    """Parent and child do not count each other's connections."""
    answers = fork(
        """
        def counts():
            with app.app_context():
                pool = db.snapshot().pools[0]
                return f"{pool.used},{pool.open},{pool.checkouts_total}"
        def work():
            before = counts()
            with app.app_context():
                db.session.execute(text("SELECT 1"))
                return before + "|" + counts()
        with app.app_context():
            db.session.execute(text("SELECT 1"))
            print(child(work), counts())
        """
    )
    assert answers == ["0,0,0|1,1,1", "1,1,1"]


def test_nested_contexts(fork):
    """The child drops the sessions of outer contexts, too."""
    (answer,) = fork(
        """
        with app.app_context():
            outer = db.session()
            outer.execute(text("SELECT 1"))
            inner_context = app.app_context()
            inner_context.push()
            db.session.execute(text("SELECT 1"))
            def work():
                assert not db.session.registry.has()
                inner_context.pop()
                assert not db.session.registry.has()
                return db.session() is not outer
            print(child(work))
            inner_context.pop()
            assert db.session() is outer
            assert outer.scalar(text("SELECT 1")) == 1
        """
    )
    assert answer == "True"


def test_thread_scope(fork):
    """The child drops thread-local sessions, too."""
    (answer,) = fork(
        """
        db = ScopedSession(scopefunc="thread")
        app = Flask("threads")
        app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
        db.init_app(app)
        with app.app_context():
            session = db.session()
            session.execute(text("SELECT 1"))
            print(child(lambda: db.session() is not session))
            assert db.session() is session
            assert session.scalar(text("SELECT 1")) == 1
        """
    )
    assert answer == "True"


def test_a_fork_that_runs_no_hook(fork):
    """As uWSGI does it: each checkout and each new session compares the process ID."""
    mine, childs, mine_again = fork(
        f"""
        def backend():
            with app.app_context():
                return db.session.scalar({PID})
        print(backend(), child(backend, fork_without_hooks), backend())
        """
    )
    assert childs.isdigit()
    assert mine == mine_again != childs


def test_a_fork_that_runs_no_hook_and_core(fork):
    """The same without a session: the pool notices."""
    mine, childs, mine_again = fork(
        f"""
        with app.app_context():
            engine = db.engine
        def backend():
            with engine.connect() as connection:
                return connection.scalar({PID})
        print(backend(), child(backend, fork_without_hooks), backend())
        """
    )
    assert childs.isdigit()
    assert mine == mine_again != childs


@pytest.mark.parametrize("slow", ["dispose", "reset"])
def test_threads_that_begin_at_once_in_a_fork_that_runs_no_hook(fork, slow):
    """The first thread resets everything, and the others wait for it."""
    mine, *childs = fork(
        f"""
        import threading, time
        def backend():
            with app.app_context():
                return db.session.scalar({PID})
        with app.app_context():
            ledger = db._application_of(app).ledger
            slow = {{"dispose": db.engine, "reset": ledger}}[{slow!r}]
        def slowly(*args, **kwargs):
            time.sleep(0.3)
            return fast(*args, **kwargs)
        fast = getattr(slow, {slow!r})
        print(backend())
        sys.stdout.flush()
        pid = fork_without_hooks()
        if pid == 0:
            setattr(slow, {slow!r}, slowly)
            together = threading.Barrier(3)
            def visit():
                together.wait(10)
                try:
                    found = backend()
                except BaseException as error:
                    found = type(error).__name__
                os.write(1, f"{{found}}\\n".encode())
            threads = [threading.Thread(target=visit) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            os._exit(0)
        os.waitpid(pid, 0)
        """,
        timeout=30,
    )
    assert len(childs) == 3
    assert all(each.isdigit() for each in childs), childs
    assert mine not in childs


def test_the_parents_pool_is_never_the_childs(fork):
    """Not even for a thread that looked it up before the reset."""
    mine, childs = fork(
        f"""
        def backend(pool):
            proxied = pool.connect()
            with proxied.cursor() as cursor:
                found = cursor.execute("SELECT pg_backend_pid()").fetchone()[0]
            proxied.close()
            return found
        with app.app_context():
            pool = db.engine.pool
        def childs_backend():
            with app.app_context():
                db.session.scalar({PID})
            return backend(pool)
        print(backend(pool), child(childs_backend, fork_without_hooks))
        """
    )
    assert mine != childs


def test_a_fork_that_runs_no_hook_without_tracking(fork):
    """Without our pool class, each new session notices the fork."""
    mine, childs, mine_again = fork(
        f"""
        app = Flask("untracked")
        app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
        app.config["SCOPEDSESSION_TRACKING"] = False
        db.init_app(app)
        def backend():
            with app.app_context():
                return db.session.scalar({PID})
        print(backend(), child(backend, fork_without_hooks), backend())
        """
    )
    assert mine == mine_again != childs


@pytest.mark.parametrize(
    ("out", "tracking"),
    [
        ("session", True),
        ("session", False),
        ("raw", True),
        ("nothing", True),
        ("nothing", False),
    ],
)
@pytest.mark.parametrize("nicely", [True, False], ids=["sys.exit", "os._exit"])
def test_nothing_inherited_is_ever_closed(fork, short_tmp, nicely, out, tracking):
    """Neither at collection nor at exit: a driver could end the server's session."""
    log = short_tmp / "touched"
    (parent, child), touched = (
        fork(
            f"""
            import gc, sqlite3
            class Connection(sqlite3.Connection):
                def touched(self):
                    with open({str(log)!r}, "a") as file:
                        file.write(f"{{os.getpid()}}\\n")
                def rollback(self):
                    self.touched()
                    super().rollback()
                def close(self):
                    self.touched()
                    super().close()
                def __del__(self):
                    self.touched()
            EXIT_NICELY = {nicely}
            app = Flask("touches")
            app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
            app.config["SCOPEDSESSION_TRACKING"] = {tracking}
            app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {{
                "connect_args": {{"factory": Connection}}
            }}
            db.init_app(app)
            with app.app_context():
                db.engine.connect().close()
                raw = None
                if {out!r} == "session":
                    db.session.execute(text("SELECT 1"))
                elif {out!r} == "raw":
                    raw = db.engine.raw_connection()
                os.unlink({str(log)!r})
                def work():
                    global raw
                    raw = None
                    db.session.remove()
                    gc.collect()
                    return os.getpid()
                print(os.getpid(), child(work))
                raw = None
            db.dispose(app)
            """,
            url=f"sqlite:///{short_tmp}/x.db",
        ),
        log.read_text().split(),
    )
    assert parent in touched
    assert child not in touched


#: Where another thread is during the fork, and the locks that it holds there.
HELD = {
    "ledger": "[state.ledger._lock, account.meters._lock]",
    "pool": "[db.engine.pool._overflow_lock, db.engine.pool._pool.mutex]",
    "live view": "[state.live._lock]",
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_forking_while_another_thread_is_inside(fork, held):
    """A lock that another thread holds during the fork does not block the child."""
    (answer,) = fork(
        f"""
        import threading, warnings
        from contextlib import ExitStack
        # The threads are this test's, not ours.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        with app.app_context():
            state = db._application_of(app)
            account = state.accounts["default"]
            locks = {held}
        inside, leave = threading.Event(), threading.Event()
        def hold_the_locks():
            with ExitStack() as stack:
                for lock in locks:
                    stack.enter_context(lock)
                inside.set()
                leave.wait(20)
        thread = threading.Thread(target=hold_the_locks, daemon=True)
        thread.start()
        assert inside.wait(10)
        def work():
            from collections import Counter
            from flask_scopedsession._scopes.scope import Responsible
            with app.app_context():
                db.session.execute(text("SELECT 1"))
                state.ledger.count_lost(Responsible(), Counter())
                db.serve_control()
                found = db.snapshot().pools[0].checkouts_total
                db.dispose()
            return found
        print(child(work))
        leave.set()
        thread.join()
        """,
        timeout=30,
    )
    assert answer == "1"


def test_forking_while_others_check_out_and_in(fork):
    """Wherever they are at that moment, child and parent work."""
    (answer,) = fork(
        f"""
        import signal, threading, warnings
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        over = threading.Event()
        failed = []
        def visit():
            with app.app_context():
                return db.session.scalar({PID})
        def visits():
            try:
                while not over.is_set():
                    visit()
            except BaseException as error:
                failed.append(error)
        threads = [threading.Thread(target=visits) for _ in range(4)]
        for thread in threads:
            thread.start()
        def work():
            signal.alarm(40)
            return visit()
        found = {{child(work) for _ in range(20)}}
        over.set()
        for thread in threads:
            thread.join(10)
        assert not failed, failed
        assert len(found) == 20  # each its own
        with app.app_context():
            assert db.snapshot().pools[0].used == 0
        print("fine")
        """,
        timeout=60,
    )
    assert answer == "fine"


def test_multiprocessing(fork):
    """A pool of forked processes works, and the parent keeps its session."""
    answers = fork(
        f"""
        import multiprocessing
        def backend(_):
            with app.app_context():
                return db.session.scalar({PID})
        with app.app_context():
            mine = db.session.scalar({PID})
            with multiprocessing.get_context("fork").Pool(2) as pool:
                others = pool.map(backend, range(4))
                pool.close(); pool.join()
            assert db.session.scalar({PID}) == mine
            print(mine in others, len(set(others)))
        """
    )
    assert answers[0] == "False"
