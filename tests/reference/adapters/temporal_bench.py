"""TemporalBench against what its scorer prints, and where it stops."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate.scorers.base import Figure
from foveate.scorers.score import score
from foveate.scorers.temporal_bench import TASKS, TemporalBench

Compared = Iterator[tuple[str, object, object]]


def answers(recorded: Mapping[str, Any], data: Path) -> Compared:
    shared = {"meta", "data_json", "questions"}
    questions = recorded["questions"]
    name = recorded.get("data_json", f"temporalbench_{'short' if 'category' in questions[0] else 'long'}_qa.json")
    cases = recorded.get("cases", [{key: value for key, value in recorded.items() if key not in shared}])
    unknown = set(recorded) - shared - {"cases"} if "cases" in recorded else set()
    assert not unknown, f"{sorted(unknown)} are compared with nothing"
    for case in cases:
        yield from _case(name, questions, case)


def _case(data_json: str, questions: list[dict[str, Any]], case: Mapping[str, Any]) -> Compared:
    known = {"name", "predictions", "printed_text", "printed", "tail", "error"}
    assert set(case) <= known, f"{sorted(set(case) - known)} are compared with nothing"
    stem, title = data_json.removesuffix(".json"), case.get("name", data_json)
    named = re.match(r"\*+ (\S+) \*+\n", case.get("printed_text") or "")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / data_json).write_text(json.dumps(questions))
        file = Path(folder) / "outputs" / stem / (named[1] if named else "model-frame8.jsonl")
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in case["predictions"]))
        suite = TemporalBench(Path(folder) / data_json)
        scores = score(suite, file.parent.parent, rules=("official",))
        official = scores.by_rules["official"]
        text = suite.official_text(official.rows)
    stops = re.search(r"stops here \((.*?)\),", " ".join(scores.notes))
    error = stops[1] if stops else None
    task = next(task for task in TASKS if task in stem)
    for key, value in case.items():
        if key == "printed_text":
            yield f"{title}: {key}", value, text
        elif key == "tail":
            yield f"{title}: {key}", value, "" if error else text[-len(value) :]
        elif key == "error":
            yield f"{title}: {key}", value, error
        elif key == "printed":
            ours = _printed(official.figures, task, text, isinstance(value, dict) and "groups" in value)
            yield f"{title}: {key}", value, None if error else ours


def _printed(figures: Mapping[tuple[str, str], Figure], task: str, text: str, groups: bool) -> dict[str, Any]:
    def counts(section: str, name: str, metric: str) -> list[float]:
        figure = figures[section, f"{name}, {metric}"]
        return [int(sum(figure.marks)), figure.total, float(figure.text)]

    def both(section: str, name: str) -> dict[str, Any]:
        return {"binary": counts(section, name, "binary"), "multiple_binary": counts(section, name, "MBA")}

    sections = {name.rpartition(", ")[0]: section for section, name in figures if section != "overall"}
    lines = re.findall(r"^\|--- (.+?)  +\d+/", text, re.MULTILINE)
    told = both("overall", task)
    if groups:
        return {**told, "groups": {name: both(sections[name], name) for name in lines}}
    return {**told, "n_groups": len(lines)}
