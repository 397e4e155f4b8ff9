"""Floating-point operations of a call, counted while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)

#: Attention and linear layers as CPUs run them, which torch's own counter leaves out; formulas of the shapes.
_CPU_FORMS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _CPU_FORMS[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]
#: FLOPs of an operator: called with its arguments and ``out_val``.
FLOPS = {**flop_registry, **{operator: shape_wrapper(formula) for operator, formula in _CPU_FORMS.items()}}


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_CPU_FORMS)


def count_flops(call: Callable[[], Any]) -> int:
    """FLOPs of one call without gradients: matmuls, convolutions and attention products, 2 per multiply-add.

    This is the part that :class:`torch.utils.flop_counter.FlopCounterMode` knows, and attention as CPUs run it;
    element-wise work and scans are not in it, nor is what a native kernel does, so ask for torch's own operators first
    (``with foveate.ops.backend("torch")``). On the meta device nothing is computed: ``count_flops(lambda: model(x))``
    with ``model`` and ``x`` on meta costs milliseconds at any size.
    """
    with torch.no_grad(), _counter() as counter:
        call()
    return counter.get_total_flops()


def training_flops(module: nn.Module, x: Tensor) -> int:
    """FLOPs of ``module(x)`` and of its backward pass, gradients of ``x`` and of all parameters; counted alike."""
    with torch.enable_grad(), _counter() as counter:
        module(x.detach().requires_grad_()).sum().backward()
    return counter.get_total_flops()
