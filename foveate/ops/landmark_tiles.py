"""The fast form of landmark attention: tiles of queries over keys in blocks, with a backward pass written by hand.

Where blocks have one length, keys need only be padded to whole blocks and a tile reads no key behind its end; blocks of
other lengths are laid out as such first. Queries, keys, values and outputs are all that is kept. With the names of
:mod:`foveate.ops.landmark_attention`, ``dw = do v^T``, ``dg_b = sum_j p_j dw_j`` over block b and ``D = o . do``, the
gradients of the upper softmax's arguments (``s_L(b)``, or the own block's log-sum) and of the tokens' scores are::

    dl_b = g_b (dg_b - D)
    ds_j = p_j (g_b (dw_j - dg_b) + [b is the query's own block] dl_b)
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .handwritten import Results, handwritten, sample_groups, sum_dtype

Softmax = Literal["grouped", "plain", "ignored"]
KINDS = get_args(Softmax)
#: Queries of a tile, about, and scores that are computed at once, about: what stays in a processor's cache.
TILE, CACHED = 64, 1 << 20


def tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_size: int | None,
    is_landmark: Tensor | None,
    mask: Tensor | None,
    segments: Tensor | None,
    group_dropout: float,
    softmax: Softmax,
    scale: float,
) -> Tensor:
    """The fast form; arguments as :func:`foveate.ops.landmark_attention.reference` has them."""
    length = q.shape[2]
    time = torch.arange(length, device=q.device)
    if block_size is not None:
        width, missing = block_size + 1, -length % (block_size + 1)
        k, v = F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing))
        own, places = (time // width)[None], F.pad(time, (0, missing), value=length)[None]
        visible = None if mask is None else F.pad(mask, (0, missing))
        key_segments = None if segments is None else F.pad(segments, (0, missing))
    else:
        assert is_landmark is not None
        own, places, width = _blocks_anywhere(is_landmark.expand(len(q), -1))
        index = places.clamp(max=length - 1)
        k, v = (t.take_along_dim(index[:, None, :, None], 2) for t in (k, v))
        visible = None if mask is None else mask.take_along_dim(index, 1)
        key_segments = None if segments is None else segments.take_along_dim(index, 1)
    keep = None
    if group_dropout:
        keep = F.dropout(q.new_ones(*q.shape[:3], places.shape[1] // width), group_dropout)
    kind = KINDS.index(softmax)
    return _op(q, k, v, own, places, visible, segments, key_segments, keep, width, kind, block_size is not None, scale)[
        0
    ]


def _blocks_anywhere(landmark: Tensor) -> tuple[Tensor, Tensor, int]:
    """Blocks of any lengths laid out as blocks of one width, the landmark last.

    Returns:
        Each query's block ``(batch, length)``; for each place of the blocks the key that stands there, or the length
        where none does, ``(batch, blocks * width)``; and the width.
    """
    batch, length = landmark.shape
    block = landmark.cumsum(1) - landmark.long()
    time = torch.arange(length, device=landmark.device).expand(batch, -1)
    first = torch.full_like(time, length).scatter_reduce(1, block, time, "amin").take_along_dim(block, 1)
    inside = (time - first).masked_fill(landmark, -1)
    width, blocks = int(inside.max()) + 2, int(block.max()) + 1
    inside = inside.masked_fill(landmark, width - 1)
    places = torch.full((batch, blocks * width), length, device=landmark.device)
    return block, places.scatter(1, block * width + inside, time), width


def tile_rows(width: int) -> int:
    """Queries of a tile for blocks of this width, landmark included: whole blocks."""
    return width * max(1, round(TILE / width))


def attention_flops(length: int, block_size: int, width: int, value_width: int) -> int:
    """FLOPs of the tiled form's products for one head of one sequence: each tile reads the keys up to its end."""
    rows, padded = tile_rows(block_size + 1), length + -length % (block_size + 1)
    tiles = ((min(start + rows, length) - start, min(start + rows, padded)) for start in range(0, length, rows))
    return sum(2 * queries * keys * (width + value_width) for queries, keys in tiles)


