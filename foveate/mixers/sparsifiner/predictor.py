"""The connectivity predictor of Sparsifiner: which pairs of tokens are worth computing.

Wei et al. 2023 (arXiv 2303.13755, section 3). Every row of an attention map is guessed as a mixture of K learned rows,
the basis W ``(K, n)``. The mixture comes from narrow queries and from narrow keys that P ``(n, K)`` mixes over tokens::

    coef = softmax((q A) ((k B)^T P) s)        guess = coef W        s = heads^-1/2

A few coefficients are kept, small entries of the basis are dropped, and the largest places of each guessed row are the
token's links. The choice is hard: no gradient passes it, so the predictor learns by being held against a dense map.
Names of parameters and the factor s (the paper's goes by width) are those of the release.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...measure.cost import linear_flops
from ...ops.linear import linear
from ..parts import Linear
from ..ssm import check_positive


class Links(NamedTuple):
    """What the predictor says. A class token, which links to everything, has no row in ``guess`` and ``coef``.

    Attributes:
        mask: bool ``(batch, heads, n, n)``, True = linked.
        guess: ``(batch, heads, rows, n)``, the guessed map.
        coef: ``(batch, heads, rows, K)``, shares of the basis rows.
    """

    mask: Tensor
    guess: Tensor
    coef: Tensor


class ConnectivityPredictor(nn.Module):
    """Links of every token, from queries and keys in their heads.

    Args:
        head_dim: width of queries and keys.
        num_heads: heads, which share all weights.
        num_tokens: n, fixed.
        attn_keep_rate: share of the tokens that each one links to, rounded up.
        links_at_most: upper bound of that number (where so few tokens are alive); None: none.
        reduce_n_factor: ``K = n // reduce_n_factor``.
        reduce_c_factor: narrow queries and keys have ``head_dim // reduce_c_factor`` channels.
        share_inout_proj: P is the basis too.
        basis_threshold: smaller entries of the basis, by magnitude, count as 0, others by their magnitude.
        coef_topk: coefficients kept in each row; None: by ``coef_threshold``.
        coef_threshold: coefficients up to it count as 0; 0: all are kept.
        score_topk: links are the places of the largest guesses; False: all above ``score_threshold``.
        score_threshold: see there.
        class_token: the first token links to everything.

    Raises:
        InvalidValue: an option that is not legal.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        num_tokens: int = 197,
        *,
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
        class_token: bool = False,
    ) -> None:
        super().__init__()
        check_positive(num_tokens=num_tokens, reduce_n_factor=reduce_n_factor, reduce_c_factor=reduce_c_factor)
        if not 0 < attn_keep_rate <= 1:
            raise invalid("attn_keep_rate", attn_keep_rate, "it must be above 0 and at most 1")
        self.basis_size, self.narrow = num_tokens // reduce_n_factor, head_dim // reduce_c_factor
        if not self.basis_size:
            raise invalid("reduce_n_factor", reduce_n_factor, f"no basis is left of {num_tokens} tokens")
        if not self.narrow:
            raise invalid("reduce_c_factor", reduce_c_factor, f"no channel is left of a head of {head_dim}")
        if coef_topk is not None and not 1 <= coef_topk <= self.basis_size:
            legal = f"it must be between 1 and {self.basis_size}, the rows of the basis, or None"
            raise invalid("coef_topk", coef_topk, legal)
        thresholds = {"basis_threshold": basis_threshold, "coef_threshold": coef_threshold}
        for name, value in {**thresholds, "score_threshold": score_threshold}.items():
            if not 0 <= value < math.inf:
                raise invalid(name, value, "a number that is not negative is needed")
        if not score_topk and not score_threshold:
            raise invalid(
                "score_threshold", score_threshold, "without score_topk it must be above 0, or all are linked"
            )
        self.num_heads, self.num_tokens, self.class_token = num_heads, num_tokens, class_token
        if links_at_most is not None:
            check_positive(links_at_most=links_at_most)
        self.budget = min(math.ceil(attn_keep_rate * num_tokens), links_at_most or num_tokens)
        self.basis_threshold, self.coef_topk, self.coef_threshold = basis_threshold, coef_topk, coef_threshold
        self.score_topk, self.score_threshold = score_topk, score_threshold
        self.scale = num_heads**-0.5
        self.proj_c_q = Linear(head_dim, self.narrow)
        self.proj_c_k = Linear(head_dim, self.narrow)
        self.proj_n = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_tokens, self.basis_size), std=0.02))
        self.proj_back_n = (
            None if share_inout_proj else nn.Parameter(nn.init.trunc_normal_(self.proj_n.clone(), std=0.02))
        )

    def forward(self, q: Tensor, k: Tensor, alive: Tensor | None = None, *, dense: bool = False) -> Links:
        """Guess and pick, in the dtype of queries and keys.

        Args:
            q, k: ``(batch, heads, n, head_dim)``.
            alive: bool ``(batch, n)``: others are in no guess, and only a class token links to them.
            dense: the basis with its signs and all coefficients, as the guess is trained.

        Raises:
            InvalidValue: another number of tokens.
        """
        if q.shape[2] != self.num_tokens or k.shape != q.shape:
            raise InvalidValue(
                f"{type(self).__name__}: q has shape {tuple(q.shape)} and k {tuple(k.shape)}; both must be (batch, "
                f"{self.num_heads}, {self.num_tokens}, head_dim)."
            )
        first = int(self.class_token)
        q, k = _project(q[:, :, first:], self.proj_c_q), _project(k, self.proj_c_k)
        if alive is not None:
            q, k = q.masked_fill(~alive[:, None, first:, None], 0), k.masked_fill(~alive[:, None, :, None], 0)
        coef = ((q @ (k.transpose(-1, -2) @ self.proj_n.to(k.dtype))) * self.scale).softmax(-1)
        basis = (self.proj_n if self.proj_back_n is None else self.proj_back_n).to(q.dtype)
        if dense:
            guess = coef @ basis.t()
        else:
            guess, coef = self._sparse_guess(coef, F.threshold(basis.abs(), self.basis_threshold, 0.0))
        return Links(self._pick(guess.detach(), alive), guess, coef)

    def _sparse_guess(self, coef: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """The guess of the kept coefficients, and these at their places."""
        if self.coef_topk is None:
            coef = F.threshold(coef, self.coef_threshold, 0.0) if self.coef_threshold else coef
            return coef @ basis.t(), coef
        kept, places = coef.topk(self.coef_topk, sorted=False)
        spread = torch.zeros_like(coef).scatter(-1, places, kept)
        if torch.is_grad_enabled():
            return spread @ basis.t(), spread
        rows = places.shape[:-1]  # kept rows alone are read: with many of them that is far less
        guess = F.embedding_bag(places.flatten(0, -2), basis.t(), per_sample_weights=kept.flatten(0, -2), mode="sum")
        return guess.unflatten(0, rows), spread

    def _pick(self, guess: Tensor, alive: Tensor | None) -> Tensor:
        """Bool ``(batch, heads, n, n)``."""
        shown = None if alive is None else alive[:, None, None, :]
        if shown is not None:
            guess = guess.masked_fill(~shown, -math.inf)
        if self.score_topk:
            places = guess.topk(self.budget, sorted=False)[1]
            mask = torch.zeros_like(guess, dtype=torch.bool).scatter(-1, places, True)
            mask = mask if shown is None else mask & shown
        else:
            mask = guess > self.score_threshold
        if self.class_token:
            mask = torch.cat([torch.ones_like(mask[:, :, :1]), mask], 2)
        return mask

    def flops(self, batch: int = 1) -> int:
        """Matrix products of one call in which no gradient is kept."""
        heads, n, rows = batch * self.num_heads, self.num_tokens, self.num_tokens - int(self.class_token)
        found = linear_flops(heads * (n + rows), self.proj_c_q.in_features, self.narrow)
        found += 2 * heads * self.narrow * self.basis_size * (n + rows)
        return found if self.coef_topk else found + 2 * heads * rows * self.basis_size * n


def _project(x: Tensor, by: Linear) -> Tensor:
    """A layer in the dtype of its input."""
    return linear(x, by.weight.to(x.dtype), None if by.bias is None else by.bias.to(x.dtype))
