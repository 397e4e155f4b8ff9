"""Made-up clips that need time, small networks that read them, and what these reach; no claims in here.

A square moves over a torus while two marks flash above it, one after the other. Every clip comes with its reverse: both
have the same frames, so that what one frame shows, or all of them without their order, says nothing about the way of
the square or the order of the marks. Whether the square is full or hollow, every frame shows.

These are the conflicting clips of TempCompass (arXiv 2403.00476), the questions of MVBench that a static one becomes
when time is added (arXiv 2311.17005), and the items that TOMATO's ratios must tell apart (arXiv 2410.23266).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Frames of a clip: an odd number, so that a clip and its reverse share the one in the middle.
LENGTH = 15
#: Pixels a side; the marks have the rows above ``TOP``.
SIDE, TOP = 16, 5
#: Standard deviation of what is added to every pixel.
NOISE = 0.05

#: What a network is given: a frame drawn at random, the frame in the middle, all frames without order, or in order.
Sight = Literal["random", "middle", "unordered", "ordered"]


@dataclass(frozen=True, slots=True)
class Clips:
    """Clips and what is true of them.

    Attributes:
        frames: ``(number, LENGTH, SIDE, SIDE)``, float32; each clip is followed by its reverse.
        labels: by question, ``(number,)`` int64.
        classes: how many answers a question has.
    """

    frames: Tensor
    labels: Mapping[str, Tensor]
    classes: Mapping[str, int]


def conflicting(number: int, seed: int, ways: Literal[2, 4] = 2) -> Clips:
    """Clips in pairs that share all frames.

    Args:
        number: an even one.
        seed: of everything that is drawn.
        ways: in which a square moves: left and right, or up and down too.

    Returns:
        clips with the questions "direction" and "order", whose answers differ within a pair, and "attribute", whose
        answer does not.
    """
    rng = np.random.default_rng(seed)
    frames = np.zeros((number, LENGTH, SIDE, SIDE), np.float32)
    labels = {name: np.zeros(number, np.int64) for name in ("direction", "order", "attribute")}
    for i in range(0, number, 2):
        way = int(rng.integers(2)) + i % ways  # as many pairs up and down as left and right
        order, full = int(rng.integers(2)), int(rng.integers(2))
        frames[i] = _moving(rng, way, full) + _flashing(rng, order)
        frames[i] += NOISE * rng.standard_normal(frames[i].shape, np.float32)
        frames[i + 1] = frames[i, ::-1]
        labels["direction"][i : i + 2] = way, way ^ 1
        labels["order"][i : i + 2] = order, 1 - order
        labels["attribute"][i : i + 2] = full
    return _clips(frames, labels, {"direction": ways, "order": 2, "attribute": 2})


def counting(number: int, seed: int, most: int = 4) -> Clips:
    """Clips of a square that rests and jumps, with the question "count": how often, 1 to ``most``, from 0.

    Every place is as likely as any other at any time, so that a single frame does not tell.
    """
    rng = np.random.default_rng(seed)
    frames = np.zeros((number, LENGTH, SIDE, SIDE), np.float32)
    labels = {"count": rng.permutation(np.arange(number) % most)}
    for i, jumps in enumerate(labels["count"] + 1):
        times = np.sort(rng.choice(np.arange(1, LENGTH), jumps, replace=False))
        places = [rng.integers(SIDE, size=2)]
        for _ in range(jumps):  # never to where it would be hard to see that it has moved
            places.append((places[-1] + rng.integers(4, SIDE - 3, size=2)) % SIDE)
        for t in range(LENGTH):
            _draw(frames[i, t], *places[int(np.searchsorted(times, t, side="right"))], full=True)
    frames += NOISE * rng.standard_normal(frames.shape, np.float32)
    return _clips(frames, labels, {"count": most})


def _clips(frames: np.ndarray, labels: Mapping[str, np.ndarray], classes: Mapping[str, int]) -> Clips:
    return Clips(torch.from_numpy(frames), {name: torch.from_numpy(given) for name, given in labels.items()}, classes)


def _moving(rng: np.random.Generator, way: int, full: int) -> np.ndarray:
    """A square that goes left, right, up or down (0 to 3), and comes in again where it leaves."""
    low = np.zeros((LENGTH, SIDE - TOP, SIDE), np.float32)
    down, right = ((0, -1), (0, 1), (-1, 0), (1, 0))[way]
    y, x = rng.integers(SIDE - TOP), rng.integers(SIDE)
    for t in range(LENGTH):
        _draw(low[t], y + down * t, x + right * t, full=bool(full))
    return np.concatenate([np.zeros((LENGTH, TOP, SIDE), np.float32), low], 1)


def _draw(picture: np.ndarray, y: int, x: int, full: bool) -> None:
    rows, columns = ((start + np.arange(4)) % size for start, size in zip((y, x), picture.shape, strict=True))
    picture[np.ix_(rows, columns)] = 1
    if not full:
        picture[np.ix_(rows[1:3], columns[1:3])] = 0


def _flashing(rng: np.random.Generator, order: int) -> np.ndarray:
    """A lying and a standing mark, of two frames each, one after the other; ``order`` 1: the standing one is first."""
    found = np.zeros((LENGTH, SIDE, SIDE), np.float32)
    first = int(rng.integers(0, LENGTH - 5))
    second = int(rng.integers(first + 3, LENGTH - 1))
    for standing, start in ((bool(order), first), (not order, second)):
        x = int(rng.integers(SIDE - 4))
        if standing:
            found[start : start + 2, 0:4, x] = 1
        else:
            found[start : start + 2, 1, x : x + 4] = 1
    return found


# Reading --------------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Two circular convolutions over a frame (over two neighbours, if order may be seen), pooled over places and time.

    It is told where each pixel is, so that a place that gives an answer away is found.

    Args:
        classes: answers by question.
        sight: what it is given; "ordered" alone has a recurrent layer over time.
    """

    def __init__(self, classes: Mapping[str, int], sight: Sight, width: int = 32) -> None:
        super().__init__()
        self.sight = sight
        options: dict[str, Any] = {"padding": 1, "padding_mode": "circular"}
        self.frame = nn.Sequential(
            nn.Conv2d(3 + (sight == "ordered"), 16, 3, **options), nn.ReLU(), nn.Conv2d(16, width, 3, **options)
        )
        self.time = nn.GRU(2 * width, 2 * width, batch_first=True) if sight == "ordered" else None
        self.heads = nn.ModuleDict({name: nn.Linear(2 * width, count) for name, count in classes.items()})

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """``(B, T, H, W)`` to scores ``(B, classes)`` by question; of one frame, it is its own neighbour."""
        if self.sight == "ordered":
            shown = frames if frames.shape[1] > 1 else frames.repeat(1, 2, 1, 1)
            inputs = torch.stack([shown[:, :-1], shown[:, 1:]], 2)
        else:
            inputs = frames[:, :, None]
        where = torch.linspace(-1, 1, SIDE).expand(SIDE, SIDE)
        places = torch.stack([where, where.T]).expand(inputs.shape[0] * inputs.shape[1], 2, SIDE, SIDE)
        maps = F.relu(self.frame(torch.cat([inputs.flatten(0, 1), places], 1)))
        features = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1).unflatten(0, inputs.shape[:2])
        y = features.mean(1) if self.time is None else self.time(features)[0][:, -1]
        return {name: head(y) for name, head in self.heads.items()}


