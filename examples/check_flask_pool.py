#!/usr/bin/env python3
r"""Check connection pools, as a plugin for Nagios, Icinga and compatible monitors.

Runs ``flask pool-status --json --check`` and prints the result in one line, with
performance data for each database. Pass the command as you would type it::

    check_flask_pool.py /srv/flights/venv/bin/flask --app flights pool-status
    check_flask_pool.py --deadline 5 /srv/flights/venv/bin/python \
        -m flask_scopedsession pool-status --control-dir /run/flights --crit pending=5

It requires only Python 3.10, which can differ from the application's Python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

OK, WARNING, CRITICAL, UNKNOWN = range(4)
NAMES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")

#: The monitor's state for each exit code of ``--check``. All others are UNKNOWN.
STATES = {
    0: OK,
    3: WARNING,
    4: CRITICAL,
    5: WARNING,  # some workers did not answer (CRITICAL if none did)
    69: CRITICAL,  # no worker
    77: UNKNOWN,  # no permission
}


#: How ``--check`` begins its reasons. Other lines can come from the application.
REASONS = ("critical: ", "silent: ", "warning: ")


class Unknown(Exception):
    """The pools could not be checked; the message says why."""


def main() -> int:
    """Run the given command, print the result, and return the monitor's state."""
    parser = argparse.ArgumentParser(description="Check connection pools of Flask.")
    parser.add_argument("--deadline", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    try:
        code, survey, errors = look(given.command, given.deadline)
    except Unknown as problem:
        print(harmless(f"POOL UNKNOWN - {problem}"))
        return UNKNOWN
    state = STATES[code] if live(survey) or code != 5 else CRITICAL
    reasons = [line for line in errors if line.startswith(REASONS)]
    said = reasons[0] if reasons else summary(survey)
    print(harmless(f"POOL {NAMES[state]} - {said}") + " | " + performance(survey))
    for reason in reasons[1:]:
        print(harmless(reason))
    return state


def look(command: list[str], deadline: float) -> tuple[int, dict[str, Any], list[str]]:
    """Return the exit code of ``--check``, the JSON document, and stderr's lines."""
    if not command:
        raise Unknown("no command was given")
    try:
        done = subprocess.run(
            [*command, "--json", "--check"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unknown(f"no result within {deadline:g} s") from None
    except OSError as error:
        raise Unknown(f"{command[0]}: {error.strerror}") from None
    errors = done.stderr.strip().splitlines()
    survey = document(done.stdout) if done.returncode in STATES else None
    if survey is None:
        why = errors[-1] if errors else "it printed no document of schema 1"
        raise Unknown(f"exit code {done.returncode}: {why}")
    return done.returncode, survey, errors


def document(text: str) -> dict[str, Any] | None:
    """Parse the document; return ``None`` unless it has schema 1."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("schema") == 1 else None


def summary(survey: dict[str, Any]) -> str:
    """Return the number of live workers and used connections, as a sentence."""
    used = sum(total["used"] for total in survey["totals"])
    return f"{len(live(survey))} workers, {used} connections in use"


def performance(survey: dict[str, Any]) -> str:
    """Return the performance data: ``'label'=value[unit];warn;crit;min;max``."""
    data = [f"workers={len(live(survey))};;;0", f"silent={len(survey['silent'])};;;0"]
    for total in survey["totals"]:
        pools = [
            pool
            for worker in live(survey)
            for pool in worker["pools"]
            if pool["url"] == total["url"]
        ]
        values = (
            ("used", total["used"], "", total["max"]),
            ("idle", total["idle"], "", total["max"]),
            ("pending", total["pending"], "", None),
            ("max_wait", highest(pools, "max_wait_s"), "s", None),
            ("timeouts", added(pools, "timeouts_total"), "c", None),
        )
        name = database(total["url"])
        for what, value, unit, most in values:
            # A value that the pool class cannot know is left out, not reported as 0.
            if value is not None:
                end = "" if most is None else f";{most}"
                data.append(f"'{name} {what}'={value:g}{unit};;;0{end}")
    return " ".join(data)


def live(survey: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the live workers."""
    return [worker for worker in survey["workers"] if worker["source"] == "live"]


def highest(pools: list[dict[str, Any]], name: str) -> float | None:
    """Return the highest known value of the pools, or ``None``."""
    return max((pool[name] for pool in pools if pool[name] is not None), default=None)


def added(pools: list[dict[str, Any]], name: str) -> float | None:
    """Return the sum over the pools, or ``None`` if one value is unknown."""
    values = [pool[name] for pool in pools]
    return None if None in values else sum(values)


def database(url: dict[str, Any]) -> str:
    """Return the database's name for a label, without reserved characters."""
    port = "" if url["port"] is None else f":{url['port']}"
    name = f"{url['host'] or ''}{port}/{url['database'] or ''}"
    return "".join("_" if c in "'=|" or not c.isprintable() else c for c in name)


def harmless(text: str) -> str:
    """Replace the character that begins the performance data."""
    return text.replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
