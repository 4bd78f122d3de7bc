"""The dashboard as it is served: to whom, what is on it, and how it is protected."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator
from collections.abc import Iterator
from functools import partial
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from flask import abort
from flask import redirect
from flask import request
from flask.testing import FlaskClient
from sqlalchemy import text
from waiting import wait_until
from werkzeug.exceptions import Unauthorized
from werkzeug.local import LocalProxy

from flask_scopedsession import ScopedSession
from flask_scopedsession.dashboard import dashboard
from flask_scopedsession.errors import SetupError

ROUTES = ("", "content", "status.json", "assets/dashboard.js", "assets/dashboard.css")


def everybody() -> bool:
    return True


@pytest.fixture
def served(make_app, sqlite_url):
    """Make an application with the dashboard at ``/pools/``, which answers."""

    def make(
        authorize: Any = everybody, db: ScopedSession | None = None, **config: Any
    ) -> tuple[FlaskClient, ScopedSession]:
        db = db or ScopedSession()
        defaults = {
            "SQLALCHEMY_DATABASE_URI": sqlite_url,
            "SCOPEDSESSION_CONTROL": True,
        }
        app = make_app(db, **{**defaults, **config})
        app.register_blueprint(dashboard(db, authorize=authorize), url_prefix="/pools")
        return app.test_client(), db

    return make


def page_of(client: FlaskClient, path: str = "/pools/", **kwargs: Any) -> str:
    reply = client.get(path, **kwargs)
    assert reply.status_code == 200, reply.text
    return reply.text


def words(page: str) -> str:
    """Return the text of a page, without tags, in single spaces."""
    return " ".join(unescape(re.sub("<[^>]*>", " ", page)).split())


# Who may see it


def test_without_authorize_it_is_refused(make_app):
    """The error names the argument, the fact and the remedy."""
    db = ScopedSession()
    app = make_app(db)
    with pytest.raises(SetupError, match="'authorize'") as caught:
        app.register_blueprint(dashboard(db))
    assert "is not in debug mode" in str(caught.value)
    assert "dashboard(db, authorize=may_see)" in str(caught.value)
    assert app.test_client().get("/content").status_code == 404


def test_without_authorize_it_is_served_in_debug_mode_only(served):
    client, _ = served(authorize=None, DEBUG=True)
    assert client.get("/pools/").status_code == 200
    client.application.debug = False
    for route in ROUTES:
        assert client.get(f"/pools/{route}").status_code == 403


def test_authorize_must_be_a_function():
    with pytest.raises(SetupError, match=r"authorize=.*must be a function, not True"):
        dashboard(ScopedSession(), authorize=True)  # type: ignore[arg-type]


def an_abort() -> None:
    abort(401)


async def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("authorize", "status"),
    [
        (lambda: False, 403),
        (lambda: None, 403),
        (lambda: (), 403),
        (lambda: SimpleNamespace(is_authenticated=False), 403),
        (lambda: Unauthorized(), 401),
        (never, 403),
        (an_abort, 401),
        (lambda: redirect("/login"), 302),
        (lambda: ("Log in first", 401), 401),
    ],
)
@pytest.mark.parametrize("route", ROUTES)
def test_nobody_unauthorised_sees_anything(served, authorize, status, route):
    """Neither data nor that there are any, by any method."""
    client, _ = served(authorize, import_name="secretshop")
    for method in ("GET", "HEAD", "OPTIONS"):
        reply = client.open(f"/pools/{route}", method=method)
        assert reply.status_code == status
        assert not re.search("secretshop|worker|pool", reply.text.replace("/pools", ""))
        assert reply.headers["Cache-Control"] == "no-store"
    assert client.get("/pools/unknown").status_code == 404


def no_answer() -> Iterator[bool]:
    yield False


async def no_async_answer() -> AsyncIterator[bool]:
    yield False


@pytest.mark.parametrize(
    "authorize",
    [
        lambda: never,
        lambda: "x".upper,
        lambda: SimpleNamespace(is_authenticated="".isascii),
        no_answer,
        no_async_answer,
        partial(no_async_answer),
    ],
)
def test_what_is_always_true_admits_nobody(served, authorize):
    """A function that was never called, and a generator that was never run."""
    client, _ = served(authorize)
    with pytest.raises(TypeError, match="'authorize' of the dashboard returned"):
        client.get("/pools/")


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_coroutine_admits_nobody(served):
    client, _ = served(lambda: never())
    with pytest.raises(TypeError, match="'authorize' of the dashboard returned"):
        client.get("/pools/")


@pytest.mark.parametrize(("known", "status"), [(True, 200), (False, 403)])
def test_the_current_user_of_flask_login(served, known, status):
    """It is a proxy, which stands for the user or the anonymous one."""
    user = LocalProxy(lambda: SimpleNamespace(is_authenticated=known))
    client, _ = served(lambda: user)
    assert client.get("/pools/").status_code == status


def test_who_may_see_it_is_asked_in_each_request(served):
    client, _ = served(lambda: request.args.get("key") == "right")
    assert client.get("/pools/?key=right").status_code == 200
    assert client.get("/pools/?key=wrong").status_code == 403

    async def may_see() -> bool:
        return request.args.get("key") == "right"

    client, _ = served(may_see)
    assert client.get("/pools/?key=right").status_code == 200
    assert client.get("/pools/?key=wrong").status_code == 403


# How it is protected


def test_headers(served):
    client, _ = served()
    for route in ("", "content"):
        policy = client.get(f"/pools/{route}").headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
    for route in ROUTES:
        headers = client.get(f"/pools/{route}").headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        data = not route.startswith("assets/")
        assert ("no-store" in headers["Cache-Control"]) is data
    assert client.get("/pools/status.json").content_type == "application/json"


def test_nothing_is_inline_or_from_elsewhere(served):
    page = page_of(served()[0])
    assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:", page)
    assert "<script defer src=" in page
    assert not re.search(r"<script(?! defer src=)", page)
    links = re.findall(r'(?:href|src|data-source)="([^"#]*)"', page)
    assert len(links) == 7
    assert all(link.startswith("/pools/") for link in links)


def test_it_only_reads(served):
    client, _ = served()
    for route in ROUTES:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert client.open(f"/pools/{route}", method=method).status_code == 405


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><b>\u202ebold'])
def test_names_are_escaped(make_app, sqlite_url, name):
    """Of applications, views and threads."""
    db = ScopedSession()
    app = make_app(
        *(db,),
        import_name=name,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SCOPEDSESSION_CONTROL=True,
    )
    app.register_blueprint(dashboard(db, authorize=everybody), url_prefix="/pools")
    kept = []

    def view(number: int) -> str:
        kept.append(db.engine.connect())
        db.session.execute(text("SELECT 1"))
        return page_of(app.test_client())

    app.add_url_rule("/it's/<int:number>", endpoint=name, view_func=view)
    pages = []

    def visit() -> None:
        pages.append(app.test_client().get("/it's/1").text)

    thread = threading.Thread(target=visit, name=name)
    thread.start()
    thread.join()
    pages.append(page_of(app.test_client()))
    kept.pop().close()
    shown = name.replace("\u202e", "")
    for page in pages:
        assert page.count("<script") == page.count("<script defer src=")
        assert "<b>" not in page
        assert "\u202e" not in page
        assert words(page).count(shown) > 2
        assert f"× {shown} Connection" in words(page)


# Where it is


def test_any_prefix(make_app, sqlite_url):
    """Behind a proxy's prefix, registered twice, and with a variable."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SCOPEDSESSION_CONTROL=True)
    app.register_blueprint(dashboard(db, authorize=everybody), url_prefix="/a/b")
    only = dashboard(db, authorize=lambda: request.args.get("key"))
    app.register_blueprint(only, url_prefix="/<team>/pools", name="teams")
    app.register_blueprint(dashboard(db, authorize=everybody), name="root")
    client = app.test_client()
    for prefix, query in (("/a/b", ""), ("/red/pools", "?key=1"), ("", "")):
        page = page_of(
            client, f"{prefix}/{query}", environ_overrides={"SCRIPT_NAME": "/shop"}
        )
        links = re.findall(r'(?:href|src|data-source)="([^"#]*)"', page)
        assert len(links) == 7
        for link in links:
            assert link.startswith(f"/shop{prefix}/"), link
            assert client.get(link.removeprefix("/shop") + query).status_code == 200
    assert client.get("/red/pools/").status_code == 403


