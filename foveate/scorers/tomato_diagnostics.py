"""How temporal a benchmark is (TOMATO, arXiv 2410.23266): three ratios of accuracies, and an audit that measures them.

With a model's accuracies on many frames, the same frames shuffled, one frame, and the best single frame:

    Multi-Frame Gain              kappa = 100 (many / one - 1)
    Frame Order Sensitivity       tau   = 100 (many / shuffled - 1)
    Frame Information Disparity   rho   = 100 (best one / one - 1)

High kappa, high tau and low rho speak for a benchmark that needs time; the formulas were recovered from the published
tables. They mix model and data: a model that cannot use order makes any benchmark look as if it had none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidValue, invalid
from .score import Scores


def multi_frame_gain(many: float, one: float, *, infinite: bool = False) -> float:
    """Per cent by which many frames are better than one; also against the best single frame.

    Args:
        many: accuracy with many frames.
        one: accuracy with one, in the same unit.
        infinite: return infinity where ``one`` is 0.

    Raises:
        InvalidValue: ``one`` is 0, or an accuracy is negative or no number.
    """
    return _ratio("one", many, one, infinite)


def frame_order_sensitivity(many: float, shuffled: float, *, infinite: bool = False) -> float:
    """Per cent by which frames in order are better than shuffled ones; see :func:`multi_frame_gain`."""
    return _ratio("shuffled", many, shuffled, infinite)


def frame_information_disparity(best: float, one: float, *, infinite: bool = False) -> float:
    """Per cent by which the best single frame is better than any one; see :func:`multi_frame_gain`."""
    return _ratio("one", best, one, infinite)


def _ratio(name: str, over: float, under: float, infinite: bool) -> float:
    for value in (over, under):
        if not value >= 0 or math.isinf(value):
            raise invalid("accuracy", value, "give 0 or more")
    if under == 0:
        if infinite:
            return math.inf
        raise invalid(name, under, "a ratio to 0 has no value; infinite=True returns infinity")
    return (over / under - 1) * 100


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Accuracies of a model in per cent, and the ratios between them; None where one is unknown or divides by 0.

    Attributes:
        many, one: with many frames and with one.
        shuffled: with many in another order.
        best: with the best single frame of each video.
        questions: how many each accuracy is of.
    """

    many: float
    one: float
    shuffled: float | None = None
    best: float | None = None
    questions: int = 0

    @property
    def multi_frame_gain(self) -> float | None:
        """Kappa."""
        return _known(multi_frame_gain, self.many, self.one)

    @property
    def gain_over_best(self) -> float | None:
        """Kappa against the best single frame."""
        return _known(multi_frame_gain, self.many, self.best)

    @property
    def frame_order_sensitivity(self) -> float | None:
        """Tau."""
        return _known(frame_order_sensitivity, self.many, self.shuffled)

    @property
    def frame_information_disparity(self) -> float | None:
        """Rho."""
        return _known(frame_information_disparity, self.best, self.one)

    @property
    def record(self) -> dict[str, float | None]:
        """Accuracies and ratios by name, as JSON can hold them."""
        names = ("questions", "many", "one", "shuffled", "best", *RATIOS)
        return {name: getattr(self, name) for name in names}


RATIOS = ("multi_frame_gain", "gain_over_best", "frame_order_sensitivity", "frame_information_disparity")


