"""Varied-size window attention against its release."""

from __future__ import annotations

import pytest
from cases import Answer, Case

import foveate
from foveate.mixers.vsa import VariedSizeWindowAttention


def run(case: Case) -> Answer:
    if "VSAWindowAttention" not in case.official_class:
        pytest.skip(f"{case.official_class} is not built")
    config = case.config
    config.pop("img_size", None)  # ours takes any
    config.pop("attn_drop", None)  # it is not read
    form = "detection" if "Detection" in case.official_class else "classification"
    mixer = VariedSizeWindowAttention(config.pop("dim"), **config, form=form)
    foveate.load_official(mixer, {**case.buffers, **case.params})
    mixer.eval()
    x = case.inputs["x"].requires_grad_()
    y = mixer(x.movedim(1, -1)).movedim(-1, 1)
    names = {"offsets": "sampling_offsets.2", "scales": "sampling_scales.2"}
    ours = {}
    for key, parameter in mixer.named_parameters():
        layer, dot, rest = key.partition(".")
        ours[names.get(layer, layer) + dot + rest] = parameter
    grads = case.gradients(y.square().mean(), {"x": x, **ours})
    return {"y": y}, {key: g.reshape(case.grads[key].shape) for key, g in grads.items()}
