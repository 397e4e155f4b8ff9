"""The token store: one stream of token numbers in a file that is mapped into memory, and where documents begin in it.

A document is written as its opening token (:attr:`~foveate.tasks.language.tokenise.Tokeniser.end_of_document`) and its
own; where there are several, the same token closes the last one. So every token of a document but the opening one is
the next one of some other, and where a document ends is predicted like all else.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from ...errors import InvalidValue
from ...files import replace
from .read import Document
from .tokenise import ByteTokeniser, Tokeniser

TOKENS, WIDTHS = "tokens.bin", "widths.bin"
#: Widest token, in bytes of text.
_WIDEST = 2**16 - 1
_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class TokenStore:
    """A stream of tokens.

    Attributes:
        tokens: uint8, uint16 or uint32 ``(length,)``, the smallest that holds the vocabulary.
        widths: uint16 ``(length,)``: UTF-8 bytes that each token stands for, 0 for ends of documents; None: 1 for all
            others (tokens are bytes).
        starts: int64 ``(documents,)``: where the opening token of each document stands.
        end_of_document: number of that token.
    """

    tokens: np.ndarray
    widths: np.ndarray | None
    starts: np.ndarray
    end_of_document: int

    @property
    def dtype(self) -> str:
        """Name of the tokens' type."""
        return self.tokens.dtype.name

    def __len__(self) -> int:
        return len(self.tokens)

    def text_bytes(self, begin: int, end: int) -> int:
        """Bytes of text in the tokens ``begin ... end - 1``."""
        if self.widths is not None:
            return int(self.widths[begin:end].sum(dtype=np.int64))
        closed = np.searchsorted(self.starts, [begin, end])
        last = end == len(self) and len(self.starts) > 1 and end > begin  # the closing token
        return int(end - begin - (closed[1] - closed[0]) - last)

    def arranged(self, order: Sequence[int]) -> TokenStore:
        """The same documents in another order."""
        if list(order) == list(range(len(self.starts))):
            return self
        ends = np.append(self.starts[1:], len(self) - 1)  # without the closing token
        with _Writer(self.tokens.dtype, self.widths is not None) as writer:
            for i in order:
                part = slice(int(self.starts[i]), int(ends[i]))
                writer.add(self.tokens[part], None if self.widths is None else self.widths[part])
            writer.add(self.tokens[-1:], None if self.widths is None else self.widths[-1:])
            tokens, widths = writer.done()
        lengths = (ends - self.starts)[np.asarray(order)]
        return TokenStore(tokens, widths, np.append(0, lengths.cumsum()[:-1]), self.end_of_document)

    def write(self, folder: Path) -> None:
        """Write the files, each whole or not at all."""
        for name, values in ((TOKENS, self.tokens), (WIDTHS, self.widths)):
            if values is not None:
                replace(folder / name, lambda path, values=values: _write(path, values))

    @classmethod
    def read(cls, folder: Path, dtype: str, length: int, widths: bool, starts: np.ndarray, end: int) -> Self:
        """Map what :meth:`write` wrote.

        Raises:
            InvalidValue: a file is missing, or has another length.
        """
        tokens = _mapped(folder / TOKENS, np.dtype(dtype), length)
        return cls(tokens, _mapped(folder / WIDTHS, np.dtype(np.uint16), length) if widths else None, starts, end)


@dataclass(slots=True)
class Tally:
    """What was read on the way: ``names``, ``digests`` (SHA-256) of the documents kept, how many were ``empty``."""

    names: list[str]
    digests: list[bytes]
    empty: int = 0


def build(documents: Iterable[Document], tokeniser: Tokeniser) -> tuple[TokenStore, Tally]:
    """Tokenise documents into temporary files; what fits in memory never reaches the disk but by the system's choice.

    Returns:
        The store, in the order of the documents, empty ones left out, and a tally.

    Raises:
        InvalidValue: a text that the tokeniser has no tokens for; the message names the document.
    """
    end, bytewise = tokeniser.end_of_document, isinstance(tokeniser, ByteTokeniser)
    dtype = next(d for d in (np.uint8, np.uint16, np.uint32) if end <= np.iinfo(d).max)
    opening = np.array([end])
    starts: list[int] = []
    tally = Tally([], [])
    with _Writer(np.dtype(dtype), not bytewise) as writer:
        for document in documents:
            if not document.text.strip():
                tally.empty += 1
                continue
            try:
                tokens, widths = tokeniser.tokens(document.text)
            except InvalidValue as error:
                raise InvalidValue(f"{document.name!r}: {error}") from error
            if widths.max(initial=0) > _WIDEST:
                raise InvalidValue(f"{document.name!r}: a token of {tokeniser.name} is longer than {_WIDEST} bytes.")
            starts.append(writer.count)
            tally.names.append(document.name)
            tally.digests.append(hashlib.sha256(document.text.encode()).digest())
            writer.add(opening, None if bytewise else opening * 0)
            writer.add(tokens, None if bytewise else widths)
        if len(starts) > 1:
            writer.add(opening, None if bytewise else opening * 0)
        made = writer.done()
    return TokenStore(*made, np.array(starts, np.int64), end), tally


class _Writer:
    """Appends to temporary files that vanish with the last map of them."""

    def __init__(self, dtype: np.dtype[Any], widths: bool) -> None:
        self.dtype, self.count = dtype, 0
        self._tokens: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed on leaving)
        self._widths: IO[bytes] | None = tempfile.TemporaryFile() if widths else None  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._tokens.close()
        if self._widths is not None:
            self._widths.close()

    def add(self, tokens: np.ndarray, widths: np.ndarray | None) -> None:
        self._tokens.write(np.ascontiguousarray(tokens, self.dtype).data)
        if self._widths is not None and widths is not None:
            self._widths.write(np.ascontiguousarray(widths, np.uint16).data)
        self.count += len(tokens)

    def done(self) -> tuple[np.ndarray, np.ndarray | None]:
        tokens = _map_open(self._tokens, self.dtype, self.count)
        return tokens, None if self._widths is None else _map_open(self._widths, np.dtype(np.uint16), self.count)


def _map_open(file: IO[bytes], dtype: np.dtype[Any], count: int) -> np.ndarray:
    file.flush()
    return np.memmap(file, dtype, "r", shape=(count,)) if count else np.zeros(0, dtype)


def _write(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as file:
        for begin in range(0, len(values), _AT_ONCE):
            file.write(np.ascontiguousarray(values[begin : begin + _AT_ONCE]).data)


def _mapped(path: Path, dtype: np.dtype[Any], length: int) -> np.ndarray:
    size = os.path.getsize(path) if path.is_file() else -1
    if size != length * dtype.itemsize:
        state = "is missing" if size < 0 else f"has {size} bytes instead of {length * dtype.itemsize}"
        raise InvalidValue(f"{path} {state}: the prepared data is damaged; prepare it again in another folder.")
    return np.memmap(path, dtype, "r", shape=(length,))
