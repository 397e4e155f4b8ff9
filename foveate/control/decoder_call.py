"""One call of an attention under a control: what it gets, and what is kept with the user's cache.

See :class:`~foveate.control.decoders.DecoderAttention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import InvalidValue

if TYPE_CHECKING:
    from .decoders import DecoderAttention


@dataclass(frozen=True)
class Part:
    """A control in one layer: which heads are its own (None: all), and the token of its attachment."""

    control: DecoderAttention
    layer: int
    heads: tuple[int, ...] | None
    token: int


@dataclass(frozen=True)
class ModelPass:
    """What is known of a call of the whole decoder: real tokens, bool ``(batch, tokens)``, if ``known``."""

    padding: Tensor | None
    known: bool


@dataclass(frozen=True)
class OwnAttention:
    """A module's attention as the model has it: by its own configuration, at the time of the call."""

    config: Any
    functions: Any
    eager: Callable[..., tuple[Tensor, Any]]

    def __call__(self, module: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``(batch, queries, heads, head_dim)``."""
        name = self.config._attn_implementation
        if name == "eager" and getattr(module, "reorder_and_upcast_attn", False):
            return module._upcast_and_reordered_attn(*args)[0]
        return self.functions.get_interface(name, self.eager)(module, *args, **kwargs)[0]


@dataclass(frozen=True)
class LayerPass:
    """What is known of a call of one layer's attention."""

    model: ModelPass
    parts: tuple[Part, ...]
    cache: Any
    angles: tuple[Tensor, Tensor] | None
    rotary: nn.Module | None
    own: OwnAttention

    def angles_at(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the model's rotary angles at int64 ``(batch or 1, tokens)`` positions.

        Raises:
            InvalidValue: the angles of this model change with the length of the text, or it keeps them elsewhere.
        """
        kind = getattr(self.rotary, "rope_type", None)
        if self.rotary is None or kind in ("dynamic", "longrope"):
            where = f"of kind {kind!r} change with the length of the text" if self.rotary else "are not in rotary_emb"
            names = " and ".join(sorted({type(part.control).__name__ for part in self.parts}))
            raise InvalidValue(f"{names} cannot turn keys to other positions: this model's rotary angles {where}.")
        return self.rotary(x, positions)

    def with_part(self, part: Part) -> LayerPass:
        """The same, with one more control in it."""
        return replace(self, parts=(*self.parts, part))

    def call(self, part: Part, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, kwargs: Any) -> DecoderCall:
        """What a control's ``attend`` gets."""
        total = k.shape[2] if self.cache is None else int(self.cache.get_seq_length(module.layer_idx))
        filled, new = min(total, k.shape[2]), q.shape[2]
        k, v = k[:, :, :filled], v[:, :, :filled]
        window = kwargs.get("sliding_window") or 0
        window = window if filled > window else 0
        name = type(part.control).__name__
        if window and not part.control.keeps_window:
            raise InvalidValue(
                f"{name} cannot keep the sliding window of {window} tokens that layer {part.layer} has of its own, and "
                f"{filled} tokens go beyond it: leave such layers out with layers=."
            )
        real = _real_keys(self.model, mask, name, q.shape[0], new, filled, total, window)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(total - new, total, device=q.device)[None]
        groups = q.shape[1] // k.shape[1]
        if part.heads is not None:
            kept = key_heads(part.heads, groups)
            q, k, v = q[:, list(part.heads)], k[:, kept], v[:, kept]
        scale = kwargs.get("scaling")
        return DecoderCall(
            module=module,
            layer=part.layer,
            heads=part.heads,
            q=q,
            k=k,
            v=v,
            mask=real,
            scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
            query_positions=positions,
            cached=filled - new,
            dropped=total - filled,
            window=window,
            _pass=self,
            _token=part.token,
        )


@dataclass
class DecoderCall:
    """One call of a layer's attention.

    Attributes:
        module: the model's attention module.
        layer: number of the layer.
        heads: numbers of the query heads; None: all.
        q: queries, rotated, ``(batch, heads, queries, head_dim)``.
        k, v: keys (rotated) and values, cached and new, ``(batch, key heads, keys, head_dim)``; key heads divide heads.
            The queries are the last of the tokens: query ``i`` stands at key ``cached + i``.
        mask: which keys are real tokens, bool ``(batch, keys)``; None: all.
        scale: factor of the scores.
        query_positions: the model's position ids of the queries, int64 ``(batch or 1, queries)``.
        cached: how many of the keys lie before the queries.
        dropped: how many tokens before those a sliding cache no longer holds.
        window: the model's own sliding window where it cuts something off, 0 elsewhere: a query sees this many tokens,
            itself among them.
    """

    module: Any
    layer: int
    heads: tuple[int, ...] | None
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    query_positions: Tensor
    cached: int
    dropped: int
    window: int
    _pass: LayerPass = field(repr=False)
    _token: int = field(repr=False)
    _state: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def state(self) -> dict[str, Any]:
        """What the control keeps for this layer with the user's cache; a new dict where there is no cache.

        Tensors with the batch as first axis, and objects with ``reorder(index)``, follow the cache's batch (beams). It
        is empty when a sequence begins, and again after the cache was cropped, reset, or used without asking for the
        state: what is in it has seen exactly the tokens before the queries.
        """
        if self._state is None:
            self._state = self._state_of_cache() if self._pass.cache is not None else {}
        return self._state

    def _state_of_cache(self) -> dict[str, Any]:
        layer = self._pass.cache.layers[self.module.layer_idx]
        states = layer.__dict__.get("_foveate")
        if states is None:
            states = layer._foveate = CacheStates(layer)
        before = self.dropped + self.cached
        return states.of(self._token, before, before + self.q.shape[2], self.q.shape[0])

    @property
    def rotary(self) -> nn.Module | None:
        """The model's rotary embedding, ``(x, positions)`` to cosines and sines; None: it has none."""
        return self._pass.rotary

    def unrotated(self) -> tuple[Tensor, Tensor]:
        """``q`` and ``k`` as they were before rotary position embedding (after query and key norms).

        The angles of cached keys follow from the queries' positions: real tokens are taken to stand one after another.
        """
        if self._pass.angles is None:
            return self.q, self.k
        cos, sin = self._pass.angles
        q = _turned_back(self.q, cos, sin)
        if self.cached:
            before = self._pass.angles_at(self.k, self._cached_positions())
            size = max(before[0].shape[0], cos.shape[0])
            earlier, later = (tuple(t.expand(size, -1, -1) for t in pair) for pair in (before, (cos, sin)))
            cos, sin = (torch.cat([e, n], 1) for e, n in zip(earlier, later, strict=True))
        return q, _turned_back(self.k, cos, sin)

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x``, not rotated, as the model would rotate it to ``positions``; ``x`` itself where it has no rotation.

        Args:
            x: ``(batch, any, tokens, head_dim)``.
            positions: int64 ``(batch or 1, tokens)``.
        """
        if self._pass.angles is None:
            return x
        cos, sin = self._pass.angles_at(x, positions)
        return turned(x, cos, sin)

    def turned_by(self, x: Tensor, steps: Tensor) -> Tensor:
        """``x``, rotated, moved on by ``steps`` positions, int64 ``(batch or 1, tokens)``."""
        if self._pass.angles is None:
            return x
        cos, sin = self._pass.angles_at(x, steps)
        size = (cos.square() + sin.square()).sqrt()  # some rotary kinds scale by more than 1, which x has had already
        return turned(x, cos / size, sin / size)

    def _cached_positions(self) -> Tensor:
        """Position ids of the cached keys, int64 ``(batch or 1, cached)``."""
        positions = self.query_positions
        if self.mask is None:
            return positions[:, :1] - torch.arange(self.cached, 0, -1, device=positions.device)
        positions = positions.expand(self.mask.shape[0], -1)
        before, new = self.mask[:, : self.cached], self.mask[:, self.cached :]
        # The first real query; what lies between it and the cache is padding, which takes up no position.
        first = positions.gather(1, new.int().argmax(1, keepdim=True))
        later = before.int().flip(1).cumsum(1).flip(1)
        return (first - later).clamp_min(0)


class CacheStates:
    """The states of controls that live with one layer of a user's cache, and follow what is done to its batch."""

    def __init__(self, layer: Any) -> None:
        self.kept: dict[int, tuple[int, int, dict[str, Any]]] = {}
        for name in (*_BATCH, *_BACK):
            if hasattr(layer, name):
                # On this one object, in front of the method of its class; it is copied and goes away with it.
                setattr(layer, name, partial(_and_states, self, name, layer))

    def of(self, token: int, before: int, after: int, batch: int) -> dict[str, Any]:
        """The state of an attachment that has seen ``before`` tokens, else a new one; ``after`` will be seen."""
        seen, size, state = self.kept.get(token, (0, 0, {}))
        if not before or (seen, size) != (before, batch):
            state = {}
        self.kept[token] = (after, batch, state)
        return state

    def select(self, index_of: Callable[[int], Tensor]) -> None:
        """Row ``i`` of the batch becomes what row ``index_of(batch)[i]`` was."""
        for token, (seen, size, state) in self.kept.items():
            index = index_of(size)

            def move(value: Any, index: Tensor = index, size: int = size) -> Any:
                if hasattr(value, "reorder"):
                    return value.reorder(index)
                if isinstance(value, Tensor) and value.ndim and value.shape[0] == size:
                    return value.index_select(0, index.to(value.device))
                return value

            moved = tree_map(move, state, is_leaf=lambda value: hasattr(value, "reorder"))
            self.kept[token] = (seen, index.numel(), moved)


#: What transformers' cache layers do to their batch, as the rows that are taken.
_BATCH: dict[str, Callable[[int, Any], Tensor]] = {
    "reorder_cache": lambda size, index: index,
    "batch_repeat_interleave": lambda size, repeats: torch.arange(size).repeat_interleave(repeats),
    "batch_select_indices": lambda size, indices: torch.arange(size)[indices.cpu()],
}
#: What takes tokens back: no state is true any more.
_BACK = ("crop", "reset")


def _and_states(states: CacheStates, name: str, layer: Any, *args: Any, **kwargs: Any) -> None:
    """The method of a cache layer, then the same for the states that live with it."""
    getattr(type(layer), name)(layer, *args, **kwargs)
    if name in _BACK:
        states.kept.clear()
    else:
        (given,) = (*args, *kwargs.values())
        states.select(lambda size: _BATCH[name](size, given))


def cache_of(kwargs: dict[str, Any]) -> Any:
    """The cache among a call's arguments, by any of the names that families and versions give it, or None."""
    found = next((kwargs[n] for n in ("cache", "past_key_values", "layer_past") if kwargs.get(n) is not None), None)
    return getattr(found, "self_attention_cache", found)


def padding_of(given: dict[str, Any], name: str, cached: bool) -> tuple[Tensor | None, bool]:
    """Which tokens are real, bool ``(batch, tokens)`` or None for all, and whether that is known from ``given``."""
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if isinstance(mask, dict) or (mask is not None and len(mask.shape) != 2):
        return None, False
    if mask is None:
        # transformers reads positions that restart as documents packed into a row, and keeps them apart.
        if (
            positions is not None
            and not cached
            and (torch.compiler.is_compiling() or bool((positions.diff() != 1).any()))
        ):
            raise InvalidValue(
                f"position_ids without attention_mask and cache may mean packed documents, which {name} cannot keep "
                f"apart: give each document a row, and an attention_mask."
            )
        return None, True
    mask = mask.bool()
    return (None if not torch.compiler.is_compiling() and bool(mask.all()) else mask), True


def _real_keys(
    model: ModelPass, mask: Any, name: str, batch: int, new: int, filled: int, total: int, window: int
) -> Tensor | None:
    """Which keys are real, bool ``(batch, filled)``; None: all."""
    if model.known:
        if model.padding is None:
            return None
        real = nn.functional.pad(model.padding[:, :total], (0, max(0, total - model.padding.shape[1])))
        return real[:, total - filled :]
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[1] != 1:
        raise InvalidValue(f"{name} cannot read an attention mask of type {type(mask).__name__}: give a 2-D mask.")
    seen = (mask if mask.dtype == torch.bool else mask == 0)[:, 0, :, :filled].expand(batch, -1, -1)
    real = seen.any(1)
    if not torch.compiler.is_compiling():
        away = torch.arange(filled - new, filled, device=mask.device)[:, None] - torch.arange(
            filled, device=mask.device
        )
        causal = (away >= 0) & (away < window if window else True)
        if not torch.equal(seen, real[:, None] & causal):
            raise InvalidValue(
                f"this 4-D attention mask is not possible: {name} is causal and knows padding, so give a 2-D mask."
            )
        if bool(real.all()):
            return None
    return real


def key_heads(heads: tuple[int, ...], groups: int) -> list[int]:
    """The key heads of chosen query heads: each once where whole groups are chosen, else one per query head."""
    each = [h // groups for h in heads]
    kept = sorted(set(each))
    whole = tuple(g * groups + i for g in kept for i in range(groups)) == heads
    return kept if whole else each


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first ``cos.shape[-1]`` channels by ``(batch or 1, tokens, channels)`` angles, halves as pairs."""
    size = cos.shape[-1]
    first, second = x[..., : size // 2], x[..., size // 2 : size]
    out = x[..., :size] * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
    return torch.cat([out.to(x.dtype), x[..., size:]], -1)


def _turned_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Undo a rotation of the first ``cos.shape[-1]`` channels by ``(batch or 1, tokens, channels)`` angles."""
    size = cos.shape[-1]
    turned, rest = x[..., :size].float(), x[..., size:]
    cos, sin = cos[:, None].float(), sin[:, None].float()
    first, second = turned.chunk(2, -1)
    # Some rotary kinds scale their angles' cosine and sine; the square of that scale comes out here.
    back = (turned * cos - torch.cat([-second, first], -1) * sin) / (cos.square() + sin.square())
    return torch.cat([back.to(x.dtype), rest], -1)
