"""Grafana's own model of a dashboard reads the one that we ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARD = json.loads(
    (Path(__file__).parents[2] / "docs/prometheus/grafana.json").read_text("utf-8")
)


def lost(ours: Any, theirs: Any, where: str = "$") -> list[str]:
    """Return what is not, or something else, in what Grafana has understood."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            each
            for key, value in ours.items()
            for each in lost(value, theirs.get(key, "absent"), f"{where}.{key}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            each
            for index, (mine, other) in enumerate(zip(ours, theirs, strict=True))
            for each in lost(mine, other, f"{where}[{index}]")
        ]
    return [] if ours == theirs else [f"{where}: {ours!r}, not {theirs!r}"]


def test_the_dashboard_is_understood():
    """Also the options of each kind of panel, and the queries for Prometheus."""
    register_default_plugins()
    understood = JSONEncoder().encode(Dashboard.from_json(DASHBOARD))
    assert lost(DASHBOARD, json.loads(understood)) == []


def test_a_mistake_is_found():
    """At any depth: a key that Grafana does not know is lost."""
    register_default_plugins()
    wrong = json.loads(json.dumps(DASHBOARD))
    wrong["panels"][-1]["options"]["legend"]["place"] = "bottom"
    wrong["panels"][0]["targets"][0]["expression"] = "up"
    understood = json.loads(JSONEncoder().encode(Dashboard.from_json(wrong)))
    assert len(lost(wrong, understood)) == 2


def test_the_layout():
    """Panels lie beside each other, and each says what it shows."""
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells, panel["title"]
        assert max(x for x, _ in mine) < 24
        assert panel["description"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"]["uid"] == "${datasource}"
        cells |= mine
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
