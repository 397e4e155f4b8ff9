"""Reading a series and its marks: what is found, what is refused and how."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.tasks.detect_anomalies.embedded import USUAL_ROWS
from foveate.tasks.detect_anomalies.embedded.make import EVENTS
from foveate.tasks.detect_anomalies.read import read_recording
from foveate.tasks.detect_anomalies.source import find_recording


def table(rows=30, **columns):
    t = np.arange(rows)
    marks = (t == 20).astype(int)
    return pd.DataFrame({"timestamp": t, "p": np.sin(t), "q": np.cos(t), "is_anomaly": marks} | columns)


def test_roles_are_found_by_name():
    found = read_recording(table(note="text"))
    assert (found.time, found.marks, found.columns) == ("timestamp", "is_anomaly", ("p", "q"))
    assert found.times is not None
    assert found.times.tolist() == list(range(30))
    assert found.anomalous is not None
    assert np.flatnonzero(found.anomalous).tolist() == [20]
    assert found.notes == ("Column 'note' holds no numbers and is left out.",)
    bare = read_recording(table()[["p"]])
    assert (bare.time, bare.times, bare.marks, bare.anomalous) == (None, None, None, None)


def test_roles_are_named():
    named = table().rename(columns={"timestamp": "tick", "is_anomaly": "odd"})
    found = read_recording(named, label="odd", time="tick", columns=["q"])
    assert (found.time, found.marks, found.columns) == ("tick", "odd", ("q",))
    assert read_recording(named, label="odd", marked=False, columns=["p"]).anomalous is None


def test_stamps_are_kept_as_they_stand():
    stamps = pd.date_range("2024-01-01", periods=30, freq="h").astype(str)
    found = read_recording(table(timestamp=stamps))
    assert found.times is not None
    assert found.times.tolist() == list(stamps)
    late = list(stamps)
    late[4] = "2024-01-09 00:00:00"
    with pytest.raises(InvalidValue, match=r"column 'timestamp': row 6 \(.*05:00:00\) does not come after row 5"):
        read_recording(table(timestamp=late))


def test_uneven_steps_are_noted():
    ticks = np.arange(30) + (np.arange(30) > 7)
    assert "1 steps between rows differ" in read_recording(table(timestamp=ticks)).notes[0]


@pytest.mark.parametrize("marks", [[True, False] * 15, ["0", "1"] * 15, [0.0, 1.0] * 15])
def test_marks_of_several_kinds(marks):
    found = read_recording(table(is_anomaly=marks)).anomalous
    assert found is not None
    assert found.sum() == 15


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        (
            {"is_anomaly": [2] * 30},
            {},
            "label column 'is_anomaly': row 1 holds '2': 0 (usual) or 1 (anomaly) is needed",
        ),
        ({"is_anomaly": ["no"] * 30}, {}, "row 1 holds 'no'"),
        ({"is_anomaly": [0.0] * 3 + [np.nan] + [0.0] * 26}, {}, "row 4 is empty"),
        ({"timestamp": [3] * 30}, {}, "row 2 (3) does not come after row 1 (3)"),
        ({"timestamp": [0.0, np.nan] * 15}, {}, "column 'timestamp': row 2 is empty"),
        ({"p": [1.0, np.inf] * 15}, {}, "column 'p': row 2 is infinite"),
        ({}, {"label": "odd"}, "unknown label column 'odd'"),
        ({}, {"time": "when"}, "unknown time column 'when'"),
        ({}, {"columns": ["r"]}, "unknown column 'r'"),
        ({}, {"columns": ["is_anomaly"]}, "'is_anomaly' is the time or label column"),
        ({}, {"label": "p", "time": "p"}, "time and label both name the column 'p'"),
        ({"p": "a", "q": "b"}, {}, "has no column of numbers beside 'timestamp' and 'is_anomaly'"),
    ],
)
def test_what_is_refused(changes, options, says):
    with pytest.raises((InvalidValue, UnknownName)) as found:
        read_recording(table(**changes), **options)
    assert says in str(found.value)


def test_a_test_file_beside_its_training_file(tmp_path):
    table().to_csv(tmp_path / "a_TRAIN.csv", index=False)
    table(rows=40)[["q", "p", "timestamp", "is_anomaly"]].to_csv(tmp_path / "a_TEST.csv", index=False)
    found = find_recording(tmp_path / "a_TRAIN.csv")
    assert found.test is not None
    assert found.test.label.endswith("a_TEST.csv")
    assert found.test.columns == ("p", "q")  # in the order of training
    alone = find_recording(tmp_path / "a_TEST.csv", columns="p,q")
    assert alone.test is None
    table()[["timestamp", "p"]].to_csv(tmp_path / "a_TEST.csv", index=False)
    with pytest.raises(UnknownName, match="unknown column 'q'"):
        find_recording(tmp_path / "a_TRAIN.csv")


def test_only_the_test_file_needs_the_named_marks(tmp_path):
    table()[["timestamp", "p"]].to_csv(tmp_path / "a_TRAIN.csv", index=False)
    odd = table()[["timestamp", "p"]].assign(odd=1)
    odd.to_csv(tmp_path / "a_TEST.csv", index=False)
    found = find_recording(tmp_path / "a_TRAIN.csv", label="odd")
    assert found.anomalous is None
    assert found.test is not None
    assert found.test.marks == "odd"
    table()[["timestamp", "p"]].to_csv(tmp_path / "a_TEST.csv", index=False)
    with pytest.raises(UnknownName, match="unknown label column 'odd'"):
        find_recording(tmp_path / "a_TRAIN.csv", label="odd")


def test_arrays(tmp_path):
    file = tmp_path / "a.npz"
    x, y = np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) == 7
    np.savez(file, x=x, x_test=x[:40], y_test=y[:40])
    found = find_recording(file)
    assert found.columns == ("channel_0", "channel_1")
    assert found.anomalous is None
    assert found.test is not None
    assert found.test.anomalous is not None
    assert np.flatnonzero(found.test.anomalous).tolist() == [7]
    np.savez(file, x=x[:, 0], y=y)
    assert find_recording(file).columns == ("channel_0",)
    for arrays, says in (
        ({"z": x}, "holds the arrays z: x (rows, channels) is needed"),
        ({"x": x, "y_test": y}, "holds y_test without x_test"),
        ({"x": x, "y": y[1:]}, r"y has shape (49,): one mark per row, (50,), is needed"),
        ({"x": x[None]}, "x has shape (1, 50, 2)"),
        ({"x": x, "x_test": x[:, :1]}, "different numbers of channels"),
        ({"x": np.where(x > 1, np.inf, x)}, "x holds infinite values"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(InvalidValue) as refused:
            find_recording(file)
        assert says in str(refused.value)
    with pytest.raises(InvalidType, match="label name columns of a table"):
        find_recording(file, label="y")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InvalidValue, match=r"is not a whole \.npz file"):
        find_recording(file)


def test_the_embedded_series_is_what_its_record_says():
    found = find_recording(None)
    test = found.test
    assert (found.label, found.columns, found.marks) == ("embedded taxi series", ("passengers",), "is_anomaly")
    assert test is not None
    assert found.anomalous is not None
    assert test.anomalous is not None
    assert test.times is not None
    assert (len(found.values), len(test.values)) == (USUAL_ROWS, 4416)
    assert not found.anomalous.any()
    assert {str(t)[:10] for t in test.times[test.anomalous]} == set(EVENTS)
    assert test.anomalous.sum() == 48 * len(EVENTS)
    with pytest.raises(InvalidType, match="label and columns cannot be given without a file"):
        find_recording(None, label="x", columns="passengers")
