"""``--check``: which exit code, in which order, and why."""

from __future__ import annotations

from typing import Any

import pytest
from readings import a_full_pool
from readings import a_last_worker
from readings import a_pool
from readings import a_silent
from readings import a_survey
from readings import a_worker

from flask_scopedsession.cli.check import check
from flask_scopedsession.cli.check import CRIT_DEFAULT
from flask_scopedsession.cli.check import parse_thresholds
from flask_scopedsession.cli.check import Verdict
from flask_scopedsession.cli.check import WARN_DEFAULT
from flask_scopedsession.snapshot import SearchedDirectory
from flask_scopedsession.snapshot import Survey

DENIED = SearchedDirectory("/run/theirs", "belongs to uid 7, not to uid 8", True)


def verdict(
    survey: Survey, warn: str = WARN_DEFAULT, crit: str = CRIT_DEFAULT
) -> Verdict:
    return check(survey, parse_thresholds(warn), parse_thresholds(crit))


def of_pool(**changes: Any) -> Verdict:
    return verdict(a_survey(a_worker(4711, [a_pool(**changes)])))


# The order


def test_all_is_well() -> None:
    """0, without reasons."""
    assert verdict(a_survey(a_worker())) == (0, ())


def test_no_permission_comes_first() -> None:
    """77, whatever else is wrong."""
    for workers in ((), (a_worker(1, [a_full_pool()]),)):
        found = verdict(
            a_survey(*workers, searched=(DENIED,), silent=(a_silent(2, "stopped"),))
        )
        assert found.code == 77
        assert found.reasons[0] == "critical: no permission: /run/theirs"


def test_no_permission_for_every_socket() -> None:
    """77 also if the directory can be read, but no worker's socket."""
    silent = (a_silent(1, "permission denied"),)
    assert verdict(a_survey(silent=silent)).code == 77
    assert verdict(a_survey(a_worker(), silent=silent)).code == 5


@pytest.mark.parametrize(
    "survey",
    [
        a_survey(),
        a_survey(a_last_worker(1, "gone", pools=[a_full_pool()])),
        a_survey(searched=(SearchedDirectory("/x", "does not exist"),)),
    ],
)
def test_no_live_worker(survey: Survey) -> None:
    """69: last snapshots do not count as live."""
    found = verdict(survey)
    assert found.code == 69
    assert found.reasons[0] == "critical: no worker has answered"


def test_all_workers_are_silent() -> None:
    """5: they are there, which is more than nobody."""
    gone = a_last_worker(3, "gone", pools=[a_full_pool()])
    silent = (a_silent(1, "stopped"), a_silent(2, "unresponsive"))
    reasons = ("silent: pid 1: stopped", "silent: pid 2: unresponsive")
    assert verdict(a_survey(silent=silent)) == (5, reasons)
    assert verdict(a_survey(gone, silent=silent)) == (5, reasons)


def test_critical_comes_before_silence_and_warnings() -> None:
    """4, and all reasons, the worst first."""
    pool = a_full_pool()
    found = verdict(a_survey(a_worker(7, [pool]), silent=(a_silent(8, "stopped"),)))
    assert found == (
        4,
        (
            "critical: pid 7, bind default: wedged",
            "critical: pid 7, bind default: pending 3 >= 1",
            "critical: pid 7, bind default: timeouts_60s 7 >= 1",
            "silent: pid 8: stopped",
            "warning: pid 7, bind default: held_long 12 >= 1",
            "warning: pid 7, bind default: used_pct 100 >= 90",
        ),
    )


def test_silence_comes_before_warnings() -> None:
    """5."""
    pool = a_pool(held_long=1)
    silent = (a_silent(8, "unresponsive"),)
    assert verdict(a_survey(a_worker(7, [pool]), silent=silent)).code == 5


def test_warning() -> None:
    """3."""
    assert of_pool(held_long=1) == (
        3,
        ("warning: pid 4711, bind default: held_long 1 >= 1",),
    )


# The defaults


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"used": 15, "used_pct": 100.0}, 3),
        ({"used_pct": 90.0}, 3),
        ({"used_pct": 89.9}, 0),
        ({"held_long": 1}, 3),
        ({"pending": 1}, 4),
        ({"max_wait_s": 5.0}, 4),
        ({"max_wait_s": 4.9}, 0),
        ({"timeouts_60s": 1}, 4),
        ({"timeouts_total": 9}, 0),
        ({"wedged": True}, 4),
    ],
)
def test_defaults(changes: dict[str, Any], code: int) -> None:
    """A full pool alone is only a warning."""
    assert of_pool(**changes).code == code


def test_what_a_pool_cannot_know_reaches_nothing() -> None:
    """An unknown value is neither 0 nor too high."""
    unknown = {"used_pct": None, "pending": None, "max_wait_s": None}
    pool = a_pool(timeouts_60s=None, **unknown)
    survey = a_survey(a_worker(7, [pool]))
    everything = "pending=0,max_wait_s=0,timeouts_60s=0,used_pct=0"
    assert verdict(survey, warn="", crit=everything).code == 0


def test_last_snapshots_reach_nothing() -> None:
    """A worker that is gone raises no alert."""
    gone = a_last_worker(8, "gone", pools=[a_full_pool()])
    assert verdict(a_survey(a_worker(7), gone)).code == 0


def test_wedged_is_critical_without_thresholds() -> None:
    """No threshold switches it off."""
    survey = a_survey(a_worker(7, [a_full_pool()]))
    assert verdict(survey, warn="", crit="").code == 4


def test_used_pct_may_be_made_critical() -> None:
    """With ``--crit``."""
    survey = a_survey(a_worker(7, [a_pool(used_pct=80.0)]))
    assert verdict(survey, crit="used_pct=80").code == 4


# Thresholds as text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" , ", {}),
        ("pending=1", {"pending": 1.0}),
        (" pending = 2 , max_wait_s=0.5,", {"pending": 2.0, "max_wait_s": 0.5}),
    ],
)
def test_thresholds(text: str, expected: dict[str, float]) -> None:
    """Spaces and empty parts are ignored."""
    assert parse_thresholds(text) == expected


@pytest.mark.parametrize("value", ["", "=", "=-1", "=nan", "=inf", "=x", "=1=2"])
def test_threshold_without_number(value: str) -> None:
    """The error names the metric."""
    with pytest.raises(ValueError, match=r"^pending= needs a number of 0 or more\.$"):
        parse_thresholds(f"pending{value}")


@pytest.mark.parametrize("text", ["waiting=1", "=1", "USED_PCT=1"])
def test_unknown_metric(text: str) -> None:
    """The error lists the known metrics."""
    with pytest.raises(ValueError, match=r"is not a metric\. Use used_pct, pen"):
        parse_thresholds(text)
