"""TempCompass's files: questions, fine aspects, answers in every layout, and stored ratings.

Questions and answers are ``{video: {aspect: [item, ...]}}``, a file for each format. What is read besides: the same
items as a flat list, the ratings that the authors' evaluation stores, and JSON lines ``{"id", "response"}``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InvalidValue
from .base import Answer, Notes, Question
from .reading import files_of, kind, read_json, read_lines, taken

TASKS = ("multi-choice", "yes_no", "caption_matching", "captioning")
ASPECTS = ("action", "direction", "speed", "order", "attribute_change")
#: Names that flat lists have for the video and the aspect of an item.
_VIDEO = ("video_id", "video", "vid")
_ASPECT = ("aspect", "dim", "temporal_aspect")
_LABELS = ("Caption ", "Option ", "Sentence ")
#: One for all that have none.
_NONE: dict[str, Any] = {}


@dataclass(slots=True)
class Item:
    """One answer as a file has it."""

    task: str
    video: str
    aspect: str
    place: int
    value: Mapping[str, Any]


@dataclass(slots=True)
class Book:
    """What the annotations say.

    Attributes:
        questions: by id, in the order of the files.
        fine: fine aspect by video and aspect; empty without ``meta_info.json``.
        choices: (question, answer) of the multi-choice question that captions are judged by, by video and aspect.
    """

    questions: dict[str, Question] = field(default_factory=dict)
    fine: dict[tuple[str, str], str] = field(default_factory=dict)
    choices: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    _groups: dict[tuple[str, str, str | None], dict[str, str]] = field(default_factory=dict)

    def groups(self, item: Item) -> dict[str, str]:
        """The figures that an item counts for; one object for all items with the same."""
        fine = self.fine.get((item.video, item.aspect)) if self.fine else None
        key = (item.task, item.aspect, "order" if self.fine and item.aspect == "order" else fine)
        if key not in self._groups:
            told = {"aspect": item.aspect, "format": item.task}
            self._groups[key] = told if key[2] is None else {**told, "fine aspect": key[2]}
        return self._groups[key]


def bare(video: str) -> str:
    """A video's id without the endings that some files give it."""
    return video.replace(".jpg", "").replace(".mp4", "")


def task_of(question: str, answer: str) -> str:
    """The format of an item, told by its texts."""
    if answer.lower() in ("yes", "no"):
        return "yes_no"
    if "Generated Caption:" in question:
        return "captioning"
    lines = question.split("\n")[1:]
    labelled = len(lines) == 2 and all(line.startswith(_LABELS) for line in lines)
    return "caption_matching" if labelled else "multi-choice"


def read_annotations(path: Path, tasks: tuple[str, ...], notes: Notes) -> Book:
    """Read the release's folder, its ``questions``, or one file of it.

    Raises:
        InvalidValue: nothing of it can be read, or it has another form.
    """
    folder = path / "questions" if (path / "questions").is_dir() else path
    found = [file for file in files_of(folder, ".json") if file == path or file.parent == folder]
    files = {file.stem: file for file in found if file.stem in TASKS}
    if path.is_file() and not files:
        first = next(_items(path, read_json(path), None, Notes()), None)
        files = {} if first is None else {first.task: path}
    if not files:
        raise InvalidValue(
            f"{path}: has none of {', '.join(f'{t}.json' for t in TASKS)}: give TempCompass's questions."
        )
    book = Book(fine=read_fine(path, notes))
    if "captioning" in tasks and "captioning" in files:
        book.choices = _choices(files.get("multi-choice"))
    for task in tasks:
        if task not in files:
            if not path.is_file():
                notes.add(path, "", f"{task}.json is absent, its questions are left out")
            continue
        for item in _items(files[task], read_json(files[task]), task, notes):
            question = question_of(item, book)
            book.questions[question.id] = question
    return book


def read_fine(path: Path, notes: Notes) -> dict[tuple[str, str], str]:
    """Fine aspects of ``meta_info.json``, which lies in the release's folder: here, or in one around it.

    Raises:
        InvalidValue: it is there and cannot be read.
    """
    around = [path, *path.resolve().parents[:3]]
    file = next((folder / "meta_info.json" for folder in around if (folder / "meta_info.json").is_file()), None)
    if file is None:
        notes.add(path, "", "no meta_info.json lies beside or above it, so that there are no fine aspects")
        return {}
    meta = read_json(file)
    if not isinstance(meta, dict) or not all(isinstance(value, dict) for value in meta.values()):
        raise InvalidValue(f"{file}: holds no object of videos: give TempCompass's meta_info.json.")
    return fine_of(meta)


