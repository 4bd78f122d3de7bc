"""An application that keeps rows, clients that remember what they were told.

What was acknowledged has to be in the table afterwards, once; what was not is there
once or not at all.
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

#: What a view answers when the database failed it.
DATABASE_FAILED = 503


class Base(DeclarativeBase):
    pass


class Row(Base):
    """Something that a client was told is kept. The token is not unique on purpose."""

    __tablename__ = "row_kept"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(80), index=True)


class CrossedError(Exception):
    """A request met another's session, or another's answer."""


def add_views(app: Flask, db: ScopedSession[Any]) -> None:
    """Add the views. Errors of the database are answered, others are 500."""
    app.config["PROPAGATE_EXCEPTIONS"] = False

    @app.errorhandler(SQLAlchemyError)
    def failed(error: SQLAlchemyError) -> tuple[str, int]:
        return type(error).__name__, DATABASE_FAILED

    def own_session(token: str) -> None:
        """Mark the session, and find that the connection answers this request."""
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
    """A request that was answered with an error of the database."""

    token: str
    kind: str
    began: float
    ended: float


class Tally:
    """What all clients were told."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.failures: list[Failure] = []
        self.strange: list[str] = []
        """What must not happen, whatever the database does."""
        self._numbers = itertools.count(1)

    def token(self) -> str:
        """Return a token that was never used."""
        return f"t{next(self._numbers)}"

    def post(self, client: FlaskClient, **query: Any) -> bool:
        """Let a row be kept, and remember the answer."""
        token, began = self.token(), time.perf_counter()
        response = client.post(f"/rows/{token}", query_string=query)
        if response.status_code == 201:
            self.acknowledged.append(token)
            return True
        self.failed(token, began, response)
        return False

    def get(self, client: FlaskClient, **query: Any) -> bool:
        """Ask for an answer, and see that it is to this question."""
        token, began = self.token(), time.perf_counter()
        response = client.get(f"/answer/{token}", query_string=query)
        if response.status_code == 200 and response.text == token:
            return True
        self.failed(token, began, response)
        return False

    def failed(self, token: str, began: float, response: Any) -> None:
        """Remember an answer that was no success."""
        if response.status_code == DATABASE_FAILED:
            ended = time.perf_counter()
            self.failures.append(Failure(token, response.text, began, ended))
        else:
            self.strange.append(f"{token}: {response.status} {response.text[:200]}")

    def kinds(self) -> Counter[str]:
        """Count the failures by kind."""
        return Counter(failure.kind for failure in self.failures)

    def audit(self, url: URL) -> None:
        """Compare with the table: nothing lost, nothing twice, nothing strange."""
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            kept = Counter(connection.scalars(select(Row.token)))
        assert not self.strange, self.strange[:5]
        lost = set(self.acknowledged) - kept.keys()
        assert not lost, f"acknowledged, and lost: {sorted(lost)}"
        twice = {token: count for token, count in kept.items() if count > 1}
        assert not twice, f"kept more than once: {twice}"
        asked = {*self.acknowledged, *(failure.token for failure in self.failures)}
        assert kept.keys() <= asked, f"nobody asked for {kept.keys() - asked}"


class Crowd:
    """Threads that send requests until they are told to stop.

    :param visit: Sends one; called with a client and a random generator of the
        thread's own.
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
        except BaseException as error:  # noqa: BLE001 - told by the one who waits
            self._errors.append(error)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} is still at it"
        if self._errors:
            raise self._errors[0]

    def wait_for(self, more: int) -> None:
        """Wait until so many more visits are over."""
        goal = self.visits + more
        wait_until(lambda: self.visits >= goal, timeout=60, what=f"{more} visits")


def together(count: int, work: Callable[[], Any]) -> list[Any]:
    """Run `work` in so many threads at once, and return what each returned."""
    found: list[Any] = []

    def run() -> None:
        found.append(work())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count, f"{count - len(found)} did not come back"
    return found


def books(db: ScopedSession[Any], app: Flask) -> tuple[int, int, int, int]:
    """Return used and open by our ledger, then used and open by the pool itself."""
    with app.app_context():
        (ours,) = db.snapshot().pools
        pool: Any = db.engine.pool
    # Private: of what is in the queue, the pool does not tell what is connected.
    resting = sum(entry.dbapi_connection is not None for entry in pool._pool.queue)
    return ours.used, ours.open, pool.checkedout(), resting + pool.checkedout()


def check_books(
    db: ScopedSession[Any],
    app: Flask,
    server: Callable[[], int] | None = None,
) -> int:
    """At a quiet point: ledger, pool and server agree, nobody holds or waits.

    :param server: Counts the connections that the database has.
    :return: How many connections are open.
    """
    used, opened, out, in_pool = books(db, app)
    assert (used, out) == (0, 0)
    with app.app_context():
        (pool,) = db.snapshot().pools
    assert (pool.pending, pool.holders, pool.waiters) == (0, (), ())
    assert opened == in_pool
    if server is not None:
        # A backend is there a little longer than its client's side.
        wait_until(
            lambda: server() == opened,
            what=lambda: f"{opened} connections here, {server()} at the server",
        )
    return opened
