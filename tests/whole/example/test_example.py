"""The example application, as people and programs use it."""

from __future__ import annotations

import csv
import io
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from threading import Event
from typing import Any

import pytest
import sqlalchemy
from flask import Flask
from flask import url_for
from flask.testing import FlaskClient
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm.exc import DetachedInstanceError
from waiting import wait_until
from werkzeug.test import TestResponse

import example_app
from example_app import create_app
from example_app import export
from example_app import faults
from example_app import jobs
from example_app.extensions import db
from example_app.models import Airport
from flask_scopedsession.errors import SessionRemoved
from flask_scopedsession.errors import SharedSession

#: SQLAlchemy 2.0.0 and 2.0.1 do not check version counters on SQLite, and warn.
versions_may_be_unchecked = pytest.mark.filterwarnings(
    "ignore:.* does not support updated rowcount:sqlalchemy.exc.SAWarning"
)

FLIGHT = {
    "number": "LH400",
    "date": "2025-07-01",
    "origin": "EDDF",
    "destination": "KJFK",
    "minutes": 510,
    "remarks": "smooth",
}


def post_flight(browser: FlaskClient, **fields: Any) -> TestResponse:
    return browser.post("/api/flights", json={**FLIGHT, **fields})


def put_flight(browser: FlaskClient, **fields: Any) -> TestResponse:
    return browser.put("/api/flights/1", json={**FLIGHT, **fields})


def audited(folder: Path) -> list[tuple[str, int]]:
    """Read the audit database without the application."""
    with sqlite3.connect(folder / "audit.sqlite3") as connection:
        rows = connection.execute("SELECT action, flight_id FROM audit_entry")
        found = rows.fetchall()
    connection.close()
    return found


# Airports


def test_search_page(browser: FlaskClient) -> None:
    """Every word must match; accents and case are ignored."""
    page = browser.get("/?q=SÃO paulo guarulhos").text
    assert "Guarulhos" in page
    assert 'href="/airports/SBGR"' in page
    assert "of 1 for" in page


def test_search_prefers_the_code(browser: FlaskClient) -> None:
    """A code finds the airport that has it."""
    assert browser.get("/api/airports?q=ham").json["airports"][0]["icao"] == "EDDH"


def test_search_is_escaped(browser: FlaskClient) -> None:
    """The input is shown as text, and compared as text."""
    page = browser.get("/?q=<script>alert(1)</script>").text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert browser.get("/api/airports?q=%25").json["total"] == 0


def test_search_pages(browser: FlaskClient) -> None:
    """The pager keeps the search."""
    first = browser.get("/?q=international")
    assert 'rel="next" href="?q=international&amp;page=2"' in first.text
    assert 'rel="prev"' not in first.text
    second = browser.get("/?q=international&page=2")
    assert "Page 2 of" in second.text
    assert 'rel="prev" href="?q=international&amp;page=1"' in second.text


def test_pager_leads_nowhere_else(browser: FlaskClient) -> None:
    """Parameters of the query string cannot change the link's target."""
    page = browser.get("/?_external=1&_scheme=javascript&endpoint=x").text
    links = re.findall(r'rel="next" href="([^"]*)"', page)
    assert [link[0] for link in links] == ["?"]


@pytest.mark.parametrize("page", ["0", "-1", "x", "", "999", "\u0663", "9" * 30])
def test_no_such_page(browser: FlaskClient, page: str) -> None:
    """A page that does not exist is not found."""
    query = {"page": page, "q": "guarulhos"}
    assert browser.get("/", query_string=query).status_code == 404
    response = browser.get("/api/airports", query_string=query)
    assert response.json["error"]["status"] == response.status_code == 404


def test_airport_page(browser: FlaskClient) -> None:
    """An airport has one URL; its IATA code and lower case redirect there."""
    response = browser.get("/airports/fra", follow_redirects=True)
    assert response.request.path == "/airports/EDDF"
    assert "<h1>Frankfurt am Main International Airport</h1>" in response.text


def test_airport_api(browser: FlaskClient) -> None:
    """The API returns the facts, and nothing about their storage."""
    airport = browser.get("/api/airports/EDDF").json
    assert airport["iata"] == "FRA"
    assert airport["timezone"] == "Europe/Berlin"
    assert "search_text" not in airport


