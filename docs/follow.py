"""Follow ``docs/tutorial/`` from an empty folder, and write what its commands print.

``python docs/follow.py`` writes the files that the pages show, runs the commands, and
replaces their output on the pages, unless it differs only in times, process IDs and the
like. It has the same requirements as the tests, which do the same.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import make_url

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "docs" / "tutorial"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from environment import child_environ  # noqa: E402
from postgres import brought_server  # noqa: E402
from prefork import own_options  # noqa: E402
from serving import Served  # noqa: E402
from stage import on_terminal  # noqa: E402

#: The database that the reader creates, which another one stands for.
READERS_DATABASE = "postgresql+psycopg:///shelf"

#: What differs from one run or machine to the next, and its replacement.
VARIES = [
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S*(?: UTC)?", "TIME"),
    (r"\d+(?:\.\d+)? ?(?:ms|s|min)\b", "DURATION"),
    (r"\b[0-9a-f]{12}(?=[_,])", "REVISION"),
    (r"\b\d+(?:\.\d+)+\b", "VERSION"),
    (r"\d+ of the server's \d+ connections are left \(\d+ used", "LEFT (SOME used"),
    # Alembic's loggers have other names in other versions.
    (r"^INFO  \[alembic\.runtime\.plugins\].*\n", ""),
    (r"\[alembic[.\w]*\]", "[alembic]"),
    (r"^ *\d+(?=  (?:ok|GET|POST) )", "PID"),
    (r"\bpid \d+", "pid PID"),
    # The width of a column depends on its values, and the end of a line on paths.
    (r"\s+", " "),
]

#: A file of the tutorial, or commands with their output.
BLOCK = re.compile(
    r"^```(?:\{code-block\} )?(?P<language>\w+)\n"
    r"(?P<options>(?::[^\n]*\n)*)\n?(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Failed(AssertionError):
    """A command of a page did not end as the page says."""


def pages() -> list[Path]:
    """Return the pages in the order of the tutorial's table of contents."""
    text = (TUTORIAL / "index.md").read_text(encoding="utf-8")
    listed = text.split("```{toctree}\n")[1].split("```")[0]
    names = re.findall(r"^\w+$", listed, re.MULTILINE)
    return [TUTORIAL / f"{name}.md" for name in names]


def masked(text: str) -> str:
    """Replace what differs from one run to the next."""
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text.strip()


