"""Recordings of OVO-Bench's official scorer: real result files, a made-up one, and single responses."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate.scorers.ovo_bench import OVOBench
from foveate.scorers.ovo_bench_reading import TASKS
from foveate.scorers.score import Scored, score

Compared = Iterator[tuple[str, Any, Any]]

#: What a single response is judged for, by the names that a recording may give it; else a task's own.
RULES = {
    **dict.fromkeys(("mcq", "backward", "realtime", "backward_realtime", "choice", "get_score"), "EPM"),
    **dict.fromkeys(("rec", "get_score_rec"), "REC"),
    **dict.fromkeys(("ssr_crr", "get_score_ssr_crr", "yes_no"), "SSR"),
}
#: The keys that its truth and its recorded mark may have.
TRUTHS = ("ground_truth", "gt", "count", "type", "truth", "target")
MARKS = ("score", "mark", "correct", "result", "official", "value")


def answers(recorded: Mapping[str, Any], data: Path) -> Compared:
    for name, value in recorded.items():
        if name == "results":
            for entry in value:
                yield from _real(entry, data)
        elif name == "result_file":
            yield from _made_up(value, recorded)
        elif isinstance(value, list) and all(isinstance(case, Mapping) and "response" in case for case in value):
            for number, case in enumerate(value):
                yield from _single(f"{name} {number}", name, case)
        elif name not in ("meta", "printed", "printed_text", "error", "only_backward"):
            raise KeyError(f"nothing compares {name!r}")


def _real(entry: Mapping[str, Any], data: Path) -> Compared:
    """A model's files, by path; they lie in one folder, which has no others."""
    files = [data.parent / file["file"].removeprefix("shared/") for file in entry["files"]]
    for file, told in zip(files, entry["files"], strict=True):
        yield str(file), told["sha256"], hashlib.sha256(file.read_bytes()).hexdigest()
    assert len({file.parent for file in files}) == 1, files
    for given in (None, data / "ovo_bench" / "ovo_bench_new.json"):
        suite = OVOBench(given)
        found = _of_files(suite, files)
        yield from _compared(entry["model"], suite, found, entry)
        counts = Counter(row.answer.question.task for row in found.rows)
        yield f"{entry['model']}: answers", entry["n_items"], dict(counts)


def _of_files(suite: OVOBench, files: list[Path]) -> Scored:
    """Scores of these files in their order, the folder's others left out."""
    folder = files[0].parent
    if sorted(files) == sorted(folder.glob("*.json")):
        return score(suite, folder, rules=("official",)).by_rules["official"]
    with tempfile.TemporaryDirectory() as made:
        model = Path(made) / folder.name
        model.mkdir()
        for file in files:
            (model / file.name).write_bytes(file.read_bytes())
        return score(suite, model, rules=("official",)).by_rules["official"]


def _made_up(content: Mapping[str, Any], recorded: Mapping[str, Any]) -> Compared:
    suite = OVOBench()
    yield from _compared("result_file", suite, _of_content(suite, content), recorded)
    for name, scenario in (("only_backward", "backward"),):
        if name in recorded:
            alone = {s: rows if s == scenario else [] for s, rows in content.items()}
            yield from _compared(name, suite, _of_content(suite, alone), recorded[name])


def _of_content(suite: OVOBench, content: Mapping[str, Any]) -> Scored:
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "X" / "X_offline.json"  # the model of the recordings
        file.parent.mkdir()
        file.write_text(json.dumps(content), encoding="utf-8")
        return score(suite, file, rules=("official",)).by_rules["official"]


def _compared(what: str, suite: OVOBench, found: Scored, recorded: Mapping[str, Any]) -> Compared:
    """Figures, the print-out, and with which exception it ends: its class and the variable that it names."""
    text = suite.official_text(found.rows)
    if recorded.get("printed") is not None:
        printed = recorded["printed"]
        tasks = {name: float(value) for name, value in re.findall(r"^Task: (\w+), Acc: (\S+)$", text, re.M)}
        averages = {name: float(value) for name, value in re.findall(r"^(\w+) Avg\.: (\S+)$", text, re.M)}
        yield f"{what}: tasks printed", printed["tasks"], tasks
        yield f"{what}: averages printed", printed["averages"], averages
        sections = {"tasks": "task", "averages": "scenario"}
        for group, section in sections.items():
            for name, value in printed[group].items():
                figure = found.figures["overall", name] if name == "Total" else found.figures[section, name]
                yield f"{what}: {name}", value, float(figure.text)
    if recorded.get("printed_text") is not None:
        yield f"{what}: text", recorded["printed_text"], text
    yield f"{what}: error", _short(recorded.get("error")), _short(suite.official_failure(found.rows))


def _short(error: str | None) -> str:
    """An exception's class and the variable that it names; Python's words for it change from version to version."""
    if not error:
        return ""
    kind = error.split(":")[0]
    named = re.search(r"'(\w+_score)'", error) if kind == "UnboundLocalError" else None
    return f"{kind} {named[1]}" if named else kind


def _single(what: str, group: str, case: Mapping[str, Any]) -> Compared:
    """One response: its mark, or the exception that it ends the official script with."""
    case = {**next((case[key] for key in ("row", "item", "entry") if isinstance(case.get(key), Mapping)), {}), **case}
    names = (case[key] for key in ("task", "rule", "kind", "function", "scenario", "type") if key in case)
    name = next((name for name in names if isinstance(name, str)), group)
    task = RULES.get(name.lower(), name)
    if task not in TASKS:
        raise KeyError(f"{what}: no rule is called {name!r}")
    truth = next(case[key] for key in TRUTHS if key in case and (key != "type" or not isinstance(case[key], str)))
    row: dict[str, Any] = {"id": 0, "task": task, "video": "v.mp4"}
    if TASKS[task] == "forward":
        level = int(truth) if task == "REC" else {"No": 0, "Yes": 1, "N": 0, "Y": 1}.get(truth, truth)
        element = {"realtime": 1, "step": "s", "count": level, "type": level, "response": case["response"]}
        row |= {"activity": "a", "question": "q", "test_info": [element]}
    else:
        row |= {"question": "q", "ground_truth": truth, "response": case["response"]}
    suite = OVOBench()
    found = _of_content(suite, {s: [row] * (s == TASKS[task]) for s in ("backward", "realtime", "forward")})
    failure = _short(suite.official_failure(found.rows))
    if failure.startswith("UnboundLocalError"):  # it is the only scenario
        failure = ""
    recorded = next((case[key] for key in MARKS if key in case), None)
    error = recorded if isinstance(recorded, str) else case.get("error")
    if error is not None:
        yield f"{what}: {case}", _short(error), failure
    else:
        assert recorded is not None, f"{what}: no mark in {case}"
        yield f"{what}: {case}", (float(recorded), ""), (found.rows[0].verdict.mark, failure)
