"""Forms of MambaMixer that its claims are checked against, written out plainly; no claims in here."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers.mamba_mixer import GridScan, GridTokenMixer
from ..mixers.weighted_average import MambaMixerBlock, MambaMixerStack
from ..models.vision.mamba_mixer import ViM2


def noisy(module: nn.Module, scale: float = 0.1) -> None:
    """Move every parameter from where it starts, so that no zero hides a fault."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)


class Chain(nn.Module):
    """The same blocks one after the other, written out."""

    def __init__(self, stack: MambaMixerStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stack.blocks:
            assert isinstance(block, MambaMixerBlock)
            x = block.channel(block.channel_norm(block.token(block.token_norm(x))))  # type: ignore[misc]
        return x


def small_vim2(**options: object) -> ViM2:
    """ViM2 with two stages, of two and four token mixers, moved from where it starts but for its averages."""
    torch.manual_seed(0)
    model = ViM2(2, 3, depths=(2, 4), dims=(8, 12), patch_size=2, d_state=3, **options).double()  # type: ignore[arg-type]
    kept = {name: value.clone() for name, value in model.state_dict().items() if ".average." in name}
    noisy(model)
    model.load_state_dict(kept, strict=False)
    return model


def cross_scan_written_out(mixer: GridTokenMixer, x: Tensor) -> Tensor:
    """VMamba's SS2D on one map after the other, place after place."""
    height, width = x.shape[1:3]
    u, z = (x @ mixer.in_proj.weight.T).chunk(2, -1)
    u = F.silu(F.conv2d(u.movedim(-1, 1), mixer.conv.weight, mixer.conv.bias, padding=1, groups=mixer.inner))
    u, total = u.movedim(1, -1), torch.zeros_like(z)
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    for branch, path in zip(mixer.branches, (rows, columns, rows[::-1], columns[::-1]), strict=True):
        assert isinstance(branch, GridScan)
        state = x.new_zeros(len(x), mixer.inner, branch.d_state)
        for i, j in path:
            step, B, C = (u[:, i, j] @ branch.x_proj.weight.T).split((branch.dt_rank, *[branch.d_state] * 2), -1)
            step = F.softplus(branch.dt_proj(step)).unsqueeze(-1)
            state = torch.exp(-branch.A_log.exp() * step) * state + step * B.unsqueeze(1) * u[:, i, j].unsqueeze(-1)
            total[:, i, j] += (state * C.unsqueeze(1)).sum(-1) + branch.D * u[:, i, j]
    assert mixer.norm is not None
    return mixer.norm(total) * F.silu(z) @ mixer.out_proj.weight.T


def leave_linear_layers(tokens: GridTokenMixer, block: nn.Module) -> None:
    """Take scans and convolutions out of both: filters that pass their middle, C = 0, and a gate of 1."""
    one = 1.2784645427610738  # silu(one) = 1
    for owner in (tokens, block):
        noisy(owner)
        branches, enter = cast(nn.ModuleList, owner.branches), cast(nn.Linear, owner.in_proj)
        inner = enter.out_features // 2
        enter.weight[inner:], enter.bias[inner:] = 0, one
        for branch in branches:
            core = cast(GridScan, branch)
            core.x_proj.weight.zero_()
            core.D.fill_(1 / len(branches))
    for conv, middle in ((tokens.conv, (1, 1)), *((b.conv1d, (-1,)) for b in cast(nn.ModuleList, block.branches))):
        conv.weight.zero_()[(slice(None), slice(None), *middle)] = 1
        conv.bias.zero_()


def two_layers(owner: nn.Module, x: Tensor) -> Tensor:
    """What is left: a linear layer, SiLU, a linear layer."""
    enter, leave = cast(nn.Linear, owner.in_proj), cast(nn.Linear, owner.out_proj)
    inner = leave.in_features
    return F.linear(F.silu(F.linear(x, enter.weight[:inner], enter.bias[:inner])), leave.weight, leave.bias)
