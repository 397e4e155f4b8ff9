"""What a worker process does: sweep a learning rate, train a trial or the winner once more, and a few measurements.

A worker writes everything into its own folder and ends with ``result.json``, written last: what has one is done. It
tells the parent about its progress as events, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from torch.utils import deterministic

from ..errors import FoveateError
from ..files import plain, read_json, read_jsonl, write_json
from ..measure.flops import count_flops
from ..measure.heap import keep_freed_memory
from ..measure.machine import versions
from ..measure.meter import MemoryMeter
from ..models.build import Contestant, resolve
from ..ops.backend import backend
from ..tasks.base import Batch, Recipe, Task, asked_at_once
from ..tasks.io import save_tensors
from ..tasks.published import PublishedRecipe
from ..tasks.state import evaluate, seed_everything, seed_generators
from ..tasks.trainer import LOG, Diverged, TrainResult, train
from .contestants import Job, task_class
from .folder import RESULT

MIB = 2.0**20
SCORES, ERROR, OUTPUT = "scores.safetensors", "error.txt", "output.txt"
#: Seconds that a dying worker of an interrupted run may still hold its folder.
LOCK_SECONDS = 60.0

Config = dict[str, Any]
Send = Callable[[dict[str, Any]], None]


class Unfit(Exception):
    """The system cannot be built for this data."""


def work(job: Job, config: Config, send: Send) -> None:
    """Do one job; the entry point of every worker process."""
    torch.set_num_threads(config["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Costs time and changes nothing here; pyright does not know this module property.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
    training = {"sweep": _sweep, "trial": _trial, "refit": _refit}
    if job.kind not in training:
        from . import finished  # it builds systems as this module does

        {"probe": finished.probe, "latency": finished.latency, "package": finished.package}[job.kind](job, config, send)
        return
    keep_freed_memory()  # not where latencies are measured: the user's process will not do so
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=LOCK_SECONDS), output_to(folder / OUTPUT):
        _recorded(training[job.kind], job, config, send, folder)


def _recorded(action: Callable[..., dict[str, Any]], job: Job, config: Config, send: Send, folder: Path) -> None:
    """Run an action and write down how it ended, whatever Python raised."""
    begun = time.perf_counter()
    try:
        result = action(job, config, send)
    except Unfit as error:
        result = unfinished(job, config, "skipped", str(error))
    except Diverged as error:
        result = unfinished(job, config, "failed", str(error))
    except Exception as error:
        (folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
        result = unfinished(job, config, "failed", _crash_reason(error))
    result.setdefault("seconds", time.perf_counter() - begun)
    write_json(folder / RESULT, result)


def _crash_reason(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0][:200]
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"ran out of memory: {first_line or 'MemoryError'} (see {ERROR})."
    if isinstance(error, FoveateError):  # says itself what is wrong
        return str(error)
    return f"crashed: {type(error).__name__}{': ' if first_line else ''}{first_line} (see {ERROR})."


def unfinished(job: Job, config: Config, status: str, reason: str, **more: Any) -> dict[str, Any]:
    """The result of a trial or sweep that did not finish; what its log tells is kept."""
    curve = [
        [line["step"], line["loss"], line["val"][config["metric"]]] for line in read_jsonl(Path(config["folder"]) / LOG)
    ]
    return {
        **_identity(job, config),
        "status": status,
        "reason": reason,
        "val": {},
        "test": {},
        "steps": curve[-1][0] if curve else 0,
        "curve": curve,
        **more,
    }


def _identity(job: Job, config: Config) -> dict[str, Any]:
    kept = ("kind", "baseline", "options", "recipe", "learning_rate", "sweep", "threads", "batch_size")
    return {"system": job.system, "seed": job.seed, **{k: config.get(k) for k in kept}, "versions": versions()}


# ----- training


class System:
    """A contestant built for a task, with its recipe; weights follow from the seed."""

    def __init__(self, job: Job, config: Config) -> None:
        task = task_class(config["task"]).load(Path(config["data"]))
        whole = task.whole() if config.get("whole") else None
        self.task: Task = task if whole is None else whole
        self.contestant: Contestant = resolve(job.system)
        self.memory = MemoryMeter()
        self.options = config["options"]
        self.published = config["recipe"]

    def build(self, seed: int) -> tuple[nn.Module, Recipe]:
        """A fresh model and its recipe.

        Raises:
            Unfit: the model refuses this data or these options.
        """
        if self.published:
            seed_generators(self.published["seed"] + seed)
        else:
            seed_everything("init", seed)
        try:
            model = self.contestant.build(self.task.info, self.options)
        except FoveateError as error:
            raise Unfit(str(error)) from error
        return model, self.recipe()

    def recipe(self) -> Recipe:
        """The published recipe on record, else the one that the contestant names."""
        if self.published:
            return PublishedRecipe(self.task, self.published)
        return recipe_of(self.contestant, self.task)

    def meters(self) -> dict[str, float]:
        """Peak working memory above that of the idle process, with torch and the data loaded."""
        return {"peak_memory_mb": self.memory.peak_bytes() / MIB}


def recipe_of(contestant: Contestant, task: Task) -> Recipe:
    """The recipe that the contestant names, for this task."""
    module, _, name = contestant.recipe.rpartition(".")
    return getattr(import_module(module), name)(task)


def _train(system: System, config: Config, folder: Path, send: Send, seed: int, **budget: Any) -> tuple[Any, ...]:
    model, recipe = system.build(seed)
    result = train(
        model,
        recipe,
        system.task,
        seed=seed,
        folder=folder,
        batch_size=config["batch_size"],
        checkpoint_every=config["checkpoint_every"],
        on_event=send,
        meters=system.meters,
        **budget,
    )
    return model, recipe, result


def _sweep(job: Job, config: Config, send: Send) -> dict[str, Any]:
    """Try every learning rate for a short share of the budget; the best on validation is the system's."""
    folder, rates, metric = Path(config["folder"]), config["learning_rates"], config["metric"]
    system = System(job, config)
    candidates = []
    for number, rate in enumerate(rates, start=1):
        told = {"type": "sweep", "candidate": number, "candidates": len(rates), "learning_rate": rate}
        file, place = folder / f"rate-{rate:g}.json", folder / f"rate-{rate:g}"
        if not file.exists():
            send(told)
            write_json(file, _candidate(system, config, place, rate))
        shutil.rmtree(place, ignore_errors=True)
        candidates.append(read_json(file))
        if candidates[-1]["val"] is not None:
            send({**told, "val": candidates[-1]["val"]})
    finished = [c for c in candidates if c["val"] is not None]
    if not finished:
        raise Diverged(f"every learning rate of the sweep failed; with {rates[0]:g} it {candidates[0]['reason']}")
    sign = -1.0 if system.task.spec.higher_is_better else 1.0
    best = min(finished, key=lambda c: sign * c["val"][metric])
    seconds = {k: sum(c[k] for c in candidates) for k in ("train_seconds", "evaluate_seconds", "checkpoint_seconds")}
    return {
        **_identity(job, config),
        "status": "done",
        "reason": "",
        "learning_rate": best["learning_rate"],
        "sweep": [{k: c[k] for k in ("learning_rate", "val", "steps", "reason")} for c in candidates],
        **seconds,
    }


