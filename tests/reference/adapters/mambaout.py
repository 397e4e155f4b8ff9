"""MambaOut and its block against the authors' code."""

from __future__ import annotations

from typing import Any

import pytest
from cases import Answer, Case

from foveate.models.official import load_official
from foveate.models.vision.mambaout import Block, MambaOut

TOLERANCE = 1e-5

#: Options of the official classes that have the same names here.
MODEL = {"in_chans", "num_classes", "depths", "dims", "conv_ratio", "kernel_size", "drop_path_rate"}
BLOCK = {"expansion_ratio", "kernel_size", "conv_ratio"}


def _rest(config: dict[str, Any]) -> None:
    """Refuse what the adapter does not know."""
    if config:
        raise NotImplementedError(f"options {sorted(config)} of the official code are not known")


def run(case: Case) -> Answer:
    config, given = case.config, case.params
    x = case.inputs["x"].requires_grad_()
    if case.official_class == "GatedCNNBlock":
        options = {name: config.pop(name) for name in BLOCK & set(config)}
        block = Block(config.pop("dim"), config.pop("drop_path", 0.0), **options).eval()
        _rest(config)
        own = {k if k.startswith("norm.") else f"mixer.{k}": v for k, v in given.items()}
        block.load_state_dict(own)
        y = block(x)
        parameters = {name.removeprefix("mixer."): p for name, p in block.named_parameters()}
        return {"y": y}, case.gradients(y.square().mean(), {"x": x, **parameters})
    if case.official_class != "MambaOut":
        pytest.skip(f"{case.official_class} is not built")
    options = {name: config.pop(name) for name in MODEL & set(config)}
    model = MambaOut(drop_rate=config.pop("head_dropout", 0.0), **options).eval()
    _rest(config)
    load_official(model, given, "MambaOut")
    logits = model(x)
    return {"logits": logits, "features": model.pooled(x)}, case.gradients(logits.square().mean(), {"x": x})
