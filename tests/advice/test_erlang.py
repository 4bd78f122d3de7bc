"""The formulas: against published tables, and properties that always hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_scopedsession._advice import erlang as _erlang
from flask_scopedsession.snapshot import BUCKET_BOUNDS

loads = st.floats(0.01, 200.0)
servers = st.integers(1, 300)
holds = st.floats(0.0005, 30.0)
waits = st.floats(0.0, 5.0)
spreads = st.floats(1.0, 20.0)


@pytest.mark.parametrize(
    ("load", "number", "expected"),
    [
        # Erlang B as tabulated, for one: servers and load for a grade of service.
        (0.0101, 1, 0.01),
        (1.361, 5, 0.01),
        (4.461, 10, 0.01),
        (12.030, 20, 0.01),
        (37.901, 50, 0.01),
        (84.064, 100, 0.01),
        (2.218, 5, 0.05),
        (6.216, 10, 0.05),
        (15.249, 20, 0.05),
        (95.240, 100, 0.05),
    ],
)
def test_erlang_b_table(load: float, number: int, expected: float) -> None:
    assert _erlang.blocking(load, number) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("load", "number", "expected"),
    [
        # By hand: C(1, a) = a; C(2, 1) = 1/3; C(2, a) = a²/(2 + a); C(3, 2) = 4/9.
        (0.5, 1, 0.5),
        (0.9, 1, 0.9),
        (1.0, 2, 1 / 3),
        (1.5, 2, 2.25 / 3.5),
        (2.0, 3, 4 / 9),
        # Textbook examples of staffing.
        (5.0, 6, 0.5875),
        (10.0, 12, 0.4493),
        (10.0, 15, 0.1020),
        (20.0, 25, 0.2091),
    ],
)
def test_erlang_c_table(load: float, number: int, expected: float) -> None:
    assert _erlang.delayed(load, number) == pytest.approx(expected, abs=5e-4)


def test_erlang_c_as_defined() -> None:
    """The recurrence equals the sum of the definition, where that can be computed."""
    for load in (0.3, 2.0, 7.5, 40.0):
        for number in range(int(load) + 1, int(load) + 30):
            last = load**number / math.factorial(number) / (1 - load / number)
            before = sum(load**k / math.factorial(k) for k in range(number))
            expected = last / (before + last)
            assert _erlang.delayed(load, number) == pytest.approx(expected, rel=1e-9)


def test_large_numbers_do_not_overflow() -> None:
    assert 0 < _erlang.delayed(5000.0, 5100) < 1
    assert _erlang.quantile(5000.0, 0.95) == pytest.approx(5117, abs=2)
    assert _erlang.at_most(5000.0, 5000) == pytest.approx(0.5, abs=0.01)
    assert 5000 < _erlang.needed(5000.0, 0.1, 0.01, 0.05) < 5200


def test_no_load_needs_one_connection() -> None:
    assert _erlang.needed(0.0, 0.0, 0.0, 0.05) == 1
    assert _erlang.longest(0.0, 1, 0.0, 1e-6) == 0.0


@given(load=loads, number=servers, hold=holds, wait=waits, spread=spreads)
def test_waits_grow_with_the_load(
    load: float, number: int, hold: float, wait: float, spread: float
) -> None:
    less = _erlang.late(load, number, hold, wait, spread)
    more = _erlang.late(load * 1.1, number, hold, wait, spread)
    assert 0 <= less <= more <= 1


@given(load=loads, number=servers, hold=holds, wait=waits, spread=spreads)
def test_waits_shrink_with_connections_and_patience(
    load: float, number: int, hold: float, wait: float, spread: float
) -> None:
    late = _erlang.late(load, number, hold, wait, spread)
    assert _erlang.late(load, number + 1, hold, wait, spread) <= late
    assert _erlang.late(load, number, hold, wait + 0.1, spread) <= late
    assert _erlang.late(load, number, hold, wait, spread + 1) >= late


@given(load=loads, hold=holds, wait=waits, spread=spreads)
def test_needed_is_enough_and_no_more(
    load: float, hold: float, wait: float, spread: float
) -> None:
    number = _erlang.needed(load, hold, wait, 0.05, spread)
    assert _erlang.late(load, number, hold, wait, spread) <= 0.05
    if number > 1:
        assert _erlang.late(load, number - 1, hold, wait, spread) > 0.05
    assert _erlang.needed(load * 1.5, hold, wait, 0.05, spread) >= number


@given(load=st.floats(0.1, 50), extra=st.integers(1, 20), hold=holds)
def test_longest_is_the_inverse_of_late(load: float, extra: int, hold: float) -> None:
    number = int(load) + extra
    wait = _erlang.longest(load, number, hold, 1e-3)
    assert _erlang.late(load, number, hold, wait) <= 1e-3 * (1 + 1e-6)
    if wait:
        assert _erlang.late(load, number, hold, wait) == pytest.approx(1e-3)


def test_a_full_pool_has_no_longest_wait() -> None:
    assert _erlang.longest(3.0, 3, 0.1, 1e-6) == math.inf
    assert _erlang.late(3.0, 3, 0.1, 10.0) == 1.0


def test_poisson_table() -> None:
    assert _erlang.at_most(1.0, 0) == pytest.approx(math.exp(-1))
    assert _erlang.at_most(2.0, 4) == pytest.approx(0.9473, abs=1e-4)
    assert _erlang.at_most(10.0, 15) == pytest.approx(0.9513, abs=1e-4)
    assert _erlang.at_most(0.0, 0) == 1.0
    assert _erlang.at_most(1.0, -1) == 0.0
    assert _erlang.quantile(10.0, 0.95) == 15
    assert _erlang.quantile(0.01, 0.95) == 0


# How much holds vary


def counted(*values: float) -> tuple[list[int], float]:
    buckets = [0] * (len(BUCKET_BOUNDS) + 1)
    for value in values:
        index = next((i for i, b in enumerate(BUCKET_BOUNDS) if value <= b), -1)
        buckets[index] += 1
    return buckets, max(values)


def test_equal_holds_do_not_vary() -> None:
    assert _erlang.variability(*counted(*[0.03] * 50)) < 0.1
    assert _erlang.spread(0.0) == 1.0


def test_two_kinds_of_holds_vary() -> None:
    """Nine of 10 ms and one of 1 s: the true number is 6.6."""
    found = _erlang.variability(*counted(*[0.01] * 90, *[1.0] * 10))
    assert 4 < found < 10
    assert _erlang.spread(found) == (1 + found) / 2


def test_values_beyond_the_last_bound_count() -> None:
    found = _erlang.variability(*counted(*[1.0] * 99, 300.0))
    assert found > 20


def test_nothing_does_not_vary() -> None:
    assert _erlang.variability([0] * (len(BUCKET_BOUNDS) + 1), 0.0) == 0.0
