"""What a scoring found, as one record: what is printed, written as JSON and shown on a page is made from it alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .. import __version__
from .base import Figure
from .baselines import blind
from .collecting import uncollected
from .intervals import differences, intervals
from .score import Scored, Scores, first_answers
from .tomato_diagnostics import diagnose

#: How many ids a record names of those that are missing or repeated; the items' file has them all.
MOST_NAMED = 20


@uncollected()
def record(
    scores: Scores,
    *,
    against: str | None = None,
    text_only: Scores | None = None,
    compared: Scores | None = None,
    conditions: Mapping[str, Scores] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The record of a scoring.

    Args:
        scores: of a model.
        against: where the annotations lie.
        text_only: the same model's answers without the videos, shown as a baseline.
        compared: another model's answers, for a paired comparison.
        conditions: the model's answers to ``single`` frames, perhaps to ``shuffled`` and to the ``best_single`` ones.
        draws, seed: of the bootstrap over videos.
    """
    suite = scores.suite
    questions = list(suite.questions.values()) or [answer.question for answer in first_answers(scores.answers)]
    answered = {answer.question.task for answer in scores.answers}
    baselines = blind(suite, [question for question in questions if question.task in answered])
    blind_figures = dict(baselines)
    if text_only is not None:
        blind_figures["text only"] = next(iter(text_only.by_rules.values())).figures
    told = {name: {_key(f): _known(f.value) for f in figures.values()} for name, figures in blind_figures.items()}
    return {
        "suite": suite.slug,
        "predictions": str(scores.predictions),
        "against": against,
        "answers": len(scores.answers),
        "rules": {name: _told(scored, draws, seed) for name, scored in scores.by_rules.items()},
        "baselines": told,
        "remarks": suite.remarks(baselines),
        "missing": {"count": len(scores.missing), "ids": scores.missing[:MOST_NAMED]},
        "repeated": {"count": len(scores.repeated), "ids": scores.repeated[:MOST_NAMED]},
        "skipped": scores.skipped,
        "judged": scores.judged,
        "needs_judge": scores.needs_judge,
        "notes": scores.notes,
        "comparison": None if compared is None else comparison(scores, compared, draws=draws, seed=seed),
        "diagnosis": None if conditions is None else _diagnosis(scores, conditions),
        "bootstrap": {"draws": draws, "seed": seed, "level": 0.95, "over": "videos"},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
    }


def comparison(scores: Scores, other: Scores, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Two models on the questions that both answered, by the first rule: differences of figures and of answers.

    Draws of the bootstrap take the same videos of both models.
    """
    rules = next(iter(scores.by_rules))
    ours, others = (
        {id: row for id, row in s.by_rules[rules].first_rows().items() if not row.missing} for s in (scores, other)
    )
    both = [id for id in ours if id in others]
    mine, theirs = (scores.suite.figures([rows[id] for id in both]) for rows in (ours, others))
    found = differences(mine, theirs, draws=draws, seed=seed)
    right = Counter((ours[id].verdict.mark > 0.5, others[id].verdict.mark > 0.5) for id in both)
    named = {figure.key: figure for figure in theirs}
    return {
        "with": str(other.predictions),
        "rules": rules,
        "questions": len(both),
        "left_out": len(ours.keys() ^ others.keys()),
        "right": {
            "both": right[True, True],
            "only_this": right[True, False],
            "only_other": right[False, True],
            "none": right[False, False],
        },
        "figures": [
            {
                **_figure(f),
                "other": named[f.key].value,
                "other_text": named[f.key].text,
                "difference": d.value,
                "low": d.interval.low,
                "high": d.interval.high,
                "p": d.p,
            }
            for f in mine
            if (d := found.get(f.key)) is not None
        ],
    }


def _diagnosis(scores: Scores, conditions: Mapping[str, Scores]) -> dict[str, Any]:
    found = diagnose(many=scores, **conditions)
    return {rules: {task: d.record for task, d in by_task.items()} for rules, by_task in found.items()}


def _key(figure: Figure) -> str:
    return "/".join(figure.key)


def _known(value: float | None) -> float | None:
    """None for NaN, which JSON has not."""
    return None if value is None or math.isnan(value) else value


def _figure(figure: Figure) -> dict[str, Any]:
    value = {"value": figure.value, "text": figure.text, "total": figure.total}
    return {"section": figure.section, "name": figure.name, "key": _key(figure), **value}


def _told(scored: Scored, draws: int, seed: int) -> dict[str, Any]:
    figures = list(scored.figures.values())
    found = intervals(figures, draws=draws, seed=seed)
    told = []
    for figure in figures:
        interval = found.get(figure.key)
        ends = (None, None) if interval is None else (interval.low, interval.high)
        told.append({**_figure(figure), "low": ends[0], "high": ends[1]})
    return {"answers": len(scored.rows), "unreadable": scored.unreadable, "figures": told}


def _versions() -> Mapping[str, str]:
    from platform import python_version

    import numpy as np

    return {"foveate": __version__, "python": python_version(), "numpy": np.__version__}
