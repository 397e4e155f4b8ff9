"""The task impute: what is hidden and what is scored, nothing leaking through the mask, and what is shipped."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.models.build import resolve
from foveate.models.mixer_net import MixerNet
from foveate.models.series.linear_interpolation import CarryForward, LinearInterpolation
from foveate.tasks.impute.protocol import fixed_masks, seen
from foveate.tasks.impute.task import ImputeTask

SYSTEMS = ["timesnet", "softmax_attention", "mamba", "linear_interpolation", "carry_forward"]


def table(rows=400, gaps=0.0, seed=0):
    """Two waves in two units, hourly, with cells empty at random."""
    t = np.arange(rows)
    values = np.stack([50 + 10 * np.sin(t / 4), 1000 + 300 * np.cos(t / 7)], axis=1)
    values[np.random.default_rng(seed).random(values.shape) < gaps] = np.nan
    stamps = pd.date_range("2020-01-01", periods=rows, freq="h", name="when")
    return pd.DataFrame(values, columns=["p", "q"], index=stamps).reset_index()


@pytest.fixture(scope="module")
def task():
    return ImputeTask.prepare(table(gaps=0.1), lookback=24)


def whole(task, split):
    return task.batch(split, torch.arange(task.size(split)))


def test_windows_lie_in_one_part_as_a_whole(task):
    assert [task.size(s) for s in ("train", "val", "test")] == [280 - 23, 40 - 23, 80 - 23]
    starts = {s: task._tensors[s] for s in ("train", "val", "test")}
    assert int(starts["train"].max()) + 24 == 280 == int(starts["val"].min())
    assert int(starts["val"].max()) + 24 == 320 == int(starts["test"].min())
    assert task.overlap == 24
    assert ImputeTask.prepare(table(), lookback=24, stride=12).overlap == 2


def test_masks_of_validation_and_test_are_fixed_by_the_window(task):
    first = whole(task, "test")["hidden"]
    torch.rand(3)
    index = torch.tensor([5, 2])
    assert torch.equal(task.batch("test", index)["hidden"], first[index])
    assert not torch.equal(first[0], first[1])
    assert float(first.float().mean()) == pytest.approx(0.25, abs=0.02)
    rare = fixed_masks(torch.arange(50), (24, 2), 0.1, 0)
    assert float(rare.float().mean()) == pytest.approx(0.1, abs=0.02)
    other = ImputeTask.prepare(table(gaps=0.1), lookback=24, mask_seed=1)
    assert not torch.equal(whole(other, "test")["hidden"], first)


def test_training_masks_are_drawn_anew_and_follow_the_seed(task):
    kept = []

    class Keep(nn.Module):
        def forward(self, x, marks, mask):
            kept.append(mask)
            return x

    batch = task.batch("train", torch.arange(8))
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        task.loss(Keep(), batch)
    task.loss(Keep(), batch)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])
    assert not torch.equal(kept[2], kept[3])


def test_every_channel_shows_something():
    observed = torch.ones(1, 4, 3, dtype=torch.bool)
    observed[0, 0, 1] = False
    observed[0, :, 2] = False
    mask = seen(observed, torch.ones_like(observed))
    assert mask[0, :, 0].tolist() == [True, False, False, False]
    assert mask[0, :, 1].tolist() == [False, True, False, False]
    assert mask[0, :, 2].all()
    hidden = torch.zeros_like(observed)
    hidden[0, 1] = True
    assert seen(observed, hidden)[0, :, 0].tolist() == [True, False, True, True]


def test_what_was_never_measured_is_neither_seen_nor_scored(task):
    batch = whole(task, "test")
    scored, mask = task.scored(batch), seen(batch["observed"], batch["hidden"])
    assert not (scored & ~batch["observed"]).any()
    assert not (scored & mask).any()
    assert not (mask & ~batch["observed"]).any()  # no channel of these windows is empty
    assert scored.sum() == (batch["hidden"] & batch["observed"]).sum()
    only = ImputeTask.prepare(table(gaps=0.1), lookback=24, target="q")
    assert not only.scored(whole(only, "test"))[..., 0].any()


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_hidden_truth_has_no_influence(task, system):
    torch.manual_seed(0)
    model = resolve(system).build(task.info, {}).eval()
    batch = task.batch("test", torch.arange(4))
    mask = seen(batch["observed"], batch["hidden"])
    x = batch["x"]
    given = {"marks": batch["x_marks"], "mask": mask}
    first, second = model(x, **given), model(torch.where(mask, x, 1e6), **given)
    assert torch.equal(first, second)
    assert first.shape == x.shape


def test_a_mixer_net_fills_in_the_units_of_each_window():
    torch.manual_seed(0)
    model = MixerNet("softmax_attention", answers="gaps", size=10, channels=2, dim=16, patch=4, dropout=0.0).eval()
    x = torch.randn(3, 10, 2)
    mask = torch.rand(x.shape) > 0.3
    mask[:, 0] = True
    torch.testing.assert_close(model(100 * x + 7, mask=mask), 100 * model(x, mask=mask) + 7, rtol=1e-3, atol=1e-2)
    other = x.clone()
    other[:, :, 1] += torch.randn(3, 10)
    assert torch.equal(model(x, mask=mask)[..., 0], model(other, mask=mask)[..., 0])
    with pytest.raises(
        InvalidValue, match=r"mask has shape \(3, 10\) and type torch.bool; it must be bool \(3, 10, 2\)"
    ):
        model(x, mask=mask[..., 0])


def test_interpolation_is_numpys():
    generator = np.random.default_rng(0)
    x, mask = generator.normal(size=(5, 20, 3)), generator.random((5, 20, 3)) < 0.4
    mask[:, 7] = True
    given = (torch.from_numpy(x), None, torch.from_numpy(mask))
    filled, carried = LinearInterpolation(20, 3)(*given).numpy(), CarryForward(20, 3)(*given).numpy()
    for b in range(5):
        for c in range(3):
            at = np.flatnonzero(mask[b, :, c])
            np.testing.assert_allclose(filled[b, :, c], np.interp(np.arange(20), at, x[b, at, c]), atol=1e-12)
            series = pd.Series(np.where(mask[b, :, c], x[b, :, c], np.nan)).ffill().bfill()
            np.testing.assert_array_equal(carried[b, :, c], series)
    with pytest.raises(InvalidValue, match=r"CarryForward: mask has shape \(1, 20\); it must be \(1, 20, 3\)"):
        CarryForward(20, 3)(torch.zeros(1, 20, 3), mask=torch.ones(1, 20, dtype=torch.bool))
    with pytest.raises(InvalidType, match="mask must be bool"):
        CarryForward(20, 3)(torch.zeros(1, 20, 3), mask=torch.ones(1, 20, 3))


def test_scores_by_hand(task):
    class Zero(nn.Module):
        def forward(self, x, marks, mask):
            return torch.zeros_like(x)

    scored = task.evaluate(Zero(), "test", batch_size=7)
    batch = whole(task, "test")
    truth = batch["x"].double()[task.scored(batch)]
    assert scored.metrics["mse"] == pytest.approx(float(truth.square().mean()))
    assert scored.metrics["mae"] == pytest.approx(float(truth.abs().mean()))
    assert float(scored.per_sample.mean()) == pytest.approx(scored.metrics["mse"])
    assert len(scored.per_sample) == task.size("test")


def test_rows_after_the_training_part_change_no_training_batch():
    one, other = table(), table()
    other.loc[300:, ["p", "q"]] *= 5
    one, other = (ImputeTask.prepare(t, lookback=24) for t in (one, other))
    for name, value in whole(one, "train").items():
        assert torch.equal(value, whole(other, "train")[name]), name
    assert torch.equal(one._tensors["mean"], other._tensors["mean"])


def test_saved_and_loaded(task, tmp_path):
    task.save(tmp_path)
    again = ImputeTask.load(tmp_path)
    assert (again.info, again.describe(), again.overlap) == (task.info, task.describe(), task.overlap)
    for name, value in whole(task, "val").items():
        assert torch.equal(value, whole(again, "val")[name])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask_rate": 1.0}, "mask_rate=1.0 is not possible: a share between 0 and 1"),
        ({"mask_rate": "much"}, "mask_rate='much' is not possible: a number is needed"),
        ({"mask_seed": -1}, "mask_seed=-1 is not possible"),
        ({"lookback": 1}, "lookback=1 is not possible: a gap needs something beside it"),
        ({"lookback": 60}, "'the DataFrame' is too short: its longest series has 400 rows, but windows of lookback=60"),
        ({"split": "10/10/10", "lookback": 24}, "leave a part without 24 rows"),
        ({"target": "r"}, "unknown target 'r'"),
    ],
)
def test_what_is_refused(options, says):
    with pytest.raises((InvalidValue, InvalidType, UnknownName)) as found:
        ImputeTask.prepare(table(), **options)
    assert says in str(found.value)


def test_a_refusal_names_the_file(tmp_path):
    table(rows=30).to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(InvalidValue, match=r"short\.csv' is too short: .* need \d+: give more rows"):
        ImputeTask.prepare(tmp_path / "short.csv", lookback=24)


def test_gaps_are_filled_and_measurements_kept(task):
    imputer = task.package(resolve("linear_interpolation").build(task.info, {}))
    truth = table(rows=50)
    holes = truth.copy()
    holes.loc[[3, 4, 26, 49], "p"] = np.nan
    holes = holes.drop(index=10).reset_index(drop=True)  # a row that the grid has
    filled = task.predict(imputer, holes.assign(note="text"))
    assert list(filled.columns) == ["when", "p", "q"]
    assert filled["when"].tolist() == truth["when"].tolist()
    assert not filled.isna().any().any()
    kept = ~truth.index.isin([3, 4, 10, 26, 49])
    np.testing.assert_array_equal(filled["p"][kept], truth["p"][kept])
    np.testing.assert_array_equal(filled["q"].drop(10), truth["q"].drop(10))
    np.testing.assert_allclose(filled["p"][3], (2 * truth["p"][2] + truth["p"][5]) / 3, rtol=1e-5)
    # The last window begins with this gap; the one before it, which sees both sides, fills it.
    np.testing.assert_allclose(filled["p"][26], (truth["p"][25] + truth["p"][27]) / 2, rtol=1e-5)
    np.testing.assert_allclose(filled["p"][49], truth["p"][48], rtol=1e-5)
    again = ImputeTask.unpack(imputer.config, lambda info: resolve("linear_interpolation").build(info, {}))
    again.load_state_dict(imputer.state_dict())
    pd.testing.assert_frame_equal(task.predict(again, holes), filled)
    with pytest.raises(InvalidValue, match="has 20 rows: a window of the model has 24"):
        task.predict(imputer, table(rows=20))


def test_a_channel_without_any_value_takes_the_training_mean(task):
    imputer = task.package(resolve("timesnet").build(task.info, {})).eval()
    x = torch.full((1, 24, 2), torch.nan, dtype=torch.float64)
    x[..., 1] = 1000.0
    filled = imputer(x, torch.zeros(1, 24, task.info.marks))
    torch.testing.assert_close(filled[0, :, 0], imputer.mean[0, 0].double().expand(24))
    assert torch.equal(filled[..., 1], x[..., 1])
    with pytest.raises(InvalidValue, match="x has infinite values"):
        imputer(torch.full_like(x, torch.inf))


def test_several_series_have_their_own_scale():
    both = pd.concat([table().assign(who="a"), table().assign(who="b", p=lambda t: t["p"] * 100)])
    task = ImputeTask.prepare(both, lookback=24, id="who")
    groups = task.sample_groups("test")
    assert groups is not None
    assert len(groups.unique()) == task.size("test") // 2
    imputer = task.package(resolve("linear_interpolation").build(task.info, {}))
    holes = both.reset_index(drop=True)
    holes.loc[450, "p"] = np.nan
    filled = task.predict(imputer, holes)
    beside = (both["p"].iloc[449] + both["p"].iloc[451]) / 2
    assert filled["p"][450] == pytest.approx(beside, rel=1e-4)
    assert filled["who"].tolist() == both["who"].tolist()


def test_models_are_given_nothing_of_what_is_hidden(task):
    given = {}

    class Keep(nn.Module):
        def forward(self, x, marks, mask):
            given.update(x=x, mask=mask)
            return x

    batch = whole(task, "test")
    task.apply(Keep(), batch)
    assert not given["x"][~given["mask"]].any()
    assert torch.equal(given["x"][given["mask"]], batch["x"][given["mask"]])
