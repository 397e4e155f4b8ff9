"""Routing attention as released: every centroid takes its nearest tokens of the whole sequence.

Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers" (TACL 2021, arXiv 2003.05997). Which
tokens a centroid takes depends on all of them, so with ``causal=True`` the selection looks ahead although no value
does: ``spec.causal`` is "values". The form that does not look ahead is
:class:`~foveate.mixers.routing_transformer.StrictRoutingAttention`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import invalid
from ...measure.cost import Cost
from ...ops.routing_attention import routing_attention, top_members
from ...ops.set_attention import attend_flops
from ...registry import register
from ...spec import MixerSpec, Order
from ..layout import TokenLayout
from ..ssm import Packing
from .frame import Position, RoutedMixer, Turn
from .online_kmeans import Centroids, Norm, OnlineKMeans


def route(
    kmeans: OnlineKMeans,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    *,
    share_qk: bool,
    window: int,
    causal: bool,
    mask: Tensor | None,
    count_eps: float,
    turn: Turn | None = None,
    memory_k: Tensor | None = None,
    memory_v: Tensor | None = None,
    rel_k: Tensor | None = None,
    rel_v: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Bring queries and keys to the sphere, let the centroids take theirs, and attend inside their sets.

    Args:
        kmeans: the centroids; its ``norm`` says which rule is followed, see :class:`RoutingAttention`.
        q: ``(batch, heads, length, head_dim)``, float32 or float64.
        k: likewise; None: the queries.
        v: likewise, in the dtype of the answer.
        share_qk: one list of tokens serves queries and keys, that of the queries.
        window: tokens that a centroid takes.
        turn: done to queries and keys after routing; None: nothing.
        causal, mask, count_eps, memory_k, memory_v, rel_k, rel_v: as
            :func:`~foveate.ops.routing_attention.routing_attention` takes them.

    Returns:
        the outputs, like ``v``; what was brought to the sphere, queries first; and its products with the centroids.
    """
    released = kmeans.norm == "layernorm"
    spheres = [kmeans.on_sphere(q)] if k is None else [kmeans.on_sphere(q), kmeans.on_sphere(k)]
    asked = spheres[0] if released else q
    read = k if k is not None and not (released or share_qk) else spheres[-1]
    on = spheres[:1] if share_qk else spheres
    scores = [kmeans.scores(x) for x in on]
    sets = [top_members(s, window, mask) for s in scores]
    turn = turn or (lambda x: x)
    queries = turn(asked.to(v.dtype))
    keys = queries if read is asked else turn(read.to(v.dtype))
    o = routing_attention(
        queries, keys, v, sets[0], None if share_qk else sets[-1],
        causal=causal, mask=mask, scale=1.0 if released else q.shape[-1] ** -0.5, count_eps=count_eps,
        avoid_self=share_qk and not released, memory_k=memory_k, memory_v=memory_v, rel_k=rel_k, rel_v=rel_v,
    )  # fmt: skip
    return o, on, scores


