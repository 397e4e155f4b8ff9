"""Frames of video files and of folders of pictures, decoded through PyAV.

A file is first read without decoding, which gives the time of every frame; then what was chosen is decoded, from the
nearest key frame before it, and nothing after the last one.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidValue, missing_extra
from ..pyav import WHOLE, need_pyav
from .sampling import Timeline

if TYPE_CHECKING:
    import numpy as np

#: Pictures a second of a folder of them: MVBench's is the one that has such folders.
FOLDER_FPS = 3.0
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
#: Containers that keep no time of a frame: what FFmpeg makes up for them is not in the order of the frames.
UNSTAMPED = ("avi",)
JPEG_QUALITY = 90
PURPOSE = "decoding videos"


@dataclass(frozen=True, slots=True)
class Video:
    """A video and when its frames are.

    Attributes:
        path: the file or folder.
        timeline: of all its frames.
        stamps: presentation stamps in the file's own unit, in order; None: it has none and frames are counted.
        keys: (presentation, decoding) stamps of its key frames, in order.
        pictures: of a folder.
    """

    path: Path
    timeline: Timeline
    stamps: tuple[int, ...] | None = None
    keys: tuple[tuple[int, int], ...] = ()
    pictures: tuple[Path, ...] = ()


def open_video(path: Path) -> Video:
    """Find the frames of a video file, or of a folder of pictures.

    Raises:
        InvalidValue: it is absent, empty, cut off, or no video.
        MissingExtra: PyAV is absent.
    """
    if path.is_dir():
        pictures = tuple(sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES))
        if not pictures:
            raise InvalidValue(f"{path}: the folder has no picture.")
        times = [i / FOLDER_FPS for i in range(len(pictures))]
        return Video(path, Timeline(times, FOLDER_FPS, folder=True), pictures=pictures)
    if not path.exists():
        raise InvalidValue(f"{path}: is not there.")
    if path.stat().st_size == 0:
        raise InvalidValue(f"{path}: is empty.")
    with _opened(path) as (container, stream):
        found = [(p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
        fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        named, base, start = stream.frames, stream.time_base, stream.start_time
        stamped = container.format.name not in UNSTAMPED and base is not None
    if not found:
        raise InvalidValue(f"{path}: holds no frame.")
    if len(found) < WHOLE * named:
        raise InvalidValue(f"{path}: holds {len(found)} of the {named} frames that its header names; it is cut off.")
    if not stamped or any(pts is None for pts, _, _ in found):
        return Video(path, Timeline([i / fps for i in range(_count(path))], fps))
    stamps = tuple(sorted({pts for pts, _, _ in found}))
    zero = stamps[0] if start is None else min(start, stamps[0])
    keys = tuple(sorted((pts, pts if dts is None else dts) for pts, dts, key in found if key))
    return Video(path, Timeline([float((pts - zero) * base) for pts in stamps], fps), stamps, keys)


def read_frames(
    video: Video, places: Sequence[int], *, side: int | None = None, convert: Callable[[np.ndarray], Any] | None = None
) -> list[Any]:
    """Decode frames of a video.

    Args:
        video: as :func:`open_video` found it.
        places: in its timeline, in any order and more than once.
        side: the longest side in pixels; larger frames are made smaller.
        convert: what becomes of each frame, a (height, width, 3) array of bytes, as soon as it is decoded.

    Returns:
        One for each place, in their order.

    Raises:
        InvalidValue: a frame cannot be decoded.
    """
    wanted = sorted(set(places))
    if video.pictures:
        frames = (next(_decoded(video.pictures[place])) for place in wanted)
    elif video.stamps is None:
        frames = _counted(video.path, wanted)
    else:
        stamps = [video.stamps[place] for place in wanted]
        frames = _sought(video, stamps)
    found: dict[int, Any] = {}
    for place, frame in zip(wanted, frames, strict=True):
        array = _array(frame, side)
        found[place] = array if convert is None else convert(array)
    return [found[place] for place in places]


def jpeg(frame: np.ndarray) -> bytes:
    """A frame as a JPEG file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("Pillow", "video", "sending frames to a server") from error

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    av = need_pyav(PURPOSE)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InvalidValue(f"{path}: has no video in it.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InvalidValue(f"{path}: cannot be decoded ({reason}).") from error


def _decoded(path: Path, seek: int | None = None) -> Iterator[Any]:
    with _opened(path) as (container, stream):
        if seek is not None:
            container.seek(seek, stream=stream)
        yield from container.decode(stream)


def _count(path: Path) -> int:
    return sum(1 for _ in _decoded(path))


def _counted(path: Path, wanted: list[int]) -> Iterator[Any]:
    """Frames by their number in a file without time stamps."""
    left, last = iter(wanted), None
    place = next(left)
    for number, last in enumerate(_decoded(path)):
        if number == place:
            yield last
            place = next(left, None)
            if place is None:
                return
    raise InvalidValue(f"{path}: frame {place} cannot be decoded.")


def _sought(video: Video, stamps: list[int]) -> Iterator[Any]:
    """The frame on screen at each of some stamps, in order; runs from key frame to key frame."""
    keys = [pts for pts, _ in video.keys]
    frames: Iterator[Any] | None = None
    shown = ahead = None
    for stamp in stamps:
        key = bisect.bisect_right(keys, stamp) - 1
        latest = ahead or shown
        if frames is not None and not (key > 0 and (latest is None or keys[key] > latest.pts)):
            shown, ahead = _until(frames, stamp, shown, ahead)
        else:
            # Some containers look for presentation stamps, others for decoding stamps: a jump may land behind.
            for place in (*(video.keys[key] if key > 0 else ()), None):
                frames = _decoded(video.path, place)
                shown, ahead = _until(frames, stamp, None, None)
                if shown is not None:
                    break
        if shown is None:
            raise InvalidValue(f"{video.path}: the frame at {_seconds(video, stamp):.2f} s cannot be decoded.")
        yield shown


def _until(frames: Iterator[Any], stamp: int, shown: Any, ahead: Any) -> tuple[Any, Any]:
    """The last frame up to a stamp, and the next one if it was decoded already."""
    if ahead is not None:
        if ahead.pts > stamp:
            return shown, ahead
        shown, ahead = ahead, None
    while shown is None or shown.pts < stamp:
        frame = next(frames, None)
        if frame is None:
            return shown, None
        if frame.pts is None:
            continue
        if frame.pts > stamp:
            return shown, frame
        shown = frame
    return shown, None


def _seconds(video: Video, stamp: int) -> float:
    return video.timeline.times[bisect.bisect_left(video.stamps or (), stamp)]


def _array(frame: Any, side: int | None) -> np.ndarray:
    width, height = frame.width, frame.height
    if side is None or max(width, height) <= side:
        return frame.to_ndarray(format="rgb24")
    scale = side / max(width, height)
    sizes = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    return frame.to_ndarray(format="rgb24", interpolation="BICUBIC", **sizes)