@pytest.mark.parametrize("code", ["QQQQ", "QQ", "%00%00%00%00", "a" * 500])
def test_no_such_airport(browser: FlaskClient, code: str) -> None:
    """The site answers with a page, and the API with JSON."""
    page = browser.get(f"/airports/{code}")
    assert page.status_code == 404
    assert "No airport has this code." in page.text
    answer = browser.get(f"/api/airports/{code}")
    assert answer.status_code == 404
    assert answer.json["error"]["message"] == "No airport has this code."


def test_no_such_url(browser: FlaskClient) -> None:
    """Errors of the routing look the same."""
    assert "<h1>Not Found</h1>" in browser.get("/nowhere").text
    assert browser.get("/api/nowhere").json["error"]["status"] == 404
    refused = browser.delete("/api/flights")
    assert refused.json["error"]["status"] == 405
    assert "POST" in refused.headers["Allow"]


# The flight log


def test_flight_by_form(browser: FlaskClient) -> None:
    """An entered flight is shown in the log and at its airports."""
    assert "Log a flight" in browser.get("/flights/new").text
    form = {**FLIGHT, "number": "lh 400", "origin": "fra", "remarks": "<b>calm</b>"}
    response = browser.post("/flights/new", data=form, follow_redirects=True)
    assert response.request.path == "/flights/1"
    assert "<h1>Flight LH400</h1>" in response.text
    assert "&lt;b&gt;calm&lt;/b&gt;" in response.text
    assert "LH400" in browser.get("/flights").text
    assert "LH400" in browser.get("/airports/KJFK").text


def test_flight_by_api(browser: FlaskClient) -> None:
    """The response has the URL of the entry, and the entry is there."""
    response = post_flight(browser)
    assert response.status_code == 201
    assert response.json == {**FLIGHT, "id": 1, "version": 1}
    assert browser.get(response.headers["Location"]).json == response.json
    assert browser.get("/api/flights").json["total"] == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("number", "", "Enter a flight number"),
        ("number", "400", "Enter a flight number"),
        ("number", "LH\u0664\u0660\u0660", "Enter a flight number"),
        ("date", "01.07.2025", "Enter a date as YYYY-MM-DD"),
        ("date", "2025-02-30", "Enter a date as YYYY-MM-DD"),
        ("date", "1903-12-16", "Enter a date between"),
        ("date", "9999-12-31", "Enter a date between"),
        ("origin", None, "Enter an airport's ICAO or IATA code"),
        ("destination", "QQQQ", "No airport has this code"),
        ("minutes", 0, "Enter a whole number from 1 to 1440"),
        ("minutes", "1_0", "Enter a whole number from 1 to 1440"),
        ("minutes", True, "Write this as text"),
        ("remarks", "x" * 501, "Use at most 500 characters, not 501"),
        ("remarks", "\x00", "Leave out control characters"),
        ("remarks", "\ud800", "Leave out control characters"),
        ("remarks", ["a"], "Write this as text"),
    ],
)
def test_invalid_field(
    browser: FlaskClient, field: str, value: object, message: str
) -> None:
    """Each error names its field, and nothing is saved."""
    response = post_flight(browser, **{field: value})
    assert response.status_code == 400
    fields = response.json["error"]["fields"]
    assert list(fields) == [field]
    assert fields[field].startswith(message)
    assert browser.get("/api/flights").json["total"] == 0


def test_all_mistakes_at_once(browser: FlaskClient) -> None:
    """All errors are shown together."""
    response = browser.post("/api/flights", json={})
    assert set(response.json["error"]["fields"]) == {
        "number",
        "date",
        "origin",
        "destination",
    }


def test_form_keeps_what_was_entered(browser: FlaskClient) -> None:
    """The form is shown again with the errors and the valid input."""
    response = browser.post("/flights/new", data={**FLIGHT, "origin": "QQQQ"})
    assert response.status_code == 400
    assert "No airport has this code." in response.text
    assert 'aria-invalid="true"' in response.text
    assert 'value="LH400"' in response.text
    assert 'value="QQQQ"' in response.text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ("{", "application/json", 400),
        ("[1]", "application/json", 400),
        ("null", "application/json", 400),
        ("{}", "text/plain", 415),
    ],
)
def test_body_that_is_no_object(
    browser: FlaskClient, body: str, kind: str, status: int
) -> None:
    """This error is JSON, too."""
    response = browser.post("/api/flights", data=body, content_type=kind)
    assert response.status_code == status
    assert response.json["error"]["status"] == status


