"""ViS4mer: the classifier of long sequences of frame features that Selective S4 stands on.

Islam and Bertasius, "Long Movie Clip Classification with State-Space Video Models" (ECCV 2022, arXiv 2204.01692), in
the form of md-mohaiminul/ViS4mer. Every layer halves length and width::

    x = x + dropout(S4(norm(x)));   x = gelu(W pool_2(x) + b)
    logits = W_head mean(x)

The layer is :class:`~foveate.mixers.s4.S4`. Selective S4 (arXiv 2303.14526) chooses the tokens of the first one; its
own network was not released, the choice is the mixer :class:`~foveate.mixers.selective_s4.SelectiveS4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid
from ...mixers.parts import Linear
from ...mixers.s4 import S4
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series

#: Published sizes: ViT-L/16 tokens of 60 frames, 197 each; Video-Swin features, 49 a second of 64.
PUBLISHED: dict[str, dict[str, int]] = {
    "LVU": {"d_input": 1024, "l_max": 11_820, "d_model": 1024, "n_layers": 3},
    "Breakfast": {"d_input": 1024, "l_max": 3136, "d_model": 1024, "n_layers": 3},
    "COIN": {"d_input": 1024, "l_max": 3136, "d_model": 1024, "n_layers": 3},
}


class ViS4merLayer(nn.Module):
    """One layer: S4 with a residual, then half as many tokens of half the width.

    Args:
        dim: channels of a token.
        l_max: tokens, at least 2; of an odd number the last is dropped behind S4, as released.
        d_state: numbers of state per channel, even.
        dropout: share of channels dropped, each over the whole sequence, inside and behind S4.
        prenorm: the norm stands before S4; False: behind the sum.
    """

    def __init__(self, dim: int, l_max: int, d_state: int, dropout: float, prenorm: bool) -> None:
        super().__init__()
        self.prenorm = prenorm
        self.s4 = S4(dim, l_max, d_state=d_state, dropout=dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout1d(dropout)
        self.linear = Linear(dim, dim // 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        z = _blank(self.norm(x) if self.prenorm else x, mask)
        x = x + self.dropout(self.s4(z).transpose(1, 2)).transpose(1, 2)
        x = x if self.prenorm else self.norm(x)
        if mask is None:
            return F.gelu(self.linear(F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2))), None
        pairs = mask[:, : mask.shape[1] // 2 * 2].unflatten(1, (-1, 2))
        total = _blank(x, mask)[:, : mask.shape[1] // 2 * 2].unflatten(1, (-1, 2)).sum(2)
        return F.gelu(self.linear(total / pairs.sum(2, keepdim=True).clamp(min=1))), pairs.any(2)


def _blank(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros in the places of masked tokens."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)


@register("model", "vis4mer", system="selective_s4")
class ViS4mer(Model):
    """ViS4mer: a pyramid of S4 layers over a sequence of features, then classes of their mean.

    Args:
        d_input: channels of the input.
        l_max: tokens of the input, at least ``2 ** n_layers``.
        d_output: classes.
        d_model: width of the first layer, at least ``2 ** n_layers``; inputs of that width enter as they are.
        n_layers: number of layers.
        d_state: numbers of state per channel, even.
        dropout: share of channels dropped while training, each over the whole sequence.
        prenorm: norms stand before the S4 layers, as in all published models; False: behind their residuals.

    Raises:
        InvalidValue: a size below 1, or too small to be halved in every layer.
    """

    spec = ModelSpec(
        reads="series",
        tasks=("classify-series",),
        export_note="ONNX has no complex numbers, of which the kernel is made",
    )
    official_keys = {
        "ViS4mer": {
            r"buffer\..+": "",  # roots of unity, made anew
            r"s4_layers\.(\d+)\.kernel\.krylov\.(nodes|z)": "",
            r"s4_layers\.(\d+)\.kernel\.krylov\.(w|B|C|log_dt)": r"layers.\1.s4.\2",
            r"s4_layers\.(\d+)\.D": r"layers.\1.s4.D",
            r"s4_layers\.(\d+)\.output_linear\.(0\.)?(weight|bias)": r"layers.\1.s4.out.\3",
            r"norms\.(\d+)\.(weight|bias)": r"layers.\1.norm.\2",
            r"linears\.(\d+)\.(weight|bias)": r"layers.\1.linear.\2",
            r"encoder\.(weight|bias)": r"encoder.\1",
            r"decoder\.(weight|bias)": r"decoder.\1",
        }
    }

    def __init__(
        self,
        *,
        d_input: int,
        l_max: int,
        d_output: int,
        d_model: int = 128,
        n_layers: int = 3,
        d_state: int = 64,
        dropout: float = 0.2,
        prenorm: bool = True,
    ) -> None:
        super().__init__()
        for option, size in {"d_input": d_input, "d_output": d_output, "n_layers": n_layers}.items():
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        for option, size in {"l_max": l_max, "d_model": d_model}.items():
            if size < 2**n_layers:
                raise invalid(option, size, f"{n_layers} layers halve it, so it must be at least {2**n_layers}")
        self.d_input, self.l_max = d_input, l_max
        self.encoder = Linear(d_input, d_model) if d_input != d_model else None
        self.layers = nn.ModuleList(
            ViS4merLayer(d_model >> i, l_max >> i, d_state, dropout, prenorm) for i in range(n_layers)
        )
        self.decoder = Linear(d_model >> n_layers, d_output)

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """A classifier of ``info.lookback`` steps of ``info.channels`` into ``info.classes``.

        Unless options say otherwise, series of less than eight steps have as many layers as can halve them.
        """
        known = {"d_input": info.channels, "l_max": info.lookback, "d_output": info.classes}
        settings = {"n_layers": max(1, min(3, info.lookback.bit_length() - 1)), **options, **known}
        check_options("vis4mer", cls, settings)
        return cls(**settings)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str | None) -> dict[str, Tensor]:
        """The released output biases are columns, and there is an encoder even where none is used."""
        given = {k: v.squeeze(-1) if k.endswith("output_linear.bias") else v for k, v in state_dict.items()}
        return {k: v for k, v in given.items() if self.encoder is not None or not k.startswith("encoder.")}

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean of the last layer's tokens.

        Args:
            x: float ``(B, length, d_input)``, of ``2 ** n_layers`` to ``l_max`` tokens.
            mask: bool ``(B, length)``, True = a real token. Others are zeros to the layers, and no mean counts them.

        Returns:
            ``(B, d_model / 2 ** n_layers)``.

        Raises:
            InvalidValue: wrong shapes.
            InvalidType: ``mask`` is not bool.
        """
        shortest = 2 ** len(self.layers)
        if x.ndim != 3 or x.shape[2] != self.d_input or not shortest <= x.shape[1] <= self.l_max:
            raise InvalidValue(
                f"ViS4mer: x has shape {tuple(x.shape)}; (batch, length, {self.d_input}) of {shortest} to {self.l_max} "
                f"tokens is needed."
            )
        if mask is not None and mask.dtype != torch.bool:
            raise InvalidType(f"ViS4mer: mask must be bool (True = a real step), not {mask.dtype}.")
        if mask is not None and mask.shape != x.shape[:2]:
            raise InvalidValue(f"ViS4mer: mask has shape {tuple(mask.shape)}; it must be {tuple(x.shape[:2])}.")
        x = _blank(x, mask)
        x = x if self.encoder is None else self.encoder(x)
        for layer in self.layers:
            x, mask = cast(ViS4merLayer, layer)(x, mask)
        if mask is None:
            return x.mean(1)
        return _blank(x, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def forward(self, x: Tensor, marks: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            x: float ``(B, l_max, d_input)``.
            marks: time features; taken because classifiers of series may be given them, and not read.
            mask: bool ``(B, l_max)``, True = a real step; what ``x`` holds elsewhere has no influence.

        Returns:
            Logits ``(B, d_output)``.

        Raises:
            InvalidValue: wrong shapes.
            InvalidType: ``x`` is not floating point, ``mask`` is not bool.
        """
        check_series("ViS4mer", x, self.l_max, self.d_input)
        return self.decoder(self.forward_features(x, mask))
