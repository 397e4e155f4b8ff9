"""From text to token numbers and back: bytes, characters, or a tokenizer of the Hugging Face kind.

Every tokeniser gives all text back, character for character; one that does not (it lowers letters, or knows no token
for some) is refused on the data, because a score per byte would then be of another text. The token that stands between
documents is the last of the vocabulary and never comes from text.
"""

from __future__ import annotations

import abc
import codecs
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import InvalidType, InvalidValue, missing_extra

#: Characters of a text that are tokenised at once; longer ones are cut behind a line break.
PIECE = 1 << 20
#: More tokens than any vocabulary in use has (2026: 262,144); a table with more is a damaged file.
MOST_TOKENS = 1 << 20
BYTES, CHARACTERS = "bytes", "characters"


class Decoder(abc.ABC):
    """Turns token numbers into text one by one; a character that takes several tokens comes with the last of them."""

    @abc.abstractmethod
    def push(self, token: int) -> str:
        """The characters that this token completes: perhaps none, perhaps several."""

    @abc.abstractmethod
    def flush(self) -> str:
        """What is left of a character that never became whole: a replacement character, or nothing."""


class Tokeniser(abc.ABC):
    """A vocabulary, and the way from text to it and back.

    Attributes:
        name: for records and messages.
        vocabulary: number of different tokens, with the one between documents.
    """

    name: str
    vocabulary: int

    @property
    def end_of_document(self) -> int:
        """Number of the token that stands before, between and behind documents: the last of the vocabulary."""
        return self.vocabulary - 1

    @property
    @abc.abstractmethod
    def plain(self) -> dict[str, Any]:
        """Plain values that :func:`from_plain` makes it anew from."""

    @abc.abstractmethod
    def tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token numbers of a text and the UTF-8 bytes that each stands for, whose sum is the text's.

        Returns:
            int64 ``(tokens,)`` and int64 ``(tokens,)``.

        Raises:
            InvalidValue: it has no tokens for all of the text.
        """

    @abc.abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token numbers; ends of documents are left out, bytes that are no character are replaced.

        Raises:
            InvalidValue: a number that is not in the vocabulary.
        """

    @abc.abstractmethod
    def decoder(self) -> Decoder:
        """A fresh decoder for one stream of tokens."""

    def known(self, tokens: Sequence[int]) -> list[int]:
        """The tokens without ends of documents, all of them in the vocabulary."""
        end = self.end_of_document
        for token in tokens:
            if not 0 <= token <= end:
                raise InvalidValue(f"token {token} is not in the vocabulary of {self.name}: numbers are 0 ... {end}.")
        return [int(token) for token in tokens if token != end]


class ByteTokeniser(Tokeniser):
    """A token for each byte of UTF-8: no text is foreign to it."""

    name, vocabulary = BYTES, 257

    @property
    def plain(self) -> dict[str, Any]:
        return {"kind": BYTES}

    def tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        found = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        return found, np.ones_like(found)

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(self.known(tokens)).decode(errors="replace")

    def decoder(self) -> Decoder:
        return _ByteDecoder(self)


class _ByteDecoder(Decoder):
    def __init__(self, tokeniser: ByteTokeniser) -> None:
        self._tokeniser = tokeniser
        self._inner = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._inner.decode(bytes(self._tokeniser.known([token])))

    def flush(self) -> str:
        return self._inner.decode(b"", final=True)


class CharacterTokeniser(Tokeniser):
    """A token for each character that the data has.

    Args:
        alphabet: those characters.
    """

    name = CHARACTERS

    def __init__(self, alphabet: str) -> None:
        self.alphabet = "".join(sorted(set(alphabet)))
        self._codes = _code_points(self.alphabet)
        self._sizes = np.array([len(c.encode()) for c in self.alphabet], np.int64)
        self.vocabulary = len(self.alphabet) + 1

    @property
    def plain(self) -> dict[str, Any]:
        return {"kind": CHARACTERS, "alphabet": self.alphabet}

    def tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        codes = _code_points(text)
        found = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        foreign = np.flatnonzero(self._codes[found] != codes)
        if len(foreign):
            character = text[int(foreign[0])]
            raise InvalidValue(
                f"the character {character!r} (number {int(foreign[0]) + 1} of the text) is none of the "
                f"{len(self.alphabet)} that the model was trained on: remove it, or train with --tokenizer bytes."
            )
        return found.astype(np.int64), self._sizes[found]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.alphabet[token] for token in self.known(tokens))

    def decoder(self) -> Decoder:
        return _CharacterDecoder(self)