def test_several_applications(served, tmp_path):
    """Each is about its own workers, with its own rule of who may see it."""
    first, _ = served(import_name="one", SQLALCHEMY_DATABASE_URI="sqlite:///1.db")
    second, _ = served(import_name="two", SQLALCHEMY_DATABASE_URI="sqlite:///2.db")
    third, _ = served(lambda: False, import_name="three")
    assert "1.db" in page_of(first)
    assert "2.db" not in page_of(first)
    assert "2.db" in page_of(second)
    assert third.get("/pools/").status_code == 403


# What is on it


def test_its_numbers_are_those_of_pool_status(served):
    """The document is that of ``--json``, and the page has the terminal's cells."""
    client, db = served()
    app = client.application
    page_of(client)
    with app.app_context():
        held = db.engine.connect()
        db.session.execute(text("SELECT 1"))

        def same() -> bool:
            mine = client.get("/pools/status.json").json
            theirs = app.test_cli_runner().invoke(args=["pool-status", "--json"])
            documents = [mine, json.loads(theirs.stdout)]
            for document in documents:
                del document["collected_at"]
            [pool] = documents[0]["workers"][0]["pools"]
            now = pool["used"], pool["max"], len(pool["holders"])
            return documents[0] == documents[1] and now == (2, 15, 2)

        # A worker's answer is shared for a tenth of a second.
        wait_until(same, what="the same answer")
        printed = app.test_cli_runner().invoke(args=["pool-status", "--verbose"]).stdout
        row = next(line for line in printed.splitlines() if "QueuePool" in line)
        page = words(page_of(client))
        assert [cell for cell in row.split() if cell not in page] == []
        assert "2 used, 0 idle · 1 worker may open at most 15" in page
        assert "2 used, 0 idle · 1 worker may open at most 15" in printed
        held.close()


