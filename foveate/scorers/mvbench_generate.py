"""MVBench's questions from annotations of one's own videos: static questions with a twist in time.

The recipe is the paper's: every task asks what a single frame cannot show, options come from annotations, no language
model decides what is right. Wrong options are drawn from the same video before others, and from the pool of all videos
where that has too few; the right one lies at every letter equally often, and where options are always the same (yes and
no, parts of a video) every answer is right equally often, so that an answer that never looks gets what a guess gets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ..errors import InvalidValue, invalid, unknown_name
from ..files import atomic_write
from .mvbench import TASKS, stem
from .mvbench_annotations import Annotated, read_annotated
from .mvbench_tasks import MAKERS, Draft, Pool

__all__ = ["Made", "generate"]


@dataclass(slots=True)
class Made:
    """What was made.

    Attributes:
        questions: by task, in the format of MVBench's files.
        left_out: by task, how many drafts were left out and why.
    """

    questions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``folder/json/<task>.json`` for each task that has questions.

        Raises:
            InvalidValue: a file of that name is there.
        """
        place = Path(folder) / "json"
        files = {place / f"{stem(task)}.json": own for task, own in self.questions.items() if own}
        for file in files:
            if file.exists():
                raise InvalidValue(f"{file}: is there already: give another folder.")
        place.mkdir(parents=True, exist_ok=True)
        for file, own in files.items():
            atomic_write(file, json.dumps(own, indent=1, ensure_ascii=False) + "\n")
        return list(files)


def generate(
    annotations: str | Path | Sequence[Annotated],
    *,
    tasks: Sequence[str] | None = None,
    per_task: int = 200,
    num_options: int = 4,
    seed: int = 0,
) -> Made:
    """Make questions of the twenty tasks, as far as the annotations allow.

    Args:
        annotations: a file as :mod:`.mvbench_annotations` describes it, or what was read of one.
        tasks: some of the twenty, as "Action Sequence" or "action_sequence"; None: all.
        per_task: at most so many questions of a task, spread over its answers.
        num_options: at most so many options; with fewer than three a question is left out.
        seed: of what is drawn; the same seed makes the same questions.

    Raises:
        UnknownName: a task that there is not.
        InvalidValue: a number is too small, or the annotations cannot be read.
    """
    if per_task < 1:
        raise invalid("per_task", per_task, "give 1 or more")
    if not 3 <= num_options <= 26:
        raise invalid("num_options", num_options, "give 3 to 26")
    names = {name: task for task in TASKS for name in (task, stem(task))}
    for task in tasks or ():
        if task not in names:
            raise unknown_name("task", task, TASKS)
    chosen = {names[task] for task in tasks} if tasks is not None else set(TASKS)
    videos = read_annotated(annotations) if isinstance(annotations, str | Path) else list(annotations)
    pool, made = Pool(videos), Made()
    for task in (task for task in TASKS if task in chosen):
        random = Random(f"{seed}/{task}")
        left_out: dict[str, int] = {}
        drafts = [draft for video in videos for draft in MAKERS[task](video, pool, random)]
        asked = _with_options(drafts, num_options, random, left_out)
        asked = _spread(asked, per_task, random, left_out)
        made.questions[task] = [_written(task, *one) for one in _placed(asked, random)]
        made.left_out[task] = left_out
    return made


def _with_options(
    drafts: Iterable[Draft], most: int, random: Random, left_out: dict[str, int]
) -> list[tuple[Draft, list[str]]]:
    """Each draft and its wrong options: tier after tier, drawn within one."""
    found: list[tuple[Draft, list[str]]] = []
    asked: set[tuple[str, str, tuple[float, float] | None]] = set()
    for draft in drafts:
        key = (draft.video, draft.question, draft.part)
        wrong: list[str] = []
        for tier in draft.wrong:
            new = [text for text in dict.fromkeys(tier) if text != draft.answer and text not in wrong]
            wrong += random.sample(new, len(new))
        if key in asked:
            _count(left_out, "asked already")
        elif len(wrong) < 2:
            _count(left_out, "fewer than two wrong options")
        else:
            asked.add(key)
            found.append((draft, wrong[: most - 1]))
    return found


def _spread(
    asked: list[tuple[Draft, list[str]]], most: int, random: Random, left_out: dict[str, int]
) -> list[tuple[Draft, list[str]]]:
    """At most so many, by turns over the answers; of closed ones as many for each answer."""
    by_answer: dict[str, list[tuple[Draft, list[str]]]] = {}
    for one in random.sample(asked, len(asked)):
        by_answer.setdefault(one[0].answer, []).append(one)
    if asked and all(draft.closed for draft, _ in asked):
        fewest = min(len(own) for own in by_answer.values()) if len(by_answer) > 1 else 0
        for answer, own in by_answer.items():
            _count(left_out, "answers would not be balanced", len(own) - fewest)
            by_answer[answer] = own[:fewest]
    found: list[tuple[Draft, list[str]]] = []
    while any(by_answer.values()):
        found += [own.pop() for own in by_answer.values() if own]
    _count(left_out, "more than per_task", len(found[most:]))
    return found[:most]


def _placed(asked: Sequence[tuple[Draft, list[str]]], random: Random) -> list[tuple[Draft, list[str]]]:
    """Each draft and its candidates: the right one at every place equally often, among questions of as many options."""
    decks: dict[int, list[int]] = {}
    found = []
    for draft, wrong in asked:
        count = len(wrong) + 1
        deck = decks.setdefault(count, [])
        if not deck:
            deck += random.sample(range(count), count)
        candidates = random.sample(wrong, len(wrong))
        candidates.insert(deck.pop(), draft.answer)
        found.append((draft, candidates))
    return found


def _written(task: str, draft: Draft, candidates: list[str]) -> dict[str, Any]:
    """A question as MVBench's files have it; ``folder`` says that its video lies in none of MVBench's folders."""
    item: dict[str, Any] = {"video": draft.video, "question": draft.question, "candidates": candidates}
    item["answer"] = draft.answer
    if TASKS[task][3]:
        assert draft.part is not None
        item["start"], item["end"] = draft.part
    return item | {"folder": ""}


def _count(left_out: dict[str, int], why: str, number: int = 1) -> None:
    if number > 0:
        left_out[why] = left_out.get(why, 0) + number
