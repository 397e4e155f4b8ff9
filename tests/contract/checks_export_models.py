"""Checks of the export of models: as those of mixers."""

from __future__ import annotations

import inspect

from torch import Tensor

from .checking import check
from .checks_export import file_answers_alike, refuses
from .model_cases import ModelCase

#: What networks of tens of layers read, whose files take up to half a minute: each kind of layer is tried as a mixer,
#: and every mixer in a network for series.
_TRIED_AS_MIXERS = ("image", "tokens")


def _inputs(case: ModelCase, batch: int, seed: int = 1) -> dict[str, Tensor]:
    args, kwargs = case.inputs(batch, seed)
    names = list(inspect.signature(case.cls.forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def _model_file(case: ModelCase, format: str) -> None:
    calls = [_inputs(case, size, seed=13) for size in (3, 1, 5)]
    if case.spec.dynamic_length:
        calls += [{name: x[:, :29] for name, x in calls[0].items()}]
    file_answers_alike(case.build(), _inputs(case, 3), calls, format, lambda m, call: m(**call))


@check("model", lambda spec: spec.export and spec.reads not in _TRIED_AS_MIXERS, slow_start=True)
def exports(case: ModelCase) -> None:
    _model_file(case, "pt2")


@check("model", lambda spec: spec.export and spec.reads in _TRIED_AS_MIXERS, slow_start=True, nightly=True)
def exports_a_large_network(case: ModelCase) -> None:
    _model_file(case, "pt2")


@check("model", lambda spec: spec.onnx, slow_start=True, nightly=True)
def exports_to_onnx(case: ModelCase) -> None:
    _model_file(case, "onnx")


@check("model", lambda spec: not spec.export)
def refuses_export(case: ModelCase) -> None:
    if not case.of_mixer:  # which promises what its mixer does
        refuses(case.build(), "pt2", _inputs(case, 2))


@check("model", lambda spec: not spec.onnx)
def refuses_onnx(case: ModelCase) -> None:
    if not case.of_mixer:
        refuses(case.build(), "onnx", _inputs(case, 2))


@check("model", lambda spec: not spec.dynamic_length)
def refuses_any_length(case: ModelCase) -> None:
    refuses(case.build(), "pt2", _inputs(case, 2), dynamic_length=True)
