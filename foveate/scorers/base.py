"""What a suite of questions about videos is: questions, answers, what a rule makes of an answer, and figures.

A suite reads questions and answers from the official files into :class:`Question` and :class:`Answer`; each of its
rules turns an answer into a :class:`Verdict`, and rows of verdicts into :class:`Figure` s, as its authors average them.
What is common to all suites works on these alone: intervals, comparisons, blind baselines, tables and pages.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

RULES = ("official", "strict")

#: What is asked for: an option's letter or label, yes or no, a number, or free text (which needs a judge).
Kind = Literal["choice", "yes_no", "number", "text"]

#: Decides what rules cannot read: (question's text, right answer, response) -> whether it is right, or a rating.
Judge = Callable[[str, str, str], float]


@dataclass(frozen=True, slots=True)
class Clip:
    """The part of a video that may be seen, in seconds; None: from its beginning, to its end."""

    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """How a suite's authors show a video to a model.

    Attributes:
        frames: how many, over the visible part; None: by ``fps``.
        fps: how many a second.
        rule: "ends": evenly from the first to the last, rounded down; "centres": the middles of equal parts.
        stream: whether a model sees no more than what has happened at the question's time.
    """

    frames: int | None = 16
    fps: float | None = None
    rule: Literal["ends", "centres"] = "ends"
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a video.

    Attributes:
        id: unique in its suite, made of what the official files have: ``"count/17"``.
        task: the suite's own name for what is asked; what files and the ``tasks`` option name.
        video: file below the folder of videos; also what belongs together when figures are resampled.
        question: as the annotation has it.
        truth: the right answer in the form that the official rule compares with (a letter, an option's line, "yes").
        kind: what is asked for.
        options: texts of the options by letter or label, in order; empty where there are none.
        answer: the letter or label of the right option, "yes" or "no", or the number in digits; "" where it is text.
        groups: names of the figures that it counts for, by dimension: ``{"aspect": "order"}``.
        clip: the part of the video that may be seen.
        extra: what else the annotation says.
    """

    id: str
    task: str
    video: str
    question: str
    truth: str
    kind: Kind
    options: Mapping[str, str] = field(default_factory=dict)
    answer: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    clip: Clip = Clip()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to a question.

    Attributes:
        question: as the annotations have it, or as the file of answers repeats it.
        response: as the file has it: text, null, or what should not be there.
        file: where it was read.
    """

    question: Question
    response: Any
    file: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule makes of an answer.

    Attributes:
        mark: 1 right, 0 wrong; what a judge or an official rule gives otherwise.
        readable: whether the rule found an answer in the response at all.
        said: the answer that it found, in the question's own letters.
    """

    mark: float
    readable: bool = True
    said: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An answer and its verdict by one rule; ``answer.response`` is None where nothing was answered.

    ``judged`` says that the mark is a judge's, for the rule read nothing.
    """

    answer: Answer
    verdict: Verdict
    missing: bool = False
    judged: bool = False


@dataclass(slots=True)
class Figure:
    """One number of a table.

    Attributes:
        section: which table: "overall", "task", "aspect".
        name: which line of it.
        marks: of its units, mostly one for each answer; a unit may be a product over the answers to a video.
        clusters: the video of each unit.
        parts: figures whose plain mean it is, instead of units.
        scale: 100 for per cent.
        digits: decimals that the official print-out has.
    """

    section: str
    name: str
    marks: list[float] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    parts: tuple[Figure, ...] = ()
    scale: float = 100.0
    digits: int = 2

    @property
    def total(self) -> int:
        """How many units it is the mean of; of a mean of figures, those of its parts."""
        return sum(part.total for part in self.parts) if self.parts else len(self.marks)

    @property
    def value(self) -> float | None:
        """The mean times the scale, unrounded; None where there is nothing to average."""
        if self.parts:
            values = [part.value for part in self.parts if part.value is not None]
            return sum(values) / len(values) if values else None
        return self.scale * sum(self.marks) / len(self.marks) if self.marks else None

    @property
    def text(self) -> str:
        """As it is printed; "-" where there is nothing."""
        return "-" if self.value is None or math.isnan(self.value) else f"{self.value:.{self.digits}f}"

    @property
    def key(self) -> tuple[str, str]:
        """Its section and name, which no other figure of a rule has."""
        return self.section, self.name


@dataclass(slots=True)
class Notes:
    """What is wrong with files, a sentence each with file and id; the rest is scored."""

    sentences: list[str] = field(default_factory=list)

    def add(self, file: str | Path, id: str, problem: str) -> None:
        """Put a problem on record."""
        self.sentences.append(f"{file}: {id + ': ' if id else ''}{problem}.")


class Share(Figure):
    """A figure that is divided first and scaled then, as some official scripts do: the last digits may differ."""

    __slots__ = ()

    @property
    def value(self) -> float | None:
        """The mean, times the scale."""
        return sum(self.marks) / len(self.marks) * self.scale if self.marks else None


class Suite(ABC):
    """A benchmark: registered as ``@register("scorer", slug)``.

    Attributes:
        sections: of its figures, in the order of tables; the first is "overall".
        published: the number of questions of each task in the authors' release, which readers check.
    """

    slug: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]
    published: ClassVar[Mapping[str, int]]
    #: What a model is shown, unless its user says otherwise.
    shown: ClassVar[Shown] = Shown()

    #: Questions of the annotations by id; empty where none are given and answers must bring their own.
    questions: dict[str, Question]
    notes: Notes

    @abstractmethod
    def answers(self, predictions: Path) -> list[Answer]:
        """Read a model's answers, a file or a folder, in every layout of the official release.

        What cannot be read of it (an unknown id, another shape) is noted and left out; the order is that of the files.

        Raises:
            InvalidValue: nothing of it can be read, or it needs annotations that were not given.
        """

    @abstractmethod
    def judge(self, question: Question, response: Any, rules: str) -> Verdict:
        """What a rule makes of one response; whatever it is, this returns."""

    @abstractmethod
    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """The suite's figures from verdicts, in the order of its tables, "overall" first.

        Marks may be probabilities: then figures are expectations.
        """

    @abstractmethod
    def prompt(self, question: Question, frames: int | None = None) -> str:
        """The text that its authors give to a model with the frames of the video."""

    def system_prompt(self, question: Question) -> str:
        """What is said before, as the system; "" for nothing."""
        return ""

    def constant_answers(self, question: Question) -> Mapping[str, str]:
        """What answers that never look say to this question, by the name of their baseline."""
        return {"always yes": "yes"} if question.kind == "yes_no" else {}

    def remarks(self, baselines: Mapping[str, Mapping[tuple[str, str], Figure]]) -> list[str]:
        """What else a reader of the figures must know, a sentence each, with what blind baselines reach."""
        return []

    def left_to_judge(self, row: Row) -> bool:
        """Whether the authors' scripts would ask a judge about this answer."""
        return False

    def ask_judge(self, judge: Judge, row: Row) -> float:
        """What a judge gives to an answer that is left to one."""
        question = row.answer.question
        return float(judge(question.question, question.truth, str(row.answer.response)))

    def official_text(self, rows: Sequence[Row]) -> str:
        """What the official script prints for these rows, letter by letter."""
        raise NotImplementedError


def by_group(rows: Iterable[Row], dimension: str) -> dict[str, list[Row]]:
    """Rows by the name that their questions have in a dimension; those without one are left out."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = row.answer.question.groups.get(dimension)
        if name is not None:
            found.setdefault(name, []).append(row)
    return found


def figure(section: str, name: str, rows: Iterable[Row], digits: int = 2) -> Figure:
    """The share of rows that are right."""
    rows = list(rows)
    return Figure(
        section,
        name,
        [row.verdict.mark for row in rows],
        [row.answer.question.video for row in rows],
        digits=digits,
    )
