"""What a comparison costs beyond its training: its wall time against bare training loops plus evaluation.

``python benchmarks/compare_overhead.py`` runs a comparison, with one worker unless told, in a process of its own, from
starting Python to the finished report, and the same training once more as plain loops (batch, loss, backward, clip,
step) with the same number of evaluations, and prints the difference and where it went. The promise is 5 % for a
comparison of minutes; what does not grow with it (importing torch twice, latencies, the report) is shown apart.

A machine's speed drifts by more than what is looked for. So, with one worker, the bare loop of a job runs right after
the job, before the next one starts, in the waiting parent process; that time is taken off the wall time.

Times on a busy machine mean nothing: it refuses when others compute, unless ``--busy`` is given.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from foveate.measure.machine import cpu_name, usable_cores

TITLE = "# What a comparison costs beyond its training\n"


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


@dataclass
class Bare:
    """What plain loops took: seconds of training, of evaluation, and of the processor."""

    trained: float = 0.0
    evaluated: float = 0.0
    cpu: float = 0.0


def comparison(settings: dict[str, Any]) -> dict[str, Any]:
    """Run a comparison in this process, and with one worker each job's bare loop behind it.

    Returns:
        Its "phases" (seconds since the start, type, text, seconds of the event), "cpu" seconds of it and its workers,
        and "bare" with "paused", the wall time of those loops: all without what the bare loops took.
    """
    begun, phases, bare, paused, seen = time.monotonic(), [], Bare(), 0.0, set()

    from foveate.compare import Settings, run
    from foveate.compare.pool import Pool

    def watch(event: dict[str, Any]) -> None:
        if event["type"] in ("plan", "phase", "checkpoint"):
            told = event["type"], event.get("text", ""), event.get("seconds", 0.0)
            phases.append((time.monotonic() - begun - paused, *told))

    submit = Pool.submit

    def after_bare_loops(pool: Pool, job: Any, config: dict[str, Any]) -> None:
        nonlocal paused
        started = time.monotonic()
        new = {f for f in Path(settings["out"]).glob("*/*/result.json") if f not in seen}
        seen.update(new)
        run_bare(bare, settings, Path(settings["out"]), new)
        paused += time.monotonic() - started
        submit(pool, job, config)

    if settings["workers"] == 1:
        Pool.submit = after_bare_loops  # type: ignore[method-assign]
    run(Settings.from_dict(settings), watch)
    family = [psutil.Process(), *psutil.Process().children()]  # the fork server counts the workers it has reaped
    used = [f.cpu_times() for f in family]
    cpu = sum(u.user + u.system for u in used) + sum(u.children_user + u.children_system for u in used[1:]) - bare.cpu
    return {"phases": phases, "cpu": cpu, "bare": asdict(bare), "paused": paused}


def run_bare(bare: Bare, settings: dict[str, Any], out: Path, results: Iterable[Path]) -> None:
    """Train and evaluate as the jobs with these results did, as plain loops, and add up what that takes.

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
    began = time.process_time()
    task = task_class(settings["task"]).load(out / "data")
    size = settings["batch_size"]
    for run in runs(results, settings["steps"]):
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
        bare.trained += time.perf_counter() - started - paused
        started = time.perf_counter()
        if not run.done:
            task.evaluate(model, "val", 4 * size)
        if run.test:
            task.evaluate(model, "test", 4 * size)
        bare.evaluated += time.perf_counter() - started + paused
    bare.cpu += time.process_time() - began


def runs(results: Iterable[Path], steps: int) -> list[Trained]:
    """Everything that was trained for these results, with a budget of ``steps``."""
    found = []
    for file in sorted(results):
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
    if sys.argv[1:2] == ["--comparison"]:
        print(json.dumps(comparison(json.loads(sys.argv[2]))))
        gc.freeze()  # as the command line does: the interpreter does not look through torch for garbage when it ends
        return
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
        out = Path(place) / "out"
        settings = {
            "task": "forecast",
            "systems": given.systems.split(",") if given.systems else (),
            "steps": given.steps,
            "seeds": given.seeds,
            "batch_size": 32,
            "workers": given.workers,
            "refit": False,  # training as well, but what a comparison is compared with here has none
            "out": str(out),
        }
        # As users run it: with the compiled files of every module kept.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        arguments = [sys.executable, __file__, "--comparison", json.dumps(settings)]
        ran = subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE)
        wall = time.perf_counter() - started
        found = json.loads(ran.stdout)
        phases, wall, bare = found["phases"], wall - found["paused"], Bare(**found["bare"])
        files = list(out.glob("*/*/result.json"))
        results = [json.loads(f.read_text()) for f in files]
        if given.workers > 1:
            run_bare(bare, settings, out, files)
    inside = {k: sum(r[k] for r in results) for k in ("train_seconds", "evaluate_seconds", "checkpoint_seconds")}
    begun = next(at for at, kind, _, _ in phases if kind == "plan")
    closing = next(at for at, _, text, _ in phases if text.startswith("measuring"))
    whole, cpu = bare.trained + bare.evaluated, found["cpu"]
    lines = [
        f"wall of the comparison        {wall:8.2f} s",
        f"bare loops + evaluation       {whole:8.2f} s  ({bare.trained:.2f} + {bare.evaluated:.2f})",
        f"overhead                      {wall - whole:8.2f} s  {100 * (wall / whole - 1):+.1f} %",
        f"the same in CPU seconds       {cpu - bare.cpu:8.2f} s  of {cpu:.2f}: {100 * (cpu / bare.cpu - 1):+.1f} %",
        "of the wall time:",
        f"  start: imports, data        {wall - phases[-1][0] + begun:8.2f} s",
        f"  latencies, report, best/    {phases[-1][0] - closing:8.2f} s",
    ]
    if given.workers == 1:
        checkpoints = [seconds for _, kind, _, seconds in phases if kind == "checkpoint"]
        cost = 1e3 * sum(checkpoints) / len(checkpoints)
        rest = closing - begun - sum(inside.values())
        lines += [
            f"  training, our loop          {inside['train_seconds'] - bare.trained:+8.2f} s",
            f"  evaluation, ours            {inside['evaluate_seconds'] - bare.evaluated:+8.2f} s",
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
