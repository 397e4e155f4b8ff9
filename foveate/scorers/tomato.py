"""TOMATO (arXiv 2410.23266): 1,484 questions in six kinds of reasoning about time, and how temporal they are.

A reply is read by a few patterns. What they do not read goes to a language model in the authors' evaluation, and then
to chance, so that the published rule has no figure of its own for it: here such a reply counts as a guess is expected
to, is drawn with a seed, or is wrong. The three ratios that audit a benchmark are in :mod:`.tomato_diagnostics`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidValue, invalid, unknown_name
from ..registry import register
from .base import Answer, Figure, Notes, Question, Row, Suite, Verdict, by_group, figure
from .letters import read_choice, text_of
from .reading import files_of, kind, read_files, read_json, taken
from .runs import apart, by_run
from .tomato_replies import build_prompt, parse_response

TASKS = ("count", "direction", "rotation", "shape&trend", "velocity&frequency", "visual_cues")
DEMONSTRATIONS = ("human", "object", "simulated")
#: How many frames the authors' tables are of.
FRAMES = 16
#: What the official scorer says to a folder without its prefix.
_NO_PREFIX = "AttributeError: 'NoneType' object has no attribute 'groups'"
_FOLDER = re.compile(r"(shuffle_)?([^+]+)\+([^+]+)")

#: What the official figures make of a reply that the rule does not read.
Unparsed = Literal["expected", "draw", "wrong"]


@dataclass(frozen=True, slots=True)
class _Place:
    """What a file's place says: ``[shuffle_]<task>+<demonstration>/<frames>/<model>.jsonl``."""

    shuffled: bool
    task: str
    demonstration: str
    frames: str
    model: str

    @property
    def run(self) -> str:
        frames = "the video" if self.frames == "-1" else f"{self.frames} frames"
        return f"{self.model}, {frames}{', shuffled' if self.shuffled else ''}"


@lru_cache(maxsize=4096)
def _place(file: str) -> _Place | None:
    path = Path(file).resolve()
    for depth, part in enumerate(reversed(path.parts[:-1])):
        if found := _FOLDER.fullmatch(part):
            frames = path.parts[-2] if depth else ""
            return _Place(found[1] is not None, found[2], found[3], frames, path.name.rsplit(".", 1)[0])
    return None


