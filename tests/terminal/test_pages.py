"""What the commands print on a terminal and in a pipe."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from inside import duration
from inside import PingResult
from inside import some
from readings import a_full_pool
from readings import a_holder
from readings import a_last_worker
from readings import a_pool
from readings import a_session
from readings import a_shared_use
from readings import a_silent
from readings import a_survey
from readings import a_timeout
from readings import a_view_use
from readings import a_waiter
from readings import a_worker
from readings import AUDIT
from readings import lost_work

from flask_scopedsession._terminal.page import Page
from flask_scopedsession._terminal.ping import render_pings
from flask_scopedsession._terminal.pools import render_pools
from flask_scopedsession._terminal.sessions import render_sessions
from flask_scopedsession.snapshot import ConfiguredPool
from flask_scopedsession.snapshot import DatabaseURL
from flask_scopedsession.snapshot import Histogram
from flask_scopedsession.snapshot import SearchedDirectory
from flask_scopedsession.snapshot import Survey

NONE = Histogram.of([0] * 20, 0.0, 0.0)
STYLES = re.compile(r"\x1b\[[0-9;]*m")


class Output(io.TextIOWrapper):
    """A standard output of some kind."""

    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make standard output something else."""

    def become(columns: int | None = None, encoding: str = "utf-8") -> None:
        terminal = columns is not None
        monkeypatch.setattr("sys.stdout", Output(encoding, terminal))
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")

    become()
    return become


@pytest.fixture(autouse=True)
def _piped(output: Callable[..., None]) -> None:
    """Nothing here depends on where the tests themselves run."""


def wedged(pid: int = 48211) -> Any:
    pools = [a_full_pool(), a_pool("audit", 0, url=AUDIT)]
    return a_worker(pid, pools, state="wedged")


def healthy(amount: int) -> list[Any]:
    pools = [a_pool(), a_pool("audit", 0, url=AUDIT)]
    return [a_worker(48300 + i, pools) for i in range(amount)]


def mixed() -> Survey:
    full = a_pool("default", 15, idle=0, holders=(a_holder(0.1),) * 3)
    return a_survey(
        *healthy(40),
        wedged(),
        a_worker(
            4194303,
            [full, a_pool("reporting_warehouse", 0, url=AUDIT)],
            state="saturated",
        ),
        a_last_worker(50001, "gone", pools=[a_pool(holders=(a_holder(),))]),
        a_last_worker(50002, "unresponsive"),
        silent=(
            a_silent(50002, "unresponsive"),
            a_silent(50003, "stopped"),
            a_silent(50004, "answered nonsense"),
        ),
    )


def sessions() -> Survey:
    return a_survey(
        a_worker(
            48210,
            sessions=(
                a_session(),
                a_session(2, state="idle", connections=(), age_s=0.003),
                a_session(3, endpoint=None, method=None, rule=None,
                          command="import-airports", state="holding"),
                a_session(4, endpoint=None, method=None, rule=None,
                          thread="worker-3", thread_alive=False, state="idle"),
                a_session(5, state="needs rollback", name="audit",
                          endpoint="admin.reports.quarterly_statement_export",
                          rule="/admin/reports/<int:year>/<quarter>/<path:name>"),
            ),
        ),
        a_last_worker(50002, "stopped", sessions=(a_session(9),)),
        silent=(a_silent(50002, "stopped"),),
    )  # fmt: skip


def nobody() -> Survey:
    return a_survey(
        searched=(SearchedDirectory("/run/shop", "does not exist"),),
        configured=(
            ConfiguredPool("default", "QueuePool", AUDIT, 5, 15, False, 30.0),
            ConfiguredPool("cache", "NullPool", AUDIT, None, None, True, None),
        ),
    )


SCENES: list[Callable[[], str]] = [
    lambda: render_pools(a_survey(*healthy(3))),
    lambda: render_pools(a_survey(*healthy(96))),
    lambda: render_pools(a_survey(wedged())),
    lambda: render_pools(mixed()),
    lambda: render_pools(mixed(), verbose=True),
    lambda: render_pools(nobody()),
    lambda: render_sessions(sessions()),
    lambda: render_sessions(sessions(), verbose=True),
    lambda: render_sessions(nobody()),
    lambda: render_sessions(
        a_survey(
            a_worker(
                lost_work=(lost_work({"Order": 2, "Item": 1}),),
                recent_shared=(a_shared_use(),),
            )
        )
    ),
]


# The whole of it


