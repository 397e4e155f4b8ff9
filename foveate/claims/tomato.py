"""Claims of TOMATO (arXiv 2410.23266)."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

from ..scorers.baselines import blind
from ..scorers.tomato import Tomato
from ..scorers.tomato_diagnostics import (
    Item,
    audit,
    frame_information_disparity,
    frame_order_sensitivity,
    multi_frame_gain,
)
from . import Measurement, claim
from ._data import data_file, not_measured

#: Accuracies with one frame, with sixteen, with those shuffled, and the published ratios kappa and tau.
PUBLISHED = {
    ("VITATECS", "GPT-4o"): (70.0, 88.2, 85.7, 26.1, 2.9),
    ("MVBench", "GPT-4o"): (47.1, 62.3, 59.8, 32.3, 4.1),
    ("TempCompass", "GPT-4o"): (52.5, 71.5, 59.0, 36.2, 21.2),
    ("ReXTime", "Qwen2-VL"): (63.9, 81.7, 81.7, 27.8, 0.0),
    ("TOMATO", "GPT-4o"): (21.2, 37.7, 25.8, 78.0, 46.2),
    ("TOMATO", "Qwen2-VL"): (20.6, 37.9, 31.1, 84.0, 21.9),
}
#: Accuracies with one frame and with the best one that a person picked, and the published ratio rho.
PICKED = {
    "VITATECS": (70.0, 84.2, 20.4),
    "MVBench": (47.1, 59.8, 27.1),
    "TempCompass": (52.5, 64.5, 22.9),
    "ReXTime": (63.9, 85.6, 33.9),
    "TOMATO, 200 questions": (20.5, 21.5, 4.9),
}
FILE = "tomato/data/count.json"
QUESTIONS = 1484


def _questions() -> Tomato | None:
    file = data_file(FILE)
    return None if file is None else Tomato(file.parent)


@claim(
    "tomato",
    kind="exact",
    says="Three ratios (gain from many frames, sensitivity to order, disparity between frames) say how far a benchmark "
    "needs time; they reproduce the printed values.",
)
def ratios_are_the_printed_ones() -> Measurement:
    """Seen failing (66.7) with the difference of accuracies in place of their ratio, and with its inverse (38.4)."""
    off = [abs(multi_frame_gain(many, one) - kappa) for one, many, _, kappa, _ in PUBLISHED.values()]
    off += [abs(frame_order_sensitivity(many, shuffled) - tau) for _, many, shuffled, _, tau in PUBLISHED.values()]
    off += [abs(frame_information_disparity(best, one) - rho) for one, best, rho in PICKED.values()]
    return Measurement.at_most(max(off), 0.5, f"largest of {len(off)} deviations, from accuracies of one decimal")


@claim("tomato", kind="exact", says="It holds 1,484 questions in six tasks.")
def questions_are_those_published() -> Measurement:
    """Seen failing (1,414) with a task left out, and with ids that are unique in their file alone (403)."""
    suite = _questions()
    if suite is None:
        return not_measured(QUESTIONS, FILE, "the questions")
    held = len(suite.questions) == QUESTIONS and not suite.notes.sentences
    return Measurement(len(suite.questions), QUESTIONS, held, "questions with an id of their own, tasks as published")


@claim("tomato", kind="needs-pretrained", says="They are on 1,417 videos, 805 of them made for it.")
def videos_are_those_published() -> Measurement:
    """The files name 1,397 different videos; the published number may count more than they name."""
    return Measurement(
        math.nan, 1417, False, "not measured: it would take the videos, of which the annotations name 1,397"
    )


@claim("tomato", kind="exact", says="Guessing at random scores 19.91 % over all tasks.")
def a_guess_reaches() -> Measurement:
    """Seen failing (20.00) with five options for every question, and with the plain mean over tasks (20.76).

    Guessers with 200 seeds must reach it too, to three standard errors.
    """
    suite = _questions()
    if suite is None:
        return not_measured(19.91, FILE, "the questions")
    expected = blind(suite, suite.questions.values())["random"]["overall", "all"].value or 0.0
    draw, asked, reached = random.Random(0), list(suite.questions.values()), []
    for _ in range(200):
        right = sum(draw.random() * len(question.options) < 1 for question in asked)
        reached.append(100 * right / len(asked))
    mean = sum(reached) / len(reached)
    error = math.sqrt(sum((r - mean) ** 2 for r in reached)) / len(reached)
    held = round(expected, 2) == 19.91 and abs(mean - expected) <= 3 * error
    return Measurement(
        round(expected, 2), 19.91, held, f"per cent expected; 200 guessers: {mean:.2f}, standard error {error:.2f}"
    )


@claim("tomato", kind="exact", says="The best model is 57.3 points below people (37.9 against 95.2 %).")
def people_are_better() -> Measurement:
    """Seen failing (41.8) with the accuracy of people who see frames, 79.7.

    Averages over tasks, weighted by their questions, must come to the published overall figures.
    """
    weights = [Tomato.published[task] for task in ("rotation", "direction", "velocity&frequency", "shape&trend")]
    weights += [Tomato.published["visual_cues"], Tomato.published["count"]]
    people, best = (93.5, 95.4, 94.1, 100, 95.0, 93.6), (26.9, 38.2, 43.8, 36.3, 48.6, 42.8)
    over = [sum(w * a for w, a in zip(weights, by, strict=True)) / sum(weights) for by in (people, best)]
    gap = round(round(over[0], 1) - round(over[1], 1), 1)
    return Measurement(gap, 57.3, gap == 57.3, f"points, {over[0]:.2f} less {over[1]:.2f} from the six tasks")


@claim(
    "tomato",
    kind="learned",
    says="The ratios tell kinds of items apart: near 0 for what is static, and a sensitivity of at least 80 for pairs "
    "that differ in order alone.",
)
def ratios_tell_items_apart() -> Measurement:
    """Seen failing (0) with static items in place of those of order, and with frames that are not shuffled.

    A reader that names what it sees in a frame, and the direction of frames that are in order, else guesses.
    """
    guess = random.Random(0)

    def reader(question: str, frames: list[Any]) -> Any:
        if question == "what":
            return frames[0] // 1000
        steps = {after > before for before, after in itertools.pairwise(frames)}
        return steps.pop() if len(steps) == 1 else guess.random() < 0.5

    draw = random.Random(1)
    still, order = [], []
    for _ in range(1000):
        begin = draw.randrange(50) * 1000
        frames = range(begin, begin + draw.randrange(40, 400))
        still.append(Item("what", frames, begin // 1000))
        order += [Item("which way", frames, True), Item("which way", frames[::-1], False)]
    static, temporal = audit(reader, still).diagnosis, audit(reader, order).diagnosis
    tau, rho = static.frame_order_sensitivity, static.frame_information_disparity
    value = temporal.frame_order_sensitivity or 0.0
    held = value >= 80 and abs(tau or 0.0) <= 5 and abs(rho or 0.0) <= 5 and tau is not None and rho is not None
    return Measurement(
        value, 80, held, f"sensitivity of pairs in order, at least; of static items {tau:.1f}, disparity {rho:.1f}"
    )


@claim(
    "tomato",
    kind="learned",
    says="So they do with trained readers: a sensitivity of at least 80 where order alone tells, near 0 for what is "
    "static.",
)
def ratios_tell_trained_readers_apart() -> Measurement:
    """Seen failing (0) with a reader without order in place of the first.

    A recurrent network that has learned the order of two marks, and one of single frames that has learned an attribute.
    """
    from ._clips import conflicting, diagnosed, reading, train

    training, test = conflicting(4000, 0), conflicting(1000, 1)
    order = diagnosed(reading(train(training, "ordered", 400), "order"), test, "order")
    static = diagnosed(reading(train(training, "random", 200), "attribute"), test, "attribute")
    tau, still, rho = (
        order.frame_order_sensitivity,
        static.frame_order_sensitivity,
        static.frame_information_disparity,
    )
    detail = (
        f"sensitivity of items about order ({order.many:.1f} % in order, {order.shuffled:.1f} % shuffled), at least; "
        f"of static items {still:.1f}, disparity {rho:.1f} (within 5 of 0), 1,000 items each"
    )
    return Measurement(tau, 80.0, tau >= 80 and abs(still) <= 5 and abs(rho) <= 5, detail)


@claim(
    "tomato",
    kind="needs-pretrained",
    says="Earlier benchmarks can often be solved from one, few or shuffled frames.",
)
def earlier_benchmarks() -> Measurement:
    """Not run here: the ratios are, on accuracies that a model would have to give."""
    return Measurement(math.nan, 5, False, "not measured: it would take a video model and the videos of the benchmarks")


@claim(
    "tomato",
    kind="needs-pretrained",
    says="Models describe single frames correctly and still fail to read them as a sequence.",
)
def frames_are_not_joined() -> Measurement:
    """Not run here: a model's own descriptions of frames are needed."""
    return Measurement(math.nan, 1, False, "not measured: it would take a video model and TOMATO's videos")
