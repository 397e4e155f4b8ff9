"""mambapy's block, with our weights: a parallel scan written in torch."""

from __future__ import annotations

from typing import Any

from ..cases import Problem
from . import Contender, peer


@peer("mambapy MambaBlock", of=("mamba",), package="mambapy")
def mamba(problem: Problem) -> Contender:
    from mambapy.mamba import MambaBlock, MambaConfig

    ours: Any = problem.module
    block = MambaBlock(MambaConfig(ours.dim, n_layers=1, d_state=ours.d_state)).eval()
    block.load_state_dict(ours.state_dict())
    return Contender(lambda x: block(x), tuple(block.parameters()))