@pytest.mark.parametrize("number", ["2", "99999999999999999999"])
def test_no_such_flight(browser: FlaskClient, number: str) -> None:
    """An ID too large for a database is not found."""
    for path in ("/flights/{}", "/flights/{}/edit", "/api/flights/{}", "/api/jobs/{}"):
        assert browser.get(path.format(number)).status_code == 404


@pytest.mark.real_commits
def test_flight_twice(browser: FlaskClient, tmp_path: Path) -> None:
    """Number and date are unique; the refused flight leaves no trace."""
    post_flight(browser)
    response = post_flight(browser, destination="EDDM")
    assert response.status_code == 409
    message = "Flight LH400 on 2025-07-01 is in the log already."
    assert response.json["error"]["message"] == message
    page = browser.post("/flights/new", data=FLIGHT)
    assert page.status_code == 409
    assert message in page.text
    assert browser.get("/api/flights").json["total"] == 1
    assert audited(tmp_path) == [("created", 1)]


@versions_may_be_unchecked
def test_edit(browser: FlaskClient) -> None:
    """A correction increments the version."""
    post_flight(browser)
    response = put_flight(browser, minutes=480, version=1)
    assert response.status_code == 200
    assert response.json["version"] == 2
    assert browser.get("/api/flights/1").json["minutes"] == 480


@pytest.mark.real_commits
def test_edit_that_changes_nothing(browser: FlaskClient, tmp_path: Path) -> None:
    """It makes no new version, and no audit entry."""
    post_flight(browser)
    assert put_flight(browser, version=1).json["version"] == 1
    assert audited(tmp_path) == [("created", 1)]


def test_edit_to_a_flight_that_exists(browser: FlaskClient) -> None:
    """The unique constraint applies to edits, too."""
    post_flight(browser)
    post_flight(browser, number="LH401")
    response = put_flight(browser, number="LH401", version=1)
    assert response.status_code == 409
    assert browser.get("/api/flights/1").json["number"] == "LH400"


@pytest.mark.parametrize("version", [None, "", "x", 0])
def test_edit_without_version(browser: FlaskClient, version: object) -> None:
    """An edit without its version is refused."""
    post_flight(browser)
    response = put_flight(browser, version=version)
    assert response.status_code == 400
    assert "version" in response.json["error"]["fields"]


@versions_may_be_unchecked
def test_edit_of_an_old_version(browser: FlaskClient) -> None:
    """An edit of an old version does not overwrite a newer one."""
    post_flight(browser)
    put_flight(browser, minutes=480, version=1)
    assert put_flight(browser, minutes=470, version=1).status_code == 409

    form = {**FLIGHT, "minutes": "470", "version": "1"}
    page = browser.post("/flights/1/edit", data=form)
    assert page.status_code == 409
    assert "480 minutes" in page.text  # the current value
    assert 'value="470"' in page.text  # the input
    assert browser.get("/api/flights/1").json["minutes"] == 480

    assert 'name="version" value="2"' in page.text
    again = browser.post("/flights/1/edit", data={**form, "version": "2"})
    assert again.status_code == 303
    assert browser.get("/api/flights/1").json["minutes"] == 470


@pytest.mark.skipif(
    sqlalchemy.__version__ in {"2.0.0", "2.0.1"},
    reason="SQLAlchemy 2.0.0 and 2.0.1 do not check version counters on SQLite",
)
@pytest.mark.real_commits
def test_edits_at_the_same_time(example: Flask, tmp_path: Path) -> None:
    """Exactly one of many concurrent edits of the same version succeeds."""
    post_flight(example.test_client())
    gate = Barrier(4)

    def edit(minutes: int) -> int:
        gate.wait(10)
        response = put_flight(example.test_client(), minutes=minutes, version=1)
        return response.status_code

    with ThreadPoolExecutor(4) as people:
        codes = list(people.map(edit, [100, 200, 300, 400]))

    assert sorted(codes) == [200, 409, 409, 409]
    assert audited(tmp_path) == [("created", 1), ("changed", 1)]


