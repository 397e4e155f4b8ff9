"""The temporal convolution network of TCNCA: a stack of dilated causal convolutions with a constant-size stream.

Terzic et al., "TCNCA: Temporal Convolution Network with Chunked Attention for Scalable Sequence Processing" (arXiv
2312.05605): dilations grow by a factor f from level to level, so that few levels see far. Blocks as in Bai et al.
(arXiv 1803.01271), section 3.3. What the paper does not print (mixing of channels, activation, norms, convolutions per
level) are options.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import invalid
from ..ops.dilated_conv import dilated_conv, dilated_conv_flops, dilated_conv_saved
from .ssm import Packing, check_positive
from .state import State, state

Convolution = Literal["depthwise", "dense"]
Activation = Literal["gelu", "relu", "silu"]
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@state
class TCNState(State):
    """Per convolution, its last ``(K - 1) D`` inputs ``(batch, (K - 1) D, dim)``, latest last."""

    inputs: tuple[Tensor, ...]


class DilatedConv(nn.Module):
    """One dilated convolution with its weights.

    Args:
        dim: channels in and out.
        kernel_size, dilation: K taps, D apart.
        depthwise: a filter per channel.
        weight_norm: learn the filters' lengths apart from their directions.
        bias: add a learned bias.
    """

    def __init__(
        self, dim: int, kernel_size: int, dilation: int, *, depthwise: bool, weight_norm: bool, bias: bool
    ) -> None:
        super().__init__()
        self.dilation, self.span = dilation, (kernel_size - 1) * dilation
        inputs = 1 if depthwise else dim
        bound = 1 / math.sqrt(inputs * kernel_size)
        self.weight = nn.Parameter(torch.empty(dim, inputs, kernel_size).uniform_(-bound, bound))
        self.length = nn.Parameter(self.weight.detach().flatten(1).norm(dim=1)) if weight_norm else None
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if bias else None

    def filters(self) -> Tensor:
        """The weights that are convolved with."""
        if self.length is None:
            return self.weight
        norm = torch.linalg.vector_norm(self.weight, dim=(1, 2), keepdim=True)
        return self.weight * (self.length[:, None, None] / norm.clamp(min=1e-12))

    def forward(
        self, x: Tensor, causal: bool = True, before: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Convolve ``(batch, L, dim)``; see :func:`~foveate.ops.dilated_conv.dilated_conv`."""
        return dilated_conv(
            x, self.filters(), self.bias, dilation=self.dilation, causal=causal, before=before, segments=segments
        )


