"""The examples and lists in the documentation are correct."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import re
import shlex
import sys
import textwrap
import traceback
import urllib.request
from configparser import ConfigParser
from dataclasses import fields
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import commands
import messages
import pytest
import yaml
from flask import Flask
from inside import KEYS
from inside import Reading
from lean import LEAN
from prefork import own_options
from serving import Served
from suites import Suite

import pytest_scopedsession
from flask_scopedsession import cli
from flask_scopedsession import errors
from flask_scopedsession import ScopedSession
from flask_scopedsession import snapshot
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy
from flask_scopedsession.flask_sqlalchemy.extension import UnknownBindKey
from flask_scopedsession.flask_sqlalchemy.record_queries import get_recorded_queries
from flask_scopedsession.metrics.command import pool_metrics

DOCS = Path(__file__).parent.parent.parent / "docs"
README = DOCS.parent / "README.md"

COMMANDS = (*cli.COMMANDS, pool_metrics)

#: What the examples of a page need that the page does not show.
PRELUDES = {
    "flask-sqlalchemy.md": "",
    "flask-sqlalchemy-lite.md": "",
    "plain-core.md": "",
    "config.md": "from flask import Flask; app = Flask('docs')",
    "workers.md": "from flights import create_app, db; app = create_app()",
    "troubleshooting.md": """
import asyncio
from flask import Flask
from sqlalchemy import func
from flights import Base, create_app as create_flights, db, Flight, select
User = Flight
""",
    "../README.md": "",
    "index.md": "",
    "scope.md": "",
    "explanation.md": "",
    "contextual-sessions.md": "",
    "transactions.md": "",
    "views.md": "",
    "async.md": "",
    "replicas.md": "",
    "tenants.md": "",
    "pgbouncer.md": "",
    "upgrading-sqlalchemy.md": "",
    "howto.md": """
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import sessionmaker
app = Flask("docs")
""",
    "faq.md": """
from flask_login import LoginManager
from flights import create_app, db, Flight as User
app = create_app()
login_manager = LoginManager(app)
""",
    "dashboard.md": """
from types import SimpleNamespace
from flask import session
from flights import create_app, db
app = create_app({"SECRET_KEY": "docs"})
user = SimpleNamespace(is_admin=True)
app.test_request_context().push()
""",
    "logs.md": "",
    "metrics.md": "from flights import create_app, db; app = create_app()",
}

#: What shows that they work, if the page does not say.
SEQUELS = {
    "config.md": """
from flask_scopedsession import ScopedSession
from flask_scopedsession import snapshot
ScopedSession(app)
""",
    "troubleshooting.md": """
driver = {"SQLALCHEMY_DATABASE_URI": "postgresql+psycopg://app@db/flights"}
create_app(**driver, SQLALCHEMY_ENGINE_OPTIONS=SQLALCHEMY_ENGINE_OPTIONS)
binds = {"default": "sqlite+aiosqlite:///flights.db"}
app = create_flights({"SQLALCHEMY_ASYNC_BINDS": binds})
async def counts(app):
    return await asyncio.gather(count(app), count(app))
with app.app_context():
    db.create_all()
    assert app.ensure_sync(counts)(app) == [0, 0]
work(app, 1)
create_app = create_flights
assert str(where(Flight)).endswith("/flights.db")
""",
    "../README.md": "assert app.test_client().get('/').json == {'answer': 42}",
    "views.md": """
from flask import render_template_string
with create_app().app_context():
    db.create_all()
    db.session.add(Book(id=1, title="Emma", isbn="978-0", author=Author(name="Jane")))
    db.session.commit()
    client = create_app().test_client()
    assert client.get("/books/1").text == client.get("/isbn/978-0").text == "Emma"
    assert client.get("/books/2").status_code == 404
    assert "No such book" in client.get("/isbn/978-1").text
    assert client.get("/authors").json == {"authors": ["Jane"], "total": 1}
    assert client.get("/authors?page=2").status_code == 404
    with create_app().test_request_context():
        authors = db.paginate(select(Author), per_page=1)
        [pager] = TEMPLATES
        assert "1 to 1 of 1, on 1 pages" in render_template_string(pager, page=authors)
    assert productive_authors() == [("Jane", 1)]
    db.session.add(Book(title="Persuasion", isbn="978-9", author_id=1))
    db.session.commit()
    page = client.get("/titles?per_page=1").json
    page = client.get("/titles", query_string={"bookmark": page["next"]}).json
    assert page == {"titles": ["Persuasion"], "next": None}
    assert client.get("/titles?bookmark=x").status_code == 404
