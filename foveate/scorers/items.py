"""Every counted answer as CSV, with what each rule made of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import Row
from .score import Scores


def write_items(scores: Scores, file: Path) -> None:
    """Write a line for every answer that the official rules count, and for every question without one."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows(_lines(scores))


def _lines(scores: Scores) -> Iterator[list[Any]]:
    strict = {row.answer.question.id: row for row in _rows(scores, "strict")}
    official = _rows(scores, "official")
    counted = [*official, *(row for row in strict.values() if row.missing)] if official else list(strict.values())
    dimensions = sorted({name for row in counted for name in row.answer.question.groups})
    told = [f"{rule} {what}" for rule in scores.by_rules for what in ("mark", "readable", "said")]
    yield ["id", "task", "video", *dimensions, "truth", "response", "missing", *told, "file"]
    for row in counted:
        question, response = row.answer.question, row.answer.response
        by_rule = {"official": None if row.missing else row, "strict": strict.get(question.id)}
        yield [
            question.id,
            question.task,
            question.video,
            *(question.groups.get(name, "") for name in dimensions),
            question.truth,
            response if isinstance(response, str) else "" if response is None else json.dumps(response),
            int(row.missing),
            *(cell for rule in scores.by_rules for cell in _cells(by_rule[rule])),
            row.answer.file,
        ]


def _rows(scores: Scores, rules: str) -> list[Row]:
    return scores.by_rules[rules].rows if rules in scores.by_rules else []


def _cells(row: Row | None) -> tuple[Any, ...]:
    verdict = row and row.verdict
    return ("", "", "") if verdict is None else (f"{verdict.mark:g}", int(verdict.readable), verdict.said)
