"""What a comparison costs beyond its training: its wall time against bare training loops plus evaluation.

``python benchmarks/compare_overhead.py`` runs a comparison with one worker in a process of its own, from starting
Python to the finished report, then the same training once more as plain loops (batch, loss, backward, clip, step) with
the same number of evaluations, and prints the difference and where it went. The promise is 5 % for a comparison of
minutes; what does not grow with it (importing torch twice, latencies, the report) is shown apart.

Times on a busy machine mean nothing: it refuses when others compute, unless ``--busy`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

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


def bare(settings: dict[str, Any], out: Path) -> tuple[float, float, float]:
    """Seconds of the same training and evaluation as plain loops, and CPU seconds of both."""
    import torch

    from foveate.compare.contestants import task_class
    from foveate.models.build import resolve
    from foveate.tasks.base import Recipe

    torch.set_num_threads(1)
    task = task_class(settings["task"]).load(out / "data")
    size, trained, evaluated, cpu = settings["batch_size"], 0.0, 0.0, time.process_time()
    for steps, validations, tests, system, rate in work(out):
        model = resolve(system).build(task.info, {})
        recipe = Recipe(task)
        if steps:
            (optimizer,) = recipe.optimizers(model, rate)
        done = 0
        started = time.perf_counter()
        while done < steps:
            for index in torch.randperm(task.size("train")).split(size)[: steps - done]:
                optimizer.zero_grad()
                loss = task.loss(model, task.batch("train", index))
                loss.item()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                done += 1
        trained += time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(validations):
            task.evaluate(model, "val", 4 * size)
        for _ in range(tests):
            task.evaluate(model, "test", 4 * size)
        evaluated += time.perf_counter() - started
    return trained, evaluated, time.process_time() - cpu


def work(out: Path) -> list[tuple[int, int, int, str, float]]:
    """Steps, validations, test scorings, system and learning rate of everything the comparison trained."""
    found = []
    for file in sorted(out.glob("*/*/result.json")):
        result = json.loads(file.read_text())
        if file.parts[-3] == "sweeps":
            found += [(c["steps"], 1, 0, result["system"], c["learning_rate"]) for c in result["sweep"]]
        else:
            rate = result["learning_rate"] or 0.0
            found.append((result["steps"], len(result["curve"]), 1, result["system"], rate))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="dlinear,timesnet", help="contestants, by commas")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
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
            "systems": given.systems.split(","),
            "steps": given.steps,
            "seeds": given.seeds,
            "batch_size": 32,
            "workers": 1,
            "out": str(Path(place) / "out"),
        }
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
    print(f"wall of the comparison        {wall:8.2f} s")
    print(f"bare loops + evaluation       {whole:8.2f} s  ({trained:.2f} + {evaluated:.2f})")
    print(f"overhead                      {wall - whole:8.2f} s  {100 * (wall / whole - 1):+.1f} %")
    print(f"the same in CPU seconds       {cpu - bare_cpu:8.2f} s  of {cpu:.2f}: {100 * (cpu / bare_cpu - 1):+.1f} %")
    print("of the wall time:")
    print(f"  start: imports, data        {wall - phases[-1][0] + begun:8.2f} s")
    print(f"  latencies, report, best/    {phases[-1][0] - closing:8.2f} s")
    print(f"  training, our loop          {inside['train_seconds'] - trained:+8.2f} s")
    print(f"  evaluation, ours            {inside['evaluate_seconds'] - evaluated:+8.2f} s")
    checkpoints = [seconds for _, kind, _, seconds in phases if kind == "checkpoint"]
    cost = 1e3 * sum(checkpoints) / len(checkpoints)
    print(f"  checkpoints                 {inside['checkpoint_seconds']:8.2f} s  ({cost:.1f} ms each)")
    rest = closing - begun - sum(inside.values())
    print(f"  processes, results, waiting {rest:8.2f} s  for {len(results)} jobs")


if __name__ == "__main__":
    main()
