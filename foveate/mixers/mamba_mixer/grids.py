"""MambaMixer's mixers on maps: a cross-scan along the tokens of an image, and scans along its channels.

Behrouz, Santacatterina and Zabih, "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel
Selection", arXiv 2403.19888 (version 1), sections 3.1 to 3.3, as ViM2 uses them. With orders S of the places (VMamba's
cross-scan, :mod:`.grid_scans`), each with an S6 of its own, and one gate::

    token mixer:    [u | z] = x W_in    v = silu(conv3x3(u))    y = (norm(sum over S of S^-1 S6(S v)) * silu(z)) W_out
    channel mixer:  [u | z] = W_in x    y = W_out (sum over forward, backward of S6(silu(conv(u))) * silu(z)), along the
                    channels of each place

No code of the authors is public. What the paper leaves open is chosen here, as in :mod:`.sequences`; the channel
mixer's linear layers can be read in three ways.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidValue, invalid, unknown_name
from ...measure.cost import Cost, linear_flops
from ...ops.selective_scan import selective_scan
from ...ops.selective_scan_blocks import block_length
from ...registry import register
from ...spec import Grid, MixerSpec, Order
from ..base import Mixer, grid_size
from ..layout import TokenLayout
from ..parts import Conv2d, Linear
from ..selective_block import ScanBranch, SelectiveBlock
from ..ssm import SelectiveCore, check_positive
from .grid_scans import CROSS_SCAN, GRID_SCANS

CWLinear = Literal["channels", "per_token", "all_tokens"]


class GridScan(SelectiveCore):
    """The selective scan of one order of places: Mamba's inner part without its convolution, which all orders share.

    Args:
        d_inner: width of a place.
        d_state: numbers N kept for each of it.
        dt_rank: rank of the step sizes' projection.
    """

    def __init__(self, d_inner: int, d_state: int, dt_rank: int) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = d_inner, d_state, dt_rank
        self.x_proj = Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1.0).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.start_core()

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scan ``(batch, places, d_inner)`` as they come; ``mask``, bool ``(batch, places)``, False: passed over."""
        dt, B, C = (m.transpose(1, 2) for m in self._read(u))
        if mask is not None:
            dt = dt.masked_fill(~mask.unsqueeze(1), -math.inf)
        bias = self.dt_proj.bias
        y = selective_scan(u.transpose(1, 2), dt, self._A(), B, C, self.D, delta_bias=bias, delta_softplus=True)
        return cast(Tensor, y).transpose(1, 2)

    def flops(self, places: int) -> int:
        """The projections and the product with C; the recurrence is elementwise."""
        read = linear_flops(places, self.d_inner, self.dt_rank + 2 * self.d_state)
        return read + linear_flops(places, self.dt_rank + self.d_state, self.d_inner)

    def saved(self, batch: int, length: int) -> int:
        """Numbers kept for backward beside ``u``: delta, what is read, A twice, and the states between blocks."""
        states = self.d_inner * self.d_state
        blocks = -(-length // block_length(batch, states))
        return batch * length * (self.d_inner + self.dt_rank + 2 * self.d_state) + 2 * states + blocks * batch * states


@register("mixer", "grid_token_mixer", system="mamba_mixer")
class GridTokenMixer(Mixer):
    """Selective token mixer of MambaMixer on a map: a convolution 3 x 3, then S6 in several orders under one gate.

    With its defaults and ``norm=True`` it is VMamba's SS2D, whose weights ``load_official`` loads. Masked tokens are
    zeros to the convolution, and the scans pass over them.

    Args:
        dim: channels of a token.
        causal: must be False: the convolution sees all sides.
        scans: orders in which the places are read, each with an S6 of its own; names of
            :data:`~foveate.mixers.mamba_mixer.grid_scans.GRID_SCANS`. None: VMamba's cross-scan, rows and columns from
            both ends.
        d_state: numbers N kept per inner channel.
        d_conv: side of the convolution, odd.
        expand: inner channels per channel of the token.
        dt_rank: rank of the step sizes' projections; "auto": dim / 16, rounded up.
        conv_bias: the convolution has a bias.
        bias: the input and output projections have biases.
        norm: a LayerNorm stands between the sum of the scans and the gate, as in VMamba; the paper's equations have
            none.

    Raises:
        UnknownName: a scan that does not exist.
        InvalidValue: ``causal=True``, no scan or one named twice, an even convolution, an option that is not a positive
            whole number.
    """

    spec = MixerSpec(ranks=(2,), export_note="its scans are unrolled: the graph grows with the number of places")
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "VMamba": {
            r"((?:in_proj|out_proj)\.(?:weight|bias))": r"\1",
            r"conv2d\.(weight|bias)": r"conv.\1",
            r"out_norm\.(weight|bias)": r"norm.\1",
            r"(branches\..+)": r"\1",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        scans: tuple[str, ...] | None = None,
        d_state: int = 16,
        d_conv: int = 3,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        conv_bias: bool = True,
        bias: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        check_positive(d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=rank)
        if d_conv % 2 == 0:
            raise invalid("d_conv", d_conv, "it must be odd, so that a place stands in its middle")
        self.scans = CROSS_SCAN if scans is None else tuple(scans)
        for name in self.scans:
            if name not in GRID_SCANS:
                raise unknown_name("scan", name, GRID_SCANS)
        if not self.scans or len(set(self.scans)) < len(self.scans):
            raise InvalidValue(f"scans={self.scans!r} is not possible: different names are needed, at least one.")
        self.inner = inner = expand * dim
        self.in_proj = Linear(dim, 2 * inner, bias=bias)
        self.conv = Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias)
        self.branches = nn.ModuleList(GridScan(inner, d_state, rank) for _ in self.scans)
        self.norm = nn.LayerNorm(inner) if norm else None
        self.out_proj = Linear(inner, dim, bias=bias)

    @staticmethod
    def convert_official(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """VMamba stacks the weights of its orders; here each order has its own."""
        given = {k: v for k, v in state_dict.items() if "_proj" not in k or k.startswith(("in_proj", "out_proj"))}
        stacked = {"x_proj_weight": "x_proj.weight", "dt_projs_weight": "dt_proj.weight"}
        stacked |= {"dt_projs_bias": "dt_proj.bias"}
        orders = len(state_dict["x_proj_weight"])
        for theirs, ours in stacked.items():
            given |= {f"branches.{i}.{ours}": part for i, part in enumerate(state_dict[theirs])}
        for theirs, ours in {"A_logs": "A_log", "Ds": "D"}.items():
            parts = given.pop(theirs).chunk(orders)
            given |= {f"branches.{i}.{ours}": part for i, part in enumerate(parts)}
        return given

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
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)
        grid = tuple(x.shape[1:3])
        u, z = self.in_proj(x).chunk(2, dim=-1)
        if mask is not None:
            u = u.masked_fill(~mask.unsqueeze(-1), 0)  # a bias of the projection would stand here
        u = self.conv(u.movedim(-1, 1), "silu").movedim(1, -1).flatten(1, 2)
        real = None if mask is None else mask.flatten(1)
        total = None
        for name, branch in zip(self.scans, self.branches, strict=True):
            take, back = GRID_SCANS[name]
            y = back(branch(take(u, grid), None if real is None else take(real, grid)), grid)
            total = y if total is None else total + y
        y = cast(Tensor, total).unflatten(1, grid)
        y = self.out_proj((y if self.norm is None else self.norm(y)) * F.silu(z))
        return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0)

    def visible_flops(self, grid: tuple[int, ...], batch: int = 1) -> int:
        """Those of :meth:`cost`: who counts operator by operator need not walk through the scans."""
        return self.cost(grid, batch).flops

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the convolution and the products with C; the recurrences are elementwise."""
        places, length, inner = batch * grid_size(grid), grid_size(grid), self.inner
        first = cast(GridScan, self.branches[0])
        flops = linear_flops(places, self.dim, 2 * inner) + linear_flops(places, inner, self.dim)
        flops += linear_flops(places, inner, math.prod(self.conv.kernel_size)) + len(self.scans) * first.flops(places)
        # x, u and z, the convolution's output and its silu, again for every order that is not the rows, the sum, the
        # gate and their product.
        reordered = sum(name != "rows" for name in self.scans)
        saved = places * (self.dim + (7 + reordered + (self.norm is not None)) * inner)
        saved += len(self.scans) * first.saved(batch, length)
        return Cost(flops, sum(p.numel() for p in self.parameters()), activation_bytes=4 * saved)


class ChannelScan(nn.Module):
    """A Mamba block along the channels of each place, which sees a sequence of single numbers.

    The linear layers act on the channels, before and behind the scans, with the same weights at every place.

    Args:
        dim: channels.
        directions: 2: forward and backward, under one gate; 1: forward.
        d_state, d_conv, expand, bias: see :class:`GridChannelMixer`.
    """

    def __init__(self, dim: int, directions: int, d_state: int, d_conv: int, expand: int, bias: bool) -> None:
        super().__init__()
        check_positive(d_state=d_state, d_conv=d_conv, expand=expand)
        self.dim, self.inner = dim, expand * dim
        self.in_proj = Linear(dim, 2 * self.inner, bias=bias)
        self.branches = nn.ModuleList(ScanBranch(1, d_state, d_conv, 1, True) for _ in range(directions))
        self.out_proj = Linear(self.inner, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(places, dim)`` in and out."""
        u, z = (m.unsqueeze(-1) for m in self.in_proj(x).chunk(2, dim=-1))
        total = cast(ScanBranch, self.branches[0]).scan_core(u, z, None, None, None)[0]
        if len(self.branches) > 1:
            backward = cast(ScanBranch, self.branches[1])
            total = total + backward.scan_core(u.flip(1), z.flip(1), None, None, None)[0].flip(1)
        return self.out_proj(total.squeeze(-1))

    def cost(self, places: int) -> Cost:
        """Of so many places; parameters are not counted."""
        first = cast(ScanBranch, self.branches[0])
        count, numbers = len(self.branches), places * self.inner
        flops = linear_flops(places, self.dim, 2 * self.inner) + linear_flops(places, self.inner, self.dim)
        # x, u and z, both flipped, and the sum.
        saved = places * self.dim + (3 + 2 * (count - 1)) * numbers + count * first.core_saved(places, self.inner)
        return Cost(flops + count * first.core_flops(numbers), activation_bytes=4 * saved)


