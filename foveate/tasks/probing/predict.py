"""Answering new samples of a probe: one row per question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import InvalidType, InvalidValue
from ...registry import find
from ..base import asked_at_once
from ..next_token import NOT_ASKED
from .package import ProbeAnswers

if TYPE_CHECKING:
    import pandas as pd

#: New samples that are drawn where none are given.
NEW = 100


def predict(
    answers: ProbeAnswers,
    source: str | Path | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Answer every question of new samples.

    Args:
        answers: what was trained.
        source: path of an ``.npz`` file with ``x`` int ``(samples, length)``, and ``y`` of the same shape where the
            answers are known, -100 where nothing is asked; without ``y`` the token behind the last is asked for. None:
            100 new samples, of none of the parts.
        time, id: not used: a probe has neither.
        batch_size: samples at a time; one by one where a model's answer depends on the others of its batch.

    Returns:
        One row per question: ``sample``, ``place``, ``answer``, and ``truth`` where it is known.

    Raises:
        InvalidType, InvalidValue: the file cannot be read or holds something else; the message names it.
    """
    import pandas as pd

    x, y = _drawn(answers) if source is None else _read(source, answers.info.vocabulary)
    answers.eval()
    device = next((t.device for t in (*answers.parameters(), *answers.buffers())), torch.device("cpu"))
    said = np.empty(x.shape, np.int64)
    with torch.no_grad():
        for index in torch.arange(len(x)).split(asked_at_once(answers.model, batch_size)):
            said[index] = answers(torch.from_numpy(x[index]).to(device)).argmax(-1).cpu().numpy()
    asked = np.zeros(x.shape, bool) if y is None else y != NOT_ASKED
    if y is None:
        asked[:, -1] = True
    sample, place = np.nonzero(asked)
    columns: dict[str, Any] = {"sample": sample, "place": place, "answer": said[asked]}
    if y is not None:
        columns["truth"] = y[asked]
    return pd.DataFrame(columns)


def _drawn(answers: ProbeAnswers) -> tuple[np.ndarray, np.ndarray]:
    probe: Any = find(answers.info.probe, "task").load()
    new = probe.drawn_part(answers.options, "new", NEW, answers.options["length"], answers.seed)
    y = np.full((len(new.tokens), new.tokens.shape[1] + 1), NOT_ASKED)
    np.put_along_axis(y, np.where(new.places < 0, new.tokens.shape[1], new.places), new.answers, 1)
    return new.tokens, y[:, :-1]


def _read(source: str | Path, vocabulary: int) -> tuple[np.ndarray, np.ndarray | None]:
    label = repr(str(source))
    if not isinstance(source, str | Path):
        raise InvalidType(f"source={source!r} is not possible: the path of an .npz file is needed.")
    try:
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidValue(f"{label} cannot be read as an .npz file of whole numbers ({error}).") from error
    x, y = arrays.get("x"), arrays.get("y")
    if x is None or x.ndim != 2 or not x.size or not np.issubdtype(x.dtype, np.integer):
        raise InvalidValue(
            f"{label} has no x of whole numbers (samples, length): it holds {', '.join(sorted(arrays))}."
        )
    if x.min() < 0 or x.max() >= vocabulary:
        raise InvalidValue(f"{label}: x holds a number that is no token: they go from 0 to {vocabulary - 1}.")
    if y is not None and (y.shape != x.shape or not np.issubdtype(y.dtype, np.integer)):
        raise InvalidValue(f"{label}: y must be whole numbers of the shape of x, {x.shape}, not {y.shape} {y.dtype}.")
    return x.astype(np.int64), None if y is None else y.astype(np.int64)
