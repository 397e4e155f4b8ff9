"""Block-sparse attention: softmax or sigmoid attention to the blocks of keys that each block of queries keeps.

Child et al., "Generating Long Sequences with Sparse Transformers" (2019, arXiv 1904.10509) computes only such blocks;
which ones are kept, those who select them say (SeerAttention, HiP, S2-Attention). A query sees a key if::

    (its block is kept  or  the key is one of the last ``window``  or  one of the first ``sinks``)
    and  it is no later than the query (causal)  and  the mask shows it

Time and memory are those of the pairs that are kept, forward and backward: nothing is as large as queries times keys.
The CPU kernel reads kept keys where they are. The torch form (:mod:`foveate.ops.block_sparse_gather`) gathers those of
a few query blocks at a time; on GPUs PyTorch's flex attention does it (never timed, tested on CPUs).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from . import block_sparse_gather as gather
from .backend import choose, current_backend
from .handwritten import sum_dtype
from .native import block_sparse_attention as native

Weights = Literal["softmax", "sigmoid"]


class BlockIndices(NamedTuple):
    """Which blocks of keys each block of queries keeps, without a matrix of blocks.

    Attributes:
        indices: int32 ``(batch or 1, heads or 1, query_blocks, most)``: numbers of key blocks, ascending; what stands
            behind the first ``counts`` is not read.
        counts: int32 ``(batch or 1, heads or 1, query_blocks)``.
    """

    indices: Tensor
    counts: Tensor


def blocks_to_indices(blocks: Tensor, most: int | None = None) -> BlockIndices:
    """The list form of a mask of blocks.

    Args:
        blocks: bool ``(..., query_blocks, key_blocks)``, True = kept.
        most: width of the lists; None: as many as the fullest row keeps (on a GPU, that is waited for).

    Raises:
        InvalidType: the mask is not bool.
        InvalidValue: a width below 1.
    """
    if blocks.dtype != torch.bool:
        raise InvalidType(f"blocks must be bool (True = kept), not {blocks.dtype}.")
    if most is not None and most < 1:
        raise invalid("most", most, "a positive whole number is needed")
    return BlockIndices(*gather.listed(blocks, most))


def indices_to_blocks(indices: BlockIndices, key_blocks: int) -> Tensor:
    """The mask of blocks, bool ``(..., query_blocks, key_blocks)``, of its list form."""
    return gather.marked(indices.indices, indices.counts, key_blocks)


@register("op", "block_sparse_attention", system="softmax_attention")
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor | BlockIndices,
    *,
    block_size: int | tuple[int, int],
    causal: bool = True,
    window: int = 0,
    sinks: int = 0,
    mask: Tensor | None = None,
    scale: float | None = None,
    weights: Weights = "softmax",
    bias: float | Tensor | None = None,
    return_lse: bool = False,
    return_block_max: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Attention to kept blocks.

    Args:
        q: ``(batch, heads, length, d)``.
        k: ``(batch, key_heads, key_length, d)``; key_heads divides heads, of which neighbours share one of keys.
        v: ``(batch, key_heads, key_length, e)``.
        blocks: bool ``(batch or 1, heads or 1, query_blocks, key_blocks)``, True = kept, or :class:`BlockIndices`.
            Blocks count from the first query and the first key; the last ones may be incomplete.
        block_size: queries and keys of a block; one number for both.
        causal: a query sees no later key. With fewer queries than keys the queries are the last: query i stands at key
            ``key_length - length + i``.
        window: so many keys up to the query's own are seen whatever is kept; 0: none.
        sinks: so many first keys are seen whatever is kept.
        mask: bool ``(batch, key_length)``, True = visible.
        scale: factor on the products; None: ``1 / sqrt(d)``.
        weights: "softmax" over all that a query sees, or a "sigmoid" for each pair.
        bias: for "sigmoid" only, added to the scores: a number, or a tensor ``()``, ``(1,)`` or ``(heads,)``; None:
            ``-ln key_length``.
        return_lse: for "softmax" only, the logarithms of the sums too, with gradients.
        return_block_max: for "softmax" only, the largest weight in each kept block too, without gradients.

    Returns:
        ``(batch, heads, length, e)`` in the dtype of ``v``; a query that sees no key gets zeros. With ``return_lse`` or
        ``return_block_max`` a tuple: after it ``(batch, heads, length)``, -inf where no key is seen, and
        ``(batch, heads, query_blocks, key_blocks)``, 0 where a block is not kept; in float32 (float64 for float64).

    Raises:
        InvalidValue: shapes or numbers that do not fit, more queries than keys with ``causal`` or a window, block
            numbers that do not exist or do not ascend.
        InvalidType: mixed dtypes, masks that are not bool, block numbers that are not int32.
    """
    size = (block_size, block_size) if isinstance(block_size, int) else tuple(block_size)
    _check(q, k, v, size, causal, window, sinks, mask)
    _check_weights(q, weights, bias, return_lse or return_block_max)
    given, counts = (blocks.indices, blocks.counts) if isinstance(blocks, BlockIndices) else (blocks, None)
    _check_blocks(q, k, given, counts, size)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if bias is None:
        bias = -math.log(k.shape[2])
    if not isinstance(bias, Tensor):
        bias = torch.full((), bias, dtype=sum_dtype(q.dtype), device=q.device)
    sigmoid = weights == "sigmoid"
    form = _flexed if _for_flex(q, sigmoid, return_block_max) else gather.gathered
    tensors = (q, k, v, given, counts, mask)
    asked = {"native": native.fits(*tensors), "auto": native.pays(*tensors, size[1])}.get(current_backend())
    run = choose(reference, form, native.block_sparse_attention_native if asked else None)
    rest = (size[0], size[1], causal, window, sinks, scale, sigmoid, return_block_max)
    o, lse, largest = run(q, k, v, given, counts, mask, bias, *rest)
    results = (o, *([lse] if return_lse else []), *([largest.detach()] if return_block_max else []))
    return results if len(results) > 1 else o


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: Tensor | None,
    mask: Tensor | None,
    bias: Tensor,
    block_q: int,
    block_k: int,
    causal: bool,
    window: int,
    sinks: int,
    scale: float,
    sigmoid: bool,
    block_max: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, with whole matrices, in float32 (float64 for float64 input).

    Args:
        blocks, counts: a mask and None, or a :class:`BlockIndices`' two.

    Returns:
        Outputs, logarithms of sums, and the largest weights of blocks; each of the last two is empty where it has no
        meaning or is not asked for.
    """
    real, length, keys, group = sum_dtype(q.dtype), q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    kept = blocks if counts is None else gather.marked(blocks, counts, -(-keys // block_k))
    visible = kept.repeat_interleave(block_q, 2)[:, :, :length].repeat_interleave(block_k, 3)[..., :keys]
    here = torch.arange(keys - length, keys, device=q.device)[:, None]
    there = torch.arange(keys, device=q.device)
    visible = visible | ((there <= here) & (there > here - window)) | (there < sinks)
    visible = visible & (there <= here) if causal else visible
    visible = visible if mask is None else visible & mask[:, None, None]
    k, v = (x.to(real).repeat_interleave(group, 1) for x in (k, v))
    scores = (q.to(real) @ k.transpose(-1, -2)) * scale
    if sigmoid:
        p = torch.sigmoid(scores + bias.to(real).view(-1, 1, 1)) * visible
        return (p @ v).to(q.dtype), scores.new_empty(0), scores.new_empty(0)
    empty = ~visible.any(-1, keepdim=True)
    scores = scores.masked_fill(~(visible | empty), -math.inf)
    lse = scores.logsumexp(-1).masked_fill(empty[..., 0], -math.inf)
    p = scores.softmax(-1).masked_fill(empty, 0.0)
    largest = scores.new_empty(0)
    if block_max:
        rows, columns = kept.shape[2], kept.shape[3]
        cut = F.pad(p.detach(), (0, columns * block_k - keys, 0, rows * block_q - length))
        largest = cut.unflatten(3, (columns, block_k)).unflatten(2, (rows, block_q)).amax((3, 5)) * kept
    return (p @ v).to(q.dtype), lse, largest


def _for_flex(q: Tensor, sigmoid: bool, block_max: bool) -> bool:
    return q.is_cuda and not sigmoid and not block_max and q.dtype != torch.float64


def _flexed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: Tensor | None,
    mask: Tensor | None,
    bias: Tensor,
    block_q: int,
    block_k: int,
    causal: bool,
    window: int,
    sinks: int,
    scale: float,
    sigmoid: bool,
    block_max: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Flex attention, arguments as :func:`reference` has them: softmax without the largest weights of blocks."""
    from torch.nn.attention import flex_attention as flex

    (batch, heads, length), keys = q.shape[:3], k.shape[2]
    kept = blocks if counts is None else gather.marked(blocks, counts, -(-keys // block_k))
    kept = kept.expand(batch, heads, -1, -1)

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        here = i + (keys - length)
        seen = kept[b, h, i // block_q, j // block_k] | ((j <= here) & (j > here - window)) | (j < sinks)
        seen = seen & (j <= here) if causal else seen
        return seen if mask is None else seen & mask[b, j]

    on_gpu = q.is_cuda  # on a CPU, where only tests come, nothing is compiled
    visible = flex.create_block_mask(sees, batch, heads, length, keys, device=str(q.device), _compile=on_gpu)
    attend: Any = torch.compile(flex.flex_attention) if on_gpu else flex.flex_attention
    options: dict[str, Any] = {"block_mask": visible, "scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    if hasattr(flex, "AuxRequest"):
        o, more = attend(q, k, v, **options, return_aux=flex.AuxRequest(lse=True))
        return o, more.lse, q.new_empty(0)
    o, lse = attend(q, k, v, **options, return_lse=True)
    return o, lse, q.new_empty(0)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: tuple[int, ...],
    causal: bool,
    window: int,
    sinks: int,
    mask: Tensor | None,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise InvalidValue(f"q, k and v must agree in batch, q and k in width, k and v in heads and length: {shapes}.")
    if q.shape[1] % k.shape[1]:
        raise InvalidValue(f"the heads of k and v must divide those of q: {shapes}.")
    if q.shape[2] < 1 or k.shape[2] < 1:
        raise InvalidValue(f"a sequence is empty ({shapes}): at least one token is needed.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if len(size) != 2 or not all(isinstance(s, int) and s >= 1 for s in size):
        raise invalid("block_size", size, "one positive whole number, or two for queries and keys, is needed")
    for name, number in (("window", window), ("sinks", sinks)):
        if not isinstance(number, int) or number < 0:
            raise invalid(name, number, "a whole number of keys, not negative, is needed")
    if (causal or window) and q.shape[2] > k.shape[2]:
        raise InvalidValue(
            f"there are more queries than keys ({shapes}): causal and window need queries to be the last."
        )
    if mask is not None and mask.dtype != torch.bool:
        raise InvalidType(f"mask must be bool (True = visible), not {mask.dtype}.")
    if mask is not None and tuple(mask.shape) != (q.shape[0], k.shape[2]):
        raise InvalidValue(f"mask has shape {tuple(mask.shape)}; for keys {(q.shape[0], k.shape[2])} is needed.")


def _check_weights(q: Tensor, weights: str, bias: float | Tensor | None, sums: bool) -> None:
    if weights not in get_args(Weights):
        raise invalid("weights", weights, f"legal are {', '.join(get_args(Weights))}")
    if weights == "softmax" and bias is not None:
        raise InvalidValue("a bias is for weights='sigmoid': one number for all keys changes no softmax.")
    if weights == "sigmoid" and sums:
        raise InvalidValue("return_lse and return_block_max are for weights='softmax': sigmoids have no sums.")
    if isinstance(bias, Tensor) and tuple(bias.shape) not in ((), (1,), (q.shape[1],)):
        raise InvalidValue(
            f"bias has shape {tuple(bias.shape)}: one number or one per head, ({q.shape[1]},), is needed."
        )
    if isinstance(bias, float) and math.isnan(bias):
        raise invalid("bias", bias, "a number is needed, such as -ln of the number of keys")


def _check_blocks(q: Tensor, k: Tensor, given: Tensor, counts: Tensor | None, size: tuple[int, ...]) -> None:
    (batch, heads, length), keys = q.shape[:3], k.shape[2]
    rows, columns = -(-length // size[0]), -(-keys // size[1])
    dtype, kind = (torch.bool, "bool (True = kept)") if counts is None else (torch.int32, "int32")
    for m in (given, given if counts is None else counts):
        if m.dtype != dtype:
            raise InvalidType(f"blocks must be {kind}, not {m.dtype}.")
    shape = tuple(given.shape)
    fits = given.ndim == 4 and shape[0] in (1, batch) and shape[1] in (1, heads) and shape[2] == rows
    if not fits or (counts is None and shape[3] != columns) or (counts is not None and shape[3] < 1):
        last = columns if counts is None else "most"
        raise InvalidValue(
            f"blocks have shape {shape}: ({batch} or 1, {heads} or 1, {rows}, {last}) is needed for {length} queries "
            f"and {keys} keys in blocks of {size[0]} and {size[1]}."
        )
    if counts is None:
        return
    if tuple(counts.shape) != shape[:3]:
        raise InvalidValue(f"the counts of blocks have shape {tuple(counts.shape)}: {shape[:3]} is needed.")
    if given.device.type != "cpu" or torch.compiler.is_compiling():  # nobody waits for numbers
        return
    if int(counts.min()) < 0 or int(counts.max()) > shape[3]:
        raise InvalidValue(f"the counts of blocks must lie between 0 and {shape[3]}, the width of their lists.")
    read = torch.arange(shape[3]) < counts[..., None]
    if bool((((given < 0) | (given >= columns)) & read).any()):
        raise InvalidValue(f"a block number does not exist: there are {columns} blocks of {size[1]} keys, from 0 on.")
    if bool(((given[..., 1:] <= given[..., :-1]) & read[..., 1:]).any()):
        raise InvalidValue("block numbers must ascend in each list, none of them twice.")
