"""The trained model of a probe as a plain module on token numbers: what ``best/`` ships."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue
from ..packaged import Packaged

if TYPE_CHECKING:
    from .base import ProbeInfo


class ProbeAnswers(Packaged):
    """A model of token numbers, with what new samples of its probe are drawn of.

    Args:
        model: int64 ``(B, L)`` to logits ``(B, L, vocabulary)``.
        info: sizes.
        options: of the probe, all filled in.
        seed: that its samples were drawn from.
    """

    def __init__(self, model: nn.Module, info: ProbeInfo, options: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.model, self.info, self.options, self.seed = model, info, dict(options), seed

    @property
    def config(self) -> dict[str, Any]:
        """All constructor options except the model, as JSON values."""
        info = {**asdict(self.info), "lengths": list(self.info.lengths)}
        return {"info": info, "options": dict(self.options), "seed": self.seed}

    def interface(self) -> dict[str, Any]:
        """See :meth:`Packaged.interface`."""
        words = self.info.vocabulary
        return {
            "inputs": {
                "tokens": f"int64 `(batch, length)`, token numbers below {words:,} as `{self.info.probe}` has them"
            },
            "output": f"float `(batch, length, {words})`, logits of the token asked for at each place",
            "example": f"torch.zeros(1, {self.info.length}, dtype=torch.int64)",
            "shape": f"(1, {self.info.length}, {words})",
        }

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments of :meth:`forward`."""
        generator = torch.Generator().manual_seed(seed)
        return {"tokens": torch.randint(self.info.vocabulary, (batch, self.info.length), generator=generator)}

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, L, vocabulary)`` of token numbers int64 ``(B, L)``.

        Raises:
            InvalidType: fractions.
            InvalidValue: another shape, or a number that is no token.
        """
        if tokens.is_floating_point():
            raise InvalidType(f"tokens must be int64, not {tokens.dtype}.")
        if tokens.ndim != 2:
            raise InvalidValue(f"tokens have shape {tuple(tokens.shape)}: (batch, length) is needed.")
        if not torch.compiler.is_compiling() and tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.info.vocabulary:
                wrong = low if low < 0 else high
                raise InvalidValue(f"tokens hold {wrong}: numbers from 0 to {self.info.vocabulary - 1} are tokens.")
        return self.model(tokens)
