"""Attention layers of MONAI and timm, with our weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cases import Problem
from . import Contender, library, peer

_OF = ("softmax_attention",)


@peer("monai SABlock", of=_OF, package="monai")
def monai(problem: Problem) -> Contender:
    ours: Any = problem.module
    block = (
        library("monai.networks.blocks.selfattention")
        .SABlock(ours.dim, ours.num_heads, qkv_bias=True, use_flash_attention=True)
        .eval()
    )
    return _with_our_weights(block, ours, block.out_proj)


@peer("timm Attention", of=_OF, package="timm")
def timm(problem: Problem) -> Contender:
    ours: Any = problem.module
    block = library("timm.layers").Attention(ours.dim, ours.num_heads, qkv_bias=True).eval()
    return _with_our_weights(block, ours, block.proj)


def _with_our_weights(block: Any, ours: Any, out: Any) -> Contender:
    """Queries, keys and values come from one layer there."""
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    block.qkv.weight = torch.nn.Parameter(torch.cat([p.weight.detach() for p in projections]))
    block.qkv.bias = torch.nn.Parameter(torch.cat([p.bias.detach() for p in projections]))
    out.load_state_dict(ours.out_proj.state_dict())

    def call(x: Tensor) -> Tensor:
        return block(x)

    return Contender(call, tuple(block.parameters()))
