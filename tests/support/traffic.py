"""An application that stores rows, and clients that remember its responses.

A row whose storage was acknowledged must be in the table exactly once. Any other row
must be there at most once.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple
from typing import TYPE_CHECKING

from flask import Flask
from flask import request
from flask import stream_with_context
from flask.testing import FlaskClient
from sqlalchemy import create_engine
from sqlalchemy import func
from sqlalchemy import NullPool
from sqlalchemy import select
from sqlalchemy import String
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from waiting import wait_until

from flask_scopedsession import ScopedSession

if TYPE_CHECKING:
    from typing_extensions import Self

#: The status of a response after an error of the database.
DATABASE_FAILED = 503


class Base(DeclarativeBase):
    pass


class Row(Base):
    """A stored row. The token is not unique on purpose, to detect duplicates."""

    __tablename__ = "row_kept"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(80), index=True)


class CrossedError(Exception):
    """A request got the session or the response of another request."""


def add_views(app: Flask, db: ScopedSession[Any]) -> None:
    """Add the views. Errors of the database are answered with 503, others with 500."""
    app.config["PROPAGATE_EXCEPTIONS"] = False

    @app.errorhandler(SQLAlchemyError)
    def failed(error: SQLAlchemyError) -> tuple[str, int]:
        return type(error).__name__, DATABASE_FAILED

    def own_session(token: str) -> None:
        """Check that the session and the connection belong to this request."""
        found = db.session.info.setdefault("token", token)
        if found != token or db.session.scalar(select(func.lower(token))) != token:
            raise CrossedError

    @app.get("/answer/<token>")
    def answer(token: str) -> str:
        own_session(token)
        time.sleep(float(request.args.get("hold", 0)))
        own_session(token)
        return token

    @app.post("/rows/<token>")
    def add(token: str) -> tuple[str, int]:
        own_session(token)
        db.session.add(Row(token=token))
        db.session.flush()
        time.sleep(float(request.args.get("hold", 0)))
        db.session.commit()
        return token, 201

    @app.post("/rows/<token>/undone")
    def undo(token: str) -> str:
        own_session(token)
        db.session.add(Row(token=token))
        db.session.flush()
        db.session.rollback()
        return token

    @app.post("/rows/<token>/broken")
    def break_off(token: str) -> str:
        db.session.add(Row(token=token))
        db.session.flush()
        raise LookupError(token)

    @app.errorhandler(LookupError)
    def broken(error: LookupError) -> tuple[str, int]:
        return str(error), 418

    @app.get("/stream/<token>/<int:count>")
    def stream(token: str, count: int) -> Iterator[str]:
        @stream_with_context
        def rows() -> Iterator[str]:
            own_session(token)
            numbers = select(func.generate_series(1, count))
            found = db.session.execute(
                numbers, execution_options={"stream_results": True}
            )
            for (number,) in found:
                yield f"{token} {number}\n"

        return rows()  # type: ignore[call-arg]


class Failure(NamedTuple):
    """A request that failed with an error of the database."""

    token: str
    kind: str
    began: float
    ended: float


class Tally:
    """The responses to all clients."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.failures: list[Failure] = []
        self.strange: list[str] = []
        """Responses that must not occur, whatever the database does."""
        self._numbers = itertools.count(1)

    def token(self) -> str:
        """Return a new token."""
        return f"t{next(self._numbers)}"

    def post(self, client: FlaskClient, **query: Any) -> bool:
        """Store a row, and remember the response."""
        token, began = self.token(), time.perf_counter()
        response = client.post(f"/rows/{token}", query_string=query)
        if response.status_code == 201:
            self.acknowledged.append(token)
            return True
        self.failed(token, began, response)
        return False

    def get(self, client: FlaskClient, **query: Any) -> bool:
        """Send a request, and check that the response belongs to it."""
        token, began = self.token(), time.perf_counter()
        response = client.get(f"/answer/{token}", query_string=query)
        if response.status_code == 200 and response.text == token:
            return True
        self.failed(token, began, response)
        return False

    def failed(self, token: str, began: float, response: Any) -> None:
        """Remember a failed response."""
        if response.status_code == DATABASE_FAILED:
            ended = time.perf_counter()
            self.failures.append(Failure(token, response.text, began, ended))
        else:
            self.strange.append(f"{token}: {response.status} {response.text[:200]}")

    def kinds(self) -> Counter[str]:
        """Count the failures by kind."""
        return Counter(failure.kind for failure in self.failures)

    def audit(self, url: URL) -> None:
        """Check the table: no row is lost, stored twice or unknown."""
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            kept = Counter(connection.scalars(select(Row.token)))
        assert not self.strange, self.strange[:5]
        lost = set(self.acknowledged) - kept.keys()
        assert not lost, f"acknowledged and lost: {sorted(lost)}"
        twice = {token: count for token, count in kept.items() if count > 1}
        assert not twice, f"stored more than once: {twice}"
        asked = {*self.acknowledged, *(failure.token for failure in self.failures)}
        assert kept.keys() <= asked, f"no client stored {kept.keys() - asked}"


class Crowd:
    """Threads that send requests until the block ends.

    :param visit: Sends one request; called with the thread's own client and random
        generator.
    """

    def __init__(
        self,
        app: Flask,
        count: int,
        visit: Callable[[FlaskClient, random.Random], object],
        *,
        seed: int = 0,
    ) -> None:
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self.visits = 0
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(app, visit, random.Random(f"{seed} {number}")),
                name=f"client-{number}",
            )
            for number in range(count)
        ]

    def _run(
        self,
        app: Flask,
        visit: Callable[[FlaskClient, random.Random], object],
        chance: random.Random,
    ) -> None:
        client = app.test_client()
        try:
            while not self._over.is_set():
                visit(client, chance)
                self.visits += 1
        except BaseException as error:  # noqa: BLE001 - raised by __exit__()
            self._errors.append(error)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} is still running"
        if self._errors:
            raise self._errors[0]

    def wait_for(self, more: int) -> None:
        """Wait until *more* further visits have ended."""
        goal = self.visits + more
        wait_until(lambda: self.visits >= goal, timeout=60, what=f"{more} visits")


def together(count: int, work: Callable[[], Any]) -> list[Any]:
    """Run `work` in `count` threads at once, and return all results."""
    found: list[Any] = []

    def run() -> None:
        found.append(work())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count, f"{count - len(found)} threads did not return"
    return found


def books(db: ScopedSession[Any], app: Flask) -> tuple[int, int, int, int]:
    """Return used and open as counted by the ledger, then as counted by the pool."""
    with app.app_context():
        (ours,) = db.snapshot().pools
        pool: Any = db.engine.pool
    # The pool's public API does not tell which queued entries are connected.
    idle = sum(entry.dbapi_connection is not None for entry in pool._pool.queue)
    return ours.used, ours.open, pool.checkedout(), idle + pool.checkedout()


def check_books(
    db: ScopedSession[Any],
    app: Flask,
    server: Callable[[], int] | None = None,
) -> int:
    """Check, without traffic, that ledger, pool and server agree, and all is idle.

    :param server: Returns the number of connections on the database server.
    :return: The number of open connections.
    """
    used, opened, out, in_pool = books(db, app)
    assert (used, out) == (0, 0)
    with app.app_context():
        (pool,) = db.snapshot().pools
    assert (pool.pending, pool.holders, pool.waiters) == (0, (), ())
    assert opened == in_pool
    if server is not None:
        # A backend lives a little longer than the client's side of its connection.
        wait_until(
            lambda: server() == opened,
            what=lambda: f"{opened} connections here, {server()} at the server",
        )
    return opened
