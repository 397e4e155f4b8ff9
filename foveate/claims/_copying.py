"""Selective copying, the synthetic task of the Mamba paper (arXiv 2312.00752, section 4.1.1).

A few tokens stand at random places among blanks; at the end they must be said in their order. A network whose dynamics
do not depend on the input cannot tell tokens from blanks when it decides what to keep.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers import Mixer

BLANK, SAY = 0, 1  # the first two words; the others are to be copied


class CopyNet(nn.Module):
    """Embedding, residual blocks ``x + mixer(norm(x))``, and a linear head on the last ``count`` tokens.

    Args:
        mixers: one per layer.
        words: vocabulary, the blank and the sign to speak included.
        count: tokens to copy.
    """

    def __init__(self, mixers: list[Mixer], words: int, count: int) -> None:
        super().__init__()
        dim, self.count = mixers[0].dim, count
        self.embedding = nn.Embedding(words, dim)
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(nn.RMSNorm(dim, eps=1e-5) for _ in range(len(mixers) + 1))
        self.head = nn.Linear(dim, words)

    def forward(self, words: Tensor) -> Tensor:
        """Words ``(batch, length)`` to scores ``(batch, count, words)``."""
        x = self.embedding(words)
        for mixer, norm in zip(self.mixers, self.norms, strict=False):
            x = x + mixer(norm(x))
        return self.head(self.norms[-1](x[:, -self.count :]))


def sequences(number: int, length: int, count: int, words: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs ``(number, length + count)`` and the tokens to say ``(number, count)``."""
    tokens = torch.randint(2, words, (number, count), generator=generator)
    places = torch.rand(number, length, generator=generator).argsort(1)[:, :count].sort(1).values
    inputs = torch.full((number, length + count), BLANK)
    inputs[:, length:] = SAY
    return inputs.scatter(1, places, tokens), tokens


def copying_accuracy(
    mixers: list[Mixer], *, length: int, count: int, words: int, steps: int, lr: float, batch: int = 16
) -> float:
    """Share of tokens that a network of these mixers copies from 500 new sequences after training."""
    net = CopyNet(mixers, words, count)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        inputs, tokens = sequences(batch, length, count, words, generator)
        loss = F.cross_entropy(net(inputs).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    inputs, tokens = sequences(500, length, count, words, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((net(inputs).argmax(-1) == tokens).double().mean())
