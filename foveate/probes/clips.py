"""What is done to pictures so that two clips conflict, and what a video must have for it.

Clips that belong together are made so that the picture in their middle says nothing about which of them it is from:
the clip and its reverse share it, three clips of different speeds share it, and of two orders both show the same video
there.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .video import Footage

#: Mean difference of levels (0 to 255) between a clip and its reverse below which they are taken for the same.
LEAST_CHANGE = 1.0
#: Mean spread of a pixel's three colours (0 to 255) below which a video is taken for grey.
LEAST_COLOUR = 12.0
#: Pixels between two videos that are shown at once.
GAP = 4
#: How long the shorter of two videos in a row is, of the longer.
SHORTER = 0.7


def odd(frames: np.ndarray) -> np.ndarray:
    """The same with an odd number of pictures, so that there is one in the middle."""
    return frames if len(frames) % 2 else frames[:-1]


def changes(frames: np.ndarray) -> bool:
    """Whether a clip differs from its reverse; one in which nothing moves does not."""
    small = _small(frames)
    return bool(min(np.abs(some - some[::-1]).mean() for some in (small, small[:-1])) >= LEAST_CHANGE)


def colourful(frames: np.ndarray) -> bool:
    """Whether a clip can be told from the same in black and white."""
    some = frames[:: max(1, len(frames) // 8)].astype(np.int16)
    return bool((some.max(-1) - some.min(-1)).mean() >= LEAST_COLOUR)


def grey(frames: np.ndarray) -> np.ndarray:
    """In black and white."""
    levels = np.empty(frames.shape[:-1], np.uint8)
    for place, frame in enumerate(frames):  # one by one: floats of a whole clip would fill the memory
        levels[place] = np.round(frame @ np.array([0.299, 0.587, 0.114], np.float32))
    return np.broadcast_to(levels[..., None], frames.shape)


def mirrored(frames: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return frames[:, :, ::-1]


def two_speeds(frames: np.ndarray, case: int) -> np.ndarray:
    """A video and a copy of it at once: above each other, or beside each other if it is higher than wide.

    The second is ahead of the first by the same time in the middle of every case, where all three show the same
    picture; over the clip the first falls back in case 1 and catches up in case 2.

    Args:
        frames: ``(count, height, width, 3)``; two fifths of it are as long as the clip.
        case: 0: both at the same speed; 1: the first half as fast; 2: the first twice as fast.
    """
    half = (len(frames) - 1) // 5
    slow, fast = np.arange(-half, half + 1), 2 * np.arange(-half, half + 1)
    first, second = ((slow, slow), (slow, fast), (fast, slow))[case]
    middle = 2 * half
    return beside(frames[first + middle], frames[second + middle + half])


def beside(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two clips of the same size at once: above each other, or beside each other if they are higher than wide."""
    count, height, width, _ = first.shape
    axis = 2 if height > width else 1
    gap = np.zeros((count, *((height, GAP) if axis == 2 else (GAP, width)), 3), np.uint8)
    return np.concatenate([first, gap, second], axis)


def in_a_row(first: Footage, second: Footage, longer: int) -> tuple[np.ndarray, np.ndarray, Fraction]:
    """Two videos ready to be put in a row: the same size and frames a second, one longer than the other.

    In either order the longer one is on screen in the middle.

    Args:
        first, second: the videos.
        longer: 0 or 1, which of them.
    """
    fps = min(first.fps, second.fps)
    parts = [_thinned(video, fps) for video in (first, second)]
    count = min(map(len, parts)) // 2
    counts = [count, count]
    counts[1 - longer] = max(2, int(SHORTER * count))
    height, width = (max(part.shape[axis] for part in parts) for axis in (1, 2))
    one, other = (_framed(part[:n], height, width) for part, n in zip(parts, counts, strict=True))
    return one, other, fps


def _thinned(video: Footage, fps: Fraction) -> np.ndarray:
    count = max(1, int(len(video.frames) * fps / video.fps))
    places = np.floor(np.arange(count) * float(video.fps / fps) + 1e-6).astype(int)
    return video.frames[np.minimum(places, len(video.frames) - 1)]


def _framed(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """In the middle of a black picture of a size that is not smaller."""
    top, left = (height - frames.shape[1]) // 2, (width - frames.shape[2]) // 2
    found = np.zeros((len(frames), height, width, 3), np.uint8)
    found[:, top : top + frames.shape[1], left : left + frames.shape[2]] = frames
    return found


def _small(frames: np.ndarray) -> np.ndarray:
    """Levels at every fourth pixel, blurred over two: noise of single pixels is no change."""
    some = frames[:, ::4, ::4].mean(-1, dtype=np.float32)
    return (some[:, :-1, :-1] + some[:, 1:, 1:]) / 2
