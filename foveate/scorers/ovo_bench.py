"""OVO-Bench (arXiv 2501.05510): questions that each carry the moment when they are asked, in three scenarios.

Backward tracing looks back, real-time perception asks what is happening now, and forward active responding asks the
same again and again until there is enough evidence. What may be seen is the video up to the end of the second in which
it is asked: :attr:`~foveate.scorers.base.Question.clip`.

The official rules: a letter is right wherever it occurs in the reply, a count is the reply's digits in a row, and "No"
is found in "Not sure". A task's figure is the share of its questions, a scenario's the mean of its tasks, the total
the mean of the three scenarios. Beside them stand figures of timeliness, which are a definition of ours
(:mod:`~foveate.scorers.ovo_bench_timeliness`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..errors import InvalidValue, unknown_name
from ..registry import register
from .base import Answer, Figure, Notes, Question, Row, Shown, Suite, Verdict, by_group, figure
from .collecting import uncollected
from .letters import read_choice, read_number, read_yes_no, text_of
from .ovo_bench_published import PUBLISHED, not_above
from .ovo_bench_reading import SCENARIOS, TASKS, Reader, Tally, read_annotations
from .ovo_bench_timeliness import timeliness
from .reading import files_of

#: How figures and the official print-out call a scenario.
_NAMES = {"backward": "Backward", "realtime": "Realtime", "forward": "Forward"}
_HEADINGS = {
    "backward": "Evaluate Backward Tracing...",
    "realtime": "Evaluate Real-time Visual Perception...",
    "forward": "Evaluate Forward Active Responding...",
}
_LETTERS = {letter: letter for letter in "ABCDE"}
_DIGITS = re.compile(r"\d+")
_UNABLE = "unable to answer"


class Scenario(Figure):
    """The mean of a scenario's tasks, added up in the official order: shares first, per cent last."""

    __slots__ = ()

    @property
    def value(self) -> float | None:
        """100 times the mean of shares; None without any."""
        shares = [sum(part.marks) / len(part.marks) for part in self.parts if part.marks]
        return self.scale * sum(shares) / len(shares) if shares else None


class Total(Figure):
    """The mean of the three scenarios; the official script has none where one of them is missing."""

    __slots__ = ()

    @property
    def value(self) -> float | None:
        """The mean; None unless there are all three."""
        values = [part.value for part in self.parts if part.value is not None]
        return sum(values) / len(SCENARIOS) if len(values) == len(SCENARIOS) else None


