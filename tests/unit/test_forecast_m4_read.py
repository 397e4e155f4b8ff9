"""Reading series in M4's layout, and every sentence with which a broken file is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from foveate.errors import FoveateError, InvalidType
from foveate.tasks.forecast_m4.embedded import read_embedded
from foveate.tasks.forecast_m4.read import neighbour_of, read_ragged

TEXT = '"V1","V2","V3","V4","V5"\n"H1","1","2.5","-3e2","4"\n"H2",7,8,,\n"H3","5","","",""\n'


def written(tmp_path, text, name="Hourly-train.csv"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_quotes_blanks_and_lengths(tmp_path):
    found = read_ragged(written(tmp_path, TEXT))
    assert found.id == "V1"
    assert found.names == ("H1", "H2", "H3")
    assert [v.tolist() for v in found.values] == [[1, 2.5, -300, 4], [7, 8], [5]]
    assert found.label.endswith("Hourly-train.csv")


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace('"', ""),
        TEXT.replace('"', "").replace(",", ";"),
        TEXT.replace(",", "\t"),
        TEXT.replace("\n", "\r\n"),
        "\ufeff" + TEXT,
        TEXT.replace("8,,", "8,NA,NaN"),
        TEXT.replace("8,,", "8"),
        TEXT.replace('"H2",7', '\n"H2", 7'),
        TEXT.replace('"V1","V2","V3","V4","V5"', "id,1,2,3,4"),
    ],
)
def test_other_ways_of_writing_the_same(tmp_path, text):
    found = read_ragged(written(tmp_path, text))
    assert [v.tolist() for v in found.values] == [[1, 2.5, -300, 4], [7, 8], [5]]


def test_packed_parquet_and_frames(tmp_path):
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    frame = pd.read_csv(written(tmp_path, TEXT))
    frame.to_parquet(tmp_path / "m.parquet")
    for source in (tmp_path / "m.csv.gz", str(tmp_path / "m.parquet"), frame):
        found = read_ragged(source)
        assert found.names == ("H1", "H2", "H3")
        assert [v.tolist() for v in found.values] == [[1, 2.5, -300, 4], [7, 8], [5]]


def test_numbers_come_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    header = ",".join(f"V{i}" for i in range(201))
    found = read_ragged(written(tmp_path, f"{header}\nA," + ",".join(map(repr, values.tolist())) + "\n"))
    np.testing.assert_array_equal(found.values[0], values)


def test_the_id_may_stand_elsewhere(tmp_path):
    file = written(tmp_path, "a,name,b\n1,X,2\n3,Y,\n")
    for options in ({"id": "name"}, {"usual": "name"}):
        found = read_ragged(file, **options)
        assert (found.id, found.names) == ("name", ("X", "Y"))
        assert [v.tolist() for v in found.values] == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT.replace("8,,", ",8,"), "series 'H2': value 2 of 3 is missing: blanks may stand only behind the last"),
        (TEXT.replace("-3e2", "x1"), "series 'H1': value 3 is 'x1', which is not a number: correct it."),
        (TEXT.replace("-3e2", "inf"), "series 'H1': value 3 is 'inf', which is not a number"),
        (TEXT.replace('"H3","5"', '"H3",""'), "series 'H3' has no values: remove it."),
        (TEXT.replace('"H3"', '"H1"'), "has two series called 'H1': every series is one row."),
        (TEXT.replace('"H2"', '""'), "line 3 has no id: every series needs one."),
        (TEXT + "H4,1,2,3,4,5\n", "is not a table: its header has 5 fields, line 5 6."),
        ('"H1",605,586\n"H2",1,2\n', "has no header: its first line is a series; put the names of the columns there."),
        ('"H1",605\n"H2",1\n', "has no header"),
        ('"H1",605,606,607,,\n"H2",1,2,3,4,5\n', "has no header"),
        ("V1,V2\n", "has a header but no series: one row for each is needed."),
        ("", "is empty"),
        ("a\x00b", "is neither text nor Parquet"),
    ],
)
def test_broken_files_are_refused_in_one_sentence(tmp_path, text, says):
    with pytest.raises(FoveateError) as found:
        read_ragged(written(tmp_path, text))
    assert says in str(found.value)
    assert "Hourly-train.csv" in str(found.value)
    assert "\n" not in str(found.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FoveateError, match="there is no file"):
        read_ragged(tmp_path / "no.csv")
    with pytest.raises(FoveateError, match="is a folder"):
        read_ragged(tmp_path)
    with pytest.raises(FoveateError, match="unknown id column 'V9'"):
        read_ragged(written(tmp_path, TEXT), id="V9")
    with pytest.raises(InvalidType, match="source is a list"):
        read_ragged([1, 2])  # type: ignore[arg-type]


def test_the_neighbour(tmp_path):
    for train, test in (("Hourly-train.csv", "Hourly-test.csv"), ("X_TRAIN.csv.gz", "X_TEST.csv.gz")):
        assert neighbour_of(tmp_path / train) is None
        (tmp_path / test).write_text("x")
        assert neighbour_of(tmp_path / train) == tmp_path / test
    (tmp_path / "test.csv").write_text("x")
    assert neighbour_of(tmp_path / "trains.csv") is None
    assert neighbour_of(tmp_path / "Hourly-test.csv") is None


def test_the_embedded_series():
    found = read_embedded()
    assert len(found.names) == 36
    lengths = [len(v) for v in found.values]
    assert min(lengths) >= 600
    assert max(lengths) <= 744
    assert len(set(lengths)) > 1
    assert all(np.isfinite(v).all() and (v > 0).all() for v in found.values)
