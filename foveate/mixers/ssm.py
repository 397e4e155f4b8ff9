"""What state-space mixers share: the streaming state, sequences with gaps, step sizes, and Mamba's inner part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InvalidValue
from ..measure.cost import linear_flops
from ..ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from ..ops.handwritten import sum_dtype
from ..ops.linear import linear
from ..ops.selective_scan import selective_scan, selective_state_update
from ..ops.selective_scan_blocks import block_length
from .parts import Linear
from .state import State, state


@state
class SSMState(State):
    """Streaming state of a state-space mixer; its size does not depend on how much was read.

    Attributes:
        conv: ``(batch, channels, d_conv)``, the last inputs of the convolution, latest last.
        ssm: ``(batch, D, N)`` or ``(batch, H, P, N)``, float32.
    """

    conv: Tensor
    ssm: Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Moves the real tokens of a masked sequence to its front, so that a gap is nowhere in the recurrence.

    Attributes:
        order: int64 ``(batch, L)``: which token comes to each place; real ones first, in their order.
        valid: bool ``(batch, L)``: places that hold a real token.
        place: int64 ``(batch, L)``: where each token went (meaningless for masked ones).
        mask: the mask itself.
    """

    order: Tensor
    valid: Tensor
    place: Tensor
    mask: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Packing:
        """The packing of a mask, bool ``(batch, L)``, True = a real token."""
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        place = mask.cumsum(1) - 1
        valid = torch.arange(mask.shape[1], device=mask.device) <= place[:, -1:]
        return cls(order, valid, place.clamp(min=0), mask)

    @classmethod
    def take_out(
        cls, x: Tensor, mask: Tensor | None, segments: Tensor | None = None
    ) -> tuple[Packing | None, Tensor, Tensor | None]:
        """A sequence without its masked tokens.

        Args:
            x: ``(batch, L, dim)``.
            mask: bool ``(batch, L)``, True = a real token; None: all are, and nothing moves.
            segments: int ``(batch, L)``, the tokens' documents, which move with them; None: there is one.

        Returns:
            The packing (None without a mask), and ``x`` and ``segments``, packed.
        """
        if mask is None:
            return None, x, segments
        packing = cls.of(mask)
        return packing, packing.pack(x), None if segments is None else segments.gather(1, packing.order)

    def pack(self, x: Tensor) -> Tensor:
        """``(batch, L, dim)`` with its real tokens in front, zeros behind them."""
        x = x.gather(1, self.order.unsqueeze(-1).expand_as(x))
        return x.masked_fill(~self.valid.unsqueeze(-1), 0)

    def unpack(self, y: Tensor) -> Tensor:
        """Back to the tokens' own places, zeros where the mask is False."""
        y = y.gather(1, self.place.unsqueeze(-1).expand_as(y))
        return y.masked_fill(~self.mask.unsqueeze(-1), 0)

    def last(self, x: Tensor, before: Tensor | None, width: int) -> Tensor:
        """The last ``width`` real inputs, latest last.

        Args:
            x: ``(batch, L, channels)``, packed.
            before: ``(batch, channels, width)``, those before the sequence; None: zeros.

        Returns:
            ``(batch, channels, width)`` in x's dtype.
        """
        if before is None:
            before = x.new_zeros(x.shape[0], x.shape[2], width)
        history = torch.cat((before.to(x.dtype).transpose(1, 2), x), dim=1)
        index = self.valid.sum(1, keepdim=True) + torch.arange(width, device=x.device)
        return history.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2])).transpose(1, 2).contiguous()


