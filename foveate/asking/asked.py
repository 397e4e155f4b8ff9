"""A question with what a model is shown, and what came of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..errors import InvalidValue
from ..scorers.base import Question, Suite
from .frames import Video, open_video, read_frames
from .sampling import Sampling

#: Frames that are kept for further questions about a video.
KEPT_FRAMES = 256
#: Videos whose frames' times are kept.
KEPT_VIDEOS = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is given.

    Attributes:
        question: of the suite.
        system: text; "" for none.
        prompt: text.
        frames: as the model wants them, in the order shown; empty without video.
        times: seconds of the frames.
        fps: of the video.
        total: how many frames the video has.
        repeated: how many of the frames are there again because the clip has fewer.
    """

    question: Question
    system: str
    prompt: str
    frames: Sequence[Any] = ()
    times: Sequence[float] = ()
    fps: float = 0.0
    total: int = 0
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a question: an answer, or the reason why there is none.

    Attributes:
        id: of the question.
        response: the model's words; None where it failed.
        reason: why it failed, a sentence.
        about_all: whether other questions would fail in the same way.
        asked: what the model was given, if it came so far.
        tries: how often it was asked.
        seconds: that it took.
    """

    id: str
    response: str | None = None
    reason: str = ""
    about_all: bool = False
    asked: Asked | None = None
    tries: int = 1
    seconds: float = 0.0


class Model(Protocol):
    """What answers: gives an outcome for each question, in any order.

    Attributes:
        name: by which the user called it.
        shows: frames as "pictures" or as a "video".
    """

    name: str
    shows: str

    def convert(self, frame: Any) -> Any:
        """What becomes of a frame, a (height, width, 3) array of bytes."""
        ...

    def outcomes(self, questions: Sequence[Question], give: Callable[[Question], Asked]) -> Any:
        """An iterator over outcomes; ``give`` reads what the model is shown."""
        ...

    def leave(self, seconds: float) -> list[Outcome]:
        """Stop asking; what still comes within some seconds."""
        ...


@dataclass
class Giver:
    """Prepares questions: finds and decodes their videos, and keeps what the next ones may need.

    Args:
        suite: whose prompts are used.
        videos: the folder of videos; None: nothing is shown.
        sampling: which frames.
        side: longest side of a frame in pixels.
        convert: what becomes of a frame.
    """

    suite: Suite
    videos: Path | None
    sampling: Sampling
    side: int | None
    convert: Callable[[Any], Any]
    _videos: OrderedDict[Path, Video] = field(default_factory=OrderedDict)
    _frames: OrderedDict[tuple[Path, tuple[int, ...]], list[Any]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, question: Question) -> Asked:
        """What a model is given for a question.

        Raises:
            InvalidValue: the video cannot be used; the message names it.
        """
        system = self.suite.system_prompt(question)
        if self.videos is None:
            return Asked(question, system, self.suite.prompt(question, 0))
        path = find_video(self.videos, question.video)
        video = self._kept(self._videos, path, lambda: open_video(path))
        try:
            places = self.sampling.choose(video.timeline, question.clip, question.id)
        except InvalidValue as error:
            raise InvalidValue(f"{path}: {error}") from error
        key = (path, tuple(sorted(places)))
        different = sorted(set(places))
        found = self._kept(
            self._frames, key, lambda: read_frames(video, different, side=self.side, convert=self.convert)
        )
        by_place = dict(zip(different, found, strict=True))
        return Asked(
            question,
            system,
            self.suite.prompt(question, len(places)),
            [by_place[place] for place in places],
            [video.timeline.times[place] for place in places],
            video.timeline.fps,
            len(video.timeline.times),
            len(places) - len(different) if self.sampling.needed() is not None else 0,
        )

    def _kept(self, store: OrderedDict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in store:
                store.move_to_end(key)
                return store[key]
        value = make()
        with self._lock:
            store[key] = value
            while len(self._videos) > KEPT_VIDEOS:
                self._videos.popitem(last=False)
            while len(self._frames) > 1 and sum(map(len, self._frames.values())) > KEPT_FRAMES:
                self._frames.popitem(last=False)
        return value


def find_video(folder: Path, name: str) -> Path:
    """Where a video of a suite lies below a folder, which may be the release's ``videos`` or the one around it.

    Raises:
        InvalidValue: it is not there, or the name leads out of the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise InvalidValue(f"{name!r} is no name of a video below {folder}.")
    candidates = [folder.joinpath(*parts), folder.joinpath("videos", *parts)]
    if parts[0] == "videos" and len(parts) > 1:
        candidates.append(folder.joinpath(*parts[1:]))
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise InvalidValue(f"{folder.joinpath(*parts)}: is not there.")
