"""What a worker does with systems besides training them: time them, and write a trained one for its user."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import write_json
from ..measure.latency import measure_latency
from ..tasks.base import Progress, Task
from ..tasks.io import load_tensors
from ..tasks.state import BEST
from .contestants import Job
from .worker import Config, Send, System, Unfit, one_sample


def probe(job: Job, config: Config, send: Send) -> None:
    """Time a few training steps and the scoring of one batch."""
    try:
        system = System(job, config)
        model, recipe = system.build(0)
    except Unfit as error:
        send({"type": "probe", "reason": str(error)})
        return
    task, size = system.task, min(config["batch_size"], system.task.size("train"))
    batch = task.batch("train", torch.arange(size))
    generator = torch.Generator().manual_seed(0)
    step_seconds = 0.0
    if getattr(model, "spec", None) is None or model.spec.trains:  # type: ignore[union-attr]
        first = recipe.stages()[0]
        if first.prepare is not None:
            first.prepare(model)
        optimizers = recipe.optimizers(model, config["learning_rates"][0])
        times = []
        while len(times) < 6 and sum(times) < 1.5:
            started = time.perf_counter()
            losses = recipe.losses(model, batch, generator, Progress(0, 1, 0, 0, 1))
            torch.stack(list(losses.values())).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            times.append(time.perf_counter() - started)
        step_seconds = min(times)
    model.eval()
    index = torch.arange(min(4 * size, task.size("val")))
    started = time.perf_counter()
    with torch.no_grad():
        task.apply(recipe.eval_form(model, "val"), task.batch("val", index))
    sample_seconds = (time.perf_counter() - started) / len(index)
    parameters = sum(p.numel() for p in model.parameters())
    speed = {"step_seconds": step_seconds, "sample_seconds": sample_seconds, "parameters": parameters}
    send({"type": "probe", "speed": speed})


def latency(job: Job, config: Config, send: Send) -> None:
    """Time one sample through each of several trained systems, interleaved, on one thread."""
    calls = {}
    for name, trial in config["trials"].items():
        send({"type": "latency", "system": name})
        task, form = _trained(name, trial)
        calls[name] = _call(task, form)
        with torch.no_grad():
            calls[name]()
    send({"type": "latency", "system": ""})
    measured = measure_latency(calls, seconds=config["latency_seconds"], threads=1)
    write_json(Path(config["folder"]), {name: found.as_json() for name, found in measured.items()})


def _call(task: Task, form: nn.Module) -> Callable[[], Any]:
    batch = one_sample(task)
    return lambda: task.apply(form, batch)


def _trained(system: str, config: Config) -> tuple[Task, nn.Module]:
    """The form of a finished trial's or refit's model that is scored and shipped."""
    built = System(Job("trial", system, config["seed"]), config)
    model, recipe = built.build(config["seed"])
    for stage in recipe.stages():
        if stage.prepare is not None:
            stage.prepare(model)
    weights, _ = load_tensors(Path(config["folder"]) / BEST)
    model.load_state_dict(weights)
    return built.task, recipe.eval_form(model, "test").eval()


def package(job: Job, config: Config, send: Send) -> None:
    """Write a trained system, in the user's units, where the parent asked for it."""
    from ..checkpoint import save

    task, form = _trained(job.system, config)
    kept = ("task", "options", "seed", "learning_rate", "val", "test", "recipe", "batch_dependence", "refit", "note")
    more = {k: config[k] for k in ("refit_steps", "comparison") if k in config}
    packaged: Any = task.package(form)
    about = {"system": job.system, **{k: config[k] for k in kept}, "package": packaged.config, **more}
    save(Path(config["target"]), packaged, json.loads(json.dumps(about)))
