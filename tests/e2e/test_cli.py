"""The command line as a user meets it: real files, real processes, exit statuses, one sentence for what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import warm

import foveate

COMPARE = ("compare", "forecast")
FAST = ("--systems", "dlinear", "--steps", "20", "--seeds", "1", "--learning-rates", "0.001", "--workers", "1")


def foveate_command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``foveate``; terminal width is fixed so that tables do not depend on the caller's."""
    return warm.run(list(map(str, arguments)), cwd, {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"})


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit status 2, no traceback, one sentence that has all the parts."""
    assert result.returncode == 2, result.stderr or result.stdout
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in line, line


def series(rows: int = 300, columns: int = 2) -> pd.DataFrame:
    """A daily pattern with noise, in two units."""
    t = np.arange(rows)
    noise = np.random.default_rng(0).normal(size=(rows, columns))
    values = 100 * np.arange(1, columns + 1) + 10 * np.sin(2 * np.pi * t / 24)[:, None] + noise
    table = pd.DataFrame(values, columns=[f"c{i}" for i in range(columns)])
    table.insert(0, "when", pd.date_range("2020-01-01", periods=rows, freq="h"))
    return table


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison on a file of one's own."""
    folder = tmp_path_factory.mktemp("compared")
    series().to_csv(folder / "mine.csv", index=False)
    result = foveate_command(*COMPARE, "mine.csv", *FAST, "--horizon", 6, "--lookback", 24, "--out", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_help_is_quick_and_loads_no_torch():
    code = "import sys; sys.argv=['foveate', '--help']\nfrom foveate.cli import main\ntry:\n    main()\n"
    code += "except SystemExit:\n    pass\nassert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_comparison_prints_a_leaderboard_and_leaves_a_report_and_a_winner(compared):
    folder, result = compared
    assert "dlinear" in result.stdout
    assert "seasonal_naive" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr, "control characters although not a terminal"
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    assert {row["system"] for row in board["rows"]} == {"dlinear", "seasonal_naive"}
    assert all(row["status"] == "done" for row in board["rows"])
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    model = foveate.load(folder / "run" / "best")
    assert isinstance(model, __import__("torch").nn.Module)


def test_the_same_command_again_trains_nothing(compared):
    folder, _ = compared
    before = {f: f.stat().st_mtime_ns for f in (folder / "run" / "trials").rglob("*") if f.is_file()}
    begun = time.monotonic()
    result = foveate_command(*COMPARE, "mine.csv", *FAST, "--horizon", 6, "--lookback", 24, "--out", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {f: f.stat().st_mtime_ns for f in before} == before, f"{time.monotonic() - begun:.1f} s"


def test_predictions_are_in_the_users_units_with_time_stamps(compared):
    folder, _ = compared
    result = foveate_command("predict", "run/best", "mine.csv", "--out", "next.csv", cwd=folder)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(folder / "next.csv", parse_dates=["when"])
    last = series()["when"].iloc[-1]
    assert list(table.columns) == ["when", "c0", "c1"]
    assert list(table["when"]) == list(pd.date_range(last, periods=7, freq="h")[1:])
    assert table["c0"].between(60, 140).all()
    assert table["c1"].between(160, 240).all()
    refused(foveate_command("predict", "run/best", "mine.csv", "--out", "next.csv", cwd=folder), "next.csv", "exists")


def test_the_resolved_configuration_gives_the_same_comparison(compared):
    folder, _ = compared
    result = foveate_command(*COMPARE, "--config", "run/config.toml", "--out", "again", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    first = json.loads((folder / "run" / "leaderboard.json").read_text())
    for one, other in zip(first["rows"], json.loads(result.stdout)["rows"], strict=True):
        assert (one["system"], one["val"], one["test"]) == (other["system"], other["val"], other["test"])


def test_a_contestant_of_ones_own(compared):
    folder, _ = compared
    (folder / "own.py").write_text(
        "import torch\n"
        "from foveate.mixers import Mixer, MixerSpec\n"
        "class Mean(Mixer):\n"
        "    spec = MixerSpec()\n"
        "    def __init__(self, dim, *, causal=False):\n"
        "        super().__init__(dim, causal=causal)\n"
        "        self.w = torch.nn.Linear(dim, dim)\n"
        "    def forward(self, x, *, mask=None, context=None, layout=None):\n"
        "        return self.w(x.mean(1, keepdim=True)).expand_as(x)\n"
    )
    own = ("--systems", "own:Mean", "--steps", 20, "--seeds", 1, "--learning-rates", "0.001", "--horizon", 6)
    result = foveate_command(*COMPARE, "mine.csv", *own, "--lookback", 24, "--out", "own", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    rows = {row["system"]: row for row in json.loads(result.stdout)["rows"]}
    assert rows["own:Mean"]["status"] == "done", rows["own:Mean"]["reason"]


def test_merged_leaderboards(compared):
    folder, _ = compared
    series(400, 3).to_csv(folder / "other.csv", index=False)
    other = ("--horizon", 6, "--lookback", 24, "--out", "other")
    assert foveate_command(*COMPARE, "other.csv", *FAST, *other, cwd=folder).returncode == 0
    merged = foveate_command("leaderboard", "run", "other", cwd=folder)
    assert merged.returncode == 0, merged.stderr
    assert "dlinear" in merged.stdout
    one = foveate_command("leaderboard", "run", cwd=folder)
    assert "seasonal_naive" in one.stdout
    refused(foveate_command("leaderboard", "run", "run", cwd=folder), "run", "twice")
    refused(foveate_command("leaderboard", "nothing", cwd=folder), "nothing", "leaderboard.json")


def test_plans_write_nothing(compared):
    folder, _ = compared
    result = foveate_command(*COMPARE, "mine.csv", *FAST, "--out", "planned", "--plan", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "dlinear-seed0" in result.stdout
    assert not (folder / "planned").exists()


def _write(name: str, table: pd.DataFrame):
    return lambda folder: table.to_csv(folder / name, index=False)


BAD_DATA = {
    "absent": (lambda folder: None, ["bad.csv"]),
    "empty": (lambda folder: (folder / "bad.csv").write_text(""), ["bad.csv", "empty"]),
    "a folder": (lambda folder: (folder / "bad.csv").mkdir(), ["bad.csv"]),
    "binary": (lambda folder: (folder / "bad.csv").write_bytes(bytes(range(256)) * 9), ["bad.csv"]),
    "not numeric": (_write("bad.csv", series().assign(c0="high", c1="low")), ["bad.csv"]),
    "constant": (_write("bad.csv", series().assign(c0=1.0, c1=2.0)), ["bad.csv"]),
    "too short": (_write("bad.csv", series(20)), ["bad.csv", "20"]),
    "all missing": (_write("bad.csv", series().assign(c0=np.nan, c1=np.nan)), ["bad.csv"]),
    "duplicate stamps": (_write("bad.csv", pd.concat([series(), series().tail(1)])), ["bad.csv"]),
    "unsorted stamps": (_write("bad.csv", series().sample(frac=1, random_state=0)), ["bad.csv"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_by_name(tmp_path, case):
    make, parts = BAD_DATA[case]
    make(tmp_path)
    result = foveate_command(*COMPARE, "bad.csv", *FAST, "--horizon", 6, "--lookback", 24, "--out", "run", cwd=tmp_path)
    refused(result, *parts)
    assert not (tmp_path / "run").exists()


BAD_OPTIONS = {
    ("--target", "c9"): ["c9", "c0"],
    ("--horizon", "5000"): ["horizon"],
    ("--horizon", "0"): ["horizon"],
    ("--systems", "dlinaer"): ["dlinaer", "dlinear"],
    ("--systems", "nothing:Here"): ["nothing"],
    ("--set", "dlinear.size=3"): ["dlinear", "size"],
    ("--set", "dlinear"): ["SYSTEM.OPTION=VALUE"],
    ("--budget", "soon"): ["soon", "30m"],
    ("--budget", "5m", "--steps", "3"): ["budget", "steps"],
    ("--freq", "fortnightly"): ["fortnightly"],
    ("--config", "no.toml"): ["no.toml"],
    ("--stepz", "3"): ["--stepz"],
    ("--steps", "many"): ["--steps"],
    ("--split", "1/2"): ["split"],
}


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=" ".join)
def test_bad_options_are_refused_by_name(compared, options):
    folder, _ = compared
    given = ("mine.csv", "--horizon", "6", "--lookback", "24", "--systems", "dlinear", *options)
    refused(foveate_command(*COMPARE, *given, "--out", "refused", cwd=folder), *BAD_OPTIONS[options])
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("compar",), ["compar", "compare"]),
        (("compare", "forcast"), ["task", "forcast", "forecast"]),
        (("train", "forecast"), ["--system"]),
        (("show", "timesnt"), ["timesnt", "timesnet"]),
        (("list", "--kind", "mixr"), ["mixr", "mixer"]),
        (("list", "--task", "classify-image"), ["task", "classify-image", "classify-images"]),
        (("list", "--status", "verifed"), ["status", "verifed", "verified"]),
        (("list", "--family", "spikng"), ["family", "spikng", "spiking"]),
        (("verify", "timesnet", "--kind", "proved"), ["proved", "exact"]),
        (("verify", "timesnt"), ["timesnt", "timesnet"]),
    ],
)
def test_unknown_words_are_answered_with_the_nearest(arguments, parts):
    refused(foveate_command(*arguments), *parts)


def test_folders_of_others_are_left_alone(compared, tmp_path):
    folder, _ = compared
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("years of work")
    refused(foveate_command(*COMPARE, folder / "mine.csv", *FAST, "--out", foreign), "thesis")
    assert [f.name for f in foreign.iterdir()] == ["chapter.tex"]
    file = tmp_path / "file"
    file.write_text("x")
    refused(foveate_command(*COMPARE, folder / "mine.csv", *FAST, "--out", file), "file")


def test_other_rules_in_the_same_folder_are_refused(compared):
    folder, _ = compared
    other = [*FAST[:3], "30", *FAST[4:]]
    result = foveate_command(*COMPARE, "mine.csv", *other, "--horizon", 6, "--lookback", 24, "--out", "run", cwd=folder)
    refused(result, "steps", "20", "30", "--out")


def test_checkpoints_that_are_not_ours_are_refused(compared, tmp_path):
    folder, _ = compared
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"a": 1}))
    refused(foveate_command("predict", tmp_path / "weights.pt", folder / "mine.csv"), "weights.pt", "pickle")
    refused(foveate_command("predict", tmp_path, folder / "mine.csv"), "config.json")


def test_browsing():
    listed = foveate_command("list", "--kind", "mixer", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "mamba" in {system["slug"] for system in json.loads(listed.stdout)}
    shown = foveate_command("show", "timesnet")
    assert "TimesNet" in shown.stdout
    assert "models/series/timesnet.py" in shown.stdout.replace(os.sep, "/")
    facts = json.loads(foveate_command("doctor", "--json").stdout)
    assert set(facts["native"]) == {"level", "built", "kernels", "advice"}
    assert "selective_scan" in facts["native"]["kernels"]
    assert "native kernels: " in foveate_command("doctor").stdout


def test_a_planned_system_can_be_looked_at_and_cited():
    shown = foveate_command("show", "dinat")
    assert shown.returncode == 0, shown.stderr
    assert "Dilated Neighborhood Attention" in shown.stdout
    assert "licence  MIT" in shown.stdout
    cited = foveate_command("cite", "dinat", "timesnet")
    assert cited.stdout.count("@") == 2
    assert json.loads(foveate_command("cite", "mamba", "--json").stdout)["mamba"].startswith("@")
    refused(foveate_command("cite", "linear_interpolation"), "linear_interpolation has no publication")
    refused(foveate_command("cite", "dinta"), "dinta", "dinat")
