"""What the commands' ``--help`` says, and the options of the status commands."""

from __future__ import annotations

import math
import typing as t
from collections.abc import Callable

import click

from .check import CRIT_DEFAULT
from .check import METRICS
from .check import parse_thresholds
from .check import WARN_DEFAULT

POOL_HELP = """\
Show every database connection pool of every running worker, and who holds its
connections.

Asks the live workers on this host; opens no connection of its own, but with --server.

\b
PID      the worker's process id
STATE    ok; saturated: every connection is in use; wedged: somebody
         waits, and nothing came back for as long; stopped by a signal;
         unresponsive; gone: killed, this is its last snapshot
BIND     which of the application's databases
POOL     the pool's class
USED/MAX connections that are checked out, and how many may be open
IDLE     connections that are open and free
WAITING  threads that wait for a connection
MAXWAIT  how long the first of them has been waiting
HOLD95   95 % of all checkouts lasted no longer than this
TIMEOUTS checkouts that gave up, since the worker started

Below: totals per database, with the most that its workers may open; then what needs
an eye: who holds connections (by view and line), who waits, and of each bind that kept
somebody waiting in the last minute, whose time it was and what timed out. A narrow
terminal goes without POOL and HOLD95. More than ten healthy workers are one line.

--verbose adds every holder, and all that was measured:

\b
TIME TO  wait for a connection, hold it, connect to the database; first
         the last minute: how often (60S), P50, P95 and MAX; then since
         the worker's start: how often (TOTAL), P95 and MAX
USED60   the most that were in use at a time, in the last minute; USED:
         since the start; WAIT60 and WAIT: the most that waited
OPENED   connections made; DIED: found dead or thrown away; AGE: the
         highest at which one died
SHARE60  a view's share of the time for which connections were held, in
         the last minute; HOLDS60: how often; SHARE and HOLDS: since the
         start; MEAN: how long a hold of this view lasts
"""

SESSION_HELP = """\
Show every open database session of every running worker, and which request, command
or thread it belongs to.

Asks the live workers on this host; opens no connection of its own.

\b
PID      the worker's process id
SCOPE    the request (method, rule and view), command or thread
BIND     the bind the session was opened for
AGE      how long the session has been open
STATE    idle; begun: a transaction without a connection yet; holding: a
         connection is at work; idle in transaction; needs rollback
CONN     the connections it holds, by their numbers in the worker
NEW, DEL objects to be inserted, and to be deleted, at the next flush
IDENTITY objects that it has loaded
IDLE-TX  how long it has been idle in its transaction

Below: views whose changes were never committed, and sessions that two threads used at
the same time.
"""

ADVICE_HELP = """\
Say how large the pool of each bind should be, and why, from what the running workers
measured.

Asks the live workers on this host; opens no connection, changes nothing.

\b
pool_size    connections that a worker keeps open: enough for 95 % of the
             checkouts of its busiest minute
max_overflow connections that it may open beyond, and closes afterwards:
             as many as keep the waits short, with --growth times the load
pool_timeout seconds after which a checkout gives up: longer than any
             plausible wait, and well before the server kills the worker

Each worker has a pool of its own, so the busiest worker sets the size. The load is the
time that connections were held over the time that passed; Erlang's formula C gives the
waits. Below: the most that all workers may open, against what the server accepts.
"""

PING_HELP = """\
Test whether every database answers, with one connection outside the pool.

\b
BIND     which of the application's databases
LATENCY  from connecting to the answer
VERSION  the server's version
DATABASE where it is

Exits with 0 when all have answered, else with 4.
"""


class _Thresholds(click.ParamType):  # type: ignore[type-arg]
    name = "metric=number,..."

    def convert(
        self,
        value: t.Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> t.Any:
        try:
            return parse_thresholds(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Range(click.FloatRange):
    """A range that "not a number" is not in."""

    def convert(
        self,
        value: t.Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> t.Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


#: A time to wait, in seconds.
WAIT = _Range(min=0, min_open=True, max=86_400)

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_BIND = click.option("--bind", metavar="NAME", help="Only this bind.")
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
    help="Look for workers here, and do not load the application.",
)

_STATUS_OPTIONS = (
    _JSON,
    click.option(
        "--watch",
        type=click.FloatRange(min=0.1, max=86_400),
        is_flag=False,
        flag_value=2.0,
        default=None,
        metavar="[SECONDS]",
        help="Look again every SECONDS (2) until Ctrl-C, which is exit code 130. On a"
        " terminal, a whole screen with bars of what is used (! somebody waits) and of"
        " the last looks; with --json, one document a line.",
    ),
    _BIND,
    click.option("--pid", type=int, help="Only the worker of this process id."),
    _TIMEOUT,
    _CONTROL_DIR,
    click.option("--verbose", "-v", is_flag=True, help="Show everything, one by one."),
    click.option(
        "--check",
        "checking",
        is_flag=True,
        help="Say by the exit code whether all is well: 0 yes, 3 warning, 4 critical,"
        " 5 some workers are silent, 69 no live worker, 77 no permission.",
    ),
    click.option(
        "--warn",
        type=_Thresholds(),
        default=WARN_DEFAULT,
        show_default=True,
        help=f"With --check, warn when a metric reaches its number:"
        f" {', '.join(METRICS)}.",
    ),
    click.option(
        "--crit",
        type=_Thresholds(),
        default=CRIT_DEFAULT,
        show_default=True,
        help="With --check, critical when a metric reaches its number.",
    ),
)


#: Of ``pool-status`` only.
SERVER_OPTION = click.option(
    "--server",
    is_flag=True,
    help="Ask each database server as well, over one connection outside the pool: who"
    " blocks whom, what no worker has open, and what the server has left.",
)


def status_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what both status commands understand."""
    for option in reversed(_STATUS_OPTIONS):
        command = option(command)
    return command


_ADVICE_OPTIONS = (
    _JSON,
    _BIND,
    _TIMEOUT,
    _CONTROL_DIR,
    click.option(
        "--wait",
        type=WAIT,
        default=0.01,
        show_default=True,
        metavar="SECONDS",
        help="95 % of the checkouts shall wait for a connection for less than this.",
    ),
    click.option(
        "--growth",
        type=_Range(min=1, max=100),
        default=1.5,
        show_default=True,
        metavar="FACTOR",
        help="Be ready for so many times the load of the busiest minute.",
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
        help="After how long the server kills a worker that does not get on; for"
        " gunicorn, its default of 30 is taken unless you say so.",
    ),
)


def advice_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what ``pool-advise`` understands."""
    for option in reversed(_ADVICE_OPTIONS):
        command = option(command)
    return command
