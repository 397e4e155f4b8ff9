"""Heat maps, and the charts of tests at several lengths."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from foveate.compare import by_length
from foveate.pages.heatmaps import share_map

WORDS = {"title": "t<", "description": "d", "row_label": "depth", "column_label": "length"}


def test_cells_tell_their_share():
    drawing = share_map([[0.0, 1.0], [None, 0.5]], rows=["0 %", "<b>"], columns=["64", "128"], **WORDS)
    root = ElementTree.fromstring(drawing)
    cells = [e for e in root.iter() if e.get("class", "").startswith("heat tone")]
    assert [cell.get("fill-opacity") for cell in cells] == ["0.06", "1.00", "0.53"]
    assert [cell[0].text for cell in cells] == ["0 %, 64: 0.000", "0 %, 128: 1.000", "<b>, 128: 0.500"]
    texts = [e.text for e in root.iter() if e.get("class", "").startswith("heat-value")]
    assert texts == ["0", "100", "50"]
    assert drawing.count("heat-value strong") == 1
    places = {(c.get("x"), c.get("y")) for c in cells}
    assert len(places) == 3
    assert share_map([], rows=[], columns=["1"], **WORDS) == ""
    assert share_map([[]], rows=["0 %"], columns=[], **WORDS) == ""


def row(system: str, baseline: bool = False, status: str = "done", **examples) -> dict:
    return {"system": system, "status": status, "baseline": baseline, "examples": examples}


def test_accuracy_over_length_and_depth():
    found = {"lengths": [64, 128], "accuracy": [1.0, 0.25], "groups": None}
    grid = {**found, "groups": ["0 %", "100 %"], "grid": [[1.0, 0.0], [1.0, 0.5]]}
    board = {"rows": [row("a", **grid), row("b", baseline=True, **found), row("c", status="failed", **found), row("d")]}
    drawing = by_length.over_length(board)
    assert re.findall(r'class="name[^>]*>([^<]*)<', drawing) == ["a", "b"]
    assert "at the lengths 64 and 128" in drawing
    (chart,) = by_length.over_depth(board)
    assert "Share of keys that a found, in per cent, by depth and length." in chart
    assert chart.count('class="heat tone-1"') == 4


def test_other_tasks_have_no_such_charts():
    one = {"lengths": [64], "accuracy": [1.0], "groups": None}
    for board in ({"rows": []}, {"rows": [row("a", windows=[])]}, {"rows": [row("a", **one)]}):
        assert by_length.over_length(board) == ""
        assert by_length.over_depth(board) == []
