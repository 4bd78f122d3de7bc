"""The page of the documentation: ``python -m benchmarks.page [FILE]``."""

from __future__ import annotations

import json
import sys
import textwrap
import typing as t
from pathlib import Path

from . import instructions
from . import report
from .contestants import CONTESTANTS
from .parts import table as parts_table
from .plot import draw
from .report import heading
from .runner import ROOT

DOCS = ROOT / "docs"
LATEST = ROOT / "benchmarks" / "results" / "latest.json"

_PAGE = """\
# Benchmarks

{summary}

The times of this page come from [`{source}`](../{source}),
which has the figures of each round. They were measured on {day}, with commit
{commit}. Instructions were counted on {counted_day}, with commit {counted_commit}: they
say less about time, but a busy machine hardly changes them. "What each part costs" is a
measurement of its own.{warning}

## Aims and results

A ratio compares Flask-ScopedSession, with everything switched on unless the row says
otherwise, with the baseline in the same rounds. "A/A" is how far the
baseline differs from itself in this run. An aim that is missed by no more than that
counts as met, marked "(A/A)". Instructions are those of SQLite, and their "A/A" is half
of what lies between the baseline's least and most in several runs.

{aims}

## At a glance

CPU time relative to the baseline, which is the line at 1: a longer bar to the right is
slower. The thin line spans the quartiles. A cut bar is longer than drawn; the number
is its value. "A/A" is the baseline measured a second time: smaller differences than
that are noise.

{plots}

## What each part costs

CPU time of W2, one SELECT on SQLite. One part after the other is switched off, and each
difference is the cost of a part: the median, with the quartiles in parentheses. All
variants run in one process, so these figures differ a little from those of W2 below.
The control socket answers between requests and is not included.

{parts}

{tables}

## Instructions

Per step, with SQLite; counted by valgrind. Each figure is the median of several runs
with different hash seeds.

{instructions}

## How it was measured

-   Each contestant has a process of its own. It is called as a WSGI application,
    without a network, except in W12.
-   In each round, every contestant runs one slice of about {slice_s}, in shuffled
    order. This run had {rounds} rounds; W9 and W12 have fewer, longer rounds.
-   A ratio compares two slices of the same round. The tables show the median of all
    rounds, with the quartiles in parentheses. The times are medians of all rounds.
-   Wall time is `perf_counter()`. CPU time is `process_time()`: all threads of the
    process, but not the database server.
-   All contestants have the same views. Only the expression for the session differs;
    by hand, `with Session() as session:` surrounds the view's body.
-   All contestants have the same settings: a `QueuePool` of 5 connections with an
    overflow of 10, no pre-ping, and `expire_on_commit`. A contestant with other
    settings is not measured.
-   Statements are constructed once. SQLite uses a file and does not wait for the disk.
    PostgreSQL is the server of the tests, on a Unix socket.
-   Everything in Flask-ScopedSession is switched on, including the control socket,
    except in rows that say "tracking off" or "fair pool off".
    `SCOPEDSESSION_PING_IDLE_AFTER` keeps its default of 0.5 seconds. Within a slice no
    connection is idle that long. Each slice begins with five requests that are not
    measured, which include the test of a connection that was idle between slices.

| | machine |
|:--|:--|
{machine}

| | version |
|:--|:--|
{versions}

{left_out}## How to repeat it

```text
$ make bench                  # everything; writes benchmarks/results/latest.json
$ make bench ARGS=--quick     # a few minutes, with more noise
$ make bench ARGS='--only W2,W10 --rounds 50'
$ .venv/bin/python -m benchmarks.instructions   # needs valgrind
$ .venv/bin/python -m benchmarks.parts   # what each part costs
$ .venv/bin/python -m benchmarks.page    # generates this page and its plots
```

A full run takes about 25 minutes. Use an idle machine with at least two cores. The file
is written after each workload, so an interrupted run keeps its results.

## What it does not show

-   A slow database or a network. They cost all contestants the same, and make every
    ratio smaller.
-   Exact memory. The allocator decides when it returns memory to the system.
-   Other machines and other versions. `--rounds` and `--seed` show how stable the
    figures are on yours.
"""

_PLOT = """\
::::{{container}} plot-{width}
```{{image}} {name}.svg
:class: only-light
:alt: {alt}
```

```{{image}} {name}-dark.svg
:class: only-dark
:alt: {alt}
```
::::"""

_ALT = "CPU time of each contestant relative to the baseline; the figures are below"


class Aim(t.NamedTuple):
    """What a ratio should be."""

    case: str
    """The workload, and the setting if the aim is for one setting only."""
    ratio: float
    contestant: str = "ours"
    metric: str = "cpu"
    at_least: bool = False
    """The ratio should be no lower, instead of no higher."""

    def missed_by(self, measured: float) -> float:
        """Return how far a measured ratio is beyond the aim; negative if it is met."""
        return self.ratio - measured if self.at_least else measured - self.ratio


