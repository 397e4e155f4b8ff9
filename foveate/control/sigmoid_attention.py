"""Sigmoid attention in place of a decoder's softmax: every key weighed by itself.

Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention" (ICLR 2025, arXiv 2409.04431); the
op is :func:`~foveate.ops.sigmoid_attention.sigmoid_attention`. A model trained with softmax has to be trained on with
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import invalid
from ..ops.sigmoid_attention import sigmoid_attention
from ..registry import register
from .decoder_call import DecoderCall
from .decoders import DecoderAttention


@register("control", "sigmoid_attention")
class SigmoidAttention(DecoderAttention):
    """``sigmoid(q k^T scale + bias) v`` over the keys that a query sees.

    Args:
        bias: added to all scores; None: ``-ln n`` for the n real tokens that the query sees, which is the paper's
            constant for each query's own length: a text read in pieces then equals one read at once.
        layers, heads: where, see :class:`~foveate.control.decoders.DecoderAttention`.

    Raises:
        InvalidValue: a bias that is not finite, or layers and heads that are not numbers.
    """

    keeps_window = True

    def __init__(
        self,
        bias: float | None = None,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads)
        if bias is not None and not (isinstance(bias, int | float) and math.isfinite(bias)):
            raise invalid("bias", bias, "it must be a finite number, or None for -ln of the number of keys")
        self.bias = bias

    def attend(self, call: DecoderCall) -> Tensor:
        """See :meth:`DecoderAttention.attend`."""
        q, k = call.q, call.k
        groups, length, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
        bias = self.bias
        if bias is None:
            # -ln n differs from query to query: it rides on a channel more, against keys that are one there.
            real = torch.ones(1, keys, dtype=torch.bool, device=q.device) if call.mask is None else call.mask
            seen = real.cumsum(1)
            n = seen[:, keys - length :]
            if call.window:
                gone = torch.arange(keys - length, keys, device=q.device) - call.window
                n = n - torch.where(gone >= 0, seen[:, gone.clamp(min=0)], 0)
            extra = (-n.clamp(min=1).to(q.dtype).log() / call.scale)[:, None, :, None]
            q = torch.cat([q, extra.expand(q.shape[0], q.shape[1], -1, -1)], -1)
            k = torch.cat([k, torch.ones_like(k[..., :1])], -1)
            bias = 0.0
        return sigmoid_attention(
            q,
            k.repeat_interleave(groups, 1),
            call.v.repeat_interleave(groups, 1),
            bias=bias,
            scale=call.scale,
            causal=True,
            mask=call.mask,
            window=(call.window - 1, -1) if call.window else (-1, -1),
        )