@register("scorer", "tomato")
class Tomato(Suite):
    """TOMATO: multiple choice on short videos, by kind of reasoning and of scene.

    Args:
        annotations: the release's folder, its ``data``, or one file of it; None: answers bring their own truth.
        tasks: only these; None: all.
        demonstrations: only these kinds of scene: human, object, simulated; None: all.
        unparsed: what the official figures make of a reply that the rule does not read: "expected", as often right as
            a guess; "draw", a guess with a seed; "wrong".
        seed: of "draw".

    Raises:
        UnknownName: no such task or kind of scene.
        InvalidValue: annotations cannot be read, or an answer is none of its options.
    """

    slug = "tomato"
    sections = ("overall", "task", "demonstration")
    published = {
        "count": 292,
        "direction": 403,
        "rotation": 286,
        "shape&trend": 223,
        "velocity&frequency": 210,
        "visual_cues": 70,
    }

    def __init__(
        self,
        annotations: str | Path | None = None,
        *,
        tasks: Sequence[str] | None = None,
        demonstrations: Sequence[str] | None = None,
        unparsed: Unparsed = "expected",
        seed: int = 0,
    ) -> None:
        self.tasks = _chosen("task", tasks, TASKS)
        self.demonstrations = _chosen("demonstration", demonstrations, DEMONSTRATIONS)
        if unparsed not in ("expected", "draw", "wrong"):
            raise invalid("unparsed", unparsed, "give expected, draw or wrong")
        self.unparsed, self.seed = unparsed, seed
        self.notes = Notes()
        self._asked: dict[str, Question] = {}
        self._warned: set[str] = set()
        if annotations is not None:
            self._read(Path(annotations), tasks is not None)
        self._noted = list(self.notes.sentences)
        self.questions = self._put = self._asked

    def _read(self, path: Path, chosen: bool) -> None:
        folder = path / "data" if (path / "data").is_dir() else path
        files = {f.stem: f for f in files_of(folder, ".json") if f.stem in TASKS and (f.parent == folder or f == path)}
        if not files:
            raise InvalidValue(f"{path}: has none of {', '.join(f'{t}.json' for t in TASKS)}: give TOMATO's data.")
        for task in self.tasks:
            if task not in files:
                if chosen:
                    raise InvalidValue(f"{path}: has no {task}.json: give the data of this task, or leave it out.")
                if path.is_file():
                    continue
                self.notes.add(path, "", f"{task}.json is absent: its {self.published[task]} questions are left out")
                continue
            items = read_json(files[task])
            if not isinstance(items, dict):
                raise InvalidValue(f"{files[task]}: holds {kind(items)} and no object of questions by id.")
            if len(items) != self.published[task]:
                self.notes.add(files[task], "", f"{len(items)} questions, published were {self.published[task]}")
            for id, item in items.items():
                question = _question(files[task], task, id, item)
                if question.groups["demonstration"] in self.demonstrations:
                    self._asked[question.id] = question

    def answers(self, predictions: Path) -> list[Answer]:
        self.notes = Notes(list(self._noted))
        if self.questions is not self._put:  # fewer were chosen since
            self._asked = self.questions
        self._warned.clear()
        root = predictions / "parsed_results" if (predictions / "parsed_results").is_dir() else predictions
        if root != predictions and (predictions / "results").is_dir():
            self.notes.add(predictions, "", "parsed_results is read, as the official scorer does, and results is not")
        runs: dict[str, list[Answer]] = {}
        for file, lines in read_files(files_of(root, ".jsonl"), self.notes):
            place = _place(str(file))
            found = runs.setdefault(place.run if place else file.stem, [])
            for _, (line, value) in taken(lines):
                answer = self._answer(file, line, value, place)
                if answer is not None:
                    found.append(answer)
        runs = {run: found for run, found in runs.items() if found}
        runs = dict(sorted(runs.items(), key=lambda item: (f" {FRAMES} frames" not in item[0], item[0])))
        if len(runs) > 1:
            several = f"answers of {len(runs)} runs ({'; '.join(runs)}): each has figures of its own"
            self.notes.add(predictions, "", f"{several}; a pattern such as '{root}/*/16/MODEL.jsonl' names one")
        answers, self.questions = apart(runs, self._asked)
        self._put = self.questions
        return answers

    def _answer(self, file: Path, line: str, value: Mapping[str, Any], place: _Place | None) -> Answer | None:
        """An answer; None, with a note, where a line is none. Left out without one is what was not chosen."""
        id = value.get("id")
        if not isinstance(id, str | int) or "response" not in value:
            missing = "response" if isinstance(id, str | int) else "id"
            self.notes.add(file, line, f"has no {missing}, left out")
            return None
        if "gt" not in value:
            question = self._own(file, str(id), place)
            return None if question is None else Answer(question, value["response"], str(file))
        if place is None:
            self._once(file, "is in no folder <task>+<demonstration>, which says what was asked: left out")
            return None
        if place.task not in TASKS and self.tasks == TASKS:
            self._once(file.parent, f"{place.task!r} is no task of TOMATO: counted as one")
        elif place.task not in self.tasks:
            return None
        if place.demonstration in DEMONSTRATIONS and place.demonstration not in self.demonstrations:
            return None
        if not isinstance(value["gt"], str) or not value["gt"]:
            self.notes.add(file, f"{place.task}/{id}", f"its gt is {value['gt']!r} and no letter, left out")
            return None
        if not place.shuffled:
            self._once(file.parent, f"no prefix shuffle_, the official scorer stops here ({_NO_PREFIX}): scored anyway")
        question = self._brought(file, f"{place.task}/{id}", value, place)
        return None if question is None else Answer(question, value["response"], str(file))

    def _once(self, file: Path, problem: str) -> None:
        """Note what holds for many lines and files at the first of them."""
        if problem not in self._warned:
            self._warned.add(problem)
            self.notes.add(file, "", problem)

    def _own(self, file: Path, id: str, place: _Place | None) -> Question | None:
        if not self._asked:
            raise InvalidValue(f"{file}: its answers bring no truth of their own: give the annotations (--against).")
        question = self._asked.get(id) or (self._asked.get(f"{place.task}/{id}") if place else None)
        if question is None:
            known = id.partition("/")[0] in TASKS and id.partition("/")[0] not in self.tasks
            if not known:
                self.notes.add(file, id, "no question of the annotations has this id, left out")
        return question

    def _brought(self, file: Path, id: str, value: Mapping[str, Any], place: _Place) -> Question | None:
        """The question of a line of the official layouts, with what it brings: the official rule goes by that."""
        letters, texts, truth = value.get("all_choices"), value.get("index2ans"), value["gt"]
        options: dict[str, str] = {}
        if isinstance(letters, list) and isinstance(texts, dict):
            options = {str(letter): str(texts.get(letter, "")) for letter in letters}
        parsed = not options
        groups = {"task": place.task, "demonstration": place.demonstration}
        if not self._asked:
            extra = {"parsed": True} if parsed else {}
            text = str(value.get("question", ""))
            return Question(id, place.task, id, text, truth, "choice", options, truth[0], groups, extra=extra)
        question = self._asked.get(id)
        if question is None:
            self.notes.add(file, id, "no question of the annotations has this id, left out")
            return None
        changes: dict[str, Any] = {"extra": {**question.extra, "parsed": True}} if parsed else {}
        if truth[0] != question.truth[0]:
            told = f"its gt is {truth!r}, the annotations say {question.truth!r}"
            self.notes.add(file, id, f"{told}: the official rules take the former, the strict ones the latter")
            changes["truth"] = truth
        if groups != question.groups:
            here, there = place.demonstration, question.groups["demonstration"]
            self.notes.add(file, id, f"is in a folder of {here}, the annotations say {there}: counted where it lies")
            changes["groups"] = groups
        if not parsed and options != question.options:
            self.notes.add(file, id, "its options are not those of the annotations: read by its own")
            changes["options"] = options
        return replace(question, **changes) if changes else question

    def judge(self, question: Question, response: Any, rules: str) -> Verdict:
        if rules == "strict":
            text = text_of(response)
            options = question.options or dict.fromkeys("ABCDEFG", "")
            said = "" if text is None else read_choice(text, options)
            return Verdict(float(said == question.answer) if said else 0.0, bool(said), said)
        if question.extra.get("parsed"):
            said = response if isinstance(response, str) else ""
            readable = said in (question.options or "ABCDEFG") and len(said) == 1
            return Verdict(float(said == question.truth[0]), readable, said)
        if not isinstance(response, str):  # the official script stops there
            return Verdict(0.0, False)
        said = parse_response(response, question.options, question.options)
        if said in question.options:
            return Verdict(float(said == question.truth[0]), True, said or "")
        return Verdict(self._guess(question), False)

    def _guess(self, question: Question) -> float:
        """What a reply counts that the rule does not read: the official script draws a letter, without a seed."""
        letters, right = list(question.options), question.truth[0]
        if self.unparsed == "wrong" or right not in letters:
            return 0.0
        if self.unparsed == "expected":
            return 1 / len(letters)
        return float(random.Random(f"{self.seed}/{question.id}").choice(letters) == right)

    def left_to_judge(self, row: Row) -> bool:
        asked = row.answer.question
        return not row.verdict.readable and isinstance(row.answer.response, str) and not asked.extra.get("parsed")

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        runs = by_run(rows)
        found = [figure("overall", run or "all", own, 4) for run, own in runs.items()]
        for section, known in (("task", TASKS), ("demonstration", DEMONSTRATIONS)):
            parts = {run: by_group(own, section) for run, own in runs.items()}
            names = dict.fromkeys([*known, *(name for part in parts.values() for name in part)])
            for name in names:
                for run, part in parts.items():
                    if name in part:
                        found.append(figure(section, f"{name}, {run}" if run else name, part[name], 4))
        return found

    def prompt(self, question: Question, frames: int | None = None) -> str:
        """The authors' prompt; ``frames=None`` is 16, 0 asks for a guess without a video."""
        return build_prompt(question.question, list(question.options.values()), FRAMES if frames is None else frames)[0]

    def system_prompt(self, question: Question) -> str:
        return "You are an expert in the dynamics of objects."

    def official_text(self, rows: Sequence[Row]) -> str:
        """The three tables of the official scorer, of 16 frames; pandas prints them.

        It reads folders with the prefix ``shuffle_`` alone and stops at others; those are shown where there are none
        with it.
        """
        import pandas as pd

        marks: dict[tuple[bool, str, str, str], list[float]] = {}
        for row in rows:
            place = _place(row.answer.file)
            if place is None:
                groups = row.answer.question.groups
                key = (False, groups["task"], groups["demonstration"], Path(row.answer.file).stem)
            elif place.frames != str(FRAMES):
                continue
            else:
                key = (place.shuffled, place.task, place.demonstration, place.model)
            marks.setdefault(key, []).append(row.verdict.mark)
        shuffled = any(key[0] for key in marks)
        keys = ["ReasonType", "DemoType", "Model"]
        counts = [(*key[1:], sum(own), len(own)) for key, own in marks.items() if key[0] == shuffled]
        frame: Any = pd.DataFrame(counts, columns=[*keys, "Score", "Count"])
        told = ""
        for title, by in (("main table", [0, 2]), ("demonstration types", [1, 2]), ("models", [2])):
            sums = frame.groupby([keys[place] for place in by])[["Score", "Count"]].sum()
            shares = (sums["Score"] / sums["Count"]).to_frame(f"Score_per_Count_{FRAMES}_Frames")
            told += f"filter result for {title}\n{shares}\n\n"
        return told


