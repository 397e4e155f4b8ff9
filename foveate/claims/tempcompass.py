"""Claims of TempCompass (arXiv 2403.00476), most of them on its own files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from ..scorers.baselines import blind
from ..scorers.score import score
from ..scorers.tempcompass import PUBLISHED, TempCompass
from . import Measurement, claim
from ._data import data_file, not_measured

_FILE = "tempcompass/meta_info.json"
_WHAT = "TempCompass's questions and predictions, beside this file"
#: Printed average and share that rules read, without a judge, of predictions that the authors ship.
_RULES = {
    ("video-llava", "multi-choice"): ("45.6", "100.0"),
    ("video-llava", "yes_no"): ("56.4", None),
    ("video-llava", "caption_matching"): ("63.3", "99.5"),
    ("gemini", "multi-choice"): ("59.5", "92.3"),
    ("gemini", "yes_no"): ("70.2", None),
    ("gemini", "caption_matching"): ("77.3", None),
    ("reka-core-20240501", "multi-choice"): ("41.4", "67.0"),
    ("reka-core-20240501", "yes_no"): ("65.1", None),
    ("reka-core-20240501", "caption_matching"): ("41.3", "56.7"),
}
#: Printed average of ratings that they store.
_STORED = {
    ("video-llava", "captioning"): ("34.8", None),
    ("gemini", "captioning"): ("57.9", None),
    ("gemini", "multi-choice"): ("63.9", "92.3"),
    ("reka-core-20240501", "captioning"): ("58.5", None),
}
#: What a guess is expected to get in multi-choice.
_GUESS = {"avg": 29.84, "action": 28.87, "direction": 27.74, "speed": 32.07, "order": 32.15, "attribute_change": 28.53}


@claim(
    "tempcompass",
    kind="exact",
    says="Five aspects are asked in four formats: 1,580, 2,453, 1,503 and 2,004 items on 410 videos.",
)
def items_of_the_release() -> Measurement:
    """By format and aspect. Seen failing (5,536) with the last item of every list left out."""
    file = data_file(_FILE)
    if file is None:
        return not_measured(7540, _FILE, _WHAT)
    questions = TempCompass(file.parent).questions.values()
    counts = {task: dict.fromkeys(aspects, 0) for task, aspects in PUBLISHED.items()}
    for question in questions:
        counts[question.task][question.groups["aspect"]] += 1
    videos = len({question.video for question in questions})
    passed = counts == PUBLISHED and videos == 410
    return Measurement(len(questions), 7540, passed, f"items, {videos} videos; every format and aspect as published")


def _printed(file: Path, kind: str) -> Iterator[tuple[str, str]]:
    """(printed, ours) for every figure of the official print-outs that lie beside the annotations."""
    known = file.parent / "example" / "official_scores.json"
    if not known.is_file():
        return
    for case in json.loads(known.read_text(encoding="utf-8"))[kind]:
        given = case.get("predictions_file") or case["file"]
        path = file.parent / given.split("tempcompass/", 1)[1]
        suite = TempCompass(file.parent)
        text = suite.official_text(score(suite, path, rules=("official",)).by_rules["official"].rows)
        aspects, fine, rate = case["printed"].values()
        for line, ours in zip((aspects, fine, rate), text.splitlines()[1:], strict=True):
            yield (f"Match Success Rate={line}" if line is rate else str(line)), ours


def _differing(file: Path, kind: str) -> tuple[int, int]:
    """How many printed lines and averages differ, and how many there are."""
    pairs = list(_printed(file, kind))
    folder, known = ("predictions", _RULES) if kind == "rule_based" else ("auto_eval_results", _STORED)
    for (model, task), (average, rate) in known.items():
        path = file.parent / folder / model / f"{task}.json"
        if path.is_file():
            figures = score(TempCompass(file.parent), path, rules=("official",)).by_rules["official"].figures
            pairs.append((average, figures["overall", "avg"].text))
            if rate is not None:
                pairs.append((rate, figures["match rate", "all"].text))
    return sum(theirs != ours for theirs, ours in pairs), len(pairs)


@claim(
    "tempcompass",
    kind="exact",
    says="Rules read answers in three formats, and give the official scores of shipped answers to the last digit.",
)
def rules_give_the_printed_scores() -> Measurement:
    """Without a judge. Seen failing (1 of 18) with the blanks around replies kept."""
    file = data_file(_FILE)
    if file is None:
        return not_measured(0, _FILE, _WHAT)
    wrong, lines = _differing(file, "rule_based")
    return Measurement(wrong, 0, wrong == 0 and lines > 0, f"of {lines} printed lines and averages that differ")


@claim(
    "tempcompass",
    kind="exact",
    says="A language model can judge the rest: its stored ratings add up to the official scores.",
)
def stored_ratings_add_up() -> Measurement:
    """Seen failing with null replies left out of the average (3 of 7), and with rules in place of ratings (6)."""
    file = data_file(_FILE)
    if file is None:
        return not_measured(0, _FILE, _WHAT)
    wrong, lines = _differing(file, "cached_ratings")
    return Measurement(wrong, 0, wrong == 0 and lines > 0, f"of {lines} printed lines and averages that differ")


@claim("tempcompass", kind="exact", says="Guessing scores 29.84 % in multi-choice over all aspects.")
def guessing() -> Measurement:
    """All aspects to two decimals. Seen failing (25.00) with four options everywhere."""
    file = data_file(_FILE)
    if file is None:
        return not_measured(29.84, _FILE, _WHAT)
    suite = TempCompass(file.parent, tasks=["multi-choice"])
    figures = blind(suite, suite.questions.values())["random"]
    values = {name: figures["overall" if name == "avg" else "aspect", name].value or math.nan for name in _GUESS}
    passed = all(abs(values[name] - value) < 0.005 for name, value in _GUESS.items())
    return Measurement(values["avg"], 29.84, passed, "per cent; each of the five aspects as published")


@claim(
    "tempcompass",
    kind="learned",
    says="Conflicting clips defeat single frames and priors of language: a reader without order is at chance for "
    "direction and order, though it reads what is static.",
)
def conflicting_clips_defeat_single_frames() -> Measurement:
    """Seen failing (50) with squares that begin at one side and no reverse, and with the readers' sights exchanged.

    Readers of one frame, of all frames without order, and of frames in order, on a moving square and its reverse.
    """
    from ._clips import Sight, conflicting, reached

    steps: dict[Sight, int] = {"random": 200, "middle": 200, "unordered": 120, "ordered": 400}
    found = reached(conflicting(4000, 0), conflicting(400, 1), steps)
    temporal = ("direction", "order")
    worst = max(abs(found[sight][q] - 50) for sight in steps if sight != "ordered" for q in temporal)
    seen = min(found["ordered"][q] for q in temporal)
    static = min(each["attribute"] for each in found.values())
    detail = (
        f"points off 50 % in direction and order without order, at the most; with order at least {seen:.1f} %, the "
        f"static attribute at least {static:.1f} % (95 each are needed), 400 clips"
    )
    return Measurement(worst, 5.0, worst <= 5 and seen >= 95 and static >= 95, detail)


@claim(
    "tempcompass",
    kind="needs-pretrained",
    says="Eight video and three image language models of the time perceive time poorly.",
)
def models_perceive_time_poorly() -> Measurement:
    """Not run here: it takes the videos and the models."""
    return Measurement(math.nan, 0.0, False, "not measured: it would take the 410 videos and pretrained models")
