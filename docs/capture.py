"""Generate ``docs/captured/``: the output of commands and logs for typical faults.

The output with colors becomes pictures, in ``docs/_static/``.

``python docs/capture.py`` starts the example application under gunicorn, makes one
mistake after another, and records what a person would see. It has the same
requirements as the tests. Only the names of this machine and of its folders are
replaced in the output.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CAPTURED = ROOT / "docs" / "captured"
PICTURES = ROOT / "docs" / "_static"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from postgres import brought_server  # noqa: E402
from postgres import Server as PostgreSQL  # noqa: E402
from stage import on_terminal  # noqa: E402
from stage import Stage  # noqa: E402
from terminal_picture import picture  # noqa: E402
from terminal_picture import THEMES  # noqa: E402

from example_app import demo  # noqa: E402

OPTIONS = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
TINY = {f"{OPTIONS}pool_size": "1", f"{OPTIONS}max_overflow": "0"}
SERVER = ("pool-status", "--server", "--bind", "default")

#: The width of the terminal in a picture: readable on a phone.
NARROW = 60

Captured = dict[str, str]


# With SQLite


def pool_timeout(stage: Stage) -> Captured:
    """Keep all connections, until a request times out."""
    with stage.scene(**{f"{OPTIONS}pool_timeout": "1"}) as scene:
        for _ in range(15):
            scene.ask("POST", "/faults/keep-connection")
        scene.ask("GET", "/")
        log = scene.logged(r"^.*connection pool timeout\n(?:Bind .*)(?:\n  .*)*")
        return {
            "pool-timeout": scene.flask("pool-status"),
            "pool-timeout-log": log,
        }


def self_deadlock(stage: Stage) -> Captured:
    """Let a view wait for the connection that it holds."""
    with stage.scene(**TINY) as scene:
        scene.begin("GET", "/faults/nested")
        scene.until(lambda pool: pool.pending and pool.max_wait_s > 2)
        return {"self-deadlock": scene.flask("pool-status")}


def too_small(stage: Stage) -> Captured:
    """Hold connections briefly, while many requests wait for them."""
    with stage.scene(**TINY) as scene:

        def visit(_: int) -> None:
            for _ in range(40):
                scene.ask("GET", "/faults/sleep?seconds=0.1")

        with ThreadPoolExecutor(3) as visitors:
            list(visitors.map(visit, range(3)))
        return {
            "too-small": scene.flask("pool-status"),
            "too-small-advice": scene.flask("pool-advise", "--bind", "default"),
        }


def slow_statement(stage: Stage) -> Captured:
    """Let a view wait for a busy database."""
    with stage.scene() as scene:
        scene.begin("GET", "/faults/slow-statement?airports=20000")
        scene.until(lambda pool: pool.held_long)
        return {"slow-statement": scene.flask("pool-status")}


def lost_work(stage: Stage) -> Captured:
    """Write without a commit."""
    with stage.scene() as scene:
        scene.ask("POST", "/faults/forget-commit")
        return {
            "lost-work": scene.flask("session-status"),
            "lost-work-log": scene.logged(r"^.*ended without commit\(\).*$"),
        }


def shared_session(stage: Stage) -> Captured:
    """Use one session in two threads at the same time."""
    with stage.scene() as scene:
        scene.ask("GET", "/faults/share-session")
        return {
            "shared-session": scene.flask("session-status"),
            "shared-session-log": scene.logged(r"^.*two threads use one connection.*$"),
        }


def kept_for_later(stage: Stage) -> Captured:
    """Keep a session and an object for later requests."""
    with stage.scene() as scene:
        for _ in range(2):
            scene.ask("GET", "/faults/keep-session")
            scene.ask("GET", "/faults/cache-object")
        return {
            "session-removed": scene.error("SessionRemoved"),
            "detached": scene.error("DetachedInstanceError"),
        }


def swallowed_error(stage: Stage) -> Captured:
    """Continue after a failed flush."""
    with stage.scene() as scene:
        scene.ask("POST", "/faults/swallow-error?seconds=0")
        scene.begin("POST", "/faults/swallow-error?seconds=20")
        time.sleep(1)
        return {
            "needs-rollback": scene.flask("session-status"),
            "needs-rollback-log": scene.error("PendingRollbackError"),
        }


def database_locked(stage: Stage) -> Captured:
    """Write while another request writes."""
    wait = {"FLASK_SCOPEDSESSION_SQLITE_PRAGMAS__busy_timeout": "500"}
    with stage.scene(**wait) as scene:
        scene.begin("POST", "/faults/lock?icao=EDDF&seconds=30")
        scene.until(lambda pool: pool.held_long)
        scene.ask("POST", "/faults/lock?icao=KJFK&seconds=0")
        return {
            "database-locked": scene.flask("pool-status"),
            "database-locked-log": scene.error("OperationalError"),
        }


def worker_timeout(stage: Stage) -> Captured:
    """Let the server kill a worker that waits for a connection."""
    arguments = "--worker-class sync --threads 1 --timeout 4"
    with stage.scene(GUNICORN_CMD_ARGS=arguments) as scene:
        for _ in range(15):
            scene.ask("POST", "/faults/keep-connection")
        scene.begin("GET", "/airports/KJFK")
        log = scene.logged(r"^.*WORKER TIMEOUT.*$")
        while scene.ask("GET", "/airports/EDDF") != 200:
            time.sleep(0.2)
        return {
            "worker-timeout": scene.flask("pool-status"),
            "worker-timeout-log": log,
        }


def outside_context(stage: Stage) -> Captured:
    """Run a script without the application."""
    code = "from example_app.extensions import db; db.session.connection()"
    where = stage.env["EXAMPLE_INSTANCE_PATH"]
    lines = on_terminal(stage.env, "-c", code, cwd=where)[1].splitlines()
    said = next(line for line in lines if "OutsideContext: " in line)
    return {"outside-context": f"$ python -c '{code}'\n{said}\n"}


def named(stage: Stage) -> Captured:
    """Let two views hold both connections of each worker, for the picture."""
    small = {f"{OPTIONS}pool_size": "2", f"{OPTIONS}max_overflow": "0"}
    with (
        stage.scene(workers=3, **small) as scene,
        demo.one_connection_per_worker(scene.server) as workers,
    ):
        for connection in workers.values():
            demo.ask(connection, "POST", "/faults/keep-connection")
            connection.request("GET", "/faults/sleep?seconds=600")
        scene.until(lambda pool: pool.held_long == 2, pools=3)
        args = ("pool-status", "--bind", "default")
        return {"pool-status.ansi": scene.flask(*args, columns=NARROW, colors=True)}


# With PostgreSQL


def idle_in_transaction(stage: Stage) -> Captured:
    """Hold connections without using them."""
    with stage.scene() as scene:
        scene.begin("GET", "/faults/sleep?seconds=600")
        scene.until(lambda pool: pool.used == 1)
        scene.ask("POST", "/faults/keep-connection")
        scene.until(lambda pool: pool.held_long == 2)
        return {
            "idle-in-transaction": scene.flask(
                "pool-status", "--server", "--bind", "default"
            )
        }


def lock_wait(stage: Stage) -> Captured:
    """Wait for a row that another request has changed."""
    with stage.scene() as scene:
        scene.begin("POST", "/faults/lock?icao=EDDF&seconds=600")
        scene.until(lambda pool: pool.held_long == 1)
        scene.begin("POST", "/faults/lock?icao=EDDF&seconds=600")
        scene.until(lambda pool: pool.held_long == 2)
        return {"lock-wait": scene.flask(*SERVER)}


def deadlock(stage: Stage) -> Captured:
    """Let two requests wait for each other's rows."""
    with stage.scene() as scene:
        one = scene.begin("POST", "/faults/lock?icao=EDDF&icao=KJFK&seconds=1")
        two = scene.begin("POST", "/faults/lock?icao=KJFK&icao=EDDF&seconds=1")
        for connection in (one, two):
            connection.getresponse().read()
        return {"deadlock": scene.error("OperationalError")}