@register("scorer", "ovo_bench")
class OVOBench(Suite):
    """OVO-Bench: 3,035 questions on 644 videos that run, in 12 tasks of three scenarios.

    Ids are ``TASK/id`` and, in forward tasks, ``TASK/id/index`` with the place in ``test_info``.

    Args:
        annotations: ``ovo_bench_new.json``, or a folder that has it; None: result files bring their own truth, but
            not the options, so that strict rules read letters alone.
        tasks: some of EPM, ASI, HLD, OCR, ACR, ATR, STU, FPD, OJR, REC, SSR, CRR; None: all.

    Raises:
        UnknownName: a task that there is not.
        InvalidValue: the annotations cannot be read.
    """

    slug: ClassVar[str] = "ovo_bench"
    sections: ClassVar[tuple[str, ...]] = ("overall", "scenario", "task", "timeliness")
    published: ClassVar[Mapping[str, int]] = {
        "EPM": 297, "ASI": 148, "HLD": 186, "OCR": 149, "ACR": 109, "ATR": 116, "STU": 178, "FPD": 101, "OJR": 184,
        "REC": 698, "SSR": 629, "CRR": 240,
    }  # fmt: skip
    shown: ClassVar[Shown] = Shown(64, stream=True)

    @uncollected()
    def __init__(self, annotations: str | Path | None = None, *, tasks: Sequence[str] | None = None) -> None:
        for task in tasks or ():
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
        self.tasks = frozenset(TASKS if tasks is None else tasks)
        self.notes = Notes()
        self.questions = {}
        if annotations is not None:
            found = read_annotations(Path(annotations), self.notes)
            self.questions = {id: question for id, question in found.items() if question.task in self.tasks}
            self._check_counts(Path(annotations), found.values())
        self._all = found if annotations is not None else {}
        self._about_annotations = list(self.notes.sentences)

    def answers(self, predictions: Path) -> list[Answer]:
        """Read a result file, the folder of a model's result files, or JSON lines."""
        self.notes.sentences = list(self._about_annotations)
        files = files_of(predictions, ".json", ".jsonl")
        if predictions.is_dir():
            files = [file for file in files if file.parent == predictions]
            if not files:
                raise InvalidValue(f"{predictions}: has folders but no .json file: give the folder of one model.")
        answers: list[Answer] = []
        reader = Reader(self._all, self.tasks, self.notes)
        for file in files:
            try:
                answers += reader.own(file) if file.suffix == ".jsonl" else reader.results(file)
            except InvalidValue as error:
                if len(files) == 1:
                    raise
                self.notes.sentences.append(f"{str(error).rstrip('.')}: left out.")
        self._check_answers(predictions, answers)
        return answers

    def judge(self, question: Question, response: Any, rules: str) -> Verdict:
        """By the official rule of the question's kind, or by whole answers; a truth of the file binds the former."""
        if rules == "official":
            return _official(question, response)
        text = text_of(response)
        if text is None:
            return Verdict(0.0, False)
        if question.kind == "choice":
            said = text if text in _LETTERS else read_choice(text, question.options or _LETTERS)
        elif question.kind == "number":
            said = read_number(text)
        else:
            said = {"Y": "yes", "N": "no"}.get(text) or read_yes_no(text)
        return Verdict(float(said == question.answer), bool(said), said)

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """The total, the scenarios, the tasks, and how timely forward answers come."""
        scenarios, tasks = [], []
        found = by_group(rows, "scenario")
        for name in SCENARIOS:
            parts = _tasks(name, found.get(name, ()))
            scenarios.append(Scenario("scenario", _NAMES[name], parts=tuple(parts)))
            tasks += sorted(parts, key=lambda part: list(TASKS).index(part.name))
        there = [scenario for scenario in scenarios if scenario.parts]
        return [Total("overall", "Total", parts=tuple(scenarios)), *there, *tasks, *timeliness(rows)]

    def prompt(self, question: Question, frames: int | None = None) -> str:
        """What is asked, as the sheet gives it; a question without its options cannot be asked."""
        if question.kind == "choice":
            if not question.options:
                raise InvalidValue(f"{question.id} has no options to choose from: give the annotations.")
            options = " ".join(f"{letter}. {text};" for letter, text in question.options.items())
            return (
                f"Question: {question.question}\nOptions:\n{options}\n\n"
                "Answer with the letter of the right option alone, such as A, B or C, and nothing else."
            )
        if question.kind == "number":
            return (
                "In this video people may do something several times. Count how many times different people have done "
                f"it in total, where only complete repetitions count.\n{question.question}\n"
                "Answer with a single number, such as 0, 1, 2 or 3, and nothing else."
            )
        if question.task == "SSR":
            return (
                f"This video is a tutorial with several steps. One of its steps is:\n{question.question}\n"
                "Is the person in the video performing this step right now?\n"
                "Answer only Yes or No, and nothing else."
            )
        return (
            f"Here is a question about the end of this video:\n{question.question}\n"
            "Does what can be seen, above all in the latest frames, suffice to answer it?\n"
            "Answer only Yes or No, and nothing else."
        )

    def constant_answers(self, question: Question) -> Mapping[str, str]:
        """ "always yes", and "unable" where one of the options says so."""
        if question.kind != "choice":
            return super().constant_answers(question)
        unable = [letter for letter, text in question.options.items() if text.strip(" .").lower() == _UNABLE]
        return {"unable": unable[0]} if unable else {}

    def remarks(self, baselines: Mapping[str, Mapping[tuple[str, str], Figure]]) -> list[str]:
        """Which published systems do no better than a constant answer, where the questions are those they had."""
        told, everything = [], sum(self.published.values())
        for baseline, what, names in (
            ("always yes", "Always saying yes", ("SSR", "CRR")),
            ("majority", "The best constant answer to each task", ("Total",)),
        ):
            found = [f for (section, name), f in baselines.get(baseline, {}).items() if section != "timeliness"]
            alike = [f for f in found if f.name in names and f.total == self.published.get(f.name, everything)]
            reached = {f.name: f.value for f in alike if f.value is not None}
            for name, systems in not_above(reached).items():
                if systems:
                    told.append(
                        f"{what} reaches {reached[name]:.2f} in {name}; of {len(PUBLISHED)} published systems "
                        f"{len(systems)} {'does' if len(systems) == 1 else 'do'} not beat it: {', '.join(systems)}."
                    )
        return told

    def official_failure(self, rows: Sequence[Row]) -> str:
        """The exception with which the official script ends on these answers, and what causes it; "" if it does not."""
        for row in _in_official_order(rows):
            if problem := _crash(row.answer.question, row.answer.response):
                return f"TypeError: {row.answer.question.id} is answered by {problem}"
        there = by_group(rows, "scenario")
        missing = [name for name in SCENARIOS if name not in there]
        return (
            f"UnboundLocalError: '{missing[0]}_score' has no value without answers in {missing[0]}" if missing else ""
        )

    def official_text(self, rows: Sequence[Row]) -> str:
        """What the official script prints until its end or the exception that it ends with.

        Tasks come in the order of the files; those of the forward scenario, whose official order changes from run to
        run, by the alphabet.
        """
        model = Path(rows[0].answer.file).resolve().parent.name if rows else ""
        lines, found = [f"Offline Model: {model}"], by_group(rows, "scenario")
        for name in SCENARIOS:
            if name not in found:
                continue
            lines.append(_HEADINGS[name])
            if any(_crash(row.answer.question, row.answer.response) for row in found[name]):
                return "\n".join(lines) + "\n"
            parts = _tasks(name, found[name])
            lines += [f"Task: {part.name}, Acc: {part.text}" for part in parts]
            lines += [f"{_NAMES[name]} Avg.: {Scenario('scenario', name, parts=tuple(parts)).text}", ""]
        total = self.figures(rows)[0]
        return "\n".join(lines) + "\n" + ("" if total.value is None else f"Total Avg.: {total.text}\n")

    def _check_counts(self, path: Path, questions: Iterable[Question]) -> None:
        counts = dict.fromkeys(self.published, 0)
        for question in questions:
            counts[question.task] += 1
        for task, count in counts.items():
            if count != self.published[task]:
                self.notes.add(path, task, f"{count:,} questions, where the release has {self.published[task]:,}")

    def _check_answers(self, path: Path, answers: Sequence[Answer]) -> None:
        """Note what is there twice, and where the official script ends early."""
        tally, seen = Tally(path), set()
        for answer in answers:
            question = answer.question
            if question.id in seen:
                tally.add(question.id, "is answered more than once, and officially counted each time")
            seen.add(question.id)
            if problem := _crash(question, answer.response):
                tally.add(
                    question.id,
                    f"is answered by {problem}: the official script stops there with a TypeError, here it is wrong by "
                    "the official rules",
                )
            elif not isinstance(answer.response, str | None):
                tally.add(question.id, "is no text: the official script looks whether it has the answer as a part")
        tally.tell(self.notes)
        there = {answer.question.groups["scenario"] for answer in answers}
        for name in SCENARIOS:
            if answers and name not in there:
                self.notes.add(path, name, "has no answer: the official script prints no total and stops with an error")