def _chosen(what: str, given: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    names = known if given is None or given == "ALL" else ((given,) if isinstance(given, str) else tuple(given))
    for name in names:
        if name not in known:
            raise unknown_name(what, name, known)
    return names


def _question(file: Path, task: str, id: str, item: Any) -> Question:
    try:
        options = [str(option) for option in item["options"]]
        scene, text, video = item["demonstration_type"], str(item["question"]), item["key"]
        place = item["answer"]
    except (KeyError, TypeError) as error:
        raise InvalidValue(f"{file}: question {id} is no question of TOMATO (no {error}): give its data.") from error
    if not isinstance(place, int) or not 0 <= place < len(options):
        raise InvalidValue(f"{file}: question {id} has answer {place!r}, but options 0 to {len(options) - 1}.")
    if scene not in DEMONSTRATIONS:
        raise InvalidValue(f"{file}: question {id} has demonstration_type {scene!r}: {', '.join(DEMONSTRATIONS)}.")
    letters = [chr(65 + number) for number in range(len(options))]
    return Question(
        f"{task}/{id}",
        task,
        f"videos/{scene}/{video}.mp4",
        text,
        f"{letters[place]}. {options[place]}",
        "choice",
        dict(zip(letters, options, strict=True)),
        letters[place],
        {"task": task, "demonstration": scene},
        extra={key: item[key] for key in ("motion_type", "variation") if key in item},
    )
