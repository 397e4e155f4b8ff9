"""Models that read token numbers ``(B, L)`` and answer with logits ``(B, L, vocabulary)``."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from . import Example, Inputs

LENGTH = 77  # more than one block of most mixers, and a multiple of none


def inputs(info: SimpleNamespace, batch: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(info.vocabulary, (batch, LENGTH), generator=generator),), {}


def wrong(info: SimpleNamespace) -> dict[str, Inputs]:
    (tokens,), _ = inputs(info, 2, 0)
    return {"no batch axis": ((tokens[0],), {}), "fractions": ((tokens.float(),), {})}


EXAMPLE = Example(
    name="tokens",
    info=SimpleNamespace(vocabulary=11),
    inputs=inputs,
    answer=lambda info, batch: (batch, LENGTH, info.vocabulary),
    wrong=wrong,
    stream=LENGTH,
)