class Reader:
    """A person who follows the pages in a folder, with this interpreter.

    :param folder: An empty folder with a short name.
    :param database: The URL of an empty PostgreSQL database.
    """

    def __init__(self, folder: Path, database: str) -> None:
        self._top = self._folder = folder
        self._database = database
        self._server: Served | None = None
        listen = " ".join(["--bind 127.0.0.1:0", *own_options()])
        self._env = {
            "TMPDIR": str(folder),
            "FLASK_RUN_PORT": "0",
            "GUNICORN_CMD_ARGS": listen,
            "PYTEST_ADDOPTS": "-pno:asyncio -pno:flask -pno:randomly",
        }

    def read(self, text: str) -> str:
        """Do what a page says; return the page with what its commands have printed."""
        if text.count("\n```") != 2 * len(BLOCK.findall(text)):
            raise Failed("a block is neither a file nor commands")
        text = BLOCK.sub(self._follow, text)
        self.stop()
        return text

    def stop(self) -> None:
        """Stop the server that runs, if any."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _follow(self, block: re.Match[str]) -> str:
        caption = re.search(r"^:caption: `(.+)`$", block["options"], re.MULTILINE)
        if caption is not None:
            path = self._folder / caption[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block["body"], encoding="utf-8")
            return block[0]
        if block["language"] != "console":
            raise Failed(f"neither a file nor commands:\n{block[0]}")
        fails = "fails" in block["options"].split()
        return block[0].replace(block["body"], self._console(block["body"], fails))

    def _console(self, body: str, fails: bool) -> str:
        written = []
        for step in body.split("$ ")[1:]:
            line, _, shown = step.partition("\n")
            said = self._tidied(self._run(line, fails))
            written.append(f"$ {line}\n")
            written.append(shown if masked(said) == masked(shown) else said)
        return "".join(written)

    def _run(self, line: str, fails: bool) -> str:
        words = shlex.split(line)
        env = dict(self._env)
        while re.match(r"[A-Z]\w*=", words[0]):
            name, _, env[name] = words.pop(0).partition("=")
        match words:
            case ["mkdir", name]:
                (self._folder / name).mkdir()
            case ["cd", name]:
                self._folder /= name
            case ["python", "-m", "venv", _] | [".", _] | ["createdb", _]:
                pass  # the interpreter and the database of the tests stand for them
            case ["pip", "install", *packages]:
                for package in packages:
                    distribution(re.sub(r"\[.*\]", "", package.rpartition("/")[2]))
            case ["export", setting]:
                name, _, value = setting.partition("=")
                self._env[name] = value.replace(READERS_DATABASE, self._database)
            case ["curl", *options, url]:
                return self._curl(options, url)
            case ["gunicorn", *_] | ["flask", *_, "run"]:
                self._serve(words, env)
            case ["pytest" | "flask" as name, *arguments]:
                return self._command(name, arguments, env, fails)
            case _:
                raise Failed(f"unknown command: {line}")
        return ""

    def _serve(self, words: list[str], env: Mapping[str, str]) -> None:
        self.stop()
        command = [sys.executable, "-m", *words]
        self._server = Served(words[0], self._top, command, env=env, cwd=self._folder)
        self._server.start()
        self._server.wait_listening()

    def _curl(self, options: list[str], url: str) -> str:
        if self._server is None:
            raise Failed(f"no server runs: curl {url}")
        # Without -d it is a GET, as with curl.
        flags, values = options[::2], options[1::2]
        if set(flags) - {"-d"}:
            raise Failed(f"unknown option of curl: {flags}")
        data = "&".join(values).encode() if values else None
        where = urlsplit(url)
        query = f"?{where.query}" if where.query else ""
        try:
            with urllib.request.urlopen(  # noqa: S310
                f"{self._server.url}{where.path}{query}", data
            ) as answer:
                said: bytes = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()
            if error.code >= 500:
                raise Failed(f"curl {url}:\n{self._server.log}") from error
        except OSError as error:
            raise Failed(f"curl {url}:\n{self._server.log}") from error
        return said.decode()

    def _command(
        self, name: str, arguments: list[str], env: Mapping[str, str], fails: bool
    ) -> str:
        # As the script that pip installs, which does not add the folder to the path.
        start = f"import sys, {name}; sys.argv[0] = {name!r}"
        if name == "pytest":
            code = f"import sys; del sys.path[0]; {start}; sys.exit(pytest.main())"
        else:
            code = f"{start}; from flask.cli import main; main()"
        exit_code, said = on_terminal(
            child_environ(env), "-c", code, *arguments, cwd=self._folder
        )
        if bool(exit_code) != fails:
            raise Failed(f"exit {exit_code} of {name} {shlex.join(arguments)}:\n{said}")
        return said

    def _tidied(self, text: str) -> str:
        """Replace the names of this machine and its folders with typical names."""
        text = text.replace(str(self._top), "/home/ada")
        own, readers = make_url(self._database), make_url(READERS_DATABASE)
        text = text.replace(f":///{own.database}", f":///{readers.database}")
        text = text.replace(f" on {socket.gethostname()} · ", " on web-1 · ")
        lines = [line.rstrip() for line in text.strip("\n").splitlines()]
        return "".join(f"{line}\n" for line in lines)


@contextmanager
def reader(folder: Path, database: str) -> Iterator[Reader]:
    """Return a reader whose server is stopped in any case."""
    person = Reader(folder, database)
    try:
        yield person
    finally:
        person.stop()


def follow(folder: Path, database: str) -> Mapping[Path, str]:
    """Follow all pages, and return each of them with its present output."""
    with reader(folder, database) as person:
        return {page: person.read(page.read_text("utf-8")) for page in pages()}


def main() -> None:
    """Write the present output to the pages."""
    with tempfile.TemporaryDirectory(prefix="ss-", dir="/tmp") as name:
        top = Path(name)
        # If root runs this, PostgreSQL runs as another user, and needs access.
        top.chmod(0o755)
        with brought_server(top) as server:
            (top / "ada").mkdir()
            url = server.url.render_as_string(hide_password=False)
            for page, text in follow(top / "ada", url).items():
                page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.umask(0o022)
    main()
