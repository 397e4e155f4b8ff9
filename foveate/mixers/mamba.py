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
import torch.nn.functional as F
from torch import Tensor, nn

from ..measure.cost import Cost, linear_flops
from ..ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from ..ops.handwritten import sum_dtype
from ..ops.selective_scan import selective_scan, selective_state_update
from ..ops.selective_scan_blocks import block_length
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer
from .layout import TokenLayout
from .ssm import Packing, SSMState, check_positive, check_token, step_size_bias


@register("mixer", "mamba")
class Mamba(Mixer):
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
        self.dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        check_positive(d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=self.dt_rank)
        self.d_state, self.d_conv, self.d_inner = d_state, d_conv, expand * dim
        self.in_proj = nn.Linear(dim, 2 * self.d_inner, bias=bias)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1.0).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, dim, bias=bias)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(step_size_bias(self.d_inner, dt_min, dt_max))

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Decay rates and skip weights: pulling them to zero would change the timescales."""
        return [self.A_log, self.D]

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
        weight = self.in_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        return SSMState(
            conv=torch.zeros(batch_size, self.d_inner, self.d_conv, device=device, dtype=dtype),
            ssm=torch.zeros(batch_size, self.d_inner, self.d_state, device=device, dtype=sum_dtype(dtype)),
        )

    def prefill(self, x: Tensor, state: SSMState, mask: Tensor | None = None) -> tuple[Tensor, SSMState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        self.check_input(x, mask)
        return self._mix(x, mask, None, state)

    def step(self, x_t: Tensor, state: SSMState) -> tuple[Tensor, SSMState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample.
        """
        check_token("Mamba", x_t, self.dim)
        u, z = self.in_proj(x_t).chunk(2, dim=-1)
        u, conv = causal_conv1d_update(u, state.conv, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        dt, B, C = self._read(u)
        y, ssm = selective_state_update(
            state.ssm, u, dt, self._A(), B, C, self.D, z, dt_bias=self.dt_proj.bias, dt_softplus=True
        )
        return self.out_proj(y), SSMState(conv, ssm)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the convolution and the product with C; the recurrence is elementwise."""
        tokens, inner, states = batch * grid[0], self.d_inner, self.d_state
        read = self.dt_rank + 2 * states
        flops = (
            linear_flops(tokens, self.dim, 2 * inner)
            + linear_flops(tokens, inner, self.d_conv)
            + linear_flops(tokens, inner, read)
            + linear_flops(tokens, self.dt_rank, inner)
            + linear_flops(tokens, inner, states)
            + linear_flops(tokens, inner, self.dim)
        )
        blocks = -(-grid[0] // block_length(batch, inner * states))
        # Saved: x, u before and after the convolution, z, delta, the scan's output; dt, B and C; A twice; its states.
        saved = tokens * (self.dim + 5 * inner + read) + 2 * inner * states + blocks * batch * inner * states
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=4 * batch * inner * (self.d_conv + states),
        )

    def _A(self) -> Tensor:  # noqa: N802  (the field's name)
        return -torch.exp(self.A_log.to(sum_dtype(self.A_log.dtype)))

    def _read(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes before bias and softplus, B and C of ``(..., d_inner)``."""
        dt, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C

    def _mix(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None, state: SSMState | None
    ) -> tuple[Tensor, SSMState]:
        packing = None if mask is None else Packing.of(mask)
        if packing is not None:
            x = packing.pack(x)
            segments = None if segments is None else segments.gather(1, packing.order)
        u, z = (m.transpose(1, 2) for m in self.in_proj(x).chunk(2, dim=-1))
        before = None if state is None else state.conv
        inputs = u
        u, conv = causal_conv1d(
            u, self.conv1d.weight[:, 0], self.conv1d.bias, "silu", before, return_state=True, seq_idx=segments
        )
        dt, B, C = (m.transpose(1, 2) for m in self._read(u.transpose(1, 2)))
        if packing is not None:
            dt = dt.masked_fill(~packing.valid.unsqueeze(1), -math.inf)
            conv = packing.last(inputs.transpose(1, 2), before, self.d_conv)
        y, ssm = selective_scan(
            u,
            dt,
            self._A(),
            B,
            C,
            self.D,
            z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            initial_state=None if state is None else state.ssm,
            return_last_state=True,
            seq_idx=segments,
        )
        y = self.out_proj(y.transpose(1, 2))
        return (y if packing is None else packing.unpack(y)), SSMState(conv, ssm)
