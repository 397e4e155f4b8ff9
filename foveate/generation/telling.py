"""Telling what is written while it is written: texts on a screen one after the other, lines in a file as they end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import InvalidValue
from ..files import append_line
from .generate import Generation
from .text import Codec, StopTexts, harmless

#: Characters of a prompt that a terminal shows; a longer one is shown from here to its end.
_MOST_SHOWN = 600


class Screen:
    """Texts in their order: the first that has not ended is shown as it grows, what others write waits for its turn.

    Args:
        stream: where to; a terminal is shown control characters as signs, and the end of long prompts.
        prompts: shown before what is written; empty: they are not.
        count: texts to come; of several each has a heading.
    """

    def __init__(self, stream: TextIO, prompts: Sequence[str], count: int) -> None:
        self._stream, self._prompts, self._count = stream, prompts, count
        self._terminal = stream.isatty()
        self._waiting: list[list[str]] = [[] for _ in range(count)]
        self._ended = [False] * count
        self._now = -1

    def show(self, sample: int, piece: str, ended: bool) -> None:
        """Take a piece of a text, and whether it was the last."""
        if self._now < 0:
            self._begin(0)
        if ended:
            self._ended[sample] = True
        if sample != self._now:
            self._waiting[sample].append(piece)
            return
        self._write(piece)
        while self._now < self._count and self._ended[self._now]:
            self._stream.write("\n")
            self._begin(self._now + 1)
        self._stream.flush()

    def close(self) -> None:
        """End what was begun: the text that is shown, and the beginnings that wait."""
        for sample in range(max(self._now, 0), self._count):
            self.show(sample, "", True)

    def _begin(self, sample: int) -> None:
        self._now = sample
        if sample >= self._count:
            return
        if self._count > 1:
            self._stream.write("\n" if sample else "")
            self._styled(f"[{sample + 1} of {self._count}]", "bright_black")
            self._stream.write("\n")
        if self._prompts:
            prompt = self._prompts[sample]
            if self._terminal and len(prompt) > _MOST_SHOWN:
                prompt = f"\u2026{prompt[-_MOST_SHOWN:]}"
            self._styled(prompt, "bold")
        waiting, self._waiting[sample] = self._waiting[sample], []
        self._write("".join(waiting))

    def _styled(self, text: str, style: str) -> None:
        if not self._terminal:
            self._stream.write(text)
            return
        from rich.console import Console
        from rich.text import Text

        Console(file=self._stream).print(Text(harmless(text), style), end="", soft_wrap=True)

    def _write(self, text: str) -> None:
        self._stream.write(harmless(text) if self._terminal else text)


class Telling:
    """Follows a generation: makes text of its tokens, ends it at stop texts, shows it and keeps it.

    Args:
        run: not begun.
        codec: of its tokens.
        prompts: texts that it goes on from.
        stops: texts that end a text, and are not part of it.
        seed: of the first prompt.
        screen: where texts are shown; None: nowhere.
        file: JSON lines, one for each text when it has ended; an earlier file is replaced. None: none.

    Attributes:
        records: of all texts: "prompt", "text", "tokens" (their number), "reason" and "seed".

    Raises:
        InvalidValue: an empty stop text, or a file that cannot be written.
    """

    def __init__(
        self,
        run: Generation,
        codec: Codec,
        prompts: Sequence[str],
        *,
        stops: Sequence[str] = (),
        seed: int = 0,
        screen: Screen | None = None,
        file: Path | None = None,
    ) -> None:
        self._run, self._prompts, self._seed, self._screen, self._file = run, prompts, seed, screen, file
        self._decoders = [codec.decoder() for _ in prompts]
        self._stops = [StopTexts(stops) for _ in prompts]
        self._texts: list[list[str]] = [[] for _ in prompts]
        self._told = [False] * len(prompts)
        if file is not None:
            try:
                file.write_bytes(b"")
            except OSError as error:
                raise InvalidValue(f"{file} cannot be written: {error.strerror}.") from error

    @property
    def records(self) -> list[dict[str, Any]]:
        return [self._record(sample) for sample in range(len(self._prompts))]

    def run(self) -> None:
        """Follow it to its end."""
        for event in self._run:
            sample = event.sample
            if self._told[sample]:  # what it wrote after a stop text
                continue
            piece = "" if event.token is None else self._decoders[sample].push(event.token)
            piece, stopped = self._stops[sample].push(piece)
            if stopped:
                self._run.stop(sample)
            self._tell(sample, piece, stopped or event.reason is not None)

    def finish(self) -> None:
        """Tell what has not been told: after an interruption, texts as far as they came."""
        for sample, told in enumerate(self._told):
            if not told:
                self._tell(sample, "", True)
        if self._screen is not None:
            self._screen.close()

    def _tell(self, sample: int, piece: str, ended: bool) -> None:
        self._told[sample] = ended
        if ended:
            piece += self._stops[sample].finish()
        self._texts[sample].append(piece)
        if self._screen is not None:
            self._screen.show(sample, piece, ended)
        if ended and self._file is not None:
            append_line(self._file, self._record(sample))

    def _record(self, sample: int) -> dict[str, Any]:
        result = self._run.results[sample]
        return {
            "prompt": self._prompts[sample],
            "text": "".join(self._texts[sample]),
            "tokens": len(result.tokens),
            "reason": result.reason,
            "seed": self._seed + sample,
        }
