"""Checks of forecasters with covariates and quantiles: whatever they do not do themselves is done around them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from foveate.models.outlook import Outlook, with_outlook
from foveate.spec import ModelSpec

from .checking import check, expect, same_bits
from .model_cases import ModelCase

LEVELS = (0.05, 0.1, 0.5, 0.6)


def _forecasts(spec: ModelSpec) -> bool:
    return "forecast" in spec.tasks


def _told(case: ModelCase, **asked: object) -> tuple[SimpleNamespace, Outlook]:
    """The example's info with what is asked for, and the model built for it as a contestant is; no noise is added."""
    info = SimpleNamespace(**{**vars(case.example.info), **asked})
    torch.manual_seed(0)
    outlook = with_outlook(case.example.build(case.cls, info, case.options), info).eval()
    assert isinstance(outlook, Outlook)
    return info, outlook


def _covariates(info: SimpleNamespace, batch: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    known = torch.randn(batch, info.lookback + info.horizon, info.known, generator=generator)
    return {"known": known, "static": torch.randn(batch, info.static, generator=generator)}


@check("model", _forecasts)
def quantiles_never_cross(case: ModelCase) -> None:
    if case.task != "forecast":
        return
    info, outlook = _told(case, quantiles=LEVELS)
    args, marks = case.inputs(3, info=info)
    shape = (3, info.horizon, info.channels)
    own = (*shape, len(LEVELS)) if case.spec.quantiles else shape
    came = outlook.model(*args, **marks).shape
    expect(
        came == own, f"the spec says quantiles={case.spec.quantiles}, but the model answers {tuple(came)}, not {own}"
    )
    for noise, size in ((0.0, 1.0), (0.3, 1.0), (3.0, 1e4)):
        with torch.no_grad():
            for parameter in outlook.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
        y = outlook(*(a * size for a in args), **marks)
        expect(y.shape == (*shape, len(LEVELS)), f"with quantiles the answer is {tuple(y.shape)}")
        expect((y[..., 1:] >= y[..., :-1]).all(), f"quantiles cross (noise {noise}, input times {size:g})")
    if case.spec.trains:
        _, outlook = _told(case, quantiles=LEVELS)
        outlook(*args, **marks).diff(dim=-1).mean().backward()
        gradients = [p.grad for p in outlook.parameters() if p.grad is not None]
        expect(any(g.abs().max() > 0 for g in gradients), "nothing learns how far apart the quantiles are")


@check("model", _forecasts)
def covariates_are_heard(case: ModelCase) -> None:
    if case.task != "forecast":
        return
    info, outlook = _told(case, known=2, static=3)
    args, marks = case.inputs(3, info=info)
    told = _covariates(info, 3, 1)
    at_first = outlook(*args, **marks, **told)
    if not case.spec.covariates:
        same_bits(at_first, outlook.model(*args, **marks), "the forecast with covariates before any training")
    with torch.no_grad():
        for parameter in outlook.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    y = outlook(*args, **marks, **told)
    later = told["known"].clone()
    later[:, info.lookback + 1 :] += 1.0
    for what, other in (("known", {**told, "known": later}), ("static", {**told, "static": told["static"] + 1.0})):
        differs = not torch.equal(outlook(*args, **marks, **other), y)
        expect(
            differs == case.spec.trains,
            f"other values of the {what} covariates {'change' if differs else 'do not change'} the forecast",
        )
