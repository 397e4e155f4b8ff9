"""The folder of a comparison: whose it is, what it was made with, what is in it.

A folder is entered only if it is new, empty or ours, and only by one process at a time (the lock is the operating
system's, so it dies with its holder). What it was made with must be what is asked for now, or finished trials and new
ones would not be comparable: any difference is refused by name and nothing is touched. Systems and seeds may be added.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import InvalidValue
from ..files import atomic_write, held, read_json, write_json
from ..models.build import Contestant
from ..tasks.base import Task
from .contestants import folder_name, trial_name
from .settings import RULES, Settings

FORMAT = 1
MARKER, CONFIG, RESOLVED, RESULT = "foveate.json", "config.toml", "resolved.json", "result.json"
DATA, LOCK = "data", ".lock"
_ELSEWHERE = "use the same ones, or choose another folder with --out"


class Folder:
    """An output folder that this process holds the lock of; made by :meth:`hold`.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / DATA
        self.best = path / "best"

    @classmethod
    @contextmanager
    def hold(cls, out: str | Path) -> Iterator[Folder]:
        """Enter a folder, make it if need be, and keep others out.

        Raises:
            InvalidValue: it is a file, cannot be written, is someone else's, is damaged, or is in use.
        """
        path = Path(out)
        _check_ours(path)
        with held(path / LOCK, path, "folder"):
            yield cls(path)

    def trial(self, system: str, seed: int) -> Path:
        """The folder of a trial."""
        return self.path / "trials" / trial_name(system, seed)

    def sweep(self, system: str) -> Path:
        """The folder of a system's learning-rate sweep."""
        return self.path / "sweeps" / folder_name(system)

    def refit(self, system: str, seed: int) -> Path:
        """The folder in which the winner is trained once more, on all data."""
        return self.path / "refits" / trial_name(system, seed)

    def trial_config(self, system: str, seed: int) -> dict[str, Any]:
        """The configuration that a trial here was run with, at the folder's present place."""
        place = self.trial(system, seed)
        return {**read_json(place / "config.json"), "data": str(self.data), "folder": str(place)}

    def result(self, folder: Path) -> dict[str, Any] | None:
        """What the trial or sweep of this folder ended with; None if it has not ended.

        Raises:
            InvalidValue: the file is damaged.
        """
        file = folder / RESULT
        return read_json(file) if file.exists() else None

    def results(self) -> list[dict[str, Any]]:
        """Results of all trials that have ended, by system and seed."""
        found = [read_json(f) for f in sorted(self.path.glob(f"trials/*/{RESULT}"))]
        return sorted(found, key=lambda r: (r["system"], r["seed"]))

    def forget(self, folder: Path) -> None:
        """Remove a trial or sweep, to be run again from its start."""
        shutil.rmtree(folder, ignore_errors=True)

    def settle(self, settings: Settings, task: Task, chosen: Sequence[Contestant]) -> None:
        """Check that the folder was made with these settings and this data; record them if it is new.

        Raises:
            InvalidValue: a difference, named; or the record is damaged.
        """
        facts = json.loads(json.dumps(task.describe()))
        marker = self.path / MARKER
        if marker.exists():
            self._check_data(read_json(marker).get("data"), facts)
        else:
            write_json(marker, {"format": FORMAT, "kind": "comparison", "data": facts})
        before, resolved = self._read_config(), self.resolved()
        code = {c.name: _code_hash(c) for c in chosen if c.kind == "custom"}
        config = settings.as_dict()
        if before is not None:
            self._check_rules(before, settings, chosen, code, resolved.get("code", {}))
            config["options"] = {**before.get("options", {}), **config["options"]}
            config["recipes"] = {**before.get("recipes", {}), **config["recipes"]}
            config["systems"] = list(dict.fromkeys([*before.get("systems", []), *config["systems"]]))
        atomic_write(self.path / CONFIG, tomli_w.dumps(config))
        self.resolve(code={**resolved.get("code", {}), **code})
        self._save_data(task)

    def resolved(self) -> dict[str, Any]:
        """What was decided once and must stay: "code" (hashes of the user's own classes) and "trial_seconds"."""
        file = self.path / RESOLVED
        return read_json(file) if file.exists() else {}

    def resolve(self, **values: Any) -> None:
        """Record something that was decided once and must stay."""
        write_json(self.path / RESOLVED, {**self.resolved(), **values})

    def _read_config(self) -> dict[str, Any] | None:
        file = self.path / CONFIG
        if not file.exists():
            return None
        try:
            return tomllib.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidValue(f"{file} is damaged ({error}): repair it, or choose another folder.") from error

    def _check_data(self, before: Any, facts: Mapping[str, Any]) -> None:
        if not isinstance(before, Mapping):
            raise InvalidValue(f"{self.path / MARKER} is damaged: it does not say which data the folder is about.")
        for name in {**before, **facts}:
            # The same data may be named by another path.
            if name != "source" and before.get(name) != facts.get(name):
                raise InvalidValue(
                    f"{self.path} was made from other data: its {name} was {_short(before.get(name))}, now it is "
                    f"{_short(facts.get(name))}; {_ELSEWHERE}."
                )

    def _check_rules(
        self,
        before: Mapping[str, Any],
        settings: Settings,
        chosen: Sequence[Contestant],
        code: Mapping[str, str],
        code_before: Mapping[str, str],
    ) -> None:
        now = settings.as_dict()
        for name in RULES:
            if before.get(name) != now.get(name):
                raise InvalidValue(
                    f"{self.path} was made with {name} = {_short(before.get(name))}, not {_short(now.get(name))}: "
                    f"{_ELSEWHERE}."
                )
        for contestant in chosen:
            name = contestant.name
            if not self._begun(name, settings.seeds):
                continue
            for kind in ("options", "recipes"):
                given = before.get(kind, {}).get(name, {})
                if given != now[kind].get(name, {}):
                    raise InvalidValue(
                        f"{self.path} has trials of {name!r} with {kind} {_short(given)}, not "
                        f"{_short(now[kind].get(name, {}))}: {_ELSEWHERE}."
                    )
            if name in code and code_before.get(name) != code[name]:
                raise InvalidValue(
                    f"{self.path} has trials of {name!r}, whose source file has changed since: choose another folder "
                    f"with --out."
                )

    def _begun(self, system: str, seeds: int) -> bool:
        """Whether anything of a system has been trained here."""
        places = [p for p in (self.sweep(system), *(self.trial(system, s) for s in range(seeds))) if p.exists()]
        return any((self.result(p) or {}).get("status") != "skipped" for p in places)

    def _save_data(self, task: Task) -> None:
        if self.data.exists():
            type(task).load(self.data)  # raises if it is damaged
            return
        unfinished = self.path / f"{DATA}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        task.save(unfinished)
        os.replace(unfinished, self.data)


def _check_ours(path: Path) -> None:
    """Refuse a folder that holds something, but nothing of ours; nothing has been written when this raises."""
    try:
        names = {p.name for p in path.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InvalidValue(f"{path} is a file, or lies below one: choose a folder with --out.") from None
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read ({error.strerror}): choose another folder with --out.") from error
    if MARKER in names:
        marker = read_json(path / MARKER)
        if not isinstance(marker, dict) or marker.get("kind") != "comparison":
            raise InvalidValue(f"{path} does not hold a comparison: choose another folder with --out.")
        if marker.get("format") != FORMAT:
            raise InvalidValue(
                f"{path} has format {marker.get('format')}, this version of foveate writes {FORMAT}: choose another "
                f"folder with --out."
            )
    # A kill between the first two files leaves the lock, perhaps with a half-written marker.
    elif not all(name == LOCK or (name.startswith(f".{MARKER}.") and name.endswith(".tmp")) for name in names):
        raise InvalidValue(f"{path} is not empty and was not made by foveate: choose another folder with --out.")


def _code_hash(contestant: Contestant) -> str:
    """Of the file that a user's class stands in; "" where it has none (a notebook)."""
    file = getattr(sys.modules.get(contestant.target.__module__), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
