"""The operator and the example layer of the authors' lightning-attention repository."""

from __future__ import annotations

import pytest
from cases import Answer, Case

from foveate.mixers.lightning_attention_2 import TnlAttention
from foveate.models.official import load_official
from foveate.ops.linear_attention import lightning_attention


def run(case: Case) -> Answer:
    name = case.official_class.rsplit(".", 1)[-1]
    if name == "linear_attn" or "q" in case.inputs:
        return operator(case)
    if name == "TnlAttention":
        return layer(case)
    pytest.skip(f"{case.official_class} is not built")


def operator(case: Case) -> Answer:
    inputs = case.inputs
    slope = inputs.pop("s", None)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    o = lightning_attention(leaves["q"], leaves["k"], leaves["v"], slope, block=case.config.get("kernel_block"))
    return {"o": o}, case.gradients(o.square().mean(), leaves)


def layer(case: Case) -> Answer:
    config = case.config
    mixer = TnlAttention(
        config["embed_dim"],
        num_heads=config["num_heads"],
        layer=config["layer_idx"],
        depth=config["num_layers"],
        bias=case.has_param(r"q_proj\.bias"),
    )
    load_official(mixer, case.params)
    x = case.inputs["x"].requires_grad_()
    o = mixer(x)
    return {"o": o}, case.gradients(o.square().mean(), {"x": x, **dict(mixer.named_parameters())})
