"""Gated recurrences whose gates do not read the state: the quasi-LSTM and RG-LRU.

Quasi-LSTM: Sieber et al., "Understanding the differences in Foundation Models" (NeurIPS 2024, arXiv 2405.15731, section
3.3). RG-LRU: De et al., "Griffin" (2024, arXiv 2402.19427, sections 2.3 and 2.4). The block is one and the same::

    [g | u] = x W_in                       two streams of width E
    u   = conv1d(u)                        causal, depthwise, with bias, no activation
    h_t = decay_t * h_{t-1} + write_t * u_t
    y   = (gelu(g) * read_t * h) W_out

    quasi-LSTM    decay = sigmoid(f), or reversed sigmoid(-f)^relu(alpha);   write = sigmoid(i);   read = sigmoid(o)
    RG-LRU        decay = sigmoid(lambda)^(8 sigmoid(f));   write = sqrt(1 - decay^2) sigmoid(i);   read = 1

with [f | i | o] linear in u. In the quasi-LSTM forgetting and writing are independent, where selective state spaces
couple them through one step size; the reversed sigmoid is their decay, for ``exp(-a softplus(f)) = sigmoid(-f)^a``.
Each channel keeps one number; time and memory grow linearly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...measure.cost import Cost, linear_flops
from ...ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from ...ops.gated_recurrence import gated_recurrence
from ...ops.handwritten import sum_dtype
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads
from ..layout import TokenLayout
from ..parts import Linear
from ..ssm import Packing, check_positive
from ..state import State, state


@state
class RecurrenceState(State):
    """Streaming state; its size does not depend on how much was read.

    Attributes:
        conv: ``(batch, E, kernel)``, the last inputs of the convolution, latest last.
        h: ``(batch, E)``, float32.
    """

    conv: Tensor
    h: Tensor


class GatedRecurrence(Mixer):
    """Base of the two: the block around :meth:`gate`.

    Args:
        dim: channels of a token.
        causal: must be True; the recurrence has one direction.
        expansion: inner channels E per channel of the token; E is rounded down.
        kernel: width of the convolution.
    """

    def __init__(self, dim: int, *, causal: bool, expansion: float, kernel: int) -> None:
        super().__init__(dim, causal=causal)
        if not isinstance(expansion, int | float) or not 1 <= expansion * dim < math.inf:
            raise invalid("expansion", expansion, f"expansion * dim must be at least 1, and dim is {dim}")
        check_positive(kernel=kernel)
        self.inner, self.kernel = int(dim * expansion), kernel
        self.input = Linear(dim, 2 * self.inner, bias=False)
        self.conv = nn.Conv1d(self.inner, self.inner, kernel, groups=self.inner)
        self.output = Linear(self.inner, dim, bias=False)
        nn.init.normal_(self.input.weight, std=dim**-0.5)
        nn.init.normal_(self.output.weight, std=self.inner**-0.5)

    def gate(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decay, write and read ``(..., E)`` of the stream ``(..., E)``; a read of None is 1.

        Decay and write are in float32 (float64 for float64 input): decays near 1 need the digits.
        """
        raise NotImplementedError

    def gate_flops(self, tokens: int) -> int:
        """FLOPs of :meth:`gate`."""
        raise NotImplementedError

    def gate_saved(self) -> int:
        """Numbers per token that :meth:`gate` and the products with its answer keep for backward."""
        raise NotImplementedError

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
    ) -> RecurrenceState:
        """Zeros: the convolution's inputs in ``dtype`` (default: the weights'), the recurrence's state in float32."""
        weight = self.output.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        return RecurrenceState(
            conv=torch.zeros(batch_size, self.inner, self.kernel, device=device, dtype=dtype),
            h=torch.zeros(batch_size, self.inner, device=device, dtype=sum_dtype(dtype)),
        )

    def prefill(self, x: Tensor, state: RecurrenceState, mask: Tensor | None = None) -> tuple[Tensor, RecurrenceState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        self.check_stream(x, state, mask)
        return self._mix(x, mask, None, state)

    def step(self, x_t: Tensor, state: RecurrenceState) -> tuple[Tensor, RecurrenceState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        g, u = self.input(x_t).chunk(2, dim=-1)
        u, conv = causal_conv1d_update(u, state.conv, self.conv.weight[:, 0], self.conv.bias)
        decay, write, read = self.gate(u)
        h = decay * state.h + write * u
        return self._out(h.to(x_t.dtype), g, read), RecurrenceState(conv, h)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, convolution and gates; the recurrence is elementwise."""
        tokens, wide = batch * grid[0], self.inner
        flops = linear_flops(tokens, self.dim, 2 * wide) + linear_flops(tokens, wide, self.kernel)
        flops += self.gate_flops(tokens) + linear_flops(tokens, wide, self.dim)
        # Saved: x, [g u], u after the convolution, gelu(g), what is written, the state and what is projected; gates by
        # their own account.
        saved = self.dim + 7 * wide + self.gate_saved()
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * tokens * saved,
            state_bytes=4 * batch * wide * (self.kernel + 1),
        )

    def convolved(
        self, x: Tensor, before: Tensor | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gate stream and convolved stream ``(batch, length, E)``, the convolution's inputs, and its last inputs."""
        g, inputs = self.input(x).chunk(2, dim=-1)
        found = causal_conv1d(
            inputs.mT, self.conv.weight[:, 0], self.conv.bias, None, before, return_state=True, seq_idx=segments
        )
        return g, found[0].mT, inputs, found[1]

    def _out(self, h: Tensor, g: Tensor, read: Tensor | None) -> Tensor:
        return self.output(F.gelu(g) * (h if read is None else read * h))

    def _mix(
        self, x: Tensor, mask: Tensor | None, segments: Tensor | None, state: RecurrenceState | None
    ) -> tuple[Tensor, RecurrenceState]:
        packing, x, segments = Packing.take_out(x, mask, segments)
        before = None if state is None else state.conv
        g, u, inputs, conv = self.convolved(x, before, segments)
        decay, write, read = self.gate(u)
        written = write * u
        if packing is not None:  # behind the real tokens the state passes untouched
            behind = ~packing.valid.unsqueeze(-1)
            decay, written = decay.masked_fill(behind, 1), written.masked_fill(behind, 0)
            conv = packing.last(inputs, before, self.kernel)
        past = None if state is None else state.h
        found = gated_recurrence(written, decay, past, return_last_state=True, seq_idx=segments)
        y = self._out(found[0].to(x.dtype), g, read)
        return (y if packing is None else packing.unpack(y)), RecurrenceState(conv, found[1])


@register("mixer", "quasi_lstm", system="dsf")
class QuasiLSTM(GatedRecurrence):
    """LSTM whose gates read the input alone, so that it is a linear recurrence; strictly causal, linear time.

    Masked tokens are taken out of the sequence. Segments of a layout are kept apart; positions are not read.

    Args:
        dim: channels of a token.
        causal: must be True; the recurrence has one direction.
        expansion: inner channels per channel of the token; their number is rounded down.
        kernel: width of the convolution.
        reversed: the decay is ``sigmoid(-f)^relu(alpha)`` with a learned alpha, that of a selective state space.

    Raises:
        InvalidValue: ``causal=False``, no inner channel, or an option that is not a positive whole number.
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
        "dsf-mqar": {r"(input|conv|gates|output)\.(weight|bias)": r"\1.\2", r"alpha": "alpha"}
    }

    def __init__(
        self, dim: int, *, causal: bool = True, expansion: float = 2.0, kernel: int = 4, reversed: bool = False
    ) -> None:
        super().__init__(dim, causal=causal, expansion=expansion, kernel=kernel)
        self.gates = Linear(self.inner, 3 * self.inner)
        self.alpha = nn.Parameter(torch.tensor(1.0)) if reversed else None
        nn.init.normal_(self.gates.weight, std=self.inner**-0.5)

    def no_weight_decay(self) -> list[nn.Parameter]:
        """The exponent: at zero nothing is ever forgotten."""
        return [] if self.alpha is None else [self.alpha]

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The release has an alpha without the reversed sigmoid too, and never reads it there."""
        return {key: value for key, value in state_dict.items() if key != "alpha" or self.alpha is not None}

    def gate(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        forget, write, read = self.gates(u).chunk(3, dim=-1)
        forget, write = (m.to(sum_dtype(u.dtype)) for m in (forget, write))
        if self.alpha is None:
            decay = torch.sigmoid(forget)
        else:  # sigmoid(-f)^a, which at large f would be 0^a with a gradient of infinity
            decay = torch.exp(-F.relu(self.alpha) * F.softplus(forget))
        return decay, torch.sigmoid(write), torch.sigmoid(read)

    def gate_flops(self, tokens: int) -> int:
        return linear_flops(tokens, self.inner, 3 * self.inner)

    def gate_saved(self) -> int:
        # Decay, write, read, and what is read; reversed: the three gates before their sigmoid, and a softplus.
        return (4 if self.alpha is None else 8) * self.inner


@register("mixer", "rg_lru", system="dsf")
class RGLRU(GatedRecurrence):
    """Real-gated linear recurrent unit in its block (Griffin); strictly causal, linear time.

    Masked tokens are taken out of the sequence. Segments of a layout are kept apart; positions are not read.

    Args:
        dim: channels of a token.
        causal: must be True; the recurrence has one direction.
        num_heads: blocks of channels that the gates are linear within; must divide the inner channels.
        expansion: inner channels per channel of the token; their number is rounded down.
        kernel: width of the convolution.

    Raises:
        InvalidValue: ``causal=False``, heads that do not divide, no inner channel, or a kernel that is not positive.
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
    #: Exponent of the decay where the gate is fully open.
    POWER: ClassVar[float] = 8.0

    def __init__(
        self, dim: int, *, causal: bool = True, num_heads: int = 8, expansion: float = 1.0, kernel: int = 4
    ) -> None:
        super().__init__(dim, causal=causal, expansion=expansion, kernel=kernel)
        self.num_heads, width = num_heads, check_heads(self.inner, num_heads)
        self.gate_weight = nn.Parameter(torch.randn(num_heads, width, 2 * width) * width**-0.5)
        self.gate_bias = nn.Parameter(torch.zeros(num_heads, 2 * width))
        # Decays of fully open gates are spread over 0.9 ... 0.999 (uniform in the square, as published).
        decay = torch.empty(self.inner).uniform_(0.9**2, 0.999**2).sqrt() ** (1 / self.POWER)
        self.decay_logit = nn.Parameter(torch.logit(decay))

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Decay rates: pulling them to zero would change the timescales."""
        return [self.decay_logit]

    def gate(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        split = u.reshape(-1, self.num_heads, self.inner // self.num_heads).transpose(0, 1)
        said = torch.baddbmm(self.gate_bias[:, None], split, self.gate_weight).transpose(0, 1)
        said = said.reshape(*u.shape[:-1], self.num_heads, -1).to(sum_dtype(u.dtype))
        recur, write = said.sigmoid().chunk(2, dim=-1)
        log_decay = self.POWER * recur.flatten(-2) * F.logsigmoid(self.decay_logit.to(recur.dtype))
        # 1 - decay^2 without cancellation; the root's slope stays finite where nothing decays.
        room = (-torch.expm1(2 * log_decay)).clamp(min=1e-12)
        return log_decay.exp(), room.sqrt() * write.flatten(-2), None

    def gate_flops(self, tokens: int) -> int:
        return linear_flops(tokens, self.inner // self.num_heads, 2 * self.inner)

    def gate_saved(self) -> int:
        # both gates, the logarithm, the decay, 1 - its square twice, the root, write, what is written
        return 9 * self.inner
