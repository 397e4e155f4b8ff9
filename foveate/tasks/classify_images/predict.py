"""Classifying new images: one row per image, the class and the probability of every class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import InvalidType
from ..base import asked_at_once
from .package import ImageClassifier
from .pictures import fitted
from .source import read_pictures

if TYPE_CHECKING:
    import pandas as pd


def predict(
    classifier: ImageClassifier,
    source: str | Path | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Classify every image of a source; labels in it are not needed and not looked at.

    Args:
        source: an image file, a folder of images (sub-folders too), a CSV file of paths, IDX, ``.npz``, or None for the
            embedded digits. Images are brought to size as those of training were.
        time: images have none.
        id: column of paths of a CSV file.
        batch_size: images at a time; one by one where a model's answer depends on the others of its batch.

    Returns:
        One row per image: ``image`` (its path inside the source, or its number from 0), ``class``, and a column
        ``p(NAME)`` per class.

    Raises:
        InvalidType: ``time`` is given.
        InvalidValue: the source or an image cannot be read.
    """
    import pandas as pd

    if time is not None:
        raise InvalidType("time is not possible here: images have no column of times.")
    found = read_pictures(source, None, columns={"path": id}, labelled=False)
    info = classifier.info
    classifier.eval()
    chances = []
    with torch.no_grad():
        for at in torch.arange(len(found)).split(asked_at_once(classifier.model, batch_size)):
            images = [fitted(found.load(i)[0], info.size, info.channels, classifier.fit) for i in at.tolist()]
            x = torch.stack(images).to(classifier.mean) / 255
            chances.append(classifier(x).softmax(-1).double().cpu())
    table = torch.cat(chances).numpy()
    columns: dict[str, object] = {"image": found.names}
    columns["class"] = [classifier.classes[i] for i in table.argmax(1)]
    columns.update({f"p({name})": table[:, i] for i, name in enumerate(classifier.classes)})
    return pd.DataFrame(columns)
