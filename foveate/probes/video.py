"""Videos in and out: the first seconds of a file as pictures at even times, and pictures as a file.

What files do differently is undone on reading: rotation, pixels that are not square, frames at uneven times, odd
sizes, transparency. So everything that is made of a file differs only in what was done to it on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidValue
from ..files import replace
from ..pyav import WHOLE, need_pyav

#: What a folder is searched for.
ENDINGS = (
    ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
#: Frames a second at most; more are thinned out.
MOST_FPS = 30
#: Pictures below this do not make a probe: nothing is left after speeding up.
FEWEST = 16
#: Pixels of the shorter side, at least.
SMALLEST = 16
_PURPOSE = "reading and writing videos"
#: MiB that the pictures of one video may take.
MOST_MEMORY = 1024


@dataclass(frozen=True, slots=True)
class Footage:
    """Pictures at even times.

    Attributes:
        frames: ``(count, height, width, 3)``, uint8, RGB; height and width are even.
        fps: of them, a second.
    """

    frames: np.ndarray
    fps: Fraction


def read(path: Path, *, seconds: float = 10.0, side: int = 480) -> Footage:
    """The beginning of a video.

    Args:
        path: of a file.
        seconds: how much of it.
        side: longest side in pixels; larger pictures are made smaller.

    Raises:
        InvalidValue: it is absent, empty, no video, cut off, too short or too small; the sentence names the file.
        MissingExtra: PyAV is absent.
    """
    if path.is_dir():
        raise InvalidValue(f"{path}: is a folder and no video.")
    if not path.exists():
        raise InvalidValue(f"{path}: does not exist.")
    if path.stat().st_size == 0:
        raise InvalidValue(f"{path}: is empty.")
    av = need_pyav(_PURPOSE)
    grid: _Grid | None = None
    try:
        with av.open(str(path)) as container:
            stream = next((s for s in container.streams.video if not _is_cover(s)), None)
            if stream is None:
                raise InvalidValue(f"{path}: has no video in it.")
            grid = _Grid(path, stream, seconds, side, stamped=container.format.name != "avi")
            if container.duration is not None:
                grid.length = min(seconds, container.duration / av.time_base)
            whole = not any(grid.take(frame) for frame in container.decode(stream))
            grid.end()
            named = stream.frames
    except (av.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        after = f" after {grid.seen} frames, it may be cut off" if grid is not None and grid.seen else ""
        raise InvalidValue(f"{path}: cannot be decoded{after} ({reason}).") from error
    if grid.seen == 0:
        raise InvalidValue(f"{path}: holds no frame.")
    if grid.seen == 1:
        raise InvalidValue(f"{path}: has a single frame, in which nothing can happen.")
    if whole and grid.seen < WHOLE * named:
        raise InvalidValue(f"{path}: holds {grid.seen} of the {named} frames that its header names, it is cut off.")
    height, width = grid.pictures[0].shape[:2]
    if min(height, width) < SMALLEST:
        raise InvalidValue(
            f"{path}: its pictures are {width} x {height}, at least {SMALLEST} pixels a side are needed."
        )
    if len(grid.pictures) < FEWEST:
        raise InvalidValue(f"{path}: has {len(grid.pictures)} frames, at least {FEWEST} are needed.")
    return Footage(np.stack(grid.pictures), grid.fps)


def write(path: Path, footage: Footage) -> None:
    """Write a clip as MP4: H.264 where this FFmpeg can, else MPEG-4; the file is whole or not there.

    Raises:
        InvalidValue: it cannot be written.
    """
    av = need_pyav(_PURPOSE)

    def encode(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream(codec(), rate=footage.fps)
            _, stream.height, stream.width, _ = footage.frames.shape
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1  # the same bits wherever it runs
            if codec() == "libx264":
                # Where x264 looks ahead, its bits depend on what happened to be in memory.
                stream.options = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
            else:
                stream.bit_rate = int(0.3 * stream.height * stream.width * footage.fps)
            for picture in footage.frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, encode)
    except (OSError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InvalidValue(f"{path}: cannot be written ({reason}): choose another folder with --out.") from error


def codec() -> str:
    """The encoder that clips are written by."""
    return "libx264" if "libx264" in need_pyav(_PURPOSE).codecs_available else "mpeg4"


def _is_cover(stream: Any) -> bool:
    """Whether it is the picture on a song's cover."""
    return "attached_pic" in str(stream.disposition)


class _Grid:
    """The picture on screen at even times, from frames as they are decoded.

    Args:
        path: for errors.
        stream: of the video.
        seconds: after which nothing is needed.
        side: longest side of a picture.
        stamped: whether frames have times; else they are counted (AVI keeps none, what FFmpeg makes up has gaps).
    """

    def __init__(self, path: Path, stream: Any, seconds: float, side: int, *, stamped: bool) -> None:
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.fps = min(self.rate, Fraction(MOST_FPS)).limit_denominator(1001)
        self.pictures: list[np.ndarray] = []
        self.seen = 0
        self.length = seconds  #: as far as is known
        self._path, self._seconds, self._side, self._stamped = path, seconds, side, stamped
        self._shape = float(stream.sample_aspect_ratio or 1)
        self._size: tuple[int, int] | None = None
        self._shown: Any = None
        self._start = self._time = 0.0

    def take(self, frame: Any) -> bool:
        """Take the next frame; whether no further one is needed."""
        self._size = self._size or self._fitting(frame)
        time = float(frame.pts * frame.time_base) if self._stamped and frame.pts is not None else None
        if self.seen == 0:
            self._start = time or 0.0
        time = float(self.seen / self.rate) if time is None else time - self._start
        if self.seen and time <= self._time:  # stamps that do not run forwards are none
            time = self._time + float(1 / self.rate)
        self._until(min(time, self._seconds))
        self.seen, self._shown, self._time = self.seen + 1, frame, time
        return time >= self._seconds

    def end(self) -> None:
        """No frame comes after the last one, which is shown as long as a usual one."""
        self._until(min(self._time + float(1 / self.rate), self._seconds))

    def _until(self, time: float) -> None:
        """Keep what has been on screen up to now; a stamp that is rounded up by a hundredth still counts."""
        picture = None
        while self._shown is not None and (len(self.pictures) + 0.01) / float(self.fps) < time - 1e-6:
            picture = _picture(self._shown, self._size or (2, 2)) if picture is None else picture
            self.pictures.append(picture)

    def _fitting(self, frame: Any) -> tuple[int, int]:
        size = _size(frame, self._side, self._shape)
        needed = 3 * size[0] * size[1] * self.length * float(self.fps) / 2**20
        if needed > MOST_MEMORY:
            raise InvalidValue(
                f"{self._path}: needs {needed:,.0f} MiB of memory, {MOST_MEMORY:,} are allowed: "
                "give a smaller --side or fewer --seconds."
            )
        return size


def _size(frame: Any, side: int, shape: float) -> tuple[int, int]:
    """Width and height of what is kept, before rotation: square pixels, even sides, not above ``side``."""
    width, height = float(frame.width * shape), float(frame.height)
    scale = min(1.0, side / max(width, height))
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def _picture(frame: Any, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    transparent = any(part.is_alpha for part in frame.format.components)
    picture = frame.to_ndarray(
        format="rgba" if transparent else "rgb24", width=width, height=height, interpolation="BICUBIC"
    )
    if transparent:  # what cannot be seen may hold anything: black it is
        picture = (picture[..., :3].astype(np.uint16) * picture[..., 3:] // 255).astype(np.uint8)
    turns = round(frame.rotation / 90) % 4  # against the clock, as numpy turns
    return np.rot90(picture, turns) if turns else picture