_AIMS = (
    Aim("W1", 1.04),
    Aim("W2", 1.06),
    Aim("W2", 1.04, contestant="ours-off"),
    Aim("W3", 1.04),
    Aim("W4", 1.04),
    Aim("W5", 0.9),
    Aim("W6", 1.08),
    Aim("W7", 1.04),
    Aim("W9 closed", 0.97, metric="rate", at_least=True),
    Aim("W10", 1.2),
    Aim("W12", 1.03),
)

_REMARKS = {
    "W5": "By hand, the session is a local variable of the view: no access is cheaper."
    " The baseline is a thread-local `scoped_session`.",
    "W6": "The application has all views of this benchmark. The extension object is"
    " created beforehand.",
    "W7": "A process imports Flask, SQLAlchemy's ORM and the contestant. All modules"
    " are compiled. The last column counts the modules that a bare interpreter has"
    " not imported yet.",
    "W8": "The growth of resident memory over {requests} requests, after as many that"
    " are not counted, and over 50 applications. Each application is created, serves a"
    " request, and is dropped without being disposed of.",
    "W9": "A view selects one row and holds its connection for 2 ms, while it computes"
    " or waits. A request that waits for a connection longer than 2 s times out. Closed"
    " loop: each thread sends its next request when the last is answered. The least"
    " served thread is shown in percent of its fair share. Open loop: requests arrive"
    " at random times, the same for all contestants, at 90 % of the baseline's"
    " throughput in the closed loop, and a latency counts from the arrival. If the"
    " capacity of a contestant is lower, its queue grows until the end of the run."
    " The other contestants use the same queue as the baseline.",
    "W10": "`pool.connect().close()`, within a request.",
    "W11": "The workers are simulated: their sockets, locks and answers are real, but"
    " 250 of them share a process. *Ask* is the exchange alone; *command* is the whole"
    " `flask pool-status` in a fresh process. A worker reports at most 250 sessions.",
    "W12": "One worker with 8 threads, and 8 clients that keep their connections open."
    " CPU time is the worker's.",
}


def render(found: dict[str, t.Any], source: str) -> str:
    """Return the page for results that were read from `source`."""
    machine = {
        **found["machine"],
        "measured": f"{found['made_at']}, in {found['minutes']} minutes",
        "commit": found["commit"] or "unknown",
    }
    left_out = "\n".join(f"-   {note}" for note in found["left_out"])
    counted = instructions.read()
    return _PAGE.format(
        summary=_summary(found),
        counted_day=counted["made_at"][:10],
        counted_commit=counted["commit"],
        day=found["made_at"][:10],
        commit=machine["commit"],
        source=source,
        warning=_warning(found),
        aims=report.markdown(_aims(found, counted)),
        plots="\n\n".join(
            _PLOT.format(width=width, name=name, alt=_ALT)
            for width, name in (
                ("wide", "benchmarks"),
                ("narrow", "benchmarks-narrow"),
            )
        ),
        parts=parts_table(),
        tables="\n\n".join(_sections(found)),
        instructions=report.markdown(instructions.table(counted)),
        slice_s="0.04 s" if found["quick"] else "0.15 s",
        rounds=found["rounds"],
        machine=_pairs({k.replace("_", " "): v for k, v in machine.items()}),
        versions=_pairs(found["versions"]),
        left_out=f"## Left out\n\n{left_out}\n\n" if left_out else "",
    )


# -- the first sentences -------------------------------------------------------


def _summary(found: dict[str, t.Any]) -> str:
    """Return what a reader should remember, in two sentences."""
    cases = {(case["id"], case["notes"].get("hold")): case for case in found["cases"]}
    by_database = [cases.get((f"W2 {name}", None)) for name in ("sqlite", "postgresql")]
    crowd = cases.get(("W9 closed", "sleep"))
    sentences = []
    if all(by_database):
        ours, theirs = (
            [_added(t.cast("dict[str, t.Any]", case), key) for case in by_database]
            for key in ("ours", "flask-sqlalchemy")
        )
        sentences.append(
            f"Compared with a session that is opened by hand, Flask-ScopedSession adds"
            f" {ours[0]} of CPU time to a request that selects one row from SQLite, and"
            f" {ours[1]} with PostgreSQL; Flask-SQLAlchemy adds {theirs[0]} and"
            f" {theirs[1]}."
        )
    if crowd:
        sentences.append(
            "When 16 threads share 5 connections and hold each for 2 ms, the slowest"
            f" request takes {_under_load(crowd, 'ours')}; with SQLAlchemy's own queue,"
            f" it takes {_under_load(crowd, 'hand')}."
        )
    text = " ".join(sentences) or "The results of this run are incomplete."
    for unit in ("µs", "ms", "%"):
        text = text.replace(f" {unit}", f"\N{NO-BREAK SPACE}{unit}")
    return textwrap.fill(text, 88, break_on_hyphens=False)


