"""Whatever is raised wherever in checkout and removal, the pool is whole afterwards.

An injector raises at the N-th event of a traced run, for every N: at each call of a
function in ``sqlalchemy.pool`` and at each line of ours. Those are the points where a
signal's or a greenlet's exception can arrive.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import itertools
import linecache
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy.pool
from inside import application_of
from sqlalchemy import text

import flask_scopedsession
from flask_scopedsession import ScopedSession
from flask_scopedsession._scopes import context as _context

pytestmark = pytest.mark.slow

OURS = f"{Path(flask_scopedsession.__file__).parent}{os.sep}"
POOL = f"{Path(sqlalchemy.pool.__file__).parent}{os.sep}"

#: Where SQLAlchemy itself cannot survive it: a pool's entry, and so a slot of the pool,
#: is held by nothing but a local variable of the function that makes this very call.
EXCLUDED = {
    # _ConnectionRecord.checkout() has the entry, and nothing to return it yet.
    "_ConnectionFairy.__init__",
    # _ConnectionRecord.checkin() has forgotten who had it, and not yet put it back.
    "Pool._return_conn",
    "TrackedPool._do_return_conn",
    "QueuePool._do_return_conn",
    "FairQueue.put",
}
EXCLUDED_NAMES = {each.partition(".")[2] for each in EXCLUDED}


#: Flask 3.2 collects the errors of teardowns.
FLASK_KEEPS_ERRORS = _context.REQUESTS_OWN_THEIR_CONTEXT


class Killed(BaseException):
    """As greenlet's ``GreenletExit`` and gevent's ``Timeout``: not an Exception."""


def excluded(frame):
    """Whether a function is one that SQLAlchemy cannot lose."""
    name = frame.f_code.co_name
    if name not in EXCLUDED_NAMES:  # nearly always, and at each event
        return False
    owner = frame.f_locals.get("self")
    return any(
        f"{class_.__name__}.{name}" in EXCLUDED
        and vars(class_).get(name) is not None
        and vars(class_)[name].__code__ is frame.f_code
        for class_ in type(owner).__mro__
    )


def about_to_call(frame):
    """Whether our part of an excluded function has not begun, or is over."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return "account" not in frame.f_locals or "_return_untracked(" in line


def notes_the_end_of_a_wait(frame):
    """Whether an exception here leaves a waiter, until its thread's next checkout."""
    return pops_a_waiter(frame.f_code.co_filename, frame.f_lineno)


@functools.cache
def pops_a_waiter(filename, number):
    return "account.waiting.pop(" in linecache.getline(filename, number)


class Injector:
    """Raises at one event of those that it counts, by its number or its place.

    At number 0 it raises nowhere, and notes all places.
    """

    def __init__(self, error, at, lines):
        self.error = error
        self.at = at
        self.lines = lines
        self.count = 0
        self.places = set()
        self.where = None
        self.before = sys.gettrace()  # coverage's, or a debugger's

    def __enter__(self):
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def _call(self, frame, event, argument):
        name = frame.f_code.co_filename
        ours = name.startswith(OURS)
        if self.lines and ours:
            return self._line
        if not self.lines and (ours or name.startswith(POOL)) and not excluded(frame):
            self._count(frame)
        return None

    def _line(self, frame, event, argument):
        if event == "line" and not (
            (excluded(frame) and about_to_call(frame)) or notes_the_end_of_a_wait(frame)
        ):
            self._count(frame)
        return self._line

    def _count(self, frame):
        self.count += 1
        if isinstance(self.at, int) and self.at not in (0, self.count):
            return
        place = f"{frame.f_code.co_name}:{frame.f_lineno}"
        self.places.add(place)
        if self.at in (self.count, place):
            self.where = place
            sys.settrace(self.before)
            raise self.error("injected")


@pytest.fixture
def db():
    return ScopedSession()


@pytest.fixture
def shop(db, make_app, sqlite_url):
    shop = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={
            "pool_size": 2,
            "max_overflow": 0,
            "pool_timeout": 0.01,
        },
    )

    @shop.get("/")
    def view():
        return str(db.session.scalar(text("SELECT 1")))

    return shop


@pytest.fixture
def nobody_keeps_errors(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


@pytest.fixture
def no_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def whole(db, shop):
    """Say what is wrong with the pool, or nothing."""
    with shop.app_context():
        found = db.snapshot()
        (pool,) = found.pools
        if pool.used or pool.pending or found.sessions:
            return f"{pool.used} out, {pool.pending} waiting, {found.sessions}"
        if application_of(shop).accounts["default"].waiting:
            return "somebody waits for ever"
        try:
            with db.engine.connect(), db.engine.connect():
                return None
        except sqlalchemy.exc.TimeoutError:
            return "it does not hand out its full size"


def request(db, shop):
    shop.test_client().get("/")


def context(db, shop):
    with shop.app_context():
        db.session.execute(text("SELECT 1"))
        db.session.commit()
        db.session.execute(text("SELECT 1"))


def removal(db, shop):
    with shop.app_context():
        db.session.execute(text("SELECT 1"))
        db.session.remove()


def freed(db, shop):
    """A context that nobody tears down."""
    functions, shop.teardown_appcontext_funcs = shop.teardown_appcontext_funcs, []
    try:
        with shop.app_context():
            db.session.execute(text("SELECT 1"))
    finally:
        shop.teardown_appcontext_funcs = functions


WORK = {w.__name__: w for w in (request, context, removal, freed)}


@pytest.mark.parametrize("lines", [False, True], ids=["calls", "lines"])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_at_any_point(db, shop, work, lines, nobody_keeps_errors, caplog, no_gc):
    """For each N, the pool is whole when the exception has been dealt with."""
    for logger in (None, "sqlalchemy"):  # a record would keep the traceback
        caplog.set_level("CRITICAL", logger)

    def run(error, at):
        with Injector(error, at, lines) as injector, suppress(BaseException):
            work(db, shop)
        return injector

    for account in application_of(shop).accounts.values():
        account.meters.rotate_at = float("inf")  # or a step may end in just one run
    # In context variables of its own, which an interrupted pop may leave changed.
    contextvars.copy_context().run(run, Killed, 0)
    missed = contextvars.copy_context().run(run, Killed, 0).places
    assert len(missed) > 20
    errors = itertools.cycle((Killed, KeyboardInterrupt, SystemExit, RuntimeError))
    broken = []

    def interrupt(at):
        error = next(errors)
        where = contextvars.copy_context().run(run, error, at).where
        wrong = whole(db, shop)
        if wrong and (FLASK_KEEPS_ERRORS or work in (request, freed)):
            # Flask keeps errors in a cycle, older ones in a request only; and a
            # __del__() that is interrupted is not called again.
            gc.collect()
            wrong = whole(db, shop)
        if wrong:
            broken.append((at, where, error.__name__, wrong))
            with shop.app_context():
                db.engine.dispose()
        # What is garbage lengthens the runs to come, which then end too early.
        gc.collect()
        return where

    for at in itertools.count(1):
        where = interrupt(at)
        if where is None:
            break
        missed.discard(where)
    # A run that follows an interrupt may be longer, and then passes over a place.
    missed -= {interrupt(place) for place in sorted(missed)}
    assert not broken, "\n".join(map(str, broken))
    assert not missed
