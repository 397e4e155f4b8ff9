"""What a comparison costs beyond its training: its wall time against bare training loops plus evaluation.

``python benchmarks/compare_overhead.py`` runs a comparison, with one worker unless told, in a process of its own, from
starting Python to the finished report, then the same training once more as plain loops (batch, loss, backward, clip,
step) with the same number of evaluations, and prints the difference and where it went. The promise is 5 % for a
comparison of minutes; what does not grow with it (importing torch twice, latencies, the report) is shown apart.

Times on a busy machine mean nothing: it refuses when others compute, unless ``--busy`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from foveate.measure.machine import cpu_name, usable_cores

TITLE = "# What a comparison costs beyond its training\n"
COMPARISON = """
import json, sys, time
from foveate.compare import Settings, run
phases, begun = [], time.monotonic()
def watch(event):
    if event["type"] in ("plan", "phase", "checkpoint"):
        phases.append((time.monotonic() - begun, event["type"], event.get("text", ""), event.get("seconds", 0.0)))
run(Settings.from_dict(json.loads(sys.argv[1])), watch)
import psutil
family = [psutil.Process(), *psutil.Process().children()]  # the fork server counts the workers it has reaped
used = [f.cpu_times() for f in family]
cpu = sum(u.user + u.system for u in used) + sum(u.children_user + u.children_system for u in used[1:])
print(json.dumps([phases, cpu]))
"""


@dataclass(frozen=True)
class Trained:
    """One training run of the comparison: what must be done to have the same work once more.

    Attributes:
        system, seed, lr: who was trained, and how.
        planned, done: steps of the budget and steps until it ended.
        validations: after which steps.
        test: whether test was scored.
    """

    system: str
    seed: int
    lr: float
    planned: int
    done: int
    validations: frozenset[int]
    test: bool


def bare(settings: dict[str, Any], out: Path) -> tuple[float, float, float]:
    """Seconds of the same training and evaluation as plain loops, and CPU seconds of both.

    Weights, samples and learning rates are those of the comparison, because some systems' work depends on them (how
    many periods a TimesNet folds by).
    """
    import torch

    from foveate.compare.contestants import task_class
    from foveate.models.build import resolve
    from foveate.tasks.base import Recipe
    from foveate.tasks.schedules import learning_rate_factor
    from foveate.tasks.state import seed_everything, seed_from

    torch.set_num_threads(1)
    task = task_class(settings["task"]).load(out / "data")
    size, trained, evaluated, cpu = settings["batch_size"], 0.0, 0.0, time.process_time()
    for run in runs(out, settings["steps"]):
        seed_everything("init", run.seed)
        model = resolve(run.system).build(task.info, {})
        if run.done:
            (optimizer,) = Recipe(task).optimizers(model, run.lr)
        seed_everything("train", run.seed)
        started, paused, batches = time.perf_counter(), 0.0, iter(())
        for step in range(run.done):
            if (index := next(batches, None)) is None:
                epoch = step // (task.size("train") // size)
                order = torch.randperm(
                    task.size("train"), generator=torch.Generator().manual_seed(seed_from("order", run.seed, epoch))
                )
                batches = iter(order[: len(order) // size * size].split(size))
                index = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = run.lr * learning_rate_factor(step / run.planned)
            optimizer.zero_grad()
            loss = task.loss(model, task.batch("train", index))
            loss.item()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step + 1 in run.validations:
                asked = time.perf_counter()
                task.evaluate(model, "val", 4 * size)
                paused += time.perf_counter() - asked
        trained += time.perf_counter() - started - paused
        started = time.perf_counter()
        if not run.done:
            task.evaluate(model, "val", 4 * size)
        if run.test:
            task.evaluate(model, "test", 4 * size)
        evaluated += time.perf_counter() - started + paused
    return trained, evaluated, time.process_time() - cpu


def runs(out: Path, steps: int) -> list[Trained]:
    """Everything that the comparison in ``out`` trained with a budget of ``steps``."""
    found = []
    for file in sorted(out.glob("*/*/result.json")):
        result = json.loads(file.read_text())
        if file.parts[-3] == "sweeps":
            found += [
                Trained(result["system"], 0, c["learning_rate"], c["steps"], c["steps"], frozenset([c["steps"]]), False)
                for c in result["sweep"]
            ]
        else:
            rate = result["learning_rate"] or 0.0
            validations = frozenset(step for step, _, _ in result["curve"])
            found.append(Trained(result["system"], result["seed"], rate, steps, result["steps"], validations, True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", help="contestants, by commas; default: those of the demo")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="trials at once; bare loops run one after the other")
    parser.add_argument("--append", type=Path, help="add the figures to this Markdown file")
    parser.add_argument("--busy", action="store_true", help="measure although others compute")
    given = parser.parse_args()
    load = psutil.cpu_percent(interval=2.0)
    if load > 15 and not given.busy:
        sys.exit(
            f"the machine is busy ({load:.0f} % of its cores): timings would mean nothing; --busy measures anyway."
        )
    with tempfile.TemporaryDirectory() as place:
        settings = {
            "task": "forecast",
            "systems": given.systems.split(",") if given.systems else (),
            "steps": given.steps,
            "seeds": given.seeds,
            "batch_size": 32,
            "workers": given.workers,
            "refit": False,  # training as well, but what a comparison is compared with here has none
            "out": str(Path(place) / "out"),
        }
        # As users run it: with the compiled files of every module kept.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        arguments = [sys.executable, "-c", COMPARISON, json.dumps(settings)]
        ran = subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE)
        wall = time.perf_counter() - started
        phases, cpu = json.loads(ran.stdout)
        results = [json.loads(f.read_text()) for f in Path(settings["out"]).glob("*/*/result.json")]
        trained, evaluated, bare_cpu = bare(settings, Path(settings["out"]))
    inside = {k: sum(r[k] for r in results) for k in ("train_seconds", "evaluate_seconds", "checkpoint_seconds")}
    begun = next(at for at, kind, _, _ in phases if kind == "plan")
    closing = next(at for at, _, text, _ in phases if text.startswith("measuring"))
    whole = trained + evaluated
    lines = [
        f"wall of the comparison        {wall:8.2f} s",
        f"bare loops + evaluation       {whole:8.2f} s  ({trained:.2f} + {evaluated:.2f})",
        f"overhead                      {wall - whole:8.2f} s  {100 * (wall / whole - 1):+.1f} %",
        f"the same in CPU seconds       {cpu - bare_cpu:8.2f} s  of {cpu:.2f}: {100 * (cpu / bare_cpu - 1):+.1f} %",
        "of the wall time:",
        f"  start: imports, data        {wall - phases[-1][0] + begun:8.2f} s",
        f"  latencies, report, best/    {phases[-1][0] - closing:8.2f} s",
    ]
    if given.workers == 1:
        checkpoints = [seconds for _, kind, _, seconds in phases if kind == "checkpoint"]
        cost = 1e3 * sum(checkpoints) / len(checkpoints)
        rest = closing - begun - sum(inside.values())
        lines += [
            f"  training, our loop          {inside['train_seconds'] - trained:+8.2f} s",
            f"  evaluation, ours            {inside['evaluate_seconds'] - evaluated:+8.2f} s",
            f"  checkpoints                 {inside['checkpoint_seconds']:8.2f} s  ({cost:.1f} ms each)",
            f"  processes, results, waiting {rest:8.2f} s  for {len(results)} jobs",
        ]
    print("\n".join(lines))
    if given.append is not None:
        command = shlex.join(["python", "benchmarks/compare_overhead.py", *sys.argv[1:]])
        facts = f"{cpu_name()}, {usable_cores()} cores; {load:.0f} % of them were busy with other work before."
        before = given.append.read_text(encoding="utf-8") if given.append.exists() else TITLE
        text = "\n".join(f"    {line}" for line in (f"$ {command}", *lines))
        given.append.write_text(f"{before}\n{text}\n\n{facts}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
