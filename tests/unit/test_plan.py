"""Settings, contestants, schedules and budgets, the output folder's refusals, the pool's bookkeeping."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foveate.compare import Settings, make_plan, run
from foveate.compare.contestants import Job, contestants, fitting, jobs, prepare_task, task_class, worker_count
from foveate.compare.folder import Folder
from foveate.compare.plan import Plan, PlannedTrial, assemble
from foveate.compare.pool import _reason
from foveate.compare.settings import DEFAULT_STEPS, sweep_steps
from foveate.compare.timing import SHORTEST_TRIAL, Speed, makespan, trial_seconds
from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.registry import find
from tests.toy import ToyTask

TOY: dict[str, Any] = {"task": "tests.toy:ToyTask", "steps": 30, "seeds": 1, "learning_rates": (1e-3,), "workers": 1}


def settings(*systems: str, **options: Any) -> Settings:
    return Settings(**{**TOY, "systems": [f"tests.toy:{s}" for s in systems], **options})


# ----- settings


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", 0, "steps=0 is not possible: a positive whole number is needed."),
        ("steps", 2.5, "steps=2.5 is not possible: a positive whole number is needed."),
        ("seeds", True, "seeds=True is not possible: a positive whole number is needed."),
        ("budget", -1.0, "budget=-1.0 is not possible: a positive number is needed."),
        ("sweep_share", 0.0, r"sweep_share=0.0 is not possible: it must lie in \(0, 1\]."),
        ("patience", -1, "patience=-1 is not possible: it cannot be negative."),
        ("learning_rates", (), r"learning_rates=\[\] is not possible: different positive numbers are needed"),
        ("track", "csv:http://me:pw@host", "track='csv' has an address with a user's name"),
        ("learning_rates", (1e-3, 1e-3), "different positive numbers are needed"),
        ("memory_limit", 0, "memory_limit=0 is not possible"),
    ],
)
def test_illegal_settings_are_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        Settings(task="forecast", **{option: value})


def test_one_budget_only() -> None:
    assert Settings(task="forecast").steps == DEFAULT_STEPS
    assert Settings(task="forecast", budget=60).steps is None
    with pytest.raises(InvalidValue, match=r"steps and budget cannot be given together: choose one budget."):
        Settings(task="forecast", steps=5, budget=60)


def test_settings_survive_toml() -> None:
    import tomli_w

    given = Settings(
        task="forecast", data={"source": Path("a.csv"), "target": None}, systems="dlinear,all", tokens=5000, patience=0
    )
    again = Settings.from_dict(tomllib.loads(tomli_w.dumps(given.as_dict())))
    assert again.as_dict() == given.as_dict()
    assert again.patience == 0
    assert again.systems == ("dlinear", "all")
    with pytest.raises(UnknownName, match="unknown setting 'sed': did you mean 'seeds'"):
        Settings.from_dict({"task": "forecast", "sed": 3})
    with pytest.raises(InvalidType, match="the settings name no task"):
        Settings.from_dict({"seeds": 3})


def test_tokens_become_steps() -> None:
    given = Settings(task="forecast", tokens=10_000, batch_size=10)
    assert given.trial_steps(96) == 10
    with pytest.raises(InvalidValue, match=r"tokens=10000 is not possible: one batch alone has 20000 tokens."):
        given.trial_steps(2000)
    assert Settings(task="forecast", budget=60).trial_steps(96) is None


def test_a_sweep_is_short_but_not_too_short() -> None:
    assert sweep_steps(1000, 0.1) == 100
    assert sweep_steps(100, 0.1) == 20
    assert sweep_steps(15, 0.1) == 15


# ----- contestants


def test_baselines_join_and_nobody_comes_twice() -> None:
    chosen = contestants(settings("MLP", "Linear", "MLP"), ToyTask(64, 0.1))
    assert [c.name for c in chosen] == ["tests.toy:MLP", "tests.toy:Linear", "tests.toy:Mean"]
    assert [c.baseline for c in chosen] == [False, False, True]
    assert [c.name for c in contestants(settings("Mean"), ToyTask(64, 0.1))] == ["tests.toy:Mean"]


def test_unknown_systems_and_options_are_named() -> None:
    task = ToyTask(64, 0.1)
    with pytest.raises(UnknownName, match="unknown system 'dlinar'"):
        contestants(Settings(**{**TOY, "systems": ["dlinar"]}), task)
    with pytest.raises(InvalidValue, match=r"system 'dlinear' cannot do the task 'toy': leave it out."):
        contestants(Settings(**{**TOY, "systems": ["dlinear"]}), task)
    with pytest.raises(UnknownName, match="'no_such_module:Net': no module 'no_such_module' here"):
        contestants(Settings(**{**TOY, "systems": ["no_such_module:Net"]}), task)
    with pytest.raises(UnknownName, match="has no 'Nobody'"):
        contestants(settings("Nobody"), task)
    with pytest.raises(InvalidType, match="must be a subclass"):
        contestants(settings("ToyTask"), task)
    with pytest.raises(InvalidType, match=r"'tests.toy:MLP' has no option 'wdth': its options are width, dropout."):
        contestants(settings("MLP", options={"tests.toy:MLP": {"wdth": 3}}), task)
    with pytest.raises(UnknownName, match=r"The options of 'tests.toy:MPL' belong to no contestant."):
        contestants(settings("MLP", options={"tests.toy:MPL": {"width": 3}}), task)


def test_tasks_are_found_and_their_options_checked() -> None:
    with pytest.raises(UnknownName, match="unknown task 'forcast': did you mean 'forecast'"):
        task_class("forcast")
    with pytest.raises(UnknownName, match="task 'no_such_module:T': no module 'no_such_module' here"):
        task_class("no_such_module:T")
    with pytest.raises(InvalidType, match=r"task 'tests.toy:MLP' must be a subclass of"):
        task_class("tests.toy:MLP")
    with pytest.raises(InvalidType, match=r"has no option 'sample': its options are samples, noise."):
        prepare_task(Settings(task="tests.toy:ToyTask", data={"sample": 3}))
    with pytest.raises(InvalidValue, match="samples=3 is not possible"):
        prepare_task(Settings(task="tests.toy:ToyTask", data={"samples": 3}))


def test_all_means_everything_that_fits() -> None:
    class Series(ToyTask):
        pass

    Series.info = type("Info", (), {"task": "forecast"})()
    found = fitting(Series(64, 0.1))
    assert found["dlinear"] == "model"
    assert all(kind in ("mixer", "model") for kind in found.values())
    assert not fitting(ToyTask(64, 0.1)).get("dlinear")


# ----- schedule and budget


def test_work_comes_in_order() -> None:
    given = settings("MLP", "Linear", learning_rates=(1e-3, 3e-3), seeds=2)
    work = jobs(contestants(given, ToyTask(64, 0.1)), given)
    assert [(j.kind, j.system.split(":")[1], j.seed) for j in work] == [
        ("sweep", "MLP", 0),
        ("sweep", "Linear", 0),
        ("trial", "MLP", 0),
        ("trial", "Linear", 0),
        ("trial", "Mean", 0),  # nothing random in it: once
        ("trial", "MLP", 1),
        ("trial", "Linear", 1),
    ]
    assert not [j for j in jobs(contestants(settings("MLP"), ToyTask(64, 0.1)), settings("MLP")) if j.kind == "sweep"]


def test_workers_fit_the_cores() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert worker_count(settings(workers=None)) == cores
    assert worker_count(settings(workers=None, threads=cores)) == 1
    assert worker_count(settings(workers=7)) == 7


def test_makespan() -> None:
    sweep, trial, other = Job("sweep", "a"), Job("trial", "a"), Job("trial", "b")
    assert makespan([(trial, 2.0), (other, 3.0)], 1) == 5.0
    assert makespan([(trial, 2.0), (other, 3.0)], 2) == 3.0
    assert makespan([(sweep, 5.0), (trial, 2.0), (other, 1.0)], 2) == 7.0, "a trial waits for its sweep"


def test_a_time_budget_is_shared_out() -> None:
    task = ToyTask(64, 0.1)
    one = settings("MLP", "Linear", steps=None, budget=100.0, seeds=2)
    chosen = contestants(one, task)
    alone, two = (
        trial_seconds(one, chosen, 2.0),
        trial_seconds(settings(steps=None, budget=100.0, workers=2), chosen, 2.0),
    )
    assert 4.1 * alone < 100.0
    assert alone > 18.0
    assert two > 1.5 * alone
    assert trial_seconds(one, chosen, 30.0) < alone
    refit = trial_seconds(one, chosen, 2.0, refit=True)
    assert 5.1 * refit == pytest.approx(4.1 * alone), "the winner's last training takes as long as a trial"
    with pytest.raises(InvalidValue, match=r"budget=5 seconds is not possible: .* need [0-9]+ seconds; take a larger"):
        trial_seconds(settings(steps=None, budget=5.0, seeds=3), chosen, 2.0)
    assert SHORTEST_TRIAL > 0


def test_the_plan_predicts_from_speeds() -> None:
    task, given = ToyTask(256, 0.1), settings("MLP", "Refusing", steps=1000, seeds=2, learning_rates=(1e-3, 3e-3))
    chosen = contestants(given, task)
    speeds = {
        "tests.toy:MLP": Speed(step_seconds=0.01, sample_seconds=0.0, parameters=161),
        "tests.toy:Refusing": Speed(reason="it needs more."),
        "tests.toy:Mean": Speed(sample_seconds=1e-4),
    }
    plan = assemble(given, task, chosen, speeds, {"tests.toy.MLP-seed1": ("done", "")})
    by_name = {t.name: t for t in plan.trials}
    assert by_name["tests.toy.MLP-seed0"].seconds == pytest.approx(0.01 * (1000 + 2 * 100), abs=0.5)
    assert by_name["tests.toy.MLP-seed1"].status == "done"
    assert by_name["tests.toy.MLP-seed1"].seconds == 0.0
    assert by_name["tests.toy.Refusing-seed0"].status == "skipped"
    assert by_name["tests.toy.Mean-seed0"].steps == 0
    assert 12.0 < plan.seconds < 20.0
    text = plan.text()
    assert "tests.toy.Refusing-seed0" in text
    assert "skipped: it needs more." in text
    assert "1 at once, 1 thread each: about" in text
    assert json.loads(json.dumps(plan.as_dict()))["trials"][0]["name"] == "tests.toy.MLP-seed0"


def test_plan_measures_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = make_plan(settings("MLP", "Refusing", "Raising", "Exiting", out=str(out), workers=2))
    assert not out.exists()
    assert isinstance(plan, Plan)
    by_name = {t.system.split(":")[1]: t for t in plan.trials}
    assert by_name["MLP"].parameters == 8 * 16 + 16 + 2 * 16 + 16 + 1
    assert by_name["MLP"].status == "new"
    assert by_name["MLP"].seconds > 0
    assert by_name["Refusing"].reason == "Refusing needs at least 9 inputs; this data has 8."
    assert isinstance(by_name["Mean"], PlannedTrial)


# ----- the folder


def refused(out: Path, message: str, **options: Any) -> None:
    """The run is refused with this message and everything in ``out`` stays as it was."""
    before = {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in out.rglob("*")}
    with pytest.raises(InvalidValue, match=message):
        run(settings("Linear", out=str(out), **options))
    after = {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in out.rglob("*")}
    after.pop(out / ".lock", None)
    before.pop(out / ".lock", None)
    assert after == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run(settings("Linear", out=str(out)))
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(tmp_path, "is not empty and was not made by foveate: choose another folder with --out.")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for out in (file, file / "below"):
        with pytest.raises(InvalidValue, match="is a file, or lies below one: choose a folder with --out"):
            run(settings("Linear", out=str(out)))
    assert file.read_text() == "x"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody can write: /proc")
def test_a_place_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"/proc/nowhere cannot be written \(.*\): choose another folder"):
        run(settings("Linear", out="/proc/nowhere"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(tmp_path, r"cannot be written \(Permission denied\)")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("foveate.json", '{"format": 1, "ki', r"foveate\.json is damaged: it is not JSON"),
        ("foveate.json", '{"format": 1, "kind": "diary"}', "does not hold a comparison"),
        ("foveate.json", '{"format": 9, "kind": "comparison"}', "has format 9, this version of foveate writes 1"),
        ("foveate.json", '{"format": 1, "kind": "comparison"}', "damaged: it does not say which data"),
        ("config.toml", "steps = 3\nseeds", r"config\.toml is damaged \("),
        ("trials/tests.toy.Linear-seed0/result.json", '{"status"', r"result\.json is damaged"),
    ],
)
def test_a_damaged_folder_is_refused(file: str, content: str, message: str, copy: Path) -> None:
    (copy / file).write_text(content)
    if file.startswith("trials"):
        with pytest.raises(InvalidValue, match=message):
            run(settings("Linear", out=str(copy)))
    else:
        refused(copy, message)


def test_damaged_data_is_refused(copy: Path) -> None:
    (copy / "data" / "toy.safetensors").write_bytes(b"nothing")
    with pytest.raises(InvalidValue, match=r"toy.safetensors is not a safetensors file"):
        run(settings("Linear", out=str(copy)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 31}, "was made with steps = 30, not 31: use the same ones, or choose another folder with --out."),
        ({"steps": None, "budget": 60.0}, "was made with steps = 30, not none"),
        ({"batch_size": 16}, "was made with batch_size = 32, not 16"),
        ({"threads": 2}, "was made with threads = 1, not 2"),
        ({"learning_rates": (1e-2,)}, r"was made with learning_rates = \[0.001\], not \[0.01\]"),
        ({"patience": 0}, "was made with patience = 5, not 0"),
        ({"data": {"noise": 0.2}}, "was made from other data: its noise was 0.1, now it is 0.2; use the same ones"),
    ],
)
def test_other_rules_are_refused(options: dict[str, Any], message: str, finished: Path) -> None:
    refused(finished, message, **options)


def test_other_options_are_refused_only_for_what_was_trained(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with_width = {"options": {"tests.toy:MLP": {"width": 4}}}
    run(settings("MLP", out=out, **with_width))
    with pytest.raises(
        InvalidValue, match=r"has trials of 'tests.toy:MLP' with options {\"width\": 4}, not {}: use the same ones"
    ):
        run(settings("MLP", out=out))
    again = run(settings("MLP", out=out, **with_width))
    assert next(r for r in again["rows"] if r["system"] == "tests.toy:MLP")["parameters"] == 4 * 8 + 4 + 8 + 4 + 1
    # What was skipped may come back with options that fit.
    refusing = {"options": {**with_width["options"], "tests.toy:Staged": {"width": 0}}}
    board = run(settings("MLP", "Staged", out=out, **refusing))
    reason = next(r for r in board["rows"] if r["system"] == "tests.toy:Staged")
    assert (reason["status"], reason["reason"]) == ("skipped", "width=0 is not possible: it must be positive.")
    board = run(settings("MLP", "Staged", out=out, **with_width))
    assert next(r for r in board["rows"] if r["system"] == "tests.toy:Staged")["status"] == "done"


def test_changed_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "my_net.py"
    file.write_text("from tests.toy import Linear\nclass Net(Linear):\n    pass\n")
    given = Settings(**{**TOY, "systems": ["my_net:Net"], "out": str(tmp_path / "out")})
    run(given)
    run(given)
    file.write_text(file.read_text() + "# better\n")
    with pytest.raises(InvalidValue, match="has trials of 'my_net:Net', whose source file has changed since"):
        run(given)
    sys.modules.pop("my_net")


def test_a_folder_is_entered_by_one_at_a_time(finished: Path) -> None:
    with Folder.hold(finished):
        refused(finished, "is in use by another foveate process: wait for it, or choose another folder with --out.")
    with Folder.hold(finished):
        pass


def test_what_a_kill_leaves_before_the_marker_is_entered(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".foveate.json.123.tmp").write_text('{"form')
    board = run(settings("Linear", out=str(tmp_path)))
    assert board["best"] is not None


def test_half_prepared_data_is_prepared_again(copy: Path) -> None:
    (copy / "data").rename(copy / "data.part")
    (copy / "data.part" / "toy.safetensors").write_bytes(b"half")
    run(settings("Linear", out=str(copy)))
    ToyTask.load(copy / "data")


def test_the_resolved_settings_can_be_used_again(finished: Path) -> None:
    config = tomllib.loads((finished / "config.toml").read_text())
    assert Settings.from_dict(config).as_dict() == settings("Linear", out=str(finished)).as_dict()


def test_reasons_of_dead_workers() -> None:
    assert _reason(0) == ""
    assert _reason(3) == "the worker ended itself with status 3."
    assert _reason(-11) == "the worker was killed by SIGSEGV."
    assert _reason(-9) == "the worker was killed by SIGKILL (the system kills so when memory runs out)."


def test_a_time_budget_is_kept(tmp_path: Path) -> None:
    import time

    given = settings(
        "MLP", "Linear", steps=None, budget=12.0, patience=0, out=str(tmp_path), workers=1, learning_rates=(1e-3, 1e-2)
    )
    started = time.monotonic()
    board = run(given, started=started)
    assert time.monotonic() - started < 12.0
    seconds = [r["seconds"] for r in board["rows"] if not r["baseline"]]
    assert min(seconds) > SHORTEST_TRIAL
    assert max(seconds) < 1.3 * min(seconds)
    again = run(given)
    assert [r["test"] for r in again["rows"]] == [r["test"] for r in board["rows"]]


def test_a_published_size_takes_part_by_its_name() -> None:
    spec = find("classify-images", "task").spec
    info = SimpleNamespace(task="classify-images", size=(28, 28), channels=1, classes=10)
    task: Any = SimpleNamespace(spec=spec, info=info)
    assert "convnext" in fitting(task)
    assert "convnext_tiny" not in fitting(task), "a size takes part only where it is named"
    chosen = contestants(Settings(task="classify-images", systems=["convnext_tiny", "convnext"]), task)
    size, small = chosen[:2]
    with torch.device("meta"):
        whole, quick = size.build(info, {"depths": (1, 1, 1, 1)}), small.build(info, {})
    assert [whole.num_classes, whole.in_chans, whole.num_features] == [10, 1, 768]
    assert quick.num_features < 128
    with pytest.raises(UnknownName, match="did you mean 'convnext_tiny'"):
        contestants(Settings(task="classify-images", systems=["convnext_tinny"]), task)
    forecast: Any = SimpleNamespace(spec=find("forecast", "task").spec, info=SimpleNamespace(task="forecast"))
    with pytest.raises(InvalidValue, match="system 'convnext_tiny' cannot do the task 'forecast'"):
        contestants(Settings(task="forecast", systems=["convnext_tiny"]), forecast)
