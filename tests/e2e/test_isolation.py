"""Contestants that diverge, exhaust memory, crash or refuse: each is recorded with its reason, the others go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.compare import Settings, run
from foveate.tasks.io import load_tensors

RULES: dict[str, Any] = {
    "task": "tests.toy:ToyTask",
    "steps": 60,
    "seeds": 1,
    "learning_rates": (3e-3,),
    "workers": 2,
}
REASONS = {
    "Diverging": r"diverged: the training loss was nan at step 11 with learning rate 0\.003\.",
    "BlowingUp": r"diverged: the training loss rose from .* at step 11 .*",
    "Raising": r"crashed: KeyError: 'the thing it needs' \(see error\.txt\)\.",
    "Exiting": r"the worker ended itself with status 3\.",
    "Killed": r"the worker was killed by SIGSEGV\.",
    "Hungry": r"exceeded the memory limit of \d+ MiB \(it held \d+ MiB\); memory_limit raises it\.",
    "Refusing": r"Refusing needs at least 9 inputs; this data has 8\.",
}


def result(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / "trials" / f"tests.toy.{name}-seed0" / "result.json").read_text())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any], list[dict[str, Any]]]:
    """The good ones alone, and among all the bad ones."""
    alone, crowd = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("crowd")
    good = ["tests.toy:MLP", "tests.toy:Loud"]
    run(Settings(**RULES, systems=good, out=str(alone)))
    events: list[dict[str, Any]] = []
    bad = [f"tests.toy:{name}" for name in REASONS]
    everyone = [*bad[:4], good[0], *bad[4:], good[1]]
    board = run(Settings(**RULES, systems=everyone, out=str(crowd), memory_limit=700), events.append)
    return alone, crowd, board, events


@pytest.mark.parametrize("name", REASONS)
def test_each_has_its_reason(name: str, ran: Any) -> None:
    _, out, board, events = ran
    status = "skipped" if name == "Refusing" else "failed"
    told = result(out, name)
    assert told["status"] == status
    assert re.fullmatch(REASONS[name], told["reason"]), told["reason"]
    row = next(r for r in board["rows"] if r["system"] == f"tests.toy:{name}")
    assert row["status"] == status
    assert row["reason"] == told["reason"]
    assert row["rank"] is None
    event = next(e for e in events if e["type"] == f"trial_{status}" and e["trial"] == f"tests.toy.{name}-seed0")
    assert event["reason"] == told["reason"]


@pytest.mark.parametrize("name", ["MLP", "Loud", "Mean"])
def test_the_others_are_untouched(name: str, ran: Any) -> None:
    alone, crowd, _, _ = ran
    one, other = result(alone, name), result(crowd, name)
    assert one["status"] == "done"
    for key in ("val", "test", "curve", "steps", "learning_rate"):
        assert one[key] == other[key]
    place = Path("trials") / f"tests.toy.{name}-seed0" / "best.safetensors"
    first, _ = load_tensors(alone / place)
    second, _ = load_tensors(crowd / place)
    assert all(torch.equal(second[k], v) for k, v in first.items())


def test_memory_is_on_record(ran: Any) -> None:
    _, out, _, _ = ran
    hungry = result(out, "Hungry")
    assert 700 < hungry["peak_memory_mb"] < 1100
    assert 0 <= result(out, "MLP")["peak_memory_mb"] < 100


def test_the_traceback_is_kept(ran: Any) -> None:
    _, out, _, _ = ran
    text = (out / "trials" / "tests.toy.Raising-seed0" / "error.txt").read_text()
    assert "in act" in text
    assert text.endswith("KeyError: 'the thing it needs'\n")


def test_output_does_not_reach_the_terminal(ran: Any) -> None:
    _, out, _, _ = ran
    folder = out / "trials" / "tests.toy.Loud-seed0"
    assert (folder / "output.txt").read_text().startswith("hear me\n")
    assert not (out / "trials" / "tests.toy.MLP-seed0" / "output.txt").exists()


def test_failures_are_kept_until_told(ran: Any, tmp_path: Path) -> None:
    _, crowd, _, _ = ran
    rules = {**RULES, "systems": ["tests.toy:Raising"], "out": str(crowd), "memory_limit": 700}
    stamp = (crowd / "trials" / "tests.toy.Raising-seed0" / "result.json").stat().st_mtime_ns
    events: list[dict[str, Any]] = []
    run(Settings(**rules), events.append)
    assert (crowd / "trials" / "tests.toy.Raising-seed0" / "result.json").stat().st_mtime_ns == stamp
    assert any(e["type"] == "trial_failed" and e["earlier"] for e in events)
    events.clear()
    run(Settings(**rules, retry_failed=True), events.append)
    assert [e["trial"] for e in events if e["type"] == "trial_started"] == ["tests.toy.Raising-seed0"]


def test_a_failing_sweep_fails_its_system_only(tmp_path: Path) -> None:
    rules = {**RULES, "learning_rates": (1e-3, 3e-3), "seeds": 2}
    systems = ["tests.toy:Diverging", "tests.toy:Exiting", "tests.toy:Refusing", "tests.toy:Linear"]
    board = run(Settings(**rules, systems=systems, out=str(tmp_path)))
    rows = {r["system"].split(":")[1]: r for r in board["rows"]}
    assert rows["Linear"]["status"] == "done"
    assert len(rows["Linear"]["seeds"]) == 2
    assert [c["learning_rate"] for c in rows["Linear"]["sweep"]] == [1e-3, 3e-3]
    assert rows["Diverging"]["reason"].startswith(
        "every learning rate of the sweep failed; with 0.001 it diverged: the training loss was nan at step 11"
    )
    assert rows["Exiting"]["reason"] == "the worker ended itself with status 3."
    assert rows["Refusing"]["status"] == "skipped"
    assert [s["status"] for s in rows["Exiting"]["seeds"]] == ["failed", "failed"]
    assert board["best"]["system"] == "tests.toy:Linear"


def test_latency_survives_a_system_that_breaks_it(tmp_path: Path) -> None:
    board = run(
        Settings(**RULES, systems=["tests.toy:Linear", "tests.toy:BreaksAlone"], out=str(tmp_path))
    )  # fmt: skip
    rows = {r["system"].split(":")[1]: r for r in board["rows"]}
    assert rows["BreaksAlone"]["status"] == "done"
    assert rows["BreaksAlone"]["latency_ms"] is None
    assert rows["Linear"]["latency_ms"]["median"] > 0
