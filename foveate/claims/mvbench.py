"""Claims of MVBench (arXiv 2311.17005) about its tasks, its rule and its frames."""

from __future__ import annotations

import json
import math
import random
import tempfile
from pathlib import Path

from ..scorers.mvbench import TASKS, MVBench, stem
from ..scorers.mvbench_rules import check_answer, frame_indices
from ..scorers.score import score
from . import Measurement, claim

#: The printed scores of VideoChat2 (Vicuna), task by task.
_PRINTED = {
    "AS": 66.0, "AP": 47.5, "AA": 83.5, "FA": 49.5, "UA": 60.0, "OE": 58.0, "OI": 71.5, "OS": 42.5, "MD": 23.0,
    "AL": 23.0, "ST": 88.5, "AC": 39.0, "MC": 42.0, "MA": 58.5, "SC": 44.0, "FP": 49.0, "CO": 36.5, "EN": 35.0,
    "ER": 40.5, "CI": 65.5,
}  # fmt: skip


@claim(
    "mvbench",
    kind="exact",
    says="It covers 20 tasks, each derived from a static one; VideoChat2's printed scores average to 51.15.",
)
def printed_scores_average() -> Measurement:
    """Result files with as many right answers as printed, scored. Seen failing (100) with first characters compared."""
    content = {"acc_dict": {}, "res_list": []}
    for task, told in TASKS.items():
        right = round(2 * _PRINTED[told[0]])
        content["acc_dict"][task] = [right, 200]
        replies = ["(B) it"] * right + ["(C) it"] * (200 - right)
        content["res_list"] += [{"pred": pred, "gt": "(B) it"} for pred in replies]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        file.write_text(json.dumps(content))
        figures = score(MVBench(), file, rules=("official",)).by_rules["official"].figures
    wrong = sum(abs((figures["task", task].value or 0) - _PRINTED[told[0]]) > 1e-9 for task, told in TASKS.items())
    value = figures["overall", "Avg"].value or math.nan
    passed = wrong == 0 and abs(value - 51.15) < 1e-9 and len(_PRINTED) == len(TASKS) == 20
    return Measurement(value, 51.15, passed, f"per cent over 4,000 answers; {wrong} of 20 tasks differ")