def _known(ratio: Callable[[float, float], float], over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else ratio(over, under)


def average(models: Iterable[Diagnosis]) -> dict[str, float | None]:
    """The published "Average" row: every ratio's mean over the models that have it, not the ratio of means."""
    models = list(models)
    found: dict[str, float | None] = {}
    for name in RATIOS:
        values = [value for model in models if (value := getattr(model, name)) is not None]
        found[name] = sum(values) / len(values) if values else None
    return found


def diagnose(
    single: Scores, many: Scores, shuffled: Scores | None = None, best_single: Scores | None = None
) -> dict[str, dict[str, Diagnosis]]:
    """The ratios of a model from its answers under several conditions, of any suite.

    All accuracies of a diagnosis are of the same questions: those that every condition has.

    Args:
        single: answers with one frame.
        many: with many.
        shuffled: with the same many in another order.
        best_single: with the best single frame of each video.

    Returns:
        by rule, then by task, "all" first.

    Raises:
        InvalidValue: the conditions have no question, or no rule, in common.
    """
    given = [scores for scores in (many, single, shuffled, best_single) if scores is not None]
    rules = [rule for rule in many.by_rules if all(rule in scores.by_rules for scores in given)]
    if not rules:
        raise InvalidValue("the conditions are scored by different rules: score all of them by the same.")
    found: dict[str, dict[str, Diagnosis]] = {}
    for rule in rules:
        rows = [scores.by_rules[rule].first_rows() for scores in given]
        both = [id for id in rows[0] if all(id in own for own in rows)]
        if not both:
            files = ", ".join(str(scores.predictions) for scores in given)
            raise InvalidValue(f"{files}: answer no question in common: give one run of each condition.")
        tasks: dict[str, list[str]] = {"all": both}
        for id in both:
            tasks.setdefault(rows[0][id].answer.question.task, []).append(id)
        found[rule] = {}
        for task, ids in tasks.items():
            right = iter([100 * sum(own[id].verdict.mark for id in ids) / len(ids) for own in rows])
            accuracies = [None if scores is None else next(right) for scores in (many, single, shuffled, best_single)]
            found[rule][task] = Diagnosis(*accuracies, questions=len(ids))  # type: ignore[arg-type]
    return found


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark that is audited.

    Attributes:
        question: whatever the answering function understands.
        frames: all frames of its video, in order: pictures, indices, or anything else.
        truth: the right answer.
        best: place in ``frames`` of the one that a person picked as the most telling; None: nobody did.
    """

    question: Any
    frames: Sequence[Any]
    truth: Any
    best: int | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """What :func:`audit` found.

    Attributes:
        diagnosis: accuracies and ratios.
        by_frame: accuracy with the k-th of the sampled frames alone, in per cent.
        calls: how often the answering function was called.
    """

    diagnosis: Diagnosis
    by_frame: tuple[float, ...]
    calls: int


def audit(
    answer_fn: Callable[[Any, list[Any]], Any], items: Sequence[Item], num_frames: int = 16, seed: int = 0
) -> Audit:
    """Ask a benchmark's questions with many frames, with them shuffled, and with every single one of them.

    Frames are the truncated places of an even division, as the authors take them. Accuracy with one frame is the mean
    over all single ones, which is what a frame at random is expected to reach. The best single frame is the one that
    a person picked (:attr:`Item.best`); where nobody did, an item is right if any of its single frames is, an upper
    bound that guesses raise as well.

    Args:
        answer_fn: called as ``answer_fn(question, frames)``; right is what equals an item's truth.
        items: the questions.
        num_frames: how many frames are "many"; shorter videos repeat frames, each of which is asked alone.
        seed: of the shuffling, one order for each item, never the right one unless all frames are the same.

    Raises:
        InvalidValue: no items, an item without frames, ``num_frames`` below 2.
    """
    if num_frames < 2:
        raise invalid("num_frames", num_frames, "give at least 2, one frame is a condition of its own")
    if not items:
        raise invalid("items", [], "give at least one")
    import numpy as np

    calls = many = shuffled = best = 0
    alone = [0] * num_frames
    for number, item in enumerate(items):
        if not item.frames:
            raise InvalidValue(f"item {number} has no frames: leave it out or give its video.")

        def right(frames: list[Any], item: Item = item) -> bool:
            return bool(answer_fn(item.question, frames) == item.truth)

        places = np.linspace(0, len(item.frames) - 1, num_frames, dtype=int).tolist()
        many += right([item.frames[place] for place in places])
        shuffled += right([item.frames[place] for place in _shuffled(places, random.Random(f"{seed}/{number}"))])
        single = [right([item.frames[place]]) for place in places]
        alone = [sum(pair) for pair in zip(alone, single, strict=True)]
        best += any(single) if item.best is None else right([item.frames[item.best]])
        calls += num_frames + 2 + (item.best is not None)
    share = 100 / len(items)
    one = share * sum(alone) / num_frames
    diagnosis = Diagnosis(share * many, one, share * shuffled, share * best, len(items))
    return Audit(diagnosis, tuple(share * count for count in alone), calls)


def _shuffled(places: list[int], draw: random.Random) -> list[int]:
    """Places in another order."""
    found = list(places)
    while len(set(places)) > 1 and found == places:
        draw.shuffle(found)
    return found
