"""Lightning attention: causal linear attention with one decay rate per head, exact in O(n).

Qin et al., "Lightning Attention-2" (2024, arXiv 2401.04658) and "Various Lengths, Constant Speed" (ICML 2024, arXiv
2405.17381). With ``s`` the slope of a head, and ``S`` an optional state from earlier tokens::

    o_t = sum_{j <= t} exp(-s (t - j)) (q_t . k_j) v_j  +  exp(-s (t + 1)) q_t S            t = 0, 1, ...
    S'  = exp(-s n) S + sum_j exp(-s (n - 1 - j)) k_j^T v_j

No scaling, no feature map, no normaliser: callers apply those. Unlike the published kernels, the slope may be learned.

:func:`reference` is this definition as a masked n x n product; the fast forms, exact and O(n), are in
:mod:`foveate.ops.linear_attention_chunks`, for CPUs :mod:`foveate.ops.native.linear_attention`, and for GPUs
``triton/linear_attention.py``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from . import triton as gpu
from .backend import choose, current_backend
from .documents import document_numbers
from .handwritten import sum_dtype
from .linear_attention_chunks import chunked, decay
from .native import linear_attention as native
from .positions import slope_values


def build_slopes(heads: int) -> Tensor:
    """Decay rates of the heads before any layer factor, float32 ``(heads,)``: the slopes of ALiBi."""
    return torch.tensor(slope_values(heads))


def layer_slopes(heads: int, layer: int, num_layers: int, rule: str = "official") -> Tensor:
    """:func:`layer_rates` as float32 ``(heads,)``."""
    return torch.tensor(layer_rates(heads, layer, num_layers, rule))


def layer_rates(heads: int, layer: int, num_layers: int, rule: str = "official") -> list[float]:
    """Decay rates of one layer: later layers forget more slowly.

    Args:
        heads: number of heads.
        layer: index from 0.
        num_layers: depth of the network; with one layer the layer factor is 1.
        rule: "official", as all released code: ``alibi_h (1 - layer / (num_layers - 1) + 1e-5)``; "paper", as printed:
            ``8 (h + 1) / heads (1 - layer / num_layers)``, orders of magnitude faster decays; "none": zeros.

    Raises:
        InvalidValue: no such layer or rule.
    """
    if not 0 <= layer < num_layers:
        raise InvalidValue(f"layer={layer!r} is not possible: it must be in 0 ... num_layers - 1 = {num_layers - 1}.")
    if rule == "official":
        factor = 1 - layer / (num_layers - 1) + 1e-5 if num_layers > 1 else 1.0
        return [slope * factor for slope in slope_values(heads)]
    if rule == "paper":
        return [8 * (h + 1) / heads * (1 - layer / num_layers) for h in range(heads)]
    if rule == "none":
        return [0.0] * heads
    raise InvalidValue(f"rule={rule!r} is not possible: it must be 'official', 'paper' or 'none'.")


def default_block(width: int) -> int:
    """The chunk length of the torch form that was fastest on CPU for this query width."""
    return 32 if width <= 32 else 64


@register("op", "lightning_attention", system="lightning_attention")
def lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor | None = None,
    *,
    block: int | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    segments: Tensor | None = None,
) -> Any:
    """Causal linear attention with a scalar decay per head.

    Args:
        q, k: ``(batch, heads, n, d)``.
        v: ``(batch, heads, n, e)``, same dtype as ``q`` and ``k``.
        slope: decay rates per step, ``(heads,)`` or ``(heads, 1, 1)``, finite and >= 0; None: no decay. Differentiable.
        block: chunk length of the torch form, any length >= 1; None: :func:`default_block`. Changes speed only; kernels
            have their own.
        state: ``(batch, heads, d, e)``: what earlier tokens left, decayed to the last of them.
        return_state: also return the state after the last token.
        segments: int64 ``(batch, n)``: a token reads only tokens of its own run of equal segment numbers, and the
            state passes no border; ``state`` belongs to the first run.

    Returns:
        ``(batch, heads, n, e)`` in the input dtype; with ``return_state`` also ``(batch, heads, d, e)`` in float32
        (float64 for float64 input). Sums are accumulated in that precision for every input dtype.

    Raises:
        InvalidValue: shapes that do not fit, an empty sequence, illegal slopes (values are checked for CPU tensors,
            outside of compilation) or block.
        InvalidType: mixed dtypes, or segments that are not whole numbers.
    """
    _check(q, k, v, slope, block, state, segments)
    precise = sum_dtype(q.dtype)
    rates = q.new_zeros(q.shape[1], dtype=precise) if slope is None else slope.reshape(-1).to(precise)
    run = None if segments is None else document_numbers(segments)
    state = None if state is None else state.to(precise)
    if current_backend() == "reference":
        with _full_precision(q.device.type):
            o, after = reference(q, k, v, rates, state, run)
    else:
        inputs = q, k, v, rates, state, run
        kernel = native.linear_attention_native if native.fits(*inputs) else None
        form = choose(chunked, chunked, kernel, gpu.form("linear_attention", inputs))
        block = block or default_block(q.shape[-1])
        o, after = form(*inputs, block, return_state, rates.requires_grad)
    return (o, after) if return_state else o


def lightning_step(q: Tensor, k: Tensor, v: Tensor, slope: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: ``S <- exp(-s) S + k^T v``, ``o = q S``.

    Args:
        q, k: ``(batch, heads, d)``.
        v: ``(batch, heads, e)``.
        slope: ``(heads,)`` or None.
        state: float32 ``(batch, heads, d, e)``.

    Returns:
        ``(batch, heads, e)`` in the dtype of ``v``, and the new state.
    """
    with _full_precision(q.device.type):
        new = k.to(state.dtype)[..., :, None] * v.to(state.dtype)[..., None, :]
        if slope is not None:
            # As a small change that is rounded once: exp(-s) itself is 1 - s with few digits of a slow rate, and a
            # product of its own would round the state twice. Both show after thousands of steps.
            new = new + state * torch.expm1(-slope.to(state.dtype))[:, None, None]
        state = state + new
        o = (q.to(state.dtype)[..., None, :] @ state)[..., 0, :]
    return o.to(v.dtype), state


