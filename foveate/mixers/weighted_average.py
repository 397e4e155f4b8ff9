"""Layers of a token mixer and a channel mixer, each reading learned sums of all outputs before it.

MambaMixer (arXiv 2403.19888, section 3.3, equations 8 and 9), with y_tok(0) = y_ch(0) = x::

    y_tok(l) = token mixer( sum_{i<l}  alpha_li y_tok(i) + sum_{i<l} beta_li  y_ch(i) )
    y_ch(l)  = channel mixer( sum_{i<=l} theta_li y_tok(i) + sum_{i<l} gamma_li y_ch(i) )

The paper does not constrain the coefficients and says neither how they begin nor where norms stand: here they begin as
the plain chain (theta_ll = beta_l,l-1 = 1, all others 0), and a LayerNorm stands before each mixer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .ssm import check_positive


class WeightedAverage(nn.Module):
    """The learned sums of earlier outputs that every mixer reads: ``layers * (2 * layers + 3)`` scalars.

    They begin as the plain chain, each mixer reading the one before it, and are not constrained.

    Args:
        layers: number of pairs of mixers.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        check_positive(layers=layers)
        self.layers, pairs = layers, layers * (layers + 1) // 2
        self.alpha = nn.Parameter(torch.zeros(pairs))
        self.beta = nn.Parameter(torch.zeros(pairs))
        self.theta = nn.Parameter(torch.zeros(pairs + layers))
        self.gamma = nn.Parameter(torch.zeros(pairs))
        with torch.no_grad():
            for layer in range(1, layers + 1):
                self.row("beta", layer)[-1] = 1
                self.row("theta", layer)[-1] = 1

    def row(self, name: str, layer: int) -> Tensor:
        """The coefficients "alpha", "beta", "gamma" ``(layer,)`` or "theta" ``(layer + 1,)`` of a layer, from 1 on."""
        start, size = layer * (layer - 1) // 2, layer
        if name == "theta":
            start, size = start + layer - 1, size + 1
        return getattr(self, name)[start : start + size]

    def for_tokens(self, layer: int, tokens: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
        """What the token mixer of a layer reads, from both kinds' outputs 0 (the input) .. layer - 1."""
        return _weighted(self.row("alpha", layer), tokens, self.row("beta", layer), channels)

    def for_channels(self, layer: int, tokens: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
        """What the channel mixer of a layer reads: the token mixers' outputs 0 .. layer, its own 0 .. layer - 1."""
        return _weighted(self.row("theta", layer), tokens, self.row("gamma", layer), channels)


def _weighted(first: Tensor, tokens: Sequence[Tensor], second: Tensor, channels: Sequence[Tensor]) -> Tensor:
    """The sum; both kinds begin with the input, which is read once."""
    (of_tokens, *others), (of_channels, *more) = first.unbind(), second.unbind()
    total = (of_tokens + of_channels) * tokens[0]
    for coefficient, output in zip((*others, *more), (*tokens[1:], *channels[1:]), strict=True):
        total.addcmul_(coefficient, output)  # no gradient needs the sum so far
    return total


class MambaMixerBlock(nn.Module):
    """One layer: a token mixer and a channel mixer, each behind a LayerNorm.

    Args:
        width: size of the last axis, which the norms are over.
        token, channel: modules that keep the shape; called as ``module(x)``, with a mask as ``module(x, mask=mask)``.
            Without a channel mixer, what it would read is handed on.
        residual: add what a mixer's norm reads to what the mixer says.
        dropout: of what a mixer says.
    """

    def __init__(
        self, width: int, token: nn.Module, channel: nn.Module | None, *, residual: bool, dropout: float
    ) -> None:
        super().__init__()
        self.token_norm, self.token = nn.LayerNorm(width), token
        self.channel_norm, self.channel = None if channel is None else nn.LayerNorm(width), channel
        self.residual, self.dropout = residual, nn.Dropout(dropout)

    def mix_tokens(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The token mixer behind its norm."""
        return self._mix(x, self.token_norm, self.token, mask)

    def mix_channels(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The channel mixer behind its norm."""
        return self._mix(x, self.channel_norm, self.channel, mask)

    def _mix(self, x: Tensor, norm: nn.Module | None, mixer: nn.Module | None, mask: Tensor | None) -> Tensor:
        if norm is None or mixer is None:
            return x
        y = self.dropout(mixer(norm(x)) if mask is None else mixer(norm(x), mask=mask))
        return x + y if self.residual else y


class MambaMixerStack(nn.Module):
    """Layers of token and channel mixers, joined by averages of all earlier outputs or one after the other.

    Args:
        blocks: at least one.
        averaging: every mixer reads a :class:`WeightedAverage`; False: the output of the mixer before it.
    """

    def __init__(self, blocks: Sequence[MambaMixerBlock], *, averaging: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.average = WeightedAverage(len(blocks)) if averaging else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last channel mixer's output, in the shape of ``x``; a mask is handed to every mixer."""
        tokens, channels = [x], [x]
        for layer, module in enumerate(self.blocks, start=1):
            block = cast(MambaMixerBlock, module)
            read = channels[-1] if self.average is None else self.average.for_tokens(layer, tokens, channels)
            tokens.append(block.mix_tokens(read, mask))
            read = tokens[-1] if self.average is None else self.average.for_channels(layer, tokens, channels)
            channels.append(block.mix_channels(read, mask))
        return channels[-1]
