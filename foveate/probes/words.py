"""What a user says about a video, and what that becomes when the video is played backwards or mirrored.

A captions file is ``{video: caption}``, by file name, id or path; a caption is a sentence, or an object with
``caption`` and, where exchanging words is not enough, ``reversed`` and ``mirrored``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidValue
from ..files import read_json

_KEYS = ("caption", "reversed", "mirrored")
#: Pairs that a mirror exchanges; each a whole word.
_MIRRORED = (
    ("left", "right"),
    ("lefts", "rights"),
    ("leftmost", "rightmost"),
    ("leftward", "rightward"),
    ("leftwards", "rightwards"),
    ("lefthand", "righthand"),
    ("clockwise", "counterclockwise"),
    ("clockwise", "anticlockwise"),
    ("clockwise", "counter-clockwise"),
    ("clockwise", "anti-clockwise"),
)
#: Where "left" and "right" are no sides.
_NO_SIDES = re.compile(
    r"\b(?:all right|right (?:away|now|before|after|behind|in front|next|on top|through|where|when|as)|"
    r"(?:has|have|had|is|are|was|were|be|been|being|gets?|got) left(?! (?:of|side|hand))|"
    r"left (?:over|behind|alone|the|a|an|his|her|their|its))\b",
    re.IGNORECASE,
)
#: Pairs of ways of moving that run the other way when time does.
_BACKWARDS = (
    ("from left to right", "from right to left"),
    ("left to right", "right to left"),
    ("from right to left", "from left to right"),
    ("right to left", "left to right"),
    ("to the left", "to the right"),
    ("to the right", "to the left"),
    ("leftwards", "rightwards"),
    ("rightwards", "leftwards"),
    ("leftward", "rightward"),
    ("rightward", "leftward"),
    ("from top to bottom", "from bottom to top"),
    ("from bottom to top", "from top to bottom"),
    ("upwards", "downwards"),
    ("downwards", "upwards"),
    ("upward", "downward"),
    ("downward", "upward"),
    ("towards the camera", "away from the camera"),
    ("toward the camera", "away from the camera"),
    ("away from the camera", "towards the camera"),
    ("counterclockwise", "clockwise"),
    ("counter-clockwise", "clockwise"),
    ("anticlockwise", "clockwise"),
    ("anti-clockwise", "clockwise"),
    ("clockwise", "counterclockwise"),
)


@dataclass(frozen=True, slots=True)
class Caption:
    """What happens in a video, and in what is made of it.

    Attributes:
        forward: in the video itself.
        backward: when it is played backwards.
        mirrored: with left and right exchanged; None: nothing in it has a side.
        mirrored_backward: both; None: time or the mirror changes something else than sides.
    """

    forward: str
    backward: str
    mirrored: str | None = None
    mirrored_backward: str | None = None


def mirror(text: str) -> str:
    """A sentence with left and right exchanged; "all right" and "left the room" stay."""
    table = {}
    for left, right in _MIRRORED:
        table[right] = left
        table.setdefault(left, right)
    kept = [found.span() for found in _NO_SIDES.finditer(text)]

    def other(found: re.Match[str]) -> str:
        if any(start <= found.start() < end for start, end in kept):
            return found[0]
        return _cased(table[found[0].lower()], found[0])

    return re.sub(_either(table), other, text, flags=re.IGNORECASE)


def run_backwards(text: str) -> str:
    """A sentence with ways of moving exchanged: "from left to right", "upwards", "away from the camera"."""
    table = dict(_BACKWARDS)
    return re.sub(_either(table), lambda f: _cased(table[f[0].lower()], f[0]), text, flags=re.IGNORECASE)


def read_captions(file: Path) -> dict[str, Mapping[str, str]]:
    """Captions by the name that the file gives to the video.

    Raises:
        InvalidValue: the file cannot be read, or a caption is no text.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        raise InvalidValue(f'{file}: holds no object: write {{"video.mp4": "what happens in it"}}.')
    captions = {}
    for video, value in found.items():
        told: Any = {"caption": value} if isinstance(value, str) else value
        if not isinstance(told, dict) or not isinstance(told.get("caption"), str):
            raise InvalidValue(f'{file}: {video}: a caption is a text, or an object with a text as "caption".')
        for key, text in told.items():
            if key not in _KEYS:
                raise InvalidValue(f"{file}: {video}: {key!r} is not known: there are {', '.join(_KEYS)}.")
            if not isinstance(text, str) or not clean(text):
                raise InvalidValue(f"{file}: {video}: its {key} is empty or no text: write what happens, or leave it.")
        captions[video] = {key: clean(text) for key, text in told.items()}
    return captions


def caption_of(told: Mapping[str, str]) -> Caption:
    """All that a caption of a captions file says."""
    forward = told["caption"]
    turned, flipped = run_backwards(forward), mirror(forward)
    backward = told.get("reversed") or (turned if turned != forward else f"{forward}, played backwards")
    mirrored = told.get("mirrored") or (flipped if flipped != forward else None)
    both = None
    if mirrored is not None and "mirrored" not in told and mirror(backward) != backward:
        both = mirror(backward)
    return Caption(forward, backward, mirrored, both)


def clean(text: str) -> str:
    """A caption in a form that the suites' rules can compare: one line, no full stop at its end, no ``: ``."""
    return re.sub(r":\s+", ", ", " ".join(text.split())).strip().rstrip(".").strip()


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(("!", "?")) else ".")


def _either(table: Mapping[str, str]) -> str:
    names = "|".join(re.escape(name) for name in sorted(table, key=len, reverse=True))
    return rf"\b(?:{names})\b"


def _cased(word: str, like: str) -> str:
    if like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word