POOLS = """\
shop on web-1 · 2026-11-22 10:10:29 UTC · this host only

  PID  STATE   BIND     POOL       USED/MAX  IDLE  WAITING  MAXWAIT  HOLD95  TIMEOUTS
48210  ok      default  QueuePool      1/15     2        0        -  3.9 ms         0
48211  ok      audit    QueuePool      0/15     2        0        -  3.9 ms         0
48211  wedged  default  QueuePool     15/15     0        3    4.0 s  3.9 ms         7

postgresql+psycopg://db.internal:5432/orders · 16 used, 2 idle, 3 waiting · 2 workers may open at most 30
sqlite:////srv/shop/audit.db · 0 used, 2 idle · 1 worker may open at most 15

Bind default, last minute: up to 15/15 in use and 3 waiting in one worker, 95 % of checkouts waited at most 3.9 ms, longest wait 30 s, 95 % of holds lasted at most 3.9 ms
  Hold time by view: 100% orders.show
  3.0 s ago, orders.index timed out after 30 s; connections were held by 14× orders.show shop/views.py:88 show, longest 44 s; 1× reports.build shop/reports.py:9 build, longest 20 s
  Recommended: 3 connections, instead of 15: pool_size 2, max_overflow 1 ('pool-advise' explains why)

Held connections, longest first
  12× orders.show shop/views.py:88 show, longest 41 s, idle in transaction for 40 s · bind default · pid 48211
  1× reports.build shop/reports.py:9 build, held 20 s, in transaction · bind default · pid 48211

Waiting for a connection, longest first
  1× orders.index shop/views.py:12 index, for 4.0 s, self-deadlock: its own thread holds a connection · bind default · pid 48211
  2× orders.index shop/views.py:12 index, longest 3.5 s · bind default · pid 48211

7 checkouts timed out in the last minute · bind default · pid 48211
"""  # noqa: E501


def test_pool_status_whole() -> None:
    """One worker in trouble, one healthy: the page that a person on call reads."""
    assert render_pools(a_survey(a_worker(48210), wedged())) == POOLS


def test_session_status_whole() -> None:
    """The worst sessions are last, and absent workers are named."""
    lines = render_sessions(sessions()).splitlines()
    assert lines[2].split() == [
        *("PID", "SCOPE", "BIND", "AGE", "STATE", "CONN", "STMTS"),
        *("NEW/DEL", "IDENTITY", "IDLE-TX"),
    ]
    rows = [re.split("  +", line.strip())[:5] for line in lines[3:9]]
    show = "GET /orders/<int:id> → orders.show"
    report = "GET /admin/reports/<int:year>/<quarter>/<path:name>"
    assert rows == [
        ["48210", show, "default", "3.0 ms", "idle"],
        ["48210", "command import-airports", "default", "41 s", "holding"],
        ["48210", show, "default", "41 s", "idle in transaction"],
        ["50002", f"{show} (worker stopped)", "default", "41 s", "idle in transaction"],
        [
            "48210",
            f"{report} → admin.reports.quarterly_statement_export",
            *("audit", "41 s", "needs rollback"),
        ],
        ["48210", "thread worker-3, its thread has ended", "default", "41 s", "idle"],
    ]
    assert lines[9:] == [
        "",
        "5 sessions open in 1 worker",
        "1 worker is stopped (by SIGSTOP or a debugger): pid 50002 (as of 3 min ago)",
    ]


def test_no_worker_whole() -> None:
    """Where it looked, why no worker answered, what to do, and the configured pools."""
    assert render_pools(nobody()).splitlines() == [
        "shop on web-1 · 2026-11-22 10:10:29 UTC · this host only",
        "",
        "No worker has answered (looked in /run/shop).",
        "  does not exist",
        "",
        "A worker answers after its first request, and only to its own user and root.",
        "Start one and request a page:   flask run   or   gunicorn 'app:create_app()'",
        "A process without requests, such as a job, must call db.serve_control().",
        "",
        "Configured pools (this process does not use them):",
        "BIND     POOL       SIZE  MAX  TIMEOUT  DATABASE",
        "default  QueuePool     5   15     30 s  sqlite:////srv/shop/audit.db",
        "cache    NullPool      -    ∞        -  sqlite:////srv/shop/audit.db",
    ]


def test_no_worker_in_several_places() -> None:
    """Each reason has its directory, if it belongs to one."""
    survey = a_survey(
        searched=(
            SearchedDirectory("/a", "does not exist"),
            SearchedDirectory("/b"),
            SearchedDirectory("", "SCOPEDSESSION_TRACKING is off"),
        )
    )
    lines = render_sessions(survey).splitlines()
    assert lines[2:5] == [
        "No worker has answered (looked in /a, /b).",
        "  /a: does not exist",
        "  SCOPEDSESSION_TRACKING is off",
    ]


def test_reason_fits_a_narrow_terminal(output: Any) -> None:
    """A long reason is broken between words."""
    output(40)
    reason = "/run/shop belongs to uid 7, but is open to others (mode 0755)."
    survey = a_survey(searched=(SearchedDirectory("/run/shop", reason),))
    lines = STYLES.sub("", render_sessions(survey)).splitlines()
    first = lines.index("  /run/shop belongs to uid 7, but is")
    assert lines[first + 1] == "      open to others (mode 0755)."


