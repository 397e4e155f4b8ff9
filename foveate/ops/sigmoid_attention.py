"""Sigmoid attention: ``sigmoid(q k^T scale + b) v``, every key weighed by itself.

Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention" (ICLR 2025, arXiv 2409.04431). Rows
of weights do not sum to one: with the constant ``b = -ln n`` for n keys, a weight is near 1/n at the start of training,
where the output would otherwise be n/2 times as large as a softmax's.

Because no row is normalised, the outputs over disjoint sets of keys simply add. The fast form walks through tiles of
queries times keys (FlashSigmoid, section 4 and algorithm 1) and never holds more than one tile per head; its backward
pass, by hand, computes the weights P again tile by tile and keeps nothing but the inputs::

    dV = P^T dO,    dS = P (1 - P) dO V^T,    dQ = dS K scale,    dK = dS^T Q scale

The CPU kernel does the same for what has no slopes, documents and masks of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose, current_backend
from .handwritten import Results, handwritten, sample_groups, sum_dtype
from .native import sigmoid_attention as native

#: Edge of a tile unless told: on CPU, 128 to 512 were equally fast, 64 and 1024 slower.
BLOCK = 256
#: Weights (samples, heads, queries, keys) that a tile should have at most; samples are taken in groups of that size.
TILE_NUMBERS = 2**20


def recommended_bias(n: int) -> float:
    """The paper's constant for n keys, ``-ln n``.

    Raises:
        InvalidValue: n is not positive.
    """
    if n < 1:
        raise InvalidValue(f"n={n!r} is not possible: the bias -ln n is for at least one key.")
    return -math.log(n)


@register("op", "sigmoid_attention", system="sigmoid_attention")
def sigmoid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: float | Tensor | None = None,
    scale: float | Tensor | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    window: tuple[int, int] = (-1, -1),
    block: int = BLOCK,
) -> Tensor:
    """Attention with a sigmoid for each pair instead of a softmax over each row, in O(length) memory.

    Args:
        q: ``(batch, heads, length, d)``.
        k: ``(batch, heads, key_length, d)``.
        v: ``(batch, heads, key_length, e)``.
        bias: added to all scores: a number, or a tensor ``()``, ``(1,)`` or ``(heads,)``; None: ``-ln key_length``.
            In a stream give a number: what depends on the length so far would not equal the sequence read at once.
        scale: factor on the products, a number or a tensor ``()`` or ``(1,)``; None: ``1 / sqrt(d)``.
        causal: query i sees keys up to ``key_length - length + i``: the last query sees every key.
        mask: bool, True = visible: ``(batch, key_length)`` for keys, or broadcastable to
            ``(batch, heads, length, key_length)`` for pairs.
        segments: int64 ``(batch, length)``, for as many keys as queries: only tokens of equal number see each other.
        alibi_slopes: ``(heads,)``: ``slope |distance|`` is subtracted from the scores.
        positions, key_positions: int64 ``(length,)`` or ``(batch, length)``, that distances are taken of; None: keys
            count from 0, and the last query stands at the last key.
        window: keys further than ``(left, right)`` from the query's own place are not seen; -1: no limit.
        block: edge of a tile, for any length. Changes speed only.

    Returns:
        ``(batch, heads, length, e)`` in the dtype of ``v``; sums are made in float32 (float64 for float64 input). A
        query that sees no key gets zeros.

    Raises:
        InvalidValue: shapes that do not fit, a bias that is NaN, more queries than keys with ``causal``, an illegal
            window or block.
        InvalidType: mixed dtypes, a mask that is not bool, numbers that are not whole.
    """
    bias = recommended_bias(max(1, k.shape[-2])) if bias is None else bias
    _check(q, k, v, bias, scale, causal, mask, segments, alibi_slopes, (positions, key_positions), window, block)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    bias, scale = (
        x if isinstance(x, Tensor) else torch.full((), x, dtype=sum_dtype(q.dtype), device=q.device)
        for x in (bias, scale)
    )
    learned = any(x is not None and x.requires_grad for x in (bias, scale, alibi_slopes))
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    here, there = _places(q, k)
    positions = (here if positions is None else positions).view(-1, q.shape[2])
    key_positions = (there if key_positions is None else key_positions).view(-1, k.shape[2])
    left, right = window[0], 0 if causal else window[1]
    asked = {"native": native.fits, "auto": native.pays}.get(current_backend())
    kernel = native.sigmoid_attention_native if asked and asked(q, k, v, alibi_slopes, mask, segments) else None
    run = choose(_reference, _tiled, kernel)
    rest = (positions, key_positions, left, right, block, learned)
    return run(q, k, v, bias, scale, alibi_slopes, mask, segments, *rest)[0]


def _places(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Where queries and keys stand: keys from 0 on, the last query at the last key."""
    length, key_length = q.shape[2], k.shape[2]
    there = torch.arange(key_length, device=q.device)
    return torch.arange(length, device=q.device) + (key_length - length), there