def lightning_state(k: Tensor, v: Tensor, slope: Tensor | None, count: Tensor, state: Tensor) -> Tensor:
    """The state after the first ``count`` tokens of each sample, where samples differ in length.

    Args:
        k: ``(batch, heads, n, d)``.
        v: ``(batch, heads, n, e)``.
        slope: ``(heads,)`` or None.
        count: int64 ``(batch,)``, 0 to n.
        state: float32 ``(batch, heads, d, e)``, the one before the first token.

    Returns:
        As ``state``.
    """
    rates = state.new_zeros(k.shape[1]) if slope is None else slope.to(state.dtype)
    to_end = count[:, None] - 1 - torch.arange(k.shape[2], device=k.device)
    weights = decay(rates, to_end).transpose(0, 1)[..., None]
    with _full_precision(k.device.type):
        new = (k.to(state.dtype) * weights).transpose(-1, -2) @ v.to(state.dtype)
    return new + decay(rates, count).T[..., None, None] * state


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    state: Tensor | None,
    run: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The definition: a masked n x n product.

    Args:
        q, k, v, state: as in :func:`lightning_attention`.
        slope: ``(heads,)``, in the precision of all sums.
        run: int64 ``(batch, n)``: segments counted from 0 on.

    Returns:
        The output in the input dtype, and the state after the last token.
    """
    wide_q, wide_k, wide_v = (x.to(slope.dtype) for x in (q, k, v))
    t = torch.arange(q.shape[2], device=q.device)
    weights = (wide_q @ wide_k.transpose(-1, -2)) * decay(slope, t[:, None] - t)
    if run is not None:
        weights = weights * (run[:, None, :, None] == run[:, None, None, :])
    o = weights @ wide_v
    into_end = decay(slope, t.flip(0))[..., None]
    from_start, through = decay(slope, t + 1)[..., None], torch.exp(-slope * q.shape[2])[:, None, None]
    if run is not None:
        into_end = into_end * (run == run[:, -1:])[:, None, :, None]
        from_start = from_start * (run == 0)[:, None, :, None]
        through = through * (run[:, -1] == 0)[:, None, None, None]
    after = (wide_k * into_end).transpose(-1, -2) @ wide_v
    if state is not None:
        o, after = o + (wide_q @ state) * from_start, after + through * state
    return o.to(q.dtype), after


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Autocast would run the state's products in half precision."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor | None,
    block: int | None,
    state: Tensor | None,
    segments: Tensor | None,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise InvalidValue(f"q, k and v must have 4 axes (batch, heads, length, width), not {shapes}.")
    if q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        raise InvalidValue(f"q and k must have one shape, v the same but for its width, not {shapes}.")
    if q.shape[2] < 1:
        raise InvalidValue(f"the sequence is empty ({shapes}): at least one token is needed.")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise InvalidType(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}.")
    if block is not None and block < 1:
        raise InvalidValue(f"block={block!r} is not possible: a positive number of tokens is needed.")
    batch, heads, n, d = q.shape
    if state is not None and state.shape != (batch, heads, d, v.shape[-1]):
        legal = (batch, heads, d, v.shape[-1])
        raise InvalidValue(f"state has shape {tuple(state.shape)}; (batch, heads, d, e) = {legal} is needed.")
    if segments is not None and segments.shape != (batch, n):
        raise InvalidValue(f"segments have shape {tuple(segments.shape)}; (batch, n) = {(batch, n)} is needed.")
    if segments is not None and segments.is_floating_point():
        raise InvalidType(f"segments must be int64, not {segments.dtype}.")
    if slope is None:
        return
    if slope.shape not in ((heads,), (heads, 1, 1)):
        raise InvalidValue(f"slope has shape {tuple(slope.shape)}; one rate per head, ({heads},), is needed.")
    # Values can be looked at only where that costs nothing and breaks no graph.
    concrete = type(slope) in (Tensor, torch.nn.Parameter) and slope.device.type == "cpu"
    if concrete and not torch.compiler.is_compiling() and not bool(((slope >= 0) & slope.isfinite()).all()):
        raise InvalidValue(
            f"slope={slope.flatten().tolist()!r} is not possible: decay rates are finite and not negative."
        )
