"""Opening what writes: a packaged language model, or a bare model of tokens and what stands between it and text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import load
from ..errors import InvalidValue
from ..hub import local_folder, read_config
from .text import BYTES, Bytes, Codec


@dataclass(frozen=True, slots=True)
class Writer:
    """A language model and its tokens.

    Attributes:
        model: from tokens to logits.
        codec: from text to tokens and back.
        name: of the system.
    """

    model: nn.Module
    codec: Codec
    name: str


def open_writer(
    where: str | Path, *, system: Any = None, revision: str | None = None, tokenizer: str | None = None
) -> Writer:
    """Open a saved language model.

    Args:
        where: a folder (``best/`` of a comparison, or what ``save_pretrained`` wrote), or ``hub:user/name``.
        system: the user's own class, if the model was made from one.
        revision: branch, tag or commit on the hub.
        tokenizer: of a bare model: "bytes", or what the task ``language`` takes; None: bytes, if the vocabulary fits.

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
        return Writer(opened.model, opened, config["system"])
    reads = getattr(opened, "reads", opened.spec.reads)
    if reads != "tokens":
        raise InvalidValue(f"{where} holds {config['system']!r}, which reads {reads}: it writes no text.")
    return Writer(opened, _codec(opened, where, tokenizer), config["system"])


def _codec(model: Any, where: str | Path, tokenizer: str | None) -> Codec:
    vocabulary = model.vocabulary
    if tokenizer is None and vocabulary not in (BYTES, BYTES + 1):
        raise InvalidValue(
            f"{where} has a vocabulary of {vocabulary:,} tokens and no tokenizer beside it: give its --tokenizer."
        )
    if tokenizer in (None, "bytes"):
        return Bytes(vocabulary)
    raise NotImplementedError
