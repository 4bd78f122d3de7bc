"""W8 and W9: the cases that need processes of their own, and more than slices."""

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

#: The share of what the baseline can do at most that arrives in an open loop.
SHARE = 0.9

HOLDS = ("cpu", "sleep")


def _sqlite() -> Iterator[str]:
    return itertools.repeat("sqlite")


def memory(plan: Plan) -> Result:
    """Run W8, one contestant after the other."""
    result = Result.of(MEMORY)
    count = 2_000 if plan.quick else 20_000
    with team(result.running, _sqlite()) as members:
        members.note_problems(result)
        for key in result.running:
            say(f"  {MEMORY.id}: {key}")
            members.each([key], do="requests", warm_up=2_000, count=count)
        # Once more: what the first run reached is where the second one begins.
        result.add(members.each(result.running, do="requests", warm_up=0, count=count))
        say(f"  {MEMORY.id}: applications")
        result.add(members.each(result.running, do="apps", warm_up=30, count=50))
        members.note_problems(result)
    result.notes["requests"] = count
    return result


def contention(plan: Plan) -> list[Result]:
    """Run W9: each hold, in closed and in open loop."""
    found = []
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
                # What the machine can do may change from round to round.
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
            result.notes["hold"] = hold
        open_.notes["rate"] = rate
        found += [closed, open_]
    return found