class DilatedTCN(nn.Module):
    """A stack of dilated convolutions, dilation ``f^i`` at level i.

    With ``residual``, a level is ``x + act(conv(x))``, with two convolutions ``x + act(conv(act(conv(x))))``; without,
    the activation stands between convolutions only.

    Args:
        dim: channels of a token.
        kernel_size: taps K of each convolution. With ``dilation_factor`` above it some positions are never met.
        levels: N; 0: the input comes out as it is.
        dilation_factor: f.
        convolution: "depthwise", a filter per channel, or "dense".
        residual: every level adds to its input.
        convs_per_block: convolutions of each level.
        activation: "gelu", "relu" or "silu".
        weight_norm: filters' lengths are learned apart from their directions.
        bias: convolutions have biases.
        causal: look back only; otherwise the taps are centred.
        dropout: share of numbers dropped behind each activation while training.

    Raises:
        InvalidValue: an option that is not legal.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 4,
        levels: int = 4,
        dilation_factor: int = 4,
        convolution: Convolution = "depthwise",
        residual: bool = True,
        convs_per_block: int = 1,
        activation: Activation = "gelu",
        weight_norm: bool = False,
        bias: bool = True,
        causal: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(
            dim=dim, kernel_size=kernel_size, dilation_factor=dilation_factor, convs_per_block=convs_per_block
        )
        if not isinstance(levels, int) or levels < 0:
            raise invalid("levels", levels, "a whole number, 0 for no convolution, is needed")
        if convolution not in get_args(Convolution):
            raise invalid("convolution", convolution, "it must be 'depthwise' or 'dense'")
        if activation not in ACTIVATIONS:
            raise invalid("activation", activation, f"it must be one of {', '.join(ACTIVATIONS)}")
        if not 0 <= dropout < 1:
            raise invalid("dropout", dropout, "it must be at least 0 and below 1")
        self.dim, self.kernel_size, self.levels = dim, kernel_size, levels
        self.depthwise, self.residual, self.convs_per_block = convolution == "depthwise", residual, convs_per_block
        self.activation, self.causal = activation, causal
        self.dropout = nn.Dropout(dropout)
        self.convs = nn.ModuleList(
            DilatedConv(
                dim,
                kernel_size,
                dilation_factor**level,
                depthwise=self.depthwise,
                weight_norm=weight_norm,
                bias=bias,
            )
            for level in range(levels)
            for _ in range(convs_per_block)
        )

    @property
    def receptive_field(self) -> int:
        """Positions that an output depends on: ``1 + c (K - 1) (f^N - 1) / (f - 1)`` with c convolutions per level."""
        return 1 + sum(conv.span for conv in self._convs())

    def forward(self, x: Tensor, *, valid: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Convolve a whole sequence.

        Args:
            x: ``(batch, L, dim)``.
            valid: bool ``(batch, L)``: positions behind the real tokens are False, and ``x`` is 0 there.
            segments: int ``(batch, L)``: documents that do not see each other.

        Returns:
            ``(batch, L, dim)``.
        """

        def convolve(index: int, h: Tensor) -> Tensor:
            if valid is not None and not self.causal:
                h = h.masked_fill(~valid.unsqueeze(-1), 0)
            return self._convs()[index](h, self.causal, segments=segments)

        return self._stack(x, convolve)

    def init_state(self, batch_size: int, device: torch.device | str | None, dtype: torch.dtype) -> TCNState:
        """Zeros before the sequence."""
        spans = (conv.span for conv in self._convs())
        return TCNState(tuple(torch.zeros(batch_size, span, self.dim, device=device, dtype=dtype) for span in spans))

    def prefill(self, x: Tensor, past: TCNState, packing: Packing | None = None) -> tuple[Tensor, TCNState]:
        """Read ``(batch, L, dim)``, packed if there is a packing; returns outputs and the state after it."""
        inputs: list[Tensor] = []

        def convolve(index: int, h: Tensor) -> Tensor:
            conv, before = self._convs()[index], past.inputs[index]
            if packing is not None:
                last = packing.last(h, before.transpose(1, 2), conv.span).transpose(1, 2)
            else:
                history = torch.cat((before.to(h.dtype), h), 1)
                last = history[:, history.shape[1] - conv.span :]
            inputs.append(last)
            return conv(h, before=before.to(h.dtype))

        return self._stack(x, convolve), TCNState(tuple(inputs))

    def step(self, x_t: Tensor, past: TCNState) -> tuple[Tensor, TCNState]:
        """Read one token ``(batch, dim)``."""
        inputs: list[Tensor] = []

        def convolve(index: int, h: Tensor) -> Tensor:
            conv = self._convs()[index]
            history = torch.cat((past.inputs[index].to(h.dtype), h), 1)
            inputs.append(history[:, 1:])
            # Of the history only every D-th input is met.
            met = history[:, :: conv.dilation]
            return dilated_conv(met[:, -1:], conv.filters(), conv.bias, before=met[:, :-1])

        return self._stack(x_t[:, None], convolve)[:, 0], TCNState(tuple(inputs))

    def flops(self, batch: int, length: int) -> int:
        """FLOPs of the convolutions; the rest is elementwise."""
        return batch * sum(
            dilated_conv_flops(
                length,
                self.dim,
                self.dim,
                self.kernel_size,
                conv.dilation,
                depthwise=self.depthwise,
                causal=self.causal,
            )
            for conv in self._convs()
        )

    def saved(self, batch: int, length: int) -> int:
        """Numbers kept for the backward pass, without the input: what each convolution and activation reads."""
        total = 0
        for index, conv in enumerate(self._convs()):
            each, once = dilated_conv_saved(
                length, self.dim, self.kernel_size, conv.dilation, depthwise=self.depthwise, causal=self.causal
            )
            shares_input = index == 0 and each == length * self.dim
            total += once + batch * (0 if shares_input else each)
            if self._acts(index):
                total += batch * max(length * self.dim, each)
        return total

    def state_numbers(self, batch: int, length: int) -> int:
        """Numbers of a stream's state; they do not depend on what was read."""
        return batch * self.dim * sum(conv.span for conv in self._convs())

    def _convs(self) -> list[DilatedConv]:
        return [conv for conv in self.convs if isinstance(conv, DilatedConv)]

    def _acts(self, index: int) -> bool:
        return self.residual or index < len(self.convs) - 1

    def _stack(self, x: Tensor, convolve) -> Tensor:  # type: ignore[no-untyped-def]
        """The levels, whose convolutions ``convolve(index, input)`` computes."""
        act = ACTIVATIONS[self.activation]
        for level in range(self.levels):
            h = x
            for inside in range(self.convs_per_block):
                index = level * self.convs_per_block + inside
                h = convolve(index, h)
                h = self.dropout(act(h)) if self._acts(index) else h
            x = x + h if self.residual else h
        return x
