"""The encoder of the first Transformer, post-norm, around any mixer::

    repeat depth times:   x = norm(x + dropout(mixer(x)));   x = norm(x + dropout(feed_forward(x)))

Source: Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762, sections 3.1 and 3.3), with the feed-forward
``W_2 relu(W_1 x)``. It is what PyTorch's ``nn.TransformerEncoderLayer`` is by default, weight for weight.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..mixers.base import Mixer
from ..mixers.parts import Linear
from .mixer_stack import StackState


class PostNormBlock(nn.Module):
    """One layer around a built mixer.

    Args:
        mixer: the token mixer.
        hidden: width of the feed-forward.
        dropout: after the mixer, and inside and after the feed-forward.

    Raises:
        InvalidValue: ``hidden`` is below 1.
    """

    def __init__(self, mixer: Mixer, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        if hidden < 1:
            raise invalid("hidden", hidden, "the feed-forward needs a width of at least 1")
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(mixer.dim)
        self.expand, self.reduce = Linear(mixer.dim, hidden), Linear(hidden, mixer.dim)
        self.feed_norm = nn.LayerNorm(mixer.dim)
        self.dropout = nn.Dropout(dropout)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = self.mixer_norm(x + self.dropout(mixed))
        return self.feed_norm(x + self.dropout(self.reduce(self.dropout(self.expand(x).relu()))))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._finish(x, self.mixer(x, mask=mask))

    def prefill(self, x: Tensor, past: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        mixed, past = self.mixer.prefill(x, past, mask)
        return self._finish(x, mixed), past

    def step(self, x_t: Tensor, past: Any) -> tuple[Tensor, Any]:
        mixed, past = self.mixer.step(x_t, past)
        return self._finish(x_t, mixed), past


class PostNormStack(nn.Module):
    """``depth`` layers of one mixer on tokens ``(batch, *grid, dim)``; it streams where the mixer does.

    Args:
        mixer: the mixer's class.
        dim: token width.
        depth: number of layers.
        num_heads, causal: given to the mixer.
        hidden, dropout: of :class:`PostNormBlock`.

    Raises:
        InvalidValue: ``depth`` is below 1, or a size that does not fit.
    """

    def __init__(
        self,
        mixer: type[Mixer],
        dim: int,
        depth: int,
        *,
        num_heads: int,
        causal: bool,
        hidden: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise invalid("depth", depth, "at least one layer is needed")
        options: dict[str, Any] = {"num_heads": num_heads, "causal": causal}
        mixers = [mixer.for_layer(i, depth, dim, **options) for i in range(depth)]
        self.blocks = nn.ModuleList(PostNormBlock(m, hidden, dropout) for m in mixers)

    @property
    def layers(self) -> list[PostNormBlock]:
        """The layers, first to last."""
        return [cast(PostNormBlock, block) for block in self.blocks]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of tokens; ``mask`` bool ``(batch, *grid)``, True = a real token."""
        for block in self.layers:
            x = block(x, mask)
        return x

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> StackState:
        """No tokens yet."""
        return StackState(tuple(b.mixer.init_state(batch_size, device, dtype) for b in self.layers))

    def prefill(self, x: Tensor, state: StackState, mask: Tensor | None = None) -> tuple[Tensor, StackState]:
        """Features of tokens ``(batch, length, dim)`` after ``state``, and the state after them."""
        layers = []
        for block, layer in zip(self.layers, state.layers, strict=True):
            x, layer = block.prefill(x, layer, mask)
            layers.append(layer)
        return x, StackState(tuple(layers))

    def step(self, x_t: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Features of one token ``(batch, dim)``, and the state after it."""
        layers = []
        for block, layer in zip(self.layers, state.layers, strict=True):
            x_t, layer = block.step(x_t, layer)
            layers.append(layer)
        return x_t, StackState(tuple(layers))
