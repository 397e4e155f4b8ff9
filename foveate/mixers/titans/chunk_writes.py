"""What tokens write into titans-pytorch's neural memory: keys, values, step sizes, and the gates of chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidType, invalid
from ...measure.cost import linear_flops
from ...ops.handwritten import sum_dtype
from ...ops.memory_updates import Chunks, orthogonalise, soft_clamp
from ...ops.neural_memory import per_head
from ..parts import Linear
from ..ssm import check_positive

#: Variations of the update and their defaults, by titans-pytorch's names.
EXTRAS: dict[str, Any] = {
    "momentum_order": 1,
    "learned_momentum_combine": False,
    "learned_combine_include_zeroth": False,
    "num_kv_per_token": 1,
    "pre_rmsnorm": True,
    "post_rmsnorm": False,
    "qk_rmsnorm": False,
    "per_parameter_lr_modulation": False,
    "max_mem_layer_modulation": 1.0,
    "per_head_learned_parameters": True,
    "attn_pool_chunks": False,
    "max_grad_norm": None,
    "spectral_norm_surprises": False,
    "gated_transition": False,
    "store_with_lookahead_value": False,
    "accept_weight_residual": False,
    "qkv_receives_diff_views": False,
}


class HeadNorm(nn.Module):
    """RMSNorm of ``(batch, heads, length, head_dim)`` with a gain per head, to which 1 is added."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(heads, 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return F.rms_norm(x, x.shape[-1:]) * (self.gamma + 1)


def check_extras(extras: Mapping[str, Any] | None, chunk: int, momentum: bool) -> dict[str, Any]:
    """All extras, those left out by their defaults.

    Raises:
        InvalidType: one that does not exist.
        InvalidValue: one that is not legal.
    """
    all_of = {**EXTRAS, **(extras or {})}
    unknown = sorted(set(all_of) - set(EXTRAS))
    if unknown:
        raise InvalidType(f"extras has no {', '.join(unknown)}: legal are {', '.join(EXTRAS)}.")
    check_positive(momentum_order=all_of["momentum_order"], num_kv_per_token=all_of["num_kv_per_token"])
    if all_of["learned_momentum_combine"] and (not momentum or all_of["momentum_order"] < 2):
        raise invalid("learned_momentum_combine", True, "it needs momentum of an order above 1")
    for name in ("attn_pool_chunks", "store_with_lookahead_value"):
        if all_of[name] and chunk == 1:
            raise invalid(name, True, "it needs a chunk of more than one token")
    for name, optional in (("max_grad_norm", True), ("max_mem_layer_modulation", False)):
        value = all_of[name]
        if optional and value is None:
            continue
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise invalid(name, value, "a positive number is needed")
    return all_of


