"""MVBench (arXiv 2311.17005): twenty kinds of multiple-choice question about short clips, 200 of each.

A task's figure is the share of its replies that the published rule takes for right, and "Avg" the share of all. That
rule takes a lone bracket for right, and no reply at all (:func:`.mvbench_rules.check_answer`); how many replies have no
letter is said beside the figures. Questions of this form from annotations of one's own: :mod:`.mvbench_generate`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidValue, invalid, unknown_name
from ..registry import register
from .base import Answer, Clip, Figure, Notes, Question, Row, Share, Shown, Suite, Verdict, by_group
from .mvbench_rules import check_answer, first_letter, letter_of, question_text, right_option, strict_letter
from .reading import files_of, kind, read_json, read_lines, taken

#: Short name, folder of videos, kind of static question, and whether a part of the video counts, by task.
TASKS: Mapping[str, tuple[str, str, str, bool]] = {
    "Action Sequence": ("AS", "star/Charades_v1_480", "Action", True),
    "Action Prediction": ("AP", "star/Charades_v1_480", "Action", True),
    "Action Antonym": ("AA", "ssv2_video", "Action", False),
    "Fine-grained Action": ("FA", "Moments_in_Time_Raw/videos", "Action", False),
    "Unexpected Action": ("UA", "FunQA_test/test", "Action", False),
    "Object Existence": ("OE", "clevrer/video_validation", "Object", False),
    "Object Interaction": ("OI", "star/Charades_v1_480", "Object", True),
    "Object Shuffle": ("OS", "perception/videos", "Object", False),
    "Moving Direction": ("MD", "clevrer/video_validation", "Position", False),
    "Action Localization": ("AL", "sta/sta_video", "Position", True),
    "Scene Transition": ("ST", "scene_qa/video", "Scene", False),
    "Action Count": ("AC", "perception/videos", "Count", False),
    "Moving Count": ("MC", "clevrer/video_validation", "Count", False),
    "Moving Attribute": ("MA", "clevrer/video_validation", "Attribute", False),
    "State Change": ("SC", "perception/videos", "Attribute", False),
    "Fine-grained Pose": ("FP", "nturgbd", "Pose", False),
    "Character Order": ("CO", "perception/videos", "Character", False),
    "Egocentric Navigation": ("EN", "vlnqa", "Cognition", False),
    "Episodic Reasoning": ("ER", "tvqa/frames_fps3_hq", "Cognition", True),
    "Counterfactual Inference": ("CI", "clevrer/video_validation", "Cognition", False),
}
GROUPS = ("Action", "Object", "Position", "Scene", "Count", "Attribute", "Pose", "Character", "Cognition")
#: Said before every question; the wording is ours, what it asks for the authors'.
SYSTEM = (
    "Watch the video carefully: the cause and the sequence of events, the detail and the movement of objects, and the "
    "action and the pose of persons. Then select the option that answers the question best."
)
#: Said after it, and what the authors let their model's answer begin with.
SUFFIX, PRIMED = "Only give the best option.", "Best option:("
_LEADERBOARD = "Avg"


def stem(task: str) -> str:
    """The name of a task's file, without its ending."""
    return task.lower().replace(" ", "_").replace("-", "_")


_STEMS = {task: stem(task) for task in TASKS}
_NAMES = {name: task for task, told in TASKS.items() for name in (task, _STEMS[task], told[0])}


