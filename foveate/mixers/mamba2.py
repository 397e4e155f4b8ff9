"""Mamba-2: a gated block around SSD, the selective recurrence with one decay per head.

Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality", arXiv 2405.21060, section 7 (parallel projections, grouped B and C, a normalisation before the output)::

    [z | u | B | C | dt] = x W_in            u of width E = expand * dim, in heads of P; B, C: G groups of N
    [u | B | C] = silu(conv1d([u | B | C]))  causal, depthwise, d_conv wide
    dt      = softplus(dt + b_dt)            one step size per head
    h_t     = exp(dt_t A) h_{t-1} + dt_t u_t B_t^T
    y       = RMSNorm((h C + D u) * silu(z)) W_out

One decay per head instead of one per channel and state turns the scan into matrix products over chunks: states eight
times as large at the same speed.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue
from ..measure.cost import Cost, linear_flops
from ..ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from ..ops.gated_rms_norm import gated_rms_norm
from ..ops.handwritten import sum_dtype
from ..ops.selective_scan import selective_state_update
from ..ops.ssd import check_step_limit, ssd
from ..ops.ssd_chunks import block_chunks, chunk_length, ssd_flops
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer
from .layout import TokenLayout
from .parts import Linear
from .ssm import Packing, SSMState, check_positive, step_size_bias


class GatedRMSNorm(nn.Module):
    """``RMSNorm(y * silu(z)) * weight``, normalised within each group of channels.

    Args:
        width: channels.
        groups: number of groups; it divides ``width``.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """``y`` and ``z``: ``(batch, ..., width)``."""
        return gated_rms_norm(y, z, self.weight, self.groups)


