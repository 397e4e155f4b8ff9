"""FaSA: factorized self-attention, a global view at the price of windows, for images.

Qin et al., "Factorization Vision Transformer" (arXiv 2312.08614), section III; the released code decides where it says
more. Channels are divided into groups, and each group attends to few keys that together see the whole map::

    group 0 (1/8):   keys and values are the map reduced by a convolution of edge and stride R; one head
    group i (7/16, or 7/8 where R = 1): the map, filtered and padded by reflection, is cut into windows of M x M places,
                     d_i apart (d_1 = 1, d_2 = R); all windows are folded on each other into M x M keys and values
    y = W [softmax(q_0 k_0^T / sqrt(c_0)) v_0 | softmax(q_i k_i^T / sqrt(c_i / heads)) v_i ...]

where ``v <- v + depthwise 3x3(v)`` on the reduced map and on the folded one. Every query reads ``(H div R)(W div R)``
keys, and M^2 in each further group. With R tied to the side of the map, the cost is linear in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..ops.softmax_attention import softmax_attention
from ..registry import register
from ..spec import Grid, MixerSpec, Order
from .base import Mixer, check_heads
from .layout import TokenLayout
from .look import Look, check_query
from .parts import Conv2d, Linear

Fusion = Literal["code", "mean"]


class _Filter(nn.Module):
    """Depthwise 3x3 and a mix of channels: what local keys and values are made of."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depth_conv = Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.point_conv = Linear(dim, dim)


