"""The task detect-anomalies: what is learned from, what is scored, where thresholds come from, and what is shipped."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.models.build import resolve
from foveate.models.mixer_net import MixerNet
from foveate.models.readers import PatchHead
from foveate.tasks.detect_anomalies.task import DetectAnomaliesTask
from foveate.tasks.fit import FitOnce

WINDOW = 20


def table(rows=400, at=(), seed=0, **columns):
    """Two waves in two units with noise, and spikes at some rows, which are marked."""
    t = np.arange(rows)
    generator = np.random.default_rng(seed)
    values = np.stack([50 + 10 * np.sin(t / 3), 1000 + 300 * np.cos(t / 5)], 1) + generator.normal(size=(rows, 2))
    values[list(at)] += (40, 900)
    marks = np.isin(t, list(at)).astype(int)
    return pd.DataFrame({"timestamp": t, "p": values[:, 0], "q": values[:, 1], "is_anomaly": marks} | columns)


def prepare(train=None, test=None, **options):
    train = table() if train is None else train
    test = table(300, at=(100, 101, 200), seed=1) if test is None else test
    return DetectAnomaliesTask.prepare(train, test=test, **{"lookback": WINDOW, **options})


@pytest.fixture(scope="module")
def task():
    return prepare()


class Zero(nn.Module):
    """Answers with the training mean."""

    def forward(self, x):
        return torch.zeros_like(x)


def whole(task, split):
    return task.batch(split, torch.arange(task.size(split)))


def test_windows_lie_in_one_part_as_a_whole(task):
    facts = task.describe()
    assert facts["rows"] == {"train": 320, "val": 80, "test": 300}
    assert facts["stride"] == 5
    assert [task.size(s) for s in ("train", "val", "test")] == [320 - 19, 13, 57]
    starts = {s: task._tensors[s] for s in ("train", "val", "test")}
    assert int(starts["train"].max()) + WINDOW == 320 == int(starts["val"].min())
    assert int(starts["val"].max()) + WINDOW == 400 == int(starts["test"].min())
    assert int(starts["test"].max()) + WINDOW == 700
    assert task.overlap == WINDOW
    assert task.scoring_size("val") == 13
    assert task.scoring_size("test") == 61 + 13 + 57


def test_one_file_is_divided():
    one = table(at=(390,))
    task = DetectAnomaliesTask.prepare(one, lookback=WINDOW)
    assert task.describe()["rows"] == {"train": 280, "val": 40, "test": 80}
    counted = DetectAnomaliesTask.prepare(one, lookback=WINDOW, split="100/50/250")
    assert counted.describe()["rows"] == {"train": 100, "val": 50, "test": 250}
    two = prepare(split="100/200")
    assert two.describe()["rows"] == {"train": 100, "val": 200, "test": 300}


def test_test_rows_change_nothing_that_is_learned_from():
    one, other = prepare(), prepare(test=table(300, at=(50,), seed=7))
    for split in ("train", "val"):
        assert torch.equal(whole(one, split)["x"], whole(other, split)["x"])
    assert torch.equal(one._tensors["mean"], other._tensors["mean"])
    package = [t.package(Zero()) for t in (one, other)]
    assert torch.equal(package[0].threshold, package[1].threshold)


def test_a_test_part_that_repeats_the_training_rows_is_tested_on_the_rest():
    train = table()
    test = pd.concat([train, table(200, at=(150,), seed=3)], ignore_index=True)
    test["timestamp"] = np.arange(600)
    task = prepare(train, test)
    assert task.describe()["rows"]["test"] == 200
    assert "begins with the 400 rows of the training part" in task.describe()["notes"][0]
    best = task.evaluate(Zero(), "test").examples["places"][0]
    assert (best["row"], best["time"]) == (150, "550")
    with pytest.raises(InvalidValue, match="its test part has 0 rows"):
        prepare(train, train)


def test_windows_that_touch_a_marked_row_are_not_learned_from():
    task = prepare(table(at=(100, 350)))
    starts = task._tensors["train"]
    assert not ((starts <= 100) & (starts + WINDOW > 100)).any()
    assert task.size("train") == 301 - WINDOW
    starts = task._tensors["val"]
    assert not ((starts <= 350) & (starts + WINDOW > 350)).any()
    clean = table().drop(index=100).to_numpy()[:319, 1:3]
    marked = task._tensors["mean"]
    assert abs(float(marked[0]) - clean[:, 0].mean()) < 0.1  # not moved by the spike
    assert any("2 rows are marked in the training and validation parts" in n for n in task.describe()["notes"])
    scores = task.evaluate(Zero(), "val").per_sample
    assert len(scores) == 80 - 5  # the row, and four that no other window covers


def test_validation_is_the_mean_score_and_needs_no_marks(task):
    scored = task.evaluate(Zero(), "val", batch_size=3)
    batch = task._tensors["values"][320:400].double()
    assert list(scored.metrics) == ["mse"]
    assert scored.metrics["mse"] == pytest.approx(float(batch.square().mean()))
    torch.testing.assert_close(scored.per_sample, batch.square().mean(1))
    without = prepare(table().drop(columns="is_anomaly"), table(300, seed=1).drop(columns="is_anomaly"))
    assert without.evaluate(Zero(), "val").metrics == scored.metrics


def test_test_scores_by_hand(task):
    scored = task.evaluate(Zero(), "test", batch_size=7)
    assert tuple(scored.metrics) == task.spec.test_metrics
    scores = task._tensors["values"][400:].double().square().mean(1)
    marks = torch.zeros(300, dtype=torch.bool)
    marks[[100, 101, 200]] = True
    usual = task._tensors["values"][320:400].double().square().mean(1)
    threshold = float(np.quantile(usual.numpy(), 0.995))
    assert scored.examples["threshold"] == pytest.approx(threshold)
    alarms = scores > threshold
    hits = int((alarms & marks).sum())
    assert hits > 0
    assert scored.metrics["precision"] == pytest.approx(hits / int(alarms.sum()))
    assert scored.metrics["recall"] == pytest.approx(hits / 3)
    assert scored.metrics["f1"] == pytest.approx(2 * hits / (3 + int(alarms.sum())))
    assert scored.metrics["f1_adjusted"] >= scored.metrics["f1"]
    everything = task._tensors["values"].double().square().mean(1).numpy()
    assert scored.examples["threshold_published"] == pytest.approx(np.quantile(everything, 0.995))
    assert scored.metrics["auc_pr"] == pytest.approx(float(scored.per_sample.mean()))
    assert scored.metrics["auc_pr"] == 1  # the spikes are far out
    assert scored.metrics["auc_roc"] == 1
    assert scored.metrics["found"] == 1
    assert scored.examples["places"][0]["row"] in (100, 101, 200)
    assert scored.examples["places"][0]["time"] == str(scored.examples["places"][0]["row"])


def test_the_published_threshold_sees_test_scores():
    one, other = (prepare(test=table(300, at=at, seed=1), threshold="published") for at in ((100,), range(100, 140)))
    assert float(one.package(Zero()).threshold) < float(other.package(Zero()).threshold)
    scored = one.evaluate(Zero(), "test")
    assert scored.examples["threshold"] == scored.examples["threshold_published"]
    assert scored.metrics["f1_adjusted"] == scored.metrics["f1_published"]
    assert float(one.package(Zero()).threshold) == pytest.approx(scored.examples["threshold"])


def test_without_marks_on_test_nothing_is_scored():
    task = prepare(table().drop(columns="is_anomaly"), table(300, at=(100,)).drop(columns="is_anomaly"))
    assert task.spec.test_metrics == ()
    assert task.spec.ranked_on == "val"
    assert DetectAnomaliesTask.spec.ranked_on == "test"
    assert "has no marks of anomalies" in task.describe()["notes"][-1]
    scored = task.evaluate(Zero(), "test")
    assert scored.metrics == {}
    assert scored.examples["places"][0]["row"] == 100
    assert float(task.package(Zero()).threshold) > 0


def test_what_was_not_measured_has_no_score():
    gaps = table(300, at=(100, 101, 200), seed=1)
    gaps.loc[150, ["p", "q"]] = np.nan
    gaps.loc[160, "p"] = np.nan
    task = prepare(test=gaps)
    scored = task.evaluate(Zero(), "test")
    assert len(scored.per_sample) == 299
    assert task.describe()["missing_values"] == {"p": 2, "q": 1}
    batch = whole(task, "test")
    assert not batch["x"].isnan().any()
    assert not batch["observed"].all()
    # Only q counts in row 160.
    rows = task.predict(task.package(Zero()), gaps)
    assert rows["score"].isna().tolist() == [row == 150 for row in range(300)]
    assert rows["score"][160] == pytest.approx(float(task._tensors["values"][400 + 160, 1]) ** 2, rel=1e-5)
    torch.testing.assert_close(task.loss(Zero(), batch), batch["x"].square()[batch["observed"]].mean())


def test_a_model_that_breaks_down_gets_no_score(task):
    class Broken(nn.Module):
        def forward(self, x):
            return x * torch.nan

    assert all(np.isnan(v) for v in task.evaluate(Broken(), "test").metrics.values())
    assert np.isnan(task.evaluate(Broken(), "val").metrics["mse"])
    with pytest.raises(InvalidValue, match=r"Linear returned .*: a reconstruction is a tensor \(batch, lookback, chan"):
        task.evaluate(nn.Linear(2, 3), "val")


def test_columns_that_never_change_are_kept_and_empty_ones_are_not():
    task = prepare(table(valve=3.0, empty=np.nan), table(300, at=(100,), valve=5.0, empty=1.0))
    facts = task.describe()
    assert facts["columns"] == ["p", "q", "valve"]
    assert "Column 'valve' is constant in the training rows: only its mean is taken off." in facts["notes"]
    assert "Column 'empty' has no value in the training rows and is left out." in facts["notes"]
    assert not whole(task, "train")["x"][..., 2].any()
    assert (whole(task, "test")["x"][..., 2] == 2).all()


def test_saved_and_loaded(task, tmp_path):
    task.save(tmp_path)
    again = DetectAnomaliesTask.load(tmp_path)
    assert (again.info, again.describe(), again.spec) == (task.info, task.describe(), task.spec)
    assert again.evaluate(Zero(), "test").metrics == task.evaluate(Zero(), "test").metrics
    unmarked = prepare(test=table(300)[["timestamp", "p", "q"]], train=table()[["timestamp", "p", "q"]])
    unmarked.save(tmp_path)
    assert DetectAnomaliesTask.load(tmp_path).spec.ranked_on == "val"


@pytest.mark.parametrize(
    ("train", "test", "options", "says"),
    [
        (None, None, {"lookback": 90}, "its val part has 80 rows, but a window has lookback=90"),
        (None, table(15, at=(3,)), {}, "its test part has 15 rows, but a window has lookback=20"),
        (None, None, {"lookback": 1}, "lookback=1 is not possible"),
        (None, None, {"stride": 21}, "stride=21 is not possible"),
        (None, None, {"threshold": "best"}, "threshold='best' is not possible: it must be 'validation' or 'published'"),
        (None, None, {"anomaly_ratio": 1}, "anomaly_ratio=1 is not possible: a share between 0 and 1"),
        (None, None, {"anomaly_ratio": "few"}, "anomaly_ratio='few' is not possible: a number is needed"),
        (None, None, {"tolerance": 0}, "tolerance=0 is not possible"),
        (None, None, {"split": "0.7/0.1/0.2"}, "train/val, because the test part is given"),
        (None, None, {"split": "0.7/0.1"}, "the shares must sum to 1"),
        (None, None, {"split": 5}, "split=5 is not possible"),
        (None, table(300), {}, "marks no row with a value of the test part: nothing can be scored"),
        (None, table(300, is_anomaly=1), {}, "marks every row of the test part"),
        (table(is_anomaly=1), None, {}, "every training row of 'the DataFrame' is marked"),
        (table(at=range(5, 320, 10)), None, {}, "every train window of 'the DataFrame' touches a marked anomaly"),
        (None, table(300)[["timestamp", "p", "q"]], {}, "but the test part 'the DataFrame' does not: mark them there"),
        (table(p=1.0, q=2.0), None, {}, "no column of 'the DataFrame' varies in the training rows"),
        (None, table(300, at=(9,)).drop(columns="q"), {}, "unknown column 'q'"),
    ],
)
def test_what_is_refused(train, test, options, says):
    with pytest.raises((InvalidValue, InvalidType, UnknownName)) as found:
        prepare(train, test, **options)
    assert says in str(found.value)


def test_a_file_without_any_anomaly_in_its_test_part():
    with pytest.raises(InvalidValue, match=r"marks no row with a value of the test part: .* choose another split"):
        DetectAnomaliesTask.prepare(table(at=(30,)), lookback=WINDOW)


def test_alarms_on_new_data(task):
    detector = task.package(Zero())
    assert float(detector.threshold) == task.evaluate(Zero(), "test").examples["threshold"]
    new = table(100, at=(60,), seed=5).drop(columns="is_anomaly").assign(note="x")
    rows = task.predict(detector, new)
    assert list(rows.columns) == ["timestamp", "score", "is_anomaly"]
    assert rows["timestamp"].tolist() == new["timestamp"].tolist()
    assert int(rows["score"].argmax()) == 60
    assert rows["is_anomaly"][60] == 1
    assert rows["is_anomaly"].tolist() == (rows["score"] > float(detector.threshold)).astype(int).tolist()
    bare = task.predict(detector, new.drop(columns="timestamp"))
    assert bare["row"].tolist() == list(range(100))
    assert bare["score"].equals(rows["score"])
    again = DetectAnomaliesTask.unpack(detector.config, lambda info: Zero())
    again.load_state_dict(detector.state_dict())
    pd.testing.assert_frame_equal(task.predict(again, new), rows)
    x = torch.tensor(new[["p", "q"]].to_numpy()[None, 50:70])
    assert int(detector(x)[0].argmax()) == 10
    with pytest.raises(InvalidValue, match="has 10 rows: a window of the model has 20"):
        task.predict(detector, new[:10])
    with pytest.raises(InvalidType, match="id='who' is not possible: this model reads one series per table"):
        task.predict(detector, new, id="who")
    with pytest.raises(UnknownName, match="unknown column 'q'"):
        task.predict(detector, new.drop(columns="q"))
    with pytest.raises(InvalidValue, match="x has missing or infinite values"):
        detector(torch.full((1, 20, 2), torch.nan))
    with pytest.raises(InvalidValue, match=r"x has shape \(1, 9, 2\)"):
        detector(torch.zeros(1, 9, 2))


def test_the_embedded_series_is_predicted_when_none_is_named():
    task = DetectAnomaliesTask.prepare()
    facts = task.describe()
    assert (facts["anomalies"], facts["anomalous_rows"], facts["lookback"]) == (5, 288, 100)
    rows = task.predict(task.package(Zero()))
    assert list(rows.columns) == ["time", "score", "is_anomaly"]
    assert len(rows) == facts["rows"]["test"] == 4416
    assert rows["time"][0] == "2014-11-01 00:00:00"
    place = task.evaluate(Zero(), "test").examples["places"][0]
    assert place["time"] == rows["time"][place["row"]]


def test_predictions_are_the_scores_of_the_task(task):
    torch.manual_seed(0)
    model = resolve("softmax_attention").build(task.info, {}).eval()
    test = table(300, at=(100, 101, 200), seed=1)
    rows = task.predict(task.package(model), test)
    best = task.evaluate(model, "test").examples["places"][0]
    assert int(rows["score"].argmax()) == best["row"]
    assert rows["score"].max() == pytest.approx(best["score"], rel=1e-4)


def test_timesnet_is_asked_for_one_window_at_a_time(task):
    torch.manual_seed(0)
    detector = task.package(resolve("timesnet").build(task.info, {}).eval())
    rows = task.predict(detector, table(300, at=(100, 101, 200), seed=1))
    alone = task.predict(detector, table(300, at=(100, 101, 200), seed=1)[:WINDOW])
    pd.testing.assert_series_equal(rows["score"][:5], alone["score"][:5])  # only the first window covers these
    one_by_one = task.evaluate(detector.model, "val", batch_size=1).per_sample
    assert float(detector.threshold) == pytest.approx(float(np.quantile(one_by_one.numpy(), 0.995)))


def test_winners_are_shipped_as_scored(task):
    assert task.whole() is None


def test_a_mixer_net_reconstructs_in_the_scale_of_each_window():
    torch.manual_seed(0)
    model = MixerNet("softmax_attention", answers="reconstruct", size=10, channels=2, dim=16, patch=4).eval()
    x = torch.randn(3, 10, 2)
    torch.testing.assert_close(model(100 * x + 7), 100 * model(x) + 7, rtol=1e-3, atol=1e-2)
    other = x.clone()
    other[:, :, 1] += torch.randn(3, 10)
    assert torch.equal(model(x)[..., 0], model(other)[..., 0])
    with pytest.raises(InvalidValue, match="takes no mask for answers='reconstruct'"):
        model(x, mask=torch.ones(3, 10, 2, dtype=torch.bool))


def test_what_was_padded_in_front_is_cut_in_front():
    head = PatchHead(4, 4, 10)
    nn.init.eye_(head.project.weight)
    nn.init.zeros_(head.project.bias)
    assert head(torch.arange(12.0).view(1, 3, 4)).flatten().tolist() == list(range(2, 12))


def test_nearest_window_is_fitted_on_windows_of_the_whole_training_part(task):
    model = resolve("nearest_window").build(task.info, {"keep": 50})
    FitOnce(task).fit(model, None)
    train = whole(task, "train")["x"]
    kept = [6 * i + i // 50 for i in range(50)]
    assert int(model.count) == 50  # type: ignore[arg-type]
    torch.testing.assert_close(model(train[kept]), train[kept])
    distances = torch.cdist(whole(task, "test")["x"].flatten(1), train[kept].flatten(1))
    torch.testing.assert_close(
        (model(whole(task, "test")["x"]) - whole(task, "test")["x"]).square().sum((1, 2)).sqrt(),
        distances.min(1).values,
        rtol=1e-3,
        atol=1e-3,
    )
