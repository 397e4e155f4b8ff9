"""The file of a model's answers: one line each, the settings beside it, and what failed.

``answers.jsonl`` holds what was answered, flushed as it comes; ``answers.jsonl.settings`` how it was asked, and
``answers.jsonl.failed`` what the last run could not get. Whatever the moment of a kill, the same command goes on: an
answered question is not asked again, and a torn last line is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidValue
from ..files import append_line, atomic_write, held, read_json, read_jsonl, write_json
from .asked import Outcome

#: Settings that may change between two runs of a file: what is asked, not how.
FREE = ("created", "foveate")


@dataclass
class Answers:
    """An open file of answers; no other process has it.

    Attributes:
        file: of answers.
        answered: ids that are in it.
        failures: reasons by id, of this run.
    """

    file: Path
    answered: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def hold(cls, file: Path, settings: Mapping[str, Any]) -> Iterator[Answers]:
        """Open a file of answers, new or begun with the same settings, and keep others out.

        Raises:
            InvalidValue: in use, not ours, damaged, begun with other settings, or it cannot be written.
        """
        with held(file.with_name(f".{file.name}.lock"), file, "file"):
            found = cls(file)
            found._begin(settings)
            yield found

    @property
    def settings_file(self) -> Path:
        """Beside the answers."""
        return self.file.with_name(self.file.name + ".settings")

    @property
    def failed_file(self) -> Path:
        """Beside the answers; absent where nothing failed."""
        return self.file.with_name(self.file.name + ".failed")

    def add(self, outcome: Outcome) -> None:
        """Put an answer, or a failure, on the disk."""
        if outcome.response is None:
            self.failures[outcome.id] = outcome.reason
            append_line(self.failed_file, {"id": outcome.id, "reason": outcome.reason, "tries": outcome.tries})
            return
        line: dict[str, Any] = {"id": outcome.id, "response": outcome.response}
        asked = outcome.asked
        if asked is not None and asked.times:
            line["frames"], line["from"], line["to"] = len(asked.times), *_span(asked.times)
            if asked.repeated:
                line["repeated"] = asked.repeated
        line["tries"], line["seconds"] = outcome.tries, round(outcome.seconds, 3)
        append_line(self.file, line)
        self.answered.add(outcome.id)

    def _begin(self, settings: Mapping[str, Any]) -> None:
        if self.file.is_dir():
            raise InvalidValue(f"--out {self.file} is not possible: it is a folder.")
        if self.file.exists() and not self.settings_file.exists():
            raise InvalidValue(
                f"--out {self.file} is not possible: foveate did not write it, or {self.settings_file.name} is gone."
            )
        if not self.file.exists():  # nothing was answered: whatever was tried before binds nobody
            write_json(self.settings_file, dict(settings))
        before = read_json(self.settings_file)
        if not isinstance(before, dict):
            raise InvalidValue(f"{self.settings_file} is damaged: it holds no settings.")
        for name in settings:
            if name not in FREE and before.get(name) != settings[name]:
                raise InvalidValue(
                    f"{self.file} was begun with {name}={before.get(name)!r}, not {settings[name]!r}: give what it was "
                    "begun with, or another file with --out."
                )
        for line in read_jsonl(self.file, repair=True):
            if not isinstance(line, dict) or not isinstance(line.get("id"), str):
                raise InvalidValue(f"{self.file} is damaged: a line of it names no question.")
            self.answered.add(line["id"])
        if self.failed_file.exists():
            atomic_write(self.failed_file, "")  # all of it is asked again


def _span(times: Any) -> tuple[float, float]:
    return round(min(times), 3), round(max(times), 3)
