"""The attention of DiNAT against ``natten.NeighborhoodAttention2D`` on NATTEN's CPU kernels."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from cases import Answer, Case

from foveate.ops.neighborhood_attention import neighborhood_attention

TOLERANCE = 1e-5


def run(case: Case) -> Answer:
    if "NeighborhoodAttention2D" not in case.official_class:
        pytest.skip(f"{case.official_class} is not built")

    def per_axis(value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    config = case.config
    given = {name: m.requires_grad_() for name, m in case.params.items()}
    x = case.inputs["x"].requires_grad_()
    heads = config["num_heads"]
    qkv = F.linear(x, given["qkv.weight"], given.get("qkv.bias"))
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).movedim(-2, 1).unbind(-2)
    y = neighborhood_attention(
        q,
        k,
        v,
        per_axis(config["kernel_size"]),
        dilation=per_axis(config.get("dilation") or 1),
        causal=per_axis(config.get("is_causal") or False),
        bias=given.get("rpb"),
    )
    y = F.linear(y.movedim(1, -2).flatten(-2), given["proj.weight"], given.get("proj.bias"))
    return {"y": y}, case.gradients(y.square().mean(), {"x": x, **given})
