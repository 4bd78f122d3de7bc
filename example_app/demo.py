"""Run the example with its faults, and look at it from outside: ``make demo``.

The workers, their databases and their control sockets use a temporary directory.
The demo stops all processes and deletes the directory when it ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextlib import contextmanager
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from http.client import HTTPException
from pathlib import Path
from statistics import median
from typing import Any
from typing import NoReturn

import click

HERE = Path(__file__).resolve().parent
APP = "example_app"
WORKERS = 3
SLEEP_S = 50

KEEPS = "faults.keep_connection"
SLEEPS = "faults.sleep_in_transaction"
FORGETS = "faults.forget_commit"


class DemoError(Exception):
    """The demo did not show what it should show."""


def main() -> int:
    """Run the demo, and return the exit code."""
    # `kill` and a closed terminal should clean up as Ctrl-C does.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)

    try:
        with tempfile.TemporaryDirectory(prefix="ss-demo-") as directory:
            run(Path(directory).resolve())
    except (DemoError, subprocess.SubprocessError) as error:
        click.secho(f"\nThe demo failed: {error}.", fg="red", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("\nInterrupted. All processes are stopped.", err=True)
        return 130

    return 0


def interrupt(*_: object) -> NoReturn:
    """Raise the same exception as Ctrl-C, on another signal."""
    raise KeyboardInterrupt


def run(directory: Path) -> None:
    """Run the demo from start to end."""
    started = time.monotonic()
    env = environment(directory)

    step(
        "Import the airports",
        "The example is an ordinary Flask application: a search for airports, and a\n"
        "flight log. Its two databases are SQLite files.",
    )
    flask(env, "import-airports")

    step(
        f"Start gunicorn with {WORKERS} workers of 4 threads",
        "Each worker is a process with its own connection pools. No other process\n"
        "can look into them.",
    )

    with running_server(env) as server:
        with closing(server.connect()) as connection:
            ask(connection, "GET", "/")
        click.echo(
            f"It answers at {server.url}, with a dashboard at {server.url}pools/"
        )

        step(
            "Send ordinary traffic",
            "Searches, pages, downloads, new flights and a background job. All of\n"
            "them return their connections.",
        )
        ordinary_traffic(server)

        step(
            "Make every worker misbehave",
            f"{KEEPS}: keeps a connection in a global.\n"
            f"{SLEEPS}: queries, then sleeps while it holds the connection.\n"
            f"{FORGETS}: reports a saved flight, and never commits it.",
        )
        with one_connection_per_worker(server) as workers:
            misbehave(workers)
            watch(env, list(workers))

        show_lost_work(server)

    step("Done")
    click.echo(
        f"The demo took {time.monotonic() - started:.0f} seconds. The server is stopped"
        " and its files are deleted.\nTo try it yourself: make serve FAULTS=1, with the"
        " dashboard at http://127.0.0.1:8000/pools/"
    )


def watch(env: Mapping[str, str], pids: list[int]) -> None:
    """Run the commands in another process, and check their output."""
    step(
        "Which view holds the connections?",
        "The command asks every worker over a socket that only its own user can\n"
        "open. The last lines name the holders: view, line and duration.",
    )
    pools = flask(env, "pool-status")
    expect(KEEPS in pools, f"pool-status does not name {KEEPS}")
    expect(SLEEPS in pools, f"pool-status does not name {SLEEPS}")

    step(
        "Which sessions are open?",
        "There is one row per session. The connection in the global is not shown,\n"
        "because it belongs to no session, and its request has ended.",
    )
    sessions = flask(env, "session-status")
    expect(SLEEPS in sessions, f"session-status does not name {SLEEPS}")

    step(
        "Does each worker report this?",
        "The same report as JSON, for programs.",
    )
    found = holders(json.loads(flask(env, "pool-status", "--json", quiet=True)))

    for pid in pids:
        click.echo(f"worker {pid}: {', '.join(sorted(found.get(pid, [])))}")
        expect(
            found.get(pid, set()) >= {KEEPS, SLEEPS}, f"worker {pid} shows fewer views"
        )


def holders(report: Mapping[str, Any]) -> dict[int, set[str]]:
    """Return the views that hold connections, by the PID of their worker."""
    return {
        worker["pid"]: {
            holder["endpoint"] for pool in worker["pools"] for holder in pool["holders"]
        }
        for worker in report["workers"]
    }


# The application, as a server and as a command


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of the processes that the demo starts."""
    own = ("EXAMPLE_", "FLASK_", "GUNICORN_", "SCOPEDSESSION_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    return {
        **env,
        "PYTHONPATH": str(HERE.parent),
        "EXAMPLE_FAULTS": "1",
        "EXAMPLE_INSTANCE_PATH": str(directory),
        "FLASK_SCOPEDSESSION_CONTROL_DIR": str(directory / "run"),
        # The default of 15 seconds suits a server, but is too long for a demo.
        "FLASK_SCOPEDSESSION_HELD_LONG_AFTER": "1",
    }


def flask(env: Mapping[str, str], *args: str, quiet: bool = False) -> str:
    """Run a flask command; print its output unless *quiet*, and return it."""
    if not quiet:
        click.secho(f"$ flask --app {APP} {' '.join(args)}", fg="cyan")

    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "flask", "--app", APP, *args],
        env=env,
        cwd=env["EXAMPLE_INSTANCE_PATH"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=60,
        check=False,
    )

    if not quiet:
        click.echo(done.stdout.rstrip())

    expect(done.returncode == 0, f"'flask {args[0]}' exited with {done.returncode}")
    return done.stdout


