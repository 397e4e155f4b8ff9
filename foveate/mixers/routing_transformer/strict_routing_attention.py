"""Routing attention that never looks ahead: a token reads the last members of its own cluster.

The strictly causal variant of Roy et al. 2021 (arXiv 2003.05997). The published selection is made over the whole
sequence, so a token's set depends on its future. Here a token belongs to the centroid nearest to it, which is known
from itself alone, and reads the last ``window`` tokens of that cluster up to itself::

    c_t = argmax_c k_t . mu_c          o_t = softmax(k_t K_M^T) V_M,   M = the last w tokens s <= t with c_s = c_t

Queries are keys, as in the published causal form. With k clusters and windows of n / k the products are those of the
published form within a factor of four, and a stream keeps ``k (w - 1)`` keys and values of each head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...measure.cost import Cost
from ...ops.cluster_window_attention import block_count, cluster_window_attention, cluster_window_flops
from ...ops.documents import document_numbers, document_starts
from ...ops.set_attention import attend, clipped
from ...registry import register
from ...spec import MixerSpec, Order
from ..layout import TokenLayout
from ..ssm import Packing
from ..state import State, state
from .frame import Position, RoutedMixer, Turn
from .online_kmeans import Centroids, Norm


@state
class RoutingState(State):
    """What a stream keeps: its size does not depend on how much was read.

    Attributes:
        local_keys, local_values: ``(batch, local heads, (look_back + 1) block - 1, head_dim)``, the last tokens, latest
            last.
        keys, values: ``(batch, routed heads, clusters, window - 1, head_dim)``, the last members, latest last.
        held: int64 ``(batch, routed heads, clusters)``: how many of those places are taken.
        position: int64 ``(batch,)``: real tokens read, which is the next token's position.
    """

    local_keys: Tensor
    local_values: Tensor
    keys: Tensor
    values: Tensor
    held: Tensor
    position: Tensor


@register("mixer", "strict_routing_attention", system="routing_transformer")
class StrictRoutingAttention(RoutedMixer):
    """Routed heads whose tokens read the last members of their own cluster, beside local heads; strictly causal.

    Masked tokens are taken out of the sequence. Of a layout, segments are kept apart, each run of equal numbers by
    itself, and positions go to RoPE. In training mode the layer reports the auxiliary loss "commitment", and its
    centroids move in ``kmeans.after_step()``, which the default recipe calls.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True.
        local_heads: how many of the heads are local; None: half of them.
        num_clusters: centroids of each routed head.
        window: members of its cluster that a token sees, itself among them.
        block: places of a local block; None: ``window``.
        look_back: blocks that a local query sees before its own.
        norm: "layernorm": keys have mean 0 and variance 1, and their products no factor, as in the published form;
            "l2": tokens are routed by direction, queries keep their length, and products are over sqrt(head width).
        position: "none"; "rope": rotary, turned after routing; "relative": learned embeddings of distances, in time for
            local heads and in members of the cluster for routed ones.
        max_relative: distances are clipped there.
        rope_base: of the rotary embedding.
        decay: of the centroids' moving averages.
        commitment: weight of the auxiliary loss.
        centroids: how they move, see :class:`~foveate.mixers.routing_transformer.OnlineKMeans`.

    Raises:
        InvalidValue: ``causal=False``, or an option that is not legal.
    """

    spec = MixerSpec(
        causal="strict",
        bidirectional=False,
        streaming="exact",
        padding="masked",
        layout=True,
        segments=True,
        order=Order(flops=1.5, memory=1.3),
    )
    for_language = {"position": "rope"}

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        local_heads: int | None = None,
        num_clusters: int = 8,
        window: int = 64,
        block: int | None = None,
        look_back: int = 1,
        norm: Norm = "layernorm",
        position: Position = "none",
        max_relative: int = 64,
        rope_base: float = 10000.0,
        decay: float = 0.999,
        commitment: float = 1e-4,
        centroids: Centroids = "released",
    ) -> None:
        super().__init__(
            dim, num_heads=num_heads, causal=causal, local_heads=local_heads, num_clusters=num_clusters, window=window,
            block=block, look_back=look_back, share_qk=True, norm=norm, position=position, max_relative=max_relative,
            rope_base=rope_base, decay=decay, commitment=commitment, centroids=centroids,
        )  # fmt: skip

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
        positions = None if layout is None else layout.positions
        segments = None if layout is None else layout.segments
        packing = None if mask is None else Packing.of(mask)
        if packing is not None:
            x = packing.pack(x)
            segments = None if segments is None else segments.gather(1, packing.order)
            positions = None if positions is None else positions.expand(x.shape[:2]).gather(1, packing.order)
        places, where = torch.arange(x.shape[1], device=x.device), {}
        if segments is not None:
            segments = document_numbers(segments)
            starts = torch.where(document_starts(segments), places, 0).cummax(1).values
            where = {"positions": places - starts, "segments": segments}
        turn = self._turner(places if positions is None else positions)
        far, near = self._values(x)
        outputs = []
        if self.routed_heads:
            real = None if packing is None else packing.valid
            q, k, clusters = self._route(x, far, turn, real)
            outputs.append(self._read_clusters(q, k, far, clusters, segments))
        if self.local_heads:
            outputs.append(self._local(x, near, turn, None, **where))
        y = self._join(outputs)
        return y if packing is None else packing.unpack(y)

    def _route(self, x: Tensor, v: Tensor, turn: Turn, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys ``(batch, heads, length, head_dim)``, turned, and their clusters, -1 where nothing is."""
        assert self.kmeans is not None
        assert self.route_q is not None
        q = self._routed(self.route_q, x)
        on = self.kmeans.on_sphere(q)
        clusters = self.kmeans.assign(on)
        self._learn([on], [clusters], real)
        if real is not None:
            clusters = clusters.masked_fill(~real[:, None], -1)
        k = turn(on.to(v.dtype))
        return (k if self.norm == "layernorm" else turn(q.to(v.dtype))), k, clusters

    @property
    def scale(self) -> float:
        """Factor on the products of routed heads."""
        return 1.0 if self.norm == "layernorm" else self.head_dim**-0.5

    def _read_clusters(
        self, q: Tensor, k: Tensor, v: Tensor, clusters: Tensor, segments: Tensor | None = None
    ) -> Tensor:
        return cluster_window_attention(
            q, k, v, clusters, self.num_clusters, self.window, segments=segments, scale=self.scale,
            rel_k=self.routed_rel_k, rel_v=self.routed_rel_v,
        )  # fmt: skip

    # Streams ----------------------------------------------------------------------------------------------------------

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RoutingState:
        """Nothing read yet; keys and values will be in ``dtype`` (default: that of the weights)."""
        weight = self.out_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        routed = (batch_size, self.routed_heads, self.num_clusters)
        local = (batch_size, self.local_heads, (self.look_back + 1) * self.block - 1, self.head_dim)
        return RoutingState(
            local_keys=torch.zeros(local, device=device, dtype=dtype),
            local_values=torch.zeros(local, device=device, dtype=dtype),
            keys=torch.zeros(*routed, self.window - 1, self.head_dim, device=device, dtype=dtype),
            values=torch.zeros(*routed, self.window - 1, self.head_dim, device=device, dtype=dtype),
            held=torch.zeros(routed, device=device, dtype=torch.int64),
            position=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    def prefill(self, x: Tensor, state: RoutingState, mask: Tensor | None = None) -> tuple[Tensor, RoutingState]:
        """Read ``(batch, length, dim)`` after ``state``; masked tokens are taken out."""
        self.check_stream(x, state, mask)
        packing = None if mask is None else Packing.of(mask)
        x = x if packing is None else packing.pack(x)
        positions = state.position[:, None] + torch.arange(x.shape[1], device=x.device)
        turn, (far, near) = self._turner(positions), self._values(x)
        outputs, keys, values, held = [], state.keys, state.values, state.held
        if self.routed_heads:
            o, keys, values, held = self._stream_routed(x, far, turn, state, None if packing is None else packing.valid)
            outputs.append(o)
        read = torch.full_like(state.position, x.shape[1]) if packing is None else packing.valid.sum(1)
        local_keys, local_values = state.local_keys, state.local_values
        if self.local_heads:
            o, local_keys, local_values = self._stream_local(x, near, turn, state, read)
            outputs.append(o)
        y = self._join(outputs)
        after = RoutingState(local_keys, local_values, keys, values, held, state.position + read)
        return y if packing is None else packing.unpack(y), after

    def step(self, x_t: Tensor, state: RoutingState) -> tuple[Tensor, RoutingState]:
        """Read one token ``(batch, dim)``: one cluster of each head is read, and all are copied.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def _stream_routed(
        self, x: Tensor, v: Tensor, turn: Turn, state: RoutingState, real: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs of the routed heads, and members and their number afterwards."""
        q, k, clusters = self._route(x, v, turn, real)
        keys, values = state.keys.to(k.dtype), state.values.to(v.dtype)
        if x.shape[1] == 1 and real is None:
            return self._step_routed(q, k, v, clusters[..., 0], keys, values, state.held)
        count, room = self.num_clusters, self.window - 1
        # Members of each cluster stand before the new tokens, oldest first.
        places = torch.arange(room, device=x.device) >= room - state.held[..., None]
        known = torch.where(places, torch.arange(count, device=x.device)[:, None], -1).flatten(2)
        clusters = torch.cat([known, clusters], 2)
        k, v = torch.cat([keys.flatten(2, 3), k], 2), torch.cat([values.flatten(2, 3), v], 2)
        o = self._read_clusters(q, k, v, clusters)
        label = torch.where(clusters < 0, count, clusters)
        order = label.argsort(dim=2, stable=True)
        total = label.new_zeros(*label.shape[:2], count + 1).scatter_add(2, label, torch.ones_like(label))
        end = total.cumsum(2)[..., :count, None]
        index = (end - room + torch.arange(room, device=x.device)).clamp(min=0)
        index = order.gather(2, index.flatten(2))[..., None].expand(-1, -1, -1, k.shape[3])
        keys, values = (t.gather(2, index).unflatten(2, (count, room)) for t in (k, v))
        return o, keys, values, total[..., :count].clamp(max=room)

    def _step_routed(
        self, q: Tensor, k: Tensor, v: Tensor, cluster: Tensor, keys: Tensor, values: Tensor, held: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One token ``(batch, heads, 1, head_dim)`` reads its cluster and joins it."""
        room = self.window - 1
        index = cluster[..., None, None, None].expand(-1, -1, 1, room, k.shape[3])
        mine_k = torch.cat([keys.gather(2, index)[:, :, 0], k], 2)
        mine_v = torch.cat([values.gather(2, index)[:, :, 0], v], 2)
        before = held.gather(2, cluster[..., None])
        place = torch.arange(room + 1, device=k.device)
        distances = clipped(place[None] - room, self.routed_rel_k)
        o = attend(
            q, mine_k, mine_v, scale=self.scale, visible=(place >= room - before)[:, :, None, :],
            distances=distances, rel_k=self.routed_rel_k, rel_v=self.routed_rel_v,
        )  # fmt: skip
        keys, values = (old.scatter(2, index, new[:, :, None, 1:]) for old, new in ((keys, mine_k), (values, mine_v)))
        return o, keys, values, held.scatter(2, cluster[..., None], (before + 1).clamp(max=room))

    def _stream_local(
        self, x: Tensor, v: Tensor, turn: Turn, state: RoutingState, read: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the local heads, and the last tokens afterwards."""
        assert self.local_q is not None
        assert self.local_k is not None
        q, k = turn(self._heads(self.local_q(x))), turn(self._heads(self.local_k(x)))
        room = state.local_keys.shape[2]
        k = torch.cat([state.local_keys.to(k.dtype), k], 2)
        v = torch.cat([state.local_values.to(v.dtype), v], 2)
        positions = state.position[:, None] + torch.arange(-room, x.shape[1], device=x.device)
        o = self._local_read(q, k, v, positions >= 0, positions=positions)
        index = (read[:, None] + torch.arange(room, device=x.device))[:, None, :, None]
        index = index.expand(-1, k.shape[1], -1, k.shape[3])
        return o, k.gather(2, index), v.gather(2, index)

    # Cost -------------------------------------------------------------------------------------------------------------

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, products with the centroids, and the products inside blocks of both kinds."""
        n, dim, width, clusters = grid[0], self.dim, self.head_dim, self.num_clusters
        rows, relative = batch * self.routed_heads, self.position == "relative"
        flops = self._projection_flops(batch * n) + self._score_flops(batch * n) + self._local_flops(n, batch)
        turns = (self.norm == "l2") + bool(rows) + 2 * bool(self.local_heads)
        saved = 2 * batch * n * dim + (turns * n * width if self.position == "rope" else 0)
        if rows:
            flops += cluster_window_flops(n, clusters, self.window, self.routed_heads, width, width, batch, relative)
            window = min(self.window, n)
            places = block_count(n, clusters, window) * window
            # What is brought to the sphere and values; queries, keys and values of two blocks, outputs; places.
            saved += rows * (n * (5 * width + 4) + places * (7 * width + 3))
            saved += rows * places * 2 * window * (2 if relative else 1)
            saved += 4 * window * window * width if relative else 0
        room = (self.look_back + 1) * self.block - 1
        kept = self.local_heads * room + self.routed_heads * clusters * (self.window - 1)
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * (saved + self._local_saved(n, batch)),
            state_bytes=batch * (8 * width * kept + 8 * self.routed_heads * clusters + 8),
        )