@pytest.mark.real_commits
def test_writers_wait_for_each_other(example: Flask) -> None:
    """Many requests can write at the same time: SQLite is never locked."""

    def write(number: int) -> int:
        return post_flight(example.test_client(), number=f"XA{number}").status_code

    with ThreadPoolExecutor(8) as people:
        assert set(people.map(write, range(1, 41))) == {201}


# Audit


@pytest.mark.real_commits
@versions_may_be_unchecked
def test_audit(browser: FlaskClient, tmp_path: Path) -> None:
    """Each change is in the second database, and is shown with the flight."""
    post_flight(browser)
    put_flight(browser, minutes=480, version=1)
    assert audited(tmp_path) == [("created", 1), ("changed", 1)]
    latest, first = browser.get("/api/audit").json["entries"]
    assert (latest["flight"]["minutes"], first["flight"]["minutes"]) == (480, 510)
    assert browser.get("/audit").text.count("LH400") == 2
    assert "created" in browser.get("/flights/1").text


@pytest.mark.real_commits
def test_failed_audit(example: Flask, browser: FlaskClient, tmp_path: Path) -> None:
    """A flight without an audit entry is not saved."""
    with sqlite3.connect(tmp_path / "audit.sqlite3") as connection:
        connection.execute("DROP TABLE audit_entry")
    connection.close()
    example.testing = False  # responds with 500, as a server does
    assert post_flight(browser).status_code == 500
    assert browser.get("/api/flights").json["total"] == 0


# Downloads


def test_airports_as_csv(browser: FlaskClient) -> None:
    """All airports are sent, each once, in chunks."""
    rows = list(csv.DictReader(io.StringIO(browser.get("/airports.csv").text)))
    total = browser.get("/api/airports").json["total"]
    assert len(rows) == len({row["icao"] for row in rows}) == total
    assert total > 20 * export.CHUNK


def test_csv_has_no_formulas(browser: FlaskClient) -> None:
    """A spreadsheet shows a remark instead of running it."""
    post_flight(browser, remarks='=HYPERLINK("x"), "quoted"')
    [row] = csv.DictReader(io.StringIO(browser.get("/flights.csv").text))
    assert row["remarks"] == '\'=HYPERLINK("x"), "quoted"'


@pytest.mark.real_commits
def test_download_holds_no_connection(example: Flask) -> None:
    """During a slow download, the connection is back in the pool."""
    response = example.test_client().get("/airports.csv", buffered=False)
    lines = response.iter_encoded()
    assert next(lines).startswith(b"icao,")
    assert next(lines).count(b"\n") == export.CHUNK

    with example.app_context():
        pools = db.snapshot().pools

    assert [pool.used for pool in pools] == [0, 0]
    response.close()


@pytest.mark.real_commits
def test_downloads_at_the_same_time(example: Flask) -> None:
    """They are not mixed up, although another request writes meanwhile."""
    for number in range(20):
        post_flight(example.test_client(), number=f"XA{number}")

    def download(path: str) -> list[list[str]]:
        text = example.test_client().get(path).text
        return list(csv.reader(io.StringIO(text)))

    def write(number: int) -> int:
        return post_flight(example.test_client(), number=f"XB{number}").status_code

    with ThreadPoolExecutor(6) as people:
        written = people.map(write, range(1, 21))
        downloads = list(people.map(download, ["/flights.csv", "/airports.csv"] * 3))
        assert set(written) == {201}

    for flights, airports in zip(downloads[::2], downloads[1::2], strict=True):
        assert airports == downloads[1]
        ids = [row[0] for row in flights[1:]]
        assert len(ids) == len(set(ids)) >= 20


# The background job