def _row(case: dict[str, t.Any], key: str) -> dict[str, t.Any]:
    return next((row for row in case["rows"] if row["contestant"] == key), {})


def _added(case: dict[str, t.Any], key: str) -> str:
    """Return the CPU time that a contestant adds to the baseline."""
    row = _row(case, key)
    if not row.get("ratio"):
        return "an unknown amount"
    share = row["ratio"]["cpu"][1] - 1
    base = _row(case, case["baseline"])["median"]["cpu"][1]
    return f"{share * base:.0f} µs ({100 * share:.0f} %)"


def _under_load(case: dict[str, t.Any], key: str) -> str:
    median = _row(case, key).get("median")
    if not median:
        return "an unknown time"
    slowest, count, rate = (median[name][1] for name in ("max", "timeouts", "rate"))
    timeouts = "1 timeout" if count == 1 else f"{count:.0f} timeouts"
    seconds = case["notes"].get("seconds")
    within = f" in {seconds:g} seconds" if seconds else ""
    return f"{slowest:,.0f} ms, with {timeouts}{within} at {rate:,.0f} requests/s"


def _warning(found: dict[str, t.Any]) -> str:
    warning = ""
    if found["quick"]:
        warning += " This was a shortened run: expect noise."
    if not found.get("finished", True):
        warning += " The run was interrupted, so some results are missing."
    return warning


# -- aims ----------------------------------------------------------------------


def _aims(found: dict[str, t.Any], counted: dict[str, t.Any]) -> report.Table:
    head = ["", "aim", "measured", "result", "A/A", "workload and figure"]
    lines = []
    for aim in _AIMS:
        for case in found["cases"]:
            name = case["id"]
            if name != aim.case and name.partition(" ")[0] != aim.case:
                continue
            measured = _ratio(case, aim.contestant, aim.metric)
            again = _ratio(case, f"{case['baseline']}-again", aim.metric)
            if measured is None:
                continue
            title = heading(case).partition(": ")[2]
            if aim.contestant != "ours":
                name += ", " + CONTESTANTS[aim.contestant].title.partition(", ")[2]
            elif hold := case["notes"].get("hold"):
                name += f", {report.HOLDS[hold]}"
            figure = "throughput" if aim.metric == "rate" else "CPU time"
            noise = None if again is None else abs(again - 1)
            verdict = _verdict(aim, measured, noise)
            lines.append([name, *verdict, f"{title}: {figure}"])
    for name, title, limit, ratio, noise in instructions.judged(counted):
        verdict = _verdict(Aim(name, limit), ratio, noise)
        lines.append([name, *verdict, f"{title}: instructions"])
    return head, lines


def _ratio(case: dict[str, t.Any], key: str, metric: str) -> float | None:
    spread = _row(case, key).get("ratio", {}).get(metric)
    return None if spread is None else spread[1]


def _verdict(aim: Aim, measured: float, noise: float | None) -> list[str]:
    by = aim.missed_by(measured)
    if by <= 0:
        verdict = "met"
    elif by <= (noise or 0):
        verdict = "met (A/A)"
    else:
        verdict = "missed"
    return [
        f"{'≥' if aim.at_least else '≤'} {aim.ratio:.2f}".replace(
            " ", "\N{NO-BREAK SPACE}"
        ),
        f"{measured:.3f}",
        verdict,
        "-" if noise is None else f"{noise:.3f}",
    ]


# -- tables --------------------------------------------------------------------


def _sections(found: dict[str, t.Any]) -> t.Iterator[str]:
    current = None
    for identifier, title, table in _tables(found):
        workload = identifier.partition(" ")[0]
        if workload != current:
            current = workload
            yield f"## {workload.capitalize()}"
            if workload in _REMARKS:
                yield _REMARKS[workload].format(requests=_requests(found))
        yield f"**{title}**"
        yield report.markdown(table)


def _requests(found: dict[str, t.Any]) -> str:
    counts = (case["notes"].get("requests") for case in found["cases"])
    return next((f"{count:,}" for count in counts if count), "many")


def _tables(found: dict[str, t.Any]) -> list[tuple[str, str, report.Table]]:
    tables = [
        (case["id"], heading(case), report.table_of(case)) for case in found["cases"]
    ]
    if found.get("status"):
        status = found["status"]
        tables.append(
            ("W11", f"W11: {status['title']}", report.status_table(status)),
        )
    tables.sort(key=lambda table: int(table[0].partition(" ")[0][1:]))
    return tables


def _pairs(values: t.Mapping[str, object]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in values.items())


def main() -> None:
    """Write the page and its plots."""
    path = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else LATEST
    found = json.loads(path.read_text(encoding="utf-8"))
    source = path.relative_to(ROOT).as_posix()
    page = DOCS / "benchmarks.md"
    page.write_text(render(found, source), encoding="utf-8")
    for written in (page, *draw(found, DOCS / "benchmarks.svg")):
        print(written.relative_to(ROOT))


if __name__ == "__main__":
    main()
