"""TempCompass (arXiv 2403.00476): five aspects of time, asked in four formats about videos that differ in time alone.

Multi-choice, yes or no, and caption matching are read by rules (:mod:`.tempcompass_rules`); what they do not read, and
every caption, goes to a judge. A format's figures are the mean ratings of its aspects and fine aspects, the mean over
all its items (not over aspects), and the share of replies that rules could read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidValue, unknown_name
from ..registry import register
from .base import Answer, Figure, Judge, Notes, Question, Row, Share, Shown, Suite, Verdict, by_group
from .letters import read_choice, read_yes_no, text_of
from .reading import files_of
from .tempcompass_reading import ASPECTS, TASKS, Book, Reader, read_annotations, read_fine
from .tempcompass_rules import (
    NOTHING,
    Reading,
    ReplyJudge,
    clean_caption,
    prepared,
    read_caption_matching,
    read_multi_choice,
    read_yes_no_prefix,
)

FINE_ASPECTS = (
    "fine-grained action",
    "coarse-grained action",
    "object motion",
    "camera motion",
    "absolute speed",
    "relative speed",
    "order",
    "color & light change",
    "size & shape change",
    "combined change",
    "other change",
)
#: Items by format and aspect in the authors' release.
PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "multi-choice": {"action": 338, "direction": 335, "speed": 317, "order": 302, "attribute_change": 288},
    "yes_no": {"action": 592, "direction": 494, "speed": 537, "order": 382, "attribute_change": 448},
    "caption_matching": {"action": 297, "direction": 327, "speed": 291, "order": 300, "attribute_change": 288},
    "captioning": {"action": 396, "direction": 436, "speed": 388, "order": 400, "attribute_change": 384},
}
_SUFFIXES = {
    "multi-choice": "\nPlease directly give the best option:",
    "caption_matching": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "captioning": "",
}


@register("scorer", "tempcompass")
class TempCompass(Suite):
    """TempCompass: 7,540 items on 410 videos in four formats.

    Ids are ``format/video/aspect/place``. A folder of predictions, one model's, is scored as a whole and by format.
    Stored ratings (``auto_eval_results``) are added up as they are.

    Args:
        annotations: the release's folder, its ``questions`` or one file of it; None: answers bring their own questions,
            and fine aspects are looked up in a ``meta_info.json`` in a folder around them.
        tasks: some of multi-choice, yes_no, caption_matching, captioning; None: all.

    Raises:
        UnknownName: a task that there is not.
        InvalidValue: the annotations cannot be read.
    """

    slug = "tempcompass"
    sections = ("overall", "format", "aspect", "fine aspect", "match rate")
    published = {task: sum(counts.values()) for task, counts in PUBLISHED.items()}
    shown = Shown(frames=None, fps=1.0)

    def __init__(self, annotations: str | Path | None = None, *, tasks: Sequence[str] | None = None) -> None:
        for task in tasks or ():
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
        self.tasks = tuple(task for task in TASKS if tasks is None or task in tasks)
        self.notes = Notes()
        self._given = annotations is not None
        self._book = read_annotations(Path(annotations), self.tasks, self.notes) if annotations is not None else Book()
        self.questions = self._book.questions
        if annotations is not None:
            self._check_counts(Path(annotations))
        self._noted = list(self.notes.sentences)

    def _check_counts(self, path: Path) -> None:
        counts: dict[str, dict[str, int]] = {}
        for question in self.questions.values():
            found = counts.setdefault(question.task, dict.fromkeys(ASPECTS, 0))
            found[question.groups["aspect"]] += 1
        for task, found in counts.items():
            other = [f"{n} of {aspect} for {PUBLISHED[task][aspect]}" for aspect, n in found.items()]
            if found != PUBLISHED[task]:
                self.notes.add(path, task, f"not as many questions as were published: {', '.join(other)}")

    def answers(self, predictions: Path) -> list[Answer]:
        """Read predictions or stored ratings, of one model, or JSON lines."""
        self.notes.sentences = list(self._noted)
        files = files_of(predictions, ".json", ".jsonl")
        if predictions.is_dir():
            files = [file for file in files if file.stem in TASKS or file.suffix == ".jsonl"]
            folders = sorted({str(file.parent.relative_to(predictions)) for file in files})
            if not files:
                raise InvalidValue(f"{predictions}: has none of {', '.join(f'{t}.json' for t in TASKS)}.")
            if len(folders) > 1:
                raise InvalidValue(f"{predictions}: holds answers of {', '.join(folders)}: give the folder of one.")
        if not self._given:
            self._book.fine = read_fine(predictions, self.notes)
        reader = Reader(self._book, self.tasks, self.notes)
        answers: list[Answer] = []
        for file in files:
            try:
                answers += reader.own(file) if file.suffix == ".jsonl" else reader.official(file)
            except InvalidValue as error:
                if len(files) == 1:
                    raise
                self.notes.sentences.append(f"{str(error).rstrip('.')}; left out.")
        self._check_answers(predictions, answers)
        return answers

    def _check_answers(self, predictions: Path, answers: Iterable[Answer]) -> None:
        aspects: dict[str, set[str]] = {}
        fine: dict[str, set[str]] = {}
        for answer in answers:
            groups = answer.question.groups
            aspects.setdefault(answer.question.task, set()).add(groups["aspect"])
            fine.setdefault(answer.question.task, set()).add(groups.get("fine aspect", ""))
        for task, found in aspects.items():
            lacking = [name for name in ASPECTS if name not in found]
            if self._book.fine:
                lacking += [name for name in FINE_ASPECTS if name not in fine[task] and name not in lacking]
            if lacking:
                self.notes.add(
                    predictions,
                    task,
                    f"has nothing of {', '.join(lacking)}, where the official script stops (ZeroDivisionError)",
                )

    def judge(self, question: Question, response: Any, rules: str) -> Verdict:
        """By the format's rule, or by whole answers; a caption that nobody rated has no mark (NaN)."""
        stored = question.extra.get("stored")
        if rules == "official":
            if stored is not None:
                found = stored[1] if stored[1] is not None else stored[0] >= 0
                return Verdict(stored[0], found, self._read(question, response).said)
            if question.task == "captioning":
                return Verdict(math.nan, False) if isinstance(response, str) else Verdict(0.0, False)
            reading = self._read(question, response)
            return Verdict(float(reading.mark), reading.found, reading.said)
        text = text_of(response)
        known = self.questions.get(question.id, question)
        if question.task == "captioning":
            if stored is not None:
                return Verdict(float(stored[0] > 0), stored[0] >= 0)
            return Verdict(math.nan, False) if text is not None else Verdict(0.0, False)
        said = _strictly(known, text) if text is not None else ""
        if not said and stored is not None and question.extra.get("judged"):
            return Verdict(float(stored[0] > 0))
        return Verdict(float(said == known.answer and bool(said)), bool(said), said)

    def _read(self, question: Question, response: Any) -> Reading:
        if not isinstance(response, str):
            return NOTHING
        reply = prepared(response)
        if question.task == "multi-choice":
            return read_multi_choice(reply, question.truth)
        if question.task == "yes_no":
            return read_yes_no_prefix(reply, question.truth)
        if question.task == "caption_matching":
            return read_caption_matching(reply, question.question, question.truth)
        return NOTHING

    def left_to_judge(self, row: Row) -> bool:
        """What no rule reads, and every caption; no answer at all and what was rated before are not."""
        question, response = row.answer.question, row.answer.response
        if not isinstance(response, str) or "stored" in question.extra:
            return False
        return question.task == "captioning" or not row.verdict.readable

    def ask_judge(self, judge: Judge, row: Row) -> float:
        """A judge's mark; of a caption, for the option of the multi-choice question that the caption says."""
        question, reply = row.answer.question, prepared(str(row.answer.response))
        if question.task != "captioning":
            return float(judge(question.question, question.truth, reply))
        file = Path(row.answer.file)
        caption = clean_caption(f"{file.parent.name} {file.stem}", reply)
        asked, truth = question.extra.get("choice", (question.question, question.truth))
        return float((judge.choose if isinstance(judge, ReplyJudge) else judge)(asked, truth, caption))

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Mean ratings over all items, by format, aspect and fine aspect, and how many rules could read.

        Of one format they are the three lines of the official script. Where captions were not rated, all are left out.
        """
        unrated = any(math.isnan(row.verdict.mark) and row.answer.response is not None for row in rows)
        rated = [row for row in rows if not (unrated and row.answer.question.task == "captioning")]
        present = {row.answer.question.task for row in rows}
        parts = by_group(rated, "format")
        by_task = {task: parts.get(task, []) for task in TASKS if task in present}
        found = [_figure("overall", "avg", rated)]
        if len(by_task) > 1:
            found += [_figure("format", task, own) for task, own in by_task.items()]
        for section, names in (("aspect", ASPECTS), ("fine aspect", FINE_ASPECTS)):
            for task, own in by_task.items():
                groups = by_group(own, section)
                if section == "fine aspect" and not groups:
                    continue
                for name in names:
                    label = name if len(by_task) < 2 else f"{task}: {name}"
                    found.append(_figure(section, label, groups.get(name, ())))
        for task, own in by_task.items():
            found.append(_figure("match rate", "all" if len(by_task) < 2 else task, own, matched=True))
        return found

    def prompt(self, question: Question, frames: int | None = None) -> str:
        """The question, and what the authors say behind it in its format."""
        return question.question + _SUFFIXES[question.task]

    def official_text(self, rows: Sequence[Row]) -> str:
        """The four lines that the official script of each format prints, format after format.

        None stands where it would stop, for there is no item.
        """
        told = ""
        for own in by_group(rows, "format").values():
            values = {figure.key: figure for figure in self.figures(own)}
            aspects = {name: _printed(values["aspect", name]) for name in ASPECTS}
            aspects["avg"] = _printed(values["overall", "avg"])
            fine = {name: _printed(values.get(("fine aspect", name))) for name in FINE_ASPECTS}
            rate = _printed(values["match rate", "all"])
            told += f"Accuracy Results:\n{aspects}\n{fine}\nMatch Success Rate={rate}\n"
        return told


def _figure(section: str, name: str, rows: Iterable[Row], matched: bool = False) -> Figure:
    rows = list(rows)
    return (Share if matched else Figure)(
        section,
        name,
        [_matched(row) if matched else row.verdict.mark for row in rows],
        [row.answer.question.video for row in rows],
        digits=1,
    )


def _matched(row: Row) -> float:
    """Whether a rule read the reply; captions have none, and baselines (no reply, yet read) no figure."""
    answer, verdict = row.answer, row.verdict
    stored = answer.question.extra.get("stored")
    if stored is not None:
        return float(bool(stored[1]))
    if answer.response is None and verdict.readable:
        return math.nan
    return float(answer.question.task != "captioning" and verdict.readable and not row.judged)


def _printed(figure: Figure | None) -> float | None:
    return None if figure is None or figure.value is None else round(figure.value, figure.digits)


def _strictly(question: Question, text: str) -> str:
    if text == question.truth and question.answer:
        return question.answer
    if question.task == "yes_no":
        return read_yes_no(text)
    said = read_choice(text, question.options)
    if not said and question.task == "caption_matching":
        short = {label.split(" ")[-1]: label for label in question.options}
        said = short.get(read_choice(text, {key: question.options[label] for key, label in short.items()}), "")
    return said
