"""Hyper-connections with constrained mixing: several residual streams instead of one.

Zhu et al., "Hyper-Connections" (2024, arXiv 2409.19606), in the manifold-constrained form (mHC, 2025) of
lucidrains/hyper-connections (MIT). For streams x_1 ... x_S of a token, with weights that depend on the token::

    into the branch   sum_s sigmoid(a_s) x_s
    streams           x'_t = sum_s R_st x_s + 2 sigmoid(b_t) branch          R: Sinkhorn, rows and columns sum to 1
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.handwritten import sum_dtype

#: Rounds of Sinkhorn's normalisation, as published.
ROUNDS = 20


class HyperConnection(nn.Module):
    """The connections of one branch.

    Args:
        streams: residual streams; the branch starts by reading one of them, ``first``.
        dim: channels.
        first: number of that stream.
        adds: the branch's output is added to the streams.
    """

    def __init__(self, streams: int, dim: int, *, first: int = 0, adds: bool = True) -> None:
        super().__init__()
        read = F.one_hot(torch.tensor(first % streams), streams).float()[:, None]
        self.static_alpha = nn.Parameter(torch.cat([read, torch.eye(streams)], 1))
        self.dynamic_alpha = nn.Parameter(torch.zeros(1, dim, streams + 1))  # one proposal, as the release has it
        self.read_scale = nn.Parameter(torch.full((1,), 1e-2))
        self.mix_scale = nn.Parameter(torch.full((1,), 1e-2))
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.static_beta = nn.Parameter(torch.ones(streams)) if adds else None
        self.dynamic_beta = nn.Parameter(torch.zeros(dim)) if adds else None
        self.add_scale = nn.Parameter(torch.tensor(1e-2)) if adds else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the branch reads, and what :meth:`add` needs.

        Args:
            x: ``(..., streams, dim)``.

        Returns:
            ``(..., dim)``; the mixed streams; the weights of the branch's output in each, ``(..., streams)``.
        """
        wide = x.to(sum_dtype(x.dtype))
        normed = F.normalize(wide, dim=-1) * math.sqrt(x.shape[-1]) * (self.gamma + 1)
        scale = torch.cat([self.read_scale, self.mix_scale.expand(x.shape[-2])])
        alpha = (normed @ self.dynamic_alpha[0].to(wide.dtype)) * scale + self.static_alpha
        weights = torch.cat([alpha[..., :1].sigmoid(), sinkhorn(alpha[..., 1:])], -1)
        mixed = (weights.mT @ wide).to(x.dtype)
        beta = None
        if self.static_beta is not None and self.dynamic_beta is not None and self.add_scale is not None:
            beta = 2 * (normed @ self.dynamic_beta.to(wide.dtype) * self.add_scale + self.static_beta).sigmoid()
        return mixed[..., 0, :], mixed[..., 1:, :], beta

    @staticmethod
    def add(branch: Tensor, mixed: Tensor, beta: Tensor | None) -> Tensor:
        """The streams ``(..., streams, dim)`` with the branch's output ``(..., dim)``."""
        return mixed if beta is None else mixed + (branch.unsqueeze(-2) * beta.unsqueeze(-1)).to(mixed.dtype)


def sinkhorn(scores: Tensor) -> Tensor:
    """Nearly doubly stochastic matrices ``(..., n, n)``: columns, then rows, made to sum to 1 in turn."""
    weights = (scores - scores.amax(-2, keepdim=True).detach()).exp()
    for _ in range(ROUNDS):
        weights = F.normalize(F.normalize(weights, p=1.0, dim=-2), p=1.0, dim=-1)
    return weights
