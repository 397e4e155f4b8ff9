"""The leaderboard: one record made of all trials, written as JSON, CSV and an HTML report.

A **result** is what one trial wrote when it ended, a dictionary (keys that are absent count as unknown)::

    system, kind ("model", "mixer" or "custom"), baseline (bool), seed
    status ("done", "failed" or "skipped"), reason (one sentence unless done)
    val, test          metric to value; test was scored once, after all choices were made
    per_sample         every test sample's part of the metric that ranks, in the split's order (any sequence of floats)
    parameters, flops (forward, one sample), train_samples_per_second, peak_memory_mb
    latency_ms         {"median", "low", "high"} or None
    learning_rate, steps, seconds
    recipe             facts of the published recipe that it was trained by; {} or absent: by the usual rules
    batch_dependence   {"scored", "predict"}: samples scored, and asked by ``predict``, at once, if that matters to it
    sweep              [{"learning_rate", "val"}, ...]: the candidates on validation
    curve              [[step, training loss, validation metric], ...] (either value may be None)
    examples           task-specific pictures, from :attr:`foveate.tasks.base.Evaluation.examples`

A row of the leaderboard stands for one system: means and spreads over its seeds, rank, significance, Pareto front.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_write, write_json
from ..measure.machine import versions
from ..pages.figures import finite
from ..spec import TaskSpec
from ..tasks.base import Task
from . import report
from .merge import merge, merged_table
from .statistics import LEVEL, compare_systems, pareto_front
from .tables import table

__all__ = ["as_csv", "best_row", "best_seed", "build", "merge", "merged_table", "summarise", "table"]

Row = dict[str, Any]
Result = Mapping[str, Any]


def build(
    out: str | Path,
    task: Task,
    results: Sequence[Result],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    *,
    shipped: Mapping[str, Any] | None = None,
    tracking: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Make the leaderboard of a comparison and write ``leaderboard.json``, ``leaderboard.csv`` and ``report.html``.

    Each file is replaced atomically, so that a reader never sees half of one.

    Args:
        out: the comparison's folder, which exists.
        task: the task all trials were scored on.
        results: one dictionary for each trial, see the module's docstring.
        settings: the resolved settings of the comparison (JSON values), shown in the report.
        machine: hardware facts, from :func:`foveate.measure.machine.machine_facts`.
        shipped: what ``best/`` holds, from :meth:`foveate.compare.ship.Shipping.ship`; it joins "best".
        tracking: how each tracker ended, from :meth:`foveate.compare.tracking_hub.Tracking.close`.

    Returns:
        The content of ``leaderboard.json``.
    """
    leaderboard = summarise(task, results, settings, machine)
    if leaderboard["best"] is not None:
        leaderboard["best"] |= _json_values(shipped or {})
    leaderboard["tracking"] = _json_values(tracking)
    folder = Path(out)
    atomic_write(folder / "leaderboard.csv", as_csv(leaderboard))
    atomic_write(folder / "report.html", report.render(leaderboard))
    write_json(folder / "leaderboard.json", leaderboard)
    return leaderboard


