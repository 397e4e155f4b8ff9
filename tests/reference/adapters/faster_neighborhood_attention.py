"""Neighborhood attention against ``natten.na1d``, ``na2d`` and ``na3d`` of SHI-Labs/NATTEN (flex backend on CPU)."""

from __future__ import annotations

import torch
from cases import Answer, Case

from foveate.ops.neighborhood_attention import neighborhood_attention, neighborhood_mask

TOLERANCE = 1e-5


def run(case: Case) -> Answer:
    config = case.config
    names = {"stride": "stride", "dilation": "dilation", "is_causal": "causal"}
    window = tuple(config["kernel_size"])
    options = {ours: tuple(config[theirs]) for theirs, ours in names.items() if theirs in config}
    inputs = {name: m.requires_grad_() for name, m in case.inputs.items()}
    # Official tensors have heads behind the grid.
    ours = {name: m.movedim(-2, 1) for name, m in inputs.items()}
    extra = {"extra_k": ours.get("additional_keys"), "extra_v": ours.get("additional_values")}
    y, lse = neighborhood_attention(ours["q"], ours["k"], ours["v"], window, return_lse=True, **options, **extra)
    y = y.movedim(1, -2)
    mask = neighborhood_mask(tuple(config["shape"]), window, **options)
    outputs = {"y": y, "lse": lse.movedim(1, -1), "mask": mask.to(torch.uint8)}
    return outputs, case.gradients(y.square().mean(), inputs)
