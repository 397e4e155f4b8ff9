"""The task classify-series: parts without leakage, scaling, masks, scores, and what is shipped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import Mixer, MixerSpec
from foveate.models.build import resolve
from foveate.models.mixer_net import MixerNet
from foveate.models.series.summary_ridge import SummaryRidge, summary_statistics
from foveate.tasks.classify_series.protocol import stratified
from foveate.tasks.classify_series.task import ClassifySeriesTask, macro_f1
from foveate.tasks.fit import FitOnce

SYSTEMS = ["timesnet", "softmax_attention", "mamba", "majority_class", "summary_ridge"]


def frame(lengths=(9, 12), samples=20, seed=0):
    """Two classes that differ in the mean of one channel; lengths drawn from ``lengths``."""
    generator = np.random.default_rng(seed)
    parts = []
    for i in range(samples):
        steps = int(generator.choice(lengths))
        p = generator.normal(3.0 * (i % 2), 1, steps)
        parts.append(pd.DataFrame({"id": f"s{i}", "t": range(steps), "label": "ab"[i % 2], "p": p, "q": p * 100}))
    return pd.concat(parts, ignore_index=True)


def archive(tmp_path, train="a" * 10 + "b" * 10, test="ab", **more):
    """An .npz file of one-channel samples that equal their number."""
    x = np.arange(len(train), dtype=float)[:, None] * np.ones(6)
    arrays = {"x": x, "y": list(train), "x_test": x[: len(test)] + 100, "y_test": list(test), **more}
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


@pytest.fixture(scope="module")
def task():
    return ClassifySeriesTask.prepare(frame())


def test_parts_are_stratified_and_do_not_meet():
    classes = ["a"] * 50 + ["b"] * 20 + ["c"] * 3
    part = stratified(classes, None, (0.7, 0.1, 0.2), 0)
    counts = {c: [int(((np.array(classes) == c) & (part == p)).sum()) for p in range(3)] for c in "abc"}
    assert counts == {"a": [35, 5, 10], "b": [14, 2, 4], "c": [1, 1, 1]}
    assert (stratified(classes, None, (0.7, 0.1, 0.2), 0) == part).all()
    assert (stratified(classes, None, (0.7, 0.1, 0.2), 1) != part).any()
    assert stratified(["a", "a", "b"], None, (0.8, 0.2), 0).tolist().count(1) == 1  # a lone sample trains


def test_groups_stay_together():
    groups = [f"g{i // 5}" for i in range(100)]
    part = stratified(["a", "b"] * 50, groups, (0.6, 0.2, 0.2), 0)
    assert all(len(set(part[i : i + 5].tolist())) == 1 for i in range(0, 100, 5))
    assert set(part.tolist()) == {0, 1, 2}


def test_a_given_test_part_stays_the_test_part(tmp_path):
    task = ClassifySeriesTask.prepare(archive(tmp_path, test="abab"))
    assert [task.size(s) for s in ("train", "val", "test")] == [16, 4, 4]
    values = {s: task.batch(s, torch.arange(task.size(s)))["x"][:, 0, 0] for s in ("train", "val", "test")}
    assert values["test"].min() > torch.cat([values["train"], values["val"]]).max()
    assert len(torch.cat([values["train"], values["val"]]).unique()) == 20


def test_neighbours_of_ts_files_are_found(tmp_path):
    header = "@classLabel true a b\n@data\n"
    (tmp_path / "X_TRAIN.ts").write_text(header + "".join(f"{i},1,2:{'ab'[i % 2]}\n" for i in range(12)))
    (tmp_path / "X_TEST.ts").write_text(header + "1,2,3,4:a\n")
    for source in (tmp_path, tmp_path / "X_TRAIN.ts"):
        task = ClassifySeriesTask.prepare(source)
        assert task.size("test") == 1
        assert task.describe()["test_source"].endswith("X_TEST.ts")
        assert task.info.lookback == 4
        assert task.info.padded
    (tmp_path / "Y_TRAIN.ts").write_text("")
    with pytest.raises(InvalidValue, match=r"is a folder with 2 files called \.\.\._TRAIN\.ts"):
        ClassifySeriesTask.prepare(tmp_path)


def test_scaling_knows_the_training_samples_only():
    table = frame()
    first = ClassifySeriesTask.prepare(table)
    trained = {str(i) for i in first._tensors["train"].tolist()}
    changed = table.copy()
    outside = ~changed["id"].str.removeprefix("s").isin(trained)
    changed.loc[outside, ["p", "q"]] += 1000
    second = ClassifySeriesTask.prepare(changed)
    for name in ("mean", "scale"):
        assert torch.equal(first._tensors[name], second._tensors[name])
    index = torch.arange(first.size("train"))
    assert torch.equal(first.batch("train", index)["x"], second.batch("train", index)["x"])
    real = first.batch("train", index)["x"][first.batch("train", index)["mask"]]
    torch.testing.assert_close(real.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(real.std(0, unbiased=False), torch.ones(2), atol=1e-5, rtol=0)


def test_gaps_take_the_value_before_and_padding_is_zero(tmp_path):
    text = "@classLabel true a b\n@data\n" + "?,1,?:a\n1,2:b\n0,4,5:b\n" * 4
    (tmp_path / "x.ts").write_text(text)
    task = ClassifySeriesTask.prepare(tmp_path / "x.ts")
    mean, scale = task._tensors["mean"], task._tensors["scale"]
    x = (task._tensors["values"].double() * scale + mean)[..., 0]
    torch.testing.assert_close(x[0], torch.tensor([float(mean), 1, 1]).double(), atol=1e-5, rtol=0)
    assert task._tensors["values"][1, 2, 0] == 0
    assert task.describe()["missing_values"] == 8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": "a" * 20, "test": "a"}, "has one class only, 'a': at least two are needed"),
        ({"test": "abc"}, "the class 'c' occurs in the test part but not among the training samples"),
        ({"x": np.ones((20, 6))}, "every channel is constant or missing in the training samples"),
        ({"x": np.full((20, 6), 1e300) * np.arange(20)[:, None]}, "too large to be scaled"),
        ({"train": "ab", "test": "a"}, "has too few samples (2) for a val part"),
    ],
)
def test_data_that_is_refused(tmp_path, changes, says):
    with pytest.raises(InvalidValue) as found:
        ClassifySeriesTask.prepare(archive(tmp_path, **changes))
    assert says in str(found.value)
    assert "a.npz" in str(found.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "0.5/0.5"}, "split='0.5/0.5' is not possible: shares train/val/test"),
        ({"split": "0.5/0.2/0.2"}, "the shares must sum to 1"),
        ({"split": "a/b/c"}, "split='a/b/c' is not possible"),
        ({"split": 3}, "split=3 is not possible"),
        ({"split_seed": -1}, "split_seed=-1 is not possible: a whole number of at least 0"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises((InvalidValue, InvalidType), match=says):
        ClassifySeriesTask.prepare(frame(), **options)
    with pytest.raises(InvalidType, match="label cannot be given without a file"):
        ClassifySeriesTask.prepare(None, label="x")


def test_scores_by_hand(task):
    class Answers(nn.Module):
        def forward(self, x, mask=None):
            return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 2).float()

    scored = task.evaluate(Answers(), "test", batch_size=3)
    truth = task.batch("test", torch.arange(task.size("test")))["y"]
    share = float((truth == 0).double().mean())
    assert scored.metrics["accuracy"] == pytest.approx(share) == pytest.approx(float(scored.per_sample.mean()))
    assert scored.metrics["macro_f1"] == pytest.approx(share / (1 + share))  # (2s / (1 + s) + 0) / 2
    assert np.sum(scored.examples["confusion"]) == task.size("test")
    # 3 right of class 0, one of class 1 taken for 0, class 2 never occurs: F1 = (6/7 + 0) / 2
    assert macro_f1(torch.tensor([[3, 0, 0], [1, 0, 0], [0, 0, 0]])) == pytest.approx(3 / 7)
    assert macro_f1(torch.tensor([[1, 1], [0, 2]])) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_saved_and_loaded(task, tmp_path):
    task.save(tmp_path)
    again = ClassifySeriesTask.load(tmp_path)
    assert again.info == task.info
    assert again.describe() == task.describe()
    for split in ("train", "val", "test"):
        index = torch.arange(task.size(split))
        for name, value in task.batch(split, index).items():
            assert torch.equal(value, again.batch(split, index)[name])


@pytest.mark.parametrize("system", SYSTEMS)
def test_padding_has_no_influence(task, system):
    assert task.info.padded
    torch.manual_seed(0)
    model = resolve(system).build(task.info, {}).eval()
    if hasattr(model, "fit"):
        FitOnce(task).fit(model, None)
    packaged = task.package(model).eval()
    x = torch.randn(4, task.info.lookback, 2)
    mask = torch.arange(task.info.lookback) < torch.tensor([9, 12, 9, 12])[:, None]
    other = torch.where(mask[..., None], x, 7.0)
    assert torch.equal(packaged(x, mask), packaged(other, mask))


def test_a_mixer_net_without_its_padded_steps_is_the_same():
    torch.manual_seed(0)
    long = MixerNet("softmax_attention", answers="classes", size=12, channels=2, outputs=3, dim=16, patch=3).eval()
    short = MixerNet("softmax_attention", answers="classes", size=6, channels=2, outputs=3, dim=16, patch=3).eval()
    weights = long.state_dict()
    short.load_state_dict({k: v[:2] if k == "positions" else v for k, v in weights.items()})
    x = torch.randn(2, 12, 2)
    mask = (torch.arange(12) < 6).expand(2, 12)
    torch.testing.assert_close(long(x, mask=mask), short(x[:, :6]))
    with pytest.raises(InvalidValue, match=r"mask has shape \(2, 3\)"):
        long(x, mask=mask[:, :3])


def test_a_mixer_without_masks_is_refused_where_lengths_differ(task):
    class NoMask(Mixer):
        spec = MixerSpec(masks=False)

        def forward(self, x, *, mask=None, context=None, layout=None):
            return x

    with pytest.raises(InvalidType, match="the series differ in length, which takes a mask, and this mixer takes none"):
        MixerNet.for_task(task.info, mixer=NoMask)
    equal = dataclasses.replace(task.info, padded=False)
    assert MixerNet.for_task(equal, mixer=NoMask)(torch.randn(2, 12, 2)).shape == (2, 2)


def test_summary_statistics_by_hand():
    x = torch.tensor([[[1.0], [4.0], [1.0], [9.0]]])
    mask = torch.tensor([[True, True, True, False]])
    found = summary_statistics(x, mask)[0]
    expected = [2, np.sqrt(2), 1, 4, 1, 1, 3, 17 / 3, 1 / 3]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_the_ridge_classifier_is_scikit_learns():
    linear = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    for samples, channels in ((60, 2), (12, 3)):  # fewer samples than features too
        x = torch.randn(samples, 20, channels, generator=generator)
        y = torch.arange(samples) % 3
        model = SummaryRidge(20, channels, 3, ridge=0.05)
        mask = torch.ones(samples, 20, dtype=torch.bool)
        model.fit({"x": x, "mask": mask, "y": y})
        f = summary_statistics(x.double(), mask)
        f = ((f - f.mean(0)) / f.std(0, unbiased=False)).numpy()
        peer = linear.RidgeClassifier(alpha=0.05 * samples).fit(f, y.numpy())
        np.testing.assert_allclose(model(x).numpy(), peer.decision_function(f), atol=1e-4)


def test_majority_class_answers_the_most_frequent(tmp_path):
    task = ClassifySeriesTask.prepare(archive(tmp_path, train="a" * 5 + "b" * 15))
    model = resolve("majority_class").build(task.info, {})
    FitOnce(task).fit(model, None)
    assert model(torch.randn(3, 6, 1)).argmax(1).tolist() == [1, 1, 1]


def test_what_is_shipped_answers_in_the_users_units(task):
    model = resolve("summary_ridge").build(task.info, {})
    FitOnce(task).fit(model, None)
    table = frame()
    answers = task.predict(task.package(model), table.drop(columns="label").assign(extra="text"))
    assert list(answers.columns) == ["id", "class", "p(a)", "p(b)"]
    assert answers["id"].tolist() == [f"s{i}" for i in range(20)]
    assert (answers["class"] == ["a", "b"] * 10).mean() > 0.9
    np.testing.assert_allclose(answers[["p(a)", "p(b)"]].sum(axis=1), 1, atol=1e-6)
    again = ClassifySeriesTask.unpack(task.package(model).config, lambda info: resolve("summary_ridge").build(info, {}))
    again.load_state_dict(task.package(model).state_dict())
    pd.testing.assert_frame_equal(task.predict(again, table), answers)


def test_what_predict_refuses(task, tmp_path):
    packaged = task.package(resolve("majority_class").build(task.info, {}))
    with pytest.raises(InvalidValue, match="sample 's0' has 40 steps; the model was trained on at most 12"):
        task.predict(packaged, frame(lengths=(40,)))
    (tmp_path / "x.ts").write_text("@classLabel false\n@data\n1,2\n")
    with pytest.raises(InvalidValue, match=r"x\.ts' has 1 channels; the model reads 2"):
        task.predict(packaged, tmp_path / "x.ts")


def test_samples_that_belong_together_are_one_to_the_significance_test():
    table = frame()
    table["person"] = table["id"].str.removeprefix("s").astype(int) // 4
    assert ClassifySeriesTask.prepare(table.drop(columns="person")).sample_groups("test") is None
    task = ClassifySeriesTask.prepare(table, group="person")
    groups = {s: set(task.sample_groups(s).tolist()) for s in ("train", "val", "test")}
    assert len(groups["test"]) < task.size("test")
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["val"]