def connections_died(stage: Stage, server: PostgreSQL) -> Captured:
    """Restart the database while one connection is in use and one is idle."""
    with stage.scene() as scene:
        sleeping = scene.begin("GET", "/faults/sleep?seconds=1")
        working = scene.begin("POST", "/faults/lock?icao=EDDF&icao=KJFK&seconds=10")
        sleeping.getresponse().read()
        # Both connections are open, and the second is in a transaction.
        scene.until(lambda pool: pool.open == 2 and pool.held_long == 1)
        server.crash()
        server.start()
        with suppress(OSError):
            working.getresponse().read()
        # Read the log first: a request that comes too early adds another error.
        log = scene.error("OperationalError")
        while scene.ask("GET", "/airports/EDDF") != 200:
            time.sleep(0.2)
        return {"died": scene.flask("pool-status"), "died-log": log}


def too_many_clients(stage: Stage) -> Captured:
    """Open more connections in all workers than the server allows."""
    with stage.scene(workers=3) as scene:
        with demo.one_connection_per_worker(scene.server) as workers:
            for connection in workers.values():
                for _ in range(2):
                    demo.ask(connection, "POST", "/faults/keep-connection")
        scene.until(lambda pool: pool.held_long == 2, pools=3)
        calm = scene.flask(*SERVER)
        while scene.ask("POST", "/faults/keep-connection") < 500:
            pass
        return {
            "too-many-clients": calm,
            "too-many-clients-log": scene.error("OperationalError"),
            "too-many-clients-ping": scene.flask("db-ping"),
        }


