"""Freezing what depends on the data (the periods of TimesNet) by data, so that a model can be exported."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue
from ..registry import find
from .promises import calibrated, name_of
from .subject import named

#: Windows that calibration looks at, at most, and those of them that frozen and free answers are compared on.
WINDOWS, COMPARED = 256, 32
#: Pasts of a table of one series, each a horizon shorter than the one before, that a forecaster is shown.
PASTS = 32
#: What marks the folder of a comparison, and its prepared data in it.
_MARKER, _DATA = "foveate.json", "data"


def calibrate(
    model: nn.Module,
    data: Any,
    folder: Path | None = None,
    *,
    time: str | None = None,
    id: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of the model whose data-dependent parts are frozen, and what stands about it in the file.

    Args:
        model: any module; one without such parts is returned as it is, with no facts.
        data: what to calibrate by: a source as ``foveate predict`` reads, or the inputs of the module; None: the
            training data of the comparison that ``folder`` is in, if the model is not frozen yet.
        folder: where the model was loaded from.
        time, id: names of the time and id columns of a table.

    Raises:
        InvalidType: data for a model that needs none.
        InvalidValue: data that does not fit.
    """
    part = calibrated(model)
    if part is None:
        if data is not None:
            raise InvalidType(
                f"calibration is not for {name_of(model)}: nothing in it depends on the data; leave it out."
            )
        return model, {}
    home = None if folder is None or data is not None else _comparison(folder)
    if data is None and (home is None or part.frozen_periods is not None):  # type: ignore[union-attr]
        frozen = part.frozen_periods  # type: ignore[union-attr]
        return model, {} if frozen is None else {"by": "freeze_periods", "periods": frozen}
    model = copy.deepcopy(model).eval()
    part = calibrated(model)
    if part is None:
        return model, {}
    if home is not None:
        by, inputs = f"the training data of {home}", _of_training(model, part, home)
    elif isinstance(data, Tensor | tuple | Mapping):
        by, inputs = "given inputs", named(part, data)
    else:
        by = str(data) if isinstance(data, str | Path) else type(data).__name__
        inputs = _of_source(model, part, data, time, id)
    inputs = {name: x[:WINDOWS] for name, x in inputs.items()}
    some = {name: x[:COMPARED] for name, x in inputs.items()}
    free = _alone(part, some)
    part.freeze_periods(**inputs)  # type: ignore[operator]
    with torch.no_grad():
        change = (part(**some) - free).square().mean().sqrt() / (free - free.mean()).square().mean().sqrt().clamp(1e-6)
    windows = len(next(iter(inputs.values())))
    return model, {
        "by": by,
        "windows": windows,
        "periods": part.frozen_periods,
        "changed": float(change),
        "changed_means": "rms difference between frozen and free answers to calibration windows, asked one by one as "
        "predict does, over the rms spread of the free ones",
    }


def _alone(part: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Answers to each sample by itself."""
    count = len(next(iter(inputs.values())))
    with torch.no_grad():
        return torch.cat([part(**{name: x[i : i + 1] for name, x in inputs.items()}) for i in range(count)])


def _comparison(folder: Path) -> Path | None:
    """The folder of the comparison that a model's folder is in, if its data is there."""
    for place in folder.resolve().parents[:4]:
        if (place / _MARKER).is_file():
            return place if (place / _DATA).is_dir() else None
    return None


@contextmanager
def _captured(part: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """The named inputs of every call of ``part`` inside the block."""
    calls: list[dict[str, Tensor]] = []
    signature = inspect.signature(part.forward)

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature.bind(*args, **kwargs).arguments
        calls.append({name: x for name, x in given.items() if isinstance(x, Tensor)})

    hook = part.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def _joined(calls: list[dict[str, Tensor]], what: str) -> dict[str, Tensor]:
    if not calls:
        raise InvalidValue(f"calibration: {what} holds nothing that the model is asked about.")
    return {name: torch.cat([call[name] for call in calls]) for name in calls[0]}


def _of_training(model: nn.Module, part: nn.Module, home: Path) -> dict[str, Tensor]:
    """Inputs of ``part`` for training windows of a comparison, evenly spaced."""
    info: Any = model.info
    task = find(info.task, "task").load().load(home / _DATA)
    if task.info != info:
        raise InvalidValue(f"the data in {home} is not what the model was trained on: give data to calibrate by.")
    count = task.size("train")
    index = torch.linspace(0, count - 1, min(WINDOWS, count)).round().long()
    with _captured(part) as calls, torch.no_grad():
        task.apply(model.model, task.batch("train", index))
    return _joined(calls, str(home))


def _of_source(model: nn.Module, part: nn.Module, source: Any, time: str | None, id: str | None) -> dict[str, Tensor]:
    """Inputs of ``part`` when ``predict`` is asked about a source."""
    info = getattr(model, "info", None)
    if info is None:
        raise InvalidType(
            f"calibration by a table needs a model that a comparison trained: give the inputs of {name_of(model)}, "
            f"or call freeze_periods."
        )
    task = find(info.task, "task").load()
    with _captured(part) as calls:
        task.predict(model, source, time=time, id=id)
        if info.task == "forecast" and not model.known:
            for earlier in _pasts(model, source, time, id):
                try:
                    task.predict(model, earlier, time=time, id=id)
                except InvalidValue:  # too short by now, after resampling or gaps: all of it was used
                    break
    return _joined(calls, str(source))


def _pasts(model: Any, source: Any, time: str | None, id: str | None) -> Iterator[Any]:
    """A table of one series as it was one horizon earlier, two, and so on; nothing for any other table."""
    import pandas as pd

    from ..tasks.forecast.source import read_source

    frame = read_source(source).frame
    time, id = time or model.time, id or model.id
    if time not in frame or (id is not None and id in frame):
        return
    if not pd.to_datetime(frame[time], errors="coerce").is_monotonic_increasing:
        return
    for past in range(1, PASTS):
        rows = len(frame) - past * model.info.horizon
        if rows < model.info.lookback:
            return
        yield frame.iloc[:rows]