class ChunkWrites(nn.Module):
    """Keys, values and gates of all chunks.

    Args:
        dim, heads, head_dim, chunk, max_lr: as in :class:`~foveate.mixers.titans.neural_memory.NeuralMemory`.
        orders: of momentum; 0: none.
        norm: the memory has a gain, the last of its weights.
        weights: number of the memory's weights.
        extras: see :data:`EXTRAS`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        chunk: int,
        max_lr: float,
        orders: int,
        norm: bool,
        weights: int,
        extras: dict[str, Any],
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.chunk, self.max_lr, self.norm = heads, head_dim, chunk, max_lr, norm
        self.count, self.extras = extras["num_kv_per_token"], extras
        self.store_norm = nn.RMSNorm(dim) if extras["pre_rmsnorm"] else nn.Identity()
        self.k_norm = HeadNorm(heads, head_dim) if extras["qk_rmsnorm"] else nn.Identity()
        self.to_keys = Linear(dim, heads * self.count * head_dim, bias=False)
        self.to_values = Linear(dim, heads * self.count * head_dim, bias=False)
        self.to_step = Linear(dim, heads * self.count)
        self.to_forget = Linear(dim, heads)
        self.to_momentum = Linear(dim, heads * orders) if orders else None
        combined = heads * (orders + extras["learned_combine_include_zeroth"])
        self.to_combine = Linear(dim, combined) if extras["learned_momentum_combine"] else None
        self.to_modulation = Linear(dim, heads * weights) if extras["per_parameter_lr_modulation"] else None
        self.to_mix = Linear(dim, heads) if extras["accept_weight_residual"] else None
        self.to_pool = Linear(dim, dim) if extras["attn_pool_chunks"] else None
        if self.to_pool is not None:  # begins as the mean
            nn.init.zeros_(self.to_pool.weight)
            nn.init.zeros_(self.to_pool.bias)

    def forward(
        self, tokens: Tensor, values: Tensor, complete: Tensor | None, starts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Chunks]:
        """What chunks of tokens write; batch and heads are one axis N.

        Args:
            tokens: ``(batch, chunks * chunk, dim)``.
            values: what values are made of; the tokens themselves unless these have several views.
            complete, starts: bool ``(batch, chunks)``, see :class:`~foveate.ops.memory_updates.Chunks`.

        Returns:
            Keys and values ``(N, chunks, writes, head_dim)``, step sizes ``(N, chunks, writes)``, divided by the
            channels that the loss is a mean of, and the gates.
        """
        x, chunk, real = self.store_norm(tokens), self.chunk, sum_dtype(tokens.dtype)
        values = x if values is tokens else self.store_norm(values)
        chunks = x.shape[1] // chunk
        k = in_chunks(self.k_norm(by_heads(self.to_keys(x), self.heads, self.head_dim)), chunks)
        v = in_chunks(by_heads(self.to_values(values), self.heads, self.head_dim), chunks)
        theta = self.max_lr / self.head_dim * torch.sigmoid(self.to_step(x).to(real))
        theta = theta.unflatten(2, (self.heads, self.count)).transpose(1, 2).flatten(2)
        theta = theta.flatten(0, 1).unflatten(1, (chunks, -1))
        if self.extras["store_with_lookahead_value"]:
            k, v, theta = k[:, :, :-1], v[:, :, 1:], theta[:, :, :-1]
        pooled = x.unflatten(1, (-1, chunk))
        if self.to_pool is None:
            pooled = pooled.mean(2)
        else:
            pooled = (pooled * self.to_pool(pooled).softmax(2)).sum(2)

        def gates(layer: Linear) -> Tensor:
            """``(several, N, chunks)``."""
            found = layer(pooled).to(real).unflatten(2, (self.heads, -1))
            return found.permute(3, 0, 2, 1).flatten(1, 2)

        modulation = None
        if self.to_modulation is not None:
            modulation = torch.sigmoid(gates(self.to_modulation)) * self.extras["max_mem_layer_modulation"]
            if self.norm:  # the gain is first there, last here
                modulation = modulation.roll(-1, 0)
        clamp = self.extras["max_grad_norm"]
        return (
            k,
            v,
            theta,
            Chunks(
                forget=torch.sigmoid(gates(self.to_forget))[0],
                momentum=None if self.to_momentum is None else torch.sigmoid(gates(self.to_momentum)),
                combine=None if self.to_combine is None else gates(self.to_combine).softmax(0),
                modulation=modulation,
                mix=None if self.to_mix is None else torch.sigmoid(gates(self.to_mix))[0],
                complete=None if complete is None else per_head(complete, self.heads),
                starts=None if starts is None else per_head(starts, self.heads),
                change=None if clamp is None else partial(soft_clamp, largest=clamp),
                shape=orthogonalise if self.extras["spectral_norm_surprises"] else None,
            ),
        )

    @property
    def per_chunk(self) -> int:
        """Writes of a chunk."""
        return self.chunk * self.count - self.extras["store_with_lookahead_value"]

    @property
    def steps(self) -> int:
        """Elementwise changes of an update: clamping, modulation, combining momenta."""
        done = (self.extras["max_grad_norm"] is not None, self.to_modulation is not None, self.to_combine is not None)
        return sum(done)

    @property
    def _gates(self) -> tuple[Linear | None, ...]:
        """Layers that read chunks."""
        return self.to_forget, self.to_momentum, self.to_combine, self.to_modulation, self.to_mix

    def flops(self, chunks: int) -> int:
        """FLOPs of the projections of one sample."""
        tokens = chunks * self.chunk
        layers = [(self.to_keys, tokens), (self.to_values, tokens), (self.to_step, tokens), (self.to_pool, tokens)]
        layers += [(layer, chunks) for layer in self._gates]
        return sum(linear_flops(n, layer.in_features, layer.out_features) for layer, n in layers if layer is not None)


def by_heads(x: Tensor, heads: int, head_dim: int) -> Tensor:
    """``(batch, length, heads * several * head_dim)`` to ``(batch, heads, length * several, head_dim)``."""
    return x.unflatten(2, (heads, -1, head_dim)).transpose(1, 2).flatten(2, 3)


def in_chunks(x: Tensor, chunks: int) -> Tensor:
    """``(batch, heads, length, head_dim)`` to ``(N, chunks, ..., head_dim)``, in the dtype of sums."""
    return x.to(sum_dtype(x.dtype)).flatten(0, 1).unflatten(1, (chunks, -1))
