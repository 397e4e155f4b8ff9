"""Questions about probes as the files of TempCompass and MVBench have them.

Texts are ours; names of files, keys, labels and the form of options are the suites'. Each letter is right equally
often, and so are yes and no.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .questions import Asked, Deck, Kind, by_clip

LETTERS = "ABCD"
#: TempCompass's aspect and fine aspect of a kind; there is no static one for the control.
ASPECTS: dict[Kind, tuple[str, str | None]] = {
    "reversed": ("direction", "object motion"),
    "mirrored": ("direction", "object motion"),
    "speed": ("speed", "relative speed"),
    "order": ("order", None),
    "control": ("attribute_change", "color & light change"),
}
_ASPECTS = ("action", "direction", "speed", "order", "attribute_change")
#: MVBench's file and folder of videos of a kind; it has no task about speed.
TASKS: dict[Kind, tuple[str, str]] = {
    "reversed": ("action_antonym", "ssv2_video"),
    "mirrored": ("moving_direction", "clevrer/video_validation"),
    "order": ("scene_transition", "scene_qa/video"),
    "control": ("moving_attribute", "clevrer/video_validation"),
}
_LABELS = (("Caption A", "Caption B"), ("Option 1", "Option 2"), ("Sentence A", "Sentence B"))


@dataclass(frozen=True, slots=True)
class Format:
    """A suite's way of keeping clips and questions.

    Attributes:
        name: the suite's slug.
        kinds: that it has a place for.
    """

    name: str
    kinds: tuple[Kind, ...]

    def place(self, kind: Kind, clip: str) -> str:
        """File of a clip below the folder of a probe."""
        folder = f"videos/{TASKS[kind][1]}" if self.name == "mvbench" else "videos"
        return f"{folder}/{clip}.mp4"

    def files(self, asked: Iterable[Asked], seed: int) -> dict[str, Any]:
        """Contents of the files of questions, by name below the folder of a probe."""
        make = mvbench if self.name == "mvbench" else tempcompass
        return make(list(asked), Deck(seed))


FORMATS: Mapping[str, Format] = {
    "tempcompass": Format("tempcompass", tuple(ASPECTS)),
    "mvbench": Format("mvbench", tuple(TASKS)),
}


def tempcompass(asked: list[Asked], deck: Deck) -> dict[str, Any]:
    """``questions/<format>.json`` and ``meta_info.json``."""
    files: dict[str, dict[str, Any]] = {
        task: {} for task in ("multi-choice", "yes_no", "caption_matching", "captioning")
    }
    meta: dict[str, Any] = {}
    for clip, questions in by_clip(asked).items():
        about = meta[clip] = {"eval_dim": dict.fromkeys(_ASPECTS), "content": []}
        for one in questions:
            aspect, fine = ASPECTS[one.kind]
            told = {"subject": "video", aspect: one.truth.text, "type": fine}
            if one.events is not None:
                told = {"subject": "entire video", "event1": one.events[0], "event2": one.events[1]}
            about["eval_dim"][aspect] = told
            about["content"].append(one.kind)
            for task, items in (
                ("multi-choice", [_multi_choice(one, deck)]),
                ("yes_no", _yes_no(one, deck)),
                ("caption_matching", _caption_matching(one, deck)),
                ("captioning", [_captioning(one, aspect, deck)]),
            ):
                files[task].setdefault(clip, {}).setdefault(aspect, []).extend(items)
    return {**{f"questions/{task}.json": items for task, items in files.items()}, "meta_info.json": meta}


def mvbench(asked: list[Asked], deck: Deck) -> dict[str, Any]:
    """``json/<task>.json``."""
    files: dict[str, list[dict[str, Any]]] = {}
    for one in asked:
        items = files.setdefault(f"json/{TASKS[one.kind][0]}.json", [])
        candidates = [option.text for option in deck.arrange(f"mvbench/{one.kind}", one.options)]
        answer = one.truth.text
        items.append({"video": f"{one.clip}.mp4", "question": one.question, "candidates": candidates, "answer": answer})
    return files


def _multi_choice(one: Asked, deck: Deck) -> dict[str, str]:
    options = deck.arrange(f"multi-choice/{one.kind}", one.options)
    lines = [f"{letter}. {option.text}" for letter, option in zip(LETTERS, options, strict=False)]
    return {"question": "\n".join([one.question, *lines]), "answer": lines[options.index(one.truth)]}


def _yes_no(one: Asked, deck: Deck) -> list[dict[str, str]]:
    """One that is true and one that is not."""
    other = one.options[1 + deck.deal(f"yes_no/{one.kind}/other", len(one.options) - 1)]
    items = [{"question": one.truth.poll, "answer": "yes"}, {"question": other.poll, "answer": "no"}]
    return items[::-1] if deck.deal(f"yes_no/{one.kind}", 2) else items


def _caption_matching(one: Asked, deck: Deck) -> list[dict[str, str]]:
    items = []
    for other in one.options[1:]:
        labels = _LABELS[deck.deal("caption_matching/labels", len(_LABELS))]
        options = deck.arrange(f"caption_matching/{one.kind}", (one.truth, other))
        lines = [f"{label}: {option.claim}" for label, option in zip(labels, options, strict=True)]
        question = f"Which {labels[0].split()[0].lower()} fits the video?"
        items.append({"question": "\n".join([question, *lines]), "answer": lines[options.index(one.truth)]})
    return items


def _captioning(one: Asked, aspect: str, deck: Deck) -> dict[str, str]:
    options = deck.arrange(f"captioning/{one.kind}", one.options)
    lines = [
        f"Information {letter}: { {'subject': 'video', aspect: option.text} }"
        for letter, option in zip(LETTERS, options, strict=False)
    ]
    begin = "One of these pieces of information about the video is true. Write a caption of the video that says it."
    answer = f"{LETTERS[options.index(one.truth)]}. {one.truth.text}"
    return {"question": "\n".join([begin, *lines, "Generated Caption:"]), "answer": answer}