def test_connections_are_numbers_and_not_a_number() -> None:
    """A bare 3 would read like three connections."""
    some = a_session(connections=(3, 12)), a_session(connections=())
    page = render_sessions(a_survey(a_worker(sessions=some)))
    assert re.findall(r"idle in transaction +(\S+)", page) == ["#3,#12", "-"]


def test_no_session() -> None:
    """There is no table without rows."""
    assert render_sessions(a_survey(a_worker())).splitlines()[2:] == [
        "No session is open.",
        "",
        "0 sessions open in 1 worker",
    ]


# What is shown, and where


def test_healthy_workers_collapse() -> None:
    """More than ten are one line; workers with a problem are rows."""
    text = render_pools(mixed())
    assert "\n40 workers ok\n" in text
    assert "48300" not in text
    assert "4194303  saturated" in text
    text = render_pools(mixed(), verbose=True)
    assert "workers ok" not in text
    assert "48300  ok" in text


def test_ten_healthy_workers_are_rows() -> None:
    """Ten fit."""
    text = render_pools(a_survey(*healthy(10)))
    assert "workers ok" not in text
    assert len(re.findall(r"^483\d\d", text, re.MULTILINE)) == 20
    assert "\n11 workers ok\n" in render_pools(a_survey(*healthy(11)))


def test_a_worker_with_a_long_hold_is_not_healthy() -> None:
    """Its state is ok, but it is shown."""
    pool = a_pool(held_long=1, holders=(a_holder(60.0),))
    text = render_pools(a_survey(*healthy(20), a_worker(7, [pool])))
    assert re.search(r"^ +7  ok", text, re.MULTILINE)
    assert "1× orders.show shop/views.py:88 show, held 60 s" in text


def test_problems_are_last() -> None:
    """The wedged row ends the table; holders, waiters and absent workers follow."""
    text = render_pools(mixed())
    order = [
        "workers ok",
        "PID ",
        " ok ",
        " gone ",
        " saturated ",
        " stopped ",
        " unresponsive ",
        " wedged ",
        "may open at most",
        "Held connections",
        "Waiting for a connection",
        "timed out in the last minute",
        "1 worker is gone (killed): pid 50001 (as of 3 min ago)",
        "1 worker did not answer in time: pid 50002 (as of 3 min ago)",
        "  'py-spy dump --pid PID' shows what such a worker is doing.",
        "1 worker is stopped (by SIGSTOP or a debugger): pid 50003",
        "1 worker answered nonsense: pid 50004",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_no_holders_while_all_is_well() -> None:
    """They are shown with --verbose only."""
    survey = a_survey(a_worker(7, [a_pool(holders=(a_holder(0.01),))]))
    assert "Held" not in render_pools(survey)
    assert "1× orders.show" in render_pools(survey, verbose=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"pending": 1, "waiters": (a_waiter(),)},
        {"held_long": 1},
        {"used": 15},
        {"wedged": True, "pending": 1},
    ],
)
def test_holders_when_it_matters(changes: dict[str, Any]) -> None:
    """Shown with waiters, past HELD_LONG_AFTER, and when no connection is left."""
    survey = a_survey(a_worker(7, [a_pool(**{"holders": (a_holder(),), **changes})]))
    assert "1× orders.show" in render_pools(survey)


def test_a_leak_is_said_to_be_one() -> None:
    """A holder whose request is over did not return the connection."""
    pools = [a_pool(held_long=1, holders=(a_holder(3.0, request_over=True),))]
    text = render_pools(a_survey(a_worker(7, pools)))
    assert "held 3.0 s, in transaction, its request is over" in text


def test_what_the_line_of_a_leak_is() -> None:
    """Where the view begins must not look like the guilty line."""
    holders = (
        a_holder(3.0, request_over=True, at_is="view"),
        a_holder(2.0, request_over=True, at="shop/views.py:91 show", at_is="checkout"),
        a_holder(1.0, at_is="now"),
    )
    late = a_timeout(holders=holders, endpoint=None)
    pool = a_pool(held_long=1, holders=holders, timeouts_60s=1, recent_timeouts=(late,))
    text = render_pools(a_survey(a_worker(7, [pool])))
    assert text.count("1× orders.show defined at shop/views.py:88 show, longest") == 1
    assert "1× orders.show checked out at shop/views.py:91 show, held 2.0 s" in text
    assert "1× orders.show shop/views.py:88 show, held 1.0 s" in text
    hint = " ".join(text.split())
    assert "After a view's first leak, a worker records where the view" in hint
    known = a_pool(held_long=1, holders=holders[1:])
    assert "first leak" not in render_pools(a_survey(a_worker(7, [known])))


