"""``--watch``: how a page is fitted to a screen, and refreshes that fail."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import click
import pytest
from inside import fold
from inside import History
from inside import Refresh
from inside import render_pools
from inside import render_sessions
from readings import a_full_pool
from readings import a_holder
from readings import a_last_worker
from readings import a_pool
from readings import a_session
from readings import a_silent
from readings import a_survey
from readings import a_worker
from readings import AUDIT
from rich.cells import cell_len
from rich.text import Text

from flask_scopedsession.cli import watch as _screen
from flask_scopedsession.cli.watch import fitting
from flask_scopedsession.errors import ScopedSessionError
from flask_scopedsession.snapshot import Survey

Become = Callable[..., None]
WIDTHS = [20, 40, 60, 80, 100, 120, 160, 200]


@functools.cache
def survey() -> Survey:
    wedged = [a_full_pool(), a_pool("audit", 0, url=AUDIT)]
    full = [a_pool("reporting_warehouse", 15, idle=0, holders=(a_holder(0.1),))]
    return a_survey(
        *(a_worker(48300 + i, [a_pool(used=i)]) for i in range(8)),
        a_worker(48211, wedged, state="wedged", sessions=(a_session(),)),
        a_worker(4194303, full, state="saturated"),
        a_last_worker(50001, "gone", pools=[a_pool(holders=(a_holder(),))]),
        silent=(a_silent(50003, "stopped"),),
    )


def seen() -> History:
    history = History(2.0)
    for _ in range(60):
        history.add(survey())
    return history


DRAWN: list[Callable[[], str]] = [
    lambda: render_pools(survey(), history=seen()),
    lambda: render_sessions(survey(), history=seen()),
]


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Become:
    """Make standard output a terminal of some kind."""

    def become(columns: int, rows: int = 24, encoding: str = "utf-8") -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(rows))
        monkeypatch.setattr("sys.stdout", Stdout(encoding))
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")

    become(80)
    return become


class Stdout:
    def __init__(self, encoding: str) -> None:
        self.encoding = encoding

    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    return Text.from_ansi(text).plain


# Drawing


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("draw", DRAWN)
def test_fits(
    draw: Callable[[], str], columns: int, encoding: str, output: Become
) -> None:
    """No line is wider than the screen, and nothing is lost."""
    output(columns, encoding=encoding)
    page = draw()
    lines = [line.plain for line in fold(page, columns)]
    assert max(map(cell_len, lines)) <= columns
    whole = re.sub(r"\s", "", plain(page))
    assert re.sub(r"\s", "", "".join(lines)) == whole
    assert "48211" in whole
    if encoding != "utf-8":
        assert page.isascii()


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_charts_of_pools(columns: int, output: Become) -> None:
    """Each row has a chart, beside it or below it; at most ten columns."""
    output(columns)
    text = plain(render_pools(survey(), history=seen()))
    table = re.search(r"(?m)^ *PID .*\n(?:.+\n)*", text)
    assert table is not None
    names, *rows = table[0].splitlines()
    assert len(re.split(r"  +| (?=LAST)", names.strip())) <= 11
    charts = [row for row in rows if re.search("[░█]{8}", row)]
    # A silent worker has none.
    assert len(charts) == 11
    wedged = next(n for n, row in enumerate(rows) if " wedged " in row)
    assert "█!!" in "".join(rows[wedged : wedged + 2])


def test_an_ascii_chart(output: Become) -> None:
    """It is as wide as the Unicode chart, and as clear."""
    worker = a_worker(1, [a_full_pool()])
    history = seen()
    for used in (0, 3, 8, 14):
        history.add(a_survey(a_worker(1, [a_pool(used=used)])))
    history.add(a_survey(worker))
    output(80, encoding="ascii")
    text = plain(render_pools(a_survey(worker), history=history))
    assert re.search(r"default  ########!! +_\.=\*! ", text), text


def test_styles_also_in_ascii(output: Become) -> None:
    """A chart in ASCII has the same colour."""
    output(80, encoding="ascii")
    page = render_pools(a_survey(a_worker(1, [a_full_pool()])), history=seen())
    assert re.search(r"\x1b\[31m########!", page)


def test_databases_are_on_top(output: Become) -> None:
    """A small screen shows the end of the page, so problems are at the end."""
    text = plain(DRAWN[0]())
    order = ["this host only", "may open at most", "PID", "wedged", "Held", "Waiting"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)


def test_no_advice_while_watching(output: Become) -> None:
    """It takes too long for every refresh; a single page has it."""
    recommended = "Recommended: 3 connections"
    assert recommended in plain(render_pools(survey()))
    assert recommended not in plain(render_pools(survey(), advice=False))


# What a screen has room for

TABLE = [
    *("header", "", "  PID  STATE", *(f"{n:>5}  ok" for n in range(20))),
    *("", "Held", "  1x a", "Waiting", "  1x b"),
]


def fitted(lines: list[str], rows: int) -> list[str]:
    return [line.plain for line in fitting([Text(line) for line in lines], rows)]


def test_enough_room() -> None:
    """Nothing is left out."""
    assert fitted(TABLE, len(TABLE)) == TABLE


@pytest.mark.parametrize("rows", range(9, len(TABLE)))
def test_a_long_table(rows: int) -> None:
    """The header, the headings, the last rows and all problems; each line once."""
    shown = fitted(TABLE, rows)
    left_out = len(TABLE) - rows + 1
    assert shown == [
        *("header", "  PID  STATE", f"... {left_out} more lines"),
        *TABLE[len(TABLE) - rows + 3 :],
    ]
    assert len(shown) == rows


@pytest.mark.parametrize("rows", range(2, 8))
def test_no_room_for_the_table(rows: int) -> None:
    """No headings without a row; the problems at the end are kept."""
    shown = fitted(TABLE, rows)
    assert shown[0] == "header"
    assert shown[1].startswith("... ")
    assert shown[2:] == TABLE[len(TABLE) - rows + 2 :]


def test_rows_of_two_lines() -> None:
    """The second line is not shown without the first."""
    rows = [line for n in range(9) for line in (f"{n:>5}  ok", "       ###  __")]
    table = ["header", "", "  PID  STATE", *rows, "", "Held"]
    for height in range(6, len(table)):
        shown = fitted(table, height)
        assert len(shown) <= height
        assert not shown[3].startswith("       "), shown


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("rows", [1, 2, 5, 10, 24, 60])
@pytest.mark.parametrize("columns", WIDTHS)
def test_never_more_than_the_screen(
    draw: Callable[[], str], columns: int, rows: int, output: Become
) -> None:
    """Header and end of the page are shown at any size."""
    output(columns)
    lines = fold(draw(), columns)
    shown = fitting(lines, rows)
    assert len(shown) <= rows
    assert shown[0].plain.startswith("shop on web-1"[:columns])
    if rows >= 5:
        assert shown[-1] == lines[-1]


def test_folded_lines_keep_their_indent_and_style() -> None:
    """So the reader sees that they belong together."""
    lines = fold("  \x1b[31mone two three\x1b[0m", 9)
    assert [line.plain.rstrip() for line in lines] == ["  one two", "  three"]
    assert [str(line.spans[-1].style) for line in lines] == ["color(1)"] * 2
    assert [line.plain for line in fold("  12345678", 6)] == ["  1234", "  5678"]


# Refreshes that fail


def answers(*found: Any) -> Callable[[], Refresh]:
    """Return what gives or raises these in turn, and then Ctrl-C."""
    left: Iterator[Any] = iter((*found, KeyboardInterrupt()))

    def ask() -> Refresh:
        one = next(left)
        if isinstance(one, BaseException):
            raise one
        return Refresh(one)

    return ask


def watch(*found: Any, as_json: bool = False) -> None:
    with pytest.raises(KeyboardInterrupt):
        _screen.watch(answers(*found), lambda *_: "shown\n", 0.0, as_json=as_json)


@pytest.mark.parametrize(("as_json", "between"), [(False, "\n"), (True, "")])
def test_after_a_failed_refresh(
    as_json: bool, between: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error goes to stderr, apart from the JSON, and the next refresh comes."""
    gone = FileNotFoundError(2, "No such file or directory")
    watch(gone, a_survey(), gone, a_survey(), as_json=as_json)
    shown = capsys.readouterr()
    assert shown.out == f"shown\n{between}shown\n"
    said = "Refresh failed: FileNotFoundError: [Errno 2] No such file or directory"
    assert shown.err == f"{said}\n{said}\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("postgresql://me:secret@db"), "ValueError"),
        (ScopedSessionError("as it is"), "ScopedSessionError: as it is"),
        (click.UsageError("There is no bind 'x'"), "UsageError: There is no bind 'x'"),
    ],
)
def test_why_a_refresh_failed(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only texts of errors that contain no secret are shown."""
    watch(a_survey(), error)
    assert capsys.readouterr().err == f"Refresh failed: {said}\n"


def test_the_first_refresh_may_be_refused() -> None:
    """Wrong usage ends the command at once."""
    ask = answers(click.UsageError("There is no bind 'x'"))
    with pytest.raises(click.UsageError):
        _screen.watch(ask, lambda *_: "", 0.0, as_json=True)
