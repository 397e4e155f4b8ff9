"""Make probes: clips that conflict, the questions about them, and a record from which a killed run goes on.

A folder of probes is written from the outside in: ``probe.json`` says first what it is made of, then come clips, each
whole or not there, with a line in ``probe.jsonl`` for each video, and at last the questions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidValue, invalid, unknown_name
from ..files import append_line, atomic_write, read_json, read_jsonl
from . import clips, questions
from .formats import FORMATS, Format
from .questions import KINDS, Asked
from .sources import Source, find_sources
from .video import Footage, codec, read, write
from .words import read_captions

RECORD, LINES = "probe.json", "probe.jsonl"
#: Is told of (videos done, of how many, what is being made).
Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class Made:
    """What :func:`make` made.

    Attributes:
        out: the folder.
        format: "tempcompass" or "mvbench".
        clips: how many there are.
        asked: how many of them each kind of question is about.
        questions: how many there are, by file.
        notes: what was left out and why, a sentence each.
    """

    out: Path
    format: str
    clips: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def record(self) -> dict[str, Any]:
        """Numbers and notes, as JSON holds them."""
        return {"clips": self.clips, "asked": self.asked, "questions": self.questions, "left_out": self.notes}

    @property
    def annotations(self) -> Path:
        """What ``foveate ask`` and ``foveate score`` read."""
        return self.out / "json" if self.format == "mvbench" else self.out


@dataclass(frozen=True, slots=True)
class Facts:
    """What a video is good for."""

    moves: bool
    colourful: bool
    upright: bool


def make(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    kinds: Sequence[str] = KINDS,
    format: str = "tempcompass",
    control: bool = True,
    captions: str | Path | None = None,
    seconds: float = 10.0,
    side: int = 480,
    seed: int = 0,
    progress: Progress | None = None,
) -> Made:
    """Make conflicting clips of videos, and questions about them in a suite's files.

    Args:
        paths: videos, and folders of them.
        out: a folder that does not exist, is empty, or was begun by the same call.
        kinds: "reversed", "speed", "order", "mirrored".
        format: "tempcompass" or "mvbench".
        control: add clips in black and white, whose question any single picture answers.
        captions: a JSON file, ``{video: what happens in it}``.
        seconds: how much of each video, from its beginning.
        side: longest side of a video in pixels.
        seed: of the places of right answers, and of which videos are put in a row.
        progress: is told how far it is.

    Raises:
        UnknownName: a kind or format that there is not.
        InvalidValue: an option is out of range, nothing can be made, or ``out`` holds something else.
        MissingExtra: PyAV is absent.
    """
    out = Path(out)
    suite, wanted = _checked(kinds, format, seconds, side)
    told = {} if captions is None else read_captions(Path(captions))
    made = Made(out, format)
    if "speed" in wanted and "speed" not in suite.kinds:
        made.notes.append(f"{format} has no task about speed: no clips of two speeds are made.")
    if "mirrored" in wanted and not told:
        wanted.discard("mirrored")
        made.notes.append("nothing is mirrored: that needs captions with left or right in them (--questions).")
    sources = find_sources([Path(path) for path in paths], told, out, made.notes)
    settings = {
        "format": format,
        "kinds": [kind for kind in KINDS if kind in kinds],
        "control": control,
        "captions": {source.id: _told(source) for source in sources if source.caption is not None},
        "seconds": seconds,
        "side": side,
        "seed": seed,
        "codec": codec(),
        "videos": {source.id: _stamp(source.path) for source in sources},
    }
    _begin(out, settings)
    run = _Run(out, suite, {k for k in wanted if k in suite.kinds}, control, seconds, side, seed, made.notes)
    asked = run.all(sources, progress or (lambda done, total, what: None))
    if not asked:
        raise InvalidValue(f"no probe could be made: {' '.join(made.notes)}")
    made.clips = len({suite.place(one.kind, one.clip) for one in asked})
    for one in asked:
        made.asked[one.kind] = made.asked.get(one.kind, 0) + 1
    for name, content in suite.files(asked, seed).items():
        file = out / name
        if file.exists() and file.read_text(encoding="utf-8") != _text(content):
            made.notes.append(f"{file}: was changed after it was written, it stays as it is.")
        else:
            _writing(file, lambda file=file, content=content: _write(file, content))
        if not name.startswith("meta_info"):
            made.questions[name] = _count(content)
    record = {"settings": settings, **made.record}
    _writing(out / RECORD, lambda: _write(out / RECORD, record))
    return made


def _told(source: Source) -> list[str | None]:
    """A caption as a record keeps it."""
    caption = source.caption
    return [] if caption is None else [caption.forward, caption.backward, caption.mirrored, caption.mirrored_backward]


class _Run:
    """Makes what is missing of a folder of probes."""

    def __init__(
        self,
        out: Path,
        suite: Format,
        kinds: set[str],
        control: bool,
        seconds: float,
        side: int,
        seed: int,
        notes: list[str],
    ) -> None:
        self.out, self.suite, self.kinds, self.control = out, suite, kinds, control
        self.seconds, self.side, self.seed, self.notes = seconds, side, seed, notes
        self._lines = out / LINES
        self._known = {line["id"]: line for line in read_jsonl(self._lines, repair=True)}
        self._shown: dict[str, Footage] = {}

    def all(self, sources: Sequence[Source], progress: Progress) -> list[Asked]:
        """Make all clips; the questions about them."""
        found: list[Asked] = []
        good: list[tuple[Source, Facts]] = []
        pairs = len(sources) if "order" in self.kinds else 0
        total = len(sources) + pairs
        for done, source in enumerate(sources):
            progress(done, total, source.path.name)
            facts = self._facts(source)
            if facts is not None:
                good.append((source, facts))
                found += self._of_one(source, facts)
        if pairs:
            found += self._of_two(good, lambda done, what: progress(len(sources) + done, total, what))
        progress(total, total, "questions")
        return found

    def _facts(self, source: Source) -> Facts | None:
        """What a video is good for; None, and a note, where it cannot be read."""
        line = self._known.get(source.id)
        if line is None:
            try:
                frames = self._footage(source).frames
            except InvalidValue as error:
                line = {"id": source.id, "problem": str(error)}
            else:
                upright = frames.shape[1] > frames.shape[2]
                line = {"id": source.id, "moves": clips.changes(frames), "colourful": clips.colourful(frames)}
                line["upright"] = upright
            _writing(self._lines, lambda: append_line(self._lines, line))
        if "problem" in line:
            self.notes.append(line["problem"])
            return None
        return Facts(bool(line["moves"]), bool(line["colourful"]), bool(line["upright"]))

    def _of_one(self, source: Source, facts: Facts) -> list[Asked]:
        found: list[Asked] = []
        id, caption = source.id, source.caption
        if "reversed" in self.kinds:
            if facts.moves:
                for backward, suffix in enumerate(("", "_reverse")):
                    self._clip("reversed", id + suffix, source, lambda f, b=backward: f[::-1] if b else f)
                    found.append(questions.about_reversed(id + suffix, bool(backward), caption))
            else:
                self.notes.append(
                    f"{source.path}: is the same forwards and backwards, no question about that is asked."
                )
        if "mirrored" in self.kinds:
            if caption is None or caption.mirrored is None:
                self.notes.append(
                    f"{source.path}: no caption says what is left and what is right in it, so it is not mirrored."
                )
            else:
                found += self._mirrored(source, facts, (caption.forward, caption.mirrored))
        if "speed" in self.kinds:
            if facts.moves:
                for case in range(3):
                    clip = f"{id}_concat_{case}"
                    self._clip("speed", clip, source, lambda f, c=case: clips.two_speeds(f, c))
                    found.append(questions.about_speed(clip, case, facts.upright))
            else:
                self.notes.append(f"{source.path}: too little moves in it to see how fast.")
        if self.control:
            if facts.colourful:
                self._clip("control", id, source, lambda f: f)
                self._clip("control", f"{id}_grey", source, clips.grey)
                found += [questions.about_control(id, False), questions.about_control(f"{id}_grey", True)]
            else:
                self.notes.append(f"{source.path}: has hardly any colour, so it has no control.")
        return found

    def _mirrored(self, source: Source, facts: Facts, texts: tuple[str, str]) -> list[Asked]:
        """A clip and its mirror image; both backwards too, where that alone exchanges left and right again."""
        id, caption = source.id, source.caption
        turned = [(False, "", texts), (True, "_mirror", texts)]
        both = None if caption is None else caption.mirrored_backward
        if caption is not None and both is not None and facts.moves and "reversed" in self.kinds:
            backwards = (caption.backward, both)
            turned += [(False, "_reverse", backwards), (True, "_mirror_reverse", backwards)]
        for flipped, suffix, _ in turned:
            back = suffix.endswith("_reverse")
            self._clip(
                "mirrored",
                id + suffix,
                source,
                lambda f, m=flipped, b=back: (clips.mirrored(f) if m else f)[:: -1 if b else 1],
            )
        return [questions.about_mirrored(id + suffix, flipped, told) for flipped, suffix, told in turned]

    def _of_two(self, good: Sequence[tuple[Source, Facts]], progress: Callable[[int, str], None]) -> list[Asked]:
        """Two videos in a row, in both orders."""
        found: list[Asked] = []
        order = []
        for source, facts in good:
            if source.caption is not None or facts.colourful:
                order.append((source, facts))
            else:
                self.notes.append(
                    f"{source.path}: has neither a caption nor colour to name it by in a row of two videos."
                )
        if len(order) < 2:
            self.notes.append("two videos are needed to put them in a row: give another one.")
            return found
        random.Random(f"{self.seed}/order").shuffle(order)
        pairs = [(order[i], order[(i + 1) % len(order)]) for i in range(len(order) if len(order) > 2 else 1)]
        deck = questions.Deck(self.seed)
        for done, ((first, of_first), (second, of_second)) in enumerate(pairs):
            progress(done, f"{first.path.name}, {second.path.name}")
            texts = None
            if first.caption is not None and second.caption is not None:
                texts = (first.caption.forward, second.caption.forward)
            problem = ""
            if texts is not None and texts[0].lower() == texts[1].lower():
                problem = "have the same caption"
            elif texts is None and not (of_first.colourful and of_second.colourful):
                problem = "have not two captions and not both colour"
            if problem:
                self.notes.append(f"{first.path}, {second.path}: {problem}, their order cannot be asked.")
                continue
            longer, pale = deck.deal("longer", 2), deck.deal("pale", 2)
            for swapped in range(2):
                clip = f"{first.id}_{second.id}_{1 + swapped}"
                self._row(clip, (first, second), longer, None if texts else pale, bool(swapped))
                found.append(questions.about_order(clip, bool(swapped) if texts else swapped == pale, texts))
        return found

    def _row(self, clip: str, pair: tuple[Source, Source], longer: int, pale: int | None, swapped: bool) -> None:
        file = self.out / self.suite.place("order", clip)
        if file.exists():
            return
        first, second, fps = clips.in_a_row(self._footage(pair[0]), self._footage(pair[1]), longer)
        parts = [clips.grey(part) if pale == place else part for place, part in enumerate((first, second))]
        self._write(file, np.concatenate(parts[::-1] if swapped else parts), fps)

    def _clip(self, kind: Any, clip: str, source: Source, change: Callable[[np.ndarray], np.ndarray]) -> None:
        file = self.out / self.suite.place(kind, clip)
        if not file.exists():
            footage = self._footage(source)
            self._write(file, change(clips.odd(footage.frames)), footage.fps)

    def _write(self, file: Path, frames: np.ndarray, fps: Fraction) -> None:
        write(file, Footage(frames, fps))

    def _footage(self, source: Source) -> Footage:
        if source.id not in self._shown:
            while len(self._shown) > 1:  # two at once are enough, and a few hundred megabytes
                self._shown.pop(next(iter(self._shown)))
            self._shown[source.id] = read(source.path, seconds=self.seconds, side=self.side)
        return self._shown[source.id]


def _checked(kinds: Sequence[str], format: str, seconds: float, side: int) -> tuple[Format, set[str]]:
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
    if not kinds:
        raise invalid("kinds", list(kinds), f"give some of {', '.join(KINDS)}")
    if not set(kinds) & set(FORMATS[format].kinds):
        raise invalid("kinds", list(kinds), f"{format} has no task about it")
    if not 1 <= seconds <= 60:
        raise invalid("seconds", seconds, "give 1 to 60")
    if not 64 <= side <= 1920:
        raise invalid("side", side, "give 64 to 1920 pixels")
    return FORMATS[format], set(kinds)


def _begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Take a folder for these settings, or find that it is theirs already."""
    if out.exists() and not out.is_dir():
        raise InvalidValue(f"--out {out} is not possible: it is a file.")
    record = out / RECORD
    if not out.exists() or not any(out.iterdir()):
        _writing(record, lambda: _write(record, {"settings": dict(settings)}))
        return
    found = read_json(record) if record.is_file() else None
    before = found.get("settings") if isinstance(found, dict) else None
    if not isinstance(before, dict):
        raise InvalidValue(f"--out {out} is not possible: it has files in it that foveate did not write.")
    other = [name for name, value in settings.items() if before.get(name) != value]
    if other:
        raise InvalidValue(f"--out {out} is not possible: it was begun with other {' and '.join(other)}.")


def _text(content: Any) -> str:
    """JSON as it stands in files."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, _text(content))


def _writing(file: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise InvalidValue(
            f"{file}: cannot be written ({error.strerror}): choose another folder with --out."
        ) from error


def _stamp(path: Path) -> list[Any]:
    """What tells whether a video is still the same."""
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _count(content: Any) -> int:
    if isinstance(content, list):
        return len(content)
    return sum(len(items) for aspects in content.values() for items in aspects.values())