ON_SQLITE = (
    pool_timeout,
    self_deadlock,
    too_small,
    slow_statement,
    lost_work,
    shared_session,
    kept_for_later,
    swallowed_error,
    database_locked,
    worker_timeout,
    outside_context,
    named,
)
ON_POSTGRESQL = (idle_in_transaction, lock_wait, deadlock)


def capture(root: Path) -> Iterator[Captured]:
    """Run every scene, and yield its output by file name."""
    stage = Stage(root / "sqlite")
    for play in ON_SQLITE:
        yield play(stage)
    with brought_server(root, durable=True) as server:
        server.set(max_connections=10)
        server.crash()
        server.start()
        url = server.url.render_as_string(hide_password=False)
        stage = Stage(root / "postgresql", FLASK_SQLALCHEMY_DATABASE_URI=url)
        for play in ON_POSTGRESQL:
            yield play(stage)
        yield connections_died(stage, server)
        yield too_many_clients(stage)


def tidy(text: str, root: Path) -> str:
    """Replace the names of this machine and its folders with typical names."""
    text = text.replace(str(root.resolve()), "/srv").replace(str(root), "/srv")
    text = re.sub(r"/srv/pg-\w+", "/srv/postgresql", text)
    text = text.replace(f" on {socket.gethostname()} · ", " on web-1 · ")
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def path_of(name: str, folder: Path = CAPTURED) -> Path:
    """Return the file of a captured text: with its own suffix, if it has colors."""
    return folder / (name if name.endswith(".ansi") else f"{name}.txt")


def draw(captured: Path) -> None:
    """Write the pictures of an output with colors."""
    text = captured.read_text(encoding="utf-8")
    for theme in THEMES:
        path = PICTURES / f"{captured.stem}-{theme}.svg"
        path.write_text(picture(text, theme), encoding="utf-8")


def main(folder: Path = CAPTURED) -> None:
    """Write all files, and remove those that are no longer captured."""
    folder.mkdir(exist_ok=True)
    written = set()
    # Use /tmp, because the length of the path decides where lines are broken. If root
    # runs this, PostgreSQL runs as another user, and needs access to the directory.
    with tempfile.TemporaryDirectory(prefix="ss-captured-", dir="/tmp") as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        for captured in capture(root):
            for name, text in captured.items():
                path = path_of(name, folder)
                path.write_text(tidy(text, root), encoding="utf-8")
                written.add(path)
                if path.suffix == ".ansi":
                    draw(path)
    for path in folder.iterdir():
        if path not in written:
            path.unlink()


if __name__ == "__main__":
    os.umask(0o022)
    main(*map(Path, sys.argv[1:]))
