"""Blind baselines: what a guess and a constant answer reach in every figure, so that a score is seen for what it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from .base import Answer, Figure, Question, Row, Suite, Verdict


def blind(suite: Suite, questions: Iterable[Question]) -> dict[str, dict[tuple[str, str], Figure]]:
    """Figures of answers that never look at a video, by the baseline's name.

    "random": what a fair guess among the options is expected to reach. "majority": the answer that is right most
    often in a task, chosen with the answers at hand: no constant answer reaches more. Then the suite's own, such as
    "always yes". A figure with a question that a baseline has no answer to is NaN.
    """
    questions = list(questions)
    majority = _majority(questions)
    found = {"random": _chance, "majority": lambda q: _agrees(majority.get(q.task, ""), q)}
    names = dict.fromkeys(name for q in questions for name in suite.constant_answers(q))
    for name in names:
        found[name] = lambda q, name=name: _agrees(_label(suite.constant_answers(q).get(name, ""), q), q)
    return {name: _figures(suite, questions, mark) for name, mark in found.items()}


def _figures(
    suite: Suite, questions: Sequence[Question], mark: Callable[[Question], float]
) -> dict[tuple[str, str], Figure]:
    rows = [Row(Answer(question, None), Verdict(mark(question))) for question in questions]
    return {figure.key: figure for figure in suite.figures(rows)}


def _chance(question: Question) -> float:
    if question.kind == "yes_no":
        return 0.5
    return 1 / len(question.options) if question.kind == "choice" and question.options else math.nan


def _agrees(place: str, question: Question) -> float:
    return float(place == _label(question.answer, question)) if place else math.nan


def _label(answer: str, question: Question) -> str:
    """An answer by its place among the options: labels differ from question to question."""
    if question.kind == "choice" and answer:
        return next((str(place) for place, label in enumerate(question.options) if label == answer), "")
    return answer


def _majority(questions: Iterable[Question]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        label = _label(question.answer, question)
        if label and question.kind != "text":
            counts.setdefault(question.task, Counter())[label] += 1
    return {task: min(c, key=lambda label: (-c[label], label)) for task, c in counts.items()}
