"""The page of the documentation: ``python -m benchmarks.page [FILE]``."""

from __future__ import annotations

import json
import sys
import typing as t
from pathlib import Path

from . import report
from .parts import table as parts_table
from .plot import draw
from .report import heading
from .runner import ROOT

DOCS = ROOT / "docs"
LATEST = ROOT / "benchmarks" / "results" / "latest.json"

_INTRODUCTION = """\
# Benchmarks

What Flask-ScopedSession costs beside a session by hand and beside other extensions.
This page was made from [`{source}`]({source_url}), which holds the figure of each
round.{warning}

```{{image}} benchmarks.svg
:class: only-light
:alt: CPU time of each contestant in each workload, as ratio to the baseline
```

```{{image}} benchmarks-dark.svg
:class: only-dark
:alt: CPU time of each contestant in each workload, as ratio to the baseline
```

CPU time as ratio to the baseline, which is the dotted line; shorter is faster. A thin
line spans the quartiles. "A/A" is the baseline once more: what differs by no more than
that is noise.

## How it is measured

Each contestant runs in a process of its own, which is called as WSGI without a network
(W12: with one). In each round each of them, in shuffled order, runs one slice, of
{slice} or so; here are {rounds} rounds, a third of that for W9 and W12. A ratio is that
of two slices of the same round, and the table has the median of all rounds and, in
parentheses, the quartiles. The times beside them are medians of all rounds. Wall time
is that of `perf_counter()`, CPU time that of `process_time()`: of the process, all its
threads, but not of the database.

All have the same views; only the expression for the session differs, and by hand a
`with Session() as session:` around it. All have the same settings: `QueuePool` with 5
connections and 10 more, no pre-ping, `expire_on_commit`; that is compared, and who
differs is not measured. Statements are made once. SQLite is a file, and does not wait
for the disk; PostgreSQL is that of the tests, on a unix socket.

Of Flask-ScopedSession everything is switched on, the control socket too, except in the
row that says "tracking off". `SCOPEDSESSION_PING_IDLE_AFTER` is left as it is, half a
second: in a slice no connection rests that long, so none is tested, as with the others.
Each slice begins with five requests that are not measured, and the test of a connection
that rested between slices falls into these.

| | machine |
|:--|:--|
{machine}

| | version |
|:--|:--|
{versions}
"""

#: What a ratio of CPU time should be at most, with everything switched on.
_AIMS = {
    "W1": 1.05,
    "W2": 1.05,
    "W3": 1.03,
    "W4": 1.04,
    "W5": 1.0,
    "W6": 1.03,
    "W7": 1.05,
    "W10": 1.2,
    "W12": 1.02,
}

_WHERE = """\
### Where the time goes

Where an aim is missed, many small things add up, and none stands out. W2 on SQLite,
with one part after the other taken out, all in one process, which they share; in one of
its own, as below, each is nearer to the baseline:

{parts}

What is left in the last row but one is whose session it is: the scope, its owner, and
the teardown. No part is large in itself. In a loop of its own, making and removing a
session takes 10.8 µs where a thread-local `scoped_session` takes 7.6, and a checkout
8.2 where SQLAlchemy's takes 5.5. In a request the same costs about twice that, as the
processor has to fetch code and data that it has not seen since the last one: what
counts is through how many functions a request goes. Those were 77 more than with the
thread-local one, Python's and C's together, with tracking off, and are 49 now; with
tracking they are 95. Nor are the instructions many: see their count at the end.

The parts are what the live view, and the promise that no session crosses its scope, are
made of; so they stay, also where an aim would be met without them. They cost the same
for each request, however long that takes. Flask-SQLAlchemy and Alchemical, which have
none of these, are faster in W2 to W4; advanced-alchemy is in W2 and W4, but not in W3.
"""

_REMARKS = {
    "W1": "Any teardown function costs about 3.5 % of such a request.",
    "W2": "",
    "W5": "By hand, a local variable of the view: what nothing can be faster than.",
    "W6": "With all views of this benchmark; the extension object is made before. By"
    " cProfile, ours makes 11,567 calls and the baseline 10,825; most of what is more"
    " are SQLAlchemy's own, as five listeners are set up for an engine, and then the"
    " reading of the configuration. What is made is dropped, too: the collector has"
    " 692 objects of each application to look at, and 487 by hand.",
    "W7": "Beyond the modules of a bare interpreter. Flask and SQLAlchemy's ORM are"
    " imported by all, and all is compiled. By `-X importtime`, of what ours adds 27 %"
    " are pools and ledger, 20 % the control socket, 19 % configuration, 12 % sessions"
    " and scopes, and 10 % the commands. Rich is not among it: only a command that"
    " draws imports it.",
    "W8": "Resident memory, after as many requests that are not counted. An"
    " application is made, serves one request, and is dropped; nobody disposes of it."
    " What stays after the first 50 is there once: 250 more add 230 KiB, and 150 by"
    " hand."
    " The ledger notes about 0.7 KiB of each open connection and 0.9 KiB of each open"
    " session (tracemalloc), which a test holds below 2 KiB each.",
    "W9": "A view selects one row and holds its connection for 2 ms, computing or"
    " waiting. Who waits for one longer than 2 s is counted as a timeout. Closed loop:"
    " a thread sends the next request once the last is answered; the least served"
    " thread is told in per cent of its fair share. Open loop: requests arrive at"
    " random moments, the same for all, at 90 % of what the baseline served in the"
    " closed loop, and a latency counts from the moment of arrival. Where ours serves"
    " less than the baseline, 90 % of the baseline's capacity is more than 90 % of its"
    " own, or all of it, and a queue grows for as long as the run lasts. Others than"
    " these use the same queue as the baseline.",
    "W10": "`pool.connect().close()`, within a request.",
    "W11": "Simulated workers: their sockets, locks and answers are real, but 250 of"
    " them share a process. *Ask* is the exchange alone, *command* the whole `flask"
    " pool-status` in a fresh process.",
    "W12": "One worker with 8 threads, 8 clients that keep their connections open. CPU"
    " time is that of the worker.",
}

