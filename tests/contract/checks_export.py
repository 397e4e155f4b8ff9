"""Checks of the export of mixers: what a spec promises works from a file without foveate, the rest is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import foveate
from foveate.errors import InvalidType
from foveate.exporting.promises import name_of

from .cases import MixerCase
from .checking import check, close, refused
from .foreign import foreign

#: An ONNX runtime orders sums in its own way, in every layer.
ANOTHER_RUNTIME = 5


def file_answers_alike(
    model: nn.Module,
    example: dict[str, Tensor],
    calls: Sequence[dict[str, Tensor]],
    format: str,
    run: Callable[..., Tensor],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = foveate.export(model, Path(folder) / f"model.{format}", example=example)
        reads = [one["name"] for one in made.facts["inputs"]]
        answers = foreign().run(made.file, [{name: call[name] for name in reads} for call in calls])
    for call, answer in zip(calls, answers, strict=True):
        sizes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in call.items())
        close(answer, run(model, call), f"the {format} file, {sizes}", times=ANOTHER_RUNTIME)


def _mixer_file(case: MixerCase, format: str, tokens: int) -> None:
    grid = case.grid(tokens=tokens)
    mixer = case.build(causal=case.directions[-1], grid=grid)
    if mixer.plan_tokens(grid).source is not None:
        return  # a network with special tokens is exported whole: the plan is part of its graph
    grids = [grid]
    if case.spec.dynamic_length:
        grids += [case.grid(tokens=3 * tokens + 2), case.grids(len(grid))[0]]
    calls = [{"x": case.input(g, batch, seed=13)} for g in grids for batch in (3, 1, 5)]
    file_answers_alike(mixer, {"x": case.input(grid, 3)}, calls, format, lambda m, call: m(call["x"]))


@check("mixer", lambda spec: spec.export, slow_start=True)
def exports(case: MixerCase) -> None:
    _mixer_file(case, "pt2", tokens=24)


@check("mixer", lambda spec: spec.onnx, slow_start=True, nightly=True)
def exports_to_onnx(case: MixerCase) -> None:
    # Few tokens: what is unrolled takes time to convert.
    _mixer_file(case, "onnx", tokens=9)


def refuses(model: nn.Module, format: str, example: Any, **options: Any) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        refused(InvalidType, name_of(model), f"export to {format} with {options}, against the spec"),
    ):
        foveate.export(model, Path(folder) / f"model.{format}", example=example, **options)


@check("mixer", lambda spec: not spec.export, once=True)
def refuses_export(case: MixerCase) -> None:
    refuses(case.build(), "pt2", case.input())


@check("mixer", lambda spec: not spec.onnx, once=True)
def refuses_onnx(case: MixerCase) -> None:
    refuses(case.build(), "onnx", case.input())


@check("mixer", lambda spec: not spec.dynamic_length, once=True)
def refuses_any_length(case: MixerCase) -> None:
    refuses(case.build(), "pt2", case.input(), dynamic_length=True)
