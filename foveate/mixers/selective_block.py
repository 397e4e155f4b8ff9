"""A Mamba block with several reading orders: one input projection, one gate, a convolution and an S6 for each order.

MambaMixer (arXiv 2403.19888, sections 3.1 and 3.2) reads the tokens or the channels this way. With S an order of the
places of a sequence, and S^-1 back from it::

    [u | z] = x W_in          y = sum over orders of  S^-1( S6( silu(conv(S u)) ) ) * silu(z)          out = y W_out
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

from torch import Tensor, nn

from ..errors import InvalidValue, unknown_name
from ..measure.cost import Cost, linear_flops
from .parts import Linear
from .ssm import Packing, SelectiveCore, SSMState, check_positive

#: An order in which a sequence is read: (x, grid) to x in that order and back, for ``(batch, tokens, ...)``.
Scan = tuple[Callable[[Tensor, tuple[int, ...]], Tensor], Callable[[Tensor, tuple[int, ...]], Tensor]]


def _as_it_is(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x


def _from_the_end(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x.flip(1)


#: The orders that the token mixer knows; one more entry is one more legal name in ``scans``.
SCANS: dict[str, Scan] = {"forward": (_as_it_is, _as_it_is), "backward": (_from_the_end, _from_the_end)}


class ScanBranch(SelectiveCore):
    """Convolution and selective scan of one reading order; arguments as in :meth:`SelectiveCore.build_core`."""

    def __init__(self, d_inner: int, d_state: int, d_conv: int, dt_rank: int, conv_bias: bool) -> None:
        super().__init__()
        self.build_core(d_inner, d_state, d_conv, dt_rank, conv_bias)
        self.start_core()


class SelectiveBlock(nn.Module):
    """A Mamba block with several scans, one input projection and one gate.

    Args:
        features: width of a place of the sequence.
        scans: names of :data:`SCANS`, at least one.
        d_state, d_conv, expand, dt_rank, conv_bias, bias: see :class:`SelectiveTokenMixer`.

    Raises:
        UnknownName: a scan that does not exist.
        InvalidValue: no scan, one named twice, or an option that is not a positive whole number.
    """

    def __init__(
        self,
        features: int,
        scans: Sequence[str],
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        rank = math.ceil(features / 16) if dt_rank == "auto" else dt_rank
        check_positive(d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=rank)
        for name in scans:
            if name not in SCANS:
                raise unknown_name("scan", name, SCANS)
        if not scans or len(set(scans)) < len(scans):
            raise InvalidValue(f"scans={tuple(scans)!r} is not possible: different names are needed, at least one.")
        inner = expand * features
        self.features, self.scans = features, tuple(scans)
        self.in_proj = Linear(features, 2 * inner, bias=bias)
        self.branches = nn.ModuleList(ScanBranch(inner, d_state, d_conv, rank, conv_bias) for _ in scans)
        self.out_proj = Linear(inner, features, bias=bias)

    @property
    def first(self) -> ScanBranch:
        """The branch of the first scan, the only one where the block streams."""
        return cast(ScanBranch, self.branches[0])

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        state: SSMState | None = None,
        grid: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, SSMState]:
        """Mix ``(batch, length, features)``.

        Args:
            mask: bool ``(batch, length)``, True = real; the others are taken out of every scan.
            segments: int ``(batch, length)``, documents to keep apart.
            state: what was read before, for a single forward scan.
            grid: the grid whose places are the sequence; None: they are in a row.

        Returns:
            The outputs in the input's shape, zeros where masked, and the last scan's state after them.
        """
        grid = tuple(x.shape[1:2]) if grid is None else grid
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)
        streams = self.in_proj(x).chunk(2, dim=-1)
        total = after = None
        for name, branch in zip(self.scans, self.branches, strict=True):
            take, back = SCANS[name]
            u, z = (take(m, grid) for m in streams)
            here = None if segments is None else take(segments, grid)
            packing = None if mask is None else Packing.of(take(mask, grid))
            if packing is not None:
                u, z = packing.pack(u), packing.pack(z)
                here = None if here is None else here.gather(1, packing.order)
            y, after = cast(ScanBranch, branch).scan_core(u, z, packing, here, state)
            y = back(y if packing is None else packing.unpack(y), grid)
            total = y if total is None else total + y
        y = self.out_proj(total)
        return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0), cast(SSMState, after)

    def step(self, x_t: Tensor, state: SSMState) -> tuple[Tensor, SSMState]:
        """One place ``(batch, features)`` of a single forward scan."""
        u, z = self.in_proj(x_t).chunk(2, dim=-1)
        y, state = self.first.step_core(u, z, state)
        return self.out_proj(y), state

    def cost(self, batch: int, length: int) -> Cost:
        """Cost of ``batch`` sequences; parameters and state are not counted."""
        places, inner = batch * length, self.first.d_inner
        flops = linear_flops(places, self.features, 2 * inner) + linear_flops(places, inner, self.features)
        # Kept beside what the cores keep: x, u and z, once more for every order that is not theirs, and the sum.
        reordered = sum(name != "forward" for name in self.scans)
        saved = places * (self.features + (3 + 2 * reordered) * inner)
        count = len(self.scans)
        saved += count * self.first.core_saved(batch, length)
        return Cost(flops=flops + count * self.first.core_flops(places), activation_bytes=4 * saved)
