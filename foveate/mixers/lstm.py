"""LSTM: long short-term memory, as a mixer.

Hochreiter and Schmidhuber, "Long Short-Term Memory" (Neural Computation 9(8), 1997), with the forget gate of Gers,
Schmidhuber and Cummins (Neural Computation 12(10), 2000). Per step, with gates i, f, o and a candidate g::

    i, f, o = sigmoid(W x_t + U h_{t-1} + b),    g = tanh(W' x_t + U' h_{t-1} + b')
    c_t = f c_{t-1} + i g,    h_t = o tanh(c_t),    y_t = V h_t + d

The recurrence is PyTorch's (:class:`torch.nn.LSTM`): one fused call on each device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..registry import register
from ..spec import MixerSpec
from .recurrent import Carried, Recurrent
from .state import State, state


@state
class LSTMState(State):
    """What the layer carries, both ``(batch, hidden)`` in the weights' dtype.

    Attributes:
        hidden: h, what was said last.
        cell: c, the memory.
    """

    hidden: Tensor
    cell: Tensor


@register("mixer", "lstm")
class LSTM(Recurrent[LSTMState]):
    """Long short-term memory: a gated recurrence with a fixed-size state, one-way or both ways.

    Masked tokens are taken out of the sequence: no state, of either direction, ever meets one. PyTorch does not
    compile recurrent layers: ``torch.compile`` leaves this one as it is, which is fast, but not one graph.

    Args:
        dim: channels of a token.
        causal: one layer from the first token on; otherwise a second one from the last token back.
        hidden: width of the state; None: ``dim``.

    Raises:
        InvalidValue: a width that is not a positive whole number.
    """

    spec = MixerSpec(
        causal="strict",
        streaming="exact",
        compile=False,
        onnx=True,
        export_note="torch.export fixes the length of a recurrent layer",
    )
    layer, gates, state = nn.LSTM, 4, LSTMState

    def __init__(self, dim: int, *, causal: bool = False, hidden: int | None = None) -> None:
        super().__init__(dim, causal=causal, hidden=hidden)

    def _cell(self, x_t: Tensor, before: Carried, weights: Carried) -> Carried:
        return torch.lstm_cell(x_t, tuple(before), *weights)

    def _saved(self) -> int:
        return 11 * self.hidden + 6 * max(self.dim, self.hidden)
