"""Generate ``docs/records/``: one record of each event, as a line of JSON.

``python docs/records.py`` makes one mistake after another in a small application, with
logging configured as the page on logs says. It has the same requirements as the tests.
Only the names of folders are replaced in what was logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import signal
import sys
import tempfile
import threading
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from io import StringIO
from pathlib import Path

DOCS = Path(__file__).resolve().parent
RECORDS = DOCS / "records"
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tests" / "support")]

from flask import Flask  # noqa: E402
from inside import application_of  # noqa: E402
from inside import SERVER  # noqa: E402
from sqlalchemy import create_engine  # noqa: E402
from sqlalchemy import exc as sa_exc  # noqa: E402
from sqlalchemy import text  # noqa: E402
from sqlalchemy.orm import DeclarativeBase  # noqa: E402
from sqlalchemy.orm import Mapped  # noqa: E402
from sqlalchemy.orm import mapped_column  # noqa: E402
from threads import Working  # noqa: E402

from flask_scopedsession import ScopedSession  # noqa: E402
from flask_scopedsession.metrics import prometheus  # noqa: E402

LOGGER = logging.getLogger("flask_scopedsession")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


db: ScopedSession[t.Any] = ScopedSession(model_class=Base)
kept: list[t.Any] = []
went_on = threading.Event()


@contextmanager
def shop(folder: Path, **config: t.Any) -> Iterator[Flask]:
    """Make the application, with a database and control sockets of its own."""
    folder.mkdir()
    app = Flask("shop", root_path=str(DOCS), instance_path=str(folder))
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.sqlite3"
    app.config["SCOPEDSESSION_CONTROL_DIR"] = str(folder / "run")
    app.config.update(config)
    app.logger.setLevel(logging.CRITICAL)
    db.init_app(app)
    app.add_url_rule("/orders", "orders.index", list_orders)
    app.add_url_rule("/orders", "orders.add", add_order, methods=["POST"])
    app.add_url_rule("/report", "report", report)
    app.add_url_rule("/keep", "keep", keep)
    app.add_url_rule("/share", "share", share)
    app.add_url_rule("/broken", "broken", broken)
    # Not through the extension, whose records a slow disk would cause.
    engine = create_engine(f"sqlite:///{folder}/shop.sqlite3")
    Base.metadata.create_all(engine)
    engine.dispose()
    went_on.clear()
    try:
        yield app
    finally:
        while kept:
            kept.pop().close()
        db.dispose(app)


# What applications do


def list_orders() -> str:
    for number in range(5):
        db.session.scalar(
            text("SELECT note FROM 'order' WHERE id = :id"), {"id": number}
        )
    return ""


def add_order() -> str:
    db.session.add(Order(note="gift"))
    return ""


def report() -> str:
    db.session.scalar(text("SELECT count(*) FROM 'order'"))
    time.sleep(0.15)  # a call to a mail server
    return ""


def keep() -> str:
    kept.append(db.engine.connect())
    return ""


def share() -> str:
    connection = db.session.connection()
    driver: t.Any = connection.connection.driver_connection
    running = threading.Event()

    def wait() -> int:
        running.set()
        return int(went_on.wait(10))

    driver.create_function("wait", 0, wait)
    helper = Working(lambda: connection.scalar(text("SELECT wait()")), "helper")
    running.wait(10)
    with suppress(sa_exc.SQLAlchemyError):
        # SQLite serves one statement at a time: it ends once the other may.
        threading.Timer(0.05, went_on.set).start()
        connection.scalar(text("SELECT 1"))
    helper.result()
    return ""


def broken() -> str:
    db.session.scalar(text("SELECT 1"))

    def close(*_: object) -> None:
        raise RuntimeError("on purpose")

    db.session().close = close  # type: ignore[method-assign]
    return ""


# One event each


def lost_work(folder: Path) -> None:
    with shop(folder) as app:
        app.test_client().post("/orders")


def many_statements(folder: Path) -> None:
    with shop(folder, SCOPEDSESSION_MANY_STATEMENTS=3) as app:
        app.test_client().get("/orders")


def pool_timeout(folder: Path) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
    with shop(folder, SQLALCHEMY_ENGINE_OPTIONS=options) as app:
        app.test_client().get("/keep")
        app.test_client().get("/orders")


def held_long(folder: Path) -> None:
    with shop(folder, SCOPEDSESSION_HELD_LONG_AFTER=0.1) as app:
        app.test_client().get("/report")


def leaked(folder: Path) -> None:
    with shop(folder, SCOPEDSESSION_HELD_LONG_AFTER=0.1) as app:
        app.test_client().get("/keep")
        until(lambda: app.test_client().get("/orders"))


def worker_lost(folder: Path) -> None:
    """Kill a worker, and start another one."""
    with shop(folder) as app:
        ready, says = os.pipe()
        child = os.fork()
        if child == 0:
            with app.app_context():
                db.serve_control()
            os.write(says, b".")
            time.sleep(60)
            os._exit(1)
        os.read(ready, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for descriptor in (ready, says):
            os.close(descriptor)
        until(lambda: app.test_client().get("/orders"))


def shared_session(folder: Path) -> None:
    with shop(folder) as app:
        app.test_client().get("/share")


def shared_context(folder: Path) -> None:
    with shop(folder) as app, app.app_context():
        for _ in range(2):
            app.test_client().get("/orders")


def end_failed(folder: Path) -> None:
    with shop(folder) as app:
        app.test_client().get("/broken")


def holders_unknown(folder: Path) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
    with shop(folder, SQLALCHEMY_ENGINE_OPTIONS=options) as app:
        app.test_client().get("/keep")
        application_of(app).accounts["default"].describe = fail
        app.test_client().get("/orders")


def live_view_off(folder: Path) -> None:
    with shop(folder) as app:
        (folder / "run").mkdir(mode=0o755)
        app.test_client().get("/orders")


def control_failed(folder: Path) -> None:
    with shop(folder) as app:
        app.test_client().get("/orders")
        SERVER.failed(RuntimeError("on purpose"))
        app.test_client().get("/orders")


def fork_failed(folder: Path) -> None:
    with shop(folder) as app:
        application_of(app).live.after_fork = fail  # type: ignore[method-assign]
        child = os.fork()
        if child == 0:
            for handler in LOGGER.handlers:
                handler.flush()
            os.write(SAYS, OUTPUT.getvalue().encode())
            os._exit(0)
        os.waitpid(child, 0)
        OUTPUT.write(os.read(SAID, 1 << 16).decode())


def configuration(folder: Path) -> None:
    with shop(folder) as app:
        app.config["SCOPEDSESSION_HELD_LONG_AFTER"] = 60
        app.test_client().get("/orders")


def metrics_lost(folder: Path) -> None:
    with shop(folder) as app:
        app.test_client().get("/orders")
        (folder / "run").chmod(0o755)
        prometheus._note_end(db, lambda: app)  # type: ignore[arg-type]


def not_served(folder: Path) -> None:
    with shop(folder, SCOPEDSESSION_CONTROL=False) as app, app.app_context():
        db.serve_control()


def fail(*_: object) -> t.Any:
    raise RuntimeError("on purpose")


EVENTS: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (
        pool_timeout,
        held_long,
        leaked,
        lost_work,
        many_statements,
        worker_lost,
        shared_session,
        shared_context,
        end_failed,
        holders_unknown,
        live_view_off,
        control_failed,
        fork_failed,
        configuration,
        metrics_lost,
        not_served,
    )
}

OUTPUT = StringIO()
SAID, SAYS = os.pipe()


def until(visit: Callable[[], object]) -> None:
    """Send requests until something is logged."""
    deadline = time.monotonic() + 30
    while not OUTPUT.getvalue() and time.monotonic() < deadline:
        visit()
        time.sleep(0.02)


def records(root: Path, configuration: str = "json_logs") -> Iterator[tuple[str, str]]:
    """Provoke each event; yield its name and the line that was logged.

    :param root: An empty folder with a short path.
    :param configuration: The name of a file in ``docs/logging``.
    """
    runpy.run_path(str(DOCS / "logging" / f"{configuration}.py"))
    for handler in LOGGER.handlers:
        t.cast("logging.StreamHandler[t.Any]", handler).setStream(OUTPUT)
    for name, provoke in EVENTS.items():
        OUTPUT.seek(0)
        OUTPUT.truncate()
        provoke(root / name)
        lines = OUTPUT.getvalue().splitlines()
        for line in lines:
            if json.loads(line)["scopedsession_event"] == name:
                yield name, tidy(line, root)
                break
        else:
            raise AssertionError(f"{name} was not logged, but {lines}")


def tidy(line: str, root: Path) -> str:
    """Replace the names of folders with typical names, and shorten tracebacks."""
    line = re.sub(rf"{re.escape(str(root))}/\w+", "/srv/shop", line)
    return re.sub(r"(Traceback .*?:\\n)  .*\\n(?=\w)", r"\1  ...\\n", line)


def main(folder: Path = RECORDS, configuration: str = "json_logs") -> None:
    """Write all files, and remove those of other events."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ss-", dir="/tmp") as temporary:
        for name, line in records(Path(temporary), configuration):
            (folder / f"{name}.json").write_text(f"{line}\n", encoding="utf-8")
    for path in folder.glob("*.json"):
        if path.stem not in EVENTS:
            path.unlink()


if __name__ == "__main__":
    os.umask(0o022)
    main(*map(Path, sys.argv[1:2]), *sys.argv[2:3])
