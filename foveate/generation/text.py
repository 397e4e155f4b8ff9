"""Between tokens and a reader: texts that end at stop texts, and what a terminal may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import InvalidValue
from ..tasks.language.tokenise import Decoder


class Codec(Protocol):
    """Text to tokens and back: a packaged language model, or :class:`~foveate.generation.open.Tokens`."""

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text."""
        ...

    def decoder(self) -> Decoder:
        """A decoder for a stream of tokens: a character comes when it is whole."""
        ...


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
