"""MEGA: a damped moving average under chunked attention, the system that TCNCA is measured against.

Ma et al., "Mega: Moving Average Equipped Gated Attention" (ICLR 2023, arXiv 2209.10655): the gated attention of
:mod:`.chunked_attention` behind the moving average of :mod:`.damped_ema`, with the released code's names and initial
values.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..ops.chunked_attention import Scores
from ..registry import register
from ..spec import MixerSpec
from .chunked_attention import GatedChunkedAttention, RelBias
from .damped_ema import MultiHeadEMA
from .tcnca import MEGA_KEYS


@register("mixer", "mega", system="tcnca")
class Mega(GatedChunkedAttention):
    """Gated attention in chunks on a damped moving average: linear time, a state of constant size.

    Masked tokens are taken out of the sequence, as if they had never been there. Documents have averages and chunks of
    their own.

    Args:
        dim: channels of a token.
        causal: averages of the past alone; otherwise of what follows too, and attention sees its whole chunk.
        n_dim: averages of each channel.
        z_dim: width of queries and keys; None: a quarter of ``dim``, rounded up to an even number.
        h_dim: width of values; None: ``2 dim``.
        chunk_size: tokens of a chunk; None: one chunk, of quadratic cost.
        attention: "softmax", or the elementwise "laplace" or "relu2".
        rel_bias: bias by distance inside a chunk: "simple", a learned number each, or "rotary".
        max_positions: distances of the simple bias where there are no chunks.
        dropout: share of numbers dropped while training.

    Raises:
        InvalidValue: an option that is not legal; when called: more tokens than the simple bias has distances for.
    """

    spec = MixerSpec(
        causal="strict",
        streaming="exact",
        padding="masked",
        layout=True,
        segments=True,
        onnx=True,
        export_note="its scan is unrolled: the graph grows with the length",
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {"mega": MEGA_KEYS}

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        n_dim: int = 16,
        z_dim: int | None = None,
        h_dim: int | None = None,
        chunk_size: int | None = 128,
        attention: Scores = "softmax",
        rel_bias: RelBias = "simple",
        max_positions: int = 1024,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            causal=causal,
            move=MultiHeadEMA(dim, n_dim=n_dim, causal=causal),
            z_dim=z_dim,
            h_dim=h_dim,
            chunk_size=chunk_size,
            attention=attention,
            rel_bias=rel_bias,
            max_positions=max_positions,
            dropout=dropout,
        )

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Rates of the averages: pulling them to zero would change the timescales."""
        move = self.move
        assert isinstance(move, MultiHeadEMA)
        return move.no_weight_decay()