def test_recount(browser: FlaskClient) -> None:
    """The job counts in a thread; API and page show its result."""
    post_flight(browser)
    post_flight(browser, number="LH401", origin="KJFK", destination="EDDM")
    assert "Not counted yet." in browser.get("/statistics").text
    response = browser.post("/api/jobs/recount")
    assert response.status_code == 202
    location = response.headers["Location"]
    wait_until(lambda: browser.get(location).json["state"] != "running")
    job = browser.get(location).json
    assert job["message"] == "Counted the flights of 3 airports."
    assert job["finished_at"] is not None
    busiest = browser.get("/api/statistics").json["airports"][0]
    assert (busiest["icao"], busiest["departures"], busiest["arrivals"]) == (
        "KJFK",
        1,
        1,
    )
    assert "John F Kennedy" in browser.get("/statistics").text


def test_recount_by_button(browser: FlaskClient) -> None:
    """The button redirects to the page."""
    response = browser.post("/jobs/recount")
    assert response.status_code == 303
    assert response.headers["Location"] == "/statistics"


def test_one_recount_at_a_time(
    browser: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second job is refused while the first one runs."""
    go_on = Event()
    monkeypatch.setattr(jobs, "recount", lambda: go_on.wait(10) and 0)
    assert browser.post("/api/jobs/recount").status_code == 202
    assert browser.post("/api/jobs/recount").status_code == 409
    assert "Counting since" in browser.get("/statistics").text
    go_on.set()
    wait_until(lambda: browser.get("/api/jobs/1").json["state"] == "done")


def test_failed_recount(browser: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed job is shown as failed, instead of running forever."""
    monkeypatch.setattr(jobs, "recount", lambda: 1 / 0)
    browser.post("/api/jobs/recount")
    wait_until(lambda: browser.get("/api/jobs/1").json["state"] == "failed")
    assert "The count failed" in browser.get("/statistics").text


# The import


def test_import_again(example: Flask) -> None:
    """It adds nothing twice, and corrects differences."""
    with example.app_context():
        airport = db.session.get(Airport, "EDDF")
        airport.name = "Somewhere"
        db.session.delete(db.session.get(Airport, "EDDH"))
        db.session.commit()

    run = example.test_cli_runner().invoke
    first = run(args=["import-airports"])
    assert "1 added, 1 changed" in first.output
    second = run(args=["import-airports"])
    assert "0 added, 0 changed" in second.output

    with example.app_context():
        assert db.session.get(Airport, "EDDF").name.startswith("Frankfurt")


def test_before_the_import(tmp_path: Path) -> None:
    """Without an import, the page says what to do."""
    url = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    app = create_app({"SQLALCHEMY_DATABASE_URI": url})
    page = app.test_client().get("/")
    assert page.status_code == 503
    assert "import-airports" in page.text
    answer = app.test_client().get("/api/airports")
    assert "import-airports" in answer.json["error"]["message"]
    db.dispose(app)


# Configuration


def test_database_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``FLASK_...`` variables set both databases, for this app only."""
    url = f"sqlite:///{tmp_path / 'a.sqlite3'}"
    with monkeypatch.context() as patch:
        patch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", url)
        patch.setenv("FLASK_SQLALCHEMY_BINDS__audit", url)
        one = create_app()
    other = create_app()
    assert one.config["SQLALCHEMY_DATABASE_URI"] == url
    assert one.config["SQLALCHEMY_BINDS"] == {"audit": url}
    assert other.config["SQLALCHEMY_BINDS"] == {"audit": "sqlite:///audit.sqlite3"}
    db.dispose(one)
    db.dispose(other)


def test_sqlite_is_set_up(example: Flask) -> None:
    """The configured pragmas are in effect on both databases."""
    with example.app_context():
        for engine in db.engines.values():
            with engine.connect() as connection:
                pragma = connection.exec_driver_sql
                assert pragma("PRAGMA journal_mode").scalar() == "wal"
                assert pragma("PRAGMA foreign_keys").scalar() == 1
                assert pragma("PRAGMA busy_timeout").scalar() == 5000
                assert pragma("PRAGMA synchronous").scalar() == 1


@pytest.mark.subprocess
def test_from_anywhere(tmp_path: Path) -> None:
    """``flask --app`` finds it from another folder and through a symlink."""
    link = tmp_path / "linked"
    link.symlink_to(Path(example_app.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", str(link), "routes"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "airports.search" in done.stdout


def test_empty_pool(make_example: Callable[..., Flask]) -> None:
    """If all connections are checked out, a clear error page comes soon."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    app = make_example(SQLALCHEMY_ENGINE_OPTIONS=options)
    with app.app_context(), db.engine.connect():
        response = app.test_client().get("/api/flights")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.json["error"]["message"].startswith("The server is busy.")


class TestPytestFlask:
    """With an ``app`` fixture, pytest-flask pushes a request around the test."""

    @pytest.fixture
    def app(self, example: Flask) -> Flask:
        return example

    @versions_may_be_unchecked
    def test_pages(self, client: FlaskClient) -> None:
        """Pages, writes and errors work there, too."""
        assert client.get("/?q=frankfurt").status_code == 200
        assert post_flight(client).status_code == 201
        assert post_flight(client).status_code == 409
        assert put_flight(client, minutes=1, version=1).status_code == 200
        assert client.get("/api/flights").json["total"] == 1


# Another database


def test_postgresql(pg_url: str, make_example: Callable[..., Flask]) -> None:
    """One setting switches to PostgreSQL; nothing else changes."""
    app = make_example(SQLALCHEMY_DATABASE_URI=pg_url)
    run = app.test_cli_runner().invoke
    assert " 0 changed, 0 unchanged" in run(args=["import-airports"]).output
    assert "0 added, 0 changed" in run(args=["import-airports"]).output

    browser = app.test_client()
    assert browser.get("/?q=são paulo").status_code == 200
    assert browser.get("/api/airports/%00%00%00%00").status_code == 404
    assert browser.get("/api/airports?q=%00").status_code == 200
    assert post_flight(browser).status_code == 201
    assert post_flight(browser).status_code == 409
    assert post_flight(browser, remarks="\x00").status_code == 400
    assert put_flight(browser, minutes=480, version=1).json["version"] == 2
    assert put_flight(browser, minutes=470, version=1).status_code == 409
    assert browser.get("/airports.csv").text.count("\n") > 20 * export.CHUNK
    assert len(browser.get("/api/audit").json["entries"]) == 2
    browser.post("/api/jobs/recount")
    wait_until(lambda: browser.get("/api/jobs/1").json["state"] == "done")
    assert browser.get("/api/statistics").json["total"] == 2


# Faults


@pytest.fixture
def faulty(make_example: Callable[..., Flask]) -> Flask:
    return make_example(EXAMPLE_FAULTS=True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/faults/"),
        ("POST", "/faults/keep-connection"),
        ("GET", "/faults/sleep"),
        ("POST", "/faults/forget-commit"),
        ("GET", "/faults/nested"),
        ("GET", "/faults/slow-statement"),
        ("GET", "/faults/share-session"),
        ("GET", "/faults/keep-session"),
        ("GET", "/faults/cache-object"),
        ("POST", "/faults/swallow-error"),
        ("POST", "/faults/lock"),
    ],
)
def test_faults_are_hidden(browser: FlaskClient, method: str, path: str) -> None:
    """Without the flag, these routes do not exist."""
    assert browser.open(path, method=method).status_code == 404
    assert "/faults/" not in browser.get("/").text


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("true", True), ("0", False), ("", False)]
)
def test_faults_flag(
    monkeypatch: pytest.MonkeyPatch,
    make_example: Callable[..., Flask],
    value: str,
    on: bool,
) -> None:
    """Only an explicit environment variable enables them."""
    monkeypatch.setenv("EXAMPLE_FAULTS", value)
    assert (make_example().test_client().get("/faults/").status_code == 200) is on


