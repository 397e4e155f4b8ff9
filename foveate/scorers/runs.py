"""Several runs in one folder of answers (models, numbers of frames, orders), each scored by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from .base import Answer, Question, Row


def apart(
    runs: Mapping[str, Sequence[Answer]], questions: dict[str, Question]
) -> tuple[list[Answer], dict[str, Question]]:
    """Answers of runs, and the questions that were put.

    One run: both as they are. Several: every question stands there once for each run that answered any of its task,
    with the run behind its id and as its group "run"; so a question counts as missing or repeated within a run.
    """
    if len(runs) < 2:
        return [answer for found in runs.values() for answer in found], questions
    answers: list[Answer] = []
    asked: dict[str, Question] = {}
    for run, found in runs.items():
        put: dict[int, Question] = {}  # by identity: the originals live in `questions` and `runs`
        tasks = {answer.question.task for answer in found}
        for question in questions.values():
            if question.task in tasks:
                own = put[id(question)] = _of(run, question)
                asked[own.id] = own
        for answer in found:
            question = put.get(id(answer.question)) or _of(run, answer.question)
            answers.append(Answer(question, answer.response, answer.file))
    return answers, asked


def by_run(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by their run; one run has no name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.answer.question.groups.get("run", ""), []).append(row)
    return found


def _of(run: str, question: Question) -> Question:
    return replace(question, id=f"{question.id} [{run}]", groups={**question.groups, "run": run})
