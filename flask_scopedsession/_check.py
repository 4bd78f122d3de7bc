"""``--check``: from a survey and thresholds to one exit code."""

from __future__ import annotations

import typing as t

from .snapshot import PoolSnapshot
from .snapshot import Survey

EXIT_OK = 0
#: A warning threshold was reached.
EXIT_WARNING = 3
#: A critical threshold was reached, or a pool is wedged.
EXIT_CRITICAL = 4
#: Some workers stayed silent; the rest were looked at.
EXIT_PARTIAL = 5
#: No worker is alive (``EX_UNAVAILABLE`` of sysexits).
EXIT_UNAVAILABLE = 69
#: The workers belong to somebody else (``EX_NOPERM``).
EXIT_NO_PERMISSION = 77

WARN_DEFAULT = "held_long=1,used_pct=90"
CRIT_DEFAULT = "pending=1,max_wait_s=5,timeouts_60s=1"

METRICS = ("used_pct", "pending", "max_wait_s", "timeouts_60s", "held_long")

Thresholds = t.Mapping[str, float]


class Verdict(t.NamedTuple):
    """What ``--check`` found."""

    code: int
    reasons: tuple[str, ...]


def parse_thresholds(text: str) -> dict[str, float]:
    """Turn ``"pending=1,max_wait_s=5"`` into numbers by metric.

    :raises ValueError: A metric is unknown, or its value no number of 0 or more.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        metric, _, value = part.partition("=")
        if metric not in METRICS:
            raise ValueError(
                f"{metric!r} is not a metric. There are {', '.join(METRICS)}."
            )
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise ValueError(f"{metric}= needs a number of 0 or more.")
        found[metric] = number
    return found


def check(survey: Survey, warn: Thresholds, crit: Thresholds) -> Verdict:
    """Return the exit code of ``--check``, and why."""
    if not survey.live:
        denied = [s for s in survey.searched if s.denied]
        if denied:
            return Verdict(EXIT_NO_PERMISSION, (f"no permission: {denied[0].dir}",))
        if not survey.silent:
            return Verdict(EXIT_UNAVAILABLE, ("no worker has answered",))
    critical = [reason for found in _reached(survey, crit) for reason in found]
    for worker in survey.live:
        for pool in worker.pools:
            if pool.wedged:
                critical.append(f"{worker.pid}/{pool.bind}: wedged")
    silent = [f"{s.pid}: {s.reason}" for s in survey.silent]
    warnings = [reason for found in _reached(survey, warn) for reason in found]
    reasons = tuple(critical + silent + warnings)
    if critical:
        return Verdict(EXIT_CRITICAL, reasons)
    if not survey.live:
        return Verdict(EXIT_UNAVAILABLE, reasons)
    if silent:
        return Verdict(EXIT_PARTIAL, reasons)
    return Verdict(EXIT_WARNING if warnings else EXIT_OK, reasons)


def _reached(survey: Survey, thresholds: Thresholds) -> t.Iterator[list[str]]:
    for worker in survey.live:
        for pool in worker.pools:
            yield [
                f"{worker.pid}/{pool.bind}: {metric} {value:g} >= {thresholds[metric]:g}"
                for metric, value in _values(pool)
                if metric in thresholds and value >= thresholds[metric]
            ]


def _values(pool: PoolSnapshot) -> t.Iterator[tuple[str, float]]:
    for metric in METRICS:
        value = getattr(pool, metric)
        if value is not None:
            yield metric, float(value)
