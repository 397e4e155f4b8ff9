"""Covariates and quantiles on the command line, from a file to predictions; what is wrong is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import COMPARE, foveate_command, refused

HORIZON = 4
DATA = ("--id", "shop", "--target", "sales", "--known", "promo", "--static", "size,region")
RULES = ("--lookback", 12, "--horizon", HORIZON, "--seeds", 1, "--learning-rates", "0.003", "--workers", 1)
SYSTEMS = ("--systems", "dlinear,gated_conv,own:Last", "--steps", 20)
OWN = """
import torch
from foveate.models import Model
from foveate.spec import ModelSpec

class Last(Model):
    spec = ModelSpec(reads="series", tasks=("forecast",))

    def __init__(self, horizon=1):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(horizon, 1))

    @classmethod
    def for_task(cls, info, **options):
        return cls(info.horizon)

    def forward(self, x, marks=None):
        return x[:, -1:] * self.gain
"""


def shops(rows: int = 130) -> pd.DataFrame:
    """Two shops whose sales follow a promotion, the promotions of the last rows planned only."""
    rng, frames = np.random.default_rng(0), []
    for shop, size, region in (("n", 1.5, "north"), ("s", 4.0, "south")):
        promo = (rng.random(rows) < 0.3).astype(int)
        sales = 100 * size + 20 * promo + rng.normal(size=rows)
        frame = pd.DataFrame({"when": pd.date_range("2024-01-01", periods=rows, freq="h"), "shop": shop, "size": size})
        frame = frame.assign(region=region, promo=promo, sales=sales.round(3), visits=(2 * sales).round(1))
        frame.loc[rows - HORIZON :, ["sales", "visits"]] = np.nan
        frames.append(frame)
    return pd.concat(frames)


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shops")
    shops().to_csv(folder / "shops.csv", index=False)
    (folder / "own.py").write_text(OWN)
    quantiles = ("--quantiles", "0.1,0.9", "--out", "run")
    result = foveate_command(*COMPARE, "shops.csv", *DATA, *RULES, *SYSTEMS, *quantiles, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "pinball" in result.stdout
    assert "validation pinball" in result.stderr
    return folder


def owner(folder: Path) -> tuple[str, ...]:
    """What ``predict`` must be told where the winner is the user's own."""
    winner = json.loads((folder / "run" / "best" / "config.json").read_text())["system"]
    return ("--system", winner) if ":" in winner else ()


def test_the_leaderboard_and_the_report_tell_quantiles(compared):
    board = json.loads((compared / "run" / "leaderboard.json").read_text())
    assert board["metrics"] == ["pinball", "crps", "coverage", "wql", "mse", "mae", "mase"]
    assert {row["system"]: row["status"] for row in board["rows"]} == dict.fromkeys(
        ("dlinear", "gated_conv", "own:Last", "seasonal_naive"), "done"
    )
    assert all(0 <= row["test"]["coverage"]["mean"] <= 1 for row in board["rows"])
    facts = board["data"]
    assert (facts["known"], facts["static"], facts["quantiles"]) == (["promo"], ["size", "region"], [0.1, 0.5, 0.9])
    assert facts["nominal_coverage"] == 0.8
    report = (compared / "run" / "report.html").read_text()
    assert 'class="band ' in report
    assert "from the 0.1 to the 0.9 quantile" in report


def test_predictions_have_a_column_for_each_level(compared):
    result = foveate_command("predict", "run/best", "shops.csv", *owner(compared), "--out", "next.csv", cwd=compared)
    assert result.returncode == 0, result.stderr
    got = pd.read_csv(compared / "next.csv", parse_dates=["when"])
    assert list(got.columns) == ["shop", "when", "sales_q0.1", "sales_q0.5", "sales_q0.9"]
    assert got["shop"].tolist() == ["n"] * HORIZON + ["s"] * HORIZON
    assert got["when"][:HORIZON].tolist() == shops()["when"].iloc[130 - HORIZON : 130].tolist()
    assert (got["sales_q0.1"] <= got["sales_q0.5"]).all()
    assert (got["sales_q0.5"] <= got["sales_q0.9"]).all()
    assert got["sales_q0.5"][:HORIZON].between(100, 220).all()
    assert got["sales_q0.5"][HORIZON:].between(350, 470).all()


def test_a_future_that_is_not_covered(compared):
    frame = shops()
    frame[frame["sales"].notna()].to_csv(compared / "past.csv", index=False)
    refused(
        foveate_command("predict", "run/best", "past.csv", *owner(compared), cwd=compared),
        "series 'n', known column 'promo' does not cover the horizon: it has no value at 2024-01-06T06:00:00; 4 rows",
    )


def test_other_quantiles_are_another_comparison(compared):
    other = ("--quantiles", "0.2,0.8", "--out", "run")
    result = foveate_command(*COMPARE, "shops.csv", *DATA, *RULES, *SYSTEMS, *other, cwd=compared)
    refused(result, "was made from other data", "quantiles was [0.1, 0.5, 0.9], now it is [0.2, 0.5, 0.8]")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--quantiles", "0.1,1.5"), "quantiles='0.1,1.5' is not possible: 1.5 is not between 0 and 1."),
        (("--known", "sales"), "column 'sales' cannot be target and known at once"),
        (("--static", "visits"), "it must be constant within a series"),
    ],
)
def test_what_is_not_possible_is_one_sentence(compared, options, says):
    command = (*COMPARE, "shops.csv", "--id", "shop", "--target", "sales", *RULES, *SYSTEMS, *options, "--out", "no")
    refused(foveate_command(*command, cwd=compared), says)
    assert not (compared / "no").exists()