@register("mixer", "mamba2")
class Mamba2(Mixer):
    """Selective state-space block with matrix states (SSD): linear time, matrix products, strictly causal.

    Masked tokens are taken out of the sequence: convolution and recurrence go on as if they had never been there.
    Segments of a layout are kept apart; its positions are not read, for the recurrence knows only the order.

    Args:
        dim: channels of a token.
        causal: must be True; the recurrence has one direction.
        head_dim: channels P of a head; it divides ``expand * dim``. None: the largest divisor that is at most 64.
        d_state: states N per channel, the width of B and C.
        num_groups: groups G of heads that share B and C; it divides the number of heads.
        d_conv: width of the convolution.
        expand: inner channels per channel of the token.
        chunk_size: largest number of positions of a chunk of SSD; it changes speed and memory, not the result.
        dt_min, dt_max: initial step sizes are log-uniform between these.
        dt_limit: smallest and largest step size at any time.
        norm: normalise before the output projection; False: the gate alone.
        conv_bias: the convolution has a bias.
        bias: the input and output projections have biases.

    Raises:
        InvalidValue: ``causal=False``, an option that is not a positive whole number, heads or groups that do not
            divide what they must.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        padding="masked",
        layout=True,
        segments=True,
        order=Order(flops=1.0, memory=1.0),
        onnx=True,
        export_note="its scan is unrolled: the graph grows with the length",
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "state-spaces/mamba": {
            r"(in_proj|conv1d|out_proj)\.(weight|bias)": r"\1.\2",
            r"(A_log|D|dt_bias|norm\.weight)": r"\1",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = True,
        head_dim: int | None = None,
        d_state: int = 128,
        num_groups: int = 1,
        d_conv: int = 4,
        expand: int = 2,
        chunk_size: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        norm: bool = True,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        check_positive(d_state=d_state, num_groups=num_groups, d_conv=d_conv, expand=expand, chunk_size=chunk_size)
        self.d_inner = expand * dim
        if head_dim is None:
            head_dim = max(p for p in range(1, min(64, self.d_inner) + 1) if self.d_inner % p == 0)
        if not isinstance(head_dim, int) or head_dim < 1 or self.d_inner % head_dim:
            raise InvalidValue(f"head_dim={head_dim!r} is not possible: it must divide expand * dim = {self.d_inner}.")
        self.head_dim, self.num_heads = head_dim, self.d_inner // head_dim
        if self.num_heads % num_groups:
            raise InvalidValue(
                f"num_groups={num_groups!r} is not possible: it must divide the number of heads, {self.num_heads}."
            )
        self.d_state, self.num_groups, self.d_conv = d_state, num_groups, d_conv
        self.chunk_size, self.dt_limit = chunk_size, check_step_limit(dt_limit)
        self.d_xBC = self.d_inner + 2 * num_groups * d_state
        self.in_proj = Linear(dim, self.d_inner + self.d_xBC + self.num_heads, bias=bias)
        self.conv1d = nn.Conv1d(self.d_xBC, self.d_xBC, d_conv, groups=self.d_xBC, bias=conv_bias)
        self.dt_bias = nn.Parameter(step_size_bias(self.num_heads, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = GatedRMSNorm(self.d_inner, num_groups) if norm else None
        self.out_proj = Linear(self.d_inner, dim, bias=bias)

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Decay rates, skip weights and step sizes: pulling them to zero would change the timescales."""
        return [self.A_log, self.D, self.dt_bias]

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
        """Zeros: the convolution's inputs in ``dtype`` (default: the weights'), SSD's states in float32."""
        weight = self.in_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        return SSMState(
            conv=torch.zeros(batch_size, self.d_xBC, self.d_conv, device=device, dtype=dtype),
            ssm=torch.zeros(batch_size, *self._state_shape, device=device, dtype=sum_dtype(dtype)),
        )

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
        z, xBC, dt = self._split(x_t)
        xBC, conv = causal_conv1d_update(xBC, state.conv, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        u, B, C = self._heads(xBC)
        dt, A = self._step_sizes(dt).unsqueeze(-1), self._A()[:, None, None]
        y, ssm = selective_state_update(state.ssm, u, dt, A, B, C, self.D.unsqueeze(-1))
        return self._out(y.flatten(-2), z), SSMState(conv, ssm)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the convolution and the products of SSD."""
        length = grid[0]
        tokens = batch * length
        flops = (
            linear_flops(tokens, self.dim, self.in_proj.out_features)
            + linear_flops(tokens, self.d_xBC, self.d_conv)
            + ssd_flops(batch, length, self.num_heads, self.head_dim, self.num_groups, self.d_state, self.chunk_size)
            + linear_flops(tokens, self.d_inner, self.dim)
        )
        chunk = chunk_length(length, self.chunk_size)
        blocks = -(-length // (chunk * block_chunks(batch, length, *self._state_shape, chunk)))
        # Saved: x, in_proj's output, the convolution's, SSD's, and out_proj's input; without the norm silu(z) too; step
        # sizes before and after softplus and limit, times A; A twice; the states between blocks.
        steps = 3 + (self.dt_limit != (0.0, math.inf))
        per_token = self.dim + self.in_proj.out_features + self.d_xBC + steps * self.num_heads
        per_token += (2 if self.norm is not None else 3) * self.d_inner
        saved = tokens * per_token + blocks * batch * self.d_inner * self.d_state + 2 * self.num_heads
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=4 * batch * (self.d_xBC * self.d_conv + self.d_inner * self.d_state),
        )

    @property
    def _state_shape(self) -> tuple[int, int, int]:
        return self.num_heads, self.head_dim, self.d_state

    def _A(self) -> Tensor:  # noqa: N802  (the field's name)
        return -torch.exp(self.A_log.to(sum_dtype(self.A_log.dtype)))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate, the convolution's input and raw step sizes."""
        z, xBC, dt = self.in_proj(x).split((self.d_inner, self.d_xBC, self.num_heads), dim=-1)
        return z, xBC, dt

    def _heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input ``(..., H, P)``, B and C ``(..., G, N)``."""
        maps = self.num_groups * self.d_state
        u, B, C = xBC.split((self.d_inner, maps, maps), dim=-1)
        return (
            u.unflatten(-1, (self.num_heads, self.head_dim)),
            B.unflatten(-1, (self.num_groups, self.d_state)),
            C.unflatten(-1, (self.num_groups, self.d_state)),
        )

    def _step_sizes(self, dt: Tensor) -> Tensor:
        dt = F.softplus(dt.to(sum_dtype(dt.dtype)) + self.dt_bias)
        return dt if self.dt_limit == (0.0, math.inf) else dt.clamp(*self.dt_limit)

    def _out(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(y * F.silu(z) if self.norm is None else self.norm(y, z))

    def _mix(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None, state: SSMState | None
    ) -> tuple[Tensor, SSMState]:
        packing, x, segments = Packing.take_out(x, mask, segments)
        z, inputs, dt = self._split(x)
        before = None if state is None else state.conv
        xBC, conv = causal_conv1d(
            inputs.transpose(1, 2),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            "silu",
            before,
            return_state=True,
            seq_idx=segments,
        )
        u, B, C = self._heads(xBC.transpose(1, 2))
        dt = self._step_sizes(dt)
        if packing is not None:
            dt = dt.masked_fill(~packing.valid.unsqueeze(-1), 0)
            conv = packing.last(inputs, before, self.d_conv)
        y, ssm = ssd(
            u,
            dt,
            self._A(),
            B,
            C,
            self.chunk_size,
            self.D,
            initial_states=None if state is None else state.ssm,
            return_final_states=True,
            seq_idx=segments,
        )
        y = self._out(y.flatten(-2), z)
        return (y if packing is None else packing.unpack(y)), SSMState(conv, ssm)
