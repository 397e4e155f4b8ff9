"""The files of OVO-Bench: annotations into questions, result files into answers.

An annotation of a backward or real-time task is one question; one of a forward task unfolds into a question for every
element of its ``test_info``. In result files a forward row is the annotation again, with a response in each element.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidValue
from .base import Answer, Clip, Notes, Question
from .reading import kind as kind_of
from .reading import read_json, read_lines, taken

#: The scenario of every task, in the order of tables.
TASKS = {
    **dict.fromkeys(("EPM", "ASI", "HLD"), "backward"),
    **dict.fromkeys(("OCR", "ACR", "ATR", "STU", "FPD", "OJR"), "realtime"),
    **dict.fromkeys(("REC", "SSR", "CRR"), "forward"),
}
SCENARIOS = ("backward", "realtime", "forward")
_GROUPS = {task: {"scenario": scenario, "task": task} for task, scenario in TASKS.items()}
_NUMBER = (int, float)
#: Seconds that no video has.
_FOREVER = 1e9


@dataclass(slots=True)
class Tally:
    """Problems that many rows of a file may have: one sentence for each, with the first place and how many more."""

    file: Path
    found: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, place: str, problem: str) -> None:
        """Count a problem of the row or question at ``place``."""
        first, count = self.found.get(problem, (place, 0))
        self.found[problem] = first, count + 1

    def tell(self, notes: Notes) -> None:
        """Put the sentences on record."""
        for problem, (first, count) in self.found.items():
            notes.add(self.file, first if count == 1 else f"{first} and {count - 1:,} more", problem)


def read_annotations(path: Path, notes: Notes) -> dict[str, Question]:
    """Questions by id of ``ovo_bench_new.json``, or of a folder that has it.

    Raises:
        InvalidValue: the file cannot be read, or no entry of it is an annotation.
    """
    file = path / "ovo_bench_new.json" if path.is_dir() else path
    entries = read_json(file)
    if not isinstance(entries, list):
        raise InvalidValue(f"{file}: is {kind_of(entries)}, not the list of annotations: give ovo_bench_new.json.")
    tally, questions = Tally(file), {}
    for row, entry in taken(entries):
        try:
            found = questions_of(entry)
        except InvalidValue as error:
            tally.add(_place(entry, row), f"{error}, left out")
            continue
        if found and found[0].id in questions:
            tally.add(_place(entry, row), "is there twice, the first one counts")
            continue
        questions.update((question.id, question) for question in found)
    tally.tell(notes)
    if not questions:
        raise InvalidValue(f"{file}: has no annotation of OVO-Bench: give ovo_bench_new.json.")
    return questions


def questions_of(entry: Any) -> list[Question]:
    """The questions that an annotation unfolds into.

    Raises:
        InvalidValue: something of it is missing or of another type; the text says what, without file and place.
    """
    if not isinstance(entry, Mapping):
        raise InvalidValue(f"not an object but {kind_of(entry)}")
    task = entry.get("task")
    if task not in TASKS:
        raise InvalidValue(f"the task {task!r} is none of {', '.join(TASKS)}")
    if TASKS[task] == "forward":
        return [question for question, _ in _forward(entry)]
    id, options, right = _value(entry, "id", int, str), _value(entry, "options", list), _value(entry, "gt", int)
    if not 0 <= right < len(options) <= 26:
        raise InvalidValue(f"gt {right} is no place in {len(options)} options")
    letters = {chr(65 + place): str(option) for place, option in enumerate(options)}
    at = _seconds(entry)
    text, letter = _value(entry, "question", str), chr(65 + right)
    extra = {"entry": id, "realtime": at}
    return [
        Question(
            f"{task}/{id}",
            task,
            _value(entry, "video", str),
            text,
            letter,
            "choice",
            letters,
            letter,
            _GROUPS[task],
            _clip(at),
            extra,
        )
    ]


class Reader:
    """Reads a model's files of answers, checking ids and truths against annotations if there are any.

    Args:
        questions: of the annotations, by id; empty: result files bring their own truth.
        only: tasks whose answers are wanted.
        notes: where problems go.
    """

    def __init__(self, questions: Mapping[str, Question], only: frozenset[str], notes: Notes) -> None:
        self.questions, self.only, self.notes = questions, only, notes
        self.taken: set[str] = set()
        self.alike: dict[tuple[str, str, str], list[Question]] = {}
        for question in questions.values():
            if question.kind == "choice":
                self.alike.setdefault(_words(question), []).append(question)

    def results(self, file: Path) -> Iterator[Answer]:
        """Answers of one result file.

        Raises:
            InvalidValue: the file cannot be read, or has another shape.
        """
        content = read_json(file)
        if not isinstance(content, dict) or not any(isinstance(content.get(name), list) for name in SCENARIOS):
            raise InvalidValue(
                f"{file}: has no list backward, realtime or forward: give a result file of OVO-Bench, or JSON lines."
            )
        tally = Tally(file)
        for scenario in SCENARIOS:
            rows = content.get(scenario)
            if not isinstance(rows, list):
                tally.add(scenario, "is not there as a list, the official script stops there")
                continue
            for number, row in taken(rows):
                try:
                    told = list(self._told(row, scenario, tally))
                except InvalidValue as error:
                    tally.add(f"{scenario} {_place(row, number)}", f"{error}, left out")
                    continue
                for question, response in told:
                    if question.task in self.only:
                        yield Answer(question, response, str(file))
        tally.tell(self.notes)

    def own(self, file: Path) -> Iterator[Answer]:
        """Answers of JSON lines ``{"id": "EPM/0", "response": "B"}``.

        Raises:
            InvalidValue: there are no annotations, or the file cannot be read.
        """
        if not self.questions:
            raise InvalidValue(f"{file}: JSON lines do not bring their truth: give the annotations as well.")
        tally = Tally(file)
        for place, line in read_lines(file, self.notes):
            id = line.get("id")
            question = self.questions.get(id) if isinstance(id, str) else None
            if question is None:
                tally.add(f"{place}, {id}", "is no id of the annotations, left out")
            elif question.task in self.only:
                if "response" not in line:
                    tally.add(question.id, "has no response, it counts as null")
                yield Answer(question, line.get("response"), str(file))
        tally.tell(self.notes)

    def _told(self, row: Any, scenario: str, tally: Tally) -> Iterator[tuple[Question, Any]]:
        """What a row of a result file answers: (question, response)."""
        if not isinstance(row, Mapping):
            raise InvalidValue(f"not an object but {kind_of(row)}")
        task = row.get("task")
        if task not in TASKS:
            raise InvalidValue(f"the task {task!r} is none of {', '.join(TASKS)}")
        if (scenario == "forward") != (TASKS[task] == "forward"):
            raise InvalidValue(f"{task} is no task with rows as {scenario} has them")
        told = _forward(row) if scenario == "forward" else [(self._as_told(row, task), row)]
        for theirs, element in told:
            question = self._checked(theirs, tally)
            if question is None:
                continue
            if scenario != TASKS[task]:
                tally.add(question.id, f"stands in {scenario}, where the official script counts it")
                question = replace(question, groups={**question.groups, "scenario": scenario})
            if "response" not in element:
                tally.add(question.id, "has no response, it counts as null (the official script stops there)")
            yield question, element.get("response")

    def _as_told(self, row: Mapping[str, Any], task: str) -> Question:
        """The multiple-choice question that a row repeats; its options only annotations have."""
        id, truth = _value(row, "id", int, str), row.get("ground_truth")
        if truth is None and f"{task}/{id}" in self.questions:
            truth = self.questions[f"{task}/{id}"].truth
        if not isinstance(truth, str) or not truth:
            raise InvalidValue(f"ground_truth is {truth!r} and no letter")
        text, video, extra = str(row.get("question", "")), str(row.get("video", "")), {"entry": id}
        return Question(f"{task}/{id}", task, video, text, truth, "choice", {}, truth, _GROUPS[task], extra=extra)

    def _checked(self, theirs: Question, tally: Tally) -> Question | None:
        """The annotation's question, with the file's truth where that differs: official rules trust it."""
        if not self.questions:
            return theirs
        ours = self.questions.get(theirs.id)
        if ours is None:
            tally.add(theirs.id, "is not in the annotations, left out")
            return None
        if ours.id in self.taken or ours.truth != theirs.truth:
            # A question is asked again at another moment, and the authors' files have the first one's id for both.
            alike = self.alike.get(_words(theirs), [])
            found = next((q for q in alike if q.id not in self.taken and q.truth == theirs.truth), None)
            if found is not None:
                tally.add(theirs.id, f"has the words and the truth of {found.id}, which it is taken for")
                ours = found
        self.taken.add(ours.id)
        at = theirs.extra.get("realtime")
        if at is not None and at != ours.extra["realtime"]:
            tally.add(theirs.id, "was asked at another moment than the annotations say")
        if theirs.truth == ours.truth:
            return ours
        tally.add(theirs.id, "has another truth than the annotations: only the official rules trust it")
        return replace(ours, truth=theirs.truth)


def _words(question: Question) -> tuple[str, str, str]:
    """What questions share that are told apart by their moment alone."""
    return question.task, question.question, question.video.rsplit("/", 1)[-1]


def _forward(entry: Mapping[str, Any]) -> list[tuple[Question, Mapping[str, Any]]]:
    """The questions of a forward annotation, with their elements of ``test_info``.

    What is waited for is a thread: its name, its times (when each level is reached), and until when it lasts.
    """
    task, id, video = entry["task"], _value(entry, "id", int, str), str(entry.get("video", ""))
    groups, found = _GROUPS[task], []
    for index, element in enumerate(_value(entry, "test_info", list)):
        if not isinstance(element, Mapping):
            raise InvalidValue(f"test_info {index} is {kind_of(element)}")
        at = _seconds(element)
        level = _value(element, "count" if task == "REC" else "type", int)
        thread, times, until = f"{task}/{id}", [], None
        if task == "REC":
            text, times = f"How many times did they {entry.get('activity')}?", sorted(_times(entry, "end_times"))
            kind, truth, answer = "number", str(level), str(level)
        else:
            if level not in (0, 1):
                raise InvalidValue(f"test_info {index} has type {level}, neither 0 nor 1")
            kind, (truth, answer) = "yes_no", ("Yes", "yes") if level else ("No", "no")
            text = _value(element, "step", str) if task == "SSR" else _value(entry, "question", str)
            if task == "SSR":
                steps, starts, ends = entry.get("all_steps"), _times(entry, "start_time"), _times(entry, "end_time")
                known = steps if isinstance(steps, list) else []
                place = known.index(text) if text in known else len(starts) + len(ends)
                thread, times = f"{thread}/{text}", starts[place : place + 1]
                until = next(iter(ends[place : place + 1]), None)
            elif isinstance(entry.get("clue_time"), _NUMBER):
                times = [entry["clue_time"]]
        extra = {"entry": id, "realtime": at, "level": level, "thread": thread, "times": times, "until": until}
        if isinstance(entry.get("ask_time"), _NUMBER):
            extra["ask_time"] = entry["ask_time"]
        name = f"{task}/{id}/{index}"
        question = Question(name, task, video, text, truth, kind, {}, answer, groups, _clip(at), extra)
        found.append((question, element))
    return found


def _clip(realtime: float) -> Clip:
    """The second in which it is asked has run to its end."""
    return Clip(0.0, float(math.ceil(realtime)))


def _times(entry: Mapping[str, Any], name: str) -> list[float]:
    """Moments that an annotation lists; none where they are not there."""
    times = entry.get(name)
    return times if isinstance(times, list) and all(isinstance(time, _NUMBER) for time in times) else []


def _seconds(entry: Mapping[str, Any]) -> float:
    at = _value(entry, "realtime", *_NUMBER)
    if not 0 <= at < _FOREVER:  # NaN is no moment either
        raise InvalidValue(f"its realtime is {at!r}")
    return at


def _value(entry: Mapping[str, Any], name: str, *types: type) -> Any:
    if name not in entry:
        raise InvalidValue(f"has no {name}")
    value = entry[name]
    if not isinstance(value, types) or isinstance(value, bool):
        raise InvalidValue(f"its {name} is {value!r}")
    return value


def _place(entry: Any, row: int) -> str:
    known = isinstance(entry, Mapping) and isinstance(entry.get("id"), int | str)
    return f"{entry.get('task', '')} {entry['id']}".strip() if known else f"row {row}"
