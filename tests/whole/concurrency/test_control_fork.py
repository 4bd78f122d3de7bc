"""Parent and child each answer for themselves, and neither disturbs the other.

Each test is a script in a fresh interpreter, which may not give a single warning:
Python 3.12 and newer do when a process that has threads forks.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

pytestmark = pytest.mark.subprocess

#: The warning about a fork with threads would be lost as an error, so it is printed.
#: Engines that were not disposed of do not matter here.
STRICT = (
    *("-W", "error"),
    *("-W", "always::DeprecationWarning"),
    *("-W", "ignore:unclosed database:ResourceWarning"),
)


@pytest.fixture
def run(run_script: Run) -> Run:
    """Run a script after ``from control_script import *``; it must print "content"."""
    begin = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from control_script import *\n"
    )

    def run(
        source: str, *, head: str = "", python_args: tuple[str, ...] = STRICT
    ) -> None:
        script = head + begin + textwrap.dedent(source)
        result = run_script(script, python_args=python_args).check()
        assert "Exception" not in result.stderr
        assert result.stderr == "" or not python_args
        assert result.stdout == "content\n"

    return run


def test_a_fork_of_a_process_that_serves(run: Run) -> None:
    run("""
        observer = Observer()
        serve()
        me = os.getpid()
        assert observer.live() == {me}
        mine = files()

        child = Child(serve)
        child.wait_done()
        serve()  # the next piece of work starts the thread again
        assert observer.live() == {me, child.pid}
        child.end()
        assert files() == mine  # the child has removed none of them
        assert observer.live() == {me}
        observer.close()
        print("content")
    """)


@pytest.mark.parametrize("path", ["/work", "/idle"])
def test_the_parent_goes_on_after_its_next_request(run: Run, path: str) -> None:
    run(f"""
        observer = Observer()
        serve()
        child = Child(lambda: None)
        child.wait_done()
        serve({path!r})
        assert observer.live() == {{os.getpid()}}
        child.end()
        observer.close()
        print("content")
    """)


def test_the_parent_goes_on_after_its_next_session_outside_of_requests(
    run: Run,
) -> None:
    run("""
        observer = Observer()
        with app.app_context():
            db.serve_control()
        child = Child(lambda: None)
        child.wait_done()
        with app.app_context():
            db.session.scalar(select(1))
        assert observer.live() == {os.getpid()}
        child.end()
        observer.close()
        print("content")
    """)


def test_a_fork_inside_of_a_request(run: Run) -> None:
    run("""
        children = []

        @app.get("/fork")
        def fork():
            children.append(Child(lambda: None))
            return "forked"

        observer = Observer()
        serve()
        serve("/fork")
        children[0].wait_done()
        assert observer.live() == {os.getpid()}
        children[0].end()
        assert observer.live() == {os.getpid()}
        observer.close()
        print("content")
    """)


def test_a_child_that_serves_nothing_is_not_seen(run: Run) -> None:
    run("""
        observer = Observer()
        serve()
        mine = files()
        child = Child(lambda: None)
        child.wait_done()
        assert files() == mine
        serve()
        assert observer.live() == {os.getpid()}
        child.end()
        assert files() == mine
        observer.close()
        print("content")
    """)


def test_an_arbiter_starts_nothing(run: Run) -> None:
    """As with --preload: the parent loads the app, even queries, but serves nothing."""
    run("""
        observer = Observer()
        with app.app_context():
            db.session.scalar(select(1))
        assert files() == []
        children = [Child(serve) for _ in range(3)]
        for child in children:
            child.wait_done()
        assert observer.live() == {child.pid for child in children}
        for child in children:
            child.end()
        assert files() == []
        observer.close()
        print("content")
    """)


def test_a_parent_may_die_before_its_child(run: Run) -> None:
    """The child's copy of the parent's socket does not delay a command."""
    run("""
        import logging
        import time

        records = []
        logger = logging.getLogger("flask_scopedsession")
        def note(record):
            records.append(record.scopedsession_event)  # and drops the record

        logger.addFilter(note)
        observer = Observer()

        def parent():
            serve()
            child = Child(lambda: None)
            child.wait_done()
            pids = json.dumps([os.getpid(), child.pid])
            (Path(HERE) / "pids").write_text(pids)
            os.kill(os.getpid(), 9)

        first = os.fork()
        if first == 0:
            parent()
        os.waitpid(first, 0)
        pids = json.loads((Path(HERE) / "pids").read_text())
        found = observer.look(0.5)
        assert found["live"] == found["silent"] == {}, found
        assert len(files()) == 2  # a command removes nothing
        serve()  # a worker does
        for _ in range(500):
            if len(files()) == 2 and files()[0].startswith(f"{os.getpid()}-"):
                break
            time.sleep(0.01)
        else:
            raise AssertionError(files())
        serve()
        assert records == ["worker_lost"]
        os.kill(pids[1], 9)
        observer.close()
        print("content")
    """)


UNHOOKED = """
import os
import flask, sqlalchemy.orm

