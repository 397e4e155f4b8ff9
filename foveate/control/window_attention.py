"""Sliding window with sinks, on a model that was trained to see everything: the baseline of long-context controls.

StreamingLLM (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, arXiv 2309.17453): a
query sees the last tokens and the first few, on which softmax puts what it has left over. By section 3.2 positions are
those within what is kept, not those in the text, so that the first tokens never move further away than was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..registry import register
from .decoder_call import DecoderCall
from .decoders import DecoderAttention

Positions = Literal["text", "cache"]
#: Queries that are answered together; each such piece reads its window and the sinks.
PIECE = 128


@register("control", "sliding_window", system="window_attention")
class SlidingWindow(DecoderAttention):
    """Each query sees the last ``window`` tokens, itself among them, and the first ``sinks`` of its text.

    Only real tokens count, so padding on either side changes nothing. With ``window`` as long as the text it is the
    model's own attention. The user's cache keeps all keys; what shrinks is what is read of them.

    Args:
        window: tokens that a query sees.
        sinks: first tokens that it sees beside them.
        positions: "text": where tokens stand in the text; "cache": sinks move along, as if what lies between them and
            the window were not there (models with rotary positions only).
        layers, heads: where, see :class:`~foveate.control.decoders.DecoderAttention`.

    Raises:
        InvalidValue: an illegal option; when attached: positions "cache" for a model without rotary ones; when called:
            sinks in a layer with a sliding window of its own, whose cache drops them.
    """

    keeps_window = True

    def __init__(
        self,
        window: int = 1024,
        sinks: int = 4,
        *,
        positions: Positions = "text",
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads)
        for name, value, least in (("window", window, 1), ("sinks", sinks, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise invalid(name, value, f"it must be a whole number of at least {least}")
        if positions not in get_args(Positions):
            raise invalid("positions", positions, f"it must be one of {', '.join(get_args(Positions))}")
        self.window, self.sinks, self.positions = window, sinks, positions

    def check(self, model: nn.Module) -> None:
        """As :meth:`DecoderAttention.check`; positions "cache" are for rotary models."""
        super().check(model)
        if self.positions == "cache" and not any(n.endswith("rotary_emb") for n, _ in model.named_modules()):
            raise InvalidValue(f"positions='cache' is not possible: {type(model).__name__} has no rotary positions.")

    def attend(self, call: DecoderCall) -> Tensor:
        """See :meth:`DecoderAttention.attend`."""
        if call.window and self.sinks:
            raise InvalidValue(
                f"sinks={self.sinks} is not possible in layer {call.layer}: its cache slides over {call.window} tokens "
                f"and drops the first ones; give sinks=0 or leave such layers out with layers=."
            )
        q, k, v, moved = call.q, call.k, call.v, None
        length, keys = q.shape[2], k.shape[2]
        first = torch.zeros(1, dtype=torch.int64, device=q.device)
        if call.mask is not None:
            # Padding goes in front of each row's real tokens, whose order is kept: then windows are plain again.
            order, first = call.mask.int().argsort(dim=1, stable=True), (~call.mask).sum(1)
            query_order = call.mask[:, -length:].int().argsort(dim=1, stable=True)
            k, v, q = _rows(k, order), _rows(v, order), _rows(q, query_order)
        sinks = (first[:, None] + torch.arange(min(self.sinks, keys), device=q.device)).clamp(max=keys - 1)
        real = torch.arange(min(self.sinks, keys), device=q.device) < keys - first[:, None]
        if self.positions == "cache" and sinks.shape[1]:
            age = torch.arange(keys - length, keys, device=q.device) - first[:, None]
            moved = (age - (self.sinks + self.window - 1)).clamp(min=0)
            moved = call.turned_by(q, -moved)
        window = min(self.window, call.window or self.window)
        out = _windows(q, k, v, moved, window, first, sinks, real, call.scale)
        if call.mask is None:
            return out
        return out.scatter(2, query_order[:, None, :, None].expand_as(out), out)


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """Tokens of ``(batch, heads, tokens, d)`` in each sample's order."""
    return x.take_along_dim(order[:, None, :, None], 2)


def _windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    moved: Tensor | None,
    window: int,
    first: Tensor,
    sinks: Tensor,
    real: Tensor,
    scale: float,
) -> Tensor:
    """Attention of the last queries to windows and sinks.

    Args:
        moved: the queries as the sinks see them, if otherwise.
        first: int64 ``(batch or 1,)``: where real keys begin.
        sinks, real: int64 and bool ``(batch or 1, sinks)``: places of the sinks, and whether there is such a token.
    """
    before, device = k.shape[2] - q.shape[2], q.device
    sink_k, sink_v = (_rows(t, sinks.expand(t.shape[0], -1)) for t in (k, v))
    outputs = []
    for start in range(0, q.shape[2], PIECE):
        end = min(start + PIECE, q.shape[2])
        low = max(0, before + start - window + 1)
        place = torch.arange(before + start, before + end, device=device)[:, None]
        age = place - torch.arange(low, before + end, device=device)
        near = (age >= 0) & (age < window) & (torch.arange(low, before + end, device=device) >= first[:, None, None])
        far = real[:, None] & (place - sinks[:, None] >= window)
        visible = torch.cat([far, near], -1)[:, None]
        # A query of padding sees nothing; some kernels answer such a row with NaN.
        visible = visible | ~visible.any(-1, keepdim=True)
        here, keys = q[:, :, start:end], k[:, :, low : before + end]
        sink = sink_k
        if moved is not None:  # twice as wide: one half meets the sinks, the other the window
            here = torch.cat([moved[:, :, start:end], here], -1)
            sink, keys = F.pad(sink_k, (0, q.shape[-1])), F.pad(keys, (q.shape[-1], 0))
        keys, values = torch.cat([sink, keys], 2), torch.cat([sink_v, v[:, :, low : before + end]], 2)
        grouped = q.shape[1] != k.shape[1]
        outputs.append(
            F.scaled_dot_product_attention(here, keys, values, attn_mask=visible, scale=scale, enable_gqa=grouped)
        )
    return torch.cat(outputs, 2)
