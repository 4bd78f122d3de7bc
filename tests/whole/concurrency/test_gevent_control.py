"""Under gevent, the control thread is a native one and touches nothing of gevent's.

Each test is a script in a fresh interpreter that gevent has patched.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gevent")

Run = Callable[..., Any]

pytestmark = pytest.mark.subprocess


@pytest.fixture
def run(run_script: Run) -> Run:
    """Run a script after ``from control_script import *``; it must print "content"."""
    begin = (
        "import gevent.monkey\n"
        "gevent.monkey.patch_all()\n"
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from control_script import *\n"
        "import gevent, gevent.event, time\n"
    )

    def run(source: str) -> None:
        result = run_script(begin + textwrap.dedent(source)).check()
        assert "Exception" not in result.stderr
        assert result.stdout == "content\n"

    return run


def test_the_control_thread_answers_while_the_hub_is_blocked(run: Run) -> None:
    run("""
        observer = Observer()
        serve()
        observer.look()  # so that the observer has imported everything
        began = time.monotonic()
        observer.ask(1.5)
        gevent.monkey.get_original("time", "sleep")(2)  # no greenlet can run
        found = observer.answer()
        assert set(found["live"]) == {os.getpid()}, found
        observer.close()
        print("content")
    """)


def test_the_control_thread_has_no_hub_and_takes_no_green_lock(run: Run) -> None:
    run("""
        import gevent._hub_local, gevent.lock, gevent.thread, threading

        class Touched(Exception): pass

        def guard(cls, name):
            original = getattr(cls, name)
            def guarded(*args, **kwargs):
                if gevent.monkey.get_original("_thread", "get_ident")() != main:
                    touched.append((cls.__name__, name))
                return original(*args, **kwargs)
            setattr(cls, name, guarded)
            guards.append((cls, name, original))

        guards = []
        main = gevent.monkey.get_original("_thread", "get_ident")()
        touched, hubs, idents = [], [], set()
        guard(gevent.thread.LockType, "acquire")
        guard(threading._RLock if hasattr(threading, "_RLock") else object, "acquire")

        live = db._application_of(app).live
        reply = type(live).reply
        def observed(self, *args):
            idents.add(gevent.monkey.get_original("_thread", "get_ident")())
            try:
                return reply(self, *args)
            finally:
                hubs.append(gevent._hub_local.get_hub_if_exists())
        type(live).reply = observed

        observer = Observer()
        serve()
        with app.app_context():
            db.session.scalar(select(1))  # so that there is a holder
            assert set(observer.look()["live"]) == {os.getpid()}
        assert hubs == [None], hubs
        assert main not in idents
        assert touched == [], touched
        observer.close()
        # At the interpreter's end, locks are used when these names are gone.
        for guard in guards:
            setattr(*guard)
        print("content")
    """)


def test_suspended_greenlets_show_their_own_lines(run: Run) -> None:
    run("""
        gate = gevent.event.Event()
        arrived = []

        @app.get("/one")
        def one():
            db.session.scalar(select(1))
            arrived.append(1)
            gate.wait()  # here
            return "done"

        @app.get("/two")
        def two():
            db.session.scalar(select(1))
            arrived.append(2)
            gate.wait()  # or here
            return "done"

        # The script is the application's own code.
        places = db._application_of(app).ledger.places
        places.__init__(os.path.dirname(os.path.abspath(__file__)))
        observer = Observer()
        serve()
        greenlets = [gevent.spawn(serve, path) for path in ("/one", "/two")]
        while len(arrived) < 2:
            gevent.sleep(0.001)
        gevent.sleep(0.06)  # shorter holds are shown without a line
        found = observer.look()
        lines = open(__file__).read().splitlines()
        said = sorted(at.partition(":")[2] for at in found["at"])
        expected = sorted(
            f"{number} {name}"
            for number, line in enumerate(lines, 1)
            for name, mark in (("one", "# here"), ("two", "# or here"))
            if line.strip() == f"gate.wait()  {mark}"
        )
        assert said == expected, (said, expected)
        gate.set()
        gevent.joinall(greenlets, raise_error=True)
        observer.close()
        print("content")
    """)


def test_a_worker_that_asks_the_others_lets_its_greenlets_run(run: Run) -> None:
    """And gets its own answer, too."""
    run("""
        import socket
        serve()
        deaf = socket.socket(socket.AF_UNIX)
        deaf.bind(str(HOME / "1-00000001.sock"))
        deaf.listen(1)
        ticks = []

        def tick():
            while True:
                ticks.append(time.monotonic())
                gevent.sleep(0.01)

        ticking = gevent.spawn(tick)
        with app.app_context():
            found = db.workers(timeout=0.5)
        ticking.kill()
        assert [worker.pid for worker in found.workers] == [os.getpid()]
        assert len(ticks) > 20, len(ticks)
        deaf.close()
        print("content")
    """)


def test_forks_under_gevent(run: Run) -> None:
    run("""
        observer = Observer()
        serve()
        child = Child(serve)
        child.wait_done()
        serve()
        assert observer.live() == {os.getpid(), child.pid}
        child.end()
        observer.close()
        print("content")
    """)


def test_a_warning_of_one_greenlet_does_not_block_the_others(run: Run) -> None:
    """Logging may switch to other greenlets, which must not block on a native lock."""
    run("""
        import logging

        class Yields(logging.Handler):
            def emit(self, record):
                said.append(record.getMessage())
                gevent.sleep(0.05)

        said = []
        logging.getLogger("flask_scopedsession").addHandler(Yields())
        HOME.touch()  # a file where the directory should be

        def serve_twice():
            with app.app_context():
                db.serve_control()
                db.serve_control()

        gevent.joinall([gevent.spawn(serve_twice) for _ in range(3)], raise_error=True)
        assert len(said) == 1, said
        print("content")
    """)


def test_an_error_of_the_control_thread_is_logged_by_the_next_request(run: Run) -> None:
    """Not by the thread itself, as the locks of logging belong to the event loop."""
    run("""
        import logging
        from flask_scopedsession._control import server

        class Notes(logging.Handler):
            def emit(self, record):
                get_ident = gevent.monkey.get_original("_thread", "get_ident")
                said.append((get_ident(), record.getMessage()))

        def fail(self, endpoint):
            failures.append(1)
            server._Loop._accept = accept  # from now on as before
            raise RuntimeError("on purpose")

        said, failures = [], []
        logging.getLogger("flask_scopedsession").addHandler(Notes())
        observer = Observer()
        serve()
        accept, server._Loop._accept = server._Loop._accept, fail
        assert set(observer.look()["live"]) == {os.getpid()}
        assert failures == [1] and said == []
        serve("/idle")
        serve("/idle")
        ((thread, message),) = said
        assert thread == gevent.monkey.get_original("_thread", "get_ident")()
        assert "RuntimeError: on purpose" in message
        observer.close()
        print("content")
    """)
