"""Classifying new samples: one row per sample, the class and the probability of every class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import InvalidValue
from ..base import asked_at_once
from .embedded import read_embedded
from .package import SeriesClassifier
from .protocol import pad, scaled
from .read import read_samples

if TYPE_CHECKING:
    import pandas as pd


def predict(
    classifier: SeriesClassifier,
    source: str | Path | pd.DataFrame | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Classify every sample of a source; labels in it are not needed and not looked at.

    Args:
        source: as in training: path of a ``.ts``, ``.npz``, CSV or Parquet file, a DataFrame, or None for the embedded
            samples. A table needs the training data's columns; others are not looked at.
        time, id: names of the time and id columns of a table; default: as in the training data, or found.
        batch_size: samples at a time; one by one where a model's answer depends on the others of its batch.

    Returns:
        One row per sample: its id (its number from 0 where the source has none), ``class``, and a column
        ``p(NAME)`` per class.

    Raises:
        InvalidValue: the source cannot be read, has other channels, or a sample is longer than those of training (or
            shorter, if those were all of one length).
    """
    import pandas as pd

    info = classifier.info
    if source is None:
        found = read_embedded()
    else:
        channels = classifier.columns if classifier.roles else None
        found = read_samples(source, id=id, time=time, labelled=False, channels=channels, usual=classifier.roles)
    if len(found.columns) != info.channels:
        raise InvalidValue(f"{found.label!r} has {len(found.columns)} channels; the model reads {info.channels}.")
    mean, scale = (t.double().cpu().numpy() for t in (classifier.mean, classifier.scale))
    for name, values in zip(found.names, found.values, strict=True):
        if len(values) > info.lookback or (len(values) < info.lookback and not info.padded):
            legal = f"at most {info.lookback}" if info.padded else f"exactly {info.lookback}"
            raise InvalidValue(
                f"{found.label!r}: sample {name!r} has {len(values)} steps; the model was trained on {legal}."
            )
    # Filled in standardised units, where a leading gap is the training mean, then back, for the wrapper scales.
    filled = [scaled(v, mean, scale).astype(np.float64) * scale + mean for v in found.values]
    x = torch.from_numpy(np.stack([pad(v, info.lookback) for v in filled])).to(classifier.mean)
    lengths = torch.tensor([len(v) for v in found.values])
    mask = (torch.arange(info.lookback) < lengths[:, None]).to(x.device)
    classifier.eval()
    with torch.no_grad():
        batches = torch.arange(len(x)).split(asked_at_once(classifier.model, batch_size))
        parts = [classifier(x[at], mask[at]).softmax(-1).cpu() for at in batches]
    chances = torch.cat(parts).double().numpy()
    id_name = (found.roles or {}).get("id") or "sample"
    columns: dict[str, object] = {id_name: list(found.names)}
    columns["class"] = [classifier.classes[i] for i in chances.argmax(1)]
    columns.update({f"p({name})": chances[:, i] for i, name in enumerate(classifier.classes)})
    return pd.DataFrame(columns)