def sigmoid_flops(
    length: int,
    key_length: int,
    heads: int,
    d: int,
    e: int,
    batch: int = 1,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    block: int = BLOCK,
) -> int:
    """FLOPs of the tiled forward pass, 2 per multiply-add: tiles that nothing is visible in are skipped."""
    plan = _tiles(length, key_length, window[0], 0 if causal else window[1], block)
    return 2 * batch * heads * (d + e) * sum(t.queries * t.keys for t in plan)


class Tile(NamedTuple):
    """Queries ``i_0 ... i_1 - 1`` times keys ``j_0 ... j_1 - 1``; ``cut``: window or causality hides some pairs."""

    i_0: int
    i_1: int
    j_0: int
    j_1: int
    cut: bool

    @property
    def queries(self) -> int:
        return self.i_1 - self.i_0

    @property
    def keys(self) -> int:
        return self.j_1 - self.j_0


def _tiles(length: int, key_length: int, left: int, right: int, block: int) -> Iterator[Tile]:
    """The tiles with a visible pair, queries in the outer loop; ``left``, ``right``: -1 is no limit."""
    offset = key_length - length
    if isinstance(length, torch.SymInt) or isinstance(key_length, torch.SymInt):  # exported for every length: one tile
        yield Tile(0, length, 0, key_length, left >= 0 or right >= 0)
        return
    for i_0 in range(0, length, block):
        i_1 = min(length, i_0 + block)
        start = 0 if left < 0 else max(0, i_0 + offset - left)
        stop = key_length if right < 0 else min(key_length, i_1 + offset + right)
        for j_0 in range(start, stop, block):
            j_1 = min(stop, j_0 + block)
            too_late = right >= 0 and j_1 - 1 > i_0 + offset + right
            too_early = left >= 0 and j_0 < i_1 - 1 + offset - left
            yield Tile(i_0, i_1, j_0, j_1, too_late or too_early)


class _Scores:
    """What a tile's weights depend on besides queries and keys, for a group of samples.

    Args:
        bias: in the precision of the sums.
        given: slopes, mask, segments, positions and key positions, as the op has them.
        limits: how far the last query is behind the last key, and the window.
        group: the samples.
    """

    def __init__(self, bias: Tensor, given: Sequence[Any], limits: tuple[int, int, int], group: slice) -> None:
        slopes, mask, segments, positions, key_positions = given

        def pick(given: Tensor) -> Tensor:
            return given if given.shape[0] == 1 else given[group]

        self.bias = bias.view(-1, 1, 1)
        self.slopes = None if slopes is None else slopes.to(bias.dtype).view(-1, 1, 1)
        self.mask = None if mask is None else pick(mask)
        self.segments = None if segments is None else pick(segments)
        self.positions, self.key_positions = pick(positions), pick(key_positions)
        self.offset, self.left, self.right = limits

    def distance(self, tile: Tile) -> Tensor:
        """``(1 or batch, 1, queries, keys)``."""
        here = self.positions[:, tile.i_0 : tile.i_1, None]
        return (here - self.key_positions[:, None, tile.j_0 : tile.j_1]).abs().to(self.bias.dtype).unsqueeze(1)

    def hidden(self, tile: Tile) -> Tensor | None:
        """Bool, broadcastable to the tile: pairs that must not see each other."""
        hidden = []
        if tile.cut:
            i = torch.arange(tile.i_0, tile.i_1, device=self.bias.device)[:, None] + self.offset
            j = torch.arange(tile.j_0, tile.j_1, device=self.bias.device)
            hidden += [j > i + self.right] if self.right >= 0 else []
            hidden += [j < i - self.left] if self.left >= 0 else []
        if self.mask is not None:
            rows = slice(tile.i_0, tile.i_1) if self.mask.shape[2] > 1 else slice(None)
            columns = slice(tile.j_0, tile.j_1) if self.mask.shape[3] > 1 else slice(None)
            hidden.append(~self.mask[:, :, rows, columns])
        if self.segments is not None:
            here, there = self.segments[:, tile.i_0 : tile.i_1, None], self.segments[:, None, tile.j_0 : tile.j_1]
            hidden.append((here != there).unsqueeze(1))
        if not hidden:
            return None
        for further in hidden[1:]:
            hidden[0] = hidden[0] | further
        return hidden[0]

    def weights(self, q: Tensor, k: Tensor, tile: Tile) -> Tensor:
        """The tile's weights, newly made; ``q (..., queries, d)`` scaled, ``k (..., keys, d)``."""
        scores = q @ k.transpose(-1, -2)
        scores += self.bias
        if self.slopes is not None:
            scores -= self.slopes * self.distance(tile)
        hidden = self.hidden(tile)
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        return scores.sigmoid_()


