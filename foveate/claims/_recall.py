"""Multi-query associative recall (MQAR) for claims about mixers: a small network that is trained and asked.

The samples are those of :func:`foveate.tasks.probing.recall.mqar`. What is compared is recall alone: every network
begins with the same convolution over two tokens, which puts a value beside its key, and the mixer under test follows.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers import Mixer
from ..mixers.gated_conv import GatedConv
from ..tasks.probing.recall import mqar

#: Samples after training.
ASKED = 500


class RecallNet(nn.Module):
    """Embedding, residual blocks ``x + mixer(norm(x))``, and a linear head where something is asked.

    Args:
        mixer: behind the convolution; it gives the width.
        words: vocabulary.
    """

    def __init__(self, mixer: Mixer, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, mixer.dim)
        self.mixers = nn.ModuleList([GatedConv(mixer.dim, causal=True, width=2), mixer])
        self.norms = nn.ModuleList(nn.LayerNorm(mixer.dim) for _ in range(3))
        self.head = nn.Linear(mixer.dim, words)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Scores ``(batch, answers, words)`` at int64 ``places`` ``(batch, answers)`` of ``(batch, length)`` tokens."""
        x = self.embedding(tokens)
        for mixer, norm in zip(self.mixers, self.norms, strict=False):
            x = x + mixer(norm(x))
        x = x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
        return self.head(self.norms[-1](x))


def recall_accuracy(
    mixer: Mixer, seed: int, *, length: int, pairs: int, words: int, steps: int, lr: float, batch: int = 32
) -> float:
    """Share of right values in new samples after training on ``steps`` batches of fresh ones."""
    net = RecallNet(mixer, words)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        tokens, places, answers = _samples(generator, batch, length, pairs, words)
        loss = F.cross_entropy(net(tokens, places).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        tokens, places, answers = _samples(generator, ASKED, length, pairs, words)
        return float((net(tokens, places).argmax(-1) == answers).double().mean())


def _samples(generator: np.random.Generator, rows: int, length: int, pairs: int, words: int) -> tuple[Tensor, ...]:
    made = mqar(generator, rows, length=length, pairs=pairs, vocabulary=words)
    return tuple(torch.from_numpy(m) for m in (made.tokens, made.places, made.answers))
