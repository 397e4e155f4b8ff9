"""Mamba: a gated block around the selective scan (S6).

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, figure 3::

    [u | z] = x W_in                         two streams of width E = expand * dim
    u       = silu(conv1d(u))                causal, depthwise, d_conv wide
    [r | B | C] = u W_x                      the step sizes' low-rank form, the input and output maps
    delta   = softplus(r W_dt + b_dt)
    h_t     = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y       = ((<C, h> + D u) * silu(z)) W_out

Step size, B and C depend on the token: the state may keep what it was told to keep for thousands of tokens, and forget
at once. Time and memory grow linearly with the length; a stream needs a state of fixed size.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..measure.cost import Cost, linear_flops
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer
from .layout import TokenLayout
from .parts import Linear
from .ssm import Packing, SelectiveCore, SSMState, check_positive


@register("mixer", "mamba")
class Mamba(Mixer, SelectiveCore):
    """Selective state-space block (S6): linear time, a fixed-size state, strictly causal.

    Masked tokens are taken out of the sequence: convolution and recurrence go on as if they had never been there.
    Segments of a layout are kept apart; its positions are not read, for the recurrence knows only the order.

    Args:
        dim: channels of a token.
        causal: must be True; the recurrence has one direction.
        d_state: numbers N kept per inner channel.
        d_conv: width of the convolution.
        expand: inner channels per channel of the token.
        dt_rank: rank of the step sizes' projection; "auto": dim / 16, rounded up.
        dt_min, dt_max: initial step sizes are log-uniform between these.
        conv_bias: the convolution has a bias.
        bias: the input and output projections have biases.

    Raises:
        InvalidValue: ``causal=False``, or an option that is not a positive whole number.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        layout=True,
        segments=True,
        order=Order(flops=1.0, memory=1.0),
        onnx=True,
        export_note="its scan is unrolled: the graph grows with the length",
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "state-spaces/mamba": {
            r"(in_proj|conv1d|x_proj|dt_proj|out_proj)\.(weight|bias)": r"\1.\2",
            r"(A_log|D)": r"\1",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = True,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        check_positive(d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=dt_rank)
        self.in_proj = Linear(dim, 2 * expand * dim, bias=bias)
        self.build_core(expand * dim, d_state, d_conv, dt_rank, conv_bias)
        self.out_proj = Linear(expand * dim, dim, bias=bias)
        self.start_core(dt_min, dt_max)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, length, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        return self._mix(x, mask, None if layout is None else layout.segments, None)[0]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SSMState:
        """Zeros: the convolution's inputs in ``dtype`` (default: the weights'), the scan's state in float32."""
        return self.core_state(batch_size, device, dtype)

    def prefill(self, x: Tensor, state: SSMState, mask: Tensor | None = None) -> tuple[Tensor, SSMState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        self.check_stream(x, state, mask)
        return self._mix(x, mask, None, state)

    def step(self, x_t: Tensor, state: SSMState) -> tuple[Tensor, SSMState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample.
        """
        self.check_step(x_t, state)
        u, z = self.in_proj(x_t).chunk(2, dim=-1)
        y, state = self.step_core(u, z, state)
        return self.out_proj(y), state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the convolution and the product with C; the recurrence is elementwise."""
        tokens, inner = batch * grid[0], self.d_inner
        flops = linear_flops(tokens, self.dim, 2 * inner) + linear_flops(tokens, inner, self.dim)
        # Saved beside what the core keeps: x, u before the convolution, z and the scan's output.
        saved = tokens * (self.dim + 3 * inner) + self.core_saved(batch, grid[0])
        return Cost(
            flops=flops + self.core_flops(tokens),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=4 * batch * inner * (self.d_conv + self.d_state),
        )

    def _mix(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None, state: SSMState | None
    ) -> tuple[Tensor, SSMState]:
        packing, x, segments = Packing.take_out(x, mask, segments)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        y, state = self.scan_core(u, z, packing, segments, state)
        y = self.out_proj(y)
        return (y if packing is None else packing.unpack(y)), state
