"""The page has the facts and words of the commands."""

from __future__ import annotations

import re
from html import unescape

import pytest
from flask import Flask
from inside import render_pools
from inside import render_sessions
from readings import a_full_pool
from readings import a_holder
from readings import a_last_worker
from readings import a_pool
from readings import a_session
from readings import a_shared_use
from readings import a_silent
from readings import a_survey
from readings import a_worker
from readings import lost_work

from flask_scopedsession import ScopedSession
from flask_scopedsession.dashboard import _blueprint
from flask_scopedsession.dashboard import dashboard
from flask_scopedsession.snapshot import Survey

TROUBLED = a_survey(
    a_worker(
        4711,
        [a_pool(), a_full_pool("audit")],
        state="wedged",
        sessions=(a_session(), a_session(2, state="needs rollback", requests=3)),
        lost_work=(lost_work({"Note": 2, "Tag": 1}),),
        recent_shared=(a_shared_use(),),
    ),
    a_last_worker(4712, "gone", pools=[a_full_pool()], sessions=(a_session(3),)),
    a_last_worker(4713, "stopped"),
    a_worker(4714, [a_pool(invalidated_60s=2)], truncated=True),
    silent=(a_silent(4713, "stopped"), a_silent(4715, "unresponsive")),
)


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch):
    """Return the page that shows a survey."""

    def page_of(survey: Survey, path: str = "/") -> str:
        monkeypatch.setattr(_blueprint, "_survey", lambda db: survey)
        app = Flask("shop")
        db = ScopedSession()
        app.register_blueprint(dashboard(db, authorize=lambda: True))
        return app.test_client().get(path).text

    return page_of


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", page)).split())


def words_of(text: str) -> set[str]:
    return {word.strip(".,;:()") for word in text.casefold().split()}


def test_every_word_of_the_commands_is_on_the_page(show):
    """Also of each connection, as with --verbose."""
    page = words_of(text_of(show(TROUBLED)))
    printed = render_pools(TROUBLED, advice=False) + render_sessions(TROUBLED)
    missing = words_of(printed) - page
    # Where there is a table, its columns say what these words say in a sentence.
    assert missing <= {"bind", "·", "held", "for", "pid", ""}
    verbose = render_pools(TROUBLED, verbose=True, advice=False)
    connections = [
        line for line in verbose.splitlines() if line.strip().startswith("connection ")
    ]
    assert len(connections) > 10
    assert words_of(" ".join(connections)) <= page


@pytest.mark.parametrize("healthy", [3, 96])
def test_many_healthy_workers_are_folded(show, healthy):
    """As the commands have it; what they leave out can be unfolded."""
    workers = [a_worker(5000 + number) for number in range(healthy)]
    trouble = a_worker(4711, [a_full_pool()], state="wedged")
    page = show(a_survey(trouble, *workers))
    folded = re.search(r"<summary>(\d+) workers ok</summary>", page)
    assert (folded and int(folded[1])) == (healthy if healthy > 10 else None)
    rows = re.findall(r'<tr data-key="\d+-abcdef01 default">', page)
    assert len(rows) == len(set(rows)) == healthy + 1


def test_a_page_has_a_limit(show):
    """Of rows; the rest is counted."""
    workers = [a_worker(n, [a_full_pool()], state="wedged") for n in range(5000, 5150)]
    page = show(a_survey(*workers))
    assert "50 more rows are not shown" in page
    assert len(page) < 300_000


def test_nobody_has_answered(show):
    page = text_of(show(a_survey()))
    assert "No worker has answered (looked in /tmp/flask-scopedsession-0/" in page
    assert "A worker answers after its first request" in page
    assert "No worker has reported a pool." in page


def test_statements_only_if_the_commands_show_them(show):
    """They have them if a worker tells them: with SCOPEDSESSION_SHOW_SQL."""
    told = a_pool(holders=(a_holder(sql="SELECT  name\nFROM note"),))
    for path in ("/", "/content"):
        assert "last statement" not in show(TROUBLED, path)
        page = text_of(show(a_survey(a_worker(4711, [told])), path))
        assert "last statement: SELECT name FROM note" in page
