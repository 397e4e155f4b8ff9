"""Figures as people read them: the same forms in the terminal, the report and the progress display."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_BARS = "▁▂▃▄▅▆▇█"
#: Shown where there is no figure.
NONE = "–"
#: The splits in words.
SPLITS = {"val": "validation", "test": "test"}


def finite(value: Any) -> bool:
    """Whether ``value`` is a number that can be shown."""
    return isinstance(value, int | float) and math.isfinite(value)


def decimals_for(values: Iterable[Any], digits: int = 4) -> int:
    """Decimals that give the smallest of ``values`` this many significant digits, 0 to 6: one choice for a column."""
    sizes = [abs(v) for v in values if finite(v) and v != 0]
    if not sizes:
        return digits - 1
    return max(0, min(6, digits - 1 - math.floor(math.log10(min(sizes)))))


def fixed(value: Any, decimals: int) -> str:
    """A metric with a given number of decimals; very large ones in scientific form."""
    if not finite(value):
        return NONE
    return f"{value:,.{decimals}f}" if abs(value) < 1e6 else f"{value:.2e}"


def significant(value: Any, digits: int = 4) -> str:
    """A number with this many significant digits: 0.03124, 12.35, 1,235, 3.1e-07."""
    if not finite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent):+d}".replace("e+", "e")
    return f"{value:,.{decimals_for([value], digits)}f}"


def count(value: Any) -> str:
    """A count in at most five characters: 950, 12.3k, 1.20M, 45.6G."""
    if not finite(value):
        return NONE
    if abs(value) < 1000:
        return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.1f}"
    for unit in ("k", "M", "G", "T"):
        value /= 1000
        if abs(value) < 999.5 or unit == "T":
            break
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}{unit}"


def rate(value: Any) -> str:
    """A learning rate: 0.001, 3e-05."""
    return f"{value:.2g}" if finite(value) else NONE


def milliseconds(value: Any) -> str:
    """A short time without its unit: three significant digits of milliseconds."""
    if not finite(value):
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.{2 - math.floor(math.log10(max(value, 1e-2)))}f}"


def duration(seconds: Any) -> str:
    """A time span: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if not finite(seconds):
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(seconds: Any) -> str:
    """A time span in few characters of equal form: 0:07, 3:05, 2:10:00."""
    if not finite(seconds):
        return "-:--"
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def sparkline(values: Sequence[Any], width: int = 12) -> str:
    """The last values as bars of eight heights, as many as ``width`` after averaging; the highest value is full."""
    shown = [v for v in values if finite(v)]
    if not shown:
        return ""
    if len(shown) > width:
        edges = [round(i * len(shown) / width) for i in range(width + 1)]
        shown = [sum(shown[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(shown), max(shown)
    if high == low:
        return _BARS[3] * len(shown)
    return "".join(_BARS[round(7 * (v - low) / (high - low))] for v in shown)


def plain(text: Any, longest: int = 0) -> str:
    """``text`` on one line, free of control characters; in the middle shortened to ``longest`` characters if given.

    Names of files, columns and contestants come from users, reasons from exceptions: neither may move the cursor.
    """
    shown = " ".join(str(text).split())
    shown = "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in shown)
    if longest and len(shown) > longest:
        tail = (longest - 1) * 2 // 3
        shown = shown[: longest - 1 - tail] + "…" + shown[len(shown) - tail :]
    return shown


#: Names of metrics that are written in their own way; parts of names that are words. Other parts of up to five letters
#: are abbreviations.
CASED = {"dice": "Dice", "iou": "IoU"}
WORDS = {"at", "bits", "byte", "exact", "found", "log", "loss", "macro", "nats", "per", "token", "width"}


def metric_name(metric: str) -> str:
    """A metric as a heading: abbreviations in capitals, words as they are."""
    name, bracket, of_what = metric.partition("(")
    parts = (CASED.get(p) or (p if p in WORDS or len(p) > 5 else p.upper()) for p in name.split("_"))
    return " ".join(parts) + bracket + of_what


def english_list(items: Sequence[str], most: int = 0) -> str:
    """ "a", "a and b", "a, b and c"; with ``most``, "a, b and 4 others"."""
    shown = list(items)
    if most and len(shown) > most:
        shown = [*shown[: most - 1], f"{len(shown) - most + 1} others"]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + f" and {shown[-1]}" if shown else ""


def format_bytes(count: float) -> str:
    """``count`` bytes as people read them: "512 B", "1.50 KiB", "23.4 MiB", "1.02 GiB"."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    value, units = count / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f} {units[0]}"