@register("scorer", "mvbench")
class MVBench(Suite):
    """MVBench: 4,000 questions in 20 tasks.

    Ids are ``task_file/place``: ``action_sequence/17``.

    Args:
        annotations: the release's folder, its ``json``, or one file of it; None: result files bring their own truth.
        tasks: some of the twenty, as "Action Sequence", "action_sequence" or "AS"; None: all.
        rule: what official figures go by: "v1" (published), "hd" or "lmms-eval", which leaves empty replies out.

    Raises:
        UnknownName: a task that there is not.
        InvalidValue: annotations cannot be read, an answer is none of its candidates, two candidates are the same, or a
            part of a video ends before it begins.
    """

    slug = "mvbench"
    sections = ("overall", "group", "task")
    published = dict.fromkeys(TASKS, 200)
    shown = Shown(frames=16, rule="centres")

    def __init__(
        self, annotations: str | Path | None = None, *, tasks: Sequence[str] | None = None, rule: str = "v1"
    ) -> None:
        for task in tasks or ():
            if task not in _NAMES:
                raise unknown_name("task", task, TASKS)
        if rule not in ("v1", "hd", "lmms-eval"):
            raise invalid("rule", rule, "give v1, hd or lmms-eval")
        chosen = set(TASKS if tasks is None else (_NAMES[task] for task in tasks))
        self.tasks = tuple(task for task in TASKS if task in chosen)
        self.rule = rule
        self.notes = Notes()
        self.questions: dict[str, Question] = {}
        if annotations is not None:
            self._read(Path(annotations))
        self._noted = list(self.notes.sentences)

    def _read(self, path: Path) -> None:
        folder = path / "json" if (path / "json").is_dir() else path
        known = {name: task for task, name in _STEMS.items()}
        files = {
            known[f.stem]: f for f in files_of(folder, ".json") if f.stem in known and f.parent in (folder, path.parent)
        }
        if not files:
            raise InvalidValue(f"{path}: has no {next(iter(known))}.json or the like: give MVBench's folder json.")
        for task in self.tasks:
            if task not in files:
                if not path.is_file():
                    self.notes.add(path, "", f"{stem(task)}.json is absent, {task} is left out")
                continue
            items = read_json(files[task])
            if not isinstance(items, list):
                raise InvalidValue(f"{files[task]}: holds {kind(items)} and no list of questions.")
            if len(items) != self.published[task]:
                self.notes.add(files[task], "", f"{len(items)} questions, published were {self.published[task]}")
            for place, item in taken(items):
                question = _question(files[task], task, place, item)
                self.questions[question.id] = question

    def answers(self, predictions: Path) -> list[Answer]:
        """Read result files ``{"acc_dict", "res_list"}``, lists of their rows, or JSON lines."""
        self.notes.sentences = list(self._noted)
        files = files_of(predictions, ".json", ".jsonl")
        counts = dict.fromkeys(TASKS, 0)
        answers: list[Answer] = []
        for file in files:
            try:
                answers += self._own(file) if file.suffix == ".jsonl" else self._results(file, counts)
            except InvalidValue as error:
                if len(files) == 1:
                    raise
                self.notes.sentences.append(f"{str(error).rstrip('.')}; left out.")
        if self.questions:
            known = Counter(question.task for question in self.questions.values())
            for task, count in counts.items():
                if count and known[task] and count != known[task]:
                    self.notes.add(predictions, task, f"{count} answers to {known[task]} questions, paired in order")
        return answers

    def _own(self, file: Path) -> list[Answer]:
        if not self.questions:
            raise InvalidValue(f"{file}: its lines name questions by id: give the annotations too (--against).")
        known = {_STEMS[task] for task in TASKS if task not in self.tasks}
        found = []
        for line, value in read_lines(file, self.notes):
            id = value.get("id")
            question = self.questions.get(id) if isinstance(id, str) else None
            if question is None:
                if not isinstance(id, str) or id.split("/")[0] not in known:
                    self.notes.add(file, line, f"{id!r} is the id of no question, left out")
            elif "response" not in value:
                self.notes.add(file, str(id), 'has no "response", left out')
            else:
                found.append(Answer(question, self._checked(file, question.id, value["response"]), str(file)))
        return found

    def _results(self, file: Path, counts: dict[str, int]) -> list[Answer]:
        content = read_json(file)
        told: dict[str, Any] = {}
        if isinstance(content, dict):
            if "res_list" not in content and _LEADERBOARD in content:
                raise InvalidValue(f"{file}: is a leaderboard of percentages without answers: give the result file.")
            told, content = content.get("acc_dict") or {}, content.get("res_list")
        if not isinstance(content, list):
            raise InvalidValue(f'{file}: has no list of answers: give a result file {{"acc_dict", "res_list"}}.')
        found = []
        names = self._tasks_of(file, told, len(content))
        for number, row in taken(content):
            task = next(names, None)
            if not isinstance(row, dict) or not isinstance(row.get("gt"), str) or "pred" not in row:
                self.notes.add(file, f"row {number}", 'is no object with "pred" and "gt", left out')
                continue
            given = row.get("task_type", row.get("task", task))
            if given is not None and given not in _NAMES:
                self.notes.add(file, f"row {number}", f"{given!r} is none of the tasks, left out")
                continue
            task = None if given is None else _NAMES[given]
            question = self._of_row(file, number, task, row["gt"], counts)
            if task is None or task in self.tasks:
                found.append(Answer(question, self._checked(file, question.id, row["pred"]), str(file)))
        self._compare(file, told, found)
        return found

    def _tasks_of(self, file: Path, told: Mapping[str, Any], rows: int) -> Iterator[str]:
        """The task of each row: rows lie task after task, as many as ``acc_dict`` counts, or as there are questions."""
        totals = {task: value[1] for task, value in told.items() if isinstance(value, list) and len(value) == 2}
        if told and sum(totals.values()) != rows:
            self.notes.add(file, "acc_dict", f"counts {sum(totals.values())} answers, res_list has {rows}")
        if not told and sum(1 for _ in self.questions) == rows:
            totals = {task: len(own) for task, own in _by_task(self.questions.values()).items()}
        for task, total in totals.items():
            yield from [task] * total

    def _of_row(self, file: Path, number: int, task: str | None, truth: str, counts: dict[str, int]) -> Question:
        place = number if task is None else counts[task]
        id = f"{_STEMS[task] if task else 'question'}/{place}"
        if task is not None:
            counts[task] += 1
        known = self.questions.get(id)
        if known is not None and known.truth == truth:
            return known
        if known is not None:
            self.notes.add(file, id, f"its answer {truth!r} is {known.truth!r} in the annotations")
        elif self.questions and (task is None or task in self.tasks):
            self.notes.add(file, id, "the annotations have no such question, it is scored as the file has it")
        if not letter_of(truth):
            self.notes.add(file, id, f"its right answer {truth!r} has no letter")
        elif not truth[3:].strip():
            self.notes.add(file, id, "its right option is empty, the official script stops there (IndexError)")
        video = known.video if known is not None else id
        groups = {} if task is None else {"task": task, "group": TASKS[task][2]}
        return Question(id, task or "", video, "", truth, "choice", {}, letter_of(truth), groups)

    def _checked(self, file: Path, name: str, response: Any) -> Any:
        if not isinstance(response, str):
            self.notes.add(file, name, f"the answer is {kind(response)} and no text, the official script stops there")
        return response

    def _compare(self, file: Path, told: Mapping[str, Any], answers: Iterable[Answer]) -> None:
        """Note where the file's own counts are not those of the rule."""
        rows = [Row(answer, self.judge(answer.question, answer.response, "official")) for answer in answers]
        for task, own in by_group(rows, "task").items():
            counted = told.get(task)
            right = sum(row.verdict.mark for row in own if not math.isnan(row.verdict.mark))
            if isinstance(counted, list) and len(counted) == 2 and counted[0] != right:
                self.notes.add(file, task, f"acc_dict has {counted[0]} right, the rule {self.rule} gives {right:g}")

    def judge(self, question: Question, response: Any, rules: str) -> Verdict:
        """By the suite's rule; strictly, by one whole option."""
        if rules != "official":
            known = self.questions.get(question.id, question)
            exact = response == known.truth and known.answer
            said = known.answer if exact else strict_letter(response, known.truth, known.options)
            return Verdict(float(bool(said) and said == known.answer), bool(said), said)
        if not isinstance(response, str):
            return Verdict(0.0, False)
        said = first_letter(response)
        if self.rule == "lmms-eval":
            if not question.answer or not response:
                return Verdict(math.nan if not response else 0.0, False)
            return Verdict(float(check_answer(response, question.truth, self.rule)), bool(said), said)
        return Verdict(float(check_answer(response, question.truth, self.rule)), bool(said), said)

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """The share of all and the mean of tasks, then the nine kinds of static question and the twenty tasks."""
        rated = [row for row in rows if not (math.isnan(row.verdict.mark) and row.answer.response is not None)]
        by_task, by_kind = by_group(rated, "task"), by_group(rated, "group")
        tasks = [_share("task", task, by_task[task]) for task in TASKS if task in by_task]
        mean = Figure("overall", "mean of tasks", parts=tuple(tasks))
        groups = [_share("group", name, by_kind[name]) for name in GROUPS if name in by_kind]
        return [_share("overall", _LEADERBOARD, rated), *([mean] if tasks else []), *groups, *tasks]

    def prompt(self, question: Question, frames: int | None = None) -> str:
        """The question and its options between the authors' requests; :data:`PRIMED` begins their model's answer."""
        if not question.options:
            raise InvalidValue(f"{question.id}: has no options to ask for: give the annotations.")
        return f"{SYSTEM}\n{question_text(question.question, list(question.options.values()))}\n{SUFFIX}"

    def official_text(self, rows: Sequence[Row]) -> str:
        """The last line that the notebook prints: the leaderboard."""
        return f"{leaderboard(rows)}\n"

    def random_accuracy(self) -> float:
        """What a guess is expected to get, in per cent: the mean of 1 over the number of candidates.

        Raises:
            InvalidValue: without annotations.
        """
        if not self.questions:
            raise InvalidValue("random_accuracy needs the candidates of questions: give MVBench the annotations.")
        return sum(1 / len(question.options) for question in self.questions.values()) / len(self.questions) * 100

    def summary_accuracy(self) -> float:
        """What the authors' data set says of itself as "total random accuracy": no probability of anything.

        It adds to the number of questions one over the number of options of each task, and divides by that of all.
        """
        options = {t: sum(len(q.options) for q in own) for t, own in _by_task(self.questions.values()).items()}
        return (len(self.questions) + sum(1 / count for count in options.values())) / sum(options.values()) * 100