def test_holders_are_grouped() -> None:
    """Grouped by bind, view, line and state, across workers."""
    pools = [
        a_pool(
            held_long=1,
            holders=(
                a_holder(3.0, at="shop/views.py:90 show"),
                a_holder(5.0),
                a_holder(4.0, rule="/other", method="POST"),
                a_holder(2.0, in_transaction=False),
                a_holder(1.0, thread_alive=False),
                a_holder(0.5, in_transaction=None),
            ),
        )
    ]
    text = render_pools(a_survey(a_worker(7, pools), a_worker(8, pools)))
    found = re.findall(r"^  (\d+× .*)$", text, re.MULTILINE)
    assert found == [
        (
            "4× orders.show shop/views.py:88 show, longest 5.0 s, in transaction"
            " · bind default · pid 7, 8"
        ),
        (
            "2× orders.show shop/views.py:90 show, longest 3.0 s, in transaction"
            " · bind default · pid 7, 8"
        ),
        (
            "2× orders.show shop/views.py:88 show, longest 2.0 s, not in transaction"
            " · bind default · pid 7, 8"
        ),
        (
            "2× orders.show shop/views.py:88 show, longest 1.0 s, in transaction, its"
            " thread has ended · bind default · pid 7, 8"
        ),
        (
            "2× orders.show shop/views.py:88 show, longest 500 ms, transaction state"
            " unknown · bind default · pid 7, 8"
        ),
    ]


def test_binds_are_not_mixed() -> None:
    """The same view may hold connections of two databases."""
    pools = [
        a_pool(bind, held_long=1, holders=(a_holder(5.0),), pending=1,
               waiters=(a_waiter(),))
        for bind in ("default", "audit")
    ]  # fmt: skip
    text = render_pools(a_survey(a_worker(7, pools)))
    assert re.findall(r"× (\S+) .* · bind (\w+)", text) == [
        ("orders.show", "default"),
        ("orders.show", "audit"),
        ("orders.index", "default"),
        ("orders.index", "audit"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "orders.show shop/views.py:88 show,"),
        ({"at": None}, "orders.show, held"),
        ({"endpoint": None}, "GET (no rule matched) shop"),
        ({"endpoint": None, "method": None, "command": "db upgrade"},
         "command db upgrade shop"),
        ({"endpoint": None, "method": None}, "thread Thread-1 shop"),
        ({"endpoint": None, "method": None, "thread": None}, "thread unknown shop"),
    ],
)  # fmt: skip
def test_who_holds(changes: dict[str, Any], expected: str) -> None:
    """A view, a command or a thread: a person must know where to look."""
    pool = a_pool(held_long=1, holders=(a_holder(20.0, **changes),))
    assert f"1× {expected}" in render_pools(a_survey(a_worker(7, [pool])))


def test_many_groups() -> None:
    """Ten groups, and how many more there are; all of them with --verbose."""
    holders = tuple(a_holder(50.0 - i, endpoint=f"view{i}") for i in range(13))
    survey = a_survey(a_worker(7, [a_pool(held_long=13, holders=holders)]))
    text = render_pools(survey)
    assert "view9" in text
    assert "view10" not in text
    assert "  and 3 more; --verbose lists them\n" in text
    assert "view12" in render_pools(survey, verbose=True)


@pytest.mark.parametrize("leak", [{"request_over": True}, {"thread_alive": False}])
@pytest.mark.parametrize(
    ("others", "said"),
    [
        (0, ""),
        (1, "  1 more is in use; --verbose lists it\n"),
        (14, "  14 more are in use; --verbose lists them\n"),
    ],
)
def test_a_leak_is_listed_at_once(leak: dict[str, Any], others: int, said: str) -> None:
    """Whatever else is going on; and how many connections are not listed."""
    ordinary = tuple(a_holder(9.0, endpoint="ordinary") for _ in range(others))
    text = render_pools(a_survey(a_worker(7, [a_pool(max=99, holders=ordinary)])))
    assert "ordinary" not in text
    assert "more" not in text
    pool = a_pool(used=1 + others, max=99, holders=(*ordinary, a_holder(0.1, **leak)))
    text = render_pools(a_survey(a_worker(7, [pool])))
    _, _, below = text.partition("\nHeld connections, longest first\n")
    first, _, rest = below.partition("\n")
    assert first.startswith("  1× orders.show shop/views.py:88 show, held 100 ms,")
    assert rest == said
    text = render_pools(a_survey(a_worker(7, [pool])), verbose=True)
    assert text.count("1× ordinary") == others
    assert "more" not in text


def test_a_worker_with_a_leak_is_not_healthy() -> None:
    """Nor counted with those that are."""
    leaky = a_worker(7, [a_pool(holders=(a_holder(0.1, request_over=True),))])
    text = render_pools(a_survey(*healthy(20), leaky))
    assert "\n20 workers ok\n" in text
    assert re.search(r"^ *7  ok", text, re.MULTILINE)


