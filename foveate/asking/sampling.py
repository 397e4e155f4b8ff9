"""Which frames of a video a model is shown, and in which order.

Numbers of frames are spread as the authors of a suite spread them: from the first to the last and rounded down, or at
the middles of equal parts. Whatever the way, no frame outside of the question's clip is chosen, so that a question
about a stream is answered from what has happened by then.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..errors import InvalidValue, invalid, unknown_name
from ..scorers.base import Clip, Shown
from ..scorers.mvbench_rules import frame_indices

Way = Literal["uniform", "fps", "single", "shuffled", "reversed", "stream"]
Which = Literal["first", "middle", "random"]
WAYS: tuple[str, ...] = get_args(Way)
WHICH: tuple[str, ...] = get_args(Which)


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        times: seconds from its beginning, in order.
        fps: frames a second, on average.
        folder: whether it is a folder of pictures; the authors' rules number these from one.
    """

    times: Sequence[float]
    fps: float
    folder: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """A way of choosing frames.

    Attributes:
        way: "uniform": so many over the clip; "fps": so many a second; "single": one; "shuffled", "reversed": those of
            the suite's own way in another order; "stream": those of the suite's own way up to the question's time.
        frames: how many; None: by ``fps``.
        fps: how many a second; None: by ``frames``.
        rule: "ends" or "centres", see :class:`~foveate.scorers.base.Shown`.
        which: the one frame of "single"; "random" is another one for each question.
        seed: of "shuffled" and of random single frames.
    """

    way: Way = "uniform"
    frames: int | None = 16
    fps: float | None = None
    rule: Literal["ends", "centres"] = "ends"
    which: Which = "middle"
    seed: int = 0

    @classmethod
    def of(
        cls,
        shown: Shown,
        way: str | None = None,
        *,
        frames: int | None = None,
        fps: float | None = None,
        which: str = "middle",
        seed: int = 0,
    ) -> Sampling:
        """A suite's own way, with what its user wants otherwise.

        Raises:
            UnknownName: a way, or a single frame, that there is not.
            InvalidValue: numbers below what is possible, or values that do not go together.
        """
        if way is not None and way not in WAYS:
            raise unknown_name("sampling", way, WAYS)
        if which not in WHICH:
            raise unknown_name("single frame", which, WHICH)
        if frames is not None and fps is not None:
            raise InvalidValue(f"frames={frames} and fps={fps:g} do not go together: give one of them.")
        if frames is not None and frames < 1:
            raise invalid("frames", frames, "at least 1; to show none, ask without videos")
        if fps is not None and not 0 < fps <= 1000:
            raise invalid("fps", fps, "more than 0, at most 1000")
        if way == "single" and (frames or 1) != 1:
            raise invalid("frames", frames, "sampling=single shows one")
        if way == "single" and fps is not None:
            raise invalid("fps", fps, "sampling=single shows one frame")
        if way == "uniform" and fps is not None:
            raise invalid("fps", fps, "sampling=uniform shows a number of frames: use sampling=fps")
        if way == "fps" and frames is not None:
            raise invalid("frames", frames, "sampling=fps shows as many as there are: use sampling=uniform")
        default = "stream" if shown.stream else "uniform" if shown.frames is not None else "fps"
        found: str = way or ("fps" if fps is not None and default == "uniform" else default)
        if way is None and frames is not None and default == "fps":
            found = "uniform"
        if frames is None and fps is None:
            frames, fps = shown.frames, shown.fps
        if found == "single":
            frames, fps = 1, None
        elif found == "uniform" and frames is None:
            frames, fps = 16, None
        elif found == "fps" and fps is None:
            frames, fps = None, shown.fps or 1.0
        return cls(found, frames, fps, shown.rule, which, seed)  # type: ignore[arg-type]

    def choose(self, video: Timeline, clip: Clip, id: str) -> list[int]:
        """Places in ``video.times``, in the order in which they are shown; some more than once in a short clip.

        Args:
            video: all of it.
            clip: what may be seen of it.
            id: of the question: random choices depend on it and on the seed alone.

        Raises:
            InvalidValue: the clip begins where the video has ended, or is needed and not there.
        """
        if self.way == "stream" and clip.end is None:
            raise InvalidValue("has no time stamp up to which a stream could be seen: use another sampling.")
        low, high = visible(video.times, clip)
        draw = random.Random(f"{self.seed}/{id}")
        if self.way == "single":
            return [{"first": low, "middle": (low + high) // 2, "random": draw.randint(low, high)}[self.which]]
        if self.fps is not None:
            chosen = _per_second(video.times, clip, self.fps, low, high)
        elif self.rule == "centres":
            chosen = _centres(video, clip, self.frames or 1)
        else:
            chosen = [low + int(i) for i in np.linspace(0, high - low, self.frames or 1).astype(int)]
        if self.way == "shuffled":
            draw.shuffle(chosen)
        return chosen[::-1] if self.way == "reversed" else chosen

    def words(self) -> str:
        """What is shown, as people read it."""
        if self.way == "single":
            return "one frame at random" if self.which == "random" else f"the {self.which} frame"
        count = f"{self.frames} frames" if self.fps is None else f"{self.fps:g} frames a second"
        count = count.replace("1 frames", "1 frame") if count.startswith("1 ") else count
        return count + {"shuffled": ", shuffled", "reversed": ", reversed", "stream": " up to the question"}.get(
            self.way, ""
        )

    def needed(self) -> int | None:
        """How many different frames a video should have; None where that depends on its length."""
        return None if self.fps is not None else self.frames


def visible(times: Sequence[float], clip: Clip) -> tuple[int, int]:
    """The first and the last place within a clip, whose end is no longer seen.

    Raises:
        InvalidValue: there is none.
    """
    low = 0 if clip.start is None else bisect.bisect_left(times, clip.start)
    high = len(times) - 1 if clip.end is None else bisect.bisect_left(times, clip.end) - 1
    if clip.end is not None and clip.end <= (clip.start or 0.0) and not clip.start:
        high = 0  # a question at the very beginning is about the first frame
    if low >= len(times):
        raise InvalidValue(f"ends after {times[-1]:.1f} s, before the clip that begins at {clip.start:g} s.")
    if high < low:
        raise InvalidValue(f"has no frame in the clip from {clip.start or 0:g} s to {clip.end:g} s.")
    return low, high


def _centres(video: Timeline, clip: Clip, count: int) -> list[int]:
    first = int(video.folder)
    last = len(video.times) - 1 + first
    start, end = -1e5 if clip.start is None else clip.start, 1e5 if clip.end is None else clip.end
    found = frame_indices((start, end), video.fps, last, count, first)
    return [min(max(index - first, 0), len(video.times) - 1) for index in found]


def _per_second(times: Sequence[float], clip: Clip, fps: float, low: int, high: int) -> list[int]:
    """The frames on screen at even times from the clip's beginning to its last frame."""
    start = clip.start or 0.0
    count = int((times[high] - start) * fps + 1e-6) + 1
    return [min(max(bisect.bisect_right(times, start + k / fps + 1e-6) - 1, low), high) for k in range(max(count, 1))]
