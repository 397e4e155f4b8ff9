"""The Mamba layers of transformers, with our weights. Without CUDA they run its own torch loops."""

from __future__ import annotations

from typing import Any

from ..cases import Problem
from . import Contender, library, peer


@peer("transformers MambaMixer", of=("mamba",), package="transformers")
def mamba(problem: Problem) -> Contender:
    theirs, ours = library("transformers.models.mamba.modeling_mamba"), _module(problem)
    config = theirs.MambaConfig(hidden_size=ours.dim, state_size=ours.d_state, num_hidden_layers=1)
    layer = theirs.MambaMixer(config, layer_idx=0).eval()
    layer.load_state_dict(ours.state_dict())
    return Contender(
        lambda x: layer(x), tuple(layer.parameters()), no_backward="its loop's backward pass takes minutes"
    )


@peer("transformers Mamba2Mixer", of=("mamba2", "mamba2_state64"), package="transformers")
def mamba2(problem: Problem) -> Contender:
    theirs, ours = library("transformers.models.mamba2.modeling_mamba2"), _module(problem)
    config = theirs.Mamba2Config(
        hidden_size=ours.dim,
        state_size=ours.d_state,
        num_heads=ours.num_heads,
        head_dim=ours.head_dim,
        expand=ours.d_inner // ours.dim,
        n_groups=ours.num_groups,
        num_hidden_layers=1,
    )
    layer = theirs.Mamba2Mixer(config, layer_idx=0).eval()
    layer.load_state_dict(ours.state_dict())
    return Contender(lambda x: layer(x), tuple(layer.parameters()))


def _module(problem: Problem) -> Any:
    """The mixer of ours; its sizes are read off it."""
    return problem.module
