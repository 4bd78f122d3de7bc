"""When a process answers, when it does not, and that both leave the app alone."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.globals import app_ctx
from inside import directory
from inside import encode
from inside import endpoint as endpoint_module
from inside import SERVER
from readings import a_shared_use
from sqlalchemy import select
from users import as_root
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession._live.reader import MOST
from flask_scopedsession._live.survey import survey_directory
from flask_scopedsession.cli import COMMANDS
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.snapshot import ThreadPlace

MakeApp = Callable[..., Flask]


@pytest.fixture
def home(short_tmp: Path) -> Path:
    return short_tmp / "run"


@pytest.fixture
def db() -> ScopedSession[Any]:
    return ScopedSession()


@pytest.fixture
def serving(make_app: MakeApp, db: ScopedSession[Any], home: Path) -> MakeApp:
    """Make an app that serves ``/``, outside of ``TESTING``."""

    def make(**config: Any) -> Flask:
        options = {"TESTING": False, "SCOPEDSESSION_CONTROL_DIR": str(home)}
        app = make_app(db, **{**options, **config})
        app.add_url_rule("/", view_func=lambda: str(db.session.scalar(select(1))))
        return app

    return make


@pytest.fixture(autouse=True)
def nothing_serves() -> Iterator[None]:
    assert SERVER.ids() == frozenset()
    yield
    SERVER.close()


def visit(app: Flask) -> None:
    assert app.test_client().get("/").status_code == 200


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if "scopedsession" in t.name]


# When


def test_it_starts_at_the_end_of_the_first_request_and_not_before(
    serving: MakeApp, db: ScopedSession[Any], home: Path
) -> None:
    app = serving()
    with app.app_context():
        db.session.scalar(select(1))
        db.snapshot()
        db.workers()
    assert not home.exists()
    assert threads() == []
    visit(app)
    assert len(list(home.iterdir())) == 2
    assert len(threads()) == 1
    with app.app_context():
        (worker,) = db.workers().workers
        assert (worker.pid, worker.role, worker.source) == (os.getpid(), "web", "live")
        db.dispose()
    assert list(home.iterdir()) == []
    assert threads() == []


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"SERVER_SOFTWARE": "gunicorn/27.0.1"}, "gunicorn/27.0.1"),
        # uWSGI does not set what WSGI takes over from CGI.
        ({"uwsgi.version": b"2.0.30"}, "uWSGI/2.0.30"),
        ({}, None),
    ],
    ids=["any", "uwsgi", "unknown"],
)
def test_the_server_that_it_runs_under(
    serving: MakeApp, db: ScopedSession[Any], environ: Any, name: str | None
) -> None:
    app = serving()
    app.test_client().get("/", environ_overrides=environ)
    with app.app_context():
        assert db.snapshot().server == name


def test_later_requests_cost_nothing_more(serving: MakeApp) -> None:
    from flask import request_tearing_down

    app = serving()
    before = len(request_tearing_down.receivers)
    visit(app)
    assert len(request_tearing_down.receivers) == before - 1


def test_not_in_tests(serving: MakeApp, home: Path) -> None:
    app = serving(TESTING=True)
    visit(app)
    assert not home.exists()
    app.testing = False  # read when it would start
    visit(app)
    assert home.exists()


def test_not_in_tests_by_text(serving: MakeApp, home: Path) -> None:
    """From the environment, ``TESTING`` is text: ``"False"`` is not true."""
    visit(serving(TESTING="False"))
    assert home.exists()


def test_in_tests_if_asked_for(serving: MakeApp, home: Path) -> None:
    visit(serving(TESTING=True, SCOPEDSESSION_CONTROL=True))
    assert home.exists()


@pytest.mark.parametrize(
    "config",
    [{"SCOPEDSESSION_CONTROL": False}, {"SCOPEDSESSION_TRACKING": False}],
)
def test_not_when_switched_off_and_the_survey_says_so(
    serving: MakeApp, db: ScopedSession[Any], home: Path, config: dict[str, Any]
) -> None:
    app = serving(**config)
    visit(app)
    with app.app_context():
        db.serve_control()
        searched = db.workers().searched
    assert not home.exists()
    assert f"{next(iter(config))} is off" in [each.error for each in searched]


def test_the_environment_always_wins(
    serving: MakeApp,
    db: ScopedSession[Any],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCOPEDSESSION_CONTROL", "0")
    app = serving(SCOPEDSESSION_CONTROL=True)
    visit(app)
    with app.app_context():
        db.serve_control()
    assert not home.exists()


def test_switched_off_here_the_others_are_asked_all_the_same(
    serving: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = serving()
    visit(app)
    monkeypatch.setenv("SCOPEDSESSION_CONTROL", "0")
    other: ScopedSession[Any] = ScopedSession()
    command = Flask("tests_app", root_path=app.root_path, instance_path=app.root_path)
    command.config.update(app.config)
    other.init_app(command)
    with command.app_context():
        found = other.workers()
    assert [worker.pid for worker in found.workers] == [os.getpid()]
    assert [each.error for each in found.searched] == [None]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_commands_start_no_listener(serving: MakeApp, home: Path, command: Any) -> None:
    app = serving()
    assert app.test_cli_runner().invoke(args=[command.name]).exit_code == 0
    assert not home.exists()
    assert threads() == []


def test_a_job_serves_after_serve_control(
    serving: MakeApp, db: ScopedSession[Any]
) -> None:
    app = serving()
    with app.app_context():
        db.serve_control()
        db.serve_control("web")  # it has a role already
        (worker,) = db.workers().workers
        assert worker.role == "job"
        with pytest.raises(ConfigError, match="role must be one of"):
            db.serve_control("chief")  # type: ignore[arg-type]
    visit(app)
    with app.app_context():
        assert [w.role for w in db.workers().workers] == ["job"]


def test_a_job_serves_in_tests_too_if_it_says_so(
    serving: MakeApp, db: ScopedSession[Any], home: Path
) -> None:
    with serving(TESTING=True).app_context():
        db.serve_control()
    assert home.exists()


# Where


def test_a_relative_directory_is_in_the_instance_folder(
    serving: MakeApp, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command finds it from wherever it is started."""
    app = serving(SCOPEDSESSION_CONTROL_DIR="control")
    monkeypatch.chdir("/")
    visit(app)
    assert len(list((short_tmp / "control").iterdir())) == 2