def _groups(q: Tensor, block: int) -> list[slice]:
    """Samples that are computed together: as many as keep a tile in the cache."""
    if torch.compiler.is_compiling():  # sizes may be unknown
        return sample_groups(1, 1)
    heads, length = q.shape[1:3]
    return sample_groups(q.shape[0], TILE_NUMBERS // (heads * min(block, length) * block))


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    scale: Tensor,
    slopes: Tensor | None,
    mask: Tensor | None,
    segments: Tensor | None,
    positions: Tensor,
    key_positions: Tensor,
    left: int,
    right: int,
    block: int,
    learned: bool,
) -> tuple[Tensor]:
    """The definition, with the whole matrix of weights."""
    real = sum_dtype(q.dtype)
    scores = (q.to(real) @ k.to(real).transpose(-1, -2)) * scale.to(real)
    if slopes is not None:
        distance = (positions[:, None, :, None] - key_positions[:, None, None, :]).abs()
        scores = scores - slopes[:, None, None] * distance
    here, there = _places(q, k)
    here = here[:, None]
    visible = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=q.device)
    visible = visible & (there <= here + right) if right >= 0 else visible
    visible = visible & (there >= here - left) if left >= 0 else visible
    visible = visible if mask is None else visible & mask
    if segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    weights = torch.sigmoid(scores + bias.to(real).view(-1, 1, 1)) * visible
    return ((weights @ v.to(real)).to(v.dtype),)


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor]:
    *given, left, right, block, _ = rest
    real, length, key_length = sum_dtype(q.dtype), q.shape[2], k.shape[2]
    scale = scale.to(real)
    out = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=real)
    for group in _groups(q, block):
        scores = _Scores(bias.to(real), given, (key_length - length, left, right), group)
        for t in _tiles(length, key_length, left, right, block):
            rows = q[group, :, t.i_0 : t.i_1].to(real) * scale
            weights = scores.weights(rows, k[group, :, t.j_0 : t.j_1].to(real), t)
            out[group, :, t.i_0 : t.i_1] += weights @ v[group, :, t.j_0 : t.j_1].to(real)
    return (out.to(v.dtype),)


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Tensor, *rest: Any) -> Results:
    *given, left, right, block, learned = rest
    slopes = given[0]
    real, length, key_length = sum_dtype(q.dtype), q.shape[2], k.shape[2]
    factor = scale.to(real)
    grad_q, grad_k, grad_v = (torch.zeros(t.shape, dtype=real, device=t.device) for t in (q, k, v))
    grad_bias = torch.zeros(q.shape[1], dtype=real, device=q.device)
    grad_slopes = torch.zeros_like(grad_bias)
    for group in _groups(q, block):
        scores = _Scores(bias.to(real), given, (key_length - length, left, right), group)
        for t in _tiles(length, key_length, left, right, block):
            rows = q[group, :, t.i_0 : t.i_1].to(real) * factor
            pull = grad[group, :, t.i_0 : t.i_1].to(real)
            keys, values = (x[group, :, t.j_0 : t.j_1].to(real) for x in (k, v))
            weights = scores.weights(rows, keys, t)
            grad_v[group, :, t.j_0 : t.j_1] += weights.transpose(-1, -2) @ pull
            inner = torch.ops.aten.sigmoid_backward(pull @ values.transpose(-1, -2), weights)
            grad_q[group, :, t.i_0 : t.i_1] += inner @ keys
            grad_k[group, :, t.j_0 : t.j_1] += inner.transpose(-1, -2) @ rows
            if learned:
                grad_bias += inner.sum((0, 2, 3))
                if slopes is not None:
                    grad_slopes -= (inner * scores.distance(t)).sum((0, 2, 3))
    grad_bias = grad_bias.sum().expand(bias.shape) if bias.numel() == 1 else grad_bias
    grad_scale = (grad_q * q).sum().view(scale.shape) if learned else torch.zeros_like(scale)
    of_slopes = None if slopes is None else grad_slopes
    return grad_q.mul_(factor), grad_k, grad_v, grad_bias, grad_scale, of_slopes, None, None, None, None


