"""Aaren: attention whose query is learned, not read from the token, so that it is an RNN.

Feng et al., "Attention as an RNN" (2024, arXiv 2405.13956, section 3.3). One query vector per layer attends to every
prefix of the sequence. Per head, with ``q = W_q q* + b_q``::

    s_i = q . (W_k x_i + b_k) / sqrt(head_dim),    y_k = W_o sum_{i <= k} softmax(s_1 ... s_k)_i (W_v x_i + b_v) + b_o

A new token costs O(1) time and memory (:mod:`foveate.ops.prefix_attention`), and training is parallel over time. The
price: what is looked for does not depend on the token, so one layer cannot look something up.

There is no official code; the projections and their biases are those of the standard attention layer, which is what the
paper's parameter counts amount to (one vector of width ``dim`` more than that layer). The paper says nothing about the
vector's initial values: here they are normal with variance 1, like a token behind a norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..measure.cost import Cost, linear_flops
from ..ops.handwritten import sum_dtype
from ..ops.linear import linear
from ..ops.prefix_attention import PrefixState, empty_state, prefix_attention, prefix_attention_step, prefix_flops
from ..registry import register
from ..spec import MixerSpec
from .base import Mixer, check_heads
from .layout import TokenLayout
from .parts import Linear
from .state import State, state


@state
class AarenState(State):
    """What the tokens so far contribute, float32; see :class:`~foveate.ops.prefix_attention.PrefixState`.

    Attributes:
        m, u: ``(batch, heads)``, largest score and denominator.
        w: ``(batch, heads, head_dim)``, numerator.
    """

    m: Tensor
    u: Tensor
    w: Tensor


@register("mixer", "aaren")
class Aaren(Mixer):
    """Attention of one learned query over every prefix of the sequence.

    Order reaches it only through which tokens are in the prefix: give it tokens that know their positions. Masked
    tokens are left out of all prefixes.

    Args:
        dim: channels of a token.
        num_heads: attention heads.
        causal: must be True; over the whole sequence every output would be the same.
        bias: biases of the four projections. That of the keys shifts all scores alike and changes nothing; it is there
            because the paper's parameter counts have it.
    """

    spec = MixerSpec(
        causal="strict",
        bidirectional=False,
        streaming="exact",
        onnx=True,
        export_note="the depth of its scan follows the length",
    )

    def __init__(self, dim: int, *, num_heads: int = 8, causal: bool = True, bias: bool = True) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        self.query = nn.Parameter(torch.empty(1, dim))
        self.q, self.k, self.v, self.out = (Linear(dim, dim, bias=bias) for _ in range(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections as in ``nn.MultiheadAttention``: Xavier-uniform, biases zero."""
        nn.init.normal_(self.query)
        for projection in (self.q, self.k, self.v, self.out):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def scores(self, x: Tensor) -> Tensor:
        """Scores of tokens ``(..., dim)`` against the learned query, ``(..., heads)``.

        Keys meet nothing but this query: their weights are multiplied with it once, and no key is ever made.
        """
        query = self.q(self.query).view(self.num_heads, 1, self.head_dim) * self.head_dim**-0.5
        weight = (query @ self.k.weight.view(self.num_heads, self.head_dim, self.dim)).squeeze(1)
        bias = None if self.k.bias is None else (query.squeeze(1) * self.k.bias.view_as(query.squeeze(1))).sum(-1)
        return linear(x, weight, bias)

    def _attend(
        self, x: Tensor, mask: Tensor | None, before: PrefixState | None, return_state: bool
    ) -> tuple[Tensor, PrefixState | None]:
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        scores = self.scores(x).transpose(1, 2)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        values = self.v(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        found = prefix_attention(scores, values, state=before, return_state=return_state)
        y, after = found if isinstance(found, tuple) else (found, None)
        y = self.out(y.transpose(1, 2).flatten(2))
        return (y if mask is None else y.masked_fill(~mask[..., None], 0.0)), after

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix; see :meth:`Mixer.forward <foveate.mixers.Mixer.forward>`."""
        self.check_input(x, mask, context, layout)
        return self._attend(x, mask, None, return_state=False)[0]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AarenState:
        """No tokens yet; in float32 (float64 if ``dtype``, by default that of the weights, is)."""
        weight = self.out.weight
        real = sum_dtype(dtype or weight.dtype)
        return AarenState(*empty_state(batch_size, self.num_heads, self.head_dim, device or weight.device, real))

    def prefill(self, x: Tensor, state: AarenState, mask: Tensor | None = None) -> tuple[Tensor, AarenState]:
        """Read ``(batch, length, dim)`` after ``state``."""
        self.check_stream(x, state, mask)
        y, after = self._attend(x, mask, PrefixState(state.m, state.u, state.w), return_state=True)
        assert after is not None
        return y, AarenState(*after)

    def step(self, x_t: Tensor, state: AarenState) -> tuple[Tensor, AarenState]:
        """Read one token ``(batch, dim)`` in time and memory that do not depend on how many came before.

        Raises:
            InvalidValue: anything but one token per sample.
        """
        self.check_step(x_t, state)
        values = self.v(x_t).unflatten(-1, (self.num_heads, self.head_dim))
        y, after = prefix_attention_step(self.scores(x_t), values, PrefixState(state.m, state.u, state.w))
        return self.out(y.flatten(1)), AarenState(*after)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Two dense projections of the tokens, the scores, the scan; saved are x, values, scores and the output."""
        tokens, d, heads = batch * grid[0], self.dim, self.num_heads
        flops = 2 * linear_flops(tokens, d, d) + linear_flops(tokens, d, heads) + 2 * linear_flops(1, d, d)
        biases = 0 if self.out.bias is None else 4 * d
        return Cost(
            flops=flops + prefix_flops(grid[0], heads, self.head_dim, batch=batch),
            parameters=4 * d * d + d + biases,
            activation_bytes=4 * tokens * (3 * d + heads),
            state_bytes=4 * batch * (d + 2 * heads),
        )