def test_workers_that_are_gone_stand_apart() -> None:
    """Their connections are closed: never among the live ones, and in no total."""
    pools = [a_pool(held_long=1, holders=(a_holder(5.0),), waiters=(a_waiter(),))]
    old = [a_pool(holders=(a_holder(9.0),), waiters=(a_waiter(),))]
    survey = a_survey(a_last_worker(8, "gone", pools=old), a_worker(7, pools))
    text = render_pools(survey)
    assert "1 used, 2 idle · 1 worker" in text
    found = re.findall(r"^[A-Z].*|^  1× \S+|\bpid \d+.*", text, re.MULTILINE)
    start = found.index(
        "Last held by workers that are gone; these connections are closed"
    )
    assert found[start:] == [
        "Last held by workers that are gone; these connections are closed",
        *("  1× orders.show", "pid 8 (gone)"),
        "Last waiting in workers that are gone",
        *("  1× orders.index", "pid 8 (gone)"),
        "Held connections, longest first",
        *("  1× orders.show", "pid 7"),
        "Waiting for a connection, longest first",
        *("  1× orders.index", "pid 7"),
        "pid 8 (as of 3 min ago)",
    ]


def test_how_a_worker_that_is_gone_is_forgotten() -> None:
    """For how long it is shown, and which file is the reason."""
    place = "/tmp/flask-scopedsession-0/0123456789ab"
    one = a_last_worker(8, "gone")
    for text in (render_pools(a_survey(one)), render_sessions(a_survey(one))):
        assert text.endswith(
            "1 worker is gone (killed): pid 8 (as of 3 min ago)\n"
            "  Shown for an hour after its end, or until 8-abcdef01.json is removed"
            f" from {place}\n"
        )
    text = render_pools(a_survey(one, a_last_worker(9, "gone")))
    assert (
        "their end, or until 8-abcdef01.json, 9-abcdef01.json are removed from"
    ) in text
    assert "hour" not in render_pools(a_survey(a_last_worker(9, "stopped")))


def test_sessions_of_workers_that_are_gone() -> None:
    """They have ended, and are in a table of their own, above the open ones."""
    gone = a_last_worker(8, "gone", sessions=(a_session(3, requests=7),))
    live = a_worker(7, sessions=(a_session(),))
    lines = render_sessions(a_survey(gone, live)).splitlines()
    assert lines[2] == "Last open in workers that are gone; these sessions have ended"
    assert [line.split()[0] for line in lines[3:] if line] == [
        *("PID", "8", "PID", "7", "1", "1", "Shown")
    ]
    assert "1 session open in 1 worker" in lines
    lines = render_sessions(a_survey(gone)).splitlines()
    assert "No session is open." in lines


def test_only_workers_that_are_gone() -> None:
    """No worker has answered: what to do is said as well."""
    survey = a_survey(
        a_last_worker(8, "gone"),
        configured=(ConfiguredPool("spare", "QueuePool", AUDIT, 5, 15, False, 30.0),),
    )
    for text in (render_pools(survey), render_sessions(survey)):
        assert text.index("No worker has answered") < text.index("is gone (killed)")
        assert re.search(r"^spare +QueuePool", text, re.MULTILINE)


def test_verbose_holders() -> None:
    """Each with what helps to find it in the database and in the code."""
    holder = a_holder(
        1.0, stack=("a.py:1 f", "b.py:2 g"), sql="SELECT *\n  FROM  orders"
    )
    text = render_pools(
        a_survey(a_worker(7, [a_pool(holders=(holder,))])), verbose=True
    )
    assert (
        "      connection 3, backend pid 9001, session 12, thread Thread-1\n"
        "      checked out at a.py:1 f b.py:2 g\n"
        "      last statement: SELECT * FROM orders\n"
    ) in text


def test_totals_are_per_database() -> None:
    """Never across databases; an unknown number is left out, not taken for 0."""
    null = a_pool("a", url=AUDIT, max=None, unlimited=True, idle=None, pending=None)
    memory = DatabaseURL("sqlite", None, None, ":memory:")
    static = a_pool("b", url=memory, max=None, unlimited=None)
    text = render_pools(a_survey(a_worker(7, [a_pool(), null, static])))
    assert (
        "postgresql+psycopg://db.internal:5432/orders · 1 used, 2 idle · 1 worker may"
        " open at most 15\n"
        "sqlite:////srv/shop/audit.db · 1 used · 1 worker may open any number\n"
        "sqlite:///:memory: · 1 used, 2 idle · 1 worker\n"
    ) in text
    assert re.search(r"a +QueuePool +1/∞ +- +- +-", text)
    assert re.search(r"b +QueuePool +1/- ", text)


def test_several_users() -> None:
    """Root sees the workers of all users, grouped by user."""
    text = render_pools(a_survey(a_worker(1, uid=10), a_worker(2, uid=20)))
    assert "\nuid 10: 1 worker, pid 1\nuid 20: 1 worker, pid 2\n" in text
    assert "uid" not in render_pools(a_survey(a_worker(1, uid=10)))


def test_truncated() -> None:
    """A worker whose answer was cut short is named."""
    text = render_pools(a_survey(a_worker(7, truncated=True)))
    assert text.endswith("\nNot all is shown: the answer of pid 7 was cut short.\n")


