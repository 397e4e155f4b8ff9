"""FocalNet and its modulation against the authors' code."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cases import Answer, Case
from torch import Tensor, nn

from foveate.mixers.focalnet import FocalModulation
from foveate.models.official import load_official
from foveate.models.vision.focalnet import FocalNet

TOLERANCE = 1e-5

MIXER = {"focal_window", "focal_level", "focal_factor", "bias", "proj_drop"}
MIXER |= {"use_postln_in_modulation", "normalize_modulator"}
MODEL = {"patch_size", "in_chans", "num_classes", "embed_dim", "depths", "mlp_ratio", "drop_rate", "drop_path_rate"}
MODEL |= {"focal_levels", "focal_windows", "use_conv_embed", "use_layerscale", "layerscale_value", "use_postln"}
MODEL |= {"use_postln_in_modulation", "normalize_modulator"}


def run(case: Case) -> Answer:
    config, given = case.config, case.params
    if not (case.has_param(r"^patch_embed\.proj\.") or case.has_param(r"^focal_layers\.")):
        pytest.skip(f"{case.official_class} is not built")
    whole = case.has_param(r"^patch_embed\.")
    options = {name: config.pop(name) for name in (MODEL if whole else MIXER) & set(config)}
    dim = None if whole else config.pop("dim")
    assert config.pop("patch_norm", True), "embeddings without a norm are not built"
    left = set(config) - {"img_size", "norm_layer", "use_checkpoint"}  # which do not change what is computed
    assert not left, f"unknown options {sorted(left)}"
    (name,) = case.inputs
    x = case.inputs[name].requires_grad_()
    if dim is not None:
        mixer = FocalModulation(dim, **options).eval()
        load_official(mixer, given)
        y = mixer(x)
        return {"y": y}, gradients(case, y, {name: x, **official(mixer, given)})
    model = FocalNet(**options).eval()
    load_official(model, given, "FocalNet")
    y, last = model(x), model.forward_features(x)
    features = model.norm(last.movedim(1, -1)).flatten(1, 2)
    answers = {"y": y, "logits": y, "features": features}
    return answers, gradients(case, y, {name: x, **official(model, given)})


def official(module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """Our parameters by the release's names."""
    named = {re.sub(r"(focal_layers\.\d+)\.weight", r"\1.0.weight", key): p for key, p in module.named_parameters()}
    return {key: p for key, p in named.items() if key in given}


def gradients(case: Case, y: Tensor, tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients in the release's shapes: it writes a linear map as a filter of one pixel."""
    found, recorded = case.gradients(y.square().mean(), tensors), case.grads
    return {name: value.reshape(recorded[name].shape) for name, value in found.items()}
