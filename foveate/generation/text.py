"""Between text and tokens: bytes, stop texts that come in pieces, and what a terminal may be shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from ..errors import InvalidValue

#: Bytes; a vocabulary with one more token has the end of a document.
BYTES = 256


class Decoder(Protocol):
    """Makes text of tokens as they come. A character whose tokens have not all come is not text yet."""

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        ...


class Codec(Protocol):
    """Text to tokens and back: what a packaged language model offers too.

    Attributes:
        end_of_document: the token between documents; None: there is none.
    """

    end_of_document: int | None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        ...

    def decoder(self) -> Decoder:
        """A decoder at the beginning of a text."""
        ...


class Bytes:
    """UTF-8 bytes as tokens.

    Args:
        vocabulary: 256, or 257 with a token for the end of a document.

    Raises:
        InvalidValue: another vocabulary.
    """

    def __init__(self, vocabulary: int) -> None:
        if vocabulary not in (BYTES, BYTES + 1):
            raise InvalidValue(f"vocabulary={vocabulary} is not possible for bytes: they need 256, or 257 with an end.")
        self.end_of_document = BYTES if vocabulary > BYTES else None

    def encode(self, text: str) -> list[int]:
        """The bytes of a text.

        Raises:
            InvalidValue: it has a character that UTF-8 has not (half of a surrogate pair).
        """
        try:
            return list(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InvalidValue(f"character {error.start} of the prompt is no character of UTF-8.") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """The text; bytes that are none of UTF-8 come out as U+FFFD, an end of a document as nothing."""
        return bytes(t for t in tokens if t < BYTES).decode("utf-8", errors="replace")

    def decoder(self) -> ByteDecoder:
        """A decoder at the beginning of a text."""
        return ByteDecoder()


class ByteDecoder:
    """Whole characters of bytes that come one by one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this byte completes: none, one, or one with U+FFFD for broken ones before it."""
        return self._decoder.decode(bytes([token])) if token < BYTES else ""


class StopTexts:
    """Ends a text where one of several strings begins, though it comes in pieces.

    What may be the beginning of a stop text is held back until it is known.

    Args:
        stops: strings, none of them empty.

    Raises:
        InvalidValue: an empty one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise InvalidValue("a stop text is empty: every text would end at once.")
        self._stops, self._held = tuple(stops), ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take a piece; returns what is certain to belong to the text, and whether it has ended."""
        self._held += text
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first, whatever the pieces were
            before, self._held = self._held[: min(found)[1]], ""
            return before, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain, False

    def finish(self) -> str:
        """What was held back when the text ended by itself."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Characters at the end of what is held that begin the stop text."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)


def harmless(text: str) -> str:
    """The text with control characters as signs, so that a terminal does nothing but show it."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or not (code < 0x20 or 0x7F <= code < 0xA0):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"