def _tasks(scenario: str, rows: Iterable[Row]) -> list[Figure]:
    """A scenario's tasks in the order in which the official script goes through them."""
    found = [figure("task", name, some) for name, some in by_group(rows, "task").items()]
    return sorted(found, key=lambda part: part.name) if scenario == "forward" else found


def _in_official_order(rows: Sequence[Row]) -> Iterable[Row]:
    found = by_group(rows, "scenario")
    return (row for name in SCENARIOS for row in found.get(name, ()))


def _crash(question: Question, response: Any) -> str:
    """What kind of response it is, if the official script ends with a TypeError at it; else ""."""
    if response is None or isinstance(response, str):
        return ""
    if question.kind != "number" and isinstance(response, list | dict):
        return ""
    return {list: "a list", dict: "an object", bool: "true or false"}.get(type(response), "a number")


def _official(question: Question, response: Any) -> Verdict:
    if response is None or _crash(question, response):
        return Verdict(0.0, False)
    if question.kind == "number":
        said = "".join(_DIGITS.findall(response))
        return Verdict(float(said == question.truth), bool(said), said)
    if question.kind == "choice":
        said = "".join(letter for letter in question.options or _LETTERS if letter in response)
        return Verdict(float(question.truth in response), bool(said), said)
    says_yes, says_no = "Yes" in response or response == "Y", "No" in response or response == "N"
    right = (response == question.truth[0]) or question.truth in response
    said = "" if says_yes == says_no else "yes" if says_yes else "no"
    return Verdict(float(right), says_yes or says_no, said)