def _candidate(system: System, config: Config, place: Path, rate: float) -> dict[str, Any]:
    steps, seconds = config["sweep_steps"], config["sweep_seconds"]
    quiet: Send = lambda event: None  # noqa: E731
    try:
        # Scored once, at its end, like every other candidate.
        result = _train(system, config, place, quiet, 0, lr=rate, steps=steps, seconds=seconds, validate_every=steps)[2]
    except Diverged as error:
        nothing = {"val": None, "steps": 0, "train_seconds": 0.0, "evaluate_seconds": 0.0, "checkpoint_seconds": 0.0}
        return {"learning_rate": rate, "reason": str(error), **nothing}
    return {
        "learning_rate": rate,
        "reason": "",
        "val": plain(result.val),
        "steps": result.steps,
        "train_seconds": result.train_seconds,
        "evaluate_seconds": result.evaluate_seconds,
        "checkpoint_seconds": result.checkpoint_seconds,
    }


def _trial(job: Job, config: Config, send: Send) -> dict[str, Any]:
    """Train with the chosen learning rate, then score the best-validation weights on test, once."""
    begun = time.perf_counter()
    folder = Path(config["folder"])
    system = System(job, config)
    task = system.task
    seconds = config["seconds"]
    if seconds is not None:
        seconds = max(0.1, seconds - (time.perf_counter() - begun))
    model, recipe, trained = _train(
        system,
        config,
        folder,
        send,
        job.seed,
        lr=config["learning_rate"] or 1e-3,
        steps=config["steps"],
        seconds=seconds,
        validate_every=config["validate_every"],
        patience=config["patience"] or None,
        # Under a time budget the test split is scored inside the trial's share; a fifth more for safety.
        reserve=1.2 * task.scoring_size("test") / task.scoring_size("val"),
    )
    started = time.perf_counter()
    at_once = recipe.scored_at_once(config["batch_size"])
    scored = evaluate(model, recipe, task, "test", at_once)
    test_seconds = time.perf_counter() - started
    save_tensors(folder / SCORES, {"test": scored.per_sample})
    form = recipe.eval_form(model, "test").eval()
    return {
        **_identity(job, config),
        "status": "done",
        "reason": "",
        "val": plain(trained.val),
        "test": plain(scored.metrics),
        "curve": trained.curve,
        "steps": trained.steps,
        "best_step": trained.best_step,
        "stopped": trained.stopped,
        "parameters": sum(p.numel() for p in form.parameters()),
        "flops": flops_of(task, form),
        "train_samples_per_second": trained.samples / trained.train_seconds if trained.samples else None,
        "peak_memory_mb": max(trained.meters.get("peak_memory_mb", 0.0), system.meters()["peak_memory_mb"]),
        "seconds": _seconds(trained) + test_seconds,
        "train_seconds": trained.train_seconds,
        "evaluate_seconds": trained.evaluate_seconds + test_seconds,
        "checkpoint_seconds": trained.checkpoint_seconds,
        "examples": plain(scored.examples),
        # On record where it matters: how many samples were scored, and are asked by ``predict``, at once.
        "batch_dependence": None if asked_at_once(form, 2) == 2 else {"scored": at_once, "predict": 1},
    }


