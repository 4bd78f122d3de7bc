"""The help texts of the commands, and the options that several of them share."""

from __future__ import annotations

import math
import typing as t
from collections.abc import Callable
from collections.abc import Sequence

import click

from .check import CRIT_DEFAULT
from .check import METRICS
from .check import parse_thresholds
from .check import WARN_DEFAULT

_Option = Callable[[Callable[..., None]], Callable[..., None]]

POOL_HELP = """\
Show the connection pools of every live worker on this host, and who holds their
connections.

Opens no database connection, except with --server.

\b
PID      process ID of the worker
STATE    ok; saturated: all connections are checked out; wedged: threads
         wait, and no connection was returned meanwhile; stopped by a
         signal; unresponsive; gone: killed, this is its last snapshot
BIND     name of the database bind
POOL     class of the pool
USED/MAX connections checked out, and the most that the pool may open
IDLE     open connections that are not checked out
WAITING  threads that wait for a connection
MAXWAIT  how long the first of them has been waiting
HOLD95   95 % of all checkouts lasted at most this long
TIMEOUTS checkouts that timed out since the worker started

Below: totals for each database, with the most connections that its workers may open;
then problems: who holds connections (by view and line), who waits, and for each bind
with waiters in the last minute, which views held its connections and what timed out.
A narrow terminal leaves out POOL and HOLD95. More than ten healthy workers are counted
in one line.

--verbose adds every holder, and all measurements:

\b
TIME TO  wait for a connection, hold it, connect to the database. In the
         last minute: number (60S), P50, P95 and MAX; since the worker
         started: number (TOTAL), P95 and MAX
USED60   most connections checked out at a time, in the last minute;
         USED: since the start; WAIT60, WAIT: most threads waiting
OPENED   connections opened; DIED: connections invalidated; AGE: the
         highest age at which one was invalidated
SHARE60  a view's share of the time that connections were held, in the
         last minute; HOLDS60: its checkouts; STMTS60: its statements;
         SHARE, HOLDS, STMTS: since the start; MEAN: its mean time per
         checkout
"""

SESSION_HELP = """\
Show the open database sessions of every live worker on this host, and which request,
command or thread each belongs to.

Opens no database connection.

\b
PID      process ID of the worker
SCOPE    the request (method, rule and view), command or thread
BIND     name of the bind that the session was opened for
AGE      how long the session has been open
STATE    idle; begun: in a transaction, but without a connection yet;
         holding: running a statement; idle in transaction; needs
         rollback: a statement failed
CONN     connections that the session holds: #3 is connection 3 of
         'pool-status --verbose'
STMTS    statements that the session's scope has sent so far
NEW/DEL  objects that the next flush inserts and deletes
IDENTITY objects in the identity map
IDLE-TX  how long the session has been idle in its transaction

Below: views whose changes were never committed, and sessions that two threads used at
the same time.
"""

ADVICE_HELP = """\
Recommend the size of each bind's pool, with reasons, from what the live workers have
measured.

Opens no database connection, and changes nothing.

\b
pool_size    connections that a worker keeps open: enough for 95 % of the
             checkouts of its busiest minute
max_overflow connections that it may open in addition and closes later:
             enough to keep waits short at --growth times the load
pool_timeout seconds after which a checkout gives up: longer than any
             plausible wait, and well before the server kills the worker

Each worker has its own pool, so the busiest worker decides the size. The load is the
time that connections were held, divided by the time that passed; Erlang's formula C
gives the waits. Below: the most connections that all workers may open, compared with
what the server accepts.
"""

PING_HELP = """\
Test whether every database answers, with one connection outside the pool.

\b
BIND     name of the database bind
LATENCY  time to connect and get an answer
VERSION  version of the server
DATABASE where the database is

Exits with 0 if all databases answered, else with 4.
"""


class _Thresholds(click.ParamType):  # type: ignore[type-arg]
    name = "metric=number,..."

    def convert(self, value: t.Any, param: t.Any, ctx: t.Any) -> t.Any:
        try:
            return parse_thresholds(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Range(click.FloatRange):
    """A range that excludes NaN."""

    def convert(self, value: t.Any, param: t.Any, ctx: t.Any) -> t.Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


def _adding(options: Sequence[_Option]) -> _Option:
    """Return a decorator that adds several options, in this order."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


#: A time to wait, in seconds.
WAIT = _Range(min=0, min_open=True, max=86_400)

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
BIND = click.option("--bind", metavar="NAME", help="Show only this bind.")
_TIMEOUT = click.option(
    "--timeout",
    type=WAIT,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each worker.",
)
_CONTROL_DIR = click.option(
    "--control-dir",
    metavar="DIR",
    help="Look for workers in this directory, without loading the application.",
)

#: For ``pool-status`` only.
SERVER_OPTION = click.option(
    "--server",
    is_flag=True,
    help="Ask each database server as well, over one connection outside the pool: lock"
    " waits, connections that no worker has open, and how many the server has left.",
)

#: For both status commands.
status_options: Callable[[Callable[..., None]], Callable[..., None]] = _adding(
    (
        JSON,
        click.option(
            "--watch",
            type=_Range(min=0.1, max=86_400),
            is_flag=False,
            flag_value=2.0,
            default=None,
            metavar="[SECONDS]",
            help="Refresh every SECONDS (2) until Ctrl-C, which exits with 130. A"
            " terminal shows a whole screen, with bars of what is in use (! for waiting"
            " threads) and of the last refreshes; --json prints one document a line.",
        ),
        BIND,
        click.option("--pid", type=int, help="Show only the worker with this PID."),
        _TIMEOUT,
        _CONTROL_DIR,
        click.option("--verbose", "-v", is_flag=True, help="Show every detail."),
        click.option(
            "--check",
            "checking",
            is_flag=True,
            help="Exit with 0 if all is well, 3 warning, 4 critical, 5 if some or all"
            " workers did not answer, 69 without a worker, 77 without permission.",
        ),
        click.option(
            "--warn",
            type=_Thresholds(),
            default=WARN_DEFAULT,
            show_default=True,
            help="With --check: warning if a metric reaches its number. Metrics:"
            f" {', '.join(METRICS)}.",
        ),
        click.option(
            "--crit",
            type=_Thresholds(),
            default=CRIT_DEFAULT,
            show_default=True,
            help="With --check: critical if a metric reaches its number.",
        ),
    )
)

#: For ``pool-advise``.
advice_options: Callable[[Callable[..., None]], Callable[..., None]] = _adding(
    (
        JSON,
        BIND,
        _TIMEOUT,
        _CONTROL_DIR,
        click.option(
            "--wait",
            type=WAIT,
            default=0.01,
            show_default=True,
            metavar="SECONDS",
            help="95 % of checkouts should wait less than this for a connection.",
        ),
        click.option(
            "--growth",
            type=_Range(min=1, max=100),
            default=1.5,
            show_default=True,
            metavar="FACTOR",
            help="Prepare for this many times the load of the busiest minute.",
        ),
        click.option(
            "--max-connections",
            type=click.IntRange(min=1),
            metavar="N",
            help="How many connections each database server accepts.",
        ),
        click.option(
            "--worker-timeout",
            type=WAIT,
            metavar="SECONDS",
            help="Time after which the server kills an unresponsive worker; for"
            " gunicorn, its default of 30 is assumed.",
        ),
    )
)