""",
    "explanation.md": """
app = create_app()
with app.app_context():
    db.create_all()
assert app.test_client().post("/visits").json == {"visits": 1}
""",
    "replicas.md": """
assert "host=db1" in SQLALCHEMY_DATABASE_URI
binds = {"replica": "sqlite:///replica.db"}
app = create_app(binds)
with app.app_context():
    db.create_all()
    Base.metadata.create_all(db.get_engine("replica"))
    db.get_session("replica").add(Flight(number="OS 87"))
    db.get_session("replica").commit()
    assert db.session.scalars(select(Flight)).all() == []
assert app.test_client().get("/report").json == ["OS 87"]
assert create_app({}).test_client().get("/report").json == []
web = Flask("web")
web.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///flights.db"
web.config["SQLALCHEMY_BINDS"] = binds
routed.init_app(web)
number = web.route("/", methods=["GET", "POST"])(
    lambda: routed.session.scalar(select(Flight.number)) or "none"
)
assert web.test_client().get("/").text == "OS 87"
assert web.test_client().post("/").text == "none"
""",
    "tenants.md": """
def check(app):
    client = app.test_client()
    hosts = {name: f"http://{name}.example.com" for name in TENANTS}
    for name, host in hosts.items():
        assert client.post(f"/of-{name}", base_url=host).status_code == 201
    for name, host in hosts.items():
        assert client.get("/", base_url=host).json == [f"of-{name}"]
    assert client.get("/", base_url="http://west.example.com").status_code == 404
with app.app_context():
    db.create_all()
check(app)
check(separate)
schemas = Flask("schemas")
schemas.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///schemas.db"
by_schema.init_app(schemas)
add_views(schemas, by_schema)
with schemas.app_context():
    @event.listens_for(by_schema.engine, "connect")
    def attach(connection, record):
        for name in TENANTS:
            connection.execute(f"ATTACH 'schema-{name}.db' AS {name}")
    for name in TENANTS:
        create_tables(name)
check(schemas)
""",
    "pgbouncer.md": """
with app.app_context():
    arguments = db.engine.dialect.create_connect_args(db.engine.url)[1]
    assert arguments["application_name"] == "flights"
""",
    "faq.md": """
with app.app_context():
    db.create_all()
    db.session.add(User(id=1, number="OS 87"))
    db.session.commit()
    assert load_user("1").number == "OS 87"
""",
    "flask-sqlalchemy-lite.md": """
shared = Flask("shared", instance_path=app.instance_path)
binds = app.config["SQLALCHEMY_BINDS"]
async_binds = {"default": "sqlite+aiosqlite:///users.db"}
shared.config.update(SQLALCHEMY_BINDS=binds, SQLALCHEMY_ASYNC_BINDS=async_binds)
db.init_app(shared)
with shared.app_context():
    assert shared.ensure_sync(user)(1) == "Ada"
""",
    "dashboard.md": """
assert not may_see()
client = app.test_client()
assert client.get("/pools/").status_code == 403
with client.session_transaction() as cookie:
    cookie["is_admin"] = True
assert client.get("/pools/").status_code == 200
""",
    "logs.md": """
logger = logging.getLogger("flask_scopedsession")
assert logger.getEffectiveLevel() == logging.INFO
record = logging.makeLogRecord({"scopedsession_event": "many_statements"})
assert not logger.filter(record)
""",
    "metrics.md": """
from prometheus_client import generate_latest
assert app.test_client().get("/internal/metrics").status_code in (200, 503)
assert b"db_client_connection_count" in generate_latest(REGISTRY)
""",
    "index.md": "assert create_app().test_client().get('/').json == {'answer': 42}",
}


def blocks(page: str, *languages: str) -> list[tuple[str, str, str]]:
    """Return each block of a page: its language, the lines above it, and its text.

    The lines above keep the line numbers of the page in tracebacks.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        (found[1], "\n" * text.count("\n", 0, found.start(2)), found[2])
        for found in re.finditer(
            r"^```(\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
        )
        if found[1] in languages
    ]


@pytest.fixture
def flights(short_tmp):
    """The application of the page on the start, as a module of this folder."""
    _, above, source = blocks("start.md", "python")[0]
    (short_tmp / "flights.py").write_text(above + source, encoding="utf-8")
    return short_tmp