@register("mixer", "grid_channel_mixer", system="mamba_mixer")
class GridChannelMixer(Mixer):
    """Selective channel mixer of MambaMixer on a map: S6 along the channels, from both ends, under one gate.

    The paper's linear layers act on the axis of the tokens; with all places of an image at a quarter of its pixels they
    alone would have more weights than it prints for whole models, and it says no more about its "CW-Linear". Three
    readings are offered. What they make of ViM2's three sizes, for which it prints 20, 43 and 74 million parameters,
    at 224 pixels:

    - ``"channels"``: the linear layers act on the channels of each place, and the S6 reads these as a sequence of
      single numbers: 22.5, 39.6 and 68.3 million, any resolution.
    - ``"per_token"``: the whole block is that of the equations with the features of one place (or of
      ``patch * patch`` neighbours) in place of all: a hundred weights, 19.3, 33.7 and 57.8 million, any resolution.
    - ``"all_tokens"``: as the equations say, with all places as features: 54.2, 69.4 and 93.5 million, and the weights
      belong to one resolution.

    Masked tokens come in as zeros.

    Args:
        dim: channels of a token: the length of the sequence that is scanned (times ``expand`` for ``"channels"``).
        causal: must be False.
        cw_linear: what the linear layers act on, see above.
        patch: side of the squares of places that are features together; with ``"per_token"`` only.
        grid: the one legal grid with ``"all_tokens"``; networks set it by theirs. The others do not read it.
        bidirectional: scan the channels backward too, under the same gate.
        d_state: numbers N kept per inner feature.
        d_conv: width of the convolution over channels.
        expand: inner channels per channel (``"channels"``), or inner features per feature. The printed numbers of
            parameters ask for 1.
        bias: the linear layers have biases.

    Raises:
        InvalidValue: ``causal=True``, another ``cw_linear``, ``patch`` where it is not read, an option that is not a
            positive whole number.
    """

    spec = MixerSpec(ranks=(2,), export_note="its unrolled scans are slow to convert")

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        cw_linear: CWLinear = "channels",
        patch: int = 1,
        grid: tuple[int, int] = (4, 4),
        bidirectional: bool = True,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        check_positive(patch=patch)
        if cw_linear not in get_args(CWLinear):
            raise invalid("cw_linear", cw_linear, f"it must be one of {', '.join(get_args(CWLinear))}")
        if patch > 1 and cw_linear != "per_token":
            raise invalid("patch", patch, "only cw_linear='per_token' reads it; leave it at 1")
        self.cw_linear, self.patch = cw_linear, patch
        if cw_linear == "all_tokens":
            if len(grid) != 2:
                raise invalid("grid", tuple(grid), "height and width are needed")
            check_positive(height=grid[0], width=grid[1])
            self.spec = replace(self.spec, grid=Grid(fixed=tuple(grid)), order=Order(flops=2.0))
        else:
            self.spec = replace(self.spec, grid=Grid(minimum=patch, multiple_of=patch))
        self.block: ChannelScan | SelectiveBlock
        if cw_linear == "channels":
            self.block = ChannelScan(dim, 1 + bidirectional, d_state, d_conv, expand, bias)
        else:
            scans = ("forward", "backward") if bidirectional else ("forward",)
            self.features = patch**2 if cw_linear == "per_token" else math.prod(grid)
            inner: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "bias": bias}
            self.block = SelectiveBlock(self.features, scans, **inner)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The grid, which ``cw_linear="all_tokens"`` is built for."""
        return {"grid": tuple(grid)}

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
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)
        if isinstance(self.block, ChannelScan):
            y = self.block(x.flatten(0, 2)).view_as(x)
        else:
            y = self._turned(x)
        return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0)

    def _turned(self, x: Tensor) -> Tensor:
        """The block of the equations: channels as places, places as features."""
        side = self.patch if self.cw_linear == "per_token" else 0
        size = (side, side) if side else tuple(x.shape[1:3])
        x = x.unflatten(2, (-1, size[1])).unflatten(1, (-1, size[0])).transpose(2, 3)  # B, h, w, p, p, dim
        y = self.block(x.flatten(3, 4).flatten(0, 2).transpose(1, 2))[0].transpose(1, 2)
        return y.reshape(x.shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def visible_flops(self, grid: tuple[int, ...], batch: int = 1) -> int:
        """Those of :meth:`cost`: who counts operator by operator need not walk through the scans."""
        return self.cost(grid, batch).flops

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the convolutions and the products with C; the recurrences are elementwise."""
        places, parameters = batch * grid_size(grid), sum(p.numel() for p in self.parameters())
        if isinstance(self.block, ChannelScan):
            return self.block.cost(places) + Cost(parameters=parameters)
        return self.block.cost(places // self.features, self.dim) + Cost(parameters=parameters)
