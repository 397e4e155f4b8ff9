"""mambapy's block, with our weights: a parallel scan written in torch."""

from __future__ import annotations

from typing import Any, cast

from ..cases import Problem
from . import Contender, library, peer


@peer("mambapy MambaBlock", of=("mamba",), package="mambapy")
def mamba(problem: Problem) -> Contender:
    theirs, ours = library("mambapy.mamba"), cast(Any, problem.module)
    block = theirs.MambaBlock(theirs.MambaConfig(ours.dim, n_layers=1, d_state=ours.d_state)).eval()
    block.load_state_dict(ours.state_dict())
    return Contender(lambda x: block(x), tuple(block.parameters()))
