"""What a comparison puts on record in ``best/config.json``, for its model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..files import plain
from ..models.build import resolve
from .wording import method, verdict

#: Facts of the data that a card may show, of those that tasks put on record; others may be private.
_SHOWN = (
    "sha256",
    "test_sha256",
    "rows",
    "samples",
    "series",
    "columns",
    "targets",
    "known",
    "static",
    "classes",
    "freq",
    "season",
    "lookback",
    "horizon",
    "quantiles",
    "shortest",
    "longest",
    "mask_rate",
    "anomalies",
    "anomalous_rows",
    "threshold",
    "missing_rows",
    "split",
    "stride",
)
#: Names that are kept of a long list.
_MOST = 50
_OF_A_PART = ("rows", "samples", "windows", "first", "last")
_TIES = "Ties look like ties"


def record(leaderboard: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The entry "comparison" of the winner's configuration.

    Args:
        leaderboard: from :func:`foveate.compare.leaderboard.summarise`.
        result: of the winning trial.
    """
    board = leaderboard
    shown = ("rank", "system", "baseline", "tied", "val", "test", "parameters")
    winner = next(row for row in board["rows"] if row["system"] == board["best"]["system"])
    rows = [
        {k: row[k] for k in shown} | {"latency_ms": (row["latency_ms"] or {}).get("median"), "seeds": _finished(row)}
        for row in board["rows"]
        if row["status"] == "done"
    ]
    made = {
        "data": _data(board["data"]),
        "ranked_on": board["ranked_on"],
        "primary": board["primary"],
        "higher_is_better": board["higher_is_better"],
        "chosen_by": board["validation"]["primary"],
        "rows": rows,
        "said": [*verdict(board).sentences, *(text for rule, text in method(board) if rule == _TIES)],
        "training": {
            **{k: result.get(k) for k in ("steps", "best_step", "batch_size", "threads", "seconds")},
            "recipe": _recipe(winner["system"]),
            "learning_rates": [tried["learning_rate"] for tried in winner["sweep"]],
        },
        "machine": {k: board["machine"][k] for k in ("cpu", "cores", "memory_bytes", "os", "gpus")},
        "versions": board["versions"],
    }
    return plain(made)


def _recipe(system: str) -> str:
    """The class of the recipe that a system names, and two numbers of it; "" if the system is not trained."""
    contestant = resolve(system)
    if not getattr(contestant.target.spec, "trains", True):
        return ""
    module, _, attribute = contestant.recipe.rpartition(".")
    recipe = getattr(import_module(module), attribute)
    clip = "not clipped" if recipe.clip_norm is None else f"clipped to {recipe.clip_norm:g}"
    return f"{contestant.recipe}, weight decay {recipe.weight_decay:g}, gradient norm {clip}"


def _finished(row: Mapping[str, Any]) -> int:
    return sum(seed["status"] == "done" for seed in row["seeds"])


def base_name(source: Any) -> str:
    """The name of a file without the folders that it lies in, which are nobody's business."""
    return re.split(r"[\\/]", str(source).rstrip("\\/"))[-1]


def _data(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Name, hash and sizes, and "parts" with what is known of each split."""
    data: dict[str, Any] = {"name": base_name(facts.get("source") or "data")}
    if facts.get("test_source"):
        data["test_name"] = base_name(facts["test_source"])
    parts: dict[str, dict[str, Any]] = {}
    for name, value in facts.items():
        if name in ("rows", "windows") and isinstance(value, Mapping):
            for split, count in value.items():
                parts.setdefault(split, {})[name] = count
        elif name == "parts":
            for split, about in value.items():
                parts.setdefault(split, {}).update({k: about[k] for k in _OF_A_PART if k in about})
        elif name in _SHOWN and value not in (None, [], ""):
            data[name] = value[:_MOST] if isinstance(value, list) else value
            if isinstance(value, list) and len(value) > _MOST:
                data[f"{name}_count"] = len(value)
    return {**data, "parts": parts} if parts else data
