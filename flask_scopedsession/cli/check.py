"""``--check``: from a survey and thresholds to one exit code."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from ..snapshot import Survey

EXIT_OK = 0
#: A warning threshold was reached.
EXIT_WARNING = 3
#: A critical threshold was reached, or a pool is wedged.
EXIT_CRITICAL = 4
#: Some or all workers did not answer; the others were checked.
EXIT_PARTIAL = 5
#: There is no worker to ask (``EX_UNAVAILABLE`` of sysexits).
EXIT_UNAVAILABLE = 69
#: The workers belong to another user (``EX_NOPERM``).
EXIT_NO_PERMISSION = 77
#: ``--watch`` was interrupted; shells use this code.
EXIT_INTERRUPTED = 130

WARN_DEFAULT = "held_long=1,used_pct=90"
CRIT_DEFAULT = "pending=1,max_wait_s=5,timeouts_60s=1"

METRICS = ("used_pct", "pending", "max_wait_s", "timeouts_60s", "held_long")

Thresholds = t.Mapping[str, float]


class Verdict(t.NamedTuple):
    """What ``--check`` found."""

    code: int
    reasons: tuple[str, ...]
    """The worst first."""


def parse_thresholds(text: str) -> dict[str, float]:
    """Turn ``"pending=1,max_wait_s=5"`` into numbers by metric.

    :raises ValueError: A metric is unknown, or its value is not a number of 0 or more.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        metric, _, value = (word.strip() for word in part.partition("="))
        if metric not in METRICS:
            raise ValueError(f"{metric!r} is not a metric. Use {', '.join(METRICS)}.")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise ValueError(f"{metric}= needs a number of 0 or more.")
        found[metric] = number
    return found


def check(survey: Survey, warn: Thresholds, crit: Thresholds) -> Verdict:
    """Return the exit code of ``--check``, and the reasons for it."""
    denied = [f"no permission: {s.dir}" for s in survey.searched if s.denied]
    if not survey.live:
        denied += [
            f"pid {silent.pid}: {silent.reason}"
            for silent in survey.silent
            if silent.reason == "permission denied"
        ]
    wedged = [
        f"pid {worker.pid}, bind {pool.bind}: wedged"
        for worker in survey.live
        for pool in worker.pools
        if pool.wedged
    ]
    critical = [f"critical: {r}" for r in (*wedged, *_reached(survey, crit))]
    silent = [f"silent: pid {s.pid}: {s.reason}" for s in survey.silent]
    warnings = [f"warning: {reason}" for reason in _reached(survey, warn)]
    reasons = (*critical, *silent, *warnings)
    if denied:
        first = [f"critical: {reason}" for reason in denied]
        return Verdict(EXIT_NO_PERMISSION, (*first, *reasons))
    if not survey.live and not silent:
        return Verdict(EXIT_UNAVAILABLE, ("critical: no worker has answered", *reasons))
    if critical:
        return Verdict(EXIT_CRITICAL, reasons)
    if silent:
        return Verdict(EXIT_PARTIAL, reasons)
    return Verdict(EXIT_WARNING if warnings else EXIT_OK, reasons)


def _reached(survey: Survey, thresholds: Thresholds) -> t.Iterator[str]:
    for worker in survey.live:
        for pool in worker.pools:
            for metric, threshold in thresholds.items():
                value = getattr(pool, metric)
                # A value that the pool's class cannot know reaches no threshold.
                if value is not None and value >= threshold:
                    yield (
                        f"pid {worker.pid}, bind {pool.bind}:"
                        f" {metric} {value:.4g} >= {threshold:g}"
                    )
