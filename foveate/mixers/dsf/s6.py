"""S6 alone: the selective scan between its projections, without Mamba's convolution, gate and wider stream.

What "Understanding the differences in Foundation Models" (Sieber et al., NeurIPS 2024, arXiv 2405.15731) compares with
attention and gated recurrences. Per channel d of the token itself, with N numbers each::

    [r | b | c] = x W_x,     delta = softplus(r W_dt + bias)
    h_t = exp(delta_t A) h_{t-1} + delta_t b_t x_t,      y = (<c, h> + D x) W_out

b and c are what keys and queries are in attention; the decay is not tied to them. :class:`S6` has a decay for each
channel and state; :class:`ScalarS6` one number A for the layer, which makes its matrices those of attention.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ...errors import invalid
from ...measure.cost import Cost, linear_flops
from ...ops.handwritten import sum_dtype
from ...ops.linear import linear
from ...ops.selective_scan import selective_scan, selective_state_update
from ...ops.selective_scan_blocks import block_length
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer
from ..layout import TokenLayout
from ..parts import Linear
from ..ssm import Packing, check_positive, step_size_bias
from ..state import State, state

Step = Literal["channel", "token"]
STEPS = get_args(Step)


@state
class ScanState(State):
    """Streaming state; its size does not depend on how much was read.

    Attributes:
        ssm: ``(batch, dim, N)``, float32.
    """

    ssm: Tensor


@register("mixer", "s6", system="dsf")
class S6(Mixer):
    """Selective state space without convolution and gate: linear time, a fixed-size state, strictly causal.

    Masked tokens are taken out of the sequence. Segments of a layout are kept apart; positions are not read.

    Args:
        dim: channels of a token, which are those of the scan.
        causal: must be True; the recurrence has one direction.
        d_state: numbers N kept per channel.
        dt_rank: rank of the step sizes' projection; "auto": dim / 16, rounded up.
        dt_min, dt_max: initial step sizes are log-uniform between these.
        bias: the output projection has a bias.

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
        "dsf-mqar": {r"(x_proj|dt_proj|out_proj)\.(weight|bias)": r"\1.\2", r"(A_log|D)": r"\1"}
    }

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = True,
        d_state: int = 16,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        bias: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        check_positive(d_state=d_state, dt_rank=dt_rank)
        self.d_state, self.dt_rank = d_state, dt_rank
        self.x_proj = Linear(dim, dt_rank + 2 * d_state, bias=False)
        self.D = nn.Parameter(torch.ones(dim))
        self.out_proj = Linear(dim, dim, bias=bias)
        self.build_steps(dt_min, dt_max)

    def build_steps(self, dt_min: float, dt_max: float) -> None:
        """Make the parameters of step sizes and decays."""
        self.dt_proj = Linear(self.dt_rank, self.dim)
        self.A_log = nn.Parameter(torch.arange(1, self.d_state + 1.0).log().repeat(self.dim, 1))
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(step_size_bias(self.dim, dt_min, dt_max))

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Decay rates and skip weights: pulling them to zero would change the timescales."""
        return [self.A_log, self.D]

    def rates(self) -> Tensor:
        """A, ``(dim, N)``, negative."""
        return -torch.exp(self.A_log.to(sum_dtype(self.A_log.dtype)))

    def steps(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes ``(..., dim)`` of ``(..., dt_rank)`` before bias and softplus, and the bias ``(dim,)``."""
        return linear(raw, self.dt_proj.weight), self.dt_proj.bias

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step sizes ``(..., dim)`` before bias and softplus, their bias, b and c ``(..., N)`` of ``(..., dim)``."""
        raw, b, c = self.x_proj(x).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return *self.steps(raw), b, c

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
    ) -> ScanState:
        """Zeros, in float32 (float64 if ``dtype``, by default that of the weights, is)."""
        weight = self.x_proj.weight
        real = sum_dtype(dtype or weight.dtype)
        return ScanState(torch.zeros(batch_size, self.dim, self.d_state, device=device or weight.device, dtype=real))

    def prefill(self, x: Tensor, state: ScanState, mask: Tensor | None = None) -> tuple[Tensor, ScanState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        self.check_stream(x, state, mask)
        return self._mix(x, mask, None, state)

    def step(self, x_t: Tensor, state: ScanState) -> tuple[Tensor, ScanState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        dt, bias, b, c = self.read(x_t)
        y, ssm = selective_state_update(state.ssm, x_t, dt, self.rates(), b, c, self.D, dt_bias=bias, dt_softplus=True)
        return self.out_proj(y), ScanState(ssm)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """The projections and the product with c; the recurrence is elementwise."""
        tokens, states = batch * grid[0], self.dim * self.d_state
        flops = linear_flops(tokens, self.dim, self.dt_rank + 2 * self.d_state) + linear_flops(
            tokens, self.dim, self.dim
        )
        flops += linear_flops(tokens, self.dim, self.d_state) + self.step_flops(tokens)
        # Saved: x, what is read of it, the scan's output, and the states between its blocks; step sizes and A.
        blocks = -(-grid[0] // block_length(batch, states))
        saved = tokens * (2 * self.dim + self.dt_rank + 2 * self.d_state) + blocks * batch * states
        saved += self.steps_saved(tokens)
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=4 * batch * states,
        )

    def step_flops(self, tokens: int) -> int:
        """FLOPs of :meth:`steps`."""
        return linear_flops(tokens, self.dt_rank, self.dim)

    def steps_saved(self, tokens: int) -> int:
        """Numbers kept for backward: the step sizes, and A twice."""
        return tokens * self.dim + 2 * self.dim * self.d_state

    def _mix(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None, state: ScanState | None
    ) -> tuple[Tensor, ScanState]:
        packing, x, segments = Packing.take_out(x, mask, segments)
        dt, bias, b, c = self.read(x)
        if packing is not None:
            dt = dt.masked_fill(~packing.valid.unsqueeze(-1), -math.inf)
        found = selective_scan(
            x.mT,
            dt.mT,
            self.rates(),
            b.mT,
            c.mT,
            self.D,
            delta_bias=bias,
            delta_softplus=True,
            initial_state=None if state is None else state.ssm,
            return_last_state=True,
            seq_idx=segments,
        )
        y = self.out_proj(found[0].mT)
        return (y if packing is None else packing.unpack(y)), ScanState(found[1])


@register("mixer", "scalar_s6", system="dsf")
class ScalarS6(S6):
    """S6 with one decay rate for the whole layer (SSD-like), so that the state's features all decay alike.

    Masked tokens are taken out of the sequence. Segments of a layout are kept apart; positions are not read.

    Args:
        dim: channels of a token, which are those of the scan.
        causal: must be True; the recurrence has one direction.
        d_state: numbers N kept per channel.
        step: "channel", as released: a token says one number, and each channel adds its own bias to it; "token", the
            paper's form: one step size per token.
        dt_min, dt_max: initial step sizes are log-uniform between these.
        bias: the output projection has a bias.

    Raises:
        InvalidValue: ``causal=False``, or an option that is not legal.
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
        "dsf-mqar": {
            r"(x_proj|out_proj)\.(weight|bias)": r"\1.\2",
            r"(A_log|D)": r"\1",
            r"dt_proj\.bias": "dt_bias",
            r"dt_proj\.weight": "",  # never used
            r"Id": "exponents",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = True,
        d_state: int = 16,
        step: Step = "channel",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        bias: bool = False,
    ) -> None:
        if step not in STEPS:
            raise invalid("step", step, f"it must be one of {', '.join(STEPS)}")
        self.step_per = step
        super().__init__(dim, causal=causal, d_state=d_state, dt_rank=1, dt_min=dt_min, dt_max=dt_max, bias=bias)

    exponents: Tensor

    def build_steps(self, dt_min: float, dt_max: float) -> None:
        self.dt_bias = nn.Parameter(step_size_bias(self.dim if self.step_per == "channel" else 1, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.zeros(1))
        self.register_buffer("exponents", torch.ones(self.dim, self.d_state))  # a constant; weights bring their own

    def rates(self) -> Tensor:
        return -torch.exp(self.A_log.to(sum_dtype(self.A_log.dtype)) * self.exponents)

    def steps(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        return raw.expand(*raw.shape[:-1], self.dim), self.dt_bias.expand(self.dim)

    def step_flops(self, tokens: int) -> int:
        return 0

    def steps_saved(self, tokens: int) -> int:
        return 2 * self.dim * self.d_state  # step sizes are one number, seen from every channel