def test_age_of_nonsense() -> None:
    """Invalid times from other processes do no harm."""
    for at in ("soon", "2026-11-22T10:07:29", ""):
        gone = a_last_worker(7, "gone")
        gone = type(gone).from_dict({**gone.to_dict(), "snapshot_at": at})
        assert "gone (killed): pid 7\n" in render_pools(a_survey(gone))


# Terminals and pipes


@pytest.mark.parametrize("scene", SCENES)
def test_no_trailing_space(scene: Callable[[], str], output: Any) -> None:
    """Neither through a pipe nor on a terminal, styles aside."""
    for columns in (None, 80, 200):
        output(columns)
        for line in scene().splitlines():
            assert line == line.rstrip()
            assert STYLES.sub("", line) == STYLES.sub("", line).rstrip()


@pytest.mark.parametrize("scene", SCENES)
def test_eighty_columns(scene: Callable[[], str], output: Any) -> None:
    """Every line fits."""
    output(80)
    for line in STYLES.sub("", scene()).splitlines():
        assert len(line) <= 80, line


@pytest.mark.parametrize("scene", SCENES)
def test_nothing_is_cut(scene: Callable[[], str], output: Any) -> None:
    """At any width, every number and every place is there, in one piece."""
    whole = scene()
    output(80)
    narrow = STYLES.sub("", scene())
    assert "…" not in whole + narrow
    places = set(re.findall(r"\S+\.py:\d+ \w+", whole))
    assert places == set(re.findall(r"\S+\.py:\d+ \w+", narrow))
    pids = set(re.findall(r"\b\d{5,7}\b", whole))
    assert pids == set(re.findall(r"\b\d{5,7}\b", narrow))


def test_a_pipe_ignores_the_width(output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line is one fact, for grep."""
    whole = render_pools(mixed())
    monkeypatch.setenv("COLUMNS", "20")
    output(None)
    assert render_pools(mixed()) == whole
    assert max(map(len, whole.splitlines())) > 100


def test_narrow_tables_leave_out_columns(output: Any) -> None:
    """First narrower gaps, then no POOL, then no HOLD95."""

    def headings(columns: int) -> list[str]:
        output(columns)
        return STYLES.sub("", render_pools(mixed())).splitlines()[3].split()

    wide = headings(200)
    assert len(wide) == 10
    assert headings(95) == [name for name in wide if name != "POOL"]
    assert headings(80) == [name for name in wide if name not in ("POOL", "HOLD95")]


def test_narrow_sessions_have_two_lines(output: Any) -> None:
    """The numbers, and below them the scope, broken before the arrow."""
    output(80)
    lines = STYLES.sub("", render_sessions(sessions())).splitlines()
    assert lines[2].split()[:2] == ["PID", "BIND"]
    assert lines[4] == "      GET /orders/<int:id> → orders.show"
    (long,) = [at for at, line in enumerate(lines) if "/admin" in line]
    assert lines[long].strip() == "GET /admin/reports/<int:year>/<quarter>/<path:name>"
    assert lines[long + 1].strip() == "→ admin.reports.quarterly_statement_export"


def test_at_most_ten_columns() -> None:
    """More columns are hard to read."""
    for text in (render_pools(a_survey(wedged())), render_sessions(sessions())):
        assert len(text.splitlines()[2].split()) <= 10


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("columns", [None, 80])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_ascii(
    scene: Callable[[], str], columns: int | None, encoding: str, output: Any
) -> None:
    """Characters that the encoding lacks are replaced, not shown as question marks."""
    output(columns, encoding)
    text = scene()
    text.encode("ascii")
    assert "?" not in text


def test_ascii_replaces_names() -> None:
    """Names are shown as far as ASCII allows."""
    page = Page()
    page._unicode = False
    page.line("GET /grün → grün ×")
    assert str(page) == "GET /gr?n -> gr?n x\n"


def test_styles_are_for_terminals(output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in pipes or with NO_COLOR; and styles add no information."""
    plain = render_pools(mixed())
    assert "\x1b" not in plain
    output(200)
    styled = render_pools(mixed())
    assert "\x1b[" in styled
    assert STYLES.sub("", styled) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert render_pools(mixed()) == plain
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert render_pools(mixed()) == plain


EVIL = "\x1b[31m\x1b]0;title\x07[red]x[/red]\x9b2J\u202e\u2066:smile:\r\n\u200b\ud800"


@pytest.mark.parametrize("columns", [None, 80])
def test_nothing_raw_reaches_the_terminal(columns: int | None, output: Any) -> None:
    """Control characters in workers' texts are removed, markup is printed as it is."""
    holder = a_holder(
        20.0, endpoint=EVIL, at=EVIL, thread=EVIL, stack=(EVIL,), sql=EVIL
    )
    pool = a_pool(
        EVIL,
        pool_class=EVIL,
        url=DatabaseURL(EVIL, EVIL, 1, EVIL),
        held_long=1,
        holders=(holder,),
        waiters=(a_waiter(endpoint=EVIL, at=EVIL),),
    )
    scope = {"endpoint": EVIL, "rule": EVIL, "method": EVIL, "thread": EVIL}
    survey = a_survey(
        a_worker(7, [pool], sessions=(a_session(name=EVIL, **scope),)),
        a_last_worker(8, "gone", host=EVIL),
        app=EVIL,
        host=EVIL,
        collected_at=EVIL,
        silent=(a_silent(9, EVIL),),
        searched=(SearchedDirectory(EVIL, EVIL),),
    )
    empty = a_survey(searched=(SearchedDirectory(EVIL, EVIL),), app=EVIL)
    output(columns)
    for text in (
        render_pools(survey, verbose=True),
        render_sessions(survey, verbose=True),
        render_pools(empty),
        render_pings([PingResult(EVIL, AUDIT, None, EVIL, EVIL)]),
    ):
        bare = STYLES.sub("", text)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", bare)
        assert not re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800]", bare)
        assert "[red]x[/red]" in bare
        assert ":smile:" in bare


