"""Reading series: what is read, bit for bit, and what is refused, in which words."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError, InvalidType, InvalidValue, MissingExtra, UnknownName
from foveate.tasks.forecast.read import clean, read_series
from foveate.tasks.forecast.source import read_source


def table(rows: int = 48, freq: str = "h", **columns: object) -> pd.DataFrame:
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=rows, freq=freq)})
    values = columns or {"a": np.arange(rows) * 1.5, "b": np.sin(np.arange(rows))}
    return frame.assign(**values)


@pytest.fixture
def csv(tmp_path):
    def write(text: str | bytes, name: str = "t.csv") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def refusal(kind: type[Exception], source: object, **options: object) -> str:
    with pytest.raises(kind) as caught:
        read_series(source, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?", "]'", ")")), text
    return text


# What is read


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=3, max_size=3),
        min_size=2,
        max_size=30,
    ).filter(lambda rows: all(any(r[c] is not None for r in rows) for c in range(3))),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_a_written_table_is_read_back_bit_for_bit(values, separator, newline, bom, tmp_path_factory):
    lines = [separator.join(["date", "x", "y y", "z"])]
    for day, row in enumerate(values, start=1):
        lines.append(separator.join([f"2024-01-{day:02d}", *("" if v is None else repr(v) for v in row)]))
    path = tmp_path_factory.mktemp("round") / "t.csv"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + newline.join(lines).encode())
    read = read_series(path)
    expected = np.array([[np.nan if v is None else v for v in row] for row in values])
    np.testing.assert_array_equal(read.series[0].values.view(np.int64), expected.view(np.int64))
    assert read.columns == ("x", "y y", "z")
    assert read.freq == "D"
    assert read.time == "date"


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_told_by_their_first_bytes(csv, pack):
    frame = table()
    read = read_series(csv(pack(frame.to_csv(index=False).encode()), "t.data"))
    np.testing.assert_array_equal(read.series[0].values[:, 0], frame["a"])


def test_decimal_commas_and_a_blank_last_line(csv):
    rows = "".join(f"{d:02d}.01.2024;{d},5;-1,25\n" for d in range(1, 31))
    read = read_series(csv("Datum;x;y\n" + rows + "\n"))
    assert read.time == "Datum"
    assert read.freq == "D"
    np.testing.assert_array_equal(read.series[0].values[:, 0], np.arange(1, 31) + 0.5)


@pytest.mark.parametrize("indexed", [False, True])
def test_parquet_equals_csv(tmp_path, indexed):
    frame = table(b=[None, *np.arange(47.0)], c=np.arange(48, dtype=np.int32))
    frame["d"] = pd.array([1, None] * 24, dtype="Int64")
    frame["flag"] = [True, False] * 24
    frame.to_csv(tmp_path / "t.csv", index=False)
    (frame.set_index("date") if indexed else frame).to_parquet(tmp_path / "t.parquet")
    one, two = read_series(tmp_path / "t.csv"), read_series(tmp_path / "t.parquet")
    assert one.columns == two.columns == ("b", "c", "d", "flag")
    np.testing.assert_array_equal(one.series[0].values, two.series[0].values)
    np.testing.assert_array_equal(one.series[0].times, two.series[0].times)
    assert one.sha256 != two.sha256


def test_a_data_frame_and_its_index(tmp_path):
    frame = table()
    whole, indexed = read_series(frame), read_series(frame.set_index("date"))
    np.testing.assert_array_equal(whole.series[0].times, indexed.series[0].times)
    assert whole.sha256 == read_series(frame.copy()).sha256
    assert whole.sha256 != read_series(frame.assign(a=0.0)).sha256


def test_an_index_that_pandas_wrote(csv):
    frame = table()
    counted = read_series(csv(frame.to_csv()))
    assert counted.columns == ("a", "b")
    stamped = read_series(csv(frame.set_index("date").rename_axis(None).to_csv()))
    assert stamped.time == "Unnamed: 0"
    years = read_series(csv(",lynx\n" + "".join(f"{y},{y % 7}\n" for y in range(1821, 1900))))
    assert (years.freq, years.columns) == ("YS-JAN", ("lynx",))


def test_long_format_keeps_series_apart():
    one, two = table(10).assign(shop="n", sku=7), table(6).assign(shop="s", sku=8)
    two["date"] += pd.Timedelta("100h")
    stacked, mixed = pd.concat([one, two]), pd.concat([one, two]).sort_values("a", kind="stable")
    for frame in (stacked, mixed):
        read = read_series(frame, id="shop")
        assert [s.name for s in read.series] == ["n", "s"]
        assert [len(s.times) for s in read.series] == [10, 6]
        np.testing.assert_array_equal(read.series[1].values[:, 0], two["a"])
    assert [s.name for s in read_series(stacked, id="sku").series] == ["7", "8"]


def test_text_columns_are_left_out_with_a_note_and_extra_columns_are_not_looked_at():
    frame = table().assign(station="JFK", seen=pd.Timestamp("2024-02-02"))
    read = read_series(frame, time="date")
    assert read.columns == ("a", "b")
    assert [n for n in read.notes if "'station'" in n]
    assert read_series(frame.assign(bad=["1", "x"] * 24), time="date", columns=["b"]).columns == ("b",)


@pytest.mark.parametrize(
    ("texts", "first", "zone"),
    [
        (["2024-01-31T06:00Z", "2024-01-31T07:00Z"], "2024-01-31T06:00", 0),
        (["2024-01-31 06:00+02:00", "2024-01-31 07:00+02:00"], "2024-01-31T06:00", 120),
        (["2024-01-31 06:00:00 UTC", "2024-01-31 07:00:00 UTC"], "2024-01-31T06:00", 0),
        (["1/31/2024 6:00", "1/31/2024 7:00"], "2024-01-31T06:00", None),
        (["31/01/2024 06:00", "31/01/2024 07:00"], "2024-01-31T06:00", None),
        (["2024-01-31 06:00:00.250000", "2024-01-31 06:00:00.5"], "2024-01-31T06:00:00.25", None),
        (["2024-01", "2024-02"], "2024-01-01", None),
        ([2024, 2025], "2024-01-01", None),
        ([20240131, 20240201], "2024-01-31", None),
        ([1706680800, 1706684400], "2024-01-31T06:00", None),
        ([1706680800000, 1706684400000], "2024-01-31T06:00", None),
    ],
)
def test_time_stamps_in_many_forms(texts, first, zone):
    read = read_series(pd.DataFrame({"time": texts, "x": [1.0, 2.0]}))
    assert read.series[0].times[0] == np.datetime64(first)
    assert read.zone == zone


def test_a_named_zone_becomes_utc_and_day_first_is_found_by_order():
    local = pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    read = read_series(pd.DataFrame({"t": local, "x": np.arange(72.0)}))
    assert (read.zone, read.regular, read.inserted) == (0, True, 0)
    days = ["09/02/2024", "10/02/2024", "01/03/2024"]  # month first, they would run backwards
    assert read_series(pd.DataFrame({"t": days, "x": [1, 2, 3]})).series[0].times[0] == np.datetime64("2024-02-09")


def test_the_time_column_is_chosen_by_name_among_several():
    frame = table().assign(updated=pd.Timestamp("2024-05-05"))
    assert read_series(frame).time == "date"
    text = refusal(InvalidValue, frame.rename(columns={"date": "measured"}))
    assert "'measured', 'updated'" in text
    assert "time=" in text


# What is refused


def test_files_that_cannot_be_read(tmp_path, csv, monkeypatch):
    assert "no file 'gone.csv'" in refusal(InvalidValue, "gone.csv")
    assert "is a folder" in refusal(InvalidValue, tmp_path)
    assert "is empty" in refusal(InvalidValue, csv(""))
    assert "is empty" in refusal(InvalidValue, csv(" \n\n"))
    assert "is empty" in refusal(InvalidValue, csv(gzip.compress(b"")))
    assert "no rows" in refusal(InvalidValue, csv("date,x\n"))
    assert "neither text nor Parquet" in refusal(InvalidValue, csv(b"PK\x03\x04abc", "t.xlsx"))
    assert "line 2" in refusal(InvalidValue, csv("date,x\n2024-01-01,ü\n".encode("latin-1")))
    assert "broken compressed" in refusal(InvalidValue, csv(gzip.compress(b"date,x\n" * 99)[:-9]))
    assert "not a whole Parquet file" in refusal(InvalidValue, csv(b"PAR1abcPAR1", "t.parquet"))
    assert "source is a int" in refusal(InvalidType, 3)

    def denied(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    assert "Permission denied" in refusal(InvalidValue, "t.csv")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    table().to_parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "foveate[series]" in refusal(MissingExtra, tmp_path / "t.parquet")


def test_texts_that_are_no_table(csv):
    assert "no header" in refusal(InvalidValue, csv("1,2\n3,4\n"))
    assert "line 3 has 3 fields, 2 are expected" in refusal(InvalidValue, csv("date,x\n2024-01-01,1\n2024-01-02,1,2\n"))
    assert "its header has 2 fields, its first row 3" in refusal(InvalidValue, csv("x,y\n2024-01-01,1,2\n"))
    assert "two columns called 'x'" in refusal(InvalidValue, csv("date,x,x\n2024-01-01,1,2\n"))
    doubled = pd.DataFrame([[1, 2]], columns=["x", "x"])
    assert "two columns called 'x'" in refusal(InvalidValue, doubled)


def test_columns_that_hold_no_numbers():
    assert "row 3 holds 'oops'" in refusal(InvalidValue, table(3, a=[1, 2, "oops"]))
    assert "column 'a'" in refusal(InvalidValue, table(3, a=[1, 2, "oops"]))
    assert "row 2 is infinite" in refusal(InvalidValue, table(3, a=[1, -np.inf, 3]))
    assert "it has 'a'" in refusal(InvalidValue, table(3, a=["x", "y", "z"]))
    assert "it has nothing" in refusal(InvalidValue, table(3)[["date"]])
    assert "row 1 holds 'x'" in refusal(InvalidValue, table(3, a=["x", "y", "z"]), columns=["a"])
    assert "it cannot be forecast" in refusal(InvalidValue, table(3), columns=["date"])
    assert "did you mean 'b'" in refusal(UnknownName, table(3, bb=[1, 2, 3], b=[1, 2, 4]), columns=["B"])


def test_time_stamps_that_cannot_be_used():
    frame = table(4)
    stamps = frame["date"].dt.strftime("%Y-%m-%d %H:%M")

    def changed(row: int, text: object) -> pd.DataFrame:
        return frame.assign(date=[text if i == row else s for i, s in enumerate(stamps)])

    assert "row 3 holds 'yesterday'" in refusal(InvalidValue, changed(2, "yesterday"))
    assert "row 1 holds 'soon'" in refusal(InvalidValue, changed(0, "soon"), time="date")
    assert "row 2 has no time stamp" in refusal(InvalidValue, changed(1, None))
    assert "2024-01-01 stands in rows 1 and 3" in refusal(InvalidValue, changed(2, stamps[0]))
    assert "row 2 (2023-01-01) is earlier than row 1" in refusal(InvalidValue, changed(1, "2023-01-01 00:00"))
    assert "oldest first" in refusal(InvalidValue, frame.iloc[::-1])
    assert "different time zones" in refusal(InvalidValue, changed(2, stamps[2] + "Z"))
    zones = frame.assign(date=[f"{s}+0{1 + (i > 1)}:00" for i, s in enumerate(stamps)])
    assert "row 3 ('2024-01-01 02:00+02:00')" in refusal(InvalidValue, zones)
    assert "month/day or day/month" in refusal(InvalidValue, frame.assign(date=[f"01/0{d}/2024" for d in (2, 3, 4, 5)]))
    assert "no column of time stamps among 'a', 'b'" in refusal(InvalidValue, frame[["a", "b"]])
    assert "no column of time stamps" in refusal(InvalidValue, frame.assign(date=["10:00", "11:00", "12:00", "13:00"]))
    assert "did you mean 'date'" in refusal(UnknownName, frame, time="dat")
    assert "row 1 holds '0', which is not a time stamp" in refusal(InvalidValue, frame.assign(n=range(4)), time="n")
    assert "has one row" in refusal(InvalidValue, table(1))


def test_repeated_stamps_suggest_the_id_column():
    frame = pd.concat([table(4).assign(shop="n"), table(4).assign(shop="s")])
    text = refusal(InvalidValue, frame)
    assert "stands in rows 1 and 5" in text
    assert "id= (such as 'shop')" in text
    again = pd.concat([frame, frame.iloc[-1:]])
    assert "series 's': 2024-01-01T03:00:00 stands in rows 8 and 9: keep one row per time." in refusal(
        InvalidValue, again, id="shop"
    )


def test_bad_id_columns():
    frame = table(4).assign(shop=["n", None, "n", "s"])
    assert "row 2 has no id" in refusal(InvalidValue, frame, id="shop")
    assert "did you mean 'shop'" in refusal(UnknownName, frame, id="shops")
    assert "both name the column 'date'" in refusal(InvalidValue, frame, time="date", id="date")
    assert "has one row per series" in refusal(InvalidValue, table(2).assign(shop=["n", "s"]), id="shop")


CELLS = ["", "1", "2.5", "nan", "inf", "1e400", "x", "12:00", "True", "1,5", '"a', "2024", "\r", "\f", "9" * 20]
STAMPS = ["2024-01-01", "2024-01-02 03:00", "2024-01-01T00:00Z", "01/02/2024"]


@settings(max_examples=150, deadline=None)
@given(
    head=st.lists(st.sampled_from(["date", "x", "id", "", "year", "Unnamed: 0"]), max_size=4),
    rows=st.lists(st.lists(st.sampled_from(CELLS + STAMPS) | st.text(max_size=4), max_size=4), max_size=8),
    separator=st.sampled_from([",", ";", "\t"]),
    options=st.sampled_from([{}, {"id": "id"}, {"time": "x"}, {"freq": "D"}]),
)
def test_whatever_stands_in_a_file_one_sentence_says_what_is_wrong(head, rows, separator, options, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes("\n".join(separator.join(r) for r in [head, *rows]).encode("utf-8", "replace"))
    try:
        read_series(path, **options)
        said = "nothing is wrong"
    except FoveateError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


# Steps


def test_missing_rows_are_put_back_and_irregular_ones_are_reported():
    frame = table(48)
    gaps = read_series(frame.drop(index=[5, 6, 20]))
    assert (gaps.freq, gaps.regular, gaps.inserted, len(gaps.series[0].times)) == ("h", True, 3, 48)
    assert np.flatnonzero(np.isnan(gaps.series[0].values[:, 0])).tolist() == [5, 6, 20]
    np.testing.assert_array_equal(gaps.series[0].times, frame["date"].to_numpy().astype("datetime64[us]"))
    jitter = frame.assign(date=frame["date"] + pd.to_timedelta([i % 2 for i in range(48)], unit="min"))
    uneven = read_series(jitter.iloc[[0, 2, 4, 5, 6, 8]])
    assert (uneven.regular, uneven.inserted, uneven.uneven) == (False, 0, 2)
    assert "irregular: 2 differ from the usual one (2h)" in " ".join(uneven.notes)


def test_resampling_takes_means_and_leaves_empty_steps_missing():
    frame = table(48).drop(index=range(24, 36))
    read = read_series(frame, freq="6h")
    expected = [frame["a"][0:6].mean(), frame["a"][6:12].mean()]
    np.testing.assert_allclose(read.series[0].values[:2, 0], expected)
    assert np.isnan(read.series[0].values[:, 0]).tolist() == [False] * 4 + [True] * 2 + [False] * 2
    assert (read.freq, read.regular, read.resampled) == ("6h", True, True)
    same = read_series(frame, freq="h")
    assert (same.inserted, len(same.series[0].times)) == (12, 48)
    assert "too fine" in refusal(InvalidValue, frame, freq="s")


@pytest.mark.parametrize("freq", ["H", "xyz", "", "0h", "-1D", "ns", "SME", "bh"])
def test_frequencies_that_are_none(freq):
    assert f"freq={freq!r} is not possible" in refusal(InvalidValue, table(), freq=freq)


def test_a_frequency_that_is_no_text():
    assert "freq is a int" in refusal(InvalidType, table(), freq=5)


def test_the_grid_of_an_earlier_table_is_demanded():
    assert read_series(table(3).drop(index=1), grid="h").inserted == 1
    assert "are 'D', not 'h'" in refusal(InvalidValue, table(9, "D"), grid="h")


def test_reading_twice_is_not_needed():
    raw = read_source(table())
    assert clean(raw).columns == clean(raw, columns=["a", "b"]).columns


def test_a_million_cells_are_read_in_seconds(tmp_path):
    frame = table(20_000, **{f"c{i}": np.random.default_rng(i).normal(size=20_000) for i in range(10)})
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False)
    (tmp_path / "t.csv").write_text(buffer.getvalue())
    np.testing.assert_array_equal(read_series(tmp_path / "t.csv").series[0].values, frame.iloc[:, 1:].to_numpy())
