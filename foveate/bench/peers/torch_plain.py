"""What one would write with plain torch operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cases import Problem
from . import Contender, peer

#: Tokens of a chunk of the plain form of linear attention.
CHUNK = 64


@peer("one torch.exp per state", of=("selective_scan*",), same=False)
def exponential(problem: Problem) -> Contender:
    shape = [problem.sizes[name] for name in ("length", "channels", "states")]
    numbers = -torch.rand(shape)
    room = torch.empty_like(numbers)
    return Contender(lambda **_: torch.exp(numbers, out=room), no_backward="an output room takes no gradient")


@peer("conv1d and SiLU", of=("causal_conv1d",))
def convolution(problem: Problem) -> Contender:
    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        taps, length = weight.shape[1], x.shape[2]
        y = F.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=weight.shape[0])
        return F.silu(y[..., :length])

    return Contender(call)


@peer("plain torch, chunk 64", of=("linear_attention",))
def chunked(problem: Problem) -> Contender:
    return Contender(_linear_attention)


def _linear_attention(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Tensor:
    """Causal linear attention with a decay for each head, chunk after chunk."""
    batch, heads, length, d = q.shape
    t = torch.arange(CHUNK, dtype=q.dtype)
    rate = slope.view(-1, 1, 1)
    distance = t[:, None] - t
    inside = torch.where(distance >= 0, torch.exp(-rate * distance.clamp(min=0)), torch.zeros(()))
    from_start = torch.exp(-rate * (t[:, None] + 1))
    state, out = q.new_zeros(batch, heads, d, v.shape[-1]), []
    for start in range(0, length, CHUNK):
        q_c, k_c, v_c = (m[:, :, start : start + CHUNK] for m in (q, k, v))
        n = q_c.shape[2]
        y = (q_c @ k_c.transpose(-1, -2) * inside[:, :n, :n]) @ v_c
        out.append(y + (q_c * from_start[:, :n]) @ state)
        to_end = torch.exp(-rate * (n - 1 - t[:n, None]))
        state = torch.exp(-rate * n) * state + (k_c * to_end).transpose(-1, -2) @ v_c
    return torch.cat(out, dim=2)
