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


#: How the captions are put: all of a video beside each other, or two by two.
FORMS = ("binary", "n-way")


def centrality(captions: Sequence[str]) -> list[float]:
    """The share of a caption's words that another one has too, on average over the others, for each caption."""
    return _central([frozenset(_WORD.findall(caption.lower())) for caption in captions])


def _central(words: Sequence[frozenset[str]]) -> list[float]:
    counts = Counter(word for own in words for word in own)
    others = max(1, len(words) - 1)
    return [sum([counts[word] - 1 for word in own]) / (others * max(1, len(own))) for own in words]


def text_only_answers(questions: Iterable[Question], form: Literal["n-way", "binary"] = "binary") -> dict[str, str]:
    """What a chooser of the most central caption says to questions, by id, without any video.

    Args:
        questions: of two captions each.
        form: "n-way" compares all captions that the questions have of a video, as a choice among all of them would;
            "binary" the two of one question. Where two are as central it throws a coin, seeded by the question's id.
    """
    return {id: said[FORMS.index(form)] for id, said in centres(questions).items()}


def centres(questions: Iterable[Question]) -> dict[str, tuple[str, str]]:
    """The answers of both forms, by id, in the order of :data:`FORMS`."""
    videos: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        videos.setdefault((question.groups.get("run", ""), question.video), []).append(question)
    found = {}
    for asked in videos.values():
        captions = dict.fromkeys(caption for question in asked for caption in question.options.values())
        words = [frozenset(_WORD.findall(caption.lower())) for caption in captions]
        pool = dict(zip(captions, zip(words, _central(words), strict=True), strict=True))
        for question in asked:
            (a, among_a), (b, among_b) = (pool[caption] for caption in question.options.values())
            coin = "AB"[zlib.crc32(question.id.encode()) % 2]
            shorter = (len(b) > len(a)) - (
                len(a) > len(b)
            )  # both share the same words: the shorter one more of its own
            found[question.id] = _chosen(shorter if a & b else 0, 0, coin), _chosen(among_a, among_b, coin)
    return found


def _chosen(a: float, b: float, coin: str) -> str:
    return coin if a == b else "A" if a > b else "B"


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
