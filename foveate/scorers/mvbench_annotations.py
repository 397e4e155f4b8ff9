"""Annotations of one's own videos, from which MVBench's questions can be made.

A JSON list, one object a video. ``video`` and ``duration`` are needed, everything else is what happens to be known::

    {"video": "kitchen.mp4", "duration": 30.0,
     "actions": [{"label": "she opens the fridge", "start": 2.0, "end": 4.5, "antonym": "she closes the fridge",
                  "similar": ["she opens the oven"], "verb": "open", "object": "fridge", "unexpected": false}],
     "objects": [{"name": "red ball", "attributes": {"color": "red"}, "places": ["under the left cup", "in the middle"],
                  "moves": [{"start": 1.0, "end": 3.0, "direction": "to the left"}], "states": ["full", "empty"]}],
     "scenes": ["kitchen", "garden"], "poses": ["jumping"], "characters": ["c", "a", "t"],
     "route": {"instruction": "leave the room", "next": "turn left"},
     "episodes": [{"question": "Why does he laugh?", "answer": "she fell", "wrong": ["he won"], "start": 3, "end": 9}],
     "counterfactuals": [{"without": "the red ball", "happens": "the cube stays", "instead": ["the cube falls"]}]}

Labels are whole clauses. Lists are in the order of time: places, states, scenes and characters as they follow on each
other. A key that is none of these is an error: a misspelt one would be left out without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidValue
from .reading import kind, read_json


@dataclass(frozen=True, slots=True)
class Action:
    """Something that is done, from ``start`` to ``end`` in seconds."""

    label: str
    start: float
    end: float
    antonym: str = ""
    similar: tuple[str, ...] = ()
    verb: str = ""
    object: str = ""
    unexpected: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """A movement of an object."""

    start: float
    end: float
    direction: str = ""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object: what it is like, how it moves, where it is and in which states, in order."""

    name: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    places: tuple[str, ...] = ()
    states: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Episode:
    """A question about a part of a video, with its answer and wrong ones."""

    question: str
    answer: str
    start: float
    end: float
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What would happen without something, and what would not."""

    without: str
    happens: str
    instead: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """What somebody follows whose eyes the video is seen through, and the move that comes after it ends."""

    instruction: str
    next: str


@dataclass(frozen=True, slots=True)
class Annotated:
    """A video and what is known of it."""

    video: str
    duration: float
    actions: tuple[Action, ...] = ()
    objects: tuple[Thing, ...] = ()
    scenes: tuple[str, ...] = ()
    poses: tuple[str, ...] = ()
    characters: tuple[str, ...] = ()
    route: Route | None = None
    episodes: tuple[Episode, ...] = ()
    counterfactuals: tuple[Counterfactual, ...] = ()


#: Parts of an object that are objects themselves: what they are, and whether there are several.
_PARTS: Mapping[tuple[type, str], tuple[type, bool]] = {
    (Annotated, "actions"): (Action, True),
    (Annotated, "objects"): (Thing, True),
    (Annotated, "route"): (Route, False),
    (Annotated, "episodes"): (Episode, True),
    (Annotated, "counterfactuals"): (Counterfactual, True),
    (Thing, "moves"): (Move, True),
}


def read_annotated(file: str | Path) -> list[Annotated]:
    """Read annotations of videos.

    Raises:
        InvalidValue: they cannot be read, something is misspelt, missing or of the wrong kind, or ends before it
            begins or after its video; the message names file, video and key.
    """
    path = Path(file)
    content = read_json(path)
    if not isinstance(content, list):
        raise InvalidValue(f"{path}: holds {kind(content)} and no list of videos.")
    found = [_made(Annotated, value, f"{path}: video {number}") for number, value in enumerate(content)]
    names = [video.video for video in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidValue(f"{path}: {name} stands there twice: give each video once.")
    for video in found:
        _check_times(path, video)
    return found


def _made(form: type, value: Any, where: str) -> Any:
    """An object of a form from JSON, or a sentence about what is wrong with it."""
    if not isinstance(value, dict):
        raise InvalidValue(f"{where}: is {kind(value)} and no object.")
    where = f"{where} ({value['video']})" if isinstance(value.get("video"), str) else where
    fields: Mapping[str, Any] = form.__dataclass_fields__  # type: ignore[attr-defined]
    unknown = [key for key in value if key not in fields]
    if unknown:
        raise InvalidValue(f"{where}: {unknown[0]!r} is not known: {', '.join(fields)}.")
    given: dict[str, Any] = {}
    for name, known in fields.items():
        if name in value:
            given[name] = _part(form, name, str(known.type), value[name], f"{where}: {name}")
    try:
        return form(**given)
    except TypeError as error:
        lacking = [name for name in fields if f"'{name}'" in str(error)]
        raise InvalidValue(f"{where}: has no {' and no '.join(lacking)}.") from error


def _part(form: type, name: str, wanted: str, value: Any, where: str) -> Any:
    if (form, name) in _PARTS:
        inner, several = _PARTS[form, name]
        if not several:
            return _made(inner, value, where)
        if not isinstance(value, list):
            raise InvalidValue(f"{where}: is {kind(value)} and no list.")
        return tuple(_made(inner, one, f"{where} {number}") for number, one in enumerate(value))
    if wanted == "str" and isinstance(value, str) and value.strip():
        return value.strip()
    if wanted == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if wanted == "bool" and isinstance(value, bool):
        return value
    texts = list(value.values()) if isinstance(value, dict) else value
    if isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts):
        if wanted.startswith("tuple") and isinstance(value, list):
            return tuple(text.strip() for text in texts)
        if wanted.startswith("Mapping") and isinstance(value, dict):
            return value
    forms = {"str": "text", "float": "a number", "bool": "true or false"}
    legal = forms.get(wanted, "a list of texts" if wanted.startswith("tuple") else "an object of texts")
    raise InvalidValue(f"{where}: {value!r} is not possible: give {legal}.")


def _check_times(path: Path, video: Annotated) -> None:
    if not video.duration > 0:
        raise InvalidValue(f"{path}: {video.video}: duration {video.duration:g} is not possible: give seconds.")
    parts = [(f"action {a.label!r}", a) for a in video.actions]
    parts += [(f"a move of {thing.name!r}", move) for thing in video.objects for move in thing.moves]
    parts += [(f"episode {e.question!r}", e) for e in video.episodes]
    for name, part in parts:
        if not 0 <= part.start < part.end <= video.duration:
            raise InvalidValue(
                f"{path}: {video.video}: {name} is from {part.start:g} to {part.end:g} of {video.duration:g} seconds: "
                "give a start before its end, within the video."
            )
