"""S4D layer: a diagonal state-space model per channel, then a gated mix of the channels.

Gu, Gupta, Goel and Re, "On the Parameterization and Initialization of Diagonal State Space Models" (NeurIPS 2022, arXiv
2206.11893). With the op of :mod:`foveate.ops.s4d`, per channel::

    v = SSM(x) + D x,        y = GLU(W gelu(v) + b)

What is remembered does not depend on the tokens: the layer is linear and time-invariant up to the activation, a
convolution as long as the sequence. Initial rates A (section 4): "lin" ``-1/2 + i pi n``; "inv"
``-1/2 + i N/pi (N / (2 n + 1) - 1)`` with N twice the number of rates; "real" ``-(n + 1)``.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..ops.handwritten import sum_dtype
from ..ops.s4d import (
    Rule,
    both_ways_saved,
    convolve_both_ways,
    kernel_flops,
    s4d,
    s4d_flops,
    s4d_kernel,
    s4d_saved,
    s4d_step,
)
from ..registry import register
from ..spec import MixerSpec
from .base import Mixer
from .layout import TokenLayout
from .parts import Linear
from .ssm import Packing, check_positive
from .state import State, state

Start = Literal["lin", "inv", "real"]


@state
class S4DState(State):
    """The state of all channels, ``(batch, dim, d_state / 2, 2)``: real and imaginary parts, float32."""

    ssm: Tensor


@register("mixer", "s4d")
class S4D(Mixer):
    """Diagonal state-space layer (S4D): linear time, a fixed-size state, both directions possible.

    Masked tokens are taken out of the sequence, as if they had never been there.

    Args:
        dim: channels of a token.
        causal: a token reads the past only; otherwise each channel has a second kernel for what follows.
        d_state: real numbers of state per channel, N; half as many complex rates. Even.
        rule: how a step follows from rates and step size: "zoh" (zero-order hold) or "bilinear".
        init: initial rates: "lin", "inv" or "real".
        dt_min, dt_max: initial step sizes are log-uniform between these.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = MixerSpec(
        causal="strict",
        streaming="exact",
        padding="masked",
        export_note="ONNX has no complex numbers, and its chunks are unrolled: the graph grows with the length",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        d_state: int = 64,
        rule: Rule = "zoh",
        init: Start = "lin",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__(dim, causal=causal)
        check_positive(d_state=d_state)
        if d_state % 2:
            raise invalid("d_state", d_state, "each rate stands for itself and its conjugate, so it must be even")
        if rule not in get_args(Rule):
            raise invalid("rule", rule, "it must be 'zoh' or 'bilinear'")
        if init not in get_args(Start):
            raise invalid("init", init, f"it must be one of {', '.join(get_args(Start))}")
        if not 0 < dt_min <= dt_max < math.inf:
            raise invalid("dt_min, dt_max", (dt_min, dt_max), "0 < dt_min <= dt_max is needed, both finite")
        self.d_state = d_state
        self.rule: Rule = rule
        rates, n = d_state // 2, torch.arange(d_state // 2, dtype=torch.float32)
        decay = n + 1 if init == "real" else torch.full((rates,), 0.5)
        turn = {"lin": math.pi * n, "inv": d_state / math.pi * (d_state / (2 * n + 1) - 1), "real": 0 * n}[init]
        self.log_decay = nn.Parameter(decay.log().repeat(dim, 1))
        self.turn = nn.Parameter(turn.repeat(dim, 1))
        self.C = nn.Parameter(torch.randn(1 if causal else 2, dim, rates, 2) * 0.5**0.5)
        self.log_dt = nn.Parameter(torch.rand(dim) * math.log(dt_max / dt_min) + math.log(dt_min))
        self.D = nn.Parameter(torch.randn(dim))
        self.out = Linear(dim, 2 * dim)

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Rates and step sizes. (The authors also train them with a learning rate of their own, 1e-3.)"""
        return [self.log_decay, self.turn, self.log_dt]

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
        packing, x, _ = Packing.take_out(x, mask)
        u, (A, C, dt) = x.transpose(1, 2), self._model(x.dtype)
        if self.causal:
            v = s4d(u, A, C[0], dt, rule=self.rule)
            assert isinstance(v, Tensor)
        else:
            kernels = (s4d_kernel(A, c, dt, x.shape[1], rule=self.rule) for c in C.unbind())
            v = convolve_both_ways(u, *kernels)
        y = self._emit(v.transpose(1, 2), x)
        return y if packing is None else packing.unpack(y)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> S4DState:
        """Zeros, in float32 (float64 if ``dtype``, by default that of the weights, is).

        Raises:
            InvalidType: the mixer is not causal.
        """
        if not self.causal:
            raise self._no_streaming()
        shape, weight = (batch_size, self.dim, self.d_state // 2, 2), self.out.weight
        return S4DState(torch.zeros(shape, device=device or weight.device, dtype=sum_dtype(dtype or weight.dtype)))

    def prefill(self, x: Tensor, state: S4DState, mask: Tensor | None = None) -> tuple[Tensor, S4DState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        packing, x, _ = Packing.take_out(x, mask)
        A, C, dt = self._model(x.dtype)
        found = s4d(
            x.transpose(1, 2),
            A,
            C[0],
            dt,
            rule=self.rule,
            initial_state=torch.view_as_complex(state.ssm),
            return_state=True,
            lengths=None if mask is None else mask.sum(1),
        )
        assert isinstance(found, tuple)
        y = self._emit(found[0].transpose(1, 2), x)
        return y if packing is None else packing.unpack(y), S4DState(torch.view_as_real(found[1]))

    def step(self, x_t: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample.
        """
        if not self.causal:
            raise self._no_streaming()
        self.check_step(x_t, state)
        A, C, dt = self._model(x_t.dtype)
        v, ssm = s4d_step(x_t, A, C[0], dt, torch.view_as_complex(state.ssm), rule=self.rule)
        return self._emit(v, x_t), S4DState(torch.view_as_real(ssm))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """The output projection and the op's products; an FFT, both ways, is not a product."""
        n, d, rates = grid[0], self.dim, self.d_state // 2
        tokens = batch * n
        if self.causal:
            flops, saved = s4d_flops(n, d, rates, batch), s4d_saved(n, d, rates, batch)
        else:
            flops, saved = 2 * kernel_flops(n, d, rates), both_ways_saved(n, d, rates, batch)
        return Cost(
            flops=flops + linear_flops(tokens, d, 2 * d),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * (saved + 5 * tokens * d),  # x, v + D x, its activation, both halves before the gate
            state_bytes=4 * batch * d * self.d_state if self.causal else 0,
        )

    def _model(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Rates, read-outs of each direction and step sizes, in the precision of the sums."""
        real = sum_dtype(dtype)
        A = torch.complex(-self.log_decay.to(real).exp(), self.turn.to(real))
        return A, torch.view_as_complex(self.C.to(real)), self.log_dt.to(real).exp()

    def _emit(self, v: Tensor, x: Tensor) -> Tensor:
        """The output ``(..., dim)`` of what the model made of ``x``."""
        return F.glu(self.out(F.gelu(v + self.D * x)), dim=-1)