def test_a_leak_and_lost_work(served):
    client, db = served()
    app = client.application
    kept = []

    @app.get("/leak")
    def leak() -> str:
        kept.append(db.engine.connect())
        return ""

    @app.get("/lose")
    def lose() -> str:
        db.session.execute(text("CREATE TABLE note (body)"))
        db.session.commit()
        db.session.execute(text("INSERT INTO note VALUES (1)"))
        return ""

    assert "All is well" in words(page_of(client))
    for path in ("/leak", "/lose"):
        client.get(path)

    def both() -> str | None:
        page = words(page_of(client))
        return page if "1 connection leaked" in page and "/lose" in page else None

    page = wait_until(both, what="the leak and the lost work")
    assert "Leaked: the request is over, or the thread has ended" in page
    assert "1× leak" in page
    assert "its request is over, its thread is alive" in page
    assert "Uncommitted changes that were rolled back" in page
    assert "1× GET /lose → lose" in page
    kept.pop().close()


def test_it_takes_no_connection(served):
    """It answers when the pool is exhausted, and uses nothing that the app adds."""
    client, db = served(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})
    app = client.application
    # As Flask-Login's processor does, which loads the user.
    app.context_processor(lambda: {"user": db.session.scalar(text("SELECT 1"))})
    with app.app_context():
        held = db.engine.connect()
    for route in ROUTES:
        assert client.get(f"/pools/{route}").status_code == 200
    [worker] = client.get("/pools/status.json").json["workers"]
    assert worker["pools"][0]["checkouts_total"] == 1
    held.close()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"SCOPEDSESSION_CONTROL": False}, "SCOPEDSESSION_CONTROL is off"),
        ({"SCOPEDSESSION_TRACKING": False}, "SCOPEDSESSION_TRACKING is off"),
    ],
)
def test_nobody_can_be_asked(served, config, reason):
    """It says so, and why, with the words of the commands."""
    page = words(page_of(served(**config)[0]))
    assert "No worker has answered (looked in" in page
    assert reason in page
    assert "Configured pools (this process does not use them):" in page


def test_a_url_has_no_password(make_app, sqlite_url):
    db = ScopedSession()
    app = make_app(
        *(db,),
        SQLALCHEMY_BINDS={
            "default": sqlite_url,
            "other": "postgresql+psycopg://ed:hunter2@db.internal/shop?sslkey=hunter3",
        },
        SCOPEDSESSION_CONTROL=True,
    )
    app.register_blueprint(dashboard(db, authorize=everybody), url_prefix="/pools")
    for route in ROUTES[:3]:
        page = app.test_client().get(f"/pools/{route}").text
        assert "hunter" not in page
        assert "db.internal" in page


@pytest.mark.subprocess
def test_who_does_not_use_it_does_not_pay_for_it(run_script):
    """And a worker that serves it does not load rich."""
    run_script(
        "import sys\n"
        "import flask\n"
        "from flask_scopedsession import ScopedSession\n"
        "app = flask.Flask('app')\n"
        "app.config['SQLALCHEMY_DATABASE_URI'] = 'sqlite://'\n"
        "db = ScopedSession(app)\n"
        "assert 'flask_scopedsession.dashboard' not in sys.modules\n"
        "from flask_scopedsession.dashboard import dashboard\n"
        "app.register_blueprint(dashboard(db, authorize=lambda: True))\n"
        "reply = app.test_client().get('/')\n"
        "assert 'All is well' in reply.text, reply.text\n"
        "assert 'rich' not in sys.modules\n"
    ).check()
