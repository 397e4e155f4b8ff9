"""Random arguments for kernels, and whether a kernel answers as the reference does.

A test of a kernel draws sizes and flags with hypothesis, makes tensors of any strides from a seed, and gives both to
:func:`agree`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.ops import backend, native

needs_kernels = pytest.mark.skipif(not native.AVAILABLE, reason="the native kernels are not built here")

#: Deviation allowed, relative to the largest number of each result.
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float64: 1e-11}
dtypes = st.sampled_from(list(LIMITS))


def examples(quick: int) -> settings:
    """So many random cases, the same ones every time; FOVEATE_EXAMPLES asks for another number."""
    return settings(
        max_examples=int(os.environ.get("FOVEATE_EXAMPLES", quick)),
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Maker:
    """Makes tensors whose numbers and strides follow from a seed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def number(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers; axes lie in any order in memory, sometimes with gaps."""
        order = torch.randperm(len(shape), generator=self.generator).tolist()
        stored = [shape[axis] + self.number(3) * (self.number(3) == 0) for axis in order]
        full = torch.randn(stored, generator=self.generator, dtype=torch.float64).to(dtype or self.dtype)
        for place, axis in enumerate(order):
            full = full.narrow(place, stored[place] - shape[axis], shape[axis])
        return full.permute([order.index(axis) for axis in range(len(shape))])

    def documents(self, *shape: int) -> Tensor:
        """Document numbers, about one border in four positions."""
        return (torch.rand(shape, generator=self.generator) < 0.25).cumsum(-1) % 3


def answers(
    run: Callable[..., Sequence[Tensor | None]], given: Mapping[str, Any], form: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and gradients of a loss that reads all of them, with respect to every differentiable argument."""
    given = {
        k: v.detach().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in given.items()
    }
    wanted = [v for v in given.values() if isinstance(v, Tensor) and v.requires_grad]
    with backend(form):
        results = [r for r in run(**given) if r is not None]
        loss = torch.zeros((), dtype=torch.float64)
        for r in results:
            # Not as much below zero as above: what is a sum over all of a result would cancel to its rounding.
            weights = torch.linspace(-0.5, 1, r.numel(), dtype=torch.float64).view(r.shape)
            loss = loss + (r.double() * weights).sum()
        gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [r.detach() for r in results], list(gradients)


def agree(
    run: Callable[..., Sequence[Tensor | None]], given: Mapping[str, Any], dtype: torch.dtype, form: str = "native"
) -> None:
    """A form of an op equals its reference, in results and gradients.

    Args:
        run: calls the op; returns all its results.
        given: the arguments by name.
        dtype: of the numbers, which decides how near is equal.
        form: the backend.
    """
    found, expected = answers(run, given, form), answers(run, given, "reference")
    for kind, ours, theirs in zip(("result", "gradient"), found, expected, strict=True):
        # A sum over all positions may cancel to nearly nothing; its rounding is still that of its terms.
        largest = max((float(m.double().abs().max()) for m in theirs if m.numel()), default=0.0)
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert one.shape == other.shape, (kind, place)
            assert one.dtype == other.dtype, (kind, place)
            assert one.isfinite().all(), (kind, place)
            if not one.numel():
                continue
            scale = max(float(other.double().abs().max()), 1e-2 * largest, 1e-3)
            error = float((one.double() - other.double()).abs().max()) / scale
            assert error <= LIMITS[dtype], f"{kind} {place} deviates by {error:.2e} of {scale:.2e}"
