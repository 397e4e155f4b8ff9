"""Reading labelled samples: every kind of source, and every refusal in one sentence that names the file."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.tasks.classify_series.embedded import PAIRS, read_embedded
from foveate.tasks.classify_series.read import read_samples

HEADER = "# a comment\n@problemName x\n@timeStamps false\n@dimensions 2\n@classLabel true a b\n@data\n"
LINES = "1,2,3:4,5,6:a\n7,?:9,NaN:b\n"


def ts(tmp_path, text, name="x.ts"):
    file = tmp_path / name
    file.write_text(text)
    return file


def long_table():
    return pd.DataFrame(
        {
            "id": ["u", "u", "v", "u", "v"],
            "time": [1, 2, 1, 3, 2],
            "label": ["a", "a", "b", "a", "b"],
            "p": [1.0, 2.0, 10.0, 3.0, np.nan],
            "q": [1, 2, 3, 4, 5],
        }
    )


def test_ts_files_with_unequal_lengths_and_missing_values(tmp_path):
    found = read_samples(ts(tmp_path, HEADER + LINES))
    assert found.classes == ("a", "b")
    assert found.columns == ("channel_0", "channel_1")
    np.testing.assert_array_equal(found.values[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(found.values[1], [[7, 9], [np.nan, np.nan]])


def test_a_dimension_that_is_shorter_ends_in_missing_values(tmp_path):
    found = read_samples(ts(tmp_path, HEADER + "1,2,3:4:a\n1:2:b\n"))
    np.testing.assert_array_equal(found.values[0], [[1, 4], [2, np.nan], [3, np.nan]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEADER.replace("@data\n", "") + "# end", "the line @data is missing"),
        (HEADER.replace("@data", "data"), "line 6 comes before @data and is no @ line"),
        (HEADER.replace("true a b", "true") + LINES, "@classLabel true is followed by no class"),
        (HEADER.replace("true a b", "maybe a") + LINES, "@classlabel must be true or false, not 'maybe a'"),
        (HEADER.replace("@dimensions 2", "@dimensions two") + LINES, "@dimensions must be a number, not 'two'"),
        (HEADER.replace("@timeStamps false", "@timeStamps true") + LINES, "has @timeStamps true, which is not read"),
        (HEADER.replace("@data", "@targetLabel true\n@data") + LINES, "its targets are numbers"),
        (HEADER.replace("true a b", "false") + "1:2\n", "has no class labels: every sample needs one"),
        (HEADER, "has no samples: nothing follows @data"),
        (HEADER + LINES + "1:2:c\n", "line 9: the label 'c' is none of @classLabel (a, b)"),
        (HEADER + LINES + "1:2:3:a\n", "line 9 has 3 dimensions, 2 are expected"),
        (HEADER + "1,x:2,3:a\n", "line 7: 'x' is not a number"),
        (HEADER + "1,inf:2,3:a\n", "line 7 holds an infinite value"),
        (HEADER + LINES + "?:?:a\n", "sample '2' has no value at all"),
    ],
)
def test_broken_ts_files_are_refused(tmp_path, text, says):
    file = ts(tmp_path, text)
    with pytest.raises(InvalidValue) as found:
        read_samples(file)
    message = str(found.value)
    assert says in message
    assert str(file) in message
    assert message.endswith(".")
    assert "\n" not in message


def test_arrays(tmp_path):
    x = np.arange(24.0).reshape(4, 3, 2)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0.0, 1, 0, 1]), groups=["u", "u", "v", "v"], x_test=x[:1], y_test=[1])
    found = read_samples(tmp_path / "a.npz")
    assert found.classes == ("0", "1", "0", "1")
    assert found.groups == ("u", "u", "v", "v")
    np.testing.assert_array_equal(found.values[2], x[2])
    assert found.test is not None
    assert found.test.classes == ("1",)
    np.savez(tmp_path / "flat.npz", x=x[:, :, 0], y=["p", "q", "p", "q"])
    assert read_samples(tmp_path / "flat.npz").values[0].shape == (3, 1)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": [1]}, "holds the arrays y: x (samples, steps, channels) and y (samples) are needed"),
        ({"x": np.zeros((2, 3)), "z": [1]}, "holds the arrays x, z"),
        ({"x": np.zeros(3), "y": [1, 2, 3]}, "x has shape (3,)"),
        ({"x": np.array([["a"]]), "y": [1]}, "x has shape (1, 1) and type <U1"),
        ({"x": np.zeros((2, 3)), "y": [1, 2, 3]}, "y has shape (3,): one entry per sample, (2,), is needed"),
        ({"x": np.zeros((2, 3)), "y": [1, np.nan]}, "y of sample 1 is NaN"),
        ({"x": np.full((2, 3), np.inf), "y": [1, 2]}, "x holds infinite values"),
        ({"x": np.zeros((2, 3)), "y": [1, 2], "y_test": [1]}, "holds y_test without x_test"),
        ({"x": np.zeros((2, 3)), "y": [1, 2], "x_test": np.zeros((1, 3, 2)), "y_test": [1]}, "different numbers of"),
        ({"x": np.zeros((2, 3))}, "has no class labels"),
        ({"x": np.zeros((2, 3)), "y": np.array([1, "a"], dtype=object)}, "is not a whole .npz file of plain arrays"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InvalidValue) as found:
        read_samples(tmp_path / "a.npz")
    assert says in str(found.value)
    assert "a.npz" in str(found.value)


def test_a_torn_archive_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)), y=[1, 2])
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidValue, match=r"a\.npz' is not a whole \.npz file"):
        read_samples(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_long_tables(tmp_path, kind):
    source: object = long_table()
    if kind != "frame":
        source = tmp_path / f"long.{kind}"
        getattr(long_table(), f"to_{kind}")(source, index=False)
    found = read_samples(source)  # type: ignore[arg-type]
    assert found.names == ("u", "v")
    assert found.classes == ("a", "b")
    assert found.columns == ("p", "q")
    np.testing.assert_array_equal(found.values[0], [[1, 1], [2, 2], [3, 4]])
    np.testing.assert_array_equal(found.values[1], [[10, 3], [np.nan, 5]])
    assert found.roles == {"id": "id", "label": "label", "time": "time", "group": None}


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda t: t.drop(columns="id"), {}, "has no column called id or sample: name the column of samples with id="),
        (lambda t: t.drop(columns="label"), {}, "has no column called label or class"),
        (lambda t: t.drop(columns=["p", "q"]), {}, "has no column of numbers beside 'id', 'label', 'time'"),
        (lambda t: t.assign(label=list("abbab")), {}, "sample 'u' is of several classes (a, b)"),
        (lambda t: t.assign(time=[2, 1, 1, 3, 2]), {}, "sample 'u': the column 'time' must hold times that rise"),
        (lambda t: t.assign(label=["a", None, "b", "a", "b"]), {}, "column 'label': row 2 is empty"),
        (lambda t: t.assign(p=list("12x45")), {}, "column 'p': row 3 holds 'x', which is not a number"),
        (lambda t: t, {"id": "label"}, "id, label, time and group must be different columns"),
    ],
)
def test_bad_tables_are_refused(tmp_path, change, options, says):
    change(long_table()).to_csv(tmp_path / "long.csv", index=False)
    with pytest.raises(InvalidValue) as found:
        read_samples(tmp_path / "long.csv", **options)
    assert says in str(found.value)
    assert "long.csv" in str(found.value)


def test_options_that_do_not_fit(tmp_path):
    with pytest.raises(UnknownName, match="unknown group column 'person'"):
        read_samples(long_table(), group="person")
    with pytest.raises(InvalidType, match=r"label name columns of a table: .*x\.ts' has none"):
        read_samples(ts(tmp_path, HEADER + LINES), label="a")
    with pytest.raises(InvalidValue, match=r"there is no file 'nowhere\.ts'"):
        read_samples("nowhere.ts")


def test_the_embedded_days_are_whole_and_know_their_months():
    found = read_embedded()
    assert {v.shape for v in found.values} == {(24, 6)}
    assert set(found.classes or ()) == set(PAIRS)
    by_name = dict(zip(found.names, found.classes or (), strict=True))
    assert by_name["2013-02-28"] == "Jan-Feb"
    assert by_name["2013-03-01"] == "Mar-Apr"
    assert by_name["2013-12-29"] == "Nov-Dec"
    weeks = dict(zip(found.names, found.groups or (), strict=True))
    assert weeks["2013-01-02"] == weeks["2013-01-07"] != weeks["2013-01-08"]
