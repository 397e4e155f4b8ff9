"""TCNCA: a temporal convolution network under chunked attention.

Terzic et al., "TCNCA: Temporal Convolution Network with Chunked Attention for Scalable Sequence Processing" (NeurIPS
2023 workshop ENLSP-III, arXiv 2312.05605): MEGA's gated attention in chunks, with its moving average replaced by a
shallow stack of dilated causal convolutions, O(L) in place of O(L log L)::

    m = TCN(x),    y = gated attention inside chunks, of values from x, everything else from m

(:mod:`.chunked_attention`, :mod:`.dilated_tcn`). The simplified form, for associative recall, has no gates: attention
in chunks on what the convolutions make, ``m = TCN(x)``, ``y = W_h attention(m)``. The authors published no code.

MEGA itself, the system that TCNCA is measured against, is here too: the same attention behind the moving average of
:mod:`.damped_ema`, with the released code's names and initial values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..measure.cost import linear_flops
from ..ops.chunked_attention import Scores
from ..registry import register
from ..spec import MixerSpec
from .chunked_attention import ChunkedAttention, GatedChunkedAttention, RelBias
from .damped_ema import MultiHeadEMA
from .dilated_tcn import Activation, Convolution, DilatedTCN
from .parts import Linear

#: MEGA's keys of the gated attention, its norm and moving average left out.
MEGA_KEYS = {
    r"(v_proj|mx_proj|h_proj)\.(weight|bias)": r"\1.\2",
    r"gamma|beta": r"\g<0>",
    r"rel_pos_bias\._float_tensor": "",
    r"rel_pos_bias\.(rel_pos_bias|alpha|beta)": r"rel_pos_bias.\1",
    r"move\.(.+)": r"move.\1",
}


@register("mixer", "tcnca")
class TCNCA(GatedChunkedAttention):
    """Gated attention in chunks on a stack of dilated causal convolutions: linear time, a state of constant size.

    Masked tokens are taken out of the sequence, as if they had never been there. Documents have convolutions and chunks
    of their own.

    Args:
        dim: channels of a token.
        causal: look back only; otherwise the convolutions' taps are centred, and attention sees its whole chunk.
        kernel_size, levels, dilation_factor: taps K, number N and growth f of the levels of convolutions, which see
            ``1 + (K - 1) (f^N - 1) / (f - 1)`` tokens; f above K leaves holes.
        convolution: "depthwise" or "dense".
        residual: every level adds to its input.
        convs_per_block: convolutions of each level.
        activation: of the convolutions: "gelu", "relu" or "silu".
        weight_norm: filters' lengths are learned apart from their directions.
        tcn_bias: the convolutions have biases.
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

    spec = MixerSpec(causal="strict", streaming="exact", padding="masked", layout=True, segments=True, onnx=True)
    official_keys: ClassVar[dict[str, dict[str, str]]] = {"mega": MEGA_KEYS}

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        kernel_size: int = 4,
        levels: int = 4,
        dilation_factor: int = 4,
        convolution: Convolution = "depthwise",
        residual: bool = True,
        convs_per_block: int = 1,
        activation: Activation = "gelu",
        weight_norm: bool = False,
        tcn_bias: bool = True,
        z_dim: int | None = None,
        h_dim: int | None = None,
        chunk_size: int | None = 128,
        attention: Scores = "softmax",
        rel_bias: RelBias = "simple",
        max_positions: int = 1024,
        dropout: float = 0.0,
    ) -> None:
        tcn: dict[str, Any] = {
            "kernel_size": kernel_size,
            "levels": levels,
            "dilation_factor": dilation_factor,
            "convolution": convolution,
            "residual": residual,
            "convs_per_block": convs_per_block,
            "activation": activation,
            "weight_norm": weight_norm,
            "bias": tcn_bias,
            "causal": causal,
            "dropout": dropout,
        }
        super().__init__(
            dim,
            causal=causal,
            move=DilatedTCN(dim, **tcn),
            z_dim=z_dim,
            h_dim=h_dim,
            chunk_size=chunk_size,
            attention=attention,
            rel_bias=rel_bias,
            max_positions=max_positions,
            dropout=dropout,
        )

    @property
    def receptive_field(self) -> int:
        """Tokens that the convolutions see; attention adds those of the chunk."""
        move = self.move
        assert isinstance(move, DilatedTCN)
        return move.receptive_field


@register("mixer", "tcnca_simple", system="tcnca")
class TCNCASimple(ChunkedAttention):
    """The simplified form: attention in chunks, without gates, on what the convolutions make.

    Queries, keys and values are read from the convolved stream, so that it can carry what lies beyond the chunk.

    Args:
        dim: channels of a token.
        causal: look back only.
        kernel_size, levels, dilation_factor, convolution: see :class:`TCNCA`.
        z_dim: width of queries and keys; None: a quarter of ``dim``, rounded up to an even number.
        h_dim: width of values; None: ``2 dim``.
        chunk_size: tokens of a chunk; None: one chunk, of quadratic cost.
        attention, rel_bias, max_positions, dropout: see :class:`TCNCA`.

    Raises:
        InvalidValue: an option that is not legal; when called: more tokens than the simple bias has distances for.
    """

    spec = MixerSpec(causal="strict", streaming="exact", padding="masked", layout=True, segments=True, onnx=True)

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        kernel_size: int = 4,
        levels: int = 4,
        dilation_factor: int = 4,
        convolution: Convolution = "depthwise",
        z_dim: int | None = None,
        h_dim: int | None = None,
        chunk_size: int | None = 128,
        attention: Scores = "softmax",
        rel_bias: RelBias = "simple",
        max_positions: int = 1024,
        dropout: float = 0.0,
    ) -> None:
        tcn: dict[str, Any] = {
            "kernel_size": kernel_size,
            "levels": levels,
            "dilation_factor": dilation_factor,
            "convolution": convolution,
            "causal": causal,
            "dropout": dropout,
        }
        super().__init__(
            dim,
            causal=causal,
            move=DilatedTCN(dim, **tcn),
            z_dim=z_dim,
            h_dim=h_dim,
            chunk_size=chunk_size,
            attention=attention,
            rel_bias=rel_bias,
            max_positions=max_positions,
            dropout=dropout,
        )
        self.zv_proj = Linear(dim, self.z_dim + self.h_dim)
        self.h_proj = Linear(self.h_dim, dim)
        nn.init.ones_(self.gamma)  # no gate passes a gradient around attention: scores must not start at zero

    def before(self, x: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        z, v = F.silu(self.zv_proj(moved)).split((self.z_dim, self.h_dim), -1)
        return z, v, ()

    def after(self, o: Tensor, kept: Sequence[Tensor], residual: Tensor) -> Tensor:
        return self.dropout(self.h_proj(o))

    def projection_flops(self, tokens: int) -> int:
        return linear_flops(tokens, self.dim, self.z_dim + self.h_dim) + linear_flops(tokens, self.h_dim, self.dim)

    def saved(self, tokens: int) -> int:
        # What was moved; [z v] before and after silu; o.
        return tokens * (2 * self.dim + 2 * (self.z_dim + self.h_dim) + self.h_dim)


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
        export_note="its scan is unrolled: an ONNX graph of it takes minutes to convert",
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
