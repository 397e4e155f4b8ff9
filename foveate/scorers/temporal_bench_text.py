"""TemporalBench beside its scores: the official print-out, and what the captions alone give away.

A negative caption is the true one with a single edit, so among all captions of a video the true one lies in the
middle. Whoever chooses among all of them finds it without the video; whoever sees one pair cannot.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from .base import Question, Row, by_group

_WORD = re.compile(r"\w+")
_NAME, _COUNT = 40, 15


def centrality(captions: Sequence[str]) -> list[float]:
    """How many of a caption's words another one has too, on average over the others, for each caption."""
    words = [set(_WORD.findall(caption.lower())) for caption in captions]
    counts = Counter(word for own in words for word in own)
    return [sum(counts[word] - 1 for word in own) / max(1, len(words) - 1) for own in words]


def text_only_answers(questions: Iterable[Question], form: Literal["n-way", "binary"] = "binary") -> dict[str, str]:
    """What a chooser of the most central caption says to questions, by id, without any video.

    Args:
        questions: of two captions each.
        form: "n-way" compares all captions that the questions have of a video, as a choice among all of them would;
            "binary" compares the two of one question, neither more central: a coin, seeded by the id.
    """
    questions = list(questions)
    pools: dict[str, dict[str, float]] = {}
    for question in questions:
        pool = question.id if form == "binary" else question.groups.get("run", "") + question.video
        pools.setdefault(pool, {}).update(dict.fromkeys(question.options.values(), 0.0))
    for pool in pools.values():
        pool.update(zip(pool, centrality(list(pool)), strict=True))
    found = {}
    for question in questions:
        pool = pools[question.id if form == "binary" else question.groups.get("run", "") + question.video]
        a, b = (pool[caption] for caption in question.options.values())
        coin = zlib.crc32(question.id.encode()) % 2 == 0
        found[question.id] = "A" if a > b or (a == b and coin) else "B"
    return found


def format_report(file: str, task: str, rows: Sequence[Row], categories: Sequence[str]) -> str:
    """What the official scripts print for one file of answers, letter by letter.

    Args:
        file: its name.
        task: short_qa, long_qa or short_caption.
        rows: by the official rules, in the order of the file.
        categories: in their order; the first that no answer is of ends the table, with the error that is printed.
    """
    lines = [f"{'*' * 20} {file} {'*' * 20}"]
    if task == "short_caption":
        mean = sum(row.verdict.mark for row in rows) / len(rows)
        return "\n".join([*lines, f"Average similarity: {mean * 100:.4f}", ""])
    lines.append(f"{'Binary Accuracy:':<{_NAME}} {_binary(rows)}")
    lines.append(f"{'Multiple Binary Accuracy:':<{_NAME}} {_multiple(rows)}")
    lines += _table("|+++ Dataset", by_group(rows, "dataset"))
    if task == "short_qa":
        found = by_group(rows, "category")
        lines += _table("|-- Category", {})
        for name in categories:
            if name not in found:
                lines.append(f"Error running video: {name!r}")
                break
            lines.append(_line(name, found[name]))
    return "\n".join([*lines, ""])


def _table(title: str, groups: dict[str, list[Row]]) -> list[str]:
    rule = "+" * 110
    mark, name = title.split(" ")
    head = f"{mark} {name:<{_NAME}}Binary Accuracy{' ' * 13}||| Multiple Binary Accuracy{' ' * 19}"
    return [rule, head, rule, *(_line(name, rows) for name, rows in groups.items())]


def _line(name: str, rows: Sequence[Row]) -> str:
    return f"|--- {name + ' ':<{_NAME}} {_binary(rows)} ||| {_multiple(rows)}"


def _binary(rows: Sequence[Row]) -> str:
    return _share(sum(row.verdict.mark for row in rows), len(rows))


def _multiple(rows: Sequence[Row]) -> str:
    products: dict[str, float] = {}
    for row in rows:
        video = row.answer.question.video
        products[video] = products.get(video, 1.0) * row.verdict.mark
    return _share(sum(products.values()), len(products))


def _share(right: float, total: int) -> str:
    return f"{int(right) if right == int(right) else right}/{total:<{_COUNT}} {right / total * 100:.2f}%"
