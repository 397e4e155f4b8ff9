"""GRU: gated recurrent unit, as a mixer.

Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation" (EMNLP 2014,
arXiv 1406.1078, section 2.3). Per step, with a reset gate r and an update gate z::

    r, z = sigmoid(W x_t + U h_{t-1} + b),    n = tanh(W' x_t + b' + r (U' h_{t-1} + c'))
    h_t = (1 - z) n + z h_{t-1},    y_t = V h_t + d

The recurrence is PyTorch's (:class:`torch.nn.GRU`), in which, unlike in the paper, r gates the product with U' instead
of what is multiplied: one product less in a row, the form that fused kernels have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..registry import register
from ..spec import MixerSpec
from .recurrent import Carried, Recurrent
from .state import State, state


@state
class GRUState(State):
    """The hidden state h, ``(batch, hidden)`` in the weights' dtype."""

    hidden: Tensor


@register("mixer", "gru")
class GRU(Recurrent[GRUState]):
    """Gated recurrent unit: a gated recurrence with a fixed-size state, one-way or both ways.

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
    layer, gates, state = nn.GRU, 3, GRUState

    def __init__(self, dim: int, *, causal: bool = False, hidden: int | None = None) -> None:
        super().__init__(dim, causal=causal, hidden=hidden)

    def _cell(self, x_t: Tensor, before: Carried, weights: Carried) -> Carried:
        return (torch.gru_cell(x_t, before[0], *weights),)

    def _saved(self) -> int:
        return 8 * self.hidden
