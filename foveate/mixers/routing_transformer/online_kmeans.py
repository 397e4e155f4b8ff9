"""Centroids that follow their tokens: online k-means with moving averages.

Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers" (TACL 2021, arXiv 2003.05997, section
4.1). Tokens are brought to a sphere, the nearest centroid has the largest inner product, and centroids are no
parameters: after a step of the optimiser each moves towards the tokens that were nearest to it::

    released:   N <- m N + (1 - m) n;   M <- m M + (1 - m) s;   mu <- M / N, N smoothed by Laplace's rule
    spherical:  mu <- r (m mu + (1 - m) r s / |s|) / |...|
    peer:       mu <- m mu + (1 - m) r s / |s|

with n tokens of the sum s nearest to a centroid, and r the sphere's radius. N begins at 0, so that a released centroid
is soon where its tokens are, and one without tokens grows until it gets some; the others keep their length and their
pace.

"released" is the official code's, "peer" that of lucidrains/routing-transformer. Tokens are pulled back by the
commitment loss ``beta mean (x - mu_nearest)^2``, whose gradient stops at the centroids.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...ops.handwritten import sum_dtype
from ...ops.routing_attention import routing_scores

Norm = Literal["layernorm", "l2"]
Centroids = Literal["spherical", "released", "peer"]


class OnlineKMeans(nn.Module):
    """k centroids for each head, in a buffer.

    In training mode :meth:`observe` sums up tokens, and :meth:`after_step`, which the default recipe calls behind every
    step of the optimiser, moves the centroids; in a loop of your own call it yourself. Nothing here is random but the
    centroids at the beginning, unless :meth:`start_from` is asked to draw.

    Args:
        heads: number of heads.
        clusters: centroids of each.
        width: channels of a head.
        decay: m, how much of a centroid stays at each step.
        commitment: beta.
        norm: "layernorm": mean 0 and variance 1 over the channels, radius sqrt(width); "l2": radius 1.
        rule: how centroids move, see above.

    Raises:
        InvalidValue: an option that is not legal.
    """

    means: Tensor
    counts: Tensor
    sums: Tensor
    seen: Tensor
    gathered: Tensor

    def __init__(
        self,
        heads: int,
        clusters: int,
        width: int,
        *,
        decay: float = 0.999,
        commitment: float = 1e-4,
        norm: Norm = "layernorm",
        rule: Centroids = "released",
    ) -> None:
        super().__init__()
        for name, size in (("heads", heads), ("num_clusters", clusters), ("width", width)):
            if not isinstance(size, int) or size < 1:
                raise invalid(name, size, "a positive whole number is needed")
        if not 0 <= decay <= 1:
            raise invalid("decay", decay, "it must be in 0 ... 1")
        if not 0 <= commitment < math.inf:
            raise invalid("commitment", commitment, "it must be finite and not negative")
        for name, value, legal in (("norm", norm, Norm), ("centroids", rule, Centroids)):
            if value not in get_args(legal):
                raise invalid(name, value, f"it must be one of {', '.join(get_args(legal))}")
        self.decay, self.commitment, self.norm, self.rule = decay, commitment, norm, rule
        means = self.on_sphere(torch.randn(heads, clusters, width))
        self.register_buffer("means", means)
        if rule == "released":
            self.register_buffer("counts", torch.zeros(heads, clusters))
            self.register_buffer("sums", means.clone())
        self.register_buffer("seen", torch.zeros(heads, clusters), persistent=False)
        self.register_buffer("gathered", torch.zeros(heads, clusters, width), persistent=False)

    @property
    def radius(self) -> float:
        """Length of a vector on the sphere."""
        return math.sqrt(self.means.shape[-1]) if self.norm == "layernorm" else 1.0

    def on_sphere(self, x: Tensor) -> Tensor:
        """``(..., width)`` brought to the sphere."""
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) if self.norm == "layernorm" else F.normalize(x, dim=-1)

    def scores(self, x: Tensor) -> Tensor:
        """Inner products ``(batch, heads, length, clusters)`` of tokens on the sphere, without gradient."""
        with torch.no_grad():
            return routing_scores(x, self.means)

    def assign(self, x: Tensor) -> Tensor:
        """int64 ``(batch, heads, length)``: the nearest centroid of tokens on the sphere."""
        return self.scores(x).argmax(-1)

    def loss(self, x: Tensor, nearest: Tensor, mask: Tensor | None = None) -> Tensor:
        """The commitment loss, beta included.

        Args:
            x: ``(batch, heads, length, width)``, on the sphere.
            nearest: as :meth:`assign` gives it.
            mask: bool ``(batch, length)``, True = a real token.
        """
        index = nearest[..., None].expand(-1, -1, -1, x.shape[3])
        means = self.means.to(x.dtype).expand(x.shape[0], -1, -1, -1).gather(2, index)
        apart = (x - means).square()
        if mask is None:
            return self.commitment * apart.mean()
        real = mask[:, None, :, None].to(x.dtype)
        return self.commitment * (apart * real).sum() / (real.sum() * x.shape[1] * x.shape[3]).clamp(min=1)

    @torch.no_grad()
    def observe(self, x: Tensor, nearest: Tensor, mask: Tensor | None = None) -> None:
        """Add tokens to what the centroids move towards at the next step; arguments as those of :meth:`loss`."""
        count, total = self._sums(x, nearest, mask)
        self.seen.add_(count.to(self.seen.dtype))
        self.gathered.add_(total.to(self.gathered.dtype))

    def after_step(self, progress: Any = None) -> None:
        """Move the centroids towards what was observed since the last call; clusters without tokens stay (spherical,
        peer), or are smoothed (released). Without any observation nothing moves."""
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """See :meth:`after_step`."""
        any_seen = self.seen.sum() > 0
        wide = sum_dtype(self.means.dtype)
        count, total, means = self.seen.to(wide), self.gathered.to(wide), self.means.to(wide)
        if self.rule == "released":
            counts = self.counts.to(wide).lerp(count, 1 - self.decay)
            sums = self.sums.to(wide).lerp(total, 1 - self.decay)
            whole, eps = counts.sum(-1, keepdim=True), 1e-5
            smooth = (counts + eps) / (whole + counts.shape[-1] * eps) * whole
            self.counts.copy_(torch.where(any_seen, counts, self.counts.to(wide)))
            self.sums.copy_(torch.where(any_seen, sums, self.sums.to(wide)))
            moved = torch.where(whole[..., None] > 0, sums / smooth[..., None].clamp(min=1e-12), means)
        else:
            towards = torch.where(count[..., None] > 0, F.normalize(total, dim=-1) * self.radius, means)
            moved = means.lerp(towards, 1 - self.decay)
            if self.rule == "spherical":
                moved = F.normalize(moved, dim=-1) * self.radius
        self.means.copy_(torch.where(any_seen, moved, means))
        self.seen.zero_()
        self.gathered.zero_()

    @torch.no_grad()
    def start_from(self, x: Tensor, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """Put the centroids on tokens drawn from ``x`` and run Lloyd's iterations, as the peer does unasked.

        Args:
            x: ``(batch, heads, length, width)``.
            iterations: of assigning and averaging.
            generator: draws the first tokens; None: PyTorch's global one.

        Raises:
            InvalidValue: another number of heads or channels.
        """
        heads, clusters, width = self.means.shape
        if x.ndim != 4 or x.shape[1] != heads or x.shape[3] != width:
            raise InvalidValue(f"x has shape {tuple(x.shape)}; (batch, {heads}, length, {width}) is needed.")
        x = self.on_sphere(x.to(sum_dtype(x.dtype)))
        tokens = x.transpose(0, 1).flatten(1, 2)
        order = torch.randperm(tokens.shape[1], generator=generator).to(x.device)
        self.means.copy_(tokens[:, order[torch.arange(clusters, device=x.device) % tokens.shape[1]]])
        for _ in range(iterations):
            count, total = self._sums(x, self.assign(x), None)
            fresh = F.normalize(total, dim=-1) * self.radius
            self.means.copy_(torch.where(count[..., None] > 0, fresh, self.means.to(fresh.dtype)))
        if self.rule == "released":
            self.sums.copy_(self.means)
            self.counts.fill_(1.0)

    def _sums(self, x: Tensor, nearest: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens of each centroid ``(heads, clusters)`` and their sums ``(heads, clusters, width)``."""
        heads, clusters, width = self.means.shape
        x, nearest = x.transpose(0, 1).flatten(1, 2), nearest.transpose(0, 1).flatten(1)
        weight = torch.ones_like(x[..., 0])
        if mask is not None:
            weight = mask.flatten().to(x.dtype).expand_as(weight)
        count = weight.new_zeros(heads, clusters).scatter_add(1, nearest, weight)
        index = nearest[..., None].expand_as(x)
        return count, x.new_zeros(heads, clusters, width).scatter_add(1, index, x * weight[..., None])