def summarise(
    task: Task, results: Sequence[Result], settings: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """The leaderboard as :func:`build` writes it, without writing anything."""
    spec = task.spec
    by_system: dict[str, list[Result]] = {}
    for result in results:
        by_system.setdefault(result["system"], []).append(result)
    rows = [_row(trials, spec) for trials in by_system.values()]
    rows.sort(key=lambda row: _order(row, spec))
    finished = {name: done for name, trials in by_system.items() if (done := _finished(trials, spec))}
    planned = {name: len(trials) for name, trials in by_system.items()}
    # A system that was planned once among others with several seeds has nothing random in it.
    fixed = {name for name, trials in planned.items() if trials == 1 < max(planned.values())}
    comparison = _mark_ties(rows, finished, task, fixed)
    _mark_pareto(rows, spec)
    best = None
    if chosen := best_row(rows, spec.metrics[0], spec.higher_is_better):
        seed = best_seed(chosen, spec.metrics[0], spec.higher_is_better)
        best = {"system": chosen["system"], "seed": seed, "path": "best"}
    leaderboard = {
        "format": 1,
        "task": task_name(task),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": dict(task.describe()),
        "settings": dict(settings),
        "machine": dict(machine),
        "versions": versions(),
        "ranked_on": spec.ranked_on,
        "metrics": list(spec.ranking_metrics),
        "primary": spec.ranking_metrics[0],
        "higher_is_better": spec.ranking_higher_is_better,
        "validation": {
            "metrics": list(spec.metrics),
            "primary": spec.metrics[0],
            "higher_is_better": spec.higher_is_better,
        },
        "comparison": comparison,
        "best": best,
        "rows": rows,
    }
    return _json_values(leaderboard)


def task_name(task: Task) -> str:
    """The name a task is registered under, or that of its class."""
    return getattr(task, "registered_as", (None, type(task).__name__))[1]


def best_row(rows: Iterable[Row], primary: str, higher_is_better: bool) -> Row | None:
    """The row that wins on validation data, the only ones a choice may see; None if no system finished."""
    done = [row for row in rows if row["status"] == "done" and finite(row["val"][primary]["mean"])]
    sign = -1 if higher_is_better else 1
    return min(done, key=lambda row: (sign * row["val"][primary]["mean"], row["system"]), default=None)


def best_seed(row: Row, primary: str, higher_is_better: bool) -> int:
    """The seed of a finished row that did best on validation data."""
    sign = -1 if higher_is_better else 1
    done = [s for s in row["seeds"] if s["status"] == "done" and finite(s["val"].get(primary))]
    return min(done, key=lambda s: (sign * s["val"][primary], s["seed"]))["seed"]


def _finished(trials: Sequence[Result], spec: TaskSpec) -> list[Result]:
    """The trials that ended with a score to rank by."""
    return [t for t in trials if t["status"] == "done" and finite(t[spec.ranked_on].get(spec.ranking_metrics[0]))]


def _row(trials: Sequence[Result], spec: TaskSpec) -> Row:
    """One system's row; rank, ties and Pareto front are still open."""
    primary, sign = spec.metrics[0], -1 if spec.higher_is_better else 1
    done = _finished(trials, spec)
    # What can be shown for one seed only (its pictures, its learning rate) is that of the best one on validation.
    shown = min(done, key=lambda t: (sign * t["val"][primary], t["seed"]), default=trials[0])
    return {
        "rank": None,
        "system": shown["system"],
        "kind": shown.get("kind", "model"),
        "baseline": bool(shown.get("baseline", False)),
        "status": "done" if done else "skipped" if all(t["status"] == "skipped" for t in trials) else "failed",
        "reason": _reasons(trials),
        "val": {m: _spread([t["val"].get(m) for t in done]) for m in spec.metrics},
        "test": {m: _spread([t["test"].get(m) for t in done]) for m in _test_metrics(spec)},
        "tied": False,
        "p_value": None,
        "beaten_by": [],
        "pareto": False,
        "parameters": shown.get("parameters"),
        "flops": shown.get("flops"),
        "train_samples_per_second": _mean([t.get("train_samples_per_second") for t in done]),
        "latency_ms": next((t["latency_ms"] for t in done if t.get("latency_ms")), None),
        "peak_memory_mb": max((t["peak_memory_mb"] for t in done if finite(t.get("peak_memory_mb"))), default=None),
        "learning_rate": shown.get("learning_rate"),
        "sweep": shown.get("sweep") or [],
        "steps": max(t.get("steps") or 0 for t in trials),
        "seconds": sum(t.get("seconds") or 0.0 for t in trials),
        "recipe": shown.get("recipe") or None,
        "batch_dependence": shown.get("batch_dependence"),
        "seeds": [_seed(t) for t in sorted(trials, key=lambda t: t["seed"])],
        "examples": shown.get("examples") or {},
    }


def _seed(trial: Result) -> dict[str, Any]:
    return {
        "seed": trial["seed"],
        "status": trial["status"],
        "reason": trial.get("reason", ""),
        "val": dict(trial.get("val") or {}),
        "test": dict(trial.get("test") or {}),
        "steps": trial.get("steps") or 0,
        "seconds": trial.get("seconds") or 0.0,
        "curve": [list(point) for point in trial.get("curve") or []],
    }


def _reasons(trials: Sequence[Result]) -> str:
    """Why trials did not finish, the seed named where others did."""
    told: dict[str, list[int]] = {}
    for trial in trials:
        if trial["status"] != "done":
            told.setdefault(trial.get("reason") or trial["status"], []).append(trial["seed"])
        elif not all(finite(v) for v in trial["test"].values()):
            told.setdefault("the test score is not a finite number", []).append(trial["seed"])
    if sum(map(len, told.values())) == len(trials) and len(told) == 1:
        return next(iter(told))
    return "; ".join(
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {why}" for why, seeds in told.items()
    )


def _mean(values: Iterable[Any]) -> float | None:
    known = [v for v in values if finite(v)]
    return sum(known) / len(known) if known else None


def _spread(values: Iterable[Any]) -> dict[str, float | None]:
    """Mean, and standard deviation over seeds (n - 1), which one seed does not have."""
    known = [float(v) for v in values if finite(v)]
    mean = _mean(known)
    if mean is None or len(known) < 2:
        return {"mean": mean, "std": None}
    return {"mean": mean, "std": math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1))}


