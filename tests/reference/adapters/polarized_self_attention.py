"""Polarized self-attention: the official blocks ``PSA_p`` and ``PSA_s``."""

from __future__ import annotations

import pytest
from cases import Answer, Case

from foveate.mixers.polarized_self_attention import PolarizedSelfAttention
from foveate.models.official import load_official

TOLERANCE = 1e-5


def run(case: Case) -> Answer:
    layouts = {"PSA_p": "parallel", "PSA_s": "sequential"}
    name = case.official_class.rpartition(".")[2]
    if name not in layouts:
        pytest.skip(f"{case.official_class} is not built")
    config = case.config
    dim = config.pop("planes")
    assert config.pop("inplanes") == dim, "gates fit the input alone"
    # Every convolution is 1x1 whatever kernel_size says; with a stride the gates would not fit.
    config.pop("kernel_size", None)
    assert config.pop("stride", 1) == 1
    assert not config, f"unknown options {sorted(config)}"
    mixer = PolarizedSelfAttention(dim, layout=layouts[name]).eval()
    load_official(mixer, case.params)
    given = case.inputs["x"].requires_grad_()
    x = given.movedim(1, -1)
    answers = {"y": mixer(x), "channel_branch": x * mixer.channel_gate(x), "spatial_branch": x * mixer.place_gate(x)}
    outputs = {name: y.movedim(-1, 1) for name, y in answers.items()}
    own = {f"conv_{name}": p for name, p in mixer.named_parameters()}
    found = case.gradients(outputs["y"].square().mean(), {"x": given, **own})
    return outputs, {name: g.view(case.grads[name].shape) for name, g in found.items()}
