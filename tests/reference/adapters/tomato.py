"""TOMATO against its rule parser, its scorer's print-out, and the ratios of its published tables."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate.scorers.score import score
from foveate.scorers.tomato import Tomato, build_prompt, parse_response
from foveate.scorers.tomato_diagnostics import frame_information_disparity, frame_order_sensitivity, multi_frame_gain

Compared = Iterator[tuple[str, object, object]]
PARSED = ("items", "parser_examples")
TABLES = ("rows", "rho_rows")
#: How far ratios of rounded accuracies may be from the printed ones, as the recording says.
ROUNDING = 0.5


def answers(recorded: Mapping[str, Any], data: Path) -> Compared:
    known = {"meta", "prompt_example", "files", *PARSED, *TABLES}
    told = [key for key in recorded if key.startswith("printed") or re.search("error|prefix|fail", key)]
    for key, value in recorded.items():
        if key in PARSED:
            yield from _parsed(value)
        elif key in TABLES:
            yield from _ratios(value)
        elif key == "prompt_example":
            yield from _prompt(value, data)
        elif key == "files":
            yield from _printed(value, {name: recorded[name] for name in told})
        else:
            assert key in known or key in told, f"{key} is compared with nothing"


def _parsed(items: list[dict[str, Any]]) -> Compared:
    for item in items:
        ours = parse_response(item["response"], item["all_choices"], item["index2ans"])
        yield f"the letter of {item['response']!r}", item["parsed"], ours or ""


def _ratios(rows: list[dict[str, Any]]) -> Compared:
    for row in rows:
        row = {key: value for key, value in row.items() if value is not None}
        name = f"{row['model']} on {row['benchmark']}"
        one, many = row["acc_1"], row.get("acc_16", 0.0)
        ratios = {
            "kappa": lambda many=many, one=one: multi_frame_gain(many, one),
            "tau": lambda many=many, row=row: frame_order_sensitivity(many, row["acc_16_shuffled"]),
            "rho": lambda row=row, one=one: frame_information_disparity(row["acc_1_handpicked"], one),
        }
        for ratio in [ratio for ratio in ratios if ratio in row]:
            ours = ratios[ratio]()
            yield f"{ratio} of {name}", row[f"{ratio}_from_rounded"], ours
            yield f"{ratio} of {name} near {row[ratio]}", True, abs(ours - row[ratio]) <= ROUNDING


def _prompt(example: Mapping[str, Any], data: Path) -> Compared:
    found = re.fullmatch(r"data/(.+)\.json id (\S+)", example["source"])
    assert found, f"{example['source']} names no question"
    question = Tomato(data / "tomato").questions[f"{found[1]}/{found[2]}"]
    frames = int(re.search(r"with (\d+) separate", example["prompt"])[1])  # type: ignore[index]
    prompt, letters, texts = build_prompt(question.question, list(question.options.values()), frames)
    yield "the prompt", example["prompt"], prompt
    yield "the suite's prompt", example["prompt"], Tomato().prompt(question, frames)
    yield "its letters", (example["all_choices"], example["index2ans"]), (letters, texts)


def _printed(files: Mapping[str, list[dict[str, Any]]], told: Mapping[str, Any]) -> Compared:
    text, stops = _scored(files)
    bare = _scored({name.replace("shuffle_", ""): lines for name, lines in files.items()})[1]
    for key, value in told.items():
        if isinstance(value, Mapping):
            inner = {name: own for name, own in value.items() if name != "files"}
            unknown = [name for name in inner if "error" not in name and name != "printed_text"]
            assert not unknown, f"{unknown} of {key} are compared with nothing"
            lines = value.get("files", {name.replace("shuffle_", ""): own for name, own in files.items()})
            yield from ((f"{key}: {what}", theirs, ours) for what, theirs, ours in _printed(lines, inner))
        elif key.startswith("printed"):
            yield key, value, None if value is None and stops else text
        else:  # an error of these files, or, where they have none, of the same without the prefix
            ours = bare if "prefix" in key or (value and not stops) else stops
            yield key, value, ours if value is None or ":" in value else (ours or "").partition(":")[0]


def _scored(files: Mapping[str, list[dict[str, Any]]]) -> tuple[str, str | None]:
    """Our print-out for parsed files, and the official error that our notes tell of."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in files.items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        suite = Tomato()
        scores = score(suite, folder, rules=("official",))
        text = suite.official_text(scores.by_rules["official"].rows)
    found = re.search(r"stops here \((.*?)\):", " ".join(scores.notes))
    return text, found[1] if found else None