# Ping


def test_pings() -> None:
    """A row for each bind, then the errors."""
    results = [
        PingResult("default", AUDIT, 0.0042, "3.45.1", None),
        PingResult("pg", AUDIT, None, None, "bind 'pg': OperationalError"),
    ]
    assert render_pings(results).splitlines() == [
        "BIND     LATENCY  VERSION  DATABASE",
        "default   4.2 ms  3.45.1   sqlite:////srv/shop/audit.db",
        "pg             -  -        sqlite:////srv/shop/audit.db",
        "bind 'pg': OperationalError",
    ]


@pytest.mark.parametrize("columns", [30, 60, 80])
def test_where_a_database_is_fits_any_terminal(output: Any, columns: int) -> None:
    """It is what tells one database from the other, so it moves below its row."""
    output(columns)
    url = DatabaseURL("postgresql+psycopg", "db.internal.example.com", 5432, "orders")
    ping = PingResult("default", url, 0.0042, "16.4", None)
    text = STYLES.sub("", render_pings([ping]))
    assert str(url) in text
    configured = ConfiguredPool("default", "QueuePool", url, 5, 15, False, 30.0)
    text = STYLES.sub("", render_pools(a_survey(configured=(configured,))))
    assert str(url) in text


# Words


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"),
        (0.0, "0.0 ms"),
        (0.00012, "0.1 ms"),
        (0.0094, "9.4 ms"),
        (0.0096, "10 ms"),
        (0.999, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (41.2, "41 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (3600, "60 min"),
        (7200, "2 h"),
        (1e6, "278 h"),
    ],
)
def test_duration(seconds: float | None, expected: str) -> None:
    """In the unit that people use, without a jump between units."""
    assert duration(seconds) == expected


def test_some() -> None:
    """The first five, and how many more."""
    assert some(["1", "2"]) == "1, 2"
    assert some(list("123456")) == "1, 2, 3, 4, 5 and 1 more"


# What was measured


def test_a_burst_that_is_over() -> None:
    """No thread waits any more, and the last minute is still explained."""
    pool = a_pool(
        used_max_60s=15,
        pending_max_60s=4,
        timeouts_60s=2,
        recent_timeouts=(a_timeout(at_time="2026-11-22T10:09:49.123Z"),),
    )
    page = render_pools(a_survey(a_worker(7, [pool])))
    assert "Bind default, last minute: up to 15/15 in use and 4 waiting" in page
    assert (
        "40 s ago, orders.index timed out after 30 s; connections were held by 14×"
        in page
    )


def test_no_recommendation_without_enough_data() -> None:
    pool = a_pool(checkouts_total=3, wait_s=None, hold_s=NONE, busiest=None, pending=1)
    page = render_pools(a_survey(a_worker(7, [pool])))
    assert "  No recommendation: too little was measured" in page


def test_the_longest_wait_includes_waiting_threads() -> None:
    """Holds have no quantile before the first one ends."""
    pool = a_pool(used=15, pending=1, max_wait_s=6.0, hold_60s=NONE, pending_max_60s=1)
    page = render_pools(a_survey(a_worker(7, [pool])))
    assert "waited at most 3.9 ms, longest wait 6.0 s\n" in page


def test_the_longest_wait_is_of_the_last_minute() -> None:
    """A checkout that timed out before does not count."""
    old = a_timeout(at_time="2026-11-22T09:10:26.123Z")
    pool = a_pool(pending=1, max_wait_s=6.0, timeouts_60s=0, recent_timeouts=(old,))
    page = render_pools(a_survey(a_worker(7, [pool])))
    assert "longest wait 6.0 s, 95 % of holds" in page


def test_nothing_of_a_calm_minute() -> None:
    page = render_pools(a_survey(a_worker(7, [a_pool(pending_max=3)])))
    assert "last minute" not in page