def shown(frames: Tensor, sight: Sight, generator: torch.Generator) -> Tensor:
    """What a reader is given of clips ``(B, T, H, W)``."""
    if sight == "middle":
        return frames[:, LENGTH // 2 : LENGTH // 2 + 1]
    if sight == "random":
        return frames[torch.arange(len(frames)), torch.randint(LENGTH, (len(frames),), generator=generator)][:, None]
    return frames


def train(clips: Clips, sight: Sight, steps: int, batch: int = 64, lr: float = 3e-3) -> Reader:
    """A reader of clips, trained on all their questions at once."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = Reader(clips.classes, sight)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randint(len(clips.frames), (batch,), generator=generator)
        scores = reader(shown(clips.frames[index], sight, generator))
        loss = torch.stack([F.cross_entropy(scores[name], given[index]) for name, given in clips.labels.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return reader.eval()


def accuracies(reader: Reader, clips: Clips) -> dict[str, float]:
    """Per cent that a reader answers rightly, by question."""
    with torch.no_grad():
        scores = reader(shown(clips.frames, reader.sight, torch.Generator().manual_seed(1)))
    return {
        name: 100 * float((scores[name].argmax(1) == given).double().mean()) for name, given in clips.labels.items()
    }


def reached(training: Clips, test: Clips, steps: Mapping[Sight, int]) -> dict[Sight, dict[str, float]]:
    """Accuracies on new clips of a reader of each sight, trained for so many steps."""
    return {sight: accuracies(train(training, sight, count), test) for sight, count in steps.items()}


# Auditing -------------------------------------------------------------------------------------------------------------


def diagnosed(answer: Callable[[list[Any]], int], clips: Clips, question: str) -> Any:
    """TOMATO's ratios of somebody who answers a question about frames (kappa, tau and rho by their names)."""
    from ..scorers.tomato_diagnostics import Item, audit

    truths = clips.labels[question].tolist()
    items = [Item(question, list(frames), truth) for frames, truth in zip(clips.frames.numpy(), truths, strict=True)]
    return audit(lambda _, frames: answer(frames), items, num_frames=LENGTH).diagnosis


def reading(reader: Reader, question: str) -> Callable[[list[Any]], int]:
    """A network as somebody who answers; one of a single frame looks at the first."""

    def answer(frames: list[Any]) -> int:
        seen = torch.from_numpy(np.stack(frames[:1] if reader.sight in ("random", "middle") else frames))
        with torch.no_grad():
            return int(reader(seen[None])[question].argmax())

    return answer