_REPEATING = """\
## How to repeat it

```text
$ make bench                  # all of it; writes benchmarks/results/latest.json
$ make bench ARGS=--quick     # a few minutes, with more noise
$ make bench ARGS='--only W2,W10 --rounds 50'
$ .venv/bin/python -m benchmarks.parts   # what each part costs
$ .venv/bin/python -m benchmarks.page    # makes this page from the results
```

On a machine with nothing else to do, and with two cores or more. Instructions are
counted where valgrind is installed.

## What it does not show

-   One process at a time. What a slow database or a network adds is the same for all,
    and makes every ratio smaller.
-   Memory is that of the process, which the allocator gives back when it likes.
-   A single machine, one version of each. `--rounds` and `--seed` tell how steady that
    is; the table says how far the same thing differs from itself.
"""


def render(found: dict[str, t.Any], source: str) -> str:
    """Return the page for a report that was read from `source`."""
    where = _WHERE.format(parts=parts_table())
    parts = [_introduction(found, source), "## Aims", _aims(found), where]
    current = None
    for identifier, title, table in _tables(found):
        workload = identifier.partition(" ")[0]
        if workload != current:
            current = workload
            name = "Instructions" if workload == "instructions" else workload
            parts.append(f"## {name}")
            if _REMARKS.get(workload):
                parts.append(_REMARKS[workload])
        parts.append(f"**{title}**")
        parts.append(report.markdown(table))
    if found["left_out"]:
        parts.append("## Left out")
        parts.append("\n".join(f"-   {note}" for note in found["left_out"]))
    parts.append(_REPEATING)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _introduction(found: dict[str, t.Any], source: str) -> str:
    machine = {
        **found["machine"],
        "measured": f"{found['made_at']}, for {found['minutes']} minutes",
        "commit": found["commit"] or "unknown",
    }
    warning = (
        " It comes from a shortened run on a machine that had other work: expect noise."
        if found["quick"]
        else ""
    )
    return _INTRODUCTION.format(
        source=source,
        source_url=f"../{source}",
        warning=warning,
        slice="0.04 s" if found["quick"] else "0.15 s",
        rounds=found["rounds"],
        machine=_pairs({k.replace("_", " "): v for k, v in machine.items()}),
        versions=_pairs(found["versions"]),
    )


def _aims(found: dict[str, t.Any]) -> str:
    """Return what we aim at beside what was measured."""
    lines = []
    for case in found["cases"]:
        aim = _AIMS.get(case["id"].partition(" ")[0])
        rows = {row["contestant"]: row.get("ratio", {}) for row in case["rows"]}
        ours = rows.get("ours", {}).get("cpu")
        if aim is None or ours is None:
            continue
        noise = next(
            (rows[name]["cpu"][1] for name in rows if name.endswith("-again")), 1.0
        )
        verdict = "met" if ours[1] <= aim + abs(noise - 1) else "missed"
        lines.append([heading(case), f"{aim:g}", f"{ours[1]:.3f}", verdict])
    lines.sort(key=lambda line: int(line[0][1:].partition(" ")[0].rstrip(":")))
    head = ["workload", "CPU ratio, at most", "measured", ""]
    return report.markdown((head, lines))


def _pairs(values: t.Mapping[str, object]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in values.items())


def _tables(found: dict[str, t.Any]) -> list[tuple[str, str, report.Table]]:
    tables = [
        (case["id"], report.heading(case), report.table_of(case))
        for case in found["cases"]
    ]
    if found.get("status"):
        status = found["status"]
        tables.append(
            ("W11", f"W11: {status['title']}", report.status_table(status)),
        )
    tables.sort(key=lambda table: int(table[0].partition(" ")[0][1:]))
    if found.get("instructions"):
        counted = report.instructions_table(found["instructions"])
        tables.append(("instructions", "counted by valgrind, SQLite", counted))
    return tables


def main() -> None:
    """Write the page and its plot."""
    path = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else LATEST
    found = json.loads(path.read_text(encoding="utf-8"))
    source = path.relative_to(ROOT).as_posix()
    page = DOCS / "benchmarks.md"
    page.write_text(render(found, source), encoding="utf-8")
    for written in (page, *draw(found, DOCS / "benchmarks.svg")):
        print(written.relative_to(ROOT))


if __name__ == "__main__":
    main()