class SelectiveCore(nn.Module):
    """What lies between the projections of a Mamba block: convolution, what is read from its output, and the scan.

    A base class: :meth:`build_core` and :meth:`start_core` make the parameters of a module that has one core
    (:class:`~foveate.mixers.mamba.Mamba`, or a branch of a block with several).
    """

    def build_core(self, d_inner: int, d_state: int, d_conv: int, dt_rank: int, conv_bias: bool) -> None:
        """Make the parameters: ``conv1d``, ``x_proj``, ``dt_proj``, ``A_log`` and ``D``."""
        self.d_inner, self.d_state, self.d_conv, self.dt_rank = d_inner, d_state, d_conv, dt_rank
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, bias=conv_bias)
        self.x_proj = Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1.0).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))

    def start_core(self, dt_min: float = 1e-3, dt_max: float = 0.1) -> None:
        """Draw the initial step sizes, log-uniform between the two."""
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(step_size_bias(self.d_inner, dt_min, dt_max))

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Decay rates and skip weights: pulling them to zero would change the timescales."""
        return [self.A_log, self.D]

    def core_state(self, batch_size: int, device: torch.device | str | None, dtype: torch.dtype | None) -> SSMState:
        """Zeros: the convolution's inputs in ``dtype`` (default: the weights'), the scan's state in float32."""
        weight = self.x_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        return SSMState(
            conv=torch.zeros(batch_size, self.d_inner, self.d_conv, device=device, dtype=dtype),
            ssm=torch.zeros(batch_size, self.d_inner, self.d_state, device=device, dtype=sum_dtype(dtype)),
        )

    def scan_core(
        self, u: Tensor, z: Tensor, packing: Packing | None, segments: Tensor | None, state: SSMState | None
    ) -> tuple[Tensor, SSMState]:
        """Run over a sequence.

        Args:
            u, z: ``(batch, L, d_inner)``, the stream and its gate; packed, if there is a packing.
            packing: where the real tokens stand; None: everywhere.
            segments: int ``(batch, L)``, documents to keep apart, in the order of ``u``.
            state: what was read before.

        Returns:
            ``(batch, L, d_inner)``, gated, and the state after it.
        """
        inputs, before = u.transpose(1, 2), None if state is None else state.conv
        u, conv = causal_conv1d(
            inputs, self.conv1d.weight[:, 0], self.conv1d.bias, "silu", before, return_state=True, seq_idx=segments
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
            z.transpose(1, 2),
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            initial_state=None if state is None else state.ssm,
            return_last_state=True,
            seq_idx=segments,
        )
        return y.transpose(1, 2), SSMState(conv, ssm)

    def step_core(self, u: Tensor, z: Tensor, state: SSMState) -> tuple[Tensor, SSMState]:
        """One token of the stream and its gate, ``(batch, d_inner)``; returns its gated output and the new state."""
        u, conv = causal_conv1d_update(u, state.conv, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        dt, B, C = self._read(u)
        y, ssm = selective_state_update(
            state.ssm, u, dt, self._A(), B, C, self.D, z, dt_bias=self.dt_proj.bias, dt_softplus=True
        )
        return y, SSMState(conv, ssm)

    def core_flops(self, tokens: int) -> int:
        """The convolution, the projections and the product with C; the recurrence is elementwise."""
        return (
            linear_flops(tokens, self.d_inner, self.d_conv)
            + linear_flops(tokens, self.d_inner, self.dt_rank + 2 * self.d_state)
            + linear_flops(tokens, self.dt_rank, self.d_inner)
            + linear_flops(tokens, self.d_inner, self.d_state)
        )

    def core_saved(self, batch: int, length: int) -> int:
        """Numbers kept for backward, without ``u``, ``z`` and the output.

        They are u after the convolution, delta, what is read, A twice, and the states between the scan's blocks.
        """
        states = self.d_inner * self.d_state
        blocks = -(-length // block_length(batch, states))
        read = 2 * self.d_inner + self.dt_rank + 2 * self.d_state
        return batch * length * read + 2 * states + blocks * batch * states

    def _A(self) -> Tensor:  # noqa: N802  (the field's name)
        return -torch.exp(self.A_log.to(sum_dtype(self.A_log.dtype)))

    def _read(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes before bias and softplus, B and C of ``(..., d_inner)``."""
        dt, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return linear(dt, self.dt_proj.weight), B, C


def step_size_bias(size: int, smallest: float, largest: float) -> Tensor:
    """Biases whose softplus is log-uniform between two step sizes, as published (``largest`` 0.1, ``smallest`` 1e-3).

    Returns:
        float32 ``(size,)``.

    Raises:
        InvalidValue: the bounds are not ``0 < smallest <= largest``.
    """
    if not 0 < smallest <= largest:
        raise InvalidValue(
            f"dt_min={smallest!r} and dt_max={largest!r} are not possible: 0 < dt_min <= dt_max is needed."
        )
    low, high = math.log(smallest), math.log(largest)
    dt = torch.exp(torch.rand(size) * (high - low) + low).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def check_positive(**options: int) -> None:
    """Refuse options that are not whole numbers above 0."""
    for name, value in options.items():
        if not isinstance(value, int) or value < 1:
            raise InvalidValue(f"{name}={value!r} is not possible: a positive whole number is needed.")
