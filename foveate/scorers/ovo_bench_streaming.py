"""OVO-Bench for models that watch: a video as it runs, questions when they are asked, answers with their time.

Nobody gets a frame from later than the second in which a question is asked: frames are decoded from here, up to the
clock and no further, and the clock stamps the answers. :class:`StreamingAdapter` makes a model of whole clips one that
is asked like this; a model of its own pace implements :meth:`OnlineModel.respond`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InvalidValue, invalid
from .base import Figure, Question, Suite
from .ovo_bench_timeliness import Moment, claimed, credits, task_figures

#: Frames of a video from one moment to another, in seconds: ``decode(video, start, end)``.
Decode = Callable[[str, float, float], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question when it is asked: replies name its id."""

    id: str
    seconds: float
    prompt: str
    question: Question


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new at a moment: the frames since the last one, and what is asked now."""

    seconds: float
    frames: Sequence[Any]
    asked: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said, and when by the stream's clock."""

    id: str
    seconds: float
    text: str


class Stream:
    """One video as it runs; iterating over it moves its clock.

    Args:
        suite: an OVO-Bench with annotations.
        video: one of its videos.
        decode: gives frames; it is never asked for anything after :attr:`seconds`.
        once: ask a forward question once, when its wait begins (ids are those of threads, such as ``CRR/1468``), and
            let the model speak up; False: ask it at each of its moments, as the official protocol does.
        step: seconds from piece to piece; None: a piece for each moment in which something is asked.

    Raises:
        InvalidValue: a step that is not above 0, or a video without questions.
    """

    def __init__(
        self, suite: Suite, video: str, decode: Decode, *, once: bool = False, step: float | None = None
    ) -> None:
        if step is not None and not step > 0:
            raise invalid("step", step, "seconds above 0, or None for the moments of questions alone")
        questions = [question for question in suite.questions.values() if question.video == video]
        if not questions:
            raise InvalidValue(f"{suite.slug} asks nothing about {video!r}: give a video of its annotations.")
        self.video, self.step, self.seconds = video, step, 0.0
        self.end = max(_end(question) for question in questions)
        self.asked = sorted(_asked(suite, questions, once), key=lambda asked: asked.seconds)
        self._decode = decode

    def __iter__(self) -> Iterator[Piece]:
        """Pieces in order, from the beginning."""
        self.seconds, before, first = 0.0, 0.0, 0
        for now in self._clock():
            self.seconds = now
            frames = self._decode(self.video, before, now) if now > before else ()
            last = first
            while last < len(self.asked) and self.asked[last].seconds <= now:
                last += 1
            yield Piece(now, frames, tuple(self.asked[first:last]))
            before, first = now, last

    def _clock(self) -> list[float]:
        moments = {asked.seconds for asked in self.asked} | {self.end}
        if self.step is not None:
            moments |= {self.step * n for n in range(1, int(self.end / self.step) + 1)}
        return sorted(moments)


class OnlineModel(Protocol):
    """A model that watches and speaks when it has something to say."""

    def respond(self, stream: Stream) -> Iterable[tuple[str, str]]:
        """Go through the stream and yield (id of what was asked, text); the stream's clock says when."""
        ...


class StreamingAdapter(ABC):
    """Makes a model of whole clips one that is asked while a video runs: it sees all up to then, again each time."""

    @abstractmethod
    def answer(self, frames: Sequence[Any], prompt: str) -> str:
        """The model's answer to a prompt, with the frames up to the moment."""

    def ask(self, suite: Suite, question: Question, decode: Decode) -> str:
        """The answer to one question, from the video's beginning to the end of the second in which it is asked."""
        return self.answer(decode(question.video, 0.0, _end(question)), suite.prompt(question))

    def respond(self, stream: Stream) -> Iterator[tuple[str, str]]:
        """Answer each question of a stream in the moment in which it is asked."""
        seen: list[Any] = []
        for piece in stream:
            seen += piece.frames
            for asked in piece.asked:
                yield asked.id, self.answer(seen, asked.prompt)


def listen(model: OnlineModel, stream: Stream) -> list[Reply]:
    """All that a model says to a stream, with the time of the stream's clock.

    Raises:
        InvalidValue: a reply to something that was not asked, or not yet.
    """
    due = {asked.id: asked.seconds for asked in stream.asked}
    replies = []
    for id, text in model.respond(stream):
        if due.get(id, stream.end + 1) > stream.seconds:
            raise InvalidValue(f"{stream.video}: {id!r} was not asked by second {stream.seconds:g}: reply to what was.")
        replies.append(Reply(id, stream.seconds, text))
    return replies


def lines(replies: Iterable[Reply]) -> Iterator[dict[str, Any]]:
    """Replies as answers that ``foveate score`` reads, the first one to each question."""
    seen: set[str] = set()
    for reply in replies:
        if reply.id not in seen:
            seen.add(reply.id)
            yield {"id": reply.id, "response": reply.text, "seconds": reply.seconds}


def timeliness_of(suite: Suite, replies: Iterable[Reply], rules: str = "strict") -> list[Figure]:
    """The timeliness of replies to questions that were asked once: its mean, and each forward task.

    As :mod:`~foveate.scorers.ovo_bench_timeliness` has it, with delays from the evidence itself, for a model may speak
    at any moment. Silence earns nothing.

    Args:
        suite: whose forward questions all count.
        replies: of any videos; those to other questions are left out.
        rules: which a reply is read by.
    """
    said: dict[str, list[Reply]] = {}
    for reply in replies:
        said.setdefault(reply.id, []).append(reply)
    threads = {q.extra["thread"]: q for q in suite.questions.values() if "thread" in q.extra}
    earned = []
    for thread, question in threads.items():
        times, until = question.extra["times"], question.extra["until"]
        moments = []
        for reply in said.get(thread, ()):
            if until is None or reply.seconds <= until:
                level = sum(time <= reply.seconds for time in times)
                claim = claimed(suite.judge(question, reply.text, rules).said)
                moments.append(Moment(reply.seconds, level, float(claim == level), claim, claim is not None))
        found = credits(moments, dict(enumerate(times, 1)))
        earned.append((question, [found.get(level, 0.0) for level in range(1, len(times) + 1)]))
    return list(task_figures(earned))


def _asked(suite: Suite, questions: Iterable[Question], once: bool) -> Iterator[Asked]:
    begun: set[str] = set()
    for question in questions:
        thread = question.extra.get("thread")
        if not once or thread is None:
            yield Asked(question.id, _end(question), suite.prompt(question), question)
        elif thread not in begun:
            begun.add(thread)
            yield Asked(thread, float(question.extra.get("ask_time", 0.0)), suite.prompt(question), question)


def _end(question: Question) -> float:
    if question.clip.end is None:
        raise InvalidValue(f"{question.id} does not say when it is asked: give the annotations.")
    return question.clip.end
