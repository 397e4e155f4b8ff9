"""Sparsifiner's attention: softmax attention to the links that its predictor picks.

Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers" (CVPR 2023,
arXiv 2303.13755). Which pairs are computed depends on the input (:mod:`foveate.mixers.sparsifiner.predictor`); on them
attention is exact. The predictor is trained against dense maps: of a frozen teacher in a first phase in which the
output stays dense ("reconstruct"; the recipe of the model does that), or of this very layer ("self-distillation").

What is saved are FLOPs. Here, as in the release, links are a mask and the products are dense: choosing a row's links
costs a CPU more than its products.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...errors import InvalidValue, invalid
from ...measure.cost import Cost, linear_flops
from ...ops.handwritten import sum_dtype
from ...ops.linear import linear
from ...ops.softmax_attention import softmax_attention
from ...registry import register
from ...spec import Grid, MixerSpec, Order
from ..base import Mixer, check_heads, grid_size
from ..layout import TokenLayout
from ..look import Look, check_query
from ..parts import Linear
from .predictor import ConnectivityPredictor, Links

Phase = Literal["sparse", "reconstruct", "dense"]


@register("mixer", "sparsifiner")
class SparsifinerAttention(Mixer):
    """Attention to the links of a predictor, a fixed share of all pairs, chosen anew for every input.

    The weights belong to one number of tokens. Masked tokens are linked to by none and count as zeros in the guess; a
    class token reads them as zeros, as the release's does the tokens that it prunes.

    In training mode ``aux_losses["connectivity"]`` has ``self_distil`` times the squared distance of the guess from
    this layer's dense map, summed over a sample's heads and pairs; it is all that the predictor learns from by itself.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be False.
        num_tokens: number of tokens, or the grid itself, for grids of rank 2 and 3; networks set it by theirs.
        class_token: the first token links to everything; for sequences.
        attn_keep_rate, links_at_most, reduce_n_factor, reduce_c_factor, share_inout_proj: see
            :class:`~foveate.mixers.sparsifiner.predictor.ConnectivityPredictor`.
        basis_threshold, coef_topk, coef_threshold, score_topk, score_threshold: see there.
        prune_rows: masked tokens link to nothing; without it what they read is left out behind it all the same.
        phase: "sparse"; "reconstruct": in training mode attention is dense, and the guess has the basis with its signs
            and all coefficients; "dense": attention is dense in every mode, and nothing is guessed but for
            ``self_distil``. May be set later.
        self_distil: see above; 0: the predictor learns from what others make of its guess alone.
        qkv_bias: the projection to queries, keys and values has a bias.
        qk_scale: factor on the products; None: ``1 / sqrt(head width)``.

    Raises:
        InvalidValue: ``causal=True``, heads that do not divide, an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1, 2, 3),
        grid=Grid(fixed=(197,)),
        order=Order(flops=2.0, memory=2.0),
        export_note="the number of tokens is fixed when it is built",
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "sparsifiner": {
            r"((?:qkv|proj)\.(?:weight|bias))": r"\1",
            r"(mask_predictor\.proj_(?:n|back_n|c_[qk]\.(?:weight|bias)))": r"\1",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        num_tokens: int | tuple[int, ...] = 197,
        class_token: bool = False,
        attn_keep_rate: float = 0.25,
        links_at_most: int | None = None,
        reduce_n_factor: int = 6,
        reduce_c_factor: int = 2,
        share_inout_proj: bool = False,
        basis_threshold: float = 0.02,
        coef_topk: int | None = 8,
        coef_threshold: float = 0.0,
        score_topk: bool = True,
        score_threshold: float = 1e-4,
        prune_rows: bool = False,
        phase: Phase = "sparse",
        self_distil: float = 0.05,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        grid = (num_tokens,) if isinstance(num_tokens, int) else tuple(num_tokens)
        if not 1 <= len(grid) <= 3 or any(not isinstance(n, int) or n < 1 for n in grid):
            raise invalid("num_tokens", num_tokens, "a positive whole number, or one for each axis, is needed")
        if class_token and len(grid) > 1:
            raise invalid("class_token", class_token, f"a grid of {grid} has no place for it; give their number")
        if phase not in get_args(Phase):
            raise invalid("phase", phase, f"it must be one of {', '.join(get_args(Phase))}")
        if not 0 <= self_distil < math.inf:
            raise invalid("self_distil", self_distil, "a number that is not negative is needed")
        if qk_scale is not None and not 0 < qk_scale < math.inf:
            raise invalid("qk_scale", qk_scale, "it must be positive and finite")
        self.spec = replace(self.spec, ranks=(len(grid),), grid=Grid(fixed=grid))
        self.class_token, self.prune_rows, self.phase, self.self_distil = class_token, prune_rows, phase, self_distil
        self.scale = qk_scale or self.head_dim**-0.5
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.mask_predictor = ConnectivityPredictor(
            self.head_dim,
            num_heads,
            grid_size(grid),
            attn_keep_rate=attn_keep_rate,
            links_at_most=links_at_most,
            reduce_n_factor=reduce_n_factor,
            reduce_c_factor=reduce_c_factor,
            share_inout_proj=share_inout_proj,
            basis_threshold=basis_threshold,
            coef_topk=coef_topk,
            coef_threshold=coef_threshold,
            score_topk=score_topk,
            score_threshold=score_threshold,
            class_token=class_token,
        )

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The number of tokens; a basis of a sixth of it, but of 8 rows where that is possible."""
        tokens = grid_size(grid)
        factor = max(1, min(6, tokens // 8))
        number = grid[0] if len(grid) == 1 else tuple(grid)
        return {"num_tokens": number, "reduce_n_factor": factor, "coef_topk": min(8, tokens // factor)}

    def convert_official(self, state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        """The release holds a shared projection twice."""
        twice = "mask_predictor.proj_back_n" if self.mask_predictor.proj_back_n is None else ""
        return {key: value for key, value in state_dict.items() if key != twice}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, *grid, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        grid = tuple(x.shape[1:-1])
        x, alive = x.flatten(1, -2), None if mask is None else mask.flatten(1)
        q, k, v = self.project(x, alive)
        visible, self.aux_losses = alive, {}
        if self.phase != "dense" or (self.training and self.self_distil):
            with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
                precise = sum_dtype(x.dtype)  # which links are picked does not depend on narrow roundings
                wide = (q, k) if x.dtype == precise else self.project(x, alive, precise)[:2]
                links = self.connect(*wide, alive)
                if self.training and self.self_distil:
                    self.aux_losses = {"connectivity": self._distance(*wide, links, alive)}
            visible = alive if self.is_dense else links.mask
        o = softmax_attention(q, k, v, mask=visible, scale=self.scale)
        y = self.proj(o.transpose(1, 2).flatten(2))
        y = y if alive is None else y.masked_fill(~alive[..., None], 0)
        return y.unflatten(1, grid)

    @property
    def is_dense(self) -> bool:
        """Whether attention is dense in this mode and phase."""
        return self.phase == "dense" or (self.phase == "reconstruct" and self.training)

    def project(
        self, x: Tensor, alive: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(batch, heads, n, head_dim)`` of tokens ``(batch, n, dim)``; 0 where masked.

        Args:
            dtype: computed in; None: that of the tokens.
        """
        x = x if alive is None else x.masked_fill(~alive[..., None], 0)
        weights = self.qkv.weight, self.qkv.bias
        qkv = self.qkv(x) if dtype is None else linear(x.to(dtype), *(w if w is None else w.to(dtype) for w in weights))
        qkv = qkv if alive is None else qkv.masked_fill(~alive[..., None], 0)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def connect(self, q: Tensor, k: Tensor, alive: Tensor | None = None) -> Links:
        """Links between queries and keys, as this mode and phase pick them."""
        links = self.mask_predictor(q, k, alive, dense=self.training and self.phase == "reconstruct")
        if alive is None or not self.prune_rows:
            return links
        return links._replace(mask=links.mask & alive[:, None, :, None])

    def dense_map(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights ``(batch, heads, n, n)`` of attention without the links: what the guess is trained to be."""
        return ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1)

    def sparse_map(self, q: Tensor, k: Tensor, links: Tensor) -> Tensor:
        """The weights ``(batch, heads, n, n)`` of attention to the links ``(batch, heads, n, n)``."""
        empty = ~links.any(-1, keepdim=True)
        scores = ((q @ k.transpose(-1, -2)) * self.scale).masked_fill(~(links | empty), -math.inf)
        return scores.softmax(-1).masked_fill(empty, 0)

    def class_scores(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the class token reads from each other one, ``(batch, n - 1)``: the mean of its heads' weights.

        Raises:
            InvalidValue: there is no class token.
        """
        if not self.class_token:
            raise InvalidValue(f"{type(self).__name__} has no class token: class_token=True is needed.")
        (wq, wk, _), biases = self.qkv.weight.chunk(3), self.qkv.bias
        bq, bk, _ = (None, None, None) if biases is None else biases.chunk(3)
        q, k = linear(x[:, :1], wq, bq), linear(x, wk, bk)
        k = k if mask is None else k.masked_fill(~mask[..., None], 0)
        heads = (-1, (self.num_heads, self.head_dim))
        q, k = q.unflatten(*heads).transpose(1, 2), k.unflatten(*heads).transpose(1, 2)
        return self.dense_map(q, k)[:, :, 0, 1:].mean(1)

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """Weights, and the links they lie on; see :meth:`Mixer.look`."""
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        place = check_query(type(self).__name__, query, grid)
        with torch.no_grad():
            q, k, _ = self.project(x.flatten(1, -2))
            links = self.mask_predictor(q, k).mask
            weights = self.sparse_map(q, k, links)
        middle = tuple(n // 2 for n in grid) if place is None else place
        index = int(torch.arange(links.shape[-1]).view(grid)[middle])
        told = weights.mean(2) if place is None else weights[:, :, index]
        return [
            Look("weights", told.unflatten(-1, grid), "attention"),
            Look("visible", links[:, :, index].unflatten(-1, grid), "links"),
        ]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """What is computed: the dense products under the mask. :func:`linked_flops` says what the links alone need."""
        n, dim, heads = grid_size(grid), self.dim, self.num_heads
        flops = linear_flops(batch * n, dim, 4 * dim) + 4 * batch * n * n * dim
        # Saved: x, q, k, v, the heads' outputs (twice: they are merged), a number per row, and the mask as numbers.
        saved = batch * n * (6 * dim + heads)
        if self.phase != "dense":
            flops, saved = flops + self.mask_predictor.flops(batch), saved + batch * heads * n * n
        return Cost(flops, sum(p.numel() for p in self.parameters()), 4 * saved)

    def _distance(self, q: Tensor, k: Tensor, links: Links, alive: Tensor | None) -> Tensor:
        """Of the guess from the dense map, for ``aux_losses``."""
        first = int(self.class_token)
        error = links.guess - self.dense_map(q, k)[:, :, first:]
        if alive is not None:
            error = error * (alive[:, None, first:, None] & alive[:, None, None, :])
        return self.self_distil * error.square().sum() / q.shape[0]


def linked_flops(mixer: SparsifinerAttention, basis_density: float) -> tuple[int, int]:
    """FLOPs of attention with the links alone and of dense attention, projections left out.

    Counted are the two products of attention on linked pairs, and all of the predictor: narrow queries and keys, keys
    mixed over tokens, coefficients, and the products of kept coefficients with the entries that the basis has.

    Args:
        mixer: with coefficients and links by number.
        basis_density: share of the entries of the basis that are not 0.
    """
    predictor, heads, n = mixer.mask_predictor, mixer.num_heads, mixer.mask_predictor.num_tokens
    rows = n - int(mixer.class_token)
    linked = rows * predictor.budget + (n if mixer.class_token else 0)
    kept = predictor.coef_topk or predictor.basis_size
    guessed = 2 * heads * rows * kept * round(basis_density * n)
    products = 4 * heads * linked * mixer.head_dim
    narrow = linear_flops(heads * (n + rows), mixer.head_dim, predictor.narrow)
    mixed = 2 * heads * predictor.narrow * predictor.basis_size * (n + rows)
    return products + narrow + mixed + guessed, 4 * heads * n * n * mixer.head_dim
