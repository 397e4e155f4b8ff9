"""What the gated recurrent mixers share: PyTorch's recurrent layer, gaps, both directions, streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..measure.cost import Cost, linear_flops
from .base import Mixer
from .layout import TokenLayout
from .parts import Linear
from .ssm import Packing, check_positive
from .state import State

S = TypeVar("S", bound=State)
#: What PyTorch's layers take and return as their state: tensors ``(directions, batch, hidden)``.
Carried = Sequence[Tensor]


class Recurrent(Mixer, Generic[S]):
    """A recurrent layer and a projection of what it says to the width of a token.

    Masked tokens are taken out of the sequence: no state, of either direction, ever meets one.

    Args:
        dim: channels of a token.
        causal: one layer from the first token on; otherwise a second one from the last token back.
        hidden: width of the state; None: ``dim``.
    """

    layer: ClassVar[type[nn.RNNBase]]  #: PyTorch's module
    gates: ClassVar[int]  #: matrix products of a state per step
    state: ClassVar[type[State]]  #: streaming state, its fields in the order of the layer's

    def __init__(self, dim: int, *, causal: bool, hidden: int | None) -> None:
        super().__init__(dim, causal=causal)
        self.hidden = dim if hidden is None else hidden
        check_positive(hidden=self.hidden)
        self.directions = 1 if causal else 2
        self.rnn = self.layer(dim, self.hidden, batch_first=True, bidirectional=not causal)  # type: ignore[call-arg]
        self.out = Linear(self.directions * self.hidden, dim)

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
        if mask is None:
            return self.out(self._run(x, None)[0])
        packing = Packing.of(mask)
        # Looking ahead, what lies behind the real tokens comes too late to matter; looking back it would come first.
        y = (self._run(packing.pack(x), None) if self.causal else self._run_packed(packing, x, None))[0]
        return packing.unpack(self.out(y))

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> S:
        """Zeros, on the device and in the dtype of the weights unless told.

        Raises:
            InvalidType: the mixer is not causal.
        """
        if not self.causal:
            raise self._no_streaming()
        weight = self.out.weight
        zeros = torch.zeros(batch_size, self.hidden, device=device or weight.device, dtype=dtype or weight.dtype)
        return cast(S, self.state(*[zeros] * len(self._fields)))

    def prefill(self, x: Tensor, state: S, mask: Tensor | None = None) -> tuple[Tensor, S]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        before = tuple(getattr(state, name).unsqueeze(0).to(x.dtype) for name in self._fields)
        if mask is None:
            y, after = self._run(x, before)
            return self.out(y), self._state_of(after)
        packing = Packing.of(mask)
        y, after = self._run_packed(packing, x, before)
        some = mask.any(1)[None, :, None]
        return packing.unpack(self.out(y)), self._state_of(
            [new.where(some, old) for new, old in zip(after, before, strict=True)]
        )

    def step(self, x_t: Tensor, state: S) -> tuple[Tensor, S]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidValue: anything but one token per sample.
        """
        if not self.causal:
            raise self._no_streaming()
        self.check_step(x_t, state)
        rnn = self.rnn
        weights = cast(Carried, (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0))
        after = self._cell(x_t, tuple(getattr(state, name).to(x_t.dtype) for name in self._fields), weights)
        return self.out(after[0]), cast(S, self.state(*after))

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Products with inputs and with states, and the projection."""
        tokens, h = batch * grid[0], self.hidden
        flops = linear_flops(tokens, self.dim + h, self.gates * h) + linear_flops(tokens, h, self.dim)
        return Cost(
            flops=self.directions * flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * tokens * (self.dim + self.directions * self._saved()),
            state_bytes=4 * batch * h * len(self._fields) if self.causal else 0,
        )

    def _cell(self, x_t: Tensor, before: Carried, weights: Carried) -> Carried:
        """One step, said first: PyTorch's layer gets its weights ready anew in every call, which its cell does not."""
        raise NotImplementedError

    def _saved(self) -> int:
        """Numbers per step that one direction keeps for its backward pass, on CPU."""
        raise NotImplementedError

    @property
    def _fields(self) -> list[str]:
        return list(self.state.__dataclass_fields__)  # type: ignore[attr-defined]

    def _state_of(self, carried: Carried) -> S:
        return cast(S, self.state(*(t[0] for t in carried)))

    def _run(self, x: Any, before: Carried | None) -> tuple[Any, Carried]:
        """PyTorch's layer, whose state is a tuple only if it has two parts."""
        if isinstance(x, Tensor) and x.is_meta:
            return self._count(x)
        given = before if before is None or len(self._fields) > 1 else before[0]
        y, after = self.rnn(x, given)
        return y, after if isinstance(after, tuple) else [after]

    def _count(self, x: Tensor) -> tuple[Tensor, Carried]:
        """The layer's shapes and products without its loop: on meta, where nothing waits for the step before."""
        weights, outputs = dict(self.rnn.named_parameters()), []
        for direction in ("", "_reverse")[: self.directions]:
            gates = F.linear(x, weights["weight_ih_l0" + direction], weights["bias_ih_l0" + direction])
            h = gates[..., : self.hidden]
            gates = F.linear(h, weights["weight_hh_l0" + direction], weights["bias_hh_l0" + direction])
            outputs.append(gates[..., : self.hidden])
        state = x.new_empty(self.directions, x.shape[0], self.hidden)
        return torch.cat(outputs, -1), [state] * len(self._fields)

    def _run_packed(self, packing: Packing, x: Tensor, before: Carried | None) -> tuple[Tensor, Carried]:
        """Only the real tokens, which stand first; a sample without any reads one zero (an empty one is refused)."""
        lengths = packing.valid.sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(packing.pack(x), lengths, batch_first=True, enforce_sorted=False)
        y, after = self._run(packed, before)
        return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], after
