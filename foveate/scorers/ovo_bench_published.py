"""What is published of OVO-Bench: the official print-outs of eight systems, and which a constant answer equals."""

from __future__ import annotations

from collections.abc import Mapping

_TASKS = ("EPM", "ASI", "HLD", "OCR", "ACR", "ATR", "STU", "FPD", "OJR", "REC", "SSR", "CRR")
_TABLE = """
Gemini 1.5 Pro     58.59 76.35 52.69 62.54 85.91 66.97 79.31 58.43 63.37 61.96 69.32 35.53 74.24 61.67 57.15 63.00
InternVL2-8B       48.15 57.43 24.73 43.44 67.11 60.55 63.79 46.07 68.32 56.52 60.39 26.50 59.14 54.17 46.60 50.15
Qwen2-VL-7B        47.81 56.08 35.48 46.46 60.40 50.46 56.03 47.19 66.34 55.43 55.98 31.66 65.82 48.75 48.74 50.39
Qwen2-VL-72B       53.87 60.81 58.06 57.58 65.77 60.55 69.83 51.69 69.31 54.35 61.92 38.83 64.07 45.00 49.30 56.27
LLaVA-Video-7B     56.23 57.43  7.53 40.40 69.13 58.72 69.83 49.44 74.26 59.78 63.52 34.10 69.95 60.42 54.82 52.91
LLaVA-OneVision-7B 54.21 55.41 21.51 43.71 66.44 57.80 73.28 53.37 71.29 61.96 64.02 25.64 67.09 58.75 50.50 52.74
LongVU-7B          40.74 59.46  4.84 35.01 53.69 53.21 62.93 47.75 68.32 59.78 57.61 12.18 69.48 60.83 47.50 46.71
Flash-VStream-7B   39.06 37.16  5.91 27.38 24.16 29.36 28.45 33.71 25.74 28.80 28.37  8.02 67.25 60.00 45.09 33.61
"""
_COLUMNS = (*_TASKS[:3], "Backward", *_TASKS[3:9], "Realtime", *_TASKS[9:], "Forward", "Total")

#: Per cent as the official scorer prints it, by system, then by task, scenario and "Total".
PUBLISHED: dict[str, dict[str, float]] = {
    " ".join(words[: -len(_COLUMNS)]): dict(zip(_COLUMNS, map(float, words[-len(_COLUMNS) :]), strict=True))
    for words in map(str.split, _TABLE.strip().splitlines())
}
#: Of people, and of a system of which only the total is published.
HUMAN_TOTAL, DISPIDER_TOTAL = 92.81, 41.78


def not_above(reached: Mapping[str, float]) -> dict[str, list[str]]:
    """The published systems that are no better than what a constant answer reaches.

    Args:
        reached: what it gets, in per cent, by task, scenario or "Total"; other names are left out.

    Returns:
        Systems by each of these names, best first; a name that all of them beat has none.
    """
    found = {}
    for name, value in reached.items():
        if name in _COLUMNS:
            hits = [system for system in PUBLISHED if PUBLISHED[system][name] <= round(value, 2)]
            found[name] = sorted(hits, key=lambda system, name=name: -PUBLISHED[system][name])
    return found