@register("mixer", "favit")
class FaSA(Mixer):
    """Factorized self-attention: a reduced map for some channels, folded windows for the others.

    Args:
        dim: channels of a token: a multiple of 16, of 8 with ``sr_ratio=1``.
        num_heads: of the local groups, must divide ``dim``; what it does not divide of a local group's channels goes to
            the global group, which has one head.
        causal: must be False.
        qkv_bias: the projections to queries, keys and values have biases.
        sr_ratio: R, the reduction of the global map and the spacing of the second local group (there is none with 1).
        window_size: M.
        fusion: how windows are folded. "mean": their mean, as the paper says. "code": as the released code does and its
            weights need: of each key's values, written window by window, M^2 apart, stretches as long as there are
            windows are averaged, which mixes neighbouring channels. The same where there is one window.
        proj_drop: dropout of the output.

    Raises:
        InvalidValue: an option that is not legal; when called: a map that reflection cannot fill, with an axis shorter
            than ``R (M - 1) / 2 + 1``.
    """

    spec = MixerSpec(
        ranks=(2,),
        grid=Grid(minimum=4),
        masks=False,
        padding="as_published",
        order=Order(flops=2.0, memory=1.0),
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {"favit": {r"(.+)": r"\1"}}

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        qkv_bias: bool = False,
        sr_ratio: int = 1,
        window_size: int = 7,
        fusion: Fusion = "code",
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, causal=causal)
        for name, value in (("sr_ratio", sr_ratio), ("window_size", window_size)):
            if not isinstance(value, int) or value < 1:
                raise invalid(name, value, "a positive whole number is needed")
        if fusion not in get_args(Fusion):
            raise invalid("fusion", fusion, f"it must be one of {', '.join(get_args(Fusion))}")
        shares = (2, 7, 7) if sr_ratio > 1 else (1, 7)
        if dim % sum(shares):
            raise invalid("dim", dim, f"a multiple of {sum(shares)} is needed with sr_ratio={sr_ratio}")
        check_heads(dim, num_heads)
        if dim // sum(shares) * shares[-1] < num_heads:
            raise invalid("num_heads", num_heads, f"a local group has {dim // sum(shares) * shares[-1]} channels")
        if not 0 <= proj_drop < 1:
            raise invalid("proj_drop", proj_drop, "it must be at least 0 and below 1")
        local = [dim // sum(shares) * share // num_heads * num_heads for share in shares[1:]]
        self.widths = (dim - sum(local), *local)
        self.dilations = (1, sr_ratio)[: len(shares) - 1]
        self.num_heads, self.sr_ratio, self.window_size, self.fusion = num_heads, sr_ratio, window_size, fusion
        # Reflection needs padding shorter than the side: a side below a window's extent must be more than half of it.
        self.spec = replace(self.spec, grid=Grid(minimum=max(self._extent(d) // 2 + 1 for d in self.dilations)))
        first, heads = self.widths[0], [width // num_heads for width in local]
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.sr = nn.Conv2d(first, first, sr_ratio, stride=sr_ratio)
        self.norm = nn.LayerNorm(first)
        self.kv_g = Linear(first, 2 * first, bias=qkv_bias)
        self.local_conv_g = Conv2d(first, first, 3, padding=1, groups=first)
        self.kv_l = _Filter(dim - first)
        self.fcs = nn.ModuleList(Linear(e, e, bias=qkv_bias) for e in heads)
        self.single_heads = nn.ModuleList(Linear(e, 2 * e, bias=qkv_bias) for e in heads)
        self.local_convs = nn.ModuleList(Conv2d(c, c, 3, padding=1, groups=c) for c in self.widths[1:])
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The release mixes channels by 1x1 convolutions."""
        return {k: v.flatten(1) if k.endswith("point_conv.weight") else v for k, v in state_dict.items()}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, height, width, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        answers = []
        for q, k, v in self.groups(x):
            answers.append(softmax_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(torch.cat(answers, -1))).unflatten(1, x.shape[1:3])

    def groups(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Queries, keys and values of all groups for ``(batch, height, width, dim)``.

        Returns:
            For each group ``q (batch, heads, height * width, e)`` and ``k``, ``v`` ``(batch, heads, keys, e)``, the
            global one first; the scale of all is ``1 / sqrt(e)``.
        """
        first = self.widths[0]
        q = self.q(x).flatten(1, 2)
        found = [(q[:, None, :, :first], *self._reduced(x[..., :first]))]
        per_head, at = q[..., first:].unflatten(-1, (self.num_heads, -1)).transpose(1, 2), 0
        filtered = _on_map(self.kv_l.depth_conv, x[..., first:])
        for i, width in enumerate(self.widths[1:]):
            e = width // self.num_heads
            found.append((per_head[..., at : at + e], *self._folded(filtered, i)))
            at += e
        return found

    def _reduced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the global group, ``(batch, 1, keys, width)``."""
        k, v = self.kv_g(self.norm(_on_map(self.sr, x))).chunk(2, -1)
        v = v + _on_map(self.local_conv_g, v)
        return k.flatten(1, 2)[:, None], v.flatten(1, 2)[:, None]

    def _folded(self, filtered: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Keys and values of local group ``i``, ``(batch, heads, M^2, e)``."""
        edge, heads, e = self.window_size, self.num_heads, self.widths[1 + i] // self.num_heads
        start = sum(self.widths[1 : 1 + i])
        mix = slice(start, start + self.widths[1 + i])
        conv = self.kv_l.point_conv
        if self._places(tuple(filtered.shape[1:3]), i) < filtered.shape[1] * filtered.shape[2]:
            filtered = self._gather(filtered, self.dilations[i])
            kv = nn.functional.linear(filtered, conv.weight[mix], conv.bias[mix])
        else:  # channels are mixed where there are fewer places
            kv = self._gather(nn.functional.linear(filtered, conv.weight[mix], conv.bias[mix]), self.dilations[i])
        kv = kv.unflatten(-1, (heads, e)).permute(0, 5, 2, 4, 1, 3, 6)  # (batch, heads, M, M, down, across, e)
        windows = kv.shape[4] * kv.shape[5]
        stretches = (windows, e) if self.fusion == "mean" else (e, windows)
        kv = kv.reshape(kv.shape[0], heads, edge**2, *stretches).mean(-2 if self.fusion == "mean" else -1)
        k, v = self.single_heads[i](self.fcs[i](kv)).chunk(2, -1)
        on_map = v.transpose(2, 3).reshape(v.shape[0], heads * e, edge, edge)
        near = self.local_convs[i](on_map).reshape(v.shape[0], heads, e, edge**2)
        return k, v + near.transpose(2, 3)

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """What the query reads of every place, through the reduced map and through folded windows.

        A key's weight is divided alike among the places that it is made of; filters in front are left out.
        """
        self.check_input(x)
        height, width = grid = (x.shape[1], x.shape[2])
        place = check_query(type(self).__name__, query, grid)
        looks = []
        with torch.no_grad():
            for i, (q, k, _) in enumerate(self.groups(x)):
                q = q if place is None else q[:, :, place[0] * width + place[1], None]
                weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1).mean(2)
                if i == 0:
                    edge, reduced = self.sr_ratio, (height // self.sr_ratio, width // self.sr_ratio)
                    wide = weights.unflatten(-1, reduced) / edge**2
                    wide = wide.repeat_interleave(edge, 2).repeat_interleave(edge, 3)
                    spread = nn.functional.pad(wide, (0, width - wide.shape[3], 0, height - wide.shape[2]))
                    looks.append(Look("weights", spread, "reduced map"))
                    continue
                rows, columns = (self._folds(size, self.dilations[i - 1], x.dtype) for size in grid)
                spread = torch.einsum("bhmn,my,nx->bhyx", weights.unflatten(-1, (self.window_size, -1)), rows, columns)
                looks.append(Look("weights", spread, f"windows, {self.dilations[i - 1]} apart"))
        return looks

    def _folds(self, size: int, dilation: int, dtype: torch.dtype) -> Tensor:
        """``(M, size)``: which share of a folded place each place of an axis makes; rows sum to one."""
        index = self.sampled(size, dilation).unflatten(0, (-1, self.window_size))
        return nn.functional.one_hot(index, size).to(dtype).mean(0)

    def _extent(self, dilation: int) -> int:
        """Places from the first to the last of a window, along an axis."""
        return dilation * (self.window_size - 1) + 1

    def _places(self, grid: tuple[int, ...], i: int) -> int:
        """Places that the windows of local group ``i`` hold in all."""
        windows = [-(-size // self._extent(self.dilations[i])) for size in grid]
        return windows[0] * windows[1] * self.window_size**2

    def _gather(self, x: Tensor, dilation: int) -> Tensor:
        """``(batch, height, width, c)`` cut into windows: ``(batch, down, M, across, M, c)``."""
        for axis in (1, 3):
            size, extent = x.shape[axis], self._extent(dilation)
            index = self.sampled(size, dilation, x.device)
            if dilation > 1 or size % extent:
                x = x.index_select(axis, index)
            x = x.unflatten(axis, (-1, self.window_size))
        return x

    def sampled(self, size: int, dilation: int, device: torch.device | None = None) -> Tensor:
        """Places of an axis that the windows hold, window by window: int64 ``(windows * M,)``, reflected at the end."""
        extent = self._extent(dilation)
        starts = torch.arange(0, size, extent, device=device)
        index = (starts[:, None] + dilation * torch.arange(self.window_size, device=device)).flatten()
        return torch.where(index < size, index, 2 * (size - 1) - index)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, convolutions, and the products of all queries with the few keys of their group."""
        tokens, reduced = grid[0] * grid[1], (grid[0] // self.sr_ratio) * (grid[1] // self.sr_ratio)
        first, local, keys = self.widths[0], self.dim - self.widths[0], self.window_size**2
        flops = 2 * linear_flops(tokens, self.dim, self.dim) + 2 * 9 * tokens * local
        flops += linear_flops(reduced, first * self.sr_ratio**2, first) + linear_flops(reduced, first, 2 * first)
        flops += 2 * 9 * reduced * first + 4 * tokens * reduced * first
        saved = tokens * (4 * self.dim + local + 1 + (len(self.widths) - 1) * self.num_heads) + reduced * 5 * first
        for i, width in enumerate(self.widths[1:]):
            places, e = self._places(grid, i), width // self.num_heads
            flops += linear_flops(min(places, tokens), local, width) + 4 * tokens * keys * width
            flops += linear_flops(keys * self.num_heads, e, 3 * e) + 2 * 9 * keys * width
            saved += (places * local if places < tokens else 0) + 6 * keys * width
        parameters = sum(p.numel() for p in self.parameters())
        return Cost(flops=batch * flops, parameters=parameters, activation_bytes=4 * batch * saved)


def _on_map(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution on ``(batch, height, width, c)``."""
    return conv(x.movedim(-1, 1)).movedim(1, -1)
