"""Run the example with its faults on, and watch it from outside: ``make demo``.

Whatever this starts (gunicorn's workers, their databases, their control sockets)
lives in a temporary directory of its own, and ends with it.
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
    """The demo did not show what it promises to show."""


def main() -> int:
    """Run the demo, and return the exit code."""
    # `kill`, or a closed terminal, shall clean up as Ctrl-C does.
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
        click.echo("\nInterrupted. Everything is stopped.", err=True)
        return 130

    return 0


def interrupt(*_: object) -> NoReturn:
    """Turn a signal into what Ctrl-C raises."""
    raise KeyboardInterrupt


def run(directory: Path) -> None:
    """Go through the demo, step by step."""
    started = time.monotonic()
    env = environment(directory)

    step(
        "Import the airports",
        "The example is an ordinary Flask application: airports to search, and a\n"
        "flight log to write to. Its two databases are SQLite files.",
    )
    flask(env, "import-airports")

    step(
        f"Start gunicorn with {WORKERS} workers of 4 threads",
        "Each worker is a process with connection pools of its own. No other\n"
        "process can look into them, so from outside they are a black box.",
    )

    with running_server(env) as server:
        with closing(server.connect()) as connection:
            ask(connection, "GET", "/")
        click.echo(f"It answers at {server.url}")

        step(
            "Send ordinary traffic",
            "Searches, pages, downloads, new flights, a background job. All of it\n"
            "gives back what it takes.",
        )
        ordinary_traffic(server)

        step(
            "Make every worker misbehave",
            f"{KEEPS}: puts a connection into a global, and answers.\n"
            f"{SLEEPS}: queries, then sleeps with the connection in hand.\n"
            f"{FORGETS}: says that it has saved a flight, and never commits.",
        )
        with one_connection_per_worker(server) as workers:
            misbehave(workers)
            watch(env, list(workers))

        show_lost_work(server)

    step("Done")
    click.echo(
        f"It took {time.monotonic() - started:.0f} seconds. The server is stopped and"
        " its files are deleted.\nTo play with it yourself: make serve FAULTS=1"
    )


def watch(env: Mapping[str, str], pids: list[int]) -> None:
    """Look at the workers from a process of our own, and check what we see."""
    step(
        "Which view holds the connections?",
        "The command asks every worker over a socket that only its own user may\n"
        "open. The holders come last: which view, at which line, for how long.",
    )
    pools = flask(env, "pool-status")
    expect(KEEPS in pools, f"pool-status does not name {KEEPS}")
    expect(SLEEPS in pools, f"pool-status does not name {SLEEPS}")

    step(
        "Which sessions are open?",
        "One row for each. The kept connection is not among them: no session has\n"
        "it, and the request that took it is long over.",
    )
    sessions = flask(env, "session-status")
    expect(SLEEPS in sessions, f"session-status does not name {SLEEPS}")

    step(
        "Does that hold for each worker?",
        "The same as JSON, as a program would read it.",
    )
    found = holders(json.loads(flask(env, "pool-status", "--json", quiet=True)))

    for pid in pids:
        click.echo(f"worker {pid}: {', '.join(sorted(found.get(pid, [])))}")
        expect(found.get(pid, set()) >= {KEEPS, SLEEPS}, f"worker {pid} shows less")


def holders(report: Mapping[str, Any]) -> dict[int, set[str]]:
    """Pick from the JSON report which views hold connections in which worker."""
    return {
        worker["pid"]: {
            holder["endpoint"] for pool in worker["pools"] for holder in pool["holders"]
        }
        for worker in report["workers"]
    }


# The application, as a server and as a command


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of all that the demo starts."""
    own = ("EXAMPLE_", "FLASK_", "GUNICORN_", "SCOPEDSESSION_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    return {
        **env,
        "PYTHONPATH": str(HERE.parent),
        "EXAMPLE_FAULTS": "1",
        "EXAMPLE_INSTANCE_PATH": str(directory),
        "FLASK_SCOPEDSESSION_CONTROL_DIR": str(directory / "run"),
        # The default of 15 seconds suits a server, but is long for a demo.
        "FLASK_SCOPEDSESSION_HELD_LONG_AFTER": "1",
    }


def flask(env: Mapping[str, str], *args: str, quiet: bool = False) -> str:
    """Run a flask command as a person would; show and return its output."""
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
    """Where the running server is to be found."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """The address of the first page."""
        return f"http://127.0.0.1:{self.port}/"

    def connect(self) -> HTTPConnection:
        """Open a connection, which one worker will answer."""
        return HTTPConnection("127.0.0.1", self.port, timeout=30)


@contextmanager
def running_server(env: Mapping[str, str], workers: int = WORKERS) -> Iterator[Server]:
    """Run gunicorn on a free port, and stop it whatever happens."""
    log = Path(env["EXAMPLE_INSTANCE_PATH"], "gunicorn.log")

    # gunicorn inherits the listening socket, so nobody can take the port
    # between our choice and its start, and requests wait until it is ready.
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
    """End gunicorn, which ends its workers."""
    process.terminate()

    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# Traffic


def ask(connection: HTTPConnection, method: str, path: str, body: object = None) -> Any:
    """Send a request, and return the parsed JSON or the text of the answer."""
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
    """Send requests from eight clients at once, and sum up how it went."""

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
        f"{counts['GET']} reads and {counts['POST']} writes, all answered;"
        f" half of them within {median(times):.0f} ms, all within {max(times):.0f} ms."
    )

    with closing(server.connect()) as connection:
        click.echo(recount(connection))


def ordinary_requests() -> Iterator[tuple[str, str, object]]:
    """Make up what people do, in an order that mixes it."""
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
    """Reach each worker: whoever accepts a connection answers all that it brings."""
    workers: dict[int, HTTPConnection] = {}
    deadline = time.monotonic() + 30

    with ExitStack() as stack:
        while len(workers) < WORKERS:
            expect(time.monotonic() < deadline, f"only {len(workers)} workers answer")
            connection = stack.enter_context(closing(server.connect()))
            pid = ask(connection, "GET", "/faults/sleep?seconds=0.02")["worker"]
            workers.setdefault(pid, connection)

        yield workers


def misbehave(workers: Mapping[int, HTTPConnection]) -> None:
    """Have each fault once in each worker."""
    for pid, connection in workers.items():
        ask(connection, "POST", "/faults/keep-connection")
        ask(connection, "POST", "/faults/forget-commit")
        # Not waiting for the answer: it sleeps while we look.
        connection.request("GET", f"/faults/sleep?seconds={SLEEP_S}")
        click.echo(f"worker {pid} has done all three, and still sleeps")

    time.sleep(2)


def show_lost_work(server: Server) -> None:
    """Show what the log says of the view that forgot to commit."""
    step(
        "What became of the flight that was never committed?",
        "It is not in the flight log. The server's log tells why:",
    )
    lines = [line for line in server.log.read_text().splitlines() if FORGETS in line]
    expect(bool(lines), f"the server's log does not name {FORGETS}")
    click.echo(lines[0])


# Talking to the person


def step(title: str, text: str = "") -> None:
    """Announce what comes next."""
    click.echo()
    click.secho(f"== {title}", bold=True)

    if text:
        click.echo(text)

    click.echo()


def expect(truth: bool, otherwise: str) -> None:
    """Fail the demo unless something holds."""
    if not truth:
        raise DemoError(otherwise)


if __name__ == "__main__":
    sys.exit(main())
