"""A neural memory: the weights of a small network that learn, token by token, to give a value for its key.

Titans: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", arXiv 2501.00663, section 3. With the
loss ``l(M; k, v) = |M(k) - v|^2`` of a token, its forgetting alpha, momentum eta and step size theta,

    S_t = eta_t S_{t-1} - theta_t grad l(M'; k_t, v_t)
    M_t = (1 - alpha_t) M_{t-1} + S_t
    y_t = M_t(q_t)

where ``M'`` are the weights at the start of the token's chunk (section 3.2: what makes training parallel); with chunks
of one token it is the recurrence of section 3.1. The loop below is the definition, the gradient taken by PyTorch; the
form that runs, with gradients written by hand, is in :mod:`foveate.ops.neural_memory_chunks`. With alpha = eta = 0 this
is test-time training (arXiv 2407.04620); a memory of one matrix without momentum is the gated delta rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..errors import InvalidValue, invalid
from ..registry import register
from .backend import choose
from .handwritten import sum_dtype
from .memory_networks import recall, surprise
from .neural_memory_chunks import Weights, neural_memory_chunks, pad_to, replaced

Loss = Literal["sum", "mean"]
#: Memory, its momentum (None without) and the weights at which gradients are taken: ``(batch, heads, ...)`` each.
MemoryTensors = tuple[Weights, Weights | None, Weights]


@register("op", "neural_memory", system="titans")
def neural_memory(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    forget: Tensor,
    momentum: Tensor | None,
    step: Tensor,
    weights: Sequence[Tensor],
    *,
    chunk: int = 16,
    norm: bool = False,
    loss: Loss = "sum",
    largest: float | None = None,
    state: MemoryTensors | None = None,
    valid: Tensor | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor | None, MemoryTensors]:
    """Write keys and values into a memory, and read it with each token's query.

    Args:
        q: ``(batch, heads, L, dim)``; None: only write, for the state.
        k, v: ``(batch, heads, L, dim)``, L >= 1.
        forget: alpha ``(batch, heads, L)`` in [0, 1]: 0 keeps everything.
        momentum: eta ``(batch, heads, L)`` in [0, 1]; None: no momentum.
        step: theta ``(batch, heads, L)``, not negative.
        weights: what a memory starts from: matrices ``(heads, in, out)`` from ``dim`` to ``dim``, then, with ``norm``,
            the gain ``(heads, dim)``, to which 1 is added.
        chunk: tokens whose gradients are taken at the same weights, those at the chunk's start. It changes the result.
        norm: normalise what the matrices give, scale it, and add the query or key.
        loss: sum over the channels, as in the paper, or their mean.
        largest: bound on the norm of a token's gradient in each weight, before its step size: a gradient of norm n is
            divided by ``sqrt(1 + n^2 / largest^2)``. None: no bound, as in the paper.
        state: memory, momentum and base, from an earlier call; None: ``weights``, zeros, ``weights``.
        valid: bool ``(batch, L)``: places that hold a token; the others change nothing. A sample's tokens stand
            together, and a chunk counts as complete, so that the next one starts from new weights, where its last place
            holds one. None: all.
        starts: bool ``(batch, ceil(L / chunk))``: chunks that begin a new document, with ``weights``.
        return_state: return the state after the last token too.

    Returns:
        ``(batch, heads, L, dim)`` in k's dtype, or that and the state, in float32 (float64 for float64 ``k``), as is
        everything inside.

    Raises:
        InvalidValue: shapes that do not fit together, ``chunk`` below 1, an unknown loss.
    """
    _check(q, k, v, forget, momentum, step, weights, chunk, norm, loss)
    if largest is not None and not largest > 0:
        raise invalid("largest", largest, "a positive number, or None, is needed")
    batch, heads, length, dim = k.shape
    real = sum_dtype(k.dtype)
    if state is None:
        initial = initial_weights(weights, batch, real)
        state = (initial, None if momentum is None else tuple(map(torch.zeros_like, initial)), initial)
    chunk = min(chunk, length)
    padded = -(-length // chunk) * chunk
    if padded != length:
        valid = valid if valid is not None else torch.ones(batch, length, dtype=torch.bool, device=k.device)
        valid = pad_to(valid, padded, 1)
    q_, k_, v_, alpha, eta, theta = (
        None if t is None else pad_to(t.to(real).flatten(0, 1), padded, 1) for t in (q, k, v, forget, momentum, step)
    )
    start = initial_weights(weights, batch, real)
    y, *after = choose(reference, neural_memory_chunks)(
        q_,
        k_,
        v_,
        alpha,
        eta,
        theta,
        flatten(start),
        flatten(state[0]),
        None if state[1] is None else flatten(state[1]),
        flatten(state[2]),
        chunk,
        norm,
        1.0 if loss == "sum" else 1 / dim,
        largest,
        None if valid is None else per_head(valid, heads),
        None if starts is None else per_head(starts, heads),
    )
    y = None if y is None else y[:, :length].unflatten(0, (batch, heads)).to(k.dtype)
    if return_state:
        return y, unflatten(after, batch, heads)
    if y is None:
        raise InvalidValue("q=None is not possible without return_state: there is nothing to return.")
    return y


def neural_memory_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forget: Tensor,
    momentum: Tensor | None,
    step: Tensor,
    state: MemoryTensors,
    ends: Tensor,
    *,
    norm: bool = False,
    loss: Loss = "sum",
    largest: float | None = None,
) -> tuple[Tensor, MemoryTensors]:
    """One token of :func:`neural_memory`.

    Args:
        q, k, v: ``(batch, heads, dim)``.
        forget, momentum, step: ``(batch, heads)``.
        state: memory, momentum and base.
        ends: bool ``(batch,)``: the token completes its chunk.

    Returns:
        ``(batch, heads, dim)`` in q's dtype, and the new state.
    """
    batch, heads, dim = q.shape
    real = sum_dtype(q.dtype)
    q_, k_, v_ = (t.to(real).reshape(batch * heads, 1, dim) for t in (q, k, v))
    forget, step = (t.to(real).reshape(-1, 1) for t in (forget, step))
    memory, base = flatten(state[0]), flatten(state[2])
    trace = surprise(base, k_, v_, step, norm, 1.0 if loss == "sum" else 1 / dim, largest)
    moved = [-x.mT @ d for x, d in zip(trace.inputs, trace.deltas, strict=True)]
    if trace.gain is not None:
        moved.append(-trace.gain[:, 0])
    past = None
    if momentum is not None and state[1] is not None:
        eta = momentum.to(real).reshape(-1)
        past = moved = tuple(_scaled(eta, s) + u for s, u in zip(flatten(state[1]), moved, strict=True))
    keep = 1 - forget[:, 0]
    memory = tuple(_scaled(keep, m) + u for m, u in zip(memory, moved, strict=True))
    base = replaced(per_head(ends, heads), memory, base)
    y = recall(memory, q_, norm).reshape(batch, heads, dim).to(q.dtype)
    return y, unflatten((memory, past, base), batch, heads)


def reference(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    forget: Tensor,
    momentum: Tensor | None,
    step: Tensor,
    start: Weights,
    memory: Weights,
    past: Weights | None,
    base: Weights,
    chunk: int,
    norm: bool,
    scale: float,
    largest: float | None,
    valid: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor | None, Weights, Weights | None, Weights]:
    """The definition: one token after the other, the gradient of the loss taken by PyTorch."""

    def error(weights: Weights, k_t: Tensor, v_t: Tensor) -> Tensor:
        batched = tuple(w.unsqueeze(0) for w in weights)
        return (recall(batched, k_t.view(1, 1, -1), norm)[0, 0] - v_t).square().sum() * scale

    gradient, outputs = vmap(grad(error)), []
    for t in range(k.shape[1]):
        if starts is not None and t % chunk == 0:
            new = starts[:, t // chunk]
            memory, base = replaced(new, start, memory), replaced(new, start, base)
            past = None if past is None else replaced(new, tuple(map(torch.zeros_like, past)), past)
        moved = gradient(base, k[:, t], v[:, t])
        if largest is not None:
            moved = tuple(_scaled((1 + u.flatten(1).square().sum(1) / largest**2).rsqrt(), u) for u in moved)
        moved = tuple(_scaled(-step[:, t], u) for u in moved)
        if momentum is not None and past is not None:
            moved = tuple(_scaled(momentum[:, t], s) + u for s, u in zip(past, moved, strict=True))
        after = tuple(_scaled(1 - forget[:, t], m) + s for m, s in zip(memory, moved, strict=True))
        here = torch.ones_like(step[:, t], dtype=torch.bool) if valid is None else valid[:, t]
        memory = replaced(here, after, memory)
        past = None if past is None else replaced(here, moved, past)
        if q is not None:
            outputs.append(recall(memory, q[:, t : t + 1], norm))
        if t % chunk == chunk - 1:
            base = replaced(here, memory, base)
    return (torch.cat(outputs, 1) if outputs else None), memory, past, base


def initial_weights(weights: Sequence[Tensor], batch: int, dtype: torch.dtype) -> Weights:
    """``(heads, ...)`` for every sample: ``(batch, heads, ...)``."""
    return tuple(w.to(dtype).expand(batch, *w.shape) for w in weights)


def flatten(weights: Weights) -> Weights:
    """``(batch, heads, ...)`` to ``(batch * heads, ...)``."""
    return tuple(w.flatten(0, 1) for w in weights)


def per_head(flags: Tensor, heads: int) -> Tensor:
    """``(batch, ...)`` to ``(batch * heads, ...)``."""
    return flags.unsqueeze(1).expand(-1, heads, *flags.shape[1:]).flatten(0, 1)


def unflatten(state: Sequence[Weights | None], batch: int, heads: int) -> MemoryTensors:
    """The state with batch and heads as two axes."""
    memory, past, base = (None if w is None else tuple(t.unflatten(0, (batch, heads)) for t in w) for w in state)
    assert memory is not None
    assert base is not None
    return memory, past, base


def _scaled(factor: Tensor, weight: Tensor) -> Tensor:
    """``factor`` ``(N,)`` times ``weight`` ``(N, ...)``."""
    return factor.view(-1, *(1,) * (weight.ndim - 1)) * weight


def _check(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    forget: Tensor,
    momentum: Tensor | None,
    step: Tensor,
    weights: Sequence[Tensor],
    chunk: int,
    norm: bool,
    loss: str,
) -> None:
    if k.ndim != 4 or k.shape[2] < 1:
        raise InvalidValue(f"k has shape {tuple(k.shape)}: it must be (batch, heads, L, dim) with L >= 1.")
    for name, t in (("q", q), ("v", v)):
        if t is not None and t.shape != k.shape:
            raise InvalidValue(f"{name} has shape {tuple(t.shape)}: it must be {tuple(k.shape)} as k.")
    for name, t in (("forget", forget), ("momentum", momentum), ("step", step)):
        if t is not None and t.shape != k.shape[:3]:
            raise InvalidValue(f"{name} has shape {tuple(t.shape)}: it must be {tuple(k.shape[:3])} as in k.")
    if not isinstance(chunk, int) or chunk < 1:
        raise invalid("chunk", chunk, "a positive whole number is needed")
    if loss not in ("sum", "mean"):
        raise invalid("loss", loss, "it must be 'sum' or 'mean'")
    heads, width = k.shape[1], k.shape[3]
    matrices = weights[:-1] if norm else weights
    shapes = [tuple(w.shape) for w in weights]
    for w in matrices:
        if w.ndim != 3 or w.shape[0] != heads or w.shape[1] != width:
            raise InvalidValue(f"weights have the shapes {shapes}: {heads} heads of {k.shape[3]} channels do not fit.")
        width = w.shape[2]
    if not matrices or width != k.shape[3] or (norm and tuple(weights[-1].shape) != (heads, width)):
        raise InvalidValue(f"weights have the shapes {shapes}: {heads} heads of {k.shape[3]} channels do not fit.")