def test_the_faults_page_names_a_command_that_is_there(faulty: Flask) -> None:
    """That of ``make serve``, whose environment nobody has activated."""
    command = ".venv/bin/flask --app example_app pool-status"
    assert f"<code>{command}</code>" in faulty.test_client().get("/faults/").text
    readme = Path(faults.__file__).with_name("README.md")
    assert f"    {command}\n" in readme.read_text(encoding="utf-8")


def test_kept_connection(faulty: Flask) -> None:
    """After the request, the connection is still checked out, and its view is known."""
    assert faulty.test_client().post("/faults/keep-connection").json["kept"] == 1
    assert len(faults.kept) == 1

    with faulty.app_context():
        pool = next(p for p in db.snapshot().pools if p.bind == "default")

    assert [holder.endpoint for holder in pool.holders] == ["faults.keep_connection"]
    assert pool.holders[0].in_transaction is True


def test_forgotten_commit(faulty: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """The view reports success, the flight is missing, and a warning is logged."""
    browser = faulty.test_client()
    response = browser.post("/faults/forget-commit")
    assert response.status_code == 201
    assert response.json["saved"] is True
    assert browser.get("/api/flights").json["total"] == 0
    assert "faults.forget_commit" in caplog.text


def test_sleep(faulty: Flask) -> None:
    """It ends, and returns its connection."""
    browser = faulty.test_client()
    assert browser.get("/faults/sleep?seconds=0.01").json["slept"] == 0.01

    with faulty.app_context():
        assert [pool.used for pool in db.snapshot().pools] == [0, 0]


@pytest.mark.parametrize("seconds", ["601", "-1", "nan", "inf", "x"])
def test_sleep_is_bounded(faulty: Flask, seconds: str) -> None:
    """No request can occupy a worker for long."""
    response = faulty.test_client().get(f"/faults/sleep?seconds={seconds}")
    assert response.status_code == 400


def test_the_page_offers_every_fault(faulty: Flask) -> None:
    """Each has a button, and a row in the README."""
    page = faulty.test_client().get("/faults/").text
    readme = (Path(faults.__file__).parent / "README.md").read_text(encoding="utf-8")
    with faulty.test_request_context():
        for endpoint in faulty.view_functions:
            if endpoint.startswith("faults.") and endpoint != "faults.index":
                assert f'action="{url_for(endpoint)}' in page
                assert f"| `{endpoint}` |" in readme


def test_a_second_connection(make_example: Callable[..., Flask]) -> None:
    """With a pool of one, it waits for itself, and the error says so."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
    app = make_example(EXAMPLE_FAULTS=True, SQLALCHEMY_ENGINE_OPTIONS=options)
    assert app.test_client().get("/faults/nested").status_code == 503
    assert (
        make_example(EXAMPLE_FAULTS=True)
        .test_client()
        .get("/faults/nested")
        .json["airports"]
    )


def test_a_slow_statement(faulty: Flask) -> None:
    """It compares the requested number of rows, within limits."""
    browser = faulty.test_client()
    # Their names differ, so one order of each pair counts.
    assert browser.get("/faults/slow-statement?airports=10").json["pairs"] == 45
    for airports in ("-1", "20001"):
        response = browser.get(f"/faults/slow-statement?airports={airports}")
        assert response.status_code == 400


@pytest.mark.timing
def test_a_shared_session(faulty: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Two statements overlap: a warning, and in debug mode an error."""
    path = "/faults/share-session"
    browser = faulty.test_client()
    assert browser.get(path).json["counts"] == [3_000_000] * 2
    (warning,) = [line for line in caplog.messages if "two threads" in line]
    assert "GET /faults/share-session -> faults.share_session" in warning
    faulty.debug = True
    with pytest.raises(SharedSession, match="two threads use one connection"):
        browser.get(path)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/faults/keep-session", SessionRemoved),
        ("/faults/cache-object", DetachedInstanceError),
    ],
)
def test_what_is_kept_for_the_next_request(
    faulty: Flask, path: str, error: type[Exception]
) -> None:
    """The first request is served, the second fails."""
    browser = faulty.test_client()
    assert browser.get(path).status_code == 200
    with pytest.raises(error):
        browser.get(path)


def test_a_swallowed_error(faulty: Flask) -> None:
    """The error names the earlier, failed flush."""
    with pytest.raises(PendingRollbackError, match="previous exception during flush"):
        faulty.test_client().post("/faults/swallow-error?seconds=0")


def test_locked_airports(faulty: Flask) -> None:
    """It changes nothing, and finally releases the lock."""
    path = "/faults/lock?icao=EDDF&icao=KJFK&seconds=0"
    browser = faulty.test_client()
    for _ in range(2):
        assert browser.post(path).json["locked"] == ["EDDF", "KJFK"]
