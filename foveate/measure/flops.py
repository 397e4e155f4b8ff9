"""Floating-point operations of a call, counted while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], Any]) -> int:
    """FLOPs of one call without gradients: matmuls, convolutions and attention products, 2 per multiply-add.

    This is the part that :class:`torch.utils.flop_counter.FlopCounterMode` knows; element-wise work and scans are not
    in it, nor is what a native kernel does, so ask for torch's own operators first
    (``with foveate.ops.backend("torch")``). On the meta device nothing is computed: ``count_flops(lambda: model(x))``
    with ``model`` and ``x`` on meta costs milliseconds at any size.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def training_flops(module: nn.Module, x: Tensor) -> int:
    """FLOPs of ``module(x)`` and of its backward pass, gradients of ``x`` and of all parameters; counted alike."""
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        module(x.detach().requires_grad_()).sum().backward()
    return counter.get_total_flops()
