"""Random traffic and random faults: no data is mixed up, lost, doubled or leaked.

``SOAK_SECONDS`` is the duration, and ``SOAK_SEED`` repeats the random choices of a run
(but not its timing).
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import random
import threading
import time
from contextlib import suppress

import psutil
import pytest
from databases import Backends
from faults import FaultProxy
from inside import Slot
from postgres import fresh_database
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from traffic import add_views
from traffic import Base
from traffic import check_books
from traffic import Crowd
from traffic import Tally
from waiting import wait_until

from flask_scopedsession import ScopedSession

#: By how much the process can grow once it is warm: in all, and for each request,
#: because the clients keep the answers. A leaked session is several times larger.
BYTES_MORE = 12 << 20
BYTES_PER_REQUEST = 1 << 10

CLIENTS = 6
POOL_SIZE, MAX_OVERFLOW = 4, 2

#: Seconds after which an idle connection is tested.
RESTED = 0.2

pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    # psycopg warns of a stream that is not read to its end.
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
]


class Soak:
    """The application, the proxy in front of its database, and its clients."""

    def __init__(self, app, db, server, url, proxy, chance):
        self.app, self.db = app, db
        self.server, self.proxy, self.chance = server, proxy, chance
        self.url = url
        self.backends = Backends(url)
        self.tally = Tally()
        self.leaked = []
        self.lock = threading.Lock()

    # The clients

    def visit(self, client, chance):
        (what,) = chance.choices(
            (
                self.tally.get,
                self.tally.post,
                self.undo,
                self.break_off,
                self.read_stream,
                self.leave_stream,
                self.leak,
                self.return_leak,
            ),
            (30, 30, 8, 8, 8, 8, 2, 6),
        )
        before = len(self.tally.failures)
        what(client)
        if len(self.tally.failures) > before:
            time.sleep(0.02)

    def undo(self, client):
        self.expect(client, "undone", 200)

    def break_off(self, client):
        self.expect(client, "broken", 418)

    def expect(self, client, what, status):
        token, began = self.tally.token(), time.perf_counter()
        response = client.post(f"/rows/{token}/{what}")
        if response.status_code != status:
            self.tally.failed(token, began, response)

    def read_stream(self, client):
        self.stream(client, most=1000)

    def leave_stream(self, client):
        self.stream(client, most=5)

    def stream(self, client, most):
        """Read some lines, check that they are ours, and disconnect."""
        token = self.tally.token()
        try:
            with client.get(f"/stream/{token}/300", buffered=False) as response:
                for line in itertools.islice(response.iter_encoded(), most):
                    if not line.startswith(f"{token} ".encode()):
                        self.tally.strange.append(f"{token} was sent {line!r}")
        except SQLAlchemyError:
            pass  # the database failed after the status was sent

    def leak(self, client):
        """Take a connection, and return it later."""
        if len(self.leaked) > 2:
            return
        with suppress(SQLAlchemyError), self.app.app_context():
            connection = self.db.engine.connect()
            with self.lock:
                self.leaked.append(connection)
            connection.execute(select(1))

    def return_leak(self, client):
        with self.lock:
            connection = self.leaked.pop() if self.leaked else None
        if connection is not None:
            with suppress(SQLAlchemyError):  # it can be dead by now
                connection.close()

    # The faults

    def fault(self):
        """Cause a fault, and end it."""
        kinds = {
            self.nothing: 1,
            self.kill_some: 4,
            self.kill_all: 2,
            self.proxy.cut: 3,
            self.refuse: 3,
            self.hang: 3,
            self.slow_down: 2,
            self.lose_answers: 4,
            self.dispose: 3,
            self.restart: 1,
        }
        (kind,) = self.chance.choices(list(kinds), list(kinds.values()))
        kind()
        self.proxy.forward()
        return kind.__name__

    def nothing(self):
        self.pause(0.2)

    def kill_some(self):
        for _ in range(self.chance.randint(1, 4)):
            pids = sorted(self.backends.ids())
            self.backends.kill(*self.chance.sample(pids, min(len(pids), 1)))
            self.pause(0.1)

    def kill_all(self):
        self.backends.kill_all()

    def refuse(self):
        self.proxy.refuse()
        self.proxy.cut()
        self.pause(0.4)

    def hang(self):
        self.proxy.hang()
        self.pause(0.8)
        if self.chance.random() < 0.5:
            self.proxy.cut()

    def slow_down(self):
        self.proxy.delay(self.chance.uniform(0.001, 0.02))
        self.pause(0.4)

    def lose_answers(self):
        for _ in range(5):
            self.proxy.cut_answer_to(b"COMMIT")
            self.pause(0.05)

    def dispose(self):
        for _ in range(self.chance.randint(1, 3)):
            self.db.dispose(self.app)
            self.pause(0.05)

    def restart(self):
        self.server.crash()
        self.pause(0.2)
        self.server.start()

    def pause(self, most):
        time.sleep(self.chance.uniform(0, most))

    # The invariants

    def check(self):
        """Without traffic, everything is in order without further action."""
        while self.leaked:
            self.return_leak(None)
        if self.chance.random() < 0.5:
            self.backends.kill_all()
        time.sleep(1.2 * RESTED)
        # A checkout finds dead connections; so check all of them out at the same time.
        with self.app.app_context():
            resting = self.db.engine.pool.checkedin()
            connections = [self.db.engine.connect() for _ in range(resting or 1)]
            for connection in connections:
                assert connection.scalar(select(1)) == 1
                connection.close()
        client, failures = self.app.test_client(), len(self.tally.failures)
        for _ in range(3):
            assert self.tally.post(client), self.tally.failures[failures:]
        check_books(self.db, self.app, lambda: len(self.backends.ids()))
        wait_until(lambda: set(self.backends.states().values()) <= {"idle"})
        self.tally.audit(self.url)
        gc.collect()
        left = [each for each in gc.get_objects() if isinstance(each, (Session, Slot))]
        assert [each for each in left if isinstance(each, Session)] == []
        # Each pool entry refers to one, also if its connection has died.
        assert len(left) <= POOL_SIZE + MAX_OVERFLOW
        with self.app.app_context():
            assert self.db.snapshot().sessions == ()


@pytest.fixture
def soak(make_app, frail_server, caplog):
    # Log records of broken connections would fill the measured memory.
    caplog.set_level(logging.CRITICAL, logger="sqlalchemy.pool")
    caplog.set_level(logging.CRITICAL, logger="flask_scopedsession")
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SOAK_SEED={seed}")
    with (
        fresh_database(frail_server.url) as url,
        FaultProxy(frail_server.socket) as proxy,
    ):
        db = ScopedSession(model_class=Base)
        app = make_app(
            db,
            SQLALCHEMY_DATABASE_URI=url.set(host=proxy.host, port=proxy.port, query={}),
            SQLALCHEMY_ENGINE_OPTIONS={
                "pool_size": POOL_SIZE,
                "max_overflow": MAX_OVERFLOW,
                "pool_timeout": 0.5,
                "connect_args": {"sslmode": "disable", "gssencmode": "disable"},
            },
            SCOPEDSESSION_PING_IDLE_AFTER=RESTED,
        )
        add_views(app, db)
        with app.app_context():
            db.create_all()
        yield Soak(app, db, frail_server, url, proxy, random.Random(seed))
        db.dispose(app)


def test_soak(soak, capsys):
    """Until the time is over."""
    seconds = float(os.environ.get("SOAK_SECONDS") or 30)
    process = psutil.Process()
    began = time.monotonic()
    warm = None
    rounds = visits = visits_until_warm = 0
    kinds = []
    while time.monotonic() - began < seconds:
        with Crowd(soak.app, CLIENTS, soak.visit, seed=soak.chance.random()) as crowd:
            for _ in range(soak.chance.randint(1, 3)):
                soak.pause(0.3)
                kinds.append(soak.fault())
        try:
            soak.check()
        except Exception as error:
            error.args = (f"after {kinds[-3:]}: {error}",)
            raise
        rounds += 1
        visits += crowd.visits
        used = process.memory_info().rss
        if warm is None and time.monotonic() - began > seconds / 3:
            warm, visits_until_warm = used, visits
    more = used - warm
    allowed = BYTES_MORE + BYTES_PER_REQUEST * (visits - visits_until_warm)
    assert more < allowed, f"{more >> 20} MiB more"
    failed = len(soak.tally.failures)
    with capsys.disabled():
        print(
            f"\nsoak: {rounds} rounds, {len(kinds)} faults, {visits} requests,"
            f" {failed} failed, {len(soak.tally.acknowledged)} rows acknowledged,"
            f" {more / (1 << 20):+.1f} MiB"
        )
    assert failed < visits / 2
