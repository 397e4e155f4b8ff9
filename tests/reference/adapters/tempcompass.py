"""TempCompass against its scripts: real predictions, stored ratings, made-up items of each rule, judges' replies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.scorers.score import Scored, score
from foveate.scorers.tempcompass import TempCompass
from foveate.scorers.tempcompass_reading import Book, Item, fine_of, question_of
from foveate.scorers.tempcompass_rules import clean_caption, parse_judge_reply, rating_of_verdict

Compared = Iterator[tuple[str, object, object]]
FILES = ("rule_based", "cached_ratings")
#: Of made-up ratings: what is added up, and what is printed.
ADDED = ("meta_info", "eval_results", "printed", "printed_text", "partial_results_error")
#: Names that an item's parts may have.
REPLY = (
    "prediction", "response", "video-llm-prediction", "pred", "llm_output", "judge_reply", "reply", "raw", "output",
    "llm_reply", "judge_output", "caption", "text",
)  # fmt: skip
TRUTH = ("answer", "gt-answer", "gt_answer", "mc_answer", "gt", "ground_truth", "truth")
RATING = ("rating", "score", "correct", "eval_rule")
MATCH = ("match_success", "matched", "match")
SAID = ("extract_pred", "extracted_pred", "extracted", "yes_no_pred", "parsed", "pred")
CLEANED = ("cleaned", "processed", "clean")
TOLD = ("question", "task", "model", "aspect", "dim", "disable_llm", "id", "index", "note", "comment", "case", "kind")


def answers(recorded: Mapping[str, Any], data: Path) -> Compared:
    recorded = {key: value for key, value in recorded.items() if key != "meta"}
    for key in FILES:
        for case in recorded.pop(key, ()):
            yield from _file(case, data)
    added = {key: recorded.pop(key) for key in ADDED if key in recorded}
    if added:
        yield from _added(added)
    for key, value in recorded.items():
        before = list(_items(key, value))
        assert before, f"{key} is compared with nothing"
        yield from before


# Files ----------------------------------------------------------------------------------------------------------------


def _file(case: Mapping[str, Any], data: Path) -> Compared:
    name = case.get("predictions_file") or case["file"]
    file = data.parent / name.removeprefix("shared/")
    for suite in (TempCompass(data / "tempcompass"), TempCompass()):
        official = score(suite, file, rules=("official",)).by_rules["official"]
        name = f"{case['task']} of {case['model']}"
        yield from _printed(name, case["printed"], suite, official)
        rows = official.rows
        counts = {
            "n_items": len(rows),
            "n_correct": sum(row.verdict.mark for row in rows),
            "n_matched": sum(row.verdict.readable for row in rows),
        }
        for key, ours in counts.items():
            if key in case:
                yield f"{key} of {name}", case[key], ours
        if "rating_counts" in case:
            marks = [str(int(row.verdict.mark)) for row in rows]
            yield (
                f"ratings of {name}",
                case["rating_counts"],
                {mark: marks.count(mark) for mark in dict.fromkeys(marks)},
            )
    known = {"task", "model", "disable_llm", "predictions_file", "file", "sha256", "note", "printed", "rating_counts"}
    unknown = set(case) - known - set(counts)
    assert not unknown, f"{unknown} of a file are compared with nothing"


def _printed(name: str, printed: Mapping[str, Any], suite: TempCompass, official: Scored) -> Compared:
    aspects, fine, rate = printed["aspects"], printed["fine_aspects"], printed["match_success_rate"]
    text = f"Accuracy Results:\n{aspects}\n{fine}\nMatch Success Rate={rate}\n"
    yield f"print-out of {name}", text, suite.official_text(official.rows)
    values = {key: figure.text for key, figure in official.figures.items()}
    for section, theirs in (("aspect", aspects), ("fine aspect", fine)):
        for aspect, value in theirs.items():
            key = ("overall", "avg") if aspect == "avg" else (section, aspect)
            yield f"{aspect} of {name}", str(value), values[key]
    yield f"match rate of {name}", str(rate), values["match rate", "all"]


def _added(case: Mapping[str, Any]) -> Compared:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results" / "multi-choice.json"
        file.parent.mkdir()
        file.write_text(json.dumps(case["eval_results"]))
        (Path(folder) / "meta_info.json").write_text(json.dumps(case["meta_info"]))
        suite = TempCompass()
        official = score(suite, file, rules=("official",)).by_rules["official"]
        if case.get("printed") is not None:
            yield from _printed("made-up ratings", case["printed"], suite, official)
        if case.get("printed_text") is not None:
            yield "print-out", case["printed_text"], suite.official_text(official.rows)
        # The official script stops at a part of them; ours says so, and leaves a dash where there is nothing.
        first = dict(list(case["eval_results"].items())[-1:])
        file.write_text(json.dumps(first))
        suite = TempCompass()
        scores = score(suite, file, rules=("official",))
        error = case.get("partial_results_error")
        if error is not None:
            yield "what stops the script", error, error if f"({error})" in " ".join(scores.notes) else None
        values = scores.by_rules["official"].figures
        yield "a figure of nothing", None, values["aspect", "order"].value
    assert fine_of(case["meta_info"])


# Items ----------------------------------------------------------------------------------------------------------------


def _items(name: str, value: Any) -> Compared:
    if isinstance(value, Mapping) and {"predictions", "eval_results"} <= set(value):
        pairs = zip(_leaves(value["predictions"]), _leaves(value["eval_results"]), strict=True)
        value = [{**given, **found} for given, found in pairs]
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _items(f"{name} {key}", inner)
        return
    assert isinstance(value, list), f"{name} is compared with nothing"
    for place, item in enumerate(value):
        yield from _item(f"{name} {place}", _flat(item))


def _leaves(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    else:
        yield from value


def _flat(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item with the parts of an inner result beside its own."""
    found: dict[str, Any] = {}
    for key, value in item.items():
        found.update(value if isinstance(value, Mapping) else {key: value})
    return found


