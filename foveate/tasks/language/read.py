"""From what the user names (a text file, a folder, JSON lines, Parquet, texts, nothing) to documents of text.

The name's ending tells the kind of a file: ``.jsonl`` and ``.ndjson`` hold a document in each line, ``.parquet`` one in
each row, anything else is one document; ``.gz`` behind it is unpacked. Bytes that are not of the encoding are refused,
never replaced: a score per byte would be of another text.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InvalidType, InvalidValue, missing_extra, unknown_name

#: The text that ships with foveate: Alice's Adventures in Wonderland; see the README beside it.
EMBEDDED = Path(__file__).parent / "embedded" / "alice.txt.gz"
LINES, TABLES = (".jsonl", ".ndjson"), (".parquet", ".pq")
#: The column of tables and JSON lines that is read unless another is named.
COLUMN = "text"


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Attributes:
        name: file, and line or row in it; for records and messages.
        text: what it says; a byte order mark in front is left out.
    """

    name: str
    text: str


class Documents:
    """Documents of a source, read anew in each iteration, empty ones included.

    Args:
        source: path of a file or folder, texts, or None for the embedded text. Of a folder all files are read, those in
            folders below included, by name; hidden ones are left out.
        column: of tables and JSON lines, refused where there are none; None: ``usual``.
        encoding: of text files and JSON lines.
        usual: the column that is read unless another is named.

    Raises:
        InvalidType: ``source`` or an option is something else.
        InvalidValue: there is no such file, a folder without any, or an unknown encoding.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str] | None,
        *,
        column: str | None = None,
        encoding: str = "utf-8",
        usual: str = COLUMN,
    ) -> None:
        self.encoding, self.column = _text_encoding(encoding), _named(column) or usual
        self._texts: list[str] | None = None
        self._files: list[Path] = []
        if isinstance(source, str | Path):
            self.label, self._root = str(source), Path(source)
            self._files = _files(self._root, self.label)
        elif source is None:
            self.label, self._root, self._files = "embedded text", EMBEDDED, [EMBEDDED]
        else:
            self.label, self._texts = "texts", _checked(source)
        if column is not None and not any(kind_of(file) in LINES + TABLES for file in self._files):
            raise InvalidValue(f"column={column!r} is not possible: {self.label!r} has no table and no JSON lines.")

    def __iter__(self) -> Iterator[Document]:
        if self._texts is not None:
            yield from (Document(f"text {i}", text) for i, text in enumerate(self._texts))
        for file in self._files:
            kind = kind_of(file)
            if kind in TABLES:
                yield from self._table(file)
            elif kind in LINES:
                yield from self._lines(file)
            else:
                yield Document(self._name(file), self._decoded(read_bytes(file), self._name(file)))

    def _name(self, file: Path) -> str:
        if self.label == "embedded text":
            return self.label
        return file.name if file == self._root else file.relative_to(self._root).as_posix()

    def _decoded(self, raw: bytes, name: str) -> str:
        try:
            text = raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise InvalidValue(
                f"{name!r} is not {self.encoding}: byte {error.start} (0x{raw[error.start]:02x}) belongs to no "
                f"character; repair the file, or name its encoding with --encoding."
            ) from None
        return text.removeprefix("\ufeff")

    def _lines(self, file: Path) -> Iterator[Document]:
        name = self._name(file)
        for number, line in enumerate(self._decoded(read_bytes(file), name).split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{name!r}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InvalidValue(f"{where} is not JSON ({error}).") from None
            if not isinstance(record, dict):
                raise InvalidValue(f'{where} is not an object: {{"{self.column}": "..."}} in each line is read.')
            if self.column not in record:
                hint = f"{where}: name the one with the text with --column."
                raise unknown_name("column", self.column, map(str, record), hint)
            yield Document(f"{name}:{number}", _text(record[self.column], where, self.column))

    def _table(self, file: Path) -> Iterator[Document]:
        name = self._name(file)
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise missing_extra("pyarrow", "series", "reading Parquet") from None
        try:
            table = pq.ParquetFile(file)
            known = table.schema_arrow.names
            if self.column not in known:
                hint = f"{name!r}: name the one with the text with --column."
                raise unknown_name("column", self.column, known, hint)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[self.column]):
                for value in batch.column(0).to_pylist():
                    yield Document(f"{name}:{row}", _text(value, f"{name!r}, row {row}", self.column))
                    row += 1
        except (pa.ArrowException, OSError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise InvalidValue(f"{name!r} is not a Parquet file, or it is damaged ({said}).") from error


def kind_of(file: Path) -> str:
    """The ending that tells a file's kind, ``.gz`` left out, in lower case."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_bytes(file: Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in ``.gz``.

    Raises:
        InvalidValue: it cannot be read, or is no whole gzip file.
    """
    try:
        raw = file.read_bytes()
        return gzip.decompress(raw) if file.suffix.lower() == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidValue(f"{str(file)!r} is not a whole gzip file ({error}): pack it again.") from error
    except OSError as error:
        raise InvalidValue(f"{str(file)!r} cannot be read ({error.strerror}): check its permissions.") from error


def _files(root: Path, label: str) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise InvalidValue(f"there is no file {label!r}: check the path.")
    found = [f for f in root.rglob("*") if f.is_file()]
    kept = [f for f in found if not any(part.startswith(".") for part in f.relative_to(root).parts)]
    if not kept:
        raise InvalidValue(f"the folder {label!r} holds no file to read: name one with text files.")
    return sorted(kept, key=lambda f: f.relative_to(root).as_posix())


def _checked(source: Any) -> list[str]:
    if not isinstance(source, Sequence) or isinstance(source, bytes):
        raise InvalidType(f"source is a {type(source).__name__}: it must be a path, a list of texts, or None.")
    for i, text in enumerate(source):
        if not isinstance(text, str):
            raise InvalidType(f"text {i} of source is a {type(text).__name__}: texts are str.")
    return list(source)


def _text(value: Any, where: str, column: str) -> str:
    """A value of a column; nothing is no text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidValue(f"{where}: {column!r} is a {type(value).__name__}, not a text.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidValue(f"{where}: {column!r} holds half a surrogate pair, which is no character: repair it.")
    return value


def _text_encoding(encoding: Any) -> str:
    if not isinstance(encoding, str):
        raise InvalidType(f"encoding={encoding!r} is not possible: a name such as utf-8 or latin-1 is needed.")
    try:
        found = codecs.lookup(encoding)
        "".encode(found.name)  # refuses codecs that are not of text
    except (LookupError, ValueError):
        raise InvalidValue(
            f"encoding={encoding!r} is not possible: Python knows none of this name; utf-8, utf-16 or latin-1 is usual."
        ) from None
    return found.name


def _named(column: Any) -> str | None:
    if column is not None and not (isinstance(column, str) and column):
        raise InvalidType(f"column={column!r} is not possible: the name of a column is needed.")
    return column