def test_two_apps_in_one_directory_do_not_see_each_other(
    serving: MakeApp, db: ScopedSession[Any], home: Path
) -> None:
    apps = [serving(SCOPEDSESSION_NAME=name) for name in ("one", "two")]
    for app in apps:
        visit(app)
    assert len(list(home.iterdir())) == 4
    seen = []
    for app in apps:
        with app.app_context():
            (worker,) = db.workers().workers
            seen.append(worker.id)
    assert set(seen) == SERVER.ids()
    everybody = survey_directory(str(home), 2.0)
    assert {worker.id for worker in everybody.workers} == SERVER.ids()


@as_root
def test_root_searches_every_user_s_directory_and_trusts_its_owner_only(
    serving: MakeApp, db: ScopedSession[Any], short_tmp: Path
) -> None:
    app = serving(SCOPEDSESSION_CONTROL_DIR=None)
    name = f"tests_app:{short_tmp}"
    for uid, owner in ((1001, 1001), (1002, 1003), (1004, 1004)):
        leaf = Path(directory.default_path(name, uid))
        if uid != 1004:  # this user has no such deployment
            leaf.mkdir(parents=True)
            leaf.chmod(0o700)
            os.chown(leaf, owner, owner)
        leaf.parent.mkdir(exist_ok=True)
        leaf.parent.chmod(0o700)
        os.chown(leaf.parent, owner, owner)
    with app.app_context():
        searched = {each.dir: each.error for each in db.workers().searched}
    mine, first, second = searched
    assert searched[mine] == "does not exist"
    assert searched[first] is None
    assert "belongs to uid 1003, not to uid 1002" in str(searched[second])


# Refusals


def refusals(home: Path) -> dict[str, tuple[str, Callable[[], object]]]:
    return {
        "open": ("open to others", lambda: (home.mkdir(), home.chmod(0o777))),
        "link": ("symbolic link", lambda: home.symlink_to(home.parent)),
        "foreign": ("uid 65534", lambda: (home.mkdir(), os.chown(home, 65534, 65534))),
        "file": ("not a directory", home.touch),
    }


KINDS = [
    pytest.param(kind, marks=as_root if kind == "foreign" else ())
    for kind in refusals(Path())
]


