"""The page on the metrics."""

from __future__ import annotations

import re
from pathlib import Path

from flask_scopedsession.metrics._metrics import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_every_metric_is_documented():
    """With its name, unit and instrument, in the order in which they are reported."""
    rows = re.findall(
        r"^\| `([\w.]+)` \| `(.+?)` \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE
    )
    known = [(metric.name, metric.unit, metric.kind) for metric in METRICS]
    assert [(name, unit, kind.lower()) for name, unit, kind in rows] == known
