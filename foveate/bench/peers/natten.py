"""NATTEN: without CUDA it has flex attention alone, forward only."""

from __future__ import annotations

from torch import Tensor

from ..cases import Problem
from . import Contender, library, peer


@peer("natten", of=("neighborhood_attention_*",), package="natten")
def neighborhood(problem: Problem) -> Contender:
    run = getattr(library("natten"), f"na{len(problem.sizes['grid'])}d")
    names = {"window": "kernel_size", "dilation": "dilation", "stride": "stride", "causal": "is_causal"}
    options = {theirs: problem.sizes[name] for name, theirs in names.items() if name in problem.sizes}

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Heads last, as it wants them.
        q, k, v = (m.movedim(1, -2).contiguous() for m in (q, k, v))
        return run(q, k, v, **options).movedim(-2, 1)

    return Contender(call, no_backward="it has no backward pass on CPUs")
