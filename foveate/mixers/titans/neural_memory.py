"""titans-pytorch's neural memory: chunks share their gates, and update the memory once.

lucidrains/titans-pytorch (MIT), the public re-implementation of Titans (arXiv 2501.00663); the paper's own form, with
gates for every token, is :class:`foveate.mixers.titans.lmm.TitansLMM`. Per head, with x normalised by RMSNorm::

    q, k, v = x W,  theta = max_lr sigmoid(x W + b)                  per token
    alpha, eta = sigmoid(mean_chunk(x) W + b)                        per chunk
    U_c = -grad sum_{t in c} theta_t mean_d (M(k_t) - v_t)^2         at the weights of the last re-basing
    S_c = eta_c S_{c-1} + U_c,  M_c = (1 - alpha_c) M_{c-1} + S_c
    y_t = M(q_t)  with the weights after floor((t + 1) / chunk) chunks

Several heads are gated (``sigmoid(x W)``) and mixed by one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...measure.cost import Cost, linear_flops
from ...ops.handwritten import sum_dtype
from ...ops.memory_kinds import KINDS, Kind
from ...ops.memory_kinds import network as build
from ...ops.memory_updates import chunk_updates, update_flops, update_saved
from ...ops.neural_memory import flatten, initial_weights, per_head, unflatten
from ...ops.neural_memory_chunks import Weights
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads
from ..layout import TokenLayout
from ..parts import Linear
from ..ssm import check_positive
from .chunk_places import ChunkMemoryState, ChunkPlaces
from .chunk_writes import ChunkWrites, HeadNorm, by_heads, check_extras, in_chunks
from .lmm import check_momentum, xavier


@register("mixer", "titans_pytorch_memory", system="titans")
class NeuralMemory(Mixer):
    """The neural memory of titans-pytorch, whose weights it loads: linear time, a state of constant size.

    Masked tokens are taken out of the sequence. Segments of a layout are kept apart: each document begins with a new
    memory; positions are not read.

    Args:
        dim: channels of a token.
        num_heads: memories; one has the width ``dim``.
        causal: must be True.
        head_dim: width of a head; None: ``dim / num_heads``.
        chunk: tokens of a chunk. Sequences shorter than that never change the memory.
        rebase: tokens after which gradients are taken at the memory as it is then, a multiple of ``chunk``;
            None: never.
        network: what a memory is, see :mod:`foveate.ops.memory_kinds`.
        depth: matrices of a memory ("mlp"), pairs of them ("factorized") or layers; "attention" has one.
        expansion: width between matrices, in head widths; for "swiglu" times 2/3. Not of "factorized".
        rank: of "factorized"; None: that of the head, at most 32.
        scale: of the products of "attention".
        momentum: past surprise goes on.
        norm: normalise a memory's output and add its input.
        max_lr: largest step size.
        extras: variations of the update by titans-pytorch's names, see
            :data:`~foveate.mixers.titans.chunk_writes.EXTRAS`; None: none.

    Raises:
        InvalidValue: ``causal=False``, or an option that is not legal.
        InvalidType: an extra that does not exist.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        padding="masked",
        layout=True,
        segments=True,
        order=Order(flops=1.0, memory=1.0),
        onnx=True,
        export_note="its loop over blocks of chunks is unrolled: the graph grows with the length",
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "titans_pytorch": {
            r"memory_model\..*": "",
            r"weights\.(\d+)": r"weights.\1",
            r"store_norm\.weight": "writes.store_norm.weight",
            r"retrieve_norm\.weight": "retrieve_norm.weight",
            r"to_(keys|values)\.weight": r"writes.to_\1.weight",
            r"to_queries\.weight": "to_queries.weight",
            r"to_adaptive_step\.0\.(weight|bias)": r"writes.to_step.\1",
            r"to_decay_factor\.0\.(weight|bias)": r"writes.to_forget.\1",
            r"to_momentum\.0\.(weight|bias)": r"writes.to_momentum.\1",
            r"to_learned_momentum_combine\.0\.(weight|bias)": r"writes.to_combine.\1",
            r"to_learned_weight_residual_mix\.0\.(weight|bias)": r"writes.to_mix.\1",
            r"to_layer_modulation\.0\.(weight|bias)": r"writes.to_modulation.\1",
            r"reduce_to_chunk_rep\.to_attn_logits\.(weight|bias)": r"writes.to_pool.\1",
            r"retrieve_gate\.0\.weight": "to_gate.weight",
            r"combine_heads\.weight": "out.weight",
            r"q_norm\.gamma": "q_norm.gamma",
            r"k_norm\.gamma": "writes.k_norm.gamma",
            r"multihead_rmsnorm\.gamma": "read_norm.gamma",
            r"transition_gate": "transition",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        causal: bool = True,
        head_dim: int | None = None,
        chunk: int = 4,
        rebase: int | None = None,
        network: Kind = "mlp",
        depth: int = 2,
        expansion: float = 4.0,
        rank: int | None = None,
        scale: float = 8.0,
        momentum: bool = True,
        norm: bool = True,
        max_lr: float = 1.0,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(dim, causal=causal)
        head_dim = check_heads(dim, num_heads) if head_dim is None else head_dim
        rank = min(32, head_dim) if rank is None else rank
        check_positive(num_heads=num_heads, head_dim=head_dim, chunk=chunk, depth=depth, rank=rank)
        if network not in KINDS:
            raise invalid("network", network, f"it must be one of {', '.join(KINDS)}")
        if not 0 < scale < math.inf:
            raise invalid("scale", scale, "a positive number is needed")
        self.extras = check_extras(extras, chunk, momentum)
        if num_heads == 1 and head_dim != dim:
            raise invalid("head_dim", head_dim, f"one head has the width of a token, {dim}")
        if rebase is not None and (not isinstance(rebase, int) or rebase < 1 or rebase % chunk):
            raise invalid("rebase", rebase, f"a multiple of chunk={chunk}, or None, is needed")
        if not 0 < max_lr < math.inf:
            raise invalid("max_lr", max_lr, "a positive number is needed")
        if not expansion > 0 or int(head_dim * expansion * (2 / 3 if network == "swiglu" else 1)) < 1:
            raise invalid("expansion", expansion, f"it must leave a channel of head_dim={head_dim}")
        self.num_heads, self.head_dim, self.inner = num_heads, head_dim, num_heads * head_dim
        self.chunk, self.rebase, self.max_lr, self.norm, self.momentum = chunk, rebase, max_lr, norm, momentum
        self.orders = self.extras["momentum_order"] if momentum else 0
        self.network, self.depth, self.expansion, self.rank, self.scale = network, depth, expansion, rank, scale
        self.net = build(network, head_dim, depth, expansion, rank, scale, norm)
        weights = [torch.zeros(s) if len(s) == 1 else xavier(1, *s)[0] for s in self.net.shapes]
        if self.extras["per_head_learned_parameters"]:  # one draw for all of them, as published
            weights = [w.expand(num_heads, *w.shape).clone() for w in weights]
        self.weights = nn.ParameterList(weights)
        self.writes = ChunkWrites(
            dim,
            num_heads,
            head_dim,
            chunk=chunk,
            max_lr=max_lr,
            orders=self.orders,
            norm=norm,
            weights=len(self.weights),
            extras=self.extras,
        )
        self.retrieve_norm = nn.RMSNorm(dim) if self.extras["pre_rmsnorm"] else nn.Identity()
        self.q_norm = HeadNorm(num_heads, head_dim) if self.extras["qk_rmsnorm"] else nn.Identity()
        self.read_norm = HeadNorm(num_heads, head_dim) if self.extras["post_rmsnorm"] else nn.Identity()
        self.to_queries = Linear(dim, self.inner, bias=False)
        self.to_gate = Linear(dim, num_heads, bias=False) if num_heads > 1 else None
        self.out = Linear(self.inner, dim, bias=False) if num_heads > 1 else nn.Identity()
        self.transition = nn.Parameter(torch.tensor(-5.0)) if self.extras["gated_transition"] else None

    def no_weight_decay(self) -> list[nn.Parameter]:
        """What a memory starts from."""
        return list(self.weights)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Weights by our numbers: titans-pytorch has the gain first."""
        found, count = {}, len(self.weights)
        for key, value in state_dict.items():
            head, _, number = key.rpartition(".")
            if head == "memory_model_parameters" and number.isdigit():
                place = (int(number) - 1) % count if self.norm else int(number)
                key = f"weights.{place}"
            found[key] = value
        return found

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
        if self.views > 1:
            x = x.repeat(1, 1, self.views)
        return self._mix(x, mask, None if layout is None else layout.segments, None)[0]

    def read_views(
        self, x: Tensor, state: ChunkMemoryState | None = None, other: Weights | None = None
    ) -> tuple[Tensor, ChunkMemoryState | None, Weights]:
        """What a network of several memories asks: views of the tokens, and the weights of the memory before.

        Args:
            x: ``(batch, length, dim)``, or with the extra ``qkv_receives_diff_views`` ``(batch, length, 3 * dim)``:
                what queries, keys and values are made of, one beside the other.
            state: what was read before; None: nothing.
            other: the last of what a memory of the same shape returned for these tokens; with the extra
                ``accept_weight_residual`` learned shares of it are added to the weights at which gradients are taken.

        Returns:
            ``(batch, length, dim)``, the new state (None without one), and the weights before each chunk.

        Raises:
            InvalidValue: another width, or weights of another memory where none are taken, or none where some are.
        """
        if x.ndim != 3 or x.shape[2] != self.views * self.dim:
            wanted = f"(batch, length, {self.views * self.dim})"
            raise InvalidValue(f"{type(self).__name__}: x has shape {tuple(x.shape)}; {wanted} is needed.")
        if state is not None:
            self._check_state(state, x.shape[0])
        y, state, known = self._mix(x, None, None, state, other, trace=True)
        assert known is not None
        return y, state, known

    @property
    def views(self) -> int:
        """Of a token: one, or three for queries, keys and values."""
        return 3 if self.extras["qkv_receives_diff_views"] else 1

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ChunkMemoryState:
        """The learned start: weights in float32, pending tokens in ``dtype`` (default: the weights')."""
        weight = self.to_queries.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        start = tuple(w.to(device).contiguous() for w in self._start(batch_size, sum_dtype(dtype)))
        momentum = tuple(w.new_zeros(*w.shape[:2], self.orders, *w.shape[2:]) for w in start)
        return ChunkMemoryState(
            pending=torch.zeros(batch_size, self.chunk - 1, self.views * self.dim, device=device, dtype=dtype),
            memory=start,
            momentum=momentum if self.momentum else None,
            base=start,
            count=torch.zeros(batch_size, device=device, dtype=torch.int64),
            lead=torch.zeros(batch_size, self.dim, device=device, dtype=dtype) if self.net.mixes else None,
        )

    def prefill(
        self, x: Tensor, state: ChunkMemoryState, mask: Tensor | None = None
    ) -> tuple[Tensor, ChunkMemoryState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is.

        Raises:
            InvalidValue: a state of another mixer or batch.
        """
        self.check_stream(x, state, mask)
        y, after, _ = self._mix(x.repeat(1, 1, self.views) if self.views > 1 else x, mask, None, state)
        assert after is not None
        return y, after

    def step(self, x_t: Tensor, state: ChunkMemoryState) -> tuple[Tensor, ChunkMemoryState]:
        """Read one token ``(batch, dim)``; its chunk so far is projected again.

        Raises:
            InvalidValue: anything but one token per sample, or a state of another mixer or batch.
        """
        self.check_step(x_t, state)
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the products of the memories, and those of the recurrences over chunks."""
        length, heads = grid[0], self.num_heads
        chunks = -(-length // self.chunk)
        tokens, weights = chunks * self.chunk, sum(math.prod(shape) for shape in self.net.shapes)
        flops = self.writes.flops(chunks) + linear_flops(tokens, self.dim, self.inner)
        if self.to_gate is not None:
            flops += linear_flops(tokens, self.dim, heads) + linear_flops(tokens, self.inner, self.dim)
        every = chunks if self.rebase is None else self.rebase // self.chunk
        flops += heads * update_flops(
            chunks, every, self.chunk, self.writes.per_chunk, self.net, weights, self.orders, self.orthogonal
        )
        # Tokens, their norms, queries, keys and values, what was read, gated and merged; then the memories.
        saved = tokens * (3 * self.dim + 8 * self.inner)
        # Before and after each recurrence, and what else is done to an update.
        copies = 3 + self.orders + 2 * self.writes.steps + 17 * self.orthogonal
        saved += heads * update_saved(chunks, self.chunk, self.writes.per_chunk, self.net, weights, copies)
        state = (2 + self.orders) * heads * weights + self.dim * (self.views * (self.chunk - 1) + self.net.mixes)
        return Cost(
            flops=batch * flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * batch * saved,
            state_bytes=batch * (4 * state + 8),
        )

    @property
    def orthogonal(self) -> bool:
        """Updates are orthogonalised."""
        return self.extras["spectral_norm_surprises"]

    def _check_state(self, given: Any, batch: int) -> None:
        super()._check_state(given, batch)
        check_momentum(self, given)

    def _start(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        weights: Sequence[Tensor] = list(self.weights)
        if not self.extras["per_head_learned_parameters"]:
            weights = [w.expand(self.num_heads, *w.shape) for w in weights]
        return initial_weights(weights, batch, dtype)

    def _mix(
        self,
        x: Tensor,
        mask: Tensor | None,
        segments: Tensor | None,
        past: ChunkMemoryState | None,
        other: Weights | None = None,
        trace: bool = False,
    ) -> tuple[Tensor, ChunkMemoryState | None, Weights | None]:
        if (other is not None) != self.extras["accept_weight_residual"]:
            need = "needs the weights of" if other is None else "takes no weights of"
            raise InvalidValue(f"{type(self).__name__} {need} the memory before it: see accept_weight_residual.")
        batch, every = x.shape[0], 1 if self.rebase is None else self.rebase // self.chunk
        at = ChunkPlaces.of(x, mask, segments, past, self.chunk, every)
        tokens, chunks = at.tokens, at.chunks
        group = chunks if self.rebase is None else every if past is None else 1
        rebase = None if self.rebase is None else at.rebased(past, every)
        start = self._start(batch, sum_dtype(x.dtype))
        if past is None:
            momentum = tuple(w.new_zeros(*w.shape[:2], self.orders, *w.shape[2:]) for w in start)
            memory, momenta, base = start, momentum if self.momentum else None, start
        else:
            memory, momenta, base = past.memory, past.momentum, past.base
        asked, written, values = (tokens,) * 3 if self.views == 1 else tokens.chunk(3, -1)
        k, v, theta, rules = self.writes(written, values, at.complete, at.starts)
        read = self.retrieve_norm(asked)
        lead = None if past is None else past.lead
        if lead is not None:
            lead = self._queries(self.retrieve_norm(lead.to(x.dtype)[:, None])).flatten(0, 1)[:, 0]
        y, *after, known = chunk_updates(
            in_chunks(self._queries(read), chunks),
            k,
            v,
            theta,
            rules,
            flatten(start),
            flatten(memory),
            None if momenta is None else flatten(momenta),
            flatten(base),
            net=self.net,
            group=group,
            rebase=None if rebase is None else per_head(rebase, self.num_heads),
            transition=None if self.transition is None else torch.sigmoid(self.transition),
            lead=lead,
            other=other,
            trace=trace,
        )
        y = self.read_norm(y.view(batch, self.num_heads, -1, self.head_dim).to(x.dtype))
        if self.to_gate is not None:
            y = y * torch.sigmoid(self.to_gate(read)).mT.unsqueeze(-1)
        y = self.out(y.transpose(1, 2).flatten(2))
        y = at.back(y)
        if past is None:
            return y, None, known
        memory, momenta, base = unflatten(after, batch, self.num_heads)
        count = past.count + (x.shape[1] if mask is None else mask.sum(1))
        lead = None if past.lead is None else at.lead(asked, past.lead)
        return y, ChunkMemoryState(at.rest(), memory, momenta, base, count, lead), known

    def _queries(self, read: Tensor) -> Tensor:
        """``(batch, heads, length, head_dim)`` of normalised tokens."""
        return self.q_norm(by_heads(self.to_queries(read), self.num_heads, self.head_dim))
