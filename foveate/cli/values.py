"""Values that arrive as text: durations, lists, ``system.option=value``, configuration files."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from ..errors import InvalidValue

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str, option: str = "budget") -> float:
    """Seconds of a duration such as ``90s``, ``30m``, ``2h`` or ``1h30m``; a bare number is seconds."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if "".join(n + u for n, u in parts) != text.strip() or seconds <= 0:
        raise InvalidValue(f"{option}={text!r} is not a duration: write it as 90s, 30m, 2h or 1h30m.")
    return seconds


def numbers(text: str, option: str) -> tuple[float, ...]:
    """A comma-separated list of numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidValue(f"{option}={text!r} is not a list of numbers: write them as 0.001,0.003.") from None


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """A comma-separated list of whole numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidValue(f"{option}={text!r} is not a list of whole numbers: write them as 1,2.") from None


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list of names; empty parts are dropped."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def assignments(given: list[str], base: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """``system.option=value`` lines merged into the options of systems; values are read as JSON, else as text."""
    merged = {system: dict(options) for system, options in base.items()}
    for text in given:
        match = re.fullmatch(r"(?P<system>[\w:.]+?)\.(?P<option>\w+)=(?P<value>.*)", text)
        if match is None:
            raise InvalidValue(f"--set {text!r} is not possible: write it as SYSTEM.OPTION=VALUE, as in mamba.dim=32.")
        try:
            value = json.loads(match["value"])
        except ValueError:
            value = match["value"]
        merged.setdefault(match["system"], {})[match["option"]] = value
    return merged


def read_toml(file: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        InvalidValue: absent, unreadable or not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValue(f"--config {file}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"--config {file}: not a TOML file ({error}).") from error