def expect_one_warning(
    app: Flask, db: ScopedSession[Any], caplog: pytest.LogCaptureFixture
) -> str:
    for _ in range(3):
        visit(app)
        with app.app_context():
            db.serve_control()
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.name == "flask_scopedsession"
    assert "SCOPEDSESSION_CONTROL_DIR" in record.getMessage()
    assert "uid " in record.getMessage()
    assert threads() == []
    return record.getMessage()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unsafe_directory_is_one_warning_and_the_command_says_why(
    serving: MakeApp,
    db: ScopedSession[Any],
    home: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    words, make = refusals(home)[kind]
    make()
    app = serving()
    message = expect_one_warning(app, db, caplog)
    assert words in message
    assert str(home) in message
    with app.app_context():
        (searched,) = db.workers().searched
    assert words in str(searched.error)
    result = app.test_cli_runner().invoke(args=["pool-status"])
    assert result.exit_code == 0
    assert words in result.output


@pytest.mark.parametrize(
    ("inside", "words"),
    [("file/run", "Not a directory"), ("x" * 100, "too long for a Unix socket")],
)
def test_a_directory_that_cannot_be_is_one_warning_and_the_command_says_why(
    serving: MakeApp,
    db: ScopedSession[Any],
    short_tmp: Path,
    caplog: pytest.LogCaptureFixture,
    inside: str,
    words: str,
) -> None:
    (short_tmp / "file").touch()
    app = serving(SCOPEDSESSION_CONTROL_DIR=str(short_tmp / inside))
    assert words in expect_one_warning(app, db, caplog)
    result = app.test_cli_runner().invoke(args=["pool-status"])
    assert result.exit_code == 0
    assert words in result.output


def test_a_read_only_directory_is_one_warning(
    serving: MakeApp,
    db: ScopedSession[Any],
    home: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(directory, "_create", fail)
    message = expect_one_warning(serving(), db, caplog)
    assert "Read-only file system" in message
    assert str(home) in message


# Last snapshots

LIMIT = 16 * 1024


def test_a_last_snapshot_has_no_sql_and_no_stacks_and_is_bounded(
    serving: MakeApp, db: ScopedSession[Any], short_tmp: Path
) -> None:
    app = serving(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/x.db",
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 100},
        SCOPEDSESSION_STACKS=True,
        SCOPEDSESSION_SHOW_SQL=True,
        SCOPEDSESSION_HELD_LONG_AFTER=0.1,
    )
    live = db._application_of(app).live
    assert live.last_snapshot("1-00000001", LIMIT) is None
    with app.app_context():
        connections = [db.engine.connect() for _ in range(100)]
        for connection in connections:
            connection.exec_driver_sql("SELECT 'secret'")
        wait_until(lambda: live.last_snapshot("1-00000001", LIMIT))
        content = live.last_snapshot("1-00000001", LIMIT)
        assert content is not None
        full = json.loads(live.reply("1-00000001", 1 << 30))
        short = json.loads(live.reply("1-00000001", LIMIT))
        for connection in connections:
            connection.close()
    assert len(content) <= LIMIT
    worker = json.loads(content)["worker"]
    (pool,) = worker["pools"]
    assert pool["used"] == 100
    assert 10 < len(pool["holders"]) < 100
    assert worker["truncated"] is True
    assert {holder["sql"] for holder in pool["holders"]} == {None}
    assert {holder["stack"] for holder in pool["holders"]} == {None}
    assert "secret" not in content.decode()
    assert len(full["worker"]["pools"][0]["holders"]) == 100
    assert "secret" in json.dumps(full)
    assert short["worker"]["truncated"] is True


def test_a_last_snapshot_of_many_binds_has_the_pools_in_trouble(
    serving: MakeApp, db: ScopedSession[Any], short_tmp: Path
) -> None:
    """All of them would be too much, and commands do not read what is too much."""
    names = [f"tenant_{number}" for number in range(60)]
    app = serving(
        SQLALCHEMY_BINDS={name: f"sqlite:///{short_tmp}/{name}.db" for name in names},
        SCOPEDSESSION_HELD_LONG_AFTER=0.1,
    )
    live = db._application_of(app).live
    with app.app_context():
        long = db.get_engine("tenant_50").connect()
        wait_until(lambda: live.last_snapshot("1-00000001", LIMIT))
        short = db.get_engine("tenant_40").connect()
        content = live.last_snapshot("1-00000001", LIMIT)
        whole = json.loads(live.reply("1-00000001", 1 << 30))["worker"]
        long.close()
        short.close()
    assert content is not None
    assert len(content) <= LIMIT
    worker = json.loads(content)["worker"]
    binds = [pool["bind"] for pool in worker["pools"]]
    assert {"tenant_40", "tenant_50"} < set(binds) < set(names)
    assert binds == sorted(binds, key=names.index)
    assert worker["truncated"] is True
    assert [pool["bind"] for pool in whole["pools"]] == names
    assert whole["truncated"] is False


def test_a_reply_is_bounded_whatever_names_threads_have(
    serving: MakeApp, db: ScopedSession[Any]
) -> None:
    """The pool that holds most is still told, without what makes it too long."""
    app = serving()
    application = db._application_of(app)
    endless = "x" * LIMIT
    shared = a_shared_use(threads=(ThreadPlace(endless),))

    def hold() -> None:
        with app.app_context():
            db.session.execute(select(1))
            application.ledger.shared.append(shared)
            contents.append(application.live.reply("1-00000001", LIMIT))

    contents: list[bytes] = []
    thread = threading.Thread(target=hold, name=endless)
    thread.start()
    thread.join()
    (content,) = contents
    assert len(content) <= LIMIT
    worker = json.loads(content)["worker"]
    assert [pool["used"] for pool in worker["pools"]] == [1]
    assert worker["recent_shared"] == []
    assert worker["truncated"] is True


@pytest.mark.parametrize("wanted", [True, False])
def test_a_last_snapshot_is_written_if_wanted(
    serving: MakeApp,
    db: ScopedSession[Any],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool,
) -> None:
    looked = threading.Event()
    tick = endpoint_module.Endpoint.tick

    def counted(self: Any, *args: Any) -> None:
        tick(self, *args)
        looked.set()

    monkeypatch.setattr(endpoint_module.Endpoint, "tick", counted)
    app = serving(SCOPEDSESSION_HELD_LONG_AFTER=0.1, SCOPEDSESSION_SNAPSHOT_FILE=wanted)
    with app.app_context():
        connection = db.engine.connect()
        wait_until(lambda: db.snapshot().pools[0].held_long == 1)
        db.serve_control()
        assert looked.wait(10)
        assert bool(list(home.glob("*.json"))) is wanted
        connection.close()


# Errors of the thread that answers


@pytest.mark.parametrize("how", ["request", "session"])
def test_a_snapshot_that_fails_is_logged_once_by_the_next_piece_of_work(
    serving: MakeApp,
    db: ScopedSession[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    app = serving()
    app.add_url_rule("/idle", "idle", lambda: "no database")
    visit(app)

    def fail() -> Any:
        raise TypeError("on purpose")

    live = db._application_of(app).live
    monkeypatch.setattr(live.reader, "pools", fail)
    monkeypatch.setattr(SERVER, "_failed", set())
    with app.app_context():
        assert db.workers().silent[0].reason == "could not read its ledger"
    assert caplog.records == []
    for _ in range(2):
        if how == "request":
            assert app.test_client().get("/idle").status_code == 200
        else:
            with app.app_context():
                db.session()
    (record,) = caplog.records
    assert "TypeError: on purpose" in record.getMessage()
    assert vars(record)["scopedsession_pid"] == os.getpid()


# Elsewhere


@pytest.mark.subprocess
def test_without_what_unix_has_all_works_but_the_live_view(
    run_script: Callable[..., Any],
) -> None:
    """As on Windows."""
    run_script("""
        import os, socket, sys

        sys.modules["fcntl"] = None
        del os.register_at_fork, socket.AF_UNIX, os.geteuid, os.getppid
        for name in ("getuid", "getgid", "fork", "mkfifo", "fchmod"):
            delattr(os, name)

        from flask import Flask
        from sqlalchemy import select
        from flask_scopedsession import ScopedSession

        db = ScopedSession()
        app = Flask("windows", root_path=os.getcwd(), instance_path=os.getcwd())
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        db.init_app(app)
        app.add_url_rule("/", view_func=lambda: str(db.session.scalar(select(1))))

        assert app.test_client().get("/").text == "1"
        with app.app_context():
            db.serve_control()
            assert db.snapshot().ppid == 0
            assert db.workers().workers == ()
            (searched,) = db.workers().searched
            assert "no live view" in searched.error, searched
        runner = app.test_cli_runner()
        for name in ("pool-status", "session-status"):
            for more in ([], ["--control-dir", "run"]):
                result = runner.invoke(args=[name, *more])
                assert result.exit_code == 0, result.output
                assert "no live view" in result.output, result.output
                assert runner.invoke(args=[name, "--check", *more]).exit_code == 69
        import threading
        assert threading.active_count() == 1
    """).check()


def test_a_snapshot_has_at_most_250_sessions(make_app: Callable[..., Flask]) -> None:
    """It says that it left some out, and encodes within one switch interval.

    The one call that encodes it keeps the interpreter's lock throughout.
    """
    db = ScopedSession()
    app = make_app(db)
    sessions = []
    with app.app_context():
        for _ in range(MOST + 1):
            whole = db.snapshot() if len(sessions) == MOST else None
            app.app_context().push()
            sessions.append(db.session())
        worker = db.snapshot()
        for _ in range(MOST + 1):
            db.session.remove()
            app_ctx._get_current_object().pop()
    assert whole is not None
    assert len(whole.sessions) == MOST == 250
    assert not whole.truncated
    assert len(worker.sessions) == MOST
    assert worker.truncated
    message = worker.to_dict()
    assert min(_seconds_to_encode(message) for _ in range(20)) < sys.getswitchinterval()


def test_a_snapshot_has_at_most_250_holders_of_a_pool(
    make_app: MakeApp, db: ScopedSession[Any], sqlite_url: str
) -> None:
    """It says that it left some out, and still how many there are."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={"max_overflow": -1},
    )
    with app.app_context(), ExitStack() as held:
        for _ in range(MOST):
            held.enter_context(db.engine.connect())
        assert not db.snapshot().truncated
        held.enter_context(db.engine.connect())
        worker = db.snapshot()
    assert worker.pools[0].used == MOST + 1
    assert len(worker.pools[0].holders) == MOST
    assert worker.truncated


def test_a_snapshot_says_that_it_left_waiters_out(
    make_app: MakeApp,
    db: ScopedSession[Any],
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0},
    )

    def wait() -> None:
        with app.app_context():
            db.session.execute(select(1))

    monkeypatch.setattr("flask_scopedsession._live.reader.MOST", 2)
    threads = []
    with app.app_context(), db.engine.connect():
        for waiting in (1, 2, 3):
            threads.append(threading.Thread(target=wait))
            threads[-1].start()
            wait_until(lambda: db.snapshot().pools[0].pending == waiting)  # noqa: B023
            assert db.snapshot().truncated is (waiting > 2)
    for thread in threads:
        thread.join()


def test_configured_pools_beside_a_worker_that_is_gone(
    serving: MakeApp, db: ScopedSession[Any], home: Path
) -> None:
    """No worker has answered, whatever one has left behind."""
    app = serving(SCOPEDSESSION_HELD_LONG_AFTER=0.1)
    id = f"{os.getpid()}-00000001"
    with app.app_context():
        with db.engine.connect():
            live = db._application_of(app).live
            wait_until(lambda: live.last_snapshot(id, LIMIT))
            content = live.last_snapshot(id, LIMIT)
        assert content is not None
        home.mkdir(0o700)
        directory.write_last(str(home), id, content)
        survey = db.workers()
        assert [worker.state for worker in survey.workers] == ["gone"]
        assert [pool.bind for pool in survey.configured] == ["default"]
        db.serve_control()
        assert db.workers().configured == ()


def _seconds_to_encode(message: object) -> float:
    began = time.thread_time()
    encode(message)
    return time.thread_time() - began


def test_a_session_that_has_not_begun_needs_no_rollback(
    make_app: MakeApp, db: ScopedSession[Any]
) -> None:
    """With ``autobegin=False``, SQLAlchemy calls it inactive until ``begin()``."""
    app = make_app(db, SQLALCHEMY_SESSION_OPTIONS={"autobegin": False})
    with app.app_context():
        session = db.session()
        assert [each.state for each in db.snapshot().sessions] == ["idle"]
        session.begin()
        assert [each.state for each in db.snapshot().sessions] == ["begun"]