def result_file(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows by the official rule as the notebook's result file: right and total by task, and the answers."""
    counts: dict[str, list[int]] = {}
    answers = []
    for row in rows:
        found = counts.setdefault(row.answer.question.task, [0, 0])
        found[0] += int(row.verdict.mark)
        found[1] += 1
        answers.append({"pred": row.answer.response, "gt": row.answer.question.truth})
    return {"acc_dict": counts, "res_list": answers}


def leaderboard(rows: Iterable[Row]) -> dict[str, float]:
    """Rows by the official rule as the file that is uploaded: per cent by task, and "Avg" over all answers."""
    counts = result_file(rows)["acc_dict"]
    right, total = (sum(value[place] for value in counts.values()) for place in (0, 1))
    shares = {task: value[0] / value[1] * 100 for task, value in counts.items()}
    return shares | {_LEADERBOARD: right / total * 100} if total else shares


def _share(section: str, name: str, rows: Iterable[Row]) -> Figure:
    rows = list(rows)
    return Share(section, name, [row.verdict.mark for row in rows], [row.answer.question.video for row in rows])


def _by_task(questions: Iterable[Question]) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.task, []).append(question)
    return found


def _question(file: Path, task: str, place: int, item: Any) -> Question:
    folder, group, bounded = TASKS[task][1:]
    start = end = None
    try:
        text, candidates, answer = item["question"], list(item["candidates"]), item["answer"]
        letter, truth = right_option(candidates, answer)
        video = f"{item.get('folder', folder)}/{item['video']}".lstrip("/")  # questions of one's own name their folder
        if bounded:
            start, end = float(item["start"]), float(item["end"])
    except InvalidValue as error:
        raise InvalidValue(f"{file}: question {place}: {error}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidValue(
            f"{file}: question {place} is no question of {task} ({error}): give MVBench's json."
        ) from error
    if start is not None and end is not None and not start < end:
        raise InvalidValue(f"{file}: question {place} begins at {start:g} and ends at {end:g} seconds.")
    known = ("video", "folder", "question", "candidates", "answer")
    return Question(
        f"{stem(task)}/{place}",
        task,
        video,
        text,
        truth,
        "choice",
        {chr(65 + number): str(candidate) for number, candidate in enumerate(candidates)},
        letter,
        {"task": task, "group": group},
        Clip(start, end),
        {key: value for key, value in item.items() if key not in known},
    )
