"""Attention and positions of titans-pytorch (lucidrains, MIT).

Attention in segments or in a sliding window, with learned keys and values that all tokens see. Queries and keys are
turned by their absolute positions (RoPE on neighbouring channels); the persistent keys have none. Values may be mixed
with those of the first layer ("value residual", arXiv 2410.17897).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import invalid
from ...mixers.parts import Linear
from ...mixers.ssm import check_positive
from ...mixers.state import State, state
from ...ops.handwritten import sum_dtype
from ...ops.positions import rope_angles
from ...ops.softmax_attention import softmax_attention
from ...ops.window_attention import window_attention


@state
class SegmentState(State):
    """Keys (turned) and values ``(batch, heads, n, head_dim)`` of the open segment, or of the window."""

    keys: Tensor
    values: Tensor


class SegmentedAttention(nn.Module):
    """RMSNorm and causal attention inside segments, or in a window as long as one.

    Args:
        dim: channels of a token.
        segment: tokens of a segment.
        num_longterm: tokens that stand behind each segment and belong to it.
        num_persistent: learned keys and values per head.
        head_dim: width of a head, even.
        num_heads: heads; they need not divide ``dim``.
        sliding: a window of ``segment + num_longterm`` tokens before each token, instead of segments.
        value_residual: values are mixed with others, which :meth:`forward` is then given.

    Raises:
        InvalidValue: an option that is not legal.
    """

    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "titans_pytorch": {
            r"norm\.weight": "norm.weight",
            r"persistent_memory": "persistent",
            r"rotary_emb\.freqs": "frequencies",
            r"to_(qkv|out)\.weight": r"\1.weight",
            r"to_learned_v_mix\.0\.(weight|bias)": r"mix.\1",
        }
    }

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        *,
        segment: int,
        num_longterm: int = 0,
        num_persistent: int = 0,
        head_dim: int = 64,
        num_heads: int = 8,
        sliding: bool = False,
        value_residual: bool = False,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, segment=segment, head_dim=head_dim, num_heads=num_heads)
        for name, number in (("num_longterm", num_longterm), ("num_persistent", num_persistent)):
            if not isinstance(number, int) or number < 0:
                raise invalid(name, number, "a whole number, 0 or more, is needed")
        if head_dim % 2:
            raise invalid("head_dim", head_dim, "RoPE turns channel pairs, so it must be even")
        self.num_heads, self.head_dim, self.sliding, self.length = num_heads, head_dim, sliding, segment + num_longterm
        inner = num_heads * head_dim
        self.norm = nn.RMSNorm(dim)
        self.qkv = Linear(dim, 3 * inner, bias=False)
        self.out = Linear(inner, dim, bias=False)
        self.mix = Linear(dim, num_heads) if value_residual else None
        self.persistent = nn.Parameter(torch.zeros(2, num_heads, num_persistent, head_dim))
        self.register_buffer("frequencies", rope_angles(torch.ones(1), head_dim)[0])

    def forward(
        self, x: Tensor, first: Tensor | None = None, past: SegmentState | None = None, position: int = 0
    ) -> tuple[Tensor, Tensor, SegmentState]:
        """Attend.

        Args:
            x: ``(batch, length, dim)``.
            first: ``(batch, heads, length, head_dim)``, the first layer's values of these tokens, with
                ``value_residual``.
            past: what was read before; None: nothing.
            position: tokens read before.

        Returns:
            ``(batch, length, dim)``, the values before they were mixed, and what the next tokens need.
        """
        x = self.norm(x)
        q, k, own = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        v = own
        if self.mix is not None and first is not None:
            v = own.lerp(first, self.mix(x).sigmoid().mT.unsqueeze(-1))
        positions = torch.arange(position, position + x.shape[1], device=x.device)
        q, k = turn(q, positions, self.frequencies), turn(k, positions, self.frequencies)
        if past is not None:
            k, v = torch.cat([past.keys.to(k.dtype), k], 2), torch.cat([past.values.to(v.dtype), v], 2)
        sink_k, sink_v = self.persistent.to(v.dtype).unbind()
        if self.sliding:
            o = window_attention(q, k, v, self.length + 1, sink_k=sink_k, sink_v=sink_v)
        else:
            o = self._segments(q, k, v, sink_k, sink_v)
        kept = min(k.shape[2], self.length) if self.sliding else k.shape[2] % self.length
        begin = k.shape[2] - kept
        after = SegmentState(k[:, :, begin:].clone(), v[:, :, begin:].clone())
        return self.out(o.transpose(1, 2).flatten(2)), own, after

    def empty(self, batch_size: int, device: torch.device | str | None, dtype: torch.dtype | None) -> SegmentState:
        """Nothing read yet."""
        weight = self.qkv.weight
        none = torch.zeros(
            batch_size, self.num_heads, 0, self.head_dim, device=device or weight.device, dtype=dtype or weight.dtype
        )
        return SegmentState(none, none)

    def _segments(self, q: Tensor, k: Tensor, v: Tensor, sink_k: Tensor, sink_v: Tensor) -> Tensor:
        """Each query reads its segment up to itself; the first key begins a segment, the queries are the last."""
        batch, heads, length, width = q.shape
        missing = k.shape[2] - length  # keys of the first segment whose queries came before
        if k.shape[2] > self.length:
            spare = -k.shape[2] % self.length
            q = nn.functional.pad(q, (0, 0, missing, spare))
            k, v = (nn.functional.pad(t, (0, 0, 0, spare)) for t in (k, v))
            q, k, v = (t.unflatten(2, (-1, self.length)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        k = torch.cat([sink_k.expand(k.shape[0], -1, -1, -1), k], 2)
        v = torch.cat([sink_v.expand(v.shape[0], -1, -1, -1), v], 2)
        o = softmax_attention(q, k, v, causal=True)
        if o.shape[0] != batch or o.shape[2] != length:
            o = o.unflatten(0, (batch, -1)).transpose(1, 2).reshape(batch, heads, -1, width)
            o = o[:, :, missing : missing + length]
        return o


class ViewSelector(nn.Module):
    """What a memory's queries, keys and values are made of: three blends of what earlier layers read and gave.

    Args:
        dim: channels.
        choices: streams to choose from, the memory's own input first.
    """

    def __init__(self, dim: int, choices: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.scores = Linear(dim, 3 * choices)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """``(batch, length, dim)`` and as many of that shape to three views, ``(batch, length, 3 * dim)``."""
        weights = self.scores(self.norm(x)).unflatten(-1, (3, -1)).softmax(-1)
        return (weights @ torch.stack([x, *earlier], -2)).flatten(-2)


class AxialPositions(nn.Module):
    """A vector for each place, the sum of two small networks: of the number of its block, and of its place in it.

    Args:
        dim: channels.
        block: places of a block.
    """

    def __init__(self, dim: int, block: int) -> None:
        super().__init__()
        self.block = block
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Linear(1, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)
            )
            for _ in range(2)
        )

    def forward(self, first: int, last: int) -> Tensor:
        """``(last - first, dim)`` for places from ``first`` up to ``last``, without it."""
        weight = self.nets[0][0].weight  # type: ignore[index]
        begin = first // self.block
        counts = (torch.arange(begin, -(-last // self.block)), torch.arange(self.block))
        rows, columns = (
            net(c.to(device=weight.device, dtype=weight.dtype)[:, None])
            for net, c in zip(self.nets, counts, strict=True)
        )
        return (rows[:, None] + columns).flatten(0, 1)[first - begin * self.block : last - begin * self.block]


def turn(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary embedding of neighbouring channels with frequencies of their own.

    Args:
        x: ``(batch, heads, length, head_dim)``.
        positions: int64 ``(length,)``.
        frequencies: ``(head_dim / 2,)``, in radians per position.
    """
    real = sum_dtype(x.dtype)
    angles = positions.to(real)[:, None] * frequencies.to(real)
    cos, sin, (a, b) = angles.cos(), angles.sin(), x.to(real).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
