"""The page of a scoring, made from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..pages.page import date, facts, render_page
from ..pages.ranges import Range, range_chart, reference_names, shape_key
from . import words


def render(record: Mapping[str, Any], title: str) -> str:
    """The page as HTML.

    Args:
        record: of :func:`foveate.scorers.record.record`.
        title: the suite's, in words.
    """
    main = next(iter(record["rules"].values()))
    ranges: dict[str, list[Range]] = {}
    for figure in main["figures"]:
        if figure["value"] is not None:
            heading, name = words.heading(figure)
            ranges.setdefault(heading, []).append(_range(record, figure, name))
    # The first section is one line, which the tiles show.
    shown = dict(list(ranges.items())[1:]) or ranges
    drawn_names = reference_names([r for found in shown.values() for r in found])
    names = [name for name in record["baselines"] if name in drawn_names]
    return render_page(
        "score.html",
        Path(__file__).parent / "templates",
        record=record,
        title=title,
        version=record["versions"]["foveate"],
        created=date(record["created"]),
        headline=words.headline(record),
        tiles=_tiles(record),
        findings=words.findings(record),
        charts=[
            (section, Markup(range_chart(found, names, title=f"{record['suite']}: {section}")))
            for section, found in shown.items()
        ],
        shapes=[(name, Markup(drawing)) for name, drawing in shape_key(names)],
        columns=words.columns(record),
        lines=words.lines(record),
        compared=None if record["comparison"] is None else words.compared(record),
        diagnosis=words.diagnosis(record),
        diagnosis_lines=words.diagnosis_lines(record),
        diagnosis_columns=words.diagnosis_columns(),
        notes=words.few(record["notes"]),
        signed=words.signed,
        p_value=words.p_value,
        facts=facts(_facts(record)),
        versions=facts(record["versions"]),
    )


def _range(record: Mapping[str, Any], figure: Mapping[str, Any], name: str) -> Range:
    found = {name: values.get(figure["key"]) for name, values in record["baselines"].items()}
    shown = {name: value for name, value in found.items() if value is not None}
    return Range(name, figure["value"], figure["low"], figure["high"], shown, figure["text"])


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    told = []
    for name, found in record["rules"].items():
        figure = found["figures"][0]
        told.append((f"{figure['name']}, {name} rules", figure["text"], words.interval(figure)))
    key = next(iter(record["rules"].values()))["figures"][0]["key"]
    told += [
        (name, words.number(v), "never looks")
        for name, values in record["baselines"].items()
        if (v := values.get(key)) is not None
    ]
    missing = record["missing"]["count"]
    told.insert(len(record["rules"]), ("answers", f"{record['answers']:,}", f"{missing:,} questions without one"))
    return told[: len(told) // 2 * 2][:6]


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    bootstrap = record["bootstrap"]
    return {
        "answers": record["predictions"],
        "annotations": record["against"] or "none: the answers' files bring their own",
        "counted": record["answers"],
        "intervals": f"95 %, {bootstrap['draws']:,} draws of {bootstrap['over']}, seed {bootstrap['seed']}",
        "missing": ", ".join(record["missing"]["ids"]),
        "answered more than once": ", ".join(record["repeated"]["ids"]),
    }
