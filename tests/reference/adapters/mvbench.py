"""MVBench against its notebook: three match rules, a whole run with its files and figures, frames."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate.scorers.mvbench import MVBench, leaderboard, result_file, stem
from foveate.scorers.mvbench_rules import check_answer, frame_indices, question_text, right_option
from foveate.scorers.score import score

Compared = Iterator[tuple[str, object, object]]
#: Rules by the names that recordings have for them.
RULES = {"check_ans": "v1", "check_ans_hd": "hd", "lmms_eval_mcq_acc": "lmms-eval"}
#: What a run has, beside the figures that are compared.
RUN = ("annotations", "predictions")
MEANS = ("mean_over_tasks",)


def answers(recorded: Mapping[str, Any], data: Path) -> Compared:
    recorded = {key: value for key, value in recorded.items() if key != "meta"}
    for item in recorded.pop("items", ()):
        rules = [key for key in item if key in RULES]
        assert set(item) == {"pred", "gt", *rules}, f"{set(item)} are not all compared"
        for key in rules:
            ours = check_answer(item["pred"], item["gt"], RULES[key])
            yield f"{key} of {item['pred']!r} for {item['gt']!r}", item[key], ours
    for case in recorded.pop("cases", ()):
        ours = frame_indices(case["bound"], case["fps"], case["max_frame"], case["num_segments"], case["first_idx"])
        yield f"frames of {case['bound']} at {case['fps']}", case["indices"], ours
    if recorded:
        yield from _run(recorded)


def _run(recorded: Mapping[str, Any]) -> Compared:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for task, items in recorded["annotations"].items():
            (folder / "json").mkdir(exist_ok=True)
            (folder / "json" / f"{stem(task)}.json").write_text(json.dumps(items))
        told = {key: recorded[key] for key in ("acc_dict", "res_list") if key in recorded}
        (folder / "result.json").write_text(json.dumps(told))
        suite = MVBench(folder)
        with_questions = score(suite, folder / "result.json")
        alone = score(MVBench(), folder / "result.json", rules=("official",))
    yield "notes of the answers", [], [note for note in with_questions.notes if "result.json" in note]
    truths = [question.truth for question in suite.questions.values()]
    yield "right options", [row["gt"] for row in recorded["res_list"]], truths
    for scores in (with_questions, alone):
        rows, figures = scores.by_rules["official"].rows, scores.by_rules["official"].figures
        files = {**result_file(rows), "upload_leaderboard": leaderboard(rows)}
        files["mean_over_tasks"] = figures["overall", "mean of tasks"].value
        for section, names in (("task", recorded["acc_dict"]), ("overall", ["Avg"])):
            for name in names:
                key = f"figure {name}"
                files[key] = figures[section, name].value
                yield key, recorded["upload_leaderboard"][name], files[key]
        for key, value in recorded.items():
            if key in MEANS:  # the recording's own arithmetic, not the notebook's
                yield key, round(value, 9), round(files[key], 9)
            elif key in files:
                yield key, value, files[key]
        yield "print-out", f"{recorded['upload_leaderboard']}\n", suite.official_text(rows)
    numbers = {
        "dataset_summary_random_accuracy": round(suite.summary_accuracy(), 2),
        "mean_of_1_over_n_candidates": suite.random_accuracy(),
    }
    for key, ours in numbers.items():
        if key in recorded:
            yield key, round(recorded[key], 9), round(ours, 9)
    questions = recorded.get("questions", [])
    for theirs, question in zip(questions, suite.questions.values(), strict=bool(questions)):
        yield f"text of {question.id}", theirs, question_text(question.question, list(question.options.values()))
    known = {*RUN, *files, *numbers, "questions"}
    assert set(recorded) <= known, f"{set(recorded) - known} of a run are compared with nothing"
    assert all(
        right_option(item["candidates"], item["answer"]) for own in recorded["annotations"].values() for item in own
    )
