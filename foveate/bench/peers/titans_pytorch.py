"""lucidrains' neural memory: our form of it with the same weights, and the paper's form as another function."""

from __future__ import annotations

import re
from typing import Any, cast

from torch import Tensor

from ..cases import Problem
from . import Contender, library, peer


@peer("titans-pytorch NeuralMemory", of=("titans_pytorch_memory",), package="titans_pytorch")
def same_memory(problem: Problem) -> Contender:
    ours = cast(Any, problem.module)
    module = library("titans_pytorch").NeuralMemory(
        dim=ours.dim,
        heads=ours.num_heads,
        dim_head=ours.head_dim,
        chunk_size=ours.chunk,
        default_model_kwargs={"depth": ours.depth, "expansion_factor": ours.expansion},
    )
    module.load_state_dict({key: _ours(ours, key, value) for key, value in module.state_dict().items()})
    module = module.eval()
    return Contender(lambda x: module(x)[0], tuple(module.parameters()))


@peer("titans-pytorch NeuralMemory", of=("titans_lmm",), package="titans_pytorch", same=False)
def other_memory(problem: Problem) -> Contender:
    x, ours = problem.inputs["x"], cast(Any, problem.module)
    module = library("titans_pytorch").NeuralMemory(
        dim=x.shape[-1], heads=ours.num_heads, dim_head=ours.head_dim, chunk_size=ours.chunk
    )
    module = module.eval()
    return Contender(lambda x: module(x)[0], tuple(module.parameters()))


def _ours(memory: Any, key: str, value: Tensor) -> Tensor:
    """Our weight of an official name; the release's own where we have none."""
    (renamed,) = memory.convert_official({key: value}, "titans_pytorch")
    for pattern, replacement in memory.official_keys["titans_pytorch"].items():
        match = re.fullmatch(pattern, renamed)
        if match and replacement:
            return memory.state_dict()[match.expand(replacement)]
    return value
