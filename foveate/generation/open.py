"""Opening what writes: a packaged language model, or a bare model of tokens and what stands between it and text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import load
from ..errors import InvalidValue
from ..hub import local_folder, read_config
from ..tasks.language.find_tokeniser import find_tokeniser
from ..tasks.language.tokenise import ByteTokeniser, Decoder, Tokeniser
from .text import Codec


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokeniser of a bare model.

    Attributes:
        tokeniser: whose tokens, perhaps without the one between documents, are the model's.
    """

    tokeniser: Tokeniser

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text."""
        return self.tokeniser.tokens(text)[0].tolist()

    def decoder(self) -> Decoder:
        """A decoder for a stream of tokens."""
        return self.tokeniser.decoder()


@dataclass(frozen=True, slots=True)
class Writer:
    """A language model and its tokens.

    Attributes:
        model: from tokens to logits.
        codec: from text to tokens and back.
        name: of the system.
        end: the token between documents, with which an empty text begins; None: there is none.
        opening: tokens that every text begins with.
        stop: tokens that end one.
    """

    model: nn.Module
    codec: Codec
    name: str
    end: int | None
    opening: tuple[int, ...]
    stop: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """What the model reads of a prompt: nothing of an empty one."""
        return [*self.opening, *self.codec.encode(text)] if text else []


def open_writer(
    where: str | Path, *, system: Any = None, revision: str | None = None, tokenizer: str | None = None
) -> Writer:
    """Open a saved language model.

    Args:
        where: a folder (``best/`` of a comparison, or what ``save_pretrained`` wrote), or ``hub:user/name``.
        system: the user's own class, if the model was made from one.
        revision: branch, tag or commit on the hub.
        tokenizer: of a bare model, as the task ``language`` takes it; None: bytes, if the vocabulary fits.

    Raises:
        InvalidValue: no such model, one that was trained for something else, or tokens that do not fit.
    """
    folder = local_folder(where, revision=revision)
    config = read_config(folder)
    if config.get("task", "language") != "language":
        raise InvalidValue(f"{where} was trained for the task {config['task']!r}: it writes no text; use predict.")
    opened: Any = load(folder, system=system)
    if "task" in config:
        if tokenizer is not None:
            raise InvalidValue(f"--tokenizer is not possible for {where}: it has its own.")
        # Where it has not learned where documents end, a beginning would be foreign to it as well.
        ends = (opened.end_of_document,) if opened.ends_documents else ()
        return Writer(opened.model, opened, config["system"], opened.end_of_document, ends, ends)
    reads = getattr(opened, "reads", opened.spec.reads)
    if reads != "tokens":
        raise InvalidValue(f"{where} holds {config['system']!r}, which reads {reads}: it writes no text.")
    tokeniser = _tokeniser(opened.vocabulary, where, tokenizer)
    end = tokeniser.end_of_document if tokeniser.vocabulary == opened.vocabulary else None
    return Writer(opened, Tokens(tokeniser), config["system"], end, (), () if end is None else (end,))


def _tokeniser(vocabulary: int, where: str | Path, tokenizer: str | None) -> Tokeniser:
    """The one that is named, or bytes; with a token between documents or without, it must have the model's tokens."""
    found = ByteTokeniser() if tokenizer is None else find_tokeniser(tokenizer)
    if found is None:
        raise InvalidValue(
            f"--tokenizer {tokenizer} is not possible for {where}: which characters its tokens were is not on record."
        )
    if vocabulary in (found.vocabulary, found.vocabulary - 1):
        return found
    if tokenizer is None:
        raise InvalidValue(
            f"{where} has a vocabulary of {vocabulary:,} tokens and no tokenizer beside it: give its --tokenizer."
        )
    raise InvalidValue(
        f"{where} has a vocabulary of {vocabulary:,} tokens, and the tokenizer {tokenizer!r} has "
        f"{found.vocabulary - 1:,}, or {found.vocabulary:,} with the end of a document: it is another one's."
    )