def block_softmax(scores: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Both levels for scores in blocks: the weights are ``p * g[..., None]``.

    Args:
        scores: ``(..., queries, blocks, width)``, -inf where a key is not seen; the last one of each block is its
            landmark. It is written over.
        own: bool, broadcastable to ``(..., queries, blocks)``: each query's own block.

    Returns:
        p ``(..., queries, blocks, width)``, zero for landmarks, and g ``(..., queries, blocks)``.
    """
    gate = scores[..., -1].clone()
    scores[..., -1] = -math.inf
    largest = scores.detach().amax(-1)  # a mere unit: it carries no gradient
    largest = largest.masked_fill(largest.isinf(), 0.0)
    p = scores.sub_(largest[..., None]).exp_()
    total = p.sum(-1)
    empty = total < 0.5  # the largest score alone contributes 1
    total = total.masked_fill(empty, 1.0)
    mass = (largest + total.log()).masked_fill(empty, -math.inf)
    p = p / total[..., None] if torch.is_grad_enabled() else p.div_(total[..., None])
    return p, _safe_softmax(torch.where(own, mass, gate))


def _safe_softmax(scores: Tensor) -> Tensor:
    """Softmax along the last axis; zeros where nothing is finite."""
    largest = scores.detach().amax(-1, keepdim=True)
    e = (scores - largest.masked_fill(largest.isinf(), 0.0)).exp()
    total = e.sum(-1, keepdim=True)
    return e / total.where(total > 0.5, 1.0)


def plain_weights(scores: Tensor, own: Tensor, kind: int) -> Tensor:
    """One softmax over scores in blocks, see :func:`block_softmax`: kind 1 hides the own landmark, 2 all of them."""
    scores[..., -1] = scores[..., -1].masked_fill(own, -math.inf) if kind == 1 else -math.inf
    return _safe_softmax(scores.flatten(-2)).view_as(scores)


def _tile(
    q: Tensor,
    k: Tensor,
    own: Tensor,
    places: Tensor,
    visible: Tensor | None,
    row_segments: Tensor | None,
    key_segments: Tensor | None,
    start: int,
    width: int,
    kind: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One tile's own blocks, and p and g, or the weights alone where there is one softmax."""
    scores = (q @ k.transpose(-1, -2)).mul_(scale)
    time = torch.arange(start, start + q.shape[2], device=q.device)
    seen = places[:, None, :] <= time[:, None]
    if visible is not None:
        seen = seen & visible[:, None, :]
    if row_segments is not None and key_segments is not None:
        seen = seen & (row_segments[:, :, None] == key_segments[:, None, :])
    scores = scores.masked_fill_(~seen[:, None], -math.inf).unflatten(-1, (-1, width))
    mine = (own[..., None] == torch.arange(scores.shape[-2], device=q.device))[:, None]
    if kind:
        return mine, plain_weights(scores, mine, kind), None
    return mine, *block_softmax(scores, mine)


def _walk(q: Tensor, k: Tensor, width: int, regular: bool) -> list[tuple[slice, slice, slice]]:
    """Samples, queries and keys of each tile: a regular tile does not read the keys behind its end."""
    (batch, heads, length, _), keys, rows = q.shape, k.shape[2], tile_rows(width)
    starts = range(0, length, rows)
    tiles = [(slice(s, min(s + rows, length)), slice(min(s + rows, keys) if regular else keys)) for s in starts]
    groups = sample_groups(batch, CACHED // max(1, heads * min(rows, length) * keys))
    return [(samples, *tile) for samples in groups for tile in tiles]


def _of(t: Tensor | None, samples: slice, columns: slice) -> Tensor | None:
    """Part of a tensor ``(batch or 1, columns)``."""
    return None if t is None else (t if len(t) == 1 else t[samples])[:, columns]


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own: Tensor,
    places: Tensor,
    visible: Tensor | None,
    row_segments: Tensor | None,
    key_segments: Tensor | None,
    keep: Tensor | None,
    width: int,
    kind: int,
    regular: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    precise = sum_dtype(q.dtype)
    out = v.new_empty(*q.shape[:3], v.shape[3])
    for samples, rows, keys in _walk(q, k, width, regular):
        _, p, g = _tile(
            q[samples, :, rows].to(precise),
            k[samples, :, keys].to(precise),
            _of(own, samples, rows),  # type: ignore[arg-type]
            _of(places, samples, keys),  # type: ignore[arg-type]
            _of(visible, samples, keys),
            _of(row_segments, samples, rows),
            _of(key_segments, samples, keys),
            rows.start,
            width,
            kind,
            scale,
        )
        if g is not None:
            g = g if keep is None else g * keep[samples, :, rows, : g.shape[-1]]
            p *= g[..., None]
        out[samples, :, rows] = (p.flatten(-2) @ v[samples, :, keys].to(precise)).to(out.dtype)
    return (out,)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own: Tensor,
    places: Tensor,
    visible: Tensor | None,
    row_segments: Tensor | None,
    key_segments: Tensor | None,
    keep: Tensor | None,
    width: int,
    kind: int,
    regular: bool,
    scale: float,
    out: Tensor,
) -> Results:
    precise = sum_dtype(q.dtype)
    dq = torch.empty_like(q, dtype=precise)
    dk, dv = torch.zeros_like(k, dtype=precise), torch.zeros_like(v, dtype=precise)
    for samples, rows, keys in _walk(q, k, width, regular):
        queries, values = q[samples, :, rows].to(precise), v[samples, :, keys].to(precise)
        mine, p, g = _tile(
            queries,
            k[samples, :, keys].to(precise),
            _of(own, samples, rows),  # type: ignore[arg-type]
            _of(places, samples, keys),  # type: ignore[arg-type]
            _of(visible, samples, keys),
            _of(row_segments, samples, rows),
            _of(key_segments, samples, keys),
            rows.start,
            width,
            kind,
            scale,
        )
        do = grad[samples, :, rows].to(precise)
        along = (do * out[samples, :, rows]).sum(-1, keepdim=True)
        dw = (do @ values.transpose(-1, -2)).unflatten(-1, (-1, width))
        if g is None:
            weights = p
            ds = p * (dw - along[..., None])
        else:
            kept = g if keep is None else g * keep[samples, :, rows, : g.shape[-1]]
            weights = p * kept[..., None]
            dg = (p * dw).sum(-1)
            dl = kept * dg - g * along
            own_part = dl * mine
            ds = dw.mul_(kept[..., None]).add_((own_part - kept * dg)[..., None]).mul_(p)
            ds[..., -1] = dl - own_part
        dv[samples, :, keys] += weights.flatten(-2).transpose(-1, -2) @ do
        ds = ds.flatten(-2).mul_(scale)
        dq[samples, :, rows] = ds @ k[samples, :, keys].to(precise)
        dk[samples, :, keys] += ds.transpose(-1, -2) @ queries
    return dq, dk, dv, None, None, None, None, None, None


def _shapes(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, ...]:
    return (v.new_empty(*q.shape[:3], v.shape[3]),)


_op = handwritten(
    "landmark_attention",
    "Tensor q, Tensor k, Tensor v, Tensor own, Tensor places, Tensor? visible, Tensor? row_segments, "
    "Tensor? key_segments, Tensor? keep, int width, int kind, bool regular, float scale",
    outputs=1,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
    reads_outputs=True,
    constants=("keep",),
)
