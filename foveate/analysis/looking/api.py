"""``look``: from a model and an image to pictures, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...errors import InvalidValue
from .looked import Looked
from .subject import opened, read_image
from .trace import Query, chosen, lookable, trace

#: Pixels that the longer side of a picture has at least, and at most twice as many.
DETAIL = 224


def look(
    model: nn.Module | str | Path,
    image: str | Path | np.ndarray | Tensor,
    layer: int | str | Sequence[int | str] | None = None,
    query: Query = None,
    *,
    pretrained: str | Path | None = None,
    size: tuple[int, int] | None = None,
    detail: int = DETAIL,
    options: dict[str, Any] | None = None,
) -> Looked:
    """What a model attends to in an image.

    Every mixer in it that defines :meth:`~foveate.mixers.Mixer.look` is asked what the query reads.

    Args:
        model: one in memory, a folder that foveate saved (``best/`` of a comparison, or of ``save_pretrained``),
            ``hub:user/name``, or a registered or published name (``sparsifiner_small``).
        image: a file that pillow reads, or uint8 ``(height, width)`` or ``(height, width, 1 or 3)``.
        layer: number (negative from the end) or path of the mixer to ask, or several; None: all.
        query: who reads: a pixel (row, column) of the image; "class": the class token; None: the middle.
        pretrained: weights for a name, as :func:`foveate.create` takes them; None: random ones.
        size: height and width of what the model reads, where it is free to; None: what it was made for, else 224.
        detail: pixels of the longer side of a picture, at least.
        options: of the constructor, for a name.

    Returns:
        What each layer told, with :meth:`~foveate.analysis.looking.Looked.save`.

    Raises:
        InvalidType: the model reads no images, or has nothing to look at.
        InvalidValue: not an image; a query outside of it; a layer or a size that does not exist.
        UnknownName: no such model or layer.
        MissingExtra: pillow is not installed.
    """
    if isinstance(query, str) and query != "class":
        raise InvalidValue(f"query={query!r} is not possible: a pixel (row, column) or 'class' is needed.")
    if detail < 16:
        raise InvalidValue(f"detail={detail!r} is not possible: at least 16 pixels are needed.")
    subject = opened(model, pretrained=pretrained, size=size, options=options)
    layers = chosen(lookable(subject.network), layer, subject.name)
    shown = read_image(image, subject, detail)
    answer, seen = trace(subject, shown, layers, query)
    return Looked(subject, shown, seen, answer)
