"""Scoring new texts: one row per document, with what a byte of it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidType, InvalidValue
from .package import TextModel
from .read import Documents

if TYPE_CHECKING:
    import pandas as pd


def predict(
    model: TextModel,
    source: str | Path | Sequence[str] | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Score every document of a source, each by itself.

    Args:
        source: as in training: path of a file or folder, a list of texts, or None for the embedded text; read with the
            column and encoding of training.
        time, id: not possible, texts have neither.
        batch_size: windows at a time.

    Returns:
        One row per document that is not empty, in order: ``document``, ``bytes``, ``tokens`` (with the end of the
        document, where the model learned ends), ``bits_per_byte``, ``nats_per_token``, ``perplexity``.

    Raises:
        InvalidType: a time or id column was named.
        InvalidValue: the source cannot be read, holds no text, or has text that the tokeniser has no tokens for.
    """
    import pandas as pd

    for option, value in (("time", time), ("id", id)):
        if value is not None:
            raise InvalidType(f"{option}={value!r} is not possible: texts have no such column.")
    documents = Documents(source, encoding=model.reading["encoding"], usual=model.reading["column"])
    rows, empty = [], 0
    for document in documents:
        if not document.text.strip():
            empty += 1
            continue
        try:
            (score,) = model.score([document.text], batch_size)
        except InvalidValue as error:
            raise InvalidValue(f"{document.name!r}: {error}") from error
        rows.append(
            {
                "document": document.name,
                "bytes": score.bytes,
                "tokens": score.tokens,
                "bits_per_byte": score.bits_per_byte,
                "nats_per_token": score.nats_per_token,
                "perplexity": score.perplexity,
            }
        )
    if not rows:
        raise InvalidValue(f"{documents.label!r} holds no text: all {empty} documents of it are empty.")
    return pd.DataFrame(rows)
