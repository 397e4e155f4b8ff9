"""The GPU kernels, written in Triton. Optional: ``pip install triton``; without it, every op has its torch form.

They are checked for correctness by Triton's interpreter on CPUs and have been timed nowhere, so "auto" does not take
them: ``ops.backend("triton")`` does. A kernel's file is imported when it is first used, and triton with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

INSTALLED = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def available() -> bool:
    """Whether kernels can run here: triton is installed, and there is a GPU or the interpreter is asked for."""
    return INSTALLED and (interpreted() or torch.cuda.is_available())


def takes(*tensors: Tensor | None) -> bool:
    """Whether a kernel can be given these tensors: all are real and on the device that kernels run on."""
    device = "cpu" if interpreted() else "cuda"
    return available() and all(t is None or (t.device.type == device and not t.is_complex()) for t in tensors)


def form(name: str, inputs: Sequence[Tensor | None]) -> Callable[..., Any] | None:
    """The Triton form of an op, ``<name>_triton`` in ``<name>.py`` here, if it is asked for and takes these tensors."""
    from ..backend import current_backend  # it asks this module what is available

    if current_backend() != "triton":
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    return getattr(module, f"{name}_triton") if module.fits(*inputs) else None


def power_of_two(size: int) -> int:
    """The least power of two that is not below ``size``: what a block's axis must be."""
    return 1 << max(0, size - 1).bit_length()


def precision(dtype: torch.dtype) -> str:
    """How products of float32 tiles are made for inputs of this dtype: numbers of 16 bits lose nothing in tf32."""
    return "tf32" if dtype.itemsize == 2 else "ieee"