@register("mixer", "routing_attention", system="routing_transformer")
class RoutingAttention(RoutedMixer):
    """Routed heads, whose sets of tokens centroids gather, beside local heads.

    Masked tokens are taken out of the sequence: sets and blocks count real ones. In training mode the layer reports the
    auxiliary loss "commitment", and its centroids move in ``kmeans.after_step()``, which the default recipe calls.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: values of later tokens have no influence; which tokens are routed together depends on the future.
        local_heads: how many of the heads are local; None: half of them.
        num_clusters: centroids of each routed head.
        window: tokens that a centroid takes; of shorter sequences all.
        block: places of a local block; None: ``window``.
        look_back: blocks that a local query sees before its own (and behind it, if not causal).
        share_qk: routed keys are the queries, and one list serves both; None: if causal, as released.
        norm: "layernorm", as released: queries and keys have mean 0 and variance 1, and their products no factor;
            "l2", the PyTorch peer's: tokens are routed by direction, products are those of the projections over
            sqrt(head width), and where keys are shared they have length 1 and a token sees itself only if alone.
        position: "none"; "rope": rotary, turned after routing; "relative", as released: learned embeddings of
            distances, in time for local heads and in places of the list for routed ones.
        max_relative: distances are clipped there.
        rope_base: of the rotary embedding.
        num_mem_kv: learned keys and values of each routed head and cluster, which all of its queries see. With "l2",
            causal and keys of their own there is at least one, as in the peer.
        count_eps: added to the number of sets of a token when they are averaged: 0.01 as released; 0: a mean.
        decay: of the centroids' moving averages.
        commitment: weight of the auxiliary loss.
        centroids: how they move, see :class:`~foveate.mixers.routing_transformer.OnlineKMeans`.

    Raises:
        InvalidValue: an option that is not legal, or a memory together with relative positions.
    """

    mem_key: Tensor | None
    mem_value: Tensor | None
    spec = MixerSpec(causal="values", padding="masked", order=Order(flops=1.5, memory=1.0))

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        local_heads: int | None = None,
        num_clusters: int = 8,
        window: int = 64,
        block: int | None = None,
        look_back: int = 1,
        share_qk: bool | None = None,
        norm: Norm = "layernorm",
        position: Position = "none",
        max_relative: int = 64,
        rope_base: float = 10000.0,
        num_mem_kv: int = 0,
        count_eps: float = 1e-2,
        decay: float = 0.999,
        commitment: float = 1e-4,
        centroids: Centroids = "released",
    ) -> None:
        super().__init__(
            dim, num_heads=num_heads, causal=causal, local_heads=local_heads, num_clusters=num_clusters, window=window,
            block=block, look_back=look_back, share_qk=causal if share_qk is None else share_qk, norm=norm,
            position=position, max_relative=max_relative, rope_base=rope_base, decay=decay, commitment=commitment,
            centroids=centroids,
        )  # fmt: skip
        if not isinstance(num_mem_kv, int) or num_mem_kv < 0:
            raise invalid("num_mem_kv", num_mem_kv, "a whole number, 0 or more, is needed")
        if not 0 <= count_eps < math.inf:
            raise invalid("count_eps", count_eps, "it must be finite and not negative")
        if norm == "l2" and causal and not self.share_qk:
            num_mem_kv = max(1, num_mem_kv)
        if num_mem_kv and position == "relative":
            raise invalid("num_mem_kv", num_mem_kv, "a memory has no place, so it goes with position='none' or 'rope'")
        self.num_mem_kv, self.count_eps = num_mem_kv if self.routed_heads else 0, count_eps
        memory = (self.routed_heads, num_clusters, self.num_mem_kv, self.head_dim)
        for name in ("mem_key", "mem_value"):
            self.register_parameter(name, nn.Parameter(torch.randn(memory)) if self.num_mem_kv else None)

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
        packing = None if mask is None else Packing.of(mask)
        x = x if packing is None else packing.pack(x)
        real = None if packing is None else packing.valid
        turn = self._turner(torch.arange(x.shape[1], device=x.device))
        far, near = self._values(x)
        outputs = [self._route(x, far, turn, real)] if self.routed_heads else []
        if self.local_heads:
            outputs.append(self._local(x, near, turn, None if self.causal else real))
        y = self._join(outputs)
        return y if packing is None else packing.unpack(y)

    def _route(self, x: Tensor, v: Tensor, turn: Turn, real: Tensor | None) -> Tensor:
        """The routed heads' outputs ``(batch, heads, length, head_dim)``."""
        assert self.kmeans is not None
        assert self.route_q is not None
        q = self._routed(self.route_q, x)
        k = None if self.route_k is None else self._routed(self.route_k, x)
        o, on, scores = route(
            self.kmeans, q, k, v, share_qk=self.share_qk, window=self.window, causal=self.causal, mask=real, turn=turn,
            count_eps=self.count_eps, memory_k=self.mem_key, memory_v=self.mem_value,
            rel_k=self.routed_rel_k, rel_v=self.routed_rel_v,
        )  # fmt: skip
        self._learn(on, [s.argmax(-1) for s in scores] if self.training else [], real)
        return o

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, products with the centroids, and the products inside sets and blocks."""
        n, dim, width = grid[0], self.dim, self.head_dim
        rows, members = batch * self.routed_heads, min(self.window, n)
        relative, keys = self.position == "relative", members + self.num_mem_kv
        flops = self._projection_flops(batch * n) + self._score_flops(batch * n) * (1 if self.share_qk else 2)
        flops += attend_flops(rows * self.num_clusters, members, keys, width, width, relative)
        # x, and the outputs of all heads put together.
        saved = 2 * batch * n * dim + (2 * bool(self.local_heads) * n * width if self.position == "rope" else 0)
        if rows:
            saved += self._routed_saved(n, rows, members)
        return Cost(
            flops=flops + self._local_flops(n, batch),
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * (saved + self._local_saved(n, batch)),
        )

    def _routed_saved(self, n: int, rows: int, members: int) -> int:
        """Numbers that the routed heads keep for the backward pass."""
        width, lists, keys = self.head_dim, 1 if self.share_qk else 2, members + self.num_mem_kv
        held = rows * self.num_clusters * members
        # What is brought to the sphere, before and after, and its statistics; values; how many sets a token has.
        once = self.norm == "layernorm" and self.share_qk
        copies = (3 * lists if self.norm == "layernorm" else 3) + 1
        saved = rows * n * (copies * width + 2 * lists + 1)
        saved += n * width * (1 if once else 2) if self.position == "rope" else 0
        # Queries, keys, values and outputs of the sets, their places, and what the softmax keeps.
        saved += held * (2 * width + 2 * lists) + 2 * rows * self.num_clusters * keys * width
        if self.position == "relative":
            return saved + 2 * held * members + 2 * members * members * width
        pairs = (self.causal and (lists == 2 or self.num_mem_kv)) or (self.norm == "l2" and self.share_qk)
        return saved + held * (1 + (keys if pairs else 0))
