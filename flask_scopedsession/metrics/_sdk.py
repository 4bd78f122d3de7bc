"""Record a value many times at once, which OpenTelemetry's SDK has no interface for.

The private names of this module belong to ``opentelemetry.sdk.metrics``. Where they are
gone or mean something else, values are recorded one at a time, which is slower.
"""

from __future__ import annotations

import time
import typing as t
from bisect import bisect_left

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.metrics import Histogram

#: Recordings between which other threads and greenlets may run.
_AT_A_TIME = 500


def record(
    instrument: Histogram, value: float, times: int, attributes: dict[str, str]
) -> None:
    """Record a value several times.

    Call it in a callback of the SDK, which collects nothing meanwhile.
    """
    if times < 1:
        return
    # The SDK decides what becomes of it, and creates what is needed.
    instrument.record(value, attributes)
    if times == 1 or _repeat(instrument, value, times - 1, attributes):
        return
    for number in range(1, times):
        instrument.record(value, attributes)
        if number % _AT_A_TIME == 0:
            time.sleep(0)


def _repeat(
    instrument: Histogram, value: float, times: int, attributes: dict[str, str]
) -> bool:
    """Count the last recording several times more, or return ``False``."""
    try:
        found = list(_explicit_buckets(instrument, attributes))
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    for sums in found:
        with sums._lock:
            sums._value[bisect_left(sums._boundaries, value)] += times
            sums._sum += value * times
    return bool(found)


def _explicit_buckets(
    instrument: Histogram, attributes: dict[str, str]
) -> Iterator[t.Any]:
    """Yield what the SDK has counted the last recording in, for each reader and view.

    Raises whatever it meets where that is not a histogram with explicit buckets.
    """
    # A proxy stands for it until the application has set its meter provider.
    real: t.Any = getattr(instrument, "_real_instrument", None) or instrument
    for storage in real._measurement_consumer._reader_storages.values():
        for match in storage._instrument_view_instrument_matches[real]:
            # A view may leave attributes out, of all values alike.
            (sums,) = (
                each
                for each in match._attributes_aggregation.values()
                if each._attributes.items() <= attributes.items()
            )
            known = None not in (sums._lock, sums._sum)
            if not known or len(sums._value) != len(sums._boundaries) + 1:
                raise ValueError
            yield sums
