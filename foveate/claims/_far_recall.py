"""Associative recall whose pair lies outside the query's chunk, as the TCNCA paper (arXiv 2312.05605) studies it.

A sequence is pairs of a key and its value, then a key; the value that followed it is to be said. The key asked for
stands before the last chunk only, so that attention inside chunks cannot find it without help.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers import Mixer


class RecallNet(nn.Module):
    """Embedding, residual blocks ``x + mixer(norm(x))``, and a linear head on the last token.

    Args:
        mixers: one per layer.
        words: number of different keys and values.
    """

    def __init__(self, mixers: list[Mixer], words: int) -> None:
        super().__init__()
        dim = mixers[0].dim
        self.embedding = nn.Embedding(words, dim)
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(len(mixers) + 1))
        self.head = nn.Linear(dim, words)

    def forward(self, words: Tensor) -> Tensor:
        """Words ``(batch, length)`` to scores ``(batch, words)``."""
        x = self.embedding(words)
        for mixer, norm in zip(self.mixers, self.norms, strict=False):
            x = x + mixer(norm(x))
        return self.head(self.norms[-1](x[:, -1]))


def far_pairs(number: int, length: int, keys: int, chunk: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences ``(number, length - 1)``, the last key asked for among them, and the values ``(number,)``.

    Args:
        length: even; a multiple of ``chunk``.
        keys: different keys, and as many values; each sequence has a dictionary of its own.
    """
    pairs = length // 2 - 1
    dictionary = torch.randint(keys, 2 * keys, (number, keys), generator=generator)
    asked = torch.randint(keys, (number, 1), generator=generator)
    said = torch.randint(keys, (number, pairs), generator=generator)
    near = 2 * torch.arange(pairs) >= length - chunk
    said = torch.where(near & (said == asked), (said + 1) % keys, said)
    place = torch.randint(int((~near).sum()), (number, 1), generator=generator)
    said = said.scatter(1, place, asked)
    words = torch.stack([said, dictionary.gather(1, said)], 2).flatten(1)
    return torch.cat([words, asked], 1), dictionary.gather(1, asked)[:, 0]


def far_recall_accuracy(
    mixers: list[Mixer], *, length: int, keys: int, chunk: int, steps: int, lr: float, seed: int = 0, batch: int = 16
) -> float:
    """Share of values that a network of these mixers says right of 1,000 new sequences after training."""
    net = RecallNet(mixers, 2 * keys)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        words, values = far_pairs(batch, length, keys, chunk, generator)
        loss = F.cross_entropy(net(words), values)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    words, values = far_pairs(1000, length, keys, chunk, torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        return float((net(words).argmax(-1) == values).double().mean())