def _refit(job: Job, config: Config, send: Send) -> dict[str, Any]:
    """Train the winner once more, on all data, for the steps after which it was best; the last weights are kept."""
    system = System(job, config)
    steps = config["steps"]
    budget = {"lr": config["learning_rate"] or 1e-3, "steps": steps, "validate_every": steps}
    trained: TrainResult = _train(system, config, Path(config["folder"]), send, job.seed, **budget)[2]
    return {
        **_identity(job, config),
        "status": "done",
        "reason": "",
        "steps": trained.steps,
        "seconds": _seconds(trained),
    }


def _seconds(trained: TrainResult) -> float:
    return trained.train_seconds + trained.evaluate_seconds + trained.checkpoint_seconds


def one_sample(task: Task) -> Batch:
    """The first test sample, as a batch."""
    return task.batch("test", torch.zeros(1, dtype=torch.int64))


def flops_of(task: Task, model: nn.Module) -> int:
    """FLOPs of one forward pass of one sample."""
    batch = one_sample(task)
    with backend("torch"):
        return count_flops(lambda: task.apply(model, batch))


@contextmanager
def output_to(file: Path) -> Iterator[None]:
    """Send what the system prints, warnings included, into a file: the terminal belongs to the parent."""
    with file.open("ab") as target:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(target.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if not file.stat().st_size:
            file.unlink()
