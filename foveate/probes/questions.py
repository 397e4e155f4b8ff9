"""Questions about probes, free of any suite's format: what is asked, what is right, and what is wrong.

Every clip of a group has one right answer among options that the others of its group have, so that saying the same
to all of them is a guess.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .words import Caption, sentence

Kind = Literal["reversed", "speed", "order", "mirrored", "control"]
#: What may be chosen; the control goes with them.
KINDS: tuple[Kind, ...] = ("reversed", "speed", "order", "mirrored")


@dataclass(frozen=True, slots=True)
class Option:
    """Something that is true of a clip or not.

    Attributes:
        text: to choose.
        claim: as a sentence.
        poll: to be answered by yes or no.
    """

    text: str
    claim: str
    poll: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a clip.

    Attributes:
        clip: its id.
        kind: what was done to it.
        question: with options to choose from.
        options: all of them, the right one first.
        events: what comes first and what then, of a clip of two videos.
    """

    clip: str
    kind: Kind
    question: str
    options: tuple[Option, ...]
    events: tuple[str, str] | None = None

    @property
    def truth(self) -> Option:
        """The right option."""
        return self.options[0]


class Deck:
    """Deals places so that each comes equally often: ``count`` in a row are all of them, in an order drawn anew."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._dealt: dict[tuple[str, int], list[int]] = {}
        self._draws: dict[tuple[str, int], random.Random] = {}

    def deal(self, name: str, count: int) -> int:
        """The next of 0 to ``count - 1`` in the pile of this name."""
        key = (name, count)
        left = self._dealt.setdefault(key, [])
        if not left:
            left.extend(range(count))
            self._draws.setdefault(key, random.Random(f"{self._seed}/{name}/{count}")).shuffle(left)
        return left.pop()

    def arrange(self, name: str, options: Sequence[Option]) -> list[Option]:
        """Options with the first of them at the next place, the others in their order around it."""
        place = self.deal(name, len(options))
        rest = list(options[1:])
        return [*rest[:place], options[0], *rest[place:]]


def about_reversed(clip: str, backward: bool, caption: Caption | None) -> Asked:
    """Whether a clip is played forwards; with a caption, what happens in it."""
    if caption is not None:
        texts = (caption.forward, caption.backward)
        return _asked(clip, "reversed", "What happens in the video?", [_happens(text) for text in texts], backward)
    options = [
        Option(way, f"The video is played {way}.", f"Is the video played {way}?") for way in ("forwards", "backwards")
    ]
    return _asked(clip, "reversed", "Is the video played forwards or backwards?", options, backward)


def about_mirrored(clip: str, flipped: bool, texts: tuple[str, str]) -> Asked:
    """What happens in a clip, of two captions that differ in left and right."""
    question = "What happens in the video, as its viewer sees it?"
    return _asked(clip, "mirrored", question, [_happens(text) for text in texts], flipped)


def about_speed(clip: str, case: int, side_by_side: bool) -> Asked:
    """Which of two copies that are seen at once is the faster one; cases as in :func:`~.clips.two_speeds`."""
    first, second = ("left", "right") if side_by_side else ("upper", "lower")
    options = [
        Option(
            "neither, both have the same speed",
            "Both are played at the same speed.",
            "The same scene is shown twice at once. Are both played at the same speed?",
        )
    ]
    options += [
        Option(
            f"the {one} one",
            f"The {one} one of the two is played faster than the {other} one.",
            f"The same scene is shown twice at once. Is the {one} one played faster than the {other} one?",
        )
        for one, other in ((second, first), (first, second))
    ]
    return _asked(clip, "speed", "The same scene is shown twice at once. Which one is played faster?", options, case)


def about_order(clip: str, swapped: bool, texts: tuple[str, str] | None) -> Asked:
    """Which of two parts comes first, by their captions; without, by the part that is in black and white."""
    if texts is None:
        texts = ("the part in colour", "the part in black and white")
        question = "Which part of the video comes first?"
        options = [
            Option(text, f"{text[0].upper()}{text[1:]} comes first.", f"Does {text} come first?") for text in texts
        ]
    else:
        question = "What happens in the video, and in which order?"
        options = [
            Option(f"{one}, then {other}", f"First {one}, then {other}.", f'Is the order "{one}", then "{other}"?')
            for one, other in (texts, texts[::-1])
        ]
    first, second = texts[::-1] if swapped else texts
    return _asked(clip, "order", question, options, swapped, (first, second))


def about_control(clip: str, without_colour: bool) -> Asked:
    """What every single picture answers."""
    options = [
        Option(f"in {c}", f"The video is in {c}.", f"Is the video in {c}?") for c in ("colour", "black and white")
    ]
    return _asked(clip, "control", "Is the video in colour or in black and white?", options, without_colour)


def _happens(text: str) -> Option:
    return Option(text, sentence(text), f'Is it right to say that this happens in the video: "{text}"?')


def _asked(
    clip: str,
    kind: Kind,
    question: str,
    options: Sequence[Option],
    right: int,
    events: tuple[str, str] | None = None,
) -> Asked:
    others = [option for place, option in enumerate(options) if place != right]
    return Asked(clip, kind, question, (options[right], *others), events)


def by_clip(asked: Iterable[Asked]) -> dict[str, list[Asked]]:
    """Questions by the clip that they are about, in order."""
    found: dict[str, list[Asked]] = {}
    for one in asked:
        found.setdefault(one.clip, []).append(one)
    return found
