"""A scoring in words: what its tables say on a terminal and on a page, from the record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..pages.figures import NONE, english_list, plain

#: Notes that a table shows; the record has all.
MOST_NOTES = 8


def number(value: float | None, digits: int = 1) -> str:
    """A figure among others; a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}f}"


def interval(figure: Mapping[str, Any]) -> str:
    """The ends of a figure's interval."""
    return NONE if figure["low"] is None else f"{figure['low']:.1f}–{figure['high']:.1f}"


def signed(figure: Mapping[str, Any]) -> str:
    """The ends of a difference's interval."""
    return f"{figure['low']:+.1f} to {figure['high']:+.1f}"


def plain_name(name: str) -> str:
    """A figure's name as a terminal can show it: files name tasks and models."""
    return plain(name, 40)


def p_value(p: float) -> str:
    """A p-value as it is printed."""
    return "< 0.01" if p < 0.01 else f"{p:.2f}"


def constants(record: Mapping[str, Any]) -> list[str]:
    """Names of the baselines that never look and always say the same; a guess and another model's text are not."""
    return [name for name in record["baselines"] if name not in ("random", "text only")]


def reached(record: Mapping[str, Any], figure: Mapping[str, Any]) -> list[str]:
    """Baselines that are at least as good as a figure."""
    if figure["value"] is None:
        return []
    found = ((name, values.get(figure["key"])) for name, values in record["baselines"].items())
    return [name for name, value in found if value is not None and value >= figure["value"] - 1e-9]


def findings(record: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the figures: what is left out, unread, counted twice, or no better than blind."""
    rules = record["rules"]
    told = []
    if record["missing"]["count"]:
        how = "counted as wrong by the strict rules" if "strict" in rules else "counted by no rule"
        told.append(f"{_count(record['missing']['count'], 'question has', 'questions have')} no answer: {how}.")
    if record["skipped"]:
        told.append(f"Nothing was answered in {english_list(record['skipped'], 6)}: left out.")
    if record["repeated"]["count"]:
        told.append(
            f"{_count(record['repeated']['count'], 'question was', 'questions were')} answered more than once: the "
            "official rules count every answer, the strict ones the first."
        )
    for name, found in rules.items():
        if found["unreadable"]:
            share = 100 * found["unreadable"] / found["answers"]
            told.append(f"The {name} rules could not read {found['unreadable']:,} answers ({share:.1f} %).")
    if record["judged"]:
        told.append(f"A judge decided {record['judged']:,} answers.")
    if record["needs_judge"]:
        told.append(
            f"{_count(record['needs_judge'], 'answer', 'answers')} would go to a judge in the official evaluation: "
            "without one they count as the official script counts them then."
        )
    first = next(iter(rules.values()))
    beaten = [(f["name"], hits) for f in first["figures"] if (hits := reached(record, f))]
    if beaten:
        names = english_list([f"{name} ({hits[0]})" for name, hits in beaten], 5)
        told.append(f"An answer that never looks at the video does as well in {names}.")
    return told + record["remarks"]


def headline(record: Mapping[str, Any]) -> str:
    """The overall figures in a line."""
    texts = {name: found["figures"][0]["text"] for name, found in record["rules"].items()}
    if all(found["figures"][0]["value"] is None for found in record["rules"].values()):
        return "No overall figure: parts of the suite are missing"
    if len(texts) == 2 and len(set(texts.values())) == 1:
        return f"{next(iter(texts.values()))} by both rules"
    return ", ".join(f"{text} by the {name} rules" for name, text in texts.items())


def compared(record: Mapping[str, Any]) -> str:
    """The comparison with another model in a sentence."""
    found = record["comparison"]
    right, first = found["right"], found["figures"][0] if found["figures"] else None
    told = (
        f"On the {found['questions']:,} questions that both answered, {right['only_this']:,} are right here only and "
        f"{right['only_other']:,} there only"
    )
    if first is None:
        return f"{told}."
    sure = "no clear difference" if first["low"] <= 0 <= first["high"] else "a clear difference"
    return f"{told}: {first['text']} against {first['other_text']}, {sure} ({signed(first)}, p {p_value(first['p'])})."


#: The ratios of a diagnosis as its table heads them; all are in per cent.
RATIOS = {
    "multi_frame_gain": "Multi-Frame Gain",
    "gain_over_best": "Gain over best frame",
    "frame_order_sensitivity": "Frame Order Sensitivity",
    "frame_information_disparity": "Frame Information Disparity",
}


def diagnosis(record: Mapping[str, Any]) -> list[str]:
    """How temporal the questions are for this model, in a sentence; nothing without answers to single frames."""
    if record["diagnosis"] is None:
        return []
    rules, found = next(iter(record["diagnosis"].items()))
    whole = found["all"]
    told = [f"{name} {whole[key]:+.1f} %" for key, name in RATIOS.items() if whole[key] is not None]
    accuracies = [f"{what} {whole[key]:.1f}" for key, what in _CONDITIONS.items() if whole[key] is not None]
    return [
        f"On {whole['questions']:,} questions by the {rules} rules: {english_list(accuracies)}. "
        f"{', '.join(told) or 'No ratio has a value'}."
    ]


_CONDITIONS = {"many": "with all frames", "one": "with one", "shuffled": "shuffled", "best": "with the best one"}


def diagnosis_lines(record: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(task, cells) of the diagnosis: questions, accuracies, ratios."""
    if record["diagnosis"] is None:
        return []
    found = next(iter(record["diagnosis"].values()))
    return [
        (task, [f"{d['questions']:,}", *(number(d[key]) for key in (*_CONDITIONS, *RATIOS))])
        for task, d in found.items()
    ]


def diagnosis_columns() -> list[str]:
    """Headings of the diagnosis after a task's name."""
    return ["questions", *_CONDITIONS.values(), *RATIOS.values()]


def columns(record: Mapping[str, Any]) -> list[str]:
    """Headings of the table of figures after a figure's name."""
    return ["answers", *record["rules"], "95\u00a0%", *record["baselines"]]


def lines(record: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(heading, name, cells) of the table of figures; what nothing was answered to is not in it."""
    rules = list(record["rules"].values())
    others = [{f["key"]: f for f in found["figures"]} for found in rules[1:]]
    told = []
    for place, figure in enumerate(rules[0]["figures"]):
        if place and not figure["total"]:
            continue
        cells = [f"{figure['total']:,}", figure["text"]]
        cells += [other[figure["key"]]["text"] if figure["key"] in other else NONE for other in others]
        cells += [interval(figure)]
        cells += [number(values.get(figure["key"])) for values in record["baselines"].values()]
        told.append((*heading(figure), cells))
    return told


def heading(figure: Mapping[str, Any]) -> tuple[str, str]:
    """What a figure stands under, and its name there: what is before a colon belongs to the heading."""
    group, colon, name = figure["name"].rpartition(": ")
    return (f"{figure['section']}, {group}", name) if colon else (figure["section"], figure["name"])


def few(notes: Sequence[str]) -> list[str]:
    """The first notes, and how many there are besides."""
    shown = list(notes[:MOST_NOTES])
    return shown + ([f"... and {len(notes) - MOST_NOTES:,} more."] if len(notes) > MOST_NOTES else [])


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
