"""Sigmoid attention against ``attention_simulator.layers.attention.Attention`` of apple/ml-sigmoid-attention."""

from __future__ import annotations

from typing import Any

import torch
from cases import Answer, Case

from foveate.mixers.sigmoid_attention import SigmoidAttention
from foveate.models.official import load_official

TOLERANCE = 1e-5


def run(case: Case) -> Answer:
    config = case.config
    mixer = SigmoidAttention(
        config["dim"],
        num_heads=config["num_heads"],
        causal=config.get("causal", False),
        bias=case.has_param(r"qkv\.bias"),
        qk_norm=case.has_param(r"q_norm\."),
        pos=config.get("position"),
        activation=config["activation"],
    ).eval()
    load_official(mixer, case.params)  # the constants are buffers of the release
    x = case.inputs["x"].requires_grad_()

    seen: list[torch.Tensor] = []
    mixer.proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    y = mixer(x)
    outputs = {"attn_proj": y, "attn_times_v": seen[0], "attn_matrix": weights(mixer, x)}
    loss = y.square().mean()
    return outputs, case.gradients(loss, {"x": x, **dict(mixer.named_parameters())})


def weights(mixer: SigmoidAttention, x: torch.Tensor) -> torch.Tensor:
    """The matrix of weights ``(batch, heads, n, n)``: what the layer makes of values that are the identity matrix."""
    n, kept = x.shape[1], {}
    project = mixer._project

    def with_identity(*tokens: Any) -> tuple[torch.Tensor, ...]:
        q, k, v = project(*tokens)
        return q, k, torch.eye(n).expand(*v.shape[:2], n, n)

    def keep(y: torch.Tensor, mask: Any) -> torch.Tensor:
        kept["y"] = y
        return x

    mixer._project, mixer._emit = with_identity, keep  # type: ignore[method-assign]
    mixer(x)
    del mixer._project, mixer._emit
    return kept["y"]