register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
import flask_scopedsession
os.register_at_fork = register
"""


def test_a_fork_that_runs_no_hooks(run: Run) -> None:
    """As in uWSGI. The child answers after its first work, the parent all the time."""
    run(
        """
        observer = Observer()
        serve()
        me = os.getpid()
        mine = files()
        idle_child = Child(lambda: None)
        child = Child(serve)
        for each in (idle_child, child):
            each.wait_done()
        assert observer.live() == {me, child.pid}
        assert len(files()) == 4
        idle_child.end()
        child.end()
        assert files() == mine
        assert observer.live() == {me}
        observer.close()
        print("content")
        """,
        head=UNHOOKED,
        python_args=(),
    )


def test_a_fork_that_runs_no_hooks_and_first_serves_without_a_database(
    run: Run,
) -> None:
    """It answers from then on, with one thread, whatever it does next."""
    run(
        """
        import threading

        observer = Observer()
        with app.app_context():
            db.session.scalar(select(1))

        def look():
            serve("/idle")
            (first,) = files()[:1]
            for _ in range(2):
                serve("/work")
            assert files()[:1] == [first]
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("scopedsession-control") == 1, names

        child = Child(look)
        child.wait_done()
        assert observer.live() == {child.pid}
        assert len(files()) == 2
        child.end()
        observer.close()
        print("content")
        """,
        head=UNHOOKED,
        python_args=(),
    )


def test_the_child_of_an_unhooked_fork_frees_no_lock_of_its_parent(run: Run) -> None:
    run(
        """
        from flask_scopedsession._control import directory

        serve()
        (lock,) = [name for name in files() if name.endswith(".lock")]

        def look():
            serve()
            assert directory.alive(str(HOME), lock.removesuffix(".lock"))

        child = Child(look)
        child.wait_done()
        child.end()
        print("content")
        """,
        head=UNHOOKED,
        python_args=(),
    )


def test_a_process_of_multiprocessing(run: Run) -> None:
    run("""
        import multiprocessing

        def work(connection):
            serve()
            connection.send(os.getpid())
            assert connection.recv() == "end"

        observer = Observer()
        serve()
        mine = files()
        context = multiprocessing.get_context("fork")
        ours, its = context.Pipe()
        process = context.Process(target=work, args=(its,))
        process.start()
        assert ours.recv() == process.pid
        serve()
        assert observer.live() == {os.getpid(), process.pid}
        ours.send("end")
        process.join(10)
        assert process.exitcode == 0
        assert set(mine) <= set(files())
        assert observer.live() == {os.getpid()}
        observer.close()
        print("content")
    """)


def test_forks_while_other_threads_are_at_work(run: Run) -> None:
    """During a snapshot, a start or a stop; neither child nor parent hangs."""
    run(
        """
        import signal, threading
        from flask_scopedsession._control import directory

        signal.alarm(50)
        stop = threading.Event()
        others = []
        for number in range(2):
            other = Flask(f"other{number}", root_path=HERE, instance_path=HERE)
            other.config.update(app.config)
            db.init_app(other)
            others.append(other)

        def read():
            while not stop.is_set():
                with app.app_context():
                    db.snapshot()
                    db.session.scalar(select(1))

        def come_and_go(other):
            while not stop.is_set():
                with other.app_context():
                    db.serve_control()
                    db.dispose()

        serve()
        threads = [threading.Thread(target=read) for _ in range(2)]
        threads += [
            threading.Thread(target=come_and_go, args=(other,)) for other in others
        ]
        for thread in threads:
            thread.start()

        def child_work():
            signal.alarm(10)
            serve()
            with app.app_context():
                assert db.snapshot().pid == os.getpid()

        for _ in range(5):
            child = Child(child_work)
            child.wait_done()
            child.end()
        stop.set()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        serve()
        with app.app_context():
            found = db.workers()
        assert [w.pid for w in found.workers] == [os.getpid()]
        assert len(files()) == 2, files()
        print("content")
        """,
        python_args=(),
    )


def test_the_interpreter_exits_silently_while_a_client_asks(run: Run) -> None:
    run("""
        import socket

        serve()
        (name,) = [name for name in files() if name.endswith(".sock")]
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(HOME / name))
        connection.send(b"\\0")
        connection.detach()
        print("content")
    """)


def test_a_clean_exit_leaves_no_files(run_script: Run) -> None:
    here = Path(__file__).parent
    result = run_script(
        f"""
        import sys
        sys.path.insert(0, {str(here)!r})
        from control_script import *

        serve()
        assert len(files()) == 2
        print(HOME)
        """,
        python_args=STRICT,
    ).check()
    assert list(Path(result.stdout.strip()).iterdir()) == []
    assert result.stderr == ""
