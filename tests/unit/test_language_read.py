"""Reading text: kinds of files, names, what is refused."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.tasks.language.read import Documents

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def read(source, **options):
    return [(d.name, d.text) for d in Documents(source, **options)]


def test_a_text_is_one_document_as_it_stands(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\ntwo\xc3\xa9\x00")
    assert read(tmp_path / "a.txt") == [("a.txt", "one\r\n\ntwoé\x00")]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert read(str(tmp_path / "b.txt.gz")) == [("b.txt.gz", "packed")]


def test_a_folder_is_read_by_name_and_by_kind(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "z.md").write_text("last")
    (tmp_path / "b" / "x.txt").write_text("in")
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n\n{"text": null, "more": 3}\n{"text": "zwei\\u2028"}')
    pq.write_table(pa.table({"text": ["p", None], "n": [1, 2]}), tmp_path / "c.parquet")
    for hidden in (tmp_path / ".hidden", tmp_path / ".git" / "HEAD"):
        hidden.write_bytes(b"\xff")
    assert read(tmp_path) == [
        ("a.jsonl:1", "1"),
        ("a.jsonl:3", ""),
        ("a.jsonl:4", "zwei\u2028"),
        ("b/x.txt", "in"),
        ("c.parquet:0", "p"),
        ("c.parquet:1", ""),
        ("z.md", "last"),
    ]


def test_other_columns_and_encodings(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "é", "text": "no"}', encoding="utf-16")
    assert read(tmp_path / "a.jsonl", column="body", encoding="utf-16") == [("a.jsonl:1", "é")]
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    assert read(tmp_path / "a.txt", encoding="latin-1") == [("a.txt", "é")]


def test_texts_and_the_embedded_book():
    assert read(["a", "", "b"]) == [("text 0", "a"), ("text 1", ""), ("text 2", "b")]
    ((name, text),) = read(None)
    assert name == "embedded text"
    assert text.startswith(" ")
    assert text.count("Alice") > 300


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=5))
def test_json_lines_come_back(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("lines") / "a.ndjson"
    file.write_text("\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts), encoding="utf-8", newline="")
    assert [t for _, t in read(file)] == texts


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"good\xe9bad", "'a.txt' is not utf-8: byte 4 (0xe9) belongs to no character; repair the file"),
        ("a.txt", "né".encode()[:-1], "'a.txt' is not utf-8: byte 1 (0xc3) belongs to no character"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "'a.jsonl' is not utf-8: byte 24 (0xff)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "'a.jsonl', line 2 is not JSON"),
        ("a.jsonl", b'"text"', "'a.jsonl', line 1 is not an object"),
        ("a.jsonl", b'{"text": 3}', "'a.jsonl', line 1: 'text' is a int, not a text"),
        ("a.jsonl", b'{"text": "\\ud800"}', "'a.jsonl', line 1: 'text' holds half a surrogate pair"),
        ("a.txt.gz", b"no gzip", "is not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"cut off", mtime=0)[:-6], "is not a whole gzip file"),
        ("a.parquet", b"PAR1 no", "'a.parquet' is not a Parquet file, or it is damaged"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidValue) as found:
        read(tmp_path / name)
    assert says in str(found.value)
    assert str(found.value).count("\n") == 0


def test_columns_that_are_not_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"txt": "a"}')
    with pytest.raises(UnknownName, match=r"unknown column 'text': did you mean 'txt'\?.*line 1.*--column"):
        read(tmp_path / "a.jsonl")
    pq.write_table(pa.table({"body": ["p"], "n": [1]}), tmp_path / "c.parquet")
    with pytest.raises(UnknownName, match=r"unknown column 'text': known: body, n\..*c\.parquet.*--column"):
        read(tmp_path / "c.parquet")
    with pytest.raises(InvalidValue, match="row 0: 'n' is a int, not a text"):
        read(tmp_path / "c.parquet", column="n")
    (tmp_path / "b.txt").write_text("a")
    with pytest.raises(InvalidValue, match="column='x' is not possible"):
        read(tmp_path / "b.txt", column="x")


def test_sources_and_options_that_are_refused(tmp_path):
    with pytest.raises(InvalidValue, match="there is no file 'gone'"):
        read("gone")
    with pytest.raises(InvalidValue, match="holds no file to read"):
        read(tmp_path)
    with pytest.raises(InvalidType, match="source is a int"):
        read(3)
    with pytest.raises(InvalidType, match="text 1 of source is a int"):
        read(["a", 1])
    for encoding in ("nonsense", "hex"):
        with pytest.raises(InvalidValue, match=f"encoding='{encoding}' is not possible"):
            read(["a"], encoding=encoding)
    with pytest.raises(InvalidType, match="encoding=3"):
        read(["a"], encoding=3)
    with pytest.raises(InvalidType, match="column=3"):
        read(["a"], column=3)