def fine_of(meta: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Fine aspect by video and aspect; events in order have no finer ones."""
    found: dict[tuple[str, str], str] = {}
    for video, value in meta.items():
        found[video, "order"] = "order"
        for aspect, told in (value.get("eval_dim") or {}).items():
            if isinstance(told, dict) and "type" in told:
                found[video, aspect] = told["type"]
    return found


def _choices(file: Path | None) -> dict[tuple[str, str], tuple[str, str]]:
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for item in () if file is None else _items(file, read_json(file), "multi-choice", Notes()):
        found.setdefault((item.video, item.aspect), (item.value["question"], item.value["answer"]))
    return found


def _items(file: Path, content: Any, task: str | None, notes: Notes) -> Iterator[Item]:
    """Items of a file, nested or flat; what is none is noted."""
    if isinstance(content, dict):
        for video, aspects in content.items():
            if not isinstance(aspects, dict):
                notes.add(file, video, f"holds {kind(aspects)} and no object of aspects, left out")
                continue
            for aspect, items in aspects.items():
                if not isinstance(items, list):
                    notes.add(file, f"{video}/{aspect}", f"holds {kind(items)} and no list of items, left out")
                    continue
                for place, value in taken(items):
                    yield from _item(file, task, video, aspect, place, value, notes)
        return
    if not isinstance(content, list):
        raise InvalidValue(f"{file}: holds {kind(content)}: give {{video: {{aspect: [item]}}}} or a list of items.")
    counts: dict[tuple[Any, ...], int] = {}
    for number, value in taken(content):
        place = f"item {number}"
        if not isinstance(value, dict):
            notes.add(file, place, f"is {kind(value)} and no object, left out")
            continue
        video = next((value[key] for key in _VIDEO if key in value), None)
        aspect = next((value[key] for key in _ASPECT if key in value), None)
        if not isinstance(video, str) or not isinstance(aspect, str):
            notes.add(file, place, "names no video_id and aspect, left out")
            continue
        own = value.get("task", task)
        key = (own or task_of(_text(value, "question"), _answer(value)), bare(video), aspect)
        index = value.get("index", counts.get(key, 0))
        counts[key] = counts.get(key, 0) + 1
        yield from _item(file, own, video, aspect, index, value, notes)


def _item(
    file: Path, task: str | None, video: str, aspect: str, place: Any, value: Any, notes: Notes
) -> Iterator[Item]:
    name = f"{video}/{aspect}/{place}"
    if not isinstance(value, dict):
        notes.add(file, name, f"is {kind(value)} and no object, left out")
    elif aspect not in ASPECTS:
        notes.add(file, name, f"{aspect!r} is none of the aspects {', '.join(ASPECTS)}, left out")
    elif task is not None and task not in TASKS:
        notes.add(file, name, f"{task!r} is none of the tasks {', '.join(TASKS)}, left out")
    elif "rating" not in value and not (isinstance(value.get("question"), str) and _answer(value)):
        notes.add(file, name, "has no question or no answer to it, left out")
    else:
        if task is None:
            task = "captioning" if "chatgpt-answer" in value else task_of(_text(value, "question"), _answer(value))
        yield Item(task, bare(video), aspect, place, value)


def _text(value: Mapping[str, Any], key: str) -> str:
    return value[key] if isinstance(value.get(key), str) else ""


def _answer(value: Mapping[str, Any]) -> str:
    found = value.get("answer") or value.get("gt-answer")
    return found if isinstance(found, str) else ""


def question_of(item: Item, book: Book) -> Question:
    """An item's question as the file has it."""
    text, truth = _text(item.value, "question"), _answer(item.value)
    lines = text.split("\n")[1:]
    options: dict[str, str] = _NONE
    answer, form = "", "text"
    if item.task == "yes_no":
        answer, form = truth.lower(), "yes_no"
    elif item.task == "multi-choice":
        form = "choice"
        options = {line.strip()[0]: line.strip()[2:].strip() for line in lines if line.strip()}
        answer = truth.strip()[:1]
    elif item.task == "caption_matching":
        form = "choice"
        options = {line.split(": ", 1)[0]: line.split(": ", 1)[-1] for line in lines if line}
        answer = truth.split(": ", 1)[0]
    extra: dict[str, Any] = _NONE
    if item.task == "captioning":
        extra = {"information": _information(text)}
        if (choice := book.choices.get((item.video, item.aspect))) is not None:
            extra["choice"] = choice
    return Question(
        f"{item.task}/{item.video}/{item.aspect}/{item.place}",
        item.task,
        f"{item.video}.mp4",
        text,
        truth,
        form,
        options,
        answer,
        book.groups(item),
        extra=extra,
    )


def _information(text: str) -> dict[str, Mapping[str, Any]]:
    """The candidates of a captioning question by letter."""
    found: dict[str, Mapping[str, Any]] = {}
    for line in text.split("\n"):
        if line.startswith("Information ") and line[12:13] and line[13:15] == ": ":
            try:
                value = ast.literal_eval(line[15:])
            except (ValueError, SyntaxError):  # not written as a literal: then it is text
                value = {"text": line[15:]}
            found[line[12]] = value if isinstance(value, dict) else {"text": line[15:]}
    return found


# Answers --------------------------------------------------------------------------------------------------------------


class Reader:
    """Reads answers; with annotations it finds each item's question there and notes what contradicts it."""

    def __init__(self, book: Book, tasks: tuple[str, ...], notes: Notes) -> None:
        self.book, self.tasks, self.notes = book, tasks, notes

    @cached_property
    def _by_text(self) -> dict[tuple[str, str, str, str], Question]:
        """Questions by format, video, aspect and text."""
        return {(q.task, q.video[:-4], q.groups["aspect"], q.question): q for q in self.book.questions.values()}

    def own(self, file: Path) -> list[Answer]:
        """JSON lines ``{"id", "response"}``.

        Raises:
            InvalidValue: there are no annotations, or nothing can be read.
        """
        if not self.book.questions:
            raise InvalidValue(f"{file}: its lines name questions by id: give the annotations too (--against).")
        found = []
        for line, value in read_lines(file, self.notes):
            id = value.get("id")
            question = self.book.questions.get(id) if isinstance(id, str) else None
            if question is None:
                left_out = isinstance(id, str) and id.split("/")[0] in TASKS and id.split("/")[0] not in self.tasks
                if not left_out:
                    self.notes.add(file, line, f"{id!r} is the id of no question, left out")
            elif "response" not in value:
                self.notes.add(file, str(id), 'has no "response", left out')
            else:
                found.append(Answer(question, self._checked(file, question.id, value["response"]), str(file)))
        return found

    def official(self, file: Path) -> list[Answer]:
        """Predictions or stored ratings of one file, nested or flat.

        Raises:
            InvalidValue: it cannot be read.
        """
        task = file.stem if file.stem in TASKS else None
        content = read_json(file)
        if task is not None and task not in self.tasks:
            return []
        found = []
        for item in _items(file, content, task, self.notes):
            if item.task in self.tasks and (answer := self._answer(file, item)) is not None:
                found.append(answer)
        return found

    def _answer(self, file: Path, item: Item) -> Answer | None:
        value, name = item.value, f"{item.video}/{item.aspect}/{item.place}"
        key = next((key for key in ("prediction", "response") if key in value), None)
        if key is None and "rating" in value:
            question = self._question(file, item, rated=True)
            rating, match = value["rating"], value.get("match_success")
            if isinstance(rating, bool) or not isinstance(rating, int | float):
                self.notes.add(file, name, f"its rating is {kind(rating)} and no number, left out")
                return None
            stored = (float(rating), None if match is None else bool(match))
            question = _with(question, stored=stored, judged="chatgpt-response" in value or "chatgpt-answer" in value)
            return Answer(question, value.get("video-llm-prediction", ""), str(file))
        if key is None:
            self.notes.add(file, name, 'has no "prediction", left out')
            return None
        return Answer(self._question(file, item), self._checked(file, name, value[key]), str(file))

    def _checked(self, file: Path, name: str, response: Any) -> Any:
        if response is not None and not isinstance(response, str):
            self.notes.add(file, name, f"the answer is {kind(response)} and no text, the official script stops there")
        return response

    def _question(self, file: Path, item: Item, rated: bool = False) -> Question:
        """The annotations' question where its text and answer are the same, else the file's own under its id."""
        if self.book.fine and item.aspect != "order" and (item.video, item.aspect) not in self.book.fine:
            name = f"{item.video}/{item.aspect}"
            self.notes.add(file, name, "meta_info.json has no fine aspect of it, the official script stops there")
        if not self.book.questions:
            return question_of(item, self.book)
        text, truth = _text(item.value, "question"), _answer(item.value)
        id = f"{item.task}/{item.video}/{item.aspect}/{item.place}"
        known = self.book.questions.get(id)
        if text and (known is None or known.question != text):  # of a part of a list, places are others
            known = self._by_text.get((item.task, item.video, item.aspect, text), known)
        if known is None:
            self.notes.add(file, id, "the annotations have no such question, it is scored as the file has it")
            return question_of(item, self.book)
        if rated and item.task == "captioning":  # rated by the multi-choice question, whose answer is stored
            wanted = known.extra.get("choice", ("", truth))[1]
            if truth and truth != wanted:
                self.notes.add(file, id, f"its answer {truth!r} is {wanted!r} in the annotations")
            return known
        if (not text and rated) or (text == known.question and truth == known.truth):
            return known
        what = f"its answer {truth!r} is {known.truth!r}" if text == known.question else "its question is another one"
        self.notes.add(file, known.id, f"{what} in the annotations")
        own = question_of(item, self.book)
        return _with(own, id=known.id)


def _with(question: Question, *, id: str | None = None, **extra: Any) -> Question:
    return Question(
        id or question.id,
        question.task,
        question.video,
        question.question,
        question.truth,
        question.kind,
        question.options,
        question.answer,
        question.groups,
        question.clip,
        {**question.extra, **extra},
    )