@pytest.mark.subprocess
@pytest.mark.parametrize("page", PRELUDES)
def test_examples_run(page, run_script, flights):
    """All examples of a page run, one after the other."""
    templates = [text for _, _, text in blocks(page, "jinja")]
    lines = (PRELUDES[page] + f"\nTEMPLATES = {templates}").split("\n")
    for _, above, source in blocks(page, "python"):
        lines += above.split("\n")[len(lines) :] + source.split("\n")[:-1]
    source = "\n".join([*lines, SEQUELS.get(page, "")])
    run_script(source, cwd=flights).check()


@pytest.mark.workers
@pytest.mark.slow
def test_start_can_be_followed(flights):
    """Each command of the page works, in this order, and prints what the page shows."""
    servers: list[Served] = []
    try:
        for language, above, text in blocks("start.md", "python", "text")[1:]:
            if language == "python":
                commands.script(
                    above + text, scratch=flights, beside=flights, cwd=flights
                )
                continue
            for step in text.split("$ ")[1:]:
                line, _, shown = step.partition("\n")
                assert follow(shlex.split(line), servers, flights).startswith(shown), (
                    line
                )
    finally:
        for server in servers:
            server.stop()


def follow(words, servers, folder):
    """Run a command of a page, and return its output."""
    if words[0] == "pip":
        return ""
    if words[0] == "curl":
        url = servers[-1].url + urlsplit(words[-1]).path
        data = words[2].encode() if words[1] == "-d" else None
        with urllib.request.urlopen(url, data) as answer:
            return answer.read().decode()
    if words[-1] == "run" or words[0] == "gunicorn":
        for server in servers:
            server.stop()
        options = " ".join(["--bind 127.0.0.1:0", *own_options()])
        env = {"FLASK_RUN_PORT": "0", "GUNICORN_CMD_ARGS": options}
        command = [sys.executable, LEAN, "-m", *words]
        servers.append(Served(words[0], folder, command, env=env, cwd=folder))
        servers[-1].start()
        servers[-1].wait_listening()
        return ""
    result = commands.run([LEAN, "-m", *words], cwd=folder).check()
    assert "No worker has answered" not in result.stdout
    return result.stdout


#: What the page on testing promises, beyond its own tests.
PROMISED = """
import pytest
from flask.globals import app_ctx
from flask_scopedsession.errors import LostWork
from flights import db
from flights import Flight

kept = []


@pytest.mark.parametrize("time", range(2))
def test_nothing_is_left_of_the_test_before(app, client, time):
    assert client.get("/flights").json == []
    db.session.remove()
    with app.app_context():
        db.session.add(Flight(number="A"))
        db.session.commit()
        db.session.add(Flight(number="never"))
        db.session.flush()
        db.session.rollback()
    client.post("/flights", data={"number": "B"})
    assert client.get("/flights").json == ["A", "B"]


def test_that_leaks(app):
    with app.app_context():
        kept.append(db.engine.connect())


def test_that_loses_work(app):
    with pytest.raises(LostWork), app.app_context():
        db.session.add(Flight(number="lost"))
"""


