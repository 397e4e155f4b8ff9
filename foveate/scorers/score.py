"""Scoring a model's answers: every rule's verdicts and figures, what is missing, and what no rule could read.

The official rules count what the authors' scripts count: every answer in the files, twice where it stands there twice.
The strict rules count each question of the annotations once: the first answer to it, and a wrong one where there is
none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InvalidValue, unknown_name
from .base import RULES, Answer, Figure, Judge, Row, Suite, Verdict
from .collecting import uncollected

__all__ = ["Judge", "Scored", "Scores", "first_answers", "score"]


@dataclass(slots=True)
class Scored:
    """A model's answers by one rule.

    Attributes:
        rules: "official" or "strict".
        rows: every counted answer with its verdict.
        figures: of the suite, by section and name.
    """

    rules: str
    rows: list[Row]
    figures: dict[tuple[str, str], Figure]

    @property
    def unreadable(self) -> int:
        """Answers in which the rule found none; questions without an answer are not among them."""
        return sum(not row.verdict.readable for row in self.rows if not row.missing)

    def first_rows(self) -> dict[str, Row]:
        """One row for each question by its id: its first answer, or that it has none."""
        found: dict[str, Row] = {}
        for row in self.rows:
            found.setdefault(row.answer.question.id, row)
        return found

    @property
    def overall(self) -> Figure:
        """The first figure of the suite's tables."""
        return next(iter(self.figures.values()))


@dataclass(slots=True)
class Scores:
    """What :func:`score` found.

    Attributes:
        suite: that was asked.
        predictions: where the answers lie.
        by_rules: one :class:`Scored` for each rule.
        answers: as they were read.
        missing: ids of questions without an answer, in tasks that have any.
        repeated: ids of questions with several answers.
        skipped: tasks of the suite without an answer.
        judged: how many answers a judge decided; needs_judge: how many it was not there for.
        notes: what was wrong with the files, a sentence each.
    """

    suite: Suite
    predictions: Path
    by_rules: dict[str, Scored]
    answers: list[Answer]
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    judged: int = 0
    needs_judge: int = 0
    notes: list[str] = field(default_factory=list)


@uncollected()
def score(suite: Suite, predictions: str | Path, *, rules: Sequence[str] = RULES, judge: Judge | None = None) -> Scores:
    """Score the answers of a model.

    Args:
        suite: with its annotations, if they are at hand: then questions without an answer are found.
        predictions: a file or folder in a layout of the suite, or JSON lines ``{"id": ..., "response": ...}``.
        rules: "official", "strict" or both, in the order wanted.
        judge: decides answers to questions of free text, and those that the official rule leaves to a judge; None:
            they are counted as the official scripts count them without one.

    Raises:
        UnknownName: a rule that there is not.
        InvalidValue: nothing can be read.
    """
    for name in rules:
        if name not in RULES:
            raise unknown_name("rules", name, RULES)
    answers = suite.answers(Path(predictions))
    if not answers:
        raise InvalidValue(f"{predictions}: has no answer to a question of {suite.slug}: give its predictions.")
    first = {answer.question.id: answer for answer in first_answers(answers)}
    answered = {answer.question.task for answer in answers}
    asked = {id: q for id, q in suite.questions.items() if q.task in answered}
    missing = [id for id in asked if id not in first]
    counts = Counter(answer.question.id for answer in answers)
    found = Scores(suite, Path(predictions), {}, answers, missing, [id for id, n in counts.items() if n > 1])
    found.skipped = sorted({q.task for q in suite.questions.values()} - answered)
    for name in rules:
        counted = answers if name == "official" else list(first.values())
        rows = [Row(answer, suite.judge(answer.question, answer.response, name)) for answer in counted]
        if judge is not None:
            rows = [_judged(row, suite, judge, found, name == rules[0]) for row in rows]
        elif name == rules[0]:
            found.needs_judge = sum(suite.left_to_judge(row) for row in rows)
        if name == "strict":
            rows += [Row(Answer(asked[id], None), Verdict(0.0, False), missing=True) for id in missing]
        figures = suite.figures(rows)
        found.by_rules[name] = Scored(name, rows, {figure.key: figure for figure in figures})
    found.notes = list(suite.notes.sentences)
    return found


def first_answers(answers: Iterable[Answer]) -> list[Answer]:
    """One answer for each question: the first."""
    found: dict[str, Answer] = {}
    for answer in answers:
        found.setdefault(answer.question.id, answer)
    return list(found.values())


def _judged(row: Row, suite: Suite, judge: Judge, found: Scores, count: bool) -> Row:
    if not suite.left_to_judge(row):
        return row
    mark = suite.ask_judge(judge, row)
    found.judged += count
    return Row(row.answer, Verdict(mark, True, row.verdict.said), judged=True)