@claim(
    "mvbench",
    kind="exact",
    says="Scoring is fair and needs no judge: exchanging options along with replies leaves every score as it is.",
)
def order_of_options_does_not_matter() -> Measurement:
    """Ten orders of 200 questions, four rules. Seen failing (4 scores) with replies that keep their letter."""
    draw, scores = random.Random(0), []
    texts = [[f"thing {draw.random():.6f}" for _ in range(4)] for _ in range(200)]
    said = [draw.randrange(4) for _ in texts]
    for _ in range(10):
        order = draw.sample(range(4), 4)
        items = [
            {"video": "v", "question": "Which?", "candidates": [text[place] for place in order], "answer": text[0]}
            for text in texts
        ]
        replies = [f"({chr(65 + order.index(place))}) {text[place]}" for text, place in zip(texts, said, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / f"{stem('Action Antonym')}.json").write_text(json.dumps(items))
            truths = [question.truth for question in MVBench(folder).questions.values()]
            file = Path(folder) / "result.json"
            rows = [{"pred": pred, "gt": gt} for pred, gt in zip(replies, truths, strict=True)]
            file.write_text(json.dumps(rows))
            for rule in ("v1", "hd", "lmms-eval"):
                by_rules = score(MVBench(folder, rule=rule), file).by_rules.values()
                scores += [scored.overall.value for scored in by_rules]
    right = said.count(0) / len(said) * 100
    passed = set(scores) == {right}
    return Measurement(len(set(scores)), 1, passed, f"different scores, all of them should be {right:g} %")


@claim(
    "mvbench",
    kind="exact",
    says="The published match rule also accepts a lone bracket or an empty reply; a strict rule does not.",
)
def lone_brackets() -> Measurement:
    """Seen failing (20) with a strict rule that takes what is a part of the truth."""
    replies = ("(", ")", "", ".", " ", " (E) another one")
    truths = [f"({letter}) thing" for letter in "ABCD"]
    found = {
        rule: sum(check_answer(reply, truth, rule) for reply in replies for truth in truths)
        for rule in ("v1", "hd", "strict")
    }
    every = len(replies) * len(truths)
    passed = found == {"v1": every, "hd": 0, "strict": 0}
    detail = f"of {every} such replies right by the strict rule; {found['v1']} by the published one"
    return Measurement(found["strict"], 0, passed, detail)


@claim("mvbench", kind="exact", says="Frames are the middles of equal segments of the clip or of its bounded part.")
def frames_are_middles() -> Measurement:
    """2,000 clips and parts, 1 to 32 frames. Seen failing (932) with the beginnings, and with the ends, of segments."""
    draw, worst = random.Random(0), 0.0
    for _ in range(2_000):
        fps, frames, count = draw.choice((3, 23.976, 25.0, 30.0)), draw.randint(1, 2_000), draw.randint(1, 32)
        first = draw.randint(0, 1)
        last = frames - 1 + first
        start = draw.uniform(0, 0.8 * last / fps)
        bound = draw.choice((None, (start, start + draw.uniform(0.01, 40.0))))
        found = frame_indices(bound, fps, last, count, first)
        begin, end = (first, last) if bound is None else (max(first, round(bound[0] * fps)), round(bound[1] * fps))
        end = min(end, last)
        middles = [begin + (place + 0.5) * (end - begin) / count for place in range(count)]
        inside = begin <= min(found) and max(found) <= end and found == sorted(found)
        errors = (abs(index - middle) for index, middle in zip(found, middles, strict=True))
        worst = max(worst, *errors) if inside else math.inf
    return Measurement.at_most(
        worst, 1.5, "frames from the exact middle, at most (two are rounded); none outside of the part"
    )


@claim(
    "mvbench",
    kind="learned",
    says="Its tasks cannot be solved well from a single frame: a reader of one frame stays at chance where a reader of "
    "many succeeds.",
)
def one_frame_does_not_answer() -> Measurement:
    """Seen failing (75) with squares that pale as they jump, and (41) with squares that begin at one side, unreversed.

    A reader of one frame and a reader of all, on clips of two orders, four directions, and one to four jumps.
    """
    from ._clips import Clips, Sight, conflicting, counting, reached

    steps: dict[Sight, int] = {"random": 200, "ordered": 450}
    found: dict[str, tuple[float, float, int]] = {}
    pairs: list[tuple[Clips, Clips, tuple[str, ...]]] = [
        (conflicting(4000, 0, 4), conflicting(400, 1, 4), ("order", "direction")),
        (counting(4000, 0), counting(400, 1), ("count",)),
    ]
    for training, test, questions in pairs:
        scores = reached(training, test, steps)
        found |= {q: (scores["random"][q], scores["ordered"][q], test.classes[q]) for q in questions}
    worst = max(abs(one - 100 / classes) for one, _, classes in found.values())
    told = ", ".join(f"{q} {one:.1f} against {many:.1f} %" for q, (one, many, _) in found.items())
    passed = worst <= 5 and min(many for _, many, _ in found.values()) >= 90
    return Measurement(worst, 5.0, passed, f"points off chance with one frame, at the most; {told} (90 are needed)")


@claim(
    "mvbench",
    kind="needs-pretrained",
    says="Its baseline VideoChat2 beats the leading models by more than 15 points, with 51.1 % on average.",
)
def videochat2() -> Measurement:
    """Not run here: it takes the videos and the weights."""
    return Measurement(
        math.nan, 51.1, False, "not measured: it would take the 4,000 clips and VideoChat2's weights with a 7B model"
    )