def _item(name: str, item: Mapping[str, Any]) -> Compared:
    def part(names: Sequence[str]) -> str | None:
        return next((key for key in names if key in item), None)

    kind = name.lower().replace("-", "_") + " " + str(item.get("task", "")).replace("-", "_")
    reply, truth, cleaned = part(REPLY), part(TRUTH), part(CLEANED)
    assert reply, f"{name} has no reply among {', '.join(item)}"
    if cleaned or "gemini" in kind or "reka" in kind:
        key = cleaned or next(key for key in ("caption", "output", "expected") if key in item and key != reply)
        model = str(item.get("model") or ("gemini" if "gemini" in kind else "reka"))
        yield f"{name}: the caption", item[key], clean_caption(model, item[reply])
        return
    found: dict[str, object] = {}
    if "matching" in kind or "yes_no" in kind or "multi_choice" in kind or "mc" in kind.split():
        task = "caption_matching" if "matching" in kind else "yes_no" if "yes_no" in kind else "multi-choice"
        value = {"question": item.get("question", ""), "answer": item[truth or "answer"]}
        question = question_of(Item(task, "v", "action", 0, value), Book())
        verdict = TempCompass().judge(question, item[reply], "official")
        found |= dict.fromkeys(RATING, int(verdict.mark) if verdict.readable else 0)
        found |= dict.fromkeys(MATCH, verdict.readable)
        found |= dict.fromkeys(SAID, verdict.said or False)
        lines = value["question"].split("\n")[1:]
        labelled = task != "caption_matching" or all(": " in line for line in lines)
        found |= dict.fromkeys(("error", "raises"), None if labelled else "IndexError")
        fails = part(RATING)
        if fails and item[fails] == "fail":
            found[fails] = "fail" if not verdict.readable else int(verdict.mark)
        if fails and isinstance(item[fails], bool):
            found[fails] = bool(found[fails])
    elif truth is None:
        found |= dict.fromkeys(RATING, rating_of_verdict(item[reply]))
    else:
        told = parse_judge_reply(item[reply], item[truth])
        found |= dict.fromkeys(RATING, told.rating)
        found |= {"chatgpt-answer": told.answer, "chatgpt-reasoning": told.reasoning}
    inputs = {reply, truth, *TOLD, "video-llm-prediction"}
    compared = [key for key in item if key not in inputs]
    unknown = [key for key in compared if key not in found]
    assert not unknown, f"{unknown} of {name} are compared with nothing"
    assert compared, f"{name} has no result among {', '.join(item)}"
    for key in compared:
        yield f"{name}: {key} of {item[reply]!r}", item[key], found[key]