def _test_metrics(spec: TaskSpec) -> tuple[str, ...]:
    return spec.ranking_metrics if spec.ranked_on == "test" else ()


def _order(row: Row, spec: TaskSpec) -> tuple[int, float, str]:
    """Sorting key: finished ones by the score that ranks, then failed, then skipped ones."""
    group = ("done", "failed", "skipped").index(row["status"])
    score = row[spec.ranked_on][spec.ranking_metrics[0]]["mean"] or 0.0
    return group, -score if spec.ranking_higher_is_better else score, row["system"]


def _mark_ties(
    rows: list[Row], finished: Mapping[str, Sequence[Result]], task: Task, fixed: set[str]
) -> dict[str, Any]:
    """Fill in rank, ties and p-values of the finished rows, best first; return the facts of the test."""
    if not finished:
        return {}
    seeds = max(len(trials) for trials in finished.values())
    if task.spec.ranked_on != "test":  # there is nothing to test on: the order of the validation scores
        for rank, row in enumerate(rows[: len(finished)], start=1):
            row["rank"] = rank
        return {"seeds": seeds}
    sign = -1 if task.spec.ranking_higher_is_better else 1
    errors = {}
    for row in rows[: len(finished)]:
        samples = [torch.as_tensor(t["per_sample"], dtype=torch.float64) for t in finished[row["system"]]]
        errors[row["system"]] = sign * torch.stack(samples)
    compared = compare_systems(errors, overlap=task.overlap, groups=task.sample_groups("test"), fixed=fixed)
    for i, (row, rank) in enumerate(zip(rows, compared.ranks(), strict=False)):
        row["rank"] = rank
        row["tied"] = compared.tied(i)
        row["p_value"] = None if i == compared.best else float(compared.p[compared.best, i])
        row["beaten_by"] = compared.beaten_by(i)
    return {
        "test": "paired Diebold-Mariano test, equal-weighted cosine long-run variance, Holm over all pairs",
        "level": LEVEL,
        "samples": compared.samples,
        "overlap": task.overlap,
        "degrees_of_freedom": compared.freedom,
        "seeds": seeds,
    }


def _mark_pareto(rows: list[Row], spec: TaskSpec) -> None:
    """Mark the rows that no other beats in quality, latency and memory at once (parameters where memory is unknown)."""
    done = [row for row in rows if row["status"] == "done"]
    memory = "peak_memory_mb" if all(finite(row["peak_memory_mb"]) for row in done) else "parameters"
    sign = -1 if spec.ranking_higher_is_better else 1
    # Without a measured latency or size a row cannot claim a place by it: it counts as the most expensive.
    points = [
        (
            sign * row[spec.ranked_on][spec.ranking_metrics[0]]["mean"],
            row["latency_ms"]["median"] if row["latency_ms"] else math.inf,
            max(row[memory], 1.0) if finite(row[memory]) else math.inf,  # below 1 MB it is noise
        )
        for row in done
    ]
    for row, front in zip(done, pareto_front(points), strict=True):
        row["pareto"] = front


def as_csv(leaderboard: Mapping[str, Any]) -> str:
    """One line for each system with every figure; empty where there is none."""
    tested = leaderboard["metrics"] if leaderboard["ranked_on"] == "test" else []
    scores = [("test", m) for m in tested] + [("val", m) for m in leaderboard["validation"]["metrics"]]
    plain = ("rank", "system", "kind", "baseline", "status", "tied", "p_value", "pareto")
    costs = ("parameters", "flops", "train_samples_per_second", "peak_memory_mb", "learning_rate", "steps", "seconds")
    names = [f"{split}_{m}_{figure}" for split, m in scores for figure in ("mean", "std")]
    times = [f"latency_ms_{figure}" for figure in ("median", "low", "high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *names, *costs, *times, "seeds_done", "reason"])
    for row in leaderboard["rows"]:
        quality = [row[split][m][f] for split, m in scores for f in ("mean", "std")]
        latency = [(row["latency_ms"] or {}).get(figure) for figure in ("median", "low", "high")]
        seeds = sum(s["status"] == "done" for s in row["seeds"])
        writer.writerow([*(row[k] for k in plain), *quality, *(row[k] for k in costs), *latency, seeds, row["reason"]])
    return text.getvalue()


def _json_values(value: Any) -> Any:
    """The same with plain JSON values: numbers that are not finite become None, tensors and arrays lists."""
    if isinstance(value, Mapping):
        return {str(k): _json_values(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return _json_values(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_values(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