@dataclass(frozen=True)
class Server:
    """The port and the log file of the running server."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """The address of the first page."""
        return f"http://127.0.0.1:{self.port}/"

    def connect(self) -> HTTPConnection:
        """Open a connection. One worker answers all of its requests."""
        return HTTPConnection("127.0.0.1", self.port, timeout=30)


@contextmanager
def running_server(env: Mapping[str, str], workers: int = WORKERS) -> Iterator[Server]:
    """Run gunicorn on a free port, and always stop it."""
    log = Path(env["EXAMPLE_INSTANCE_PATH"], "gunicorn.log")

    # gunicorn inherits the listening socket. No other process can take the port
    # before gunicorn starts, and requests wait until it is ready.
    with socket.create_server(("127.0.0.1", 0)) as listening, log.open("w") as file:
        port = listening.getsockname()[1]
        process = subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-m", "gunicorn"),
                *("--config", str(HERE / "gunicorn_conf.py")),
                *("--workers", str(workers), "--graceful-timeout", "1"),
                *("--bind", f"fd://{listening.fileno()}", f"{APP}:create_app()"),
            ],
            env=env,
            cwd=env["EXAMPLE_INSTANCE_PATH"],
            pass_fds=[listening.fileno()],
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    try:
        yield Server(port, log)
    except DemoError:
        click.echo(f"The server's log:\n{log.read_text()}", err=True)
        raise
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop gunicorn, which stops its workers."""
    process.terminate()

    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# Traffic


def ask(connection: HTTPConnection, method: str, path: str, body: object = None) -> Any:
    """Send a request, and return the response's parsed JSON or its text."""
    data = None if body is None else json.dumps(body)

    try:
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, HTTPException) as error:
        raise DemoError(f"The server has not answered {method} {path}") from error

    expect(response.status < 400, f"{method} {path} answered {response.status}")
    is_json = response.getheader("Content-Type") == "application/json"
    return json.loads(text) if is_json else text


def ordinary_traffic(server: Server) -> None:
    """Send requests from eight clients at once, and print a summary."""

    def send(request: tuple[str, str, object]) -> tuple[str, float]:
        begun = time.monotonic()
        with closing(server.connect()) as connection:
            ask(connection, *request)
        return request[0], time.monotonic() - begun

    with ThreadPoolExecutor(8) as clients:
        done = list(clients.map(send, ordinary_requests()))

    counts = Counter(method for method, _ in done)
    times = [seconds * 1000 for _, seconds in done]
    click.echo(
        f"{counts['GET']} reads and {counts['POST']} writes succeeded: half of them"
        f" within {median(times):.0f} ms, all within {max(times):.0f} ms."
    )

    with closing(server.connect()) as connection:
        click.echo(recount(connection))


def ordinary_requests() -> Iterator[tuple[str, str, object]]:
    """Generate a mixture of typical requests."""
    codes = ["EDDF", "KJFK", "RJTT", "SBGR", "YSSY", "FACT"]

    for number in range(24):
        origin, destination = codes[number % 6], codes[(number + 1) % 6]
        flight = {
            "number": f"XA{number + 1}",
            "date": "2025-07-01",
            "origin": origin,
            "destination": destination,
        }
        yield "POST", "/api/flights", flight
        yield "GET", f"/?q={origin}", None
        yield "GET", f"/airports/{destination}", None
        yield "GET", "/api/airports?q=international&page=3", None
        yield "GET", "/flights", None

    yield "GET", "/airports.csv", None
    yield "GET", "/flights.csv", None


def recount(connection: HTTPConnection) -> str:
    """Start the background job, and wait for its result."""
    job = ask(connection, "POST", "/api/jobs/recount")
    deadline = time.monotonic() + 15

    while job["state"] == "running":
        expect(time.monotonic() < deadline, "the background job did not end")
        time.sleep(0.1)
        job = ask(connection, "GET", f"/api/jobs/{job['id']}")

    return f"The background job says: {job['message']}"


@contextmanager
def one_connection_per_worker(server: Server) -> Iterator[dict[int, HTTPConnection]]:
    """Open a connection to each worker: one worker answers all requests on it."""
    workers: dict[int, HTTPConnection] = {}
    deadline = time.monotonic() + 30

    with ExitStack() as stack:
        while len(workers) < WORKERS:
            expect(time.monotonic() < deadline, f"only {len(workers)} workers answered")
            connection = stack.enter_context(closing(server.connect()))
            pid = ask(connection, "GET", "/faults/sleep?seconds=0.02")["worker"]
            workers.setdefault(pid, connection)

        yield workers


def misbehave(workers: Mapping[int, HTTPConnection]) -> None:
    """Request each faulty view once in each worker."""
    for pid, connection in workers.items():
        ask(connection, "POST", "/faults/keep-connection")
        ask(connection, "POST", "/faults/forget-commit")
        # Do not wait for the response: the view sleeps while the commands run.
        connection.request("GET", f"/faults/sleep?seconds={SLEEP_S}")
        click.echo(f"worker {pid}: all three views ran; {SLEEPS} still sleeps")

    time.sleep(2)


def show_lost_work(server: Server) -> None:
    """Show the log record about the view that did not commit."""
    step(
        "What happened to the flight that was never committed?",
        "It is not in the flight log. The server's log says why:",
    )
    lines = [line for line in server.log.read_text().splitlines() if FORGETS in line]
    expect(bool(lines), f"the server's log does not name {FORGETS}")
    click.echo(lines[0])


# Output


def step(title: str, text: str = "") -> None:
    """Print the title of a step, and what it shows."""
    click.echo()
    click.secho(f"== {title}", bold=True)

    if text:
        click.echo(text)

    click.echo()


def expect(truth: bool, otherwise: str) -> None:
    """Raise :exc:`DemoError` unless *truth* is true."""
    if not truth:
        raise DemoError(otherwise)


if __name__ == "__main__":
    sys.exit(main())