def _shapes(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor]:
    return (torch.empty((*q.shape[:3], v.shape[3]), dtype=v.dtype, device=v.device),)


_tiled = handwritten(
    "sigmoid_attention",
    "Tensor q, Tensor k, Tensor v, Tensor bias, Tensor scale, Tensor? slopes, Tensor? mask, Tensor? segments, "
    "Tensor positions, Tensor key_positions, int left, int right, int block, bool learned",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: float | Tensor,
    scale: float | Tensor | None,
    causal: bool,
    mask: Tensor | None,
    segments: Tensor | None,
    slopes: Tensor | None,
    places: tuple[Tensor | None, Tensor | None],
    window: tuple[int, int],
    block: int,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise InvalidValue(f"q, k and v must agree in batch and heads, q and k in width, k and v in length: {shapes}.")
    if q.shape[2] < 1 or k.shape[2] < 1:
        raise InvalidValue(f"a sequence is empty ({shapes}): at least one token is needed.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if causal and q.shape[2] > k.shape[2]:
        raise InvalidValue(f"causal=True is not possible with more queries than keys ({shapes}): queries are the last.")
    batch, heads, length, _ = q.shape
    if isinstance(bias, Tensor):
        if tuple(bias.shape) not in ((), (1,), (heads,)):
            raise InvalidValue(
                f"bias has shape {tuple(bias.shape)}: one number or one per head, ({heads},), is needed."
            )
    elif math.isnan(bias):
        raise InvalidValue(f"bias={bias!r} is not possible: a number is needed, such as -ln of the number of keys.")
    if isinstance(scale, Tensor) and tuple(scale.shape) not in ((), (1,)):
        raise InvalidValue(f"scale has shape {tuple(scale.shape)}: one number is needed.")
    if len(window) != 2 or not all(isinstance(w, int) and w >= -1 for w in window):
        raise InvalidValue(
            f"window={window!r} is not possible: (left, right) with numbers of keys, or -1 for no limit."
        )
    if not isinstance(block, int) or block < 1:
        raise InvalidValue(f"block={block!r} is not possible: a positive whole number is needed.")
    if mask is not None and mask.dtype != torch.bool:
        raise InvalidType(f"mask must be bool (True = visible), not {mask.dtype}.")
    pairs = (batch, heads, length, k.shape[2])
    if mask is not None and tuple(mask.shape) != (batch, k.shape[2]) and not _fits(mask, pairs):
        raise InvalidValue(
            f"mask has shape {tuple(mask.shape)}: {(batch, k.shape[2])} fits, or what broadcasts to {pairs}."
        )
    if slopes is not None and tuple(slopes.shape) != (heads,):
        raise InvalidValue(f"alibi_slopes have shape {tuple(slopes.shape)}: one per head, ({heads},), is needed.")
    whole = {"segments": (segments, length), "positions": (places[0], length), "key_positions": (places[1], k.shape[2])}
    for name, (given, size) in whole.items():
        legal = ((batch, size),) if name == "segments" else ((size,), (batch, size))
        if given is not None and given.is_floating_point():
            raise InvalidType(f"{name} must be int64, not {given.dtype}.")
        if given is not None and tuple(given.shape) not in legal:
            raise InvalidValue(f"{name} have shape {tuple(given.shape)}: {' or '.join(map(str, legal))} is needed.")
    if segments is not None and length != k.shape[2]:
        raise InvalidValue(
            f"segments are not possible with {length} queries and {k.shape[2]} keys: they must be equal."
        )


def _fits(given: Tensor, full: tuple[int, ...]) -> bool:
    return given.ndim == 4 and all(a in (1, b) for a, b in zip(given.shape, full, strict=True))
