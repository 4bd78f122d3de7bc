"""APScheduler's jobs have a session each, and are shown and reported by their names."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime
from datetime import timezone

import pytest
from apscheduler.events import EVENT_JOB_ERROR
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from clients import Client
from clients import recipe
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="APScheduler",
    url="https://apscheduler.readthedocs.io/",
    works="recipe",
    does="writes in jobs, and names the job that holds a connection or does not commit",
)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    is_old: Mapped[bool]


db = ScopedSession(model_class=Base)


@pytest.fixture
def shop(make_app, sqlite_url):
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with app.app_context():
        db.create_all()
        db.session.add_all([Order(is_old=True), Order(is_old=False)])
        db.session.commit()
    return app


@pytest.fixture
def start():
    """Start a scheduler, and wait until its job has run."""
    started = []

    def start(scheduler):
        ended = threading.Event()
        scheduler.add_listener(
            lambda event: ended.set(), EVENT_JOB_EXECUTED | EVENT_JOB_ERROR
        )
        started.append(scheduler)
        scheduler.start()
        for job in scheduler.get_jobs():
            job.modify(next_run_time=datetime.now(timezone.utc))
        assert ended.wait(10)

    yield start
    for each in started:
        each.shutdown()


def orders(shop):
    with shop.app_context():
        return db.session.scalar(select(func.count(Order.id)))


def who():
    """Say who has the session, and who holds the connection."""
    found = db.snapshot()
    (session,), (holder,) = found.sessions, found.pools[0].holders
    assert session.job == holder.job
    return session.job


def test_a_job(shop, start):
    """It has a session of its own."""
    start(recipe("APScheduler", db=db, Order=Order)["create_scheduler"](shop))
    assert orders(shop) == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "job forget"),
        ({"id": "nightly"}, "job forget (nightly)"),
        ({"id": "forget"}, "job forget"),
        ({"name": "Nightly clean-up", "id": "n"}, "job Nightly clean-up (n)"),
    ],
)
def test_a_job_that_does_not_commit(shop, start, caplog, options, name):
    """It is named by its name, and by its ID if it has been given one."""
    seen = []

    def forget():
        with shop.app_context():
            db.session.add(Order(is_old=False))
            db.session.flush()
            seen.append(who())

    forget.__qualname__ = "forget"
    scheduler = BackgroundScheduler()
    scheduler.add_job(forget, "interval", hours=1, **options)
    start(scheduler)
    assert seen == [name]
    (said,) = (text for text in caplog.messages if "commit()" in text)
    assert said.startswith(f"{name} ended without commit()")
    with shop.app_context():
        assert [lost.job for lost in db.snapshot().lost_work] == [name]
    assert orders(shop) == 2


def test_a_coroutine(shop):
    """Jobs of an event loop are named, too."""
    seen = []

    async def main():
        ended = asyncio.Event()

        async def look():
            with shop.app_context():
                await asyncio.sleep(0)
                db.session.scalar(select(func.count(Order.id)))
                seen.append(who())
            ended.set()

        look.__qualname__ = "look"
        scheduler = AsyncIOScheduler()
        scheduler.add_job(look)
        scheduler.start()
        await asyncio.wait_for(ended.wait(), 10)
        scheduler.shutdown()

    asyncio.run(main())
    assert seen == ["job look"]


def test_a_job_that_fails(shop, start, caplog):
    """It has lost its work on purpose."""

    def fail():
        with shop.app_context():
            db.session.add(Order(is_old=False))
            db.session.flush()
            raise OSError

    scheduler = BackgroundScheduler()
    scheduler.add_job(fail)
    start(scheduler)
    assert not [text for text in caplog.messages if "commit()" in text]
    assert orders(shop) == 2
