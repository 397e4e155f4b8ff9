"""When a model answers, besides what: the score-based side of forward active responding, in a definition of ours.

The paper's appendix speaks of a score that rewards timely answers along the timeline; the authors say that it was never
made. So this is a reconstruction, and no number of it can be compared with a published one:

A *thread* is what one piece of evidence is waited for: a clue (CRR), a step's beginning (SSR), the end of the n-th
repetition (REC). It is asked at several moments. Before the evidence is there, an answer that claims it (yes, or n and
more) ends the thread with nothing: it was a guess. Afterwards the first right answer earns ``2 ** (-delay / 10 s)``,
where the delay counts from the first moment at which the evidence was there and the model was asked. Silence and what
cannot be read earn and end nothing. A task's score is the mean over its threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .base import Figure, Question, Row

#: Seconds of delay after which half of the credit is left.
HALF_LIFE = 10.0
#: More digits than this are no count: text of any length can be an answer.
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Moment:
    """What was said to a thread at one moment.

    Attributes:
        seconds: in the video.
        level: how much is true then: 0 or 1 for a clue or step, the count for repetitions.
        mark: whether it was right; a probability in expectations.
        said: the level that was claimed; None where it is not known.
        readable: whether anything was claimed at all.
    """

    seconds: float
    level: int
    mark: float
    said: int | None = None
    readable: bool = True


def credits(moments: Iterable[Moment], evidence: Mapping[int, float] | None = None) -> dict[int, float]:
    """The credit of every level above 0 at which something was said.

    Args:
        moments: of one clue, one step or one series of repetitions; the order does not matter.
        evidence: when each level was reached; None: delays count from the first moment of each level.
    """
    found, ahead, clear = {}, 0, 1.0
    ordered = sorted(moments, key=lambda moment: (moment.level, moment.seconds))
    for level, group in itertools.groupby(ordered, key=lambda moment: moment.level):
        run = list(group)
        if level > 0:
            start = run[0].seconds if evidence is None else evidence[level]
            found[level] = 0.0 if ahead >= level else clear * _first_right(run, start)
        for moment in run:
            if moment.said is None:
                clear *= moment.mark if moment.readable else 1.0
            elif moment.mark < 1:
                ahead = max(ahead, moment.said)
    return found


def timeliness(rows: Iterable[Row]) -> Iterator[Figure]:
    """Figures of the section "timeliness": its mean, and each forward task that has rows."""
    threads: dict[str, dict[str, Row]] = {}
    for row in rows:
        thread = row.answer.question.extra.get("thread")
        if thread is not None:  # of several answers to a question the first one was given
            threads.setdefault(thread, {}).setdefault(row.answer.question.id, row)
    earned = []
    for found in threads.values():
        question = next(iter(found.values())).answer.question
        earned.append((question, list(credits(map(moment_of, found.values())).values())))
    yield from task_figures(earned)


def task_figures(earned: Iterable[tuple[Question, Sequence[float]]]) -> Iterator[Figure]:
    """The mean over forward tasks, then each task, from the credits of threads."""
    parts: dict[str, Figure] = {}
    for question, credit in earned:
        part = parts.setdefault(question.task, Figure("timeliness", question.task))
        part.marks += credit
        part.clusters += [question.video] * len(credit)
    ordered = [parts[task] for task in ("REC", "SSR", "CRR") if task in parts]
    if ordered:
        yield Figure("timeliness", "forward", parts=tuple(ordered))
        yield from ordered


def moment_of(row: Row) -> Moment:
    """A verdict on the timeline of its thread."""
    extra, verdict = row.answer.question.extra, row.verdict
    return Moment(extra["realtime"], extra["level"], verdict.mark, claimed(verdict.said), verdict.readable)


def claimed(said: str) -> int | None:
    """The level that a verdict's answer claims: 1 for yes, 0 for no, a number; None for nothing."""
    if said in ("yes", "no"):
        return int(said == "yes")
    if not said.isdecimal():
        return None
    return int(said) if len(said) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _first_right(run: list[Moment], start: float) -> float:
    """The expected credit for the first right answer among those of one level."""
    earned, none_yet = 0.0, 1.0
    for moment in run:
        earned += none_yet * moment.mark * 2 ** (-max(0.0, moment.seconds - start) / HALF_LIFE)
        none_yet *= 1 - moment.mark
    return earned