def write_page(folder, conftest):
    """Write the files of the page on testing, with one of its ``conftest.py``."""
    text = (DOCS / "testing.md").read_text(encoding="utf-8")
    found = re.findall(
        r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    assert len(found) > 10
    files = {name: source for name, source in found if name != "conftest.py"}
    files["conftest.py"] = [each for name, each in found if name == "conftest.py"][
        conftest
    ]
    files["test_promised.py"] = PROMISED
    for name, source in files.items():
        (folder / name).write_text(source, encoding="utf-8")


def check_page(suite):
    """All tests of the page have passed, and the one that leaks has an error."""
    assert len(suite.outcomes) > 15
    wrong = {name for name, word in suite.outcomes.items() if word != "PASSED"}
    assert wrong == {"test_that_leaks"}, suite.text
    assert "test_promised.py:27 test_that_leaks" in suite.reasons["test_that_leaks"]


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize("beside", [(), ("flask",)], ids=["without", "beside"])
def test_page_on_testing(flights, beside):
    """Its tests pass without pytest-flask, and beside it."""
    write_page(flights, conftest=0)
    check_page(Suite(flights, beside=beside))


@pytest.mark.subprocess
@pytest.mark.slow
def test_page_on_testing_on_postgresql(flights, pg_url):
    """They pass in two processes, each of which has a database of its own."""
    write_page(flights, conftest=1)
    env = {"TEST_DATABASE_URI": pg_url}
    check_page(Suite(flights, "-n2", env=env, beside=("flask",)))


#: Which other file runs or compares the blocks of a page, by their language.
ELSEWHERE = {
    "checks.md yaml": "tests/whole/workers/test_checks.py",
    "clients.md python": "tests/support/clients.py",
    "fleet.md python": "tests/metrics/test_fleet.py",
    "fleet.md text": "tests/metrics/test_fleet.py",
}

#: What the tests here run or compare, by the beginning of the block.
HERE = [
    "async.md py ",
    "cli.md text --warn ",
    "cli.md text schema          1",
    "cli.md text schema, app, ",
    "config.md text FLASK_",
    "errors.md text flask_scopedsession.errors.UnknownBind",
    "metrics.md yaml ",
    "security.md yaml ",
    "views.md jinja ",
    "workers.md ini ",
]

#: The blocks that nothing runs, by their beginning, and why.
NOT_RUN = {
    "README.md text $ pip install ": "the name of a folder",
    "README.md text $ flask --app hello run": "as on start.md, where it is run",
    "README.md text $ curl ": "the same",
    "README.md text $ make demo ": "starts servers, and runs all tests",
    "advice.md text $ flask --app live_app pool-advise ": "one measurement of a load",
    "advice.md text    ": "a formula",
    "advice.md text P(W > t)": "a formula",
    "benchmarks.md text $ make bench ": "takes hours",
    "checks.md text $ flask --app flights pool-status --check": "an incident",
    "checks.md text $ check_flask_pool.py ": "folders of a server",
    "checks.md text define command {": "for Nagios",
    "cli.md text 3 workers may open ": "lines about one database",
    "cli.md text example_app on vm": "one moment of a load",
    "clients.md  SQLAlchemyInstrumentor only ": "a record of another library",
    "clients.md text AttributeError: ": "an error of another library",
    "config.md text GET /books ": "one log record; those of logs.md are compared",
    "dashboard.md  pip install ": "not on a package index yet",
    "dashboard.md  location /pools/ {": "for nginx",
    "flask-sqlalchemy-lite.md py ": "what the next block replaces",
    "fleet.md  # Connections ": "PromQL",
    "logs.md text [2026-": "one record; tests/runtime/test_logs.py has its format",
    "metrics.md  pip install Flask-ScopedSession[otel] ": "not on a package index yet",
    "metrics.md  pip install Flask-ScopedSession[prometheus]": "the same",
    "metrics.md  # The share ": "PromQL",
    "metrics.md  $ flask pool-metrics ": "runs until Ctrl-C",
    "security.md text $ docker exec ": "needs Docker",
    "security.md text $ kubectl exec ": "needs Kubernetes",
    "security.md text $ sudo nsenter ": "needs root and systemd",
    "start.md py from flask_migrate ": "tests/clients/test_flask_migrate.py does it",
    "testing.md text $ pip install pytest\n": "the tests run in what it makes",
    "testing.md text $ pip install pytest-xdist ": "the same, and `pytest -n2` is run",
    "testing.md text ERROR test_leaks.py": "a test above checks that of another line",
    "troubleshooting.md py fileConfig(": "a line of Alembic's env.py",
    "tutorial/index.md text library": "the files of the tutorial",
    "workers.md text $ docker exec ": "needs Docker",
    "workers.md text $ sudo -u flights ": "needs another user",
    "workers.md text $ python -m flask_scopedsession ": "folders of a server",
}


def every_block():
    """Return all blocks of all pages: page, language and text."""
    found = []
    for path in [README, *sorted(DOCS.glob("**/*.md"))]:
        page = "README.md" if path == README else path.relative_to(DOCS).as_posix()
        inside = None
        for line in path.read_text(encoding="utf-8").splitlines():
            if inside is None and (fence := re.match(r" *(`{3,})(.*)$", line)):
                inside, language, lines = fence[1], fence[2].strip(), []
            elif inside is not None and line.strip() == inside:
                inside = None
                language = language.removeprefix("{code-block} ")
                if not language.startswith("{"):
                    text = textwrap.dedent("\n".join(lines))
                    text = re.sub(r"\A(:.*\n+)+", "", text)
                    found.append((page, language, f"{text}\n"))
            elif inside is not None:
                lines.append(line)
        assert inside is None, page
    return found


BLOCKS = every_block()


def begins(start):
    """Return the blocks whose page, language and text begin so."""
    return [each for each in BLOCKS if " ".join(each).startswith(start)]


def shown(start):
    """Return the text of the only block that begins so."""
    [(_, _, text)] = begins(start)
    return text


def test_every_block_is_run():
    """By a test here or elsewhere, or there is a reason why not."""
    assert len(BLOCKS) > 150
    known = set()
    for start in [*HERE, *NOT_RUN]:
        [block] = begins(start)
        known.add(block)
    for block in set(BLOCKS) - known:
        page, language, text = block
        assert (
            (language == "python" and {page, f"../{page}"} & PRELUDES.keys())
            or (page == "start.md" and language in ("python", "text"))
            or (page == "testing.md" and re.match(r"# \S+\.(py|toml)\n", text))
            or (page.startswith("tutorial/") and page != "tutorial/index.md")
            or f"{page} {language}" in ELSEWHERE
        ), f"no test runs this block of {page}:\n{text}"
    for kind, file in ELSEWHERE.items():
        source = (DOCS.parent / file).read_text(encoding="utf-8")
        assert kind.split()[0] in source, kind


def test_every_recipe_has_a_test():
    """All sections with code on the page on other libraries are run by their names."""
    page = (DOCS / "clients.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)[1:]
    tests = "".join(
        x.read_text("utf-8") for x in DOCS.parent.glob("tests/clients/*.py")
    )
    names = [
        n for n, x in zip(sections[::2], sections[1::2], strict=True) if "```py" in x
    ]
    assert len(names) > 8
    assert [name for name in names if f'recipe("{name}"' not in tests] == []


def test_every_command_that_is_shown_has_these_options():
    """Whatever starts it: Docker, sudo, Python or Flask's own command."""
    known, times = {command.name: command for command in COMMANDS}, 0
    makefile = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
    for page, _, text in BLOCKS:
        for line in re.findall(r"^ *\$ (.*)$", text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            assert words[0] != "make" or f"\n{words[1]}:" in makefile, (page, line)
            for name in known.keys() & set(words):
                given = words[words.index(name) + 1 :]
                assert known[name].make_context(name, given), (page, line)
                times += 1
    assert times > 15


def test_the_default_thresholds_are_shown():
    """As options of ``--check``."""
    words = shlex.split(shown("cli.md text --warn"))
    defaults = {each.opts[0]: each.default for each in cli.COMMANDS[0].params}
    assert words == ["--warn", defaults["--warn"], "--crit", defaults["--crit"]]


def test_the_environment_that_is_shown(monkeypatch):
    """Flask reads it, and the extension accepts it."""
    for line in shown("config.md text FLASK_").splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    app = Flask("docs")
    app.config.from_prefixed_env()
    db = ScopedSession(app)
    with app.app_context():
        assert db.engine.url.host == "db"
        assert db.engine.pool.size() == 20
        assert app.config["SCOPEDSESSION_HELD_LONG_AFTER"] == 5


def test_the_traceback_that_is_shown():
    """Its last lines, of a bind whose name is misspelt; Python 3.10 has no notes."""
    app = Flask("docs")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    app.config["SQLALCHEMY_BINDS"] = {"audit": "sqlite://"}
    db = ScopedSession(app)
    with app.app_context(), pytest.raises(errors.UnknownBind) as caught:
        db.get_engine("audti")
    lines = "".join(traceback.format_exception_only(caught.value))
    wanted = shown("errors.md text flask_")
    if sys.version_info < (3, 11):
        wanted = wanted.partition("Background on")[0]
    assert re.sub(r"\S+(?=docs/errors.md)", "", lines) == wanted


def test_the_recipe_for_gevent():
    """The test of gevent has the lines of the page."""
    test = DOCS.parent / "tests" / "async_sessions" / "test_gevent.py"
    tested = {line.strip() for line in test.read_text(encoding="utf-8").splitlines()}
    assert {line.strip() for line in shown("async.md py ").splitlines()} <= tested | {
        ""
    }


def test_the_yaml_that_is_shown():
    """It can be parsed, and Prometheus and Kubernetes have these keys there."""
    [job] = yaml.safe_load(shown("metrics.md yaml "))["scrape_configs"]
    assert job.keys() == {"job_name", "metrics_path", "static_configs"}
    assert [*job["static_configs"][0]] == ["targets"]
    pod = yaml.safe_load(shown("security.md yaml "))["spec"]
    [web] = pod["containers"]
    [mounted] = web["volumeMounts"]
    assert web["securityContext"] == {"readOnlyRootFilesystem": True}
    assert [mounted["name"]] == [volume["name"] for volume in pod["volumes"]]
    probe = yaml.safe_load(shown("checks.md yaml "))["readinessProbe"]
    assert probe["exec"]["command"][:2] == ["sh", "-c"]


def test_the_unit_that_is_shown():
    """It names the folder that systemd creates, in a key of ours."""
    parser = ConfigParser()
    parser.optionxform = str
    parser.read_string(shown("workers.md ini "))
    unit = dict(parser["Service"])
    assert [*unit] == [
        "User",
        "RuntimeDirectory",
        "RuntimeDirectoryMode",
        "Environment",
    ]
    key, _, folder = unit["Environment"].partition("=")
    assert key.removeprefix("FLASK_") in KEYS
    assert folder == f"/run/{unit['RuntimeDirectory']}"


def test_the_example_is_installed_with_all_that_it_needs():
    """The page names the packages of pyproject.toml, as an old pip knows no groups."""
    root = DOCS.parent
    metadata = (root / "pyproject.toml").read_text(encoding="utf-8")
    group = metadata.split("\nexample = [")[1].split("]\n")[0].replace('"', "'")
    page = (root / "example_app" / "README.md").read_text(encoding="utf-8")
    line = next(x for x in page.splitlines() if x.startswith("    pip install"))
    needed = [each.strip().strip("'") for each in group.split(",") if each.strip()]
    assert shlex.split(line) == ["pip", "install", "--editable", ".", *needed]


def api():
    """Return the public modules, and what the page on the API shows of them."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    modules, found = [], {}
    for kind, name in re.findall(
        r"^\.\. (\w*module|(?:auto)?(?:class|function|data)):: (\S+)$",
        page,
        re.MULTILINE,
    ):
        if kind.endswith("module"):
            modules.append(import_module(name))
            # It shows no constants, which have directives of their own.
            shown = modules[-1].__all__ if kind == "automodule" else ()
            found.update({f"{name}.{n}": modules[-1] for n in shown if not n.isupper()})
        elif "." in name:
            found[name] = import_module(name.rpartition(".")[0])
        else:
            found[f"{modules[-1].__name__}.{name}"] = modules[-1]
    return modules, {
        name: getattr(module, name.rpartition(".")[2]) for name, module in found.items()
    }


MODULES, API = api()


def test_every_public_name_is_on_the_page_on_the_api():
    """All names of ``__all__`` of the modules on the page."""
    assert len(MODULES) > 6
    names = {f"{module.__name__}.{n}" for module in MODULES for n in module.__all__}
    assert names - API.keys() == set()


def own_functions(name, what):
    """Return a function, or those of a class, and where each is described."""
    if not isinstance(what, type):
        return {name: (what, what)} if callable(what) else {}
    every = {}
    for base in reversed(what.__mro__):
        if base.__module__.startswith("flask_scopedsession."):
            every.update(vars(base))
    found = {}
    for each, value in every.items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if inspect.isfunction(function) and not each.startswith("_"):
            found[f"{name}.{each}"] = function, function
    if inspect.isfunction(every.get("__init__")) and not is_dataclass(what):
        found[name] = every["__init__"], what
    return found


def raised(node):
    """Yield the errors that a function makes and raises in its own body."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            yield ast.unparse(child.exc.func)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from raised(child)


@pytest.mark.parametrize("name", [n for n, what in API.items() if callable(what)])
def test_every_argument_and_error_is_described(name):
    """In the docstring of each public function, with the unit of a duration."""
    for full_name, (function, described) in own_functions(name, API[name]).items():
        text = inspect.getdoc(described)
        assert text, full_name
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in ("self", "cls"):
                continue
            line = re.search(rf"^:param {parameter.name}: (.+)", text, re.MULTILINE)
            assert line, f"{full_name}({parameter.name})"
            if parameter.name == "timeout":
                assert "econds" in line[1], f"{full_name}({parameter.name})"
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        for error in raised(ast.parse(source).body[0]):
            assert f":raises {error}:" in text, f"{full_name} raises {error}"


def docstring_examples():
    """Return the examples in docstrings of public functions."""
    found = {}
    for name, what in API.items():
        for function, described in own_functions(name, what).values():
            text = inspect.getdoc(described)
            examples = re.findall(r"::\n\n((?: {4}.*\n|\n)+)", f"{text}\n")
            if examples:
                key = f"{function.__module__}.{function.__qualname__}"
                found[key] = textwrap.dedent("\n".join(examples))
    return found


EXAMPLES = docstring_examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_run(name, flights, monkeypatch):
    """In a context of the application of the page on the start, with two flights."""
    monkeypatch.syspath_prepend(flights)
    monkeypatch.delitem(sys.modules, "flights", raising=False)
    names = {**vars(snapshot), **vars(import_module("flights")), "json": json}
    app, db = names["create_app"]({"SCOPEDSESSION_CONTROL": False}), names["db"]
    if name.startswith("flask_scopedsession.flask_sqlalchemy."):
        app, db = Flask("dropped_in"), SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        app.config["SCOPEDSESSION_CONTROL"] = False
        db.init_app(app)
        names |= {"db": db, "Flight": a_model(db)}
        names["get_recorded_queries"] = get_recorded_queries
    with app.test_request_context():
        db.create_all()
        db.session.add_all([names["Flight"](number=number) for number in ("1", "2")])
        db.session.commit()
        names["text"] = json.dumps(db.workers().to_dict())
        exec(EXAMPLES[name], names)
    db.dispose(app)


def a_model(db):
    class Flight(db.Model):
        id = db.Column(db.Integer, primary_key=True)
        number = db.Column(db.String)

    return Flight


def test_every_public_function_has_an_example():
    """In its docstring, or on a page."""
    code = "\n".join(text for _, _, text in BLOCKS)
    for name, what in API.items():
        for full_name, (function, _) in own_functions(name, what).items():
            on_a_page = rf"\b{full_name.rpartition('.')[2]}\b"
            key = f"{function.__module__}.{function.__qualname__}"
            assert key in EXAMPLES or re.search(on_a_page, code), full_name


def test_the_plugin_is_documented():
    """Each fixture, marker and option, in the last table of the page on testing."""
    text = (DOCS / "testing.md").read_text(encoding="utf-8").split("## Reference\n")[1]
    rows = set(re.findall(r"^\| (\w+) `(\w+)` \|", text, re.MULTILINE))
    source = inspect.getsource(pytest_scopedsession)
    fixtures = re.findall(r"^@pytest\.fixture\ndef (\w+)", source, re.MULTILINE)
    options = pytest_scopedsession.ISOLATION, pytest_scopedsession.LEAKS
    assert source.count("parser.addini(") == len(options)
    assert rows == {
        *(("fixture", name) for name in fixtures),
        *(("option", name) for name in options),
        *(("marker", name) for name in re.findall(r'f?"(\w+): what this', source)),
    }


def test_every_key_is_documented():
    """The page on configuration has a section for each key, and no other."""
    text = (DOCS / "config.md").read_text(encoding="utf-8")
    documented = re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    assert sorted(documented) == sorted(KEYS)


def test_the_table_of_packages_is_the_one_that_is_checked():
    """The page on the design has the rows that ``lint-imports`` checks."""
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    _, table = text.split("| package | what it contains |\n|---|---|\n")
    rows = table.split("\n\n")[0].splitlines()
    documented = [set(re.findall(r"`(\w+)/?`", row.split("|")[1])) for row in rows]
    parser = ConfigParser()
    parser.read(DOCS.parent / "setup.cfg")
    layers = parser["importlinter:contract:layers"]["layers"].split("\n")
    assert documented == [set(re.findall(r"\w+", row)) for row in layers if row]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_option_is_documented(command):
    """The page on the commands has each command, and names every option."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert f"\n`flask {command.name}`\n" in text
    assert f"\n## `flask {command.name}`\n" in text
    options = {name for param in command.params for name in param.opts}
    missing = {name for name in options if name.startswith("--") and name not in text}
    assert not missing


def readings(base=Reading):
    """Return all kinds of readings that are part of a document."""
    found = base.__subclasses__()
    return [*found, *(each for kind in found for each in readings(kind))]


def test_every_field_of_the_json_is_documented():
    """The page on the commands names every field of every reading, and no other."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    names = {field.name for reading in readings() for field in fields(reading)}
    assert {"request_over", "recommended", "unclaimed"} < names
    assert (
        names - set(re.findall(r"\w+", text.split("\n## `flask pool-advise`\n")[1]))
        == set()
    )
    schemas = [text for _, _, text in blocks("cli.md", "text") if "schema" in text]
    assert len(schemas) == 2
    written = {name for text in schemas for name in re.findall(r"\b[a-z]+_\w+", text)}
    assert written - names == {"flask_scopedsession"}
    for text in schemas:
        assert all(text.count(a) == text.count(b) for a, b in ("{}", "[]", "()"))


@pytest.mark.parametrize(
    ("page", "least"),
    [("security.md", 50), ("flask-sqlalchemy.md", 12), ("../README.md", 15)],
)
def test_tests_that_a_table_names_exist(page: str, least: int) -> None:
    """Alone, a name is that of a test in the file that the row names before it."""
    text = (DOCS / page).read_text(encoding="utf-8")
    tests = DOCS.parent / "tests"
    named = []
    for row in (line for line in text.splitlines() if line.startswith("|")):
        file = None
        row = re.sub(r"\[`(test_\w+)`\]\(tests/([\w/]+\.py)\)", r"`\2::\1`", row)
        assert "](tests/" not in row, row
        for path, name in re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", row):
            file = tests / path if path else file
            if file is not None:
                named.append((file, name))
    assert len(named) >= least
    assert not [
        f"{file.name}::{name}"
        for file, name in named
        if f"def {name}(" not in file.read_text(encoding="utf-8")
    ]


def test_the_readme_leads_to_files() -> None:
    """Each link and picture is there."""
    text = README.read_text(encoding="utf-8")
    leads = re.findall(r"""(?:\]\(|(?:src|srcset)=")(?!https?:)([^)"#]+)""", text)
    assert len(leads) > 40
    assert [lead for lead in leads if not (README.parent / lead).exists()] == []
    assert text.count("<picture>") == text.count(' alt="') == 2


def test_the_readme_quotes_what_was_captured() -> None:
    """The log record, and the line that the description of the picture names."""
    text = " ".join(README.read_text(encoding="utf-8").replace("\n> ", "\n").split())
    log = (DOCS / "captured" / "lost-work-log.txt").read_text(encoding="utf-8")
    assert f"`{log.partition('): ')[2].strip()}`" in text
    [shown] = re.findall(r"3× [\w.]+ checked out at \w+\.py:\d+", text)
    status = (DOCS / "captured" / "pool-status.ansi").read_text(encoding="utf-8")
    assert shown in " ".join(status.split())


def test_the_readmes_figures_are_those_of_the_benchmarks():
    """The CPU time of one SELECT, beside a session that is opened by hand."""
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    shown = re.search(r"^\| CPU of a request .*?\|(.*)$", readme, re.MULTILINE)[1]
    names = [
        *("Flask-ScopedSession, tracking on", "Flask-SQLAlchemy"),
        *("Flask-SQLAlchemy-Lite", "Alchemical"),
        "thread-local `scoped_session` by hand",
    ]
    for name, cell in zip(names, shown.split("|"), strict=False):
        found = [
            re.search(rf"^\| {re.escape(name)} \|[^|]+\| ([\d.]+) ", part, re.MULTILINE)
            for part in page.split("**W2 ")[1:3]
        ]
        more = [f"+{float(ratio[1]) - 1:.0%}".replace("%", " %") for ratio in found]
        assert cell.strip(" *") == ", ".join(more), name


def test_each_error_and_its_messages_are_documented():
    """``python tests/support/messages.py`` writes the lists."""
    page = messages.PAGE.read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert headings == messages.classes()
    found = messages.messages()
    assert sum(map(len, found.values())) > 90
    for name, texts in found.items():
        listed = messages.section(name, page).partition(messages.HEAD)[2]
        assert listed == "".join(map(messages.row, texts)), name


def test_an_error_leads_to_its_section():
    """Also one of the drop-in's, to the section of the class that it inherits from.

    Python 3.10 has no notes.
    """
    page = messages.PAGE.read_text(encoding="utf-8")
    for kind in (*map(errors.__dict__.get, errors.__all__), UnknownBindKey):
        error = kind("message")
        assert str(error) == "message"
        notes = getattr(pickle.loads(pickle.dumps(error)), "__notes__", [])
        if sys.version_info < (3, 11):
            assert notes == []
            continue
        [note] = notes
        path, _, anchor = note.rpartition(" ")[2].partition("#")
        assert DOCS.parent / path == messages.PAGE
        assert f"\n## {anchor}\n" in page.lower()
