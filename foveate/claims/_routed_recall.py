"""Recall over long distances, for claims about routing: a network of one mixer, trained with centroids that move.

A token is a symbol and a label. In the first half of a sequence every symbol carries its label, a dictionary that each
sequence draws anew; in the second half labels are hidden and to be said. One look at an earlier token of the same
symbol is enough, but it stands some hundred tokens back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers import Mixer, aux_losses
from ..mixers.routing_transformer import OnlineKMeans


class LabelNet(nn.Module):
    """Embeddings of symbol and label, ``x + mixer(norm(x))``, and a linear head.

    Args:
        mixer: gives the width.
        symbols, labels: how many there are.
    """

    def __init__(self, mixer: Mixer, symbols: int, labels: int) -> None:
        super().__init__()
        self.symbol, self.label = nn.Embedding(symbols, mixer.dim), nn.Embedding(labels + 1, mixer.dim)
        self.mixer, self.norm = mixer, nn.LayerNorm(mixer.dim)
        self.head = nn.Sequential(nn.LayerNorm(mixer.dim), nn.Linear(mixer.dim, labels))

    def forward(self, symbols: Tensor, labels: Tensor) -> Tensor:
        """Scores ``(batch, length, labels)`` of int64 symbols and labels ``(batch, length)``; the last label hides."""
        x = self.symbol(symbols) + self.label(labels)
        return self.head(x + self.mixer(self.norm(x)))


def labelled(
    count: int, length: int, symbols: int, labels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Symbols, labels as they are shown, and labels as they are, each int64 ``(count, length)``."""
    drawn = torch.randint(symbols, (count, length), generator=generator)
    answers = torch.randint(labels, (count, symbols), generator=generator).gather(1, drawn)
    hidden = torch.arange(length) >= length // 2
    return drawn, answers.masked_fill(hidden, labels), answers


def labels_found(
    mixer: Mixer, seed: int, *, length: int, symbols: int, labels: int, steps: int, lr: float, batch: int = 16
) -> float:
    """Share of hidden labels that are said right in 100 new sequences.

    Training is as the default recipe has it: auxiliary losses are added, and centroids move behind every step.
    """
    generator = torch.Generator().manual_seed(seed)
    net = LabelNet(mixer, symbols, labels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    half = length // 2
    for _ in range(steps):
        drawn, shown, answers = labelled(batch, length, symbols, labels, generator)
        scores = net(drawn, shown)[:, half:].flatten(0, 1)
        loss = F.cross_entropy(scores, answers[:, half:].flatten()) + sum(aux_losses(net).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        for module in net.modules():
            if isinstance(module, OnlineKMeans):
                module.after_step()
    net.eval()
    drawn, shown, answers = labelled(100, length, symbols, labels, torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        found = net(drawn, shown).argmax(-1) == answers
    return float(found[:, half:].double().mean())
