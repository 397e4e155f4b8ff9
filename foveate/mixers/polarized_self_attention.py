"""Polarized self-attention: a gate for every channel and a gate for every place.

Liu et al., "Polarized Self-Attention" (arXiv 2107.00782), section 3. One branch collapses all places and keeps half of
the channels, the other collapses all channels and keeps every place; with ``W_v, W_q`` of C/2 rows, and pixels p::

    channels:  a = softmax_p(w_q x);      z = W_up sum_p a_p W_v x_p;      x * sigmoid(z)
    places:    t = W_q' mean_p x;         s_p = t . W_v' x_p;              x * sigmoid(s_p)

"parallel" adds the two products, "sequential" lets the second branch read what the first has gated. Where softmaxes and
norms stand differs between the paper and the two layouts of the released code: :class:`PolarizedSelfAttention` has all
three. Products are put in brackets so that no map but the input's is needed: ``W_v`` sees sums over places, and
``s_p = (W_v'^T t) . x_p``. Linear in pixels in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer, grid_size
from .layout import TokenLayout
from .look import Look, check_query
from .parts import Linear

Arrangement = Literal["parallel", "sequential"]
Variant = Literal["code", "paper"]


@register("mixer", "polarized_self_attention")
class PolarizedSelfAttention(Mixer):
    """Channel gate and place gate, for maps of any rank.

    The forms of ``variant="code"`` are those of the released weights, which the two layouts cannot exchange:

    - parallel: ``W_up`` is one matrix; the scores of places go through a softmax over places before the sigmoid, so
      that a gate lies between 0.5 and 0.73, and near 0.5 on large maps.
    - sequential: ``W_up`` is a matrix to 1 / ``up_ratio`` of the channels, LayerNorm, ReLU and a matrix; each channel
      of ``W_v' x`` goes through a softmax over places.

    ``variant="paper"``: a LayerNorm behind ``W_up``, a softmax over the channels of t, and nothing else, in both
    layouts.

    Args:
        dim: channels.
        causal: must be False.
        layout: "parallel" or "sequential".
        variant: "code" or "paper".
        reduction: of the channels inside the branches.
        up_ratio: further reduction between the two matrices of the sequential code. With one channel left its LayerNorm
            makes a constant of it.

    Raises:
        InvalidValue: too few channels for the reductions, or an option that is not legal.
    """

    spec = MixerSpec(ranks=(1, 2, 3), order=Order(flops=1.0, memory=1.0), onnx=True, dynamic_length=True)
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "psa": {r"conv_(q_right|v_right|up|q_left|v_left)\.(.+)": r"\1.\2"}
    }

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        layout: Arrangement = "parallel",
        variant: Variant = "code",
        reduction: int = 2,
        up_ratio: int = 4,
    ) -> None:
        super().__init__(dim, causal=causal)
        for name, value, legal in (("layout", layout, Arrangement), ("variant", variant, Variant)):
            if value not in get_args(legal):
                raise invalid(name, value, f"it must be one of {', '.join(get_args(legal))}")
        for name, value in (("reduction", reduction), ("up_ratio", up_ratio)):
            if not isinstance(value, int) or value < 1:
                raise invalid(name, value, "a positive whole number is needed")
        inner, narrow = dim // reduction, dim // reduction // up_ratio
        staged = layout == "sequential" and variant == "code"
        if inner < 1 or (staged and narrow < 1):
            least = reduction * up_ratio if staged else reduction
            raise InvalidValue(f"dim={dim} is not possible: the branches need at least {least} channels.")
        self.layout, self.variant = layout, variant
        self.q_right = Linear(dim, 1, bias=False)
        self.v_right = Linear(dim, inner, bias=False)
        if staged:
            self.up: nn.Module = nn.Sequential(
                Linear(inner, narrow), nn.LayerNorm(narrow), nn.ReLU(), Linear(narrow, dim)
            )
        else:
            self.up = Linear(inner, dim, bias=False)
        self.norm = nn.LayerNorm(dim) if variant == "paper" else nn.Identity()
        self.q_left = Linear(dim, inner, bias=False)
        self.v_left = Linear(dim, inner, bias=False)
        for projection in (self.q_right, self.v_right, self.q_left, self.v_left):
            nn.init.kaiming_normal_(projection.weight, mode="fan_in", nonlinearity="relu")

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The release has 1x1 convolutions, and a norm with two axes more."""
        return {
            k: v.flatten(1 if k.endswith("weight") and not k.endswith("up.1.weight") else 0)
            for k, v in state_dict.items()
        }

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Gate ``(batch, *grid, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        channels = self.channel_gate(x, mask)
        if self.layout == "parallel":
            return x * (channels + self.place_gate(x, mask))
        x = x * channels
        return x * self.place_gate(x, mask)

    def channel_gate(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The gates of channels for ``(batch, *grid, dim)``, in (0, 1): ``(batch, *1s, dim)``, alike at all places.

        Args:
            mask: bool ``(batch, *grid)``; what ``x`` holds elsewhere must be zero.
        """
        flat = x.flatten(1, -2)
        weights = _hide(self.q_right(flat), mask).softmax(1)
        pooled = (weights.transpose(1, 2) @ flat).squeeze(1)
        gate = torch.sigmoid(self.norm(self.up(self.v_right(pooled))))
        return gate.view(x.shape[0], *[1] * (x.ndim - 2), self.dim)

    def place_gate(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The gates of places for ``(batch, *grid, dim)``, in (0, 1): ``(batch, *grid, 1)``, alike in all channels.

        Args:
            mask: bool ``(batch, *grid)``; what ``x`` holds elsewhere must be zero.
        """
        flat = x.flatten(1, -2)
        if mask is None:
            pooled = flat.mean(1)
        else:
            pooled = flat.sum(1) / mask.flatten(1).sum(1, keepdim=True).clamp(min=1).to(x.dtype)
        query = self.q_left(pooled)
        if self.variant == "paper":
            query = query.softmax(-1)
        if self.variant == "code" and self.layout == "sequential":
            scores = _hide(self.v_left(flat), mask).softmax(1) @ query[..., None]
        else:
            scores = flat @ F.linear(query, self.v_left.weight.T)[..., None]
            if self.variant == "code":
                scores = _hide(scores, mask).softmax(1)
        return torch.sigmoid(scores).unflatten(1, x.shape[1:-1])

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """The gates of places, and those of channels, which are alike at all places."""
        self.check_input(x)
        check_query(type(self).__name__, query, tuple(x.shape[1:-1]))
        with torch.no_grad():
            channels = self.channel_gate(x)
            places = self.place_gate(x * channels if self.layout == "sequential" else x)
        wide = channels.expand(*x.shape[:-1], -1).movedim(-1, 1)
        return [Look("gate", places.movedim(-1, 1), "gates of places"), Look("gate", wide, "gates of channels")]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """A few products of a vector with the map; the sequential code has one matrix at every place."""
        tokens, dim, inner = grid_size(grid), self.dim, self.v_right.out_features
        first = self.up[0] if isinstance(self.up, nn.Sequential) else None
        narrow = first.out_features if isinstance(first, nn.Linear) else 0
        flops = 2 * linear_flops(tokens, dim, 1) + 2 * linear_flops(1, dim, inner)
        flops += (
            linear_flops(1, inner, narrow) + linear_flops(1, narrow, dim) if narrow else linear_flops(1, inner, dim)
        )
        saved = 2 * tokens * dim + 3 * tokens + 4 * dim
        if narrow:
            flops += linear_flops(tokens, dim, inner) + linear_flops(tokens, inner, 1)
            saved += tokens * inner
        else:
            flops += linear_flops(1, inner, dim) + linear_flops(tokens, dim, 1)
        parameters = sum(p.numel() for p in self.parameters())
        return Cost(flops=batch * flops, parameters=parameters, activation_bytes=4 * batch * saved)


def _hide(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores ``(batch, places, n)`` that a softmax over places gives no weight where the mask is False."""
    if mask is None:
        return scores
    return scores.masked_fill(~mask.flatten(1)[..., None], torch.finfo(scores.dtype).min)
