"""The examples and lists in the documentation are correct."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import shlex
import sys
import textwrap
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
from inside import KEYS
from inside import Reading
from prefork import own_options
from serving import Served
from suites import Suite

from flask_scopedsession import cli
from flask_scopedsession import errors
from flask_scopedsession.flask_sqlalchemy.extension import UnknownBindKey

DOCS = Path(__file__).parent.parent.parent / "docs"
README = DOCS.parent / "README.md"

#: What the examples of a page need that the page does not show.
PRELUDES = {
    "flask-sqlalchemy.md": "",
    "flask-sqlalchemy-lite.md": "",
    "plain-core.md": "",
    "config.md": "from flask import Flask; app = Flask('docs')",
    "workers.md": "from flights import create_app, db; app = create_app()",
    "troubleshooting.md": "from flights import create_app, db, Flight",
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
    "howto.md": "",
}

#: What shows that they work, if the page does not say.
SEQUELS = {
    "config.md": """
from flask_scopedsession import ScopedSession
ScopedSession(app)
""",
    "troubleshooting.md": """
app = create_app()
with app.app_context():
    db.create_all()
work(app, 1)
assert str(where(Flight)).endswith("/flights.db")
""",
    "../README.md": "assert app.test_client().get('/').json == {'answer': 42}",
    "views.md": """
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
    lines = [PRELUDES[page]]
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
        command = [sys.executable, "-m", *words]
        servers.append(Served(words[0], folder, command, env=env, cwd=folder))
        servers[-1].start()
        servers[-1].wait_listening()
        return ""
    result = commands.run(["-m", *words], cwd=folder).check()
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
        r"^\.\. (\w*module|auto(?:class|function|data)):: (\S+)$", page, re.MULTILINE
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


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda c: c.name)
def test_every_option_is_documented(command):
    """The page on the commands names every option."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_an_error_leads_to_its_section():
    """Also one of the drop-in's, to the section of the class that it inherits from."""
    page = messages.PAGE.read_text(encoding="utf-8")
    for kind in (*map(errors.__dict__.get, errors.__all__), UnknownBindKey):
        error = kind("message")
        assert str(error) == "message"
        [note] = pickle.loads(pickle.dumps(error)).__notes__
        path, _, anchor = note.rpartition(" ")[2].partition("#")
        assert DOCS.parent / path == messages.PAGE
        assert f"\n## {anchor}\n" in page.lower()
