"""TemporalBench (arXiv 2410.10818): which of two captions that differ in one detail of time describes a video.

Binary accuracy counts questions. Multiple Binary Accuracy credits a video only if all its questions are answered
right: a fair coin then gets the mean of ``2^-n`` over videos with n questions. Long videos ask the same, and captions
of a model's own are compared with a person's by an embedding that the caller brings.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidValue, unknown_name
from ..registry import register
from .base import Answer, Figure, Notes, Question, Row, Suite, Verdict, by_group
from .letters import read_choice, text_of
from .reading import files_of, kind, read_files, read_json, taken
from .runs import apart, by_run
from .temporal_bench_text import FORMS, centres, format_report

TASKS = ("short_qa", "long_qa", "short_caption")
CATEGORIES = (
    "Action Order",
    "Action Frequency",
    "Action Type",
    "Motion Magnitude",
    "Motion Direction/Orientation",
    "Action Effector",
    "Event Order",
    "Others",
)
#: Questions of short_qa by what they are about, and by the data set that their videos come from.
_BY_CATEGORY: dict[str, int] = dict(zip(CATEGORIES, (129, 530, 2802, 320, 1536, 1109, 2099, 1342), strict=True))
_BY_DATASET: dict[str, int] = {
    "ActivityNet": 1186,
    "Charades": 957,
    "COIN": 1550,
    "EgoExo4D": 1542,
    "Movie_Description": 1467,
    "Oops": 1571,
    "FineGym": 1594,
}
_STOPS = "the official script stops here"

#: Texts to their embeddings, ``(texts, width)``; the authors take all-MiniLM-L6-v2.
Embed = Callable[[list[str]], Any]


@dataclass(slots=True)
class Share(Figure):
    """A figure whose value is computed in the order of the official script, to the last bit."""

    @property
    def value(self) -> float | None:
        """The share first, times the scale then."""
        return sum(self.marks) / len(self.marks) * self.scale if self.marks else None


@register("scorer", "temporal_bench")
class TemporalBench(Suite):
    """TemporalBench: pairs of captions, by video, data set and category; and captions of a model's own.

    Args:
        annotations: the release's folder, or one of its files; without them only predictions can be looked at.
        tasks: only these of short_qa, long_qa and short_caption; None: all that are there.
        embed: turns a list of texts into an array ``(texts, width)``; without it captions are not scored.

    Raises:
        UnknownName: no such task.
        InvalidValue: annotations cannot be read, have an idx twice, or a GT other than A or B.
    """

    slug = "temporal_bench"
    sections = ("overall", "short_qa dataset", "short_qa category", "long_qa dataset")
    #: The counts of the other two tasks were never published.
    published = {"short_qa": 9867}

    def __init__(
        self,
        annotations: str | Path | None = None,
        *,
        tasks: Sequence[str] | None = None,
        embed: Embed | None = None,
    ) -> None:
        self.tasks = TASKS if tasks is None else ((tasks,) if isinstance(tasks, str) else tuple(tasks))
        for task in self.tasks:
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
        self.embed = embed
        self.notes = Notes()
        self._asked: dict[str, Question] = {}
        self._cosines: dict[tuple[str, str], float] = {}
        self._centres: tuple[object, dict[str, dict[str, str]]] = (None, {})
        if annotations is not None:
            self._read(Path(annotations), tasks is not None)
        self._noted = list(self.notes.sentences)
        self.questions = self._put = self._asked

    def _read(self, path: Path, chosen: bool) -> None:
        files = {}
        for file in files_of(path, ".json"):
            task = _task(file.stem)
            if task and file.parent in (path, path.parent):
                files[task] = file
        if not files:
            raise InvalidValue(f"{path}: has no {' or '.join(f'temporalbench_{task}.json' for task in TASKS)}.")
        for task in self.tasks:
            if task not in files:
                if chosen:
                    raise InvalidValue(f"{path}: has no temporalbench_{task}.json: give it, or leave the task out.")
                continue
            items = read_json(files[task])
            if not isinstance(items, list):
                raise InvalidValue(f"{files[task]}: holds {kind(items)} and no list of questions.")
            for place, item in taken(items):
                question = self._question(files[task], task, place, item)
                if question.id in self._asked:
                    raise InvalidValue(f"{files[task]}: {question.id} is there twice: an idx must name one question.")
                self._asked[question.id] = question
            if task == "short_qa":
                self._check_counts(files[task])

    def _check_counts(self, file: Path) -> None:
        asked = [question for question in self._asked.values() if question.task == "short_qa"]
        if len(asked) != self.published["short_qa"]:
            self.notes.add(file, "", f"{len(asked):,} questions, published were {self.published['short_qa']:,}")
            return
        for name, known in (("category", Counter(_BY_CATEGORY)), ("dataset", Counter(_BY_DATASET))):
            counts = Counter(question.groups.get(name, "none") for question in asked)
            other = [f"{g} {counts[g]:,} for {known[g]:,}" for g in known | counts if counts[g] != known[g]]
            if other:
                self.notes.add(file, "", f"questions by {name} are not those published: {', '.join(other)}")

    def _question(self, file: Path, task: str, place: int, item: Any) -> Question:
        try:
            idx, video, text, truth = (str(item[key]) for key in ("idx", "video_name", "question", "GT"))
        except (KeyError, TypeError) as error:
            raise InvalidValue(
                f"{file}: question {place} is none of TemporalBench (no {error}): give its data."
            ) from error
        id = f"{task}/{idx}"
        if task == "short_caption":
            return Question(id, task, video, text, truth, "text")
        if truth.upper() not in ("A", "B"):
            raise InvalidValue(f"{file}: {idx} has GT {truth!r}: A or B is possible.")
        dataset = item.get("dataset", item.get("source_dataset"))
        groups = {} if dataset is None else {"dataset": str(dataset)}
        if "dataset" not in item and not any(_STOPS in sentence for sentence in self.notes.sentences):
            found = "has no dataset" if dataset is None else "says source_dataset for dataset"
            self.notes.add(file, idx, f"{found}: {_STOPS} (KeyError: 'dataset'), scored anyway")
        if task == "short_qa" and "category" in item:
            groups["category"] = str(item["category"])
        return Question(id, task, video, text, truth, "choice", _options(text), truth.upper(), groups)

    def answers(self, predictions: Path) -> list[Answer]:
        self.notes = Notes(list(self._noted))
        if self.questions is not self._put:  # fewer were chosen since
            self._asked = self.questions
        if not self._asked:
            raise InvalidValue("TemporalBench's answers bring no truth of their own: give the annotations (--against).")
        runs: dict[str, list[Answer]] = {}
        for file, lines in read_files(files_of(predictions, ".jsonl"), self.notes):
            task = _task(file.resolve().parent.name) or self._likeliest(lines)
            if task not in self.tasks:
                continue
            found = runs.setdefault(file.stem, [])
            for _, (line, value) in taken(lines):
                answer = self._answer(file, line, value, task)
                if answer is not None:
                    found.append(answer)
        runs = {run: found for run, found in runs.items() if found}
        if len(runs) > 1:
            several = f"answers of {len(runs)} runs ({', '.join(runs)}): each has figures of its own"
            self.notes.add(predictions, "", several)
        answers, self.questions = apart(runs, self._asked)
        self._put = self.questions
        self._embed(answers)
        return answers

    def _likeliest(self, lines: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """The task that most of a file's ids are of."""
        ids = [str(value.get("idx", value.get("id"))) for _, value in lines]
        return max(
            self.tasks, key=lambda task: sum(f"{task}/{id}" in self._asked or id.startswith(f"{task}/") for id in ids)
        )

    def _answer(self, file: Path, line: str, value: Mapping[str, Any], task: str) -> Answer | None:
        """An answer; None, with a note, where a line is none."""
        id = value.get("idx", value.get("id"))
        if id is None or "response" not in value:
            self.notes.add(file, line, f"has no {'idx' if id is None else 'response'}, left out")
            return None
        question = self._asked.get(f"{task}/{id}") or self._asked.get(str(id))
        if question is None:
            self.notes.add(file, line, f"no question has idx {id!r}: {_STOPS} (KeyError: {id!r}), left out")
            return None
        response = value["response"]
        if question.kind == "choice" and not (isinstance(response, str) and response):
            error = _first(response)[1]
            if error:
                self.notes.add(file, str(id), f"response is {_brief(response)}: {_STOPS} ({error}), counted as wrong")
        elif not isinstance(response, str):
            self.notes.add(file, str(id), f"response is {_brief(response)} and no caption, counted as 0")
        return Answer(question, response, str(file))

    def _embed(self, answers: Sequence[Answer]) -> None:
        """Cosines of all captions with those of a person, in one call."""
        captions = [(a.question, a.response) for a in answers if a.question.kind == "text"]
        texts = [(question, response) for question, response in captions if isinstance(response, str)]
        if captions and self.embed is None:
            if len(captions) == len(answers):
                raise InvalidValue("captions need an embedding: give TemporalBench(annotations, embed=...).")
            self.notes.add(answers[0].file, "", f"{len(captions)} captions are not scored: give embed=... in Python")
        if not texts or self.embed is None:
            return
        import numpy as np

        both = [response for _, response in texts] + [question.truth for question, _ in texts]
        vectors = np.asarray(self.embed(both), np.float64)
        if vectors.ndim != 2 or len(vectors) != len(both):
            raise InvalidValue(f"embed returned {vectors.shape} for {len(both)} texts: ({len(both)}, width) is needed.")
        ours, theirs = np.split(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), 2)
        cosines = (ours * theirs).sum(1).tolist()
        self._cosines = {(q.id, response): c for (q, response), c in zip(texts, cosines, strict=True)}

    def judge(self, question: Question, response: Any, rules: str) -> Verdict:
        if question.kind == "text":
            if self.embed is None:
                return Verdict(math.nan)
            cosine = self._cosines.get((question.id, response)) if isinstance(response, str) else None
            return Verdict(0.0, False) if cosine is None else Verdict(cosine)
        if rules == "strict":
            text = text_of(response)
            said = "" if text is None else read_choice(text, question.options)
            return Verdict(float(said == question.answer), bool(said), said)
        said, error = _first(response)
        readable = not error and said.upper() in question.options
        return Verdict(float(said == question.truth.lower()), readable, said.upper() if readable else "")

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Multiple Binary Accuracy and binary accuracy, of all and by group; the mean cosine of captions."""
        found: dict[str, list[Figure]] = {name: [] for name in self.sections}
        for run, own in by_run(rows).items():
            tail = f", {run}" if run else ""
            tasks: dict[str, list[Row]] = {}
            for row in own:
                if row.answer.question.kind == "choice" or self.embed is not None:
                    tasks.setdefault(row.answer.question.task, []).append(row)
            for task in (name for name in TASKS if name in tasks):
                if task == "short_caption":
                    marks = [row.verdict.mark for row in tasks[task]]
                    videos = [row.answer.question.video for row in tasks[task]]
                    found["overall"].append(Share("overall", f"{task}, similarity{tail}", marks, videos, digits=4))
                    continue
                found["overall"] += both_accuracies("overall", task, tasks[task], tail)
                for group in ("dataset", "category"):
                    parts = by_group(tasks[task], group)
                    known = dict.fromkeys([*(CATEGORIES if group == "category" else ()), *parts])
                    for name in (name for name in known if name in parts):
                        found[f"{task} {group}"] += both_accuracies(f"{task} {group}", name, parts[name], tail)
        return [figure for section in found.values() for figure in section]

    def prompt(self, question: Question, frames: int | None = None) -> str:
        """The question as the annotation has it."""
        return question.question

    def constant_answers(self, question: Question) -> Mapping[str, str]:
        """What choosers of the most central caption say, from the texts alone."""
        if question.kind != "choice":
            return {}
        if self._centres[0] is not self.questions:
            found = centres(question for question in self.questions.values() if question.kind == "choice")
            names = [f"centre, {form}" for form in FORMS]
            self._centres = self.questions, {id: dict(zip(names, said, strict=True)) for id, said in found.items()}
        return self._centres[1].get(question.id, {})

    def official_text(self, rows: Sequence[Row]) -> str:
        """What the official scripts print for each file, the files of a task in the order of their names."""
        files: dict[tuple[int, str], list[Row]] = {}
        for row in rows:
            files.setdefault((TASKS.index(row.answer.question.task), row.answer.file), []).append(row)
        return "".join(
            format_report(Path(file).name, TASKS[task], own, CATEGORIES) for (task, file), own in sorted(files.items())
        )


def binary_accuracy(rows: Iterable[Row], section: str = "overall", name: str = "binary accuracy") -> Figure:
    """The share of rows that are right."""
    rows = list(rows)
    videos = [row.answer.question.video for row in rows]
    return Share(section, name, [row.verdict.mark for row in rows], videos)


def multiple_binary_accuracy(
    rows: Iterable[Row], section: str = "overall", name: str = "multiple binary accuracy"
) -> Figure:
    """The share of videos with no wrong row: the mean over videos of the product of their marks."""
    products: dict[str, float] = {}
    for row in rows:
        video = row.answer.question.video
        products[video] = products.get(video, 1.0) * row.verdict.mark
    return Share(section, name, list(products.values()), list(products))


def both_accuracies(section: str, name: str, rows: Sequence[Row], tail: str = "") -> list[Figure]:
    """Multiple Binary Accuracy, then binary accuracy."""
    return [
        multiple_binary_accuracy(rows, section, f"{name}, MBA{tail}"),
        binary_accuracy(rows, section, f"{name}, binary{tail}"),
    ]


def _task(stem: str) -> str:
    return next((task for task in TASKS if stem == f"temporalbench_{task}"), "")


def _first(response: Any) -> tuple[str, str]:
    """What the official rule compares, and the error that stops its script; one of them is ""."""
    try:
        return response[0].lower(), ""
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        return "", f"{type(error).__name__}: {error}"


def _brief(response: Any) -> str:
    told = repr(response)
    return told if len(told) <= 40 else f"{told[:37]}..."


def _options(text: str) -> dict[str, str]:
    """The captions of a question: what follows "A. " and "B. " at the beginning of a line, without the last line."""
    found = re.search(r"(?:^|\n)A\. (.*?)\nB\. (.*)\n", text, re.DOTALL)
    return {"A": found[1].strip(), "B": found[2].strip()} if found else {"A": "", "B": ""}
