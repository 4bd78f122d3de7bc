"""W8 and W9: memory, and more threads than connections."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from . import load
from .cases import CLOSED
from .cases import MEMORY
from .cases import OPEN
from .runner import Plan
from .runner import Result
from .runner import say
from .runner import team

#: Arrivals of the open loop, as a share of the baseline's throughput.
SHARE = 0.9

HOLDS = ("cpu", "sleep")


def _sqlite() -> Iterator[str]:
    return itertools.repeat("sqlite")


def memory(plan: Plan) -> Result:
    """Run W8, one contestant after the other."""
    result = Result.of(MEMORY)
    count = 2_000 if plan.quick else 10_000
    with team(result.running, _sqlite()) as members:
        members.note_problems(result)
        for key in result.running:
            say(f"  {MEMORY.id}: {key}")
            members.each([key], do="requests", warm_up=2_000, count=count)
        # The first run lets the process grow to its size; measure a second one.
        result.add(members.each(result.running, do="requests", warm_up=0, count=count))
        say(f"  {MEMORY.id}: applications")
        result.add(members.each(result.running, do="apps", warm_up=30, count=50))
        members.note_problems(result)
    result.notes["requests"] = count
    return result


def contention(plan: Plan) -> Iterator[Result]:
    """Run W9: computing and waiting, each in a closed and in an open loop."""
    for hold in HOLDS:
        closed, open_ = Result.of(CLOSED), Result.of(OPEN)
        with team(closed.running, _sqlite(), load.OPTIONS) as members:
            say(f"  W9: {hold}")
            members.each(closed.running, do="closed", hold=hold, seconds=0.5)
            for number in range(plan.rounds):
                say(f"  W9 {hold}: round {number + 1} of {plan.rounds}")
                members.note_problems(closed)
                closed.add(
                    members.each(
                        plan.shuffled(closed.running, number),
                        do="closed",
                        hold=hold,
                        seconds=plan.load_s,
                    )
                )
                # The median of all rounds so far, because one round may be disturbed.
                rate = SHARE * statistics.median(closed.rows["hand"].metrics["rate"])
                members.note_problems(open_)
                open_.add(
                    members.each(
                        plan.shuffled(open_.running, number + 1),
                        do="open",
                        hold=hold,
                        seconds=plan.load_s,
                        rate=rate,
                        seed=plan.seed + number,
                    )
                )
            members.note_problems(closed)
            members.note_problems(open_)
        for result in (closed, open_):
            result.notes.update(hold=hold, seconds=plan.load_s)
        open_.notes["rate"] = rate
        yield from (closed, open_)