class _CharacterDecoder(Decoder):
    def __init__(self, tokeniser: CharacterTokeniser) -> None:
        self._tokeniser = tokeniser

    def push(self, token: int) -> str:
        return self._tokeniser.decode([token])

    def flush(self) -> str:
        return ""


class JsonTokeniser(Tokeniser):
    """What a ``tokenizer.json`` describes.

    Args:
        text: the file's content.
        name: for records and messages.

    Raises:
        MissingExtra: the package tokenizers is not installed.
        InvalidValue: it is no such content, or has more than :data:`MOST_TOKENS` tokens.
    """

    def __init__(self, text: str, name: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise missing_extra("tokenizers", "llm", f"the tokenizer {name!r}") from None
        try:
            self._inner = Tokenizer.from_str(text)
        except Exception as error:  # the package raises nothing narrower
            said = str(error).splitlines()[0][:120]
            raise InvalidValue(f"{name!r} is not a tokenizer.json ({said}): name such a file or its folder.") from error
        self._inner.no_truncation()
        self._inner.no_padding()
        self.name, self._text = name, text
        numbers = self._inner.get_vocab(with_added_tokens=True).values()
        self.vocabulary = max(numbers, default=-1) + 2
        if self.vocabulary == 1:
            raise InvalidValue(f"the tokenizer {name!r} has no tokens: name another one.")
        if self.vocabulary > MOST_TOKENS:
            raise InvalidValue(
                f"the tokenizer {name!r} numbers its tokens up to {self.vocabulary - 2}: at most {MOST_TOKENS - 2} is "
                f"possible; check the file."
            )

    @property
    def plain(self) -> dict[str, Any]:
        return {"kind": "json", "name": self.name, "tokenizer": self._text}

    def tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._piece(piece) for piece in pieces(text)]
        none = np.zeros(0, np.int64)
        return tuple(np.concatenate([none, *(p[i] for p in parts)]) for i in (0, 1))  # type: ignore[return-value]

    def _piece(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = self._inner.encode(text, add_special_tokens=False)
        numbers = np.array(encoding.ids, np.int64)
        back = self._inner.decode(encoding.ids, skip_special_tokens=False)
        if back != text:
            raise InvalidValue(
                f"the tokenizer {self.name!r} does not give all text back ({_difference(text, back)}), and a score "
                f"would be of another text: take one that loses nothing (byte-level BPE), or bytes."
            )
        # A token ends where its last character does; tokens that share a character's bytes count it once.
        lengths = np.fromiter((len(c.encode()) for c in text), np.int64, len(text))
        reached = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        ends = np.array([end for _, end in encoding.offsets], np.int64)
        ends[-1:] = len(text)  # what a tokenizer leaves out of its offsets belongs to some token all the same
        widths = np.diff(reached[np.maximum.accumulate(ends)], prepend=0)
        return numbers, widths

    def decode(self, tokens: Sequence[int]) -> str:
        return self._inner.decode(self.known(tokens), skip_special_tokens=False)

    def decoder(self) -> Decoder:
        return _JsonDecoder(self)


class _JsonDecoder(Decoder):
    """Decodes the tokens since the last whole character behind those before it, which say how they are joined."""

    def __init__(self, tokeniser: JsonTokeniser) -> None:
        self._tokeniser = tokeniser
        self._before: list[int] = []
        self._open: list[int] = []

    def push(self, token: int) -> str:
        self._open += self._tokeniser.known([token])
        text = self._new()
        if text.endswith("\ufffd"):
            return ""
        self._before, self._open = self._open or self._before, []
        return text

    def flush(self) -> str:
        text = self._new()
        self._before, self._open = [], []
        return text

    def _new(self) -> str:
        before = self._tokeniser.decode(self._before)
        return self._tokeniser.decode([*self._before, *self._open])[len(before) :]


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most :data:`PIECE` characters, cut behind a line break where there is one."""
    begin = 0
    while begin < len(text):
        end = min(begin + PIECE, len(text))
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield text[begin:end]
        begin = end


def from_plain(values: Mapping[str, Any]) -> Tokeniser:
    """The tokeniser of :attr:`Tokeniser.plain`.

    Raises:
        InvalidType: it is of no kind that this version knows.
    """
    kind = values.get("kind")
    if kind == BYTES:
        return ByteTokeniser()
    if kind == CHARACTERS:
        return CharacterTokeniser(values["alphabet"])
    if kind == "json":
        return JsonTokeniser(values["tokenizer"], values["name"])
    raise InvalidType(f"kind={kind!r} of a tokeniser is not known to this version of foveate.")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _difference(text: str, back: str) -> str:
    """Where two texts begin to differ, in a few words."""
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    return f"{text[at : at + 12]!r} comes back as {back[at : at + 12]!r}"
