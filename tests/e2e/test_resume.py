"""A comparison that is killed at random moments and started again ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from foveate.compare import Settings, run
from foveate.compare.contestants import contestants, jobs, prepare_task
from foveate.compare.folder import Folder
from foveate.tasks.io import load_tensors

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (
    "import json, sys; from foveate.compare import Settings, run; run(Settings.from_dict(json.loads(sys.argv[1])))"
)
TOY = {
    "task": "tests.toy:ToyTask",
    "systems": ["tests.toy:Slow", "tests.toy:Staged", "tests.toy:Linear"],
    "steps": 250,
    "seeds": 2,
    "batch_size": 16,
    "workers": 2,
    "checkpoint_every": 0.1,
}
FORECAST = {
    "task": "forecast",
    "data": {"horizon": 12, "lookback": 48},
    "systems": ["dlinear", "lightning_attention"],
    "steps": 150,
    "seeds": 2,
    "workers": 2,
    "checkpoint_every": 0.3,
}
#: Training images are changed at random.
IMAGES = {
    "task": "classify-images",
    "data": {"image_size": "16", "augment": "shift,flip,colour"},
    "systems": ["softmax_attention"],
    "steps": 150,
    "seeds": 1,
    "learning_rates": [0.003],
    "workers": 1,
    "checkpoint_every": 0.1,
}


def start(settings: dict[str, Any], out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", COMMAND, json.dumps({**settings, "out": str(out)})]
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, preexec_fn=_interruptible)


def _interruptible() -> None:
    """Where the tests run in the background, a shell has them ignore Ctrl-C, and what they start inherits it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def results(out: Path) -> dict[str, Path]:
    """Result files of everything that is done, by name."""
    return {str(f.parent.relative_to(out)): f for f in out.glob("*/*/result.json")}


def last_written(out: Path) -> float:
    """When a file of a trial or a refit was written last; 0 where there is none, or one went away while we looked."""
    try:
        return max((f.stat().st_mtime for f in out.glob("*/*/*")), default=0.0)
    except FileNotFoundError:
        return 0.0


def kill_once(settings: dict[str, Any], out: Path, chance: random.Random) -> bool:
    """Start, kill -9 at a random moment of the training, and see everyone die; False if it was done before."""
    before = len(results(out))
    process = start(settings, out)
    parent = psutil.Process(process.pid)
    wait = None
    while process.poll() is None:
        if wait is None and last_written(out) > parent.create_time():
            wait = time.monotonic() + chance.uniform(0.0, 1.2)
        if wait is not None and time.monotonic() > wait:
            break
        time.sleep(0.01)
    family = parent.children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, f"left behind: {alive}"
    return len(results(out)) >= before and process.returncode == -signal.SIGKILL


def check_killed(settings: dict[str, Any], place: Path, kills: int, seed: int) -> None:
    calm, hit = place / "calm", place / "hit"
    run(Settings.from_dict({**settings, "out": str(calm)}))
    chance = random.Random(seed)
    stamps: dict[str, int] = {}
    killed = 0
    for _ in range(kills):
        killed += kill_once(settings, hit, chance)
        for name, file in results(hit).items():
            assert stamps.setdefault(name, file.stat().st_mtime_ns) == file.stat().st_mtime_ns, f"{name} ran again"
    assert killed == kills, "the comparison ended before it could be killed: give it more steps"
    run(Settings.from_dict({**settings, "out": str(hit)}))
    done = results(hit)
    assert all(done[name].stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    for name in sorted(done.keys() & results(calm).keys(), reverse=True):  # trials before the refit they lead to
        same_result(calm / name, hit / name)
    assert done.keys() == results(calm).keys()
    assert quality(hit) == quality(calm)
    winner, _ = load_tensors(calm / "best" / "model.safetensors")
    again, _ = load_tensors(hit / "best" / "model.safetensors")
    assert all(torch.equal(again[k], v) for k, v in winner.items())


def same_result(calm: Path, hit: Path) -> None:
    """Weights and quality of a trial (or the choice of a sweep) are equal to the bit."""
    first, second = (json.loads((p / "result.json").read_text()) for p in (calm, hit))
    assert first["status"] == second["status"] == "done", (hit.name, first.get("reason"), second.get("reason"))
    for key in ("val", "test", "curve", "steps", "best_step", "stopped", "learning_rate", "sweep", "examples"):
        assert first.get(key) == second.get(key), (hit.name, key)
    for file in ("best.safetensors", "checkpoint.safetensors", "scores.safetensors"):
        if (calm / file).exists():
            one, _ = load_tensors(calm / file)
            other, _ = load_tensors(hit / file)
            assert one.keys() == other.keys()
            different = [k for k in one if not torch.equal(one[k], other[k])]
            assert not different, (hit.name, file, different)


def quality(out: Path) -> list[Any]:
    board = json.loads((out / "leaderboard.json").read_text())
    return [(r["system"], r["rank"], r["val"], r["test"], r["tied"], r["p_value"]) for r in board["rows"]]


def test_killed_three_times(tmp_path: Path) -> None:
    check_killed(TOY, tmp_path, kills=3, seed=int(os.environ.get("FOVEATE_KILL_SEED", "5")))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_comparison_killed_ten_times(tmp_path: Path) -> None:
    check_killed(FORECAST, tmp_path, kills=10, seed=random.randrange(10**6))


@pytest.mark.slow  # the same machinery as above, half a minute each
def test_a_published_recipe_killed_twice(tmp_path: Path) -> None:
    preset = {**TOY, "systems": ["tests.toy:Recorded", "tests.toy:Slow"], "preset": "published:ETTh1"}
    check_killed(preset, tmp_path, kills=2, seed=3)


@pytest.mark.slow  # the same machinery as above, half a minute each
def test_augmented_images_killed_once(tmp_path: Path) -> None:
    check_killed(IMAGES, tmp_path, kills=1, seed=4)


def test_done_trials_are_reported_and_systems_can_be_added(tmp_path: Path) -> None:
    """A second run trains only what is new; the leaderboard shows both."""
    small = {**TOY, "systems": ["tests.toy:Linear"], "steps": 40, "seeds": 1, "out": str(tmp_path / "out")}
    run(Settings.from_dict(small))
    before = {n: f.stat().st_mtime_ns for n, f in results(tmp_path / "out").items()}
    events: list[dict[str, Any]] = []
    more = Settings.from_dict({**small, "systems": ["tests.toy:MLP"], "seeds": 2})
    board = run(more, events.append)
    assert {r["system"] for r in board["rows"]} == {"tests.toy:Linear", "tests.toy:MLP", "tests.toy:Mean"}
    after = results(tmp_path / "out")
    assert all(after[n].stat().st_mtime_ns == stamp for n, stamp in before.items())
    started = [e["trial"] for e in events if e["type"] == "trial_started"]
    assert started == ["tests.toy.MLP-seed0", "tests.toy.MLP-seed1"]
    earlier = [e["trial"] for e in events if e["type"] == "trial_done" and e["earlier"]]
    assert earlier == ["tests.toy.Mean-seed0"]
    task = prepare_task(more)
    assert len(jobs(contestants(more, task), more)) == 4
    assert len(Folder(tmp_path / "out").results()) == 4
