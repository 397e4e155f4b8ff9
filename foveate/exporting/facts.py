"""What stands about an exported model in its file: how it is called, what it was made from, how it was verified."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Entry, entries, get_system, list_systems
from ..tasks.forecast.features import feature_names
from .promises import specs_in
from .subject import Subject
from .verify import Verified

FORMAT = 1
_INPUTS = {
    "series": "index of each sample's series among package.series",
    "mask": "True = a real step or token",
    "static": "features of each sample's series, as package.static codes them",
    "tokens": "token numbers",
}
_ANSWERS = {
    "forecast": "the next steps, in the units of the columns",
    "forecast-m4": "the next steps, in the unit of the series",
    "impute": "the window without gaps, in the units of the columns",
    "classify-series": "logits of package.classes; softmax gives their probabilities",
    "classify-images": "logits of package.info.class_names; softmax gives their probabilities",
    "segment": "logits of package.info.class_names for every pixel or voxel",
    "language": "logits of the token after each; package.tokeniser says which they are",
    "detect-anomalies": "the score of every step of the window by itself; above threshold it is unusual",
}


def facts_of(
    subject: Subject,
    format: str,
    shapes: dict[str, list[int | str]],
    answer: Tensor,
    verified: Verified,
    calibration: dict[str, Any],
) -> dict[str, Any]:
    """The facts as JSON values.

    Args:
        subject: what was exported.
        format: "pt2" or "onnx".
        shapes: of the inputs, names for open sizes.
        answer: to the example.
        verified: what was tried.
        calibration: of :func:`~foveate.exporting.calibration.calibrate`; {} without.
    """
    from .. import __version__

    model, info = subject.model, getattr(subject.model, "info", None)
    task = getattr(info, "task", None)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "foveate": __version__,
        "torch": torch.__version__,
        "file": format,
        "model": subject.name,
        "systems": _systems(model),
        "task": task,
        "inputs": [
            {"name": name, "shape": shapes[name], "dtype": _dtype(x), "meaning": _meaning(name, info, model)}
            for name, x in subject.example.items()
        ],
        "output": {
            "shape": _answer_shape(next(iter(shapes.values())), answer),
            "dtype": _dtype(answer),
            "meaning": _ANSWERS.get(task or "", "the module's answer"),
        },
        "verified": asdict(verified),
    }
    if isinstance(getattr(model, "config", None), dict) and info is not None:
        facts["package"] = model.config
    if isinstance(getattr(model, "threshold", None), Tensor):
        facts["threshold"] = float(model.threshold)  # type: ignore[arg-type]
    if calibration:
        facts["calibration"] = calibration
    return facts


def _answer_shape(read: list[int | str], answer: Tensor) -> list[int | str]:
    """Sizes of the answer; those that are open in the first input are open here too."""
    open_ = {i for i, size in enumerate(read) if isinstance(size, str)}
    return [read[i] if i in open_ else size for i, size in enumerate(answer.shape)]


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _meaning(name: str, info: Any, model: nn.Module) -> str:
    if name == "x" and getattr(info, "task", "") in ("classify-images", "segment"):
        return "pixels between 0 and 1" if getattr(model, "unit", 255) == 255 else "intensities as in the volumes"
    if name == "x" and info is not None:
        missing = {"impute": ", NaN where nothing was measured", "forecast-m4": ", NaN in front of a shorter one"}
        columns = "the columns" if hasattr(model, "columns") else "the series"
        return f"a window in the units of {columns}" + missing.get(info.task, ", nothing missing")
    if name == "marks" and info is not None and hasattr(info, "freq"):
        return f"calendar features of each step in [-0.5, 0.5]: {', '.join(feature_names(info.freq))}"
    if name == "known":
        return f"known over window and horizon: {', '.join(getattr(model, 'known', ()))}"
    return _INPUTS.get(name, "")


def _systems(model: nn.Module) -> list[dict[str, Any]]:
    """The published systems in it: slug, title, licence of the official code, and BibTeX."""
    known: dict[tuple[str, str], Entry] = {(e.kind, e.name): e for e in entries()}
    found: dict[str, dict[str, Any]] = {}
    for module, _ in specs_in(model):
        registered = vars(type(module)).get("registered_as")
        if registered is None or registered[:2] not in known or registered[2] not in list_systems():
            continue
        record = get_system(registered[2])
        found[record.slug] = {
            "slug": record.slug,
            "title": record.title,
            "licence": record.licence,
            "citation": record.bibtex.strip(),
        }
    return list(found.values())
