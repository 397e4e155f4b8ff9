"""Blind baselines: what a guess and a constant answer reach in every figure, so that a score is seen for what it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from .base import Answer, Figure, Question, Row, Suite, Verdict


def blind(suite: Suite, questions: Iterable[Question]) -> dict[str, dict[tuple[str, str], Figure]]:
    """Figures of answers that never look at a video, by the baseline's name.

    "random": what a fair guess among the options is expected to reach. "majority": the answer that is right most
    often in a task, chosen with the answers at hand: no constant answer reaches more. Then the suite's own, such as
    "always yes". A figure with a question that a baseline has no answer to is NaN.
    """
    questions = list(questions)
    labels = [_label(question.answer, question) for question in questions]
    majority = _majority(questions, labels)
    constants = [suite.constant_answers(question) for question in questions]
    found = {
        "random": [_chance(question) for question in questions],
        "majority": [_agrees(majority.get(q.task, ""), label) for q, label in zip(questions, labels, strict=True)],
    }
    for name in dict.fromkeys(name for given in constants for name in given):
        asked = zip(questions, labels, constants, strict=True)
        found[name] = [_agrees(_label(given.get(name, ""), q), label) for q, label, given in asked]
    answers = [Answer(question, None) for question in questions]
    return {name: _figures(suite, answers, marks) for name, marks in found.items()}


def _figures(suite: Suite, answers: Sequence[Answer], marks: Sequence[float]) -> dict[tuple[str, str], Figure]:
    verdicts = {mark: Verdict(mark) for mark in set(marks)}
    rows = [Row(answer, verdicts[mark]) for answer, mark in zip(answers, marks, strict=True)]
    return {figure.key: figure for figure in suite.figures(rows)}


def _chance(question: Question) -> float:
    if question.kind == "yes_no":
        return 0.5
    return 1 / len(question.options) if question.kind == "choice" and question.options else math.nan


def _agrees(place: str, label: str) -> float:
    return float(place == label) if place else math.nan


def _label(answer: str, question: Question) -> str:
    """An answer by its place among the options: labels differ from question to question."""
    if question.kind == "choice" and answer:
        return next((str(place) for place, label in enumerate(question.options) if label == answer), "")
    return answer


def _majority(questions: Sequence[Question], labels: Sequence[str]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {}
    for question, label in zip(questions, labels, strict=True):
        if label and question.kind != "text":
            if question.task not in counts:
                counts[question.task] = Counter()
            counts[question.task][label] += 1
    return {task: min(c, key=lambda label: (-c[label], label)) for task, c in counts.items()}
