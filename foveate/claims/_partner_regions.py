"""A task for attention that finds places by content: a region must tell what stands in the other one of its colour."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers.base import Mixer

#: Regions along each axis, places along each axis of one, colours (two regions have each) and labels.
REGIONS, EDGE, COLOURS, LABELS = 4, 2, 8, 4


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures and what is asked.

    Returns:
        ``(count, 8, 8, 12)``: colour, and the label in one region of each colour; labels ``(count, 8, 8)``, -1 where
        nothing is asked.
    """
    order = torch.rand(count, REGIONS**2, generator=generator).argsort(-1)
    labels = torch.randint(LABELS, (count, COLOURS), generator=generator)
    colours = order % COLOURS  # the first 8 of the order tell, the others ask
    asks = order >= COLOURS
    answer = labels.gather(1, colours)
    told = F.one_hot(answer, LABELS) * ~asks[..., None]
    x = torch.cat([F.one_hot(colours, COLOURS), told], -1).float()
    x, wanted = (m.unflatten(1, (REGIONS, REGIONS)) for m in (x, answer.masked_fill(~asks, -1)))
    return tuple(m.repeat_interleave(EDGE, 1).repeat_interleave(EDGE, 2) for m in (x, wanted))  # type: ignore[return-value]


def share_answered(mixer: Mixer, seed: int, steps: int, lr: float = 3e-3) -> float:
    """Share of places that are right after training a network of one mixer."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    into, out = nn.Linear(COLOURS + LABELS, mixer.dim), nn.Linear(mixer.dim, LABELS)
    parameters = [p for m in (into, mixer, out) for p in m.parameters()]
    optimiser = torch.optim.Adam(parameters, lr)

    def answers(x: Tensor) -> Tensor:
        x = into(x)
        return out(x + mixer(x))

    for _ in range(steps):
        x, wanted = pictures(32, generator)
        loss = F.cross_entropy(answers(x).flatten(0, 2), wanted.flatten(), ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        x, wanted = pictures(256, generator)
        asked = wanted >= 0
        return float((answers(x).argmax(-1) == wanted)[asked].float().mean())
