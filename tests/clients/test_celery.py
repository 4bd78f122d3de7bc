"""Celery's tasks have a session each, and are shown and reported by their names."""

from __future__ import annotations

import celery
import pytest
from celery import signals
from celery.contrib.testing.worker import start_worker
from clients import Client
from clients import recipe
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import LostWork

CLIENT = Client(
    name="Celery",
    url="https://docs.celeryq.dev/",
    works="recipe",
    does="writes in tasks, eager and in a worker, and names the task in all reports",
)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)


db = ScopedSession(model_class=Base)


@pytest.fixture
def shop(make_app, sqlite_url):
    shop = make_app(
        db, SQLALCHEMY_DATABASE_URI=sqlite_url, SCOPEDSESSION_MANY_STATEMENTS=4
    )
    with shop.app_context():
        db.create_all()
    return shop


@pytest.fixture
def jobs(shop, monkeypatch):
    monkeypatch.setattr(signals.worker_process_init, "receivers", [])
    # A worker leaves the logging of this process as it is.
    monkeypatch.setattr(signals.setup_logging, "receivers", [])
    signals.setup_logging.connect(leave_logging)
    shop.config["CELERY"] = {
        "broker_url": "memory://",
        "result_backend": "cache+memory://",
        "broker_transport_options": {"polling_interval": 0.01},
        "worker_redirect_stdouts": False,
        "broker_connection_retry_on_startup": True,
    }
    jobs = recipe("Celery", db=db)["celery_init_app"](shop)
    yield jobs
    jobs.close()


def leave_logging(**_):
    pass


@pytest.fixture
def eager(jobs):
    jobs.conf.update(task_always_eager=True, task_eager_propagates=True)
    return jobs


def add():
    """Add an order. Return who has it, as its session and its connection say."""
    db.session.add(Order())
    db.session.flush()
    found = db.snapshot()
    number = db.session().hash_key
    (session,) = (each for each in found.sessions if each.session == number)
    (holder,) = (each for each in found.pools[0].holders if each.session == number)
    who = [(one.endpoint, one.command, one.job) for one in (session, holder)]
    assert who[0] == who[1]
    return who[0]


def saved(shop):
    with shop.app_context():
        return db.session.scalar(select(func.count(Order.id)))


def test_eager_tasks(shop, eager):
    """Each has its own session."""

    @eager.task(name="orders.add", shared=False)
    def task():
        who = add()
        db.session.commit()
        return who, db.session().hash_key

    with shop.app_context():
        (one, first), ours = task.delay().get(), db.session().hash_key
        (two, second) = task.delay().get()
    assert one == two == (None, None, "task orders.add")
    assert len({ours, first, second}) == 3
    assert saved(shop) == 2


def test_an_eager_task_that_does_not_commit(shop, eager, caplog):
    """The task is named, also within a request whose view has committed."""

    @eager.task(name="orders.forget", shared=False)
    def forget():
        add()

    @shop.post("/orders")
    def create():
        db.session.add(Order())
        db.session.commit()
        forget.delay()
        return ""

    message = r"^task orders\.forget ended without commit\(\).*\(1 Order\)"
    shop.config["SCOPEDSESSION_LOST_WORK"] = "raise"
    with pytest.raises(LostWork, match=message):
        forget.delay()
    shop.testing = False
    shop.test_client().post("/orders")
    (record,) = caplog.records
    assert record.scopedsession_job == "task orders.forget"
    with shop.app_context():
        lost = db.snapshot().lost_work
    assert {(each.job, each.endpoint) for each in lost} == {
        ("task orders.forget", None)
    }


def test_a_task_that_fails(shop, eager, caplog):
    """It has lost its work on purpose, also if it is tried once more."""

    @eager.task(
        name="orders.fail", shared=False, autoretry_for=[OSError], max_retries=0
    )
    def fail():
        add()
        raise OSError

    with pytest.raises(OSError):
        fail.delay()
    assert caplog.records == []
    assert saved(shop) == 0


def test_a_task_that_sends_many_statements(shop, eager, caplog):
    """It is reported as a request or a command would be."""

    @eager.task(name="orders.look", shared=False)
    def look():
        for number in range(5):
            db.session.scalar(select(Order.id).where(Order.id == number))

    look.delay()
    look.delay()
    (said,) = caplog.messages
    assert said.startswith("task orders.look sent 5 statements")
    assert "Most often, 5×" in said


def test_a_context_that_outlasts_its_tasks(shop, jobs):
    """It is not said to be that of the task that used it first."""

    @jobs.task(name="orders.count", shared=False, base=celery.Task)
    def count():
        return add()

    with shop.app_context():
        assert count.apply().get() == (None, None, "task orders.count")
        (session,) = db.snapshot().sessions
        assert (session.job, session.thread) == (None, "MainThread")
        assert count.apply().get() == (None, None, None)
        db.session.rollback()


def test_a_worker(shop, jobs, caplog):
    """It runs tasks from a queue, in another thread or process."""
    shop.testing = False

    @jobs.task(name="orders.add", shared=False)
    def task(commits):
        who = add()
        if commits:
            db.session.commit()
        return who

    with start_worker(jobs, perform_ping_check=False, loglevel="ERROR"):
        answers = [
            task.delay(commits).get(timeout=10, interval=0.01)
            for commits in (True, False)
        ]
        with shop.app_context():
            assert [worker.role for worker in db.workers().live] == ["job"]
        jobs.control.shutdown()
    assert answers == 2 * [[None, None, "task orders.add"]]
    assert saved(shop) == 1
    (said,) = (m for m in caplog.messages if "commit()" in m)
    assert said.startswith("task orders.add ended without commit()")