def test_views_are_added_up_over_workers() -> None:
    """Shares are of all workers' time; the last minute decides the order."""
    one = a_view_use("a", held_60s=1.0, held_s=90.0)
    other = a_view_use("b", held_60s=6.0, held_s=10.0)
    workers = [a_worker(n, [a_pool(views=(one, other), pending=1)]) for n in (1, 2)]
    page = render_pools(a_survey(*workers))
    assert "  Hold time by view: 86% b, 14% a\n" in page
    rows = render_pools(a_survey(*workers), verbose=True)
    shares = {
        line.split()[0]: [word for word in line.split() if word.endswith("%")]
        for line in rows.partition("Views, by")[2].splitlines()[2:4]
    }
    assert shares == {"b": ["86%", "10%"], "a": ["14%", "90%"]}


def test_verbose_shows_all_measurements() -> None:
    pool = a_pool(used_max=9, used_max_60s=4, pending_max=2, invalidated_total=3)
    page = render_pools(a_survey(a_worker(7, [pool])), verbose=True)
    assert re.search(r"7 +default +hold +10 +\S+ ms +3.9 ms +4.0 ms +10 ", page)
    assert re.search(r"7 +default +4 +9 +0 +2 +5 +3 +4.0 ms", page)


def test_invalidated_connections() -> None:
    pool = a_pool(invalidated_60s=3)
    page = render_pools(a_survey(*(a_worker(n, [pool]) for n in (1, 2))))
    assert page.endswith(
        "\n6 connections invalidated in the last minute · bind default"
        " · at most 4.0 ms old · pid 1, 2\n"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"running_s": 12.0}, "held 20 s, running a statement for 12 s ·"),
        ({"idle_in_transaction_s": 12.0}, "held 20 s, idle in transaction for 12 s ·"),
        (
            {"request_over": True, "thread_alive": False},
            "in transaction, its request is over, its thread has ended ·",
        ),
    ],
)
def test_what_a_holder_does(changes: dict[str, Any], expected: str) -> None:
    pool = a_pool(held_long=1, holders=(a_holder(20.0, **changes),))
    assert expected in render_pools(a_survey(a_worker(7, [pool])))


def test_both_places_of_a_self_deadlock() -> None:
    waiter = a_waiter(self_deadlock=True, holds_from="shop/views.py:9 index")
    pool = a_pool(pending=1, waiters=(waiter,))
    assert (
        "1× orders.index shop/views.py:12 index, for 1.0 s, self-deadlock: its own"
        " thread holds a connection, checked out at shop/views.py:9 index ·"
    ) in render_pools(a_survey(a_worker(7, [pool])))


def test_lost_work() -> None:
    """Added up by view, over all workers."""
    workers = [
        a_worker(1, lost_work=(lost_work({"Order": 2, "Item": 1}),)),
        a_worker(2, lost_work=(lost_work({"Order": 1}, scopes_total=1),)),
    ]
    page = render_sessions(a_survey(*workers))
    assert (
        "\nUncommitted changes that were rolled back\n"
        "  4× POST /orders → orders.add, 1 Item, 3 Order, last 29 s ago · pid 1, 2\n"
    ) in page


def test_sessions_that_serve_request_after_request() -> None:
    """How many there are, and what to remove; silent about a single request."""
    workers = [
        a_worker(1, sessions=(a_session(1, requests=12), a_session(2, requests=1))),
        a_worker(2, sessions=(a_session(1, requests=2), a_session(2))),
    ]
    page = render_sessions(a_survey(*workers))
    assert (
        "\n2 sessions have each served several requests: their application contexts"
        " were pushed before them and are never popped. Remove"
        " 'app.app_context().push()', and wrap only the code that needs a context in"
        " 'with app.app_context():' · pid 1, 2\n"
    ) in page
    page = render_sessions(a_survey(a_worker(sessions=(a_session(requests=2),))))
    assert (
        "\n1 session has served several requests: its application context was pushed"
        " before them and is never popped. Remove"
    ) in page
    assert " GET /orders/<int:id> → orders.show, one of 2 requests " in page
    outside = a_session(requests=2, endpoint=None, method=None, rule=None)
    page = render_sessions(a_survey(a_worker(sessions=(outside,))))
    assert " thread Thread-1, shared by 2 requests " in page
    page = render_sessions(a_survey(a_worker(sessions=(a_session(requests=1),))))
    assert "served several" not in page
    assert "requests" not in page


def test_shared_sessions() -> None:
    """Both threads, and both lines."""
    uses = (a_shared_use(), a_shared_use(refused=True))
    page = render_sessions(a_survey(a_worker(7, recent_shared=uses)))
    said = (
        "  GET /orders/<int:id> → orders.show, 29 s ago: Thread-1 at shop/views.py:88"
        " show and Thread-2"
    )
    assert f"{said} (in one transaction) · pid 7\n" in page
    assert f"{said} (the second was refused) · pid 7\n" in page
