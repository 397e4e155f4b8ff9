"""Attention of one query over every prefix, as a scan: "Attention as an RNN" (Feng et al. 2024, arXiv 2405.13956).

With scores ``s_i`` of a fixed query against the keys, and values ``v_i``, the outputs for all prefixes are::

    o_k = sum_{i <= k} exp(s_i) v_i / sum_{i <= k} exp(s_i)

What a set of tokens contributes is held as a triple: its largest score ``m``, its denominator ``u`` and its numerator
``w``, the last two relative to ``exp(m)``. Two sets A and B merge by (section 3.2)::

    m = max(m_A, m_B),    u = u_A e^(m_A - m) + u_B e^(m_B - m),    w likewise,

which is associative, with the identity (-inf, 0, 0) and the leaves (s_i, 1, v_i), so all prefixes are one scan. No
exponent is ever above 0, whatever the scores.

:func:`_reference` is the recurrence, token by token; :func:`hillis_steele` the scan that the paper prints. The fast
form cuts time into blocks: prefixes inside a block are one small masked matrix product, and the blocks' totals are
scanned in the same way, so that the depth is logarithmic and work and memory are O(n). Its backward pass is the same
scan run from the end (:func:`_backward`), and keeps nothing but the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue
from ..registry import register
from .backend import choose
from .handwritten import Results, handwritten, sum_dtype

#: Tokens of a block unless told: on CPU, forward and backward together were fastest with 16 of 8, 16, 32 and 64.
BLOCK = 16


class PrefixState(NamedTuple):
    """What a set of tokens contributes to the attention of one query; float32 (float64 for float64 inputs).

    Attributes:
        m: ``(batch, heads)``, the largest score; -inf for the empty set. A mere unit: it carries no gradient.
        u: ``(batch, heads)``, sum of ``exp(s_i - m)``.
        w: ``(batch, heads, width)``, sum of ``exp(s_i - m) v_i``.
    """

    m: Tensor
    u: Tensor
    w: Tensor

    @property
    def output(self) -> Tensor:
        """The attention's output over the set, ``(batch, heads, width)``; zeros for the empty set."""
        return _ratio(torch.cat((self.w, self.u[..., None]), -1))


def empty_state(
    batch: int,
    heads: int,
    width: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PrefixState:
    """The identity of :func:`merge`: no tokens yet."""
    m = torch.full((batch, heads), -torch.inf, device=device, dtype=dtype)
    return PrefixState(m, torch.zeros_like(m), torch.zeros(batch, heads, width, device=device, dtype=dtype))


def leaf(score: Tensor, value: Tensor) -> PrefixState:
    """What one token contributes: (s, 1, v), with the gradient in s; the empty set for a score of -inf.

    Args:
        score: ``(...)``.
        value: ``(..., width)``.
    """
    real = sum_dtype(value.dtype)
    score = score.to(real)
    m = score.detach()
    u = _shift(score, m)
    return PrefixState(m, u, u[..., None] * value.to(real))


def merge(a: PrefixState, b: PrefixState) -> PrefixState:
    """What two disjoint sets of tokens contribute together; shapes broadcast."""
    m = torch.maximum(a.m, b.m)
    of_a, of_b = _shift(a.m, m), _shift(b.m, m)
    return PrefixState(m, a.u * of_a + b.u * of_b, a.w * of_a[..., None] + b.w * of_b[..., None])


@register("op", "prefix_attention", system="aaren")
def prefix_attention(
    scores: Tensor,
    values: Tensor,
    *,
    state: PrefixState | None = None,
    return_state: bool = False,
    block: int = BLOCK,
) -> Tensor | tuple[Tensor, PrefixState]:
    """Softmax attention of one query per head over every prefix of the sequence.

    Args:
        scores: ``(batch, heads, n)``, the query's products with the keys, n >= 1. -inf leaves a token out; NaN and
            +inf are not looked for and come out as NaN.
        values: ``(batch, heads, n, width)``.
        state: what earlier tokens contribute; None: there were none. Its ``m`` gets no gradient.
        return_state: also return what all tokens so far contribute.
        block: tokens of a block of the fast form, at least 2. Changes speed only.

    Returns:
        ``(batch, heads, n, width)`` in the dtype of ``values``, zeros where no token was seen yet; with
        ``return_state`` also a :class:`PrefixState`. Sums are made in float32 (float64 for float64 values).

    Raises:
        InvalidValue: shapes that do not fit together, an empty sequence, an illegal block.
        InvalidType: scores or values that are not floating.
    """
    _check(scores, values, state, block)
    m, u, w = (None, None, None) if state is None else (state.m.detach(), state.u, state.w)
    run = choose(_reference, _blocks)
    out, m, u, w = run(scores, values, m, u, w, block)
    return (out, PrefixState(m.detach(), u, w)) if return_state else out


def prefix_attention_step(score: Tensor, value: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:
    """One token of :func:`prefix_attention`.

    Args:
        score: ``(batch, heads)``; -inf leaves the token out.
        value: ``(batch, heads, width)``.
        state: from :func:`empty_state`, :func:`prefix_attention` or the step before.

    Returns:
        ``(batch, heads, width)`` in value's dtype, and the new state.
    """
    state = merge(state, leaf(score, value))
    return state.output.to(value.dtype), state


def hillis_steele(leaves: PrefixState) -> tuple[PrefixState, int]:
    """The scan as the paper prints it (section 3.2): ``ceil(log2 n)`` rounds over the whole sequence.

    Args:
        leaves: of :func:`leaf`, ``m`` and ``u`` of shape ``(..., n)``, ``w`` of shape ``(..., n, width)``.

    Returns:
        All prefixes in the same shapes, and the number of rounds.
    """
    n, distance, rounds = leaves.m.shape[-1], 1, 0
    while distance < n:
        earlier = PrefixState(leaves.m[..., :-distance], leaves.u[..., :-distance], leaves.w[..., :-distance, :])
        later = PrefixState(leaves.m[..., distance:], leaves.u[..., distance:], leaves.w[..., distance:, :])
        merged = merge(earlier, later)
        leaves = PrefixState(
            torch.cat((leaves.m[..., :distance], merged.m), -1),
            torch.cat((leaves.u[..., :distance], merged.u), -1),
            torch.cat((leaves.w[..., :distance, :], merged.w), -2),
        )
        distance, rounds = 2 * distance, rounds + 1
    return leaves, rounds


def prefix_flops(n: int, heads: int, width: int, block: int = BLOCK, batch: int = 1) -> int:
    """FLOPs of the fast form's matrix products, 2 per multiply-add."""
    macs = 0
    while n > 1:
        size = min(n, block)
        n = -(-n // size)
        macs += n * size * size * (width + 1)
    return 2 * batch * heads * macs


def _reference(
    scores: Tensor, values: Tensor, m: Tensor | None, u: Tensor | None, w: Tensor | None, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The recurrence of section 3.1, one token after the other."""
    real = sum_dtype(values.dtype)
    batch, heads, _, width = values.shape
    state = empty_state(batch, heads, width, scores.device, real)
    if m is not None and u is not None and w is not None:
        state = PrefixState(m.to(real), u.to(real), w.to(real))
    outputs = []
    for score, value in zip(scores.unbind(2), values.unbind(2), strict=True):
        o, state = prefix_attention_step(score, value, state)
        outputs.append(o)
    return torch.stack(outputs, 2), state.m, state.u, state.w


def _shift(m: Tensor, to: Tensor) -> Tensor:
    """``exp(m - to)`` for ``m <= to``, 0 where m is -inf (also where both are, the empty sets)."""
    return torch.exp(m - to.masked_fill(to == -torch.inf, 0.0))


def _ratio(sums: Tensor) -> Tensor:
    """Numerators over the denominator, which comes last; zeros where no token was seen."""
    denominator = sums[..., -1:]
    return sums[..., :-1] / denominator.masked_fill(denominator == 0, 1.0)


def _prefixes(m: Tensor, sums: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """All prefixes of a sequence of contributions.

    Args:
        m: ``(..., n)``, the unit of each; sums: ``(..., n, c)``, whatever is summed, in that unit.

    Returns:
        ``(..., n)`` and ``(..., n, c)``, newly made.
    """
    n = m.shape[-1]
    if n == 1:
        return m.clone(), sums * (m != -torch.inf).unsqueeze(-1)
    size = min(n, block)
    count = -(-n // size)
    if count * size > n:
        m = F.pad(m, (0, count * size - n), value=-torch.inf)
        sums = F.pad(sums, (0, 0, 0, count * size - n))
    m, sums = m.unflatten(-1, (count, size)), sums.unflatten(-2, (count, size))
    later = torch.ones(size, size, dtype=torch.bool, device=m.device).triu_(1)
    if torch.compiler.is_compiling():  # the same numbers by what every exporter knows
        top = m.unsqueeze(-2).masked_fill(later, -torch.inf).amax(-1)
    else:
        top = m.cummax(-1).values
    weights = m.unsqueeze(-2) - top.masked_fill(top == -torch.inf, 0.0).unsqueeze(-1)
    weights = weights.masked_fill_(later, -torch.inf).exp_()
    inside = weights @ sums
    del weights
    if count > 1:
        before, carried = _prefixes(top[..., -1], inside[..., -1, :], block)
        # Block 0 has nothing before it; the last prefix of the blocks is nobody's.
        before, carried = before[..., :-1].unsqueeze(-1), carried[..., :-1, :].unsqueeze(-2)
        own, total = top[..., 1:, :], torch.maximum(top[..., 1:, :], before)
        inside[..., 1:, :, :] *= _shift(own, total).unsqueeze(-1)
        inside[..., 1:, :, :].addcmul_(_shift(before, total).unsqueeze(-1), carried)
        top = torch.cat((top[..., :1, :], total), -2)
    return top.flatten(-2)[..., :n], inside.flatten(-3, -2)[..., :n, :]


def _prefixes_after(m: Tensor, sums: Tensor, m_0: Tensor, sums_0: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """:func:`_prefixes` with a contribution ``m_0 (...,)``, ``sums_0 (..., c)`` before the first."""
    top, inside = _prefixes(m, sums, block)
    total = torch.maximum(top, m_0.unsqueeze(-1))
    inside *= _shift(top, total).unsqueeze(-1)
    inside.addcmul_(_shift(m_0.unsqueeze(-1), total).unsqueeze(-1), sums_0.unsqueeze(-2))
    return total, inside


def _sums(
    scores: Tensor, values: Tensor, m: Tensor | None, u: Tensor | None, w: Tensor | None, block: int
) -> tuple[Tensor, Tensor]:
    """Of every prefix the largest score, and ``[numerator, denominator]`` side by side."""
    real = sum_dtype(values.dtype)
    leaves = torch.cat((values.to(real), torch.ones_like(scores, dtype=real).unsqueeze(-1)), -1)
    if m is None or u is None or w is None:
        return _prefixes(scores.to(real), leaves, block)
    before = torch.cat((w, u.unsqueeze(-1)), -1).to(real)
    return _prefixes_after(scores.to(real), leaves, m.to(real), before, block)


def _forward(
    scores: Tensor, values: Tensor, m: Tensor | None, u: Tensor | None, w: Tensor | None, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    top, sums = _sums(scores, values, m, u, w, block)
    out = _ratio(sums).to(values.dtype)
    return out, top[..., -1].clone(), sums[..., -1, -1].clone(), sums[..., -1, :-1].clone()


def _backward(
    grad: Tensor,
    grad_m: Tensor,
    grad_u: Tensor,
    grad_w: Tensor,
    scores: Tensor,
    values: Tensor,
    m: Tensor | None,
    u: Tensor | None,
    w: Tensor | None,
    block: int,
) -> Results:
    """With ``m_k, u_k`` the unit and denominator of prefix k, and g_k the gradient of o_k::

        dv_i = exp(s_i) sum_{k >= i} exp(-m_k) / u_k g_k
        ds_i = exp(s_i) sum_{k >= i} exp(-m_k) / u_k (g_k . v_i - g_k . o_k)

    Both sums are prefixes of the reversed sequence with scores ``-m_k``. The gradient of the final state, in the unit
    ``exp(-m)``, comes before its first element; the initial state is a token with score m behind its last.
    """
    real = sum_dtype(values.dtype)
    top, sums = _sums(scores, values, m, u, w, block)
    denominator = sums[..., -1:]
    # Where nothing was seen yet the output is constant: -inf leaves it out, as it leaves out a token.
    unit = (-top).masked_fill(top == -torch.inf, -torch.inf).flip(-1)
    grad = grad.to(real) / denominator.masked_fill(denominator == 0, 1.0)
    pulls = torch.cat((grad, -(grad * _ratio(sums)).sum(-1, keepdim=True)), -1).flip(-2)
    del sums, denominator, grad
    of_state = torch.cat((grad_w, grad_u.unsqueeze(-1)), -1).to(real)
    unit, pulls = _prefixes_after(unit, pulls, unit[..., 0], of_state, block)
    unit, pulls = unit.flip(-1), pulls.flip(-2)
    at_start = None if m is None else torch.exp(m.to(real) + unit[..., 0]).unsqueeze(-1) * pulls[..., 0, :]
    pulls *= torch.exp(scores.to(real) + unit).unsqueeze(-1)
    grad_values = pulls[..., :-1]
    grad_scores = (grad_values * values).sum(-1) + pulls[..., -1]
    if m is None or at_start is None:
        return grad_scores, grad_values, None, None, None
    return grad_scores, grad_values, torch.zeros_like(m), at_start[..., -1], at_start[..., :-1]


def _shapes(
    scores: Tensor, values: Tensor, m: Tensor | None, u: Tensor | None, w: Tensor | None, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, _, width = values.shape
    state = values.new_empty(batch, heads, width, dtype=sum_dtype(values.dtype))
    return values.new_empty(values.shape), state[..., 0].clone(), state[..., 0].clone(), state


_blocks = handwritten(
    "prefix_attention",
    "Tensor scores, Tensor values, Tensor? m, Tensor? u, Tensor? w, int block",
    outputs=4,
    extras=0,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def _check(scores: Tensor, values: Tensor, state: PrefixState | None, block: int) -> None:
    if values.ndim != 4 or tuple(scores.shape) != tuple(values.shape[:3]):
        raise InvalidValue(
            f"scores have shape {tuple(scores.shape)} and values {tuple(values.shape)}: "
            f"(batch, heads, n) and (batch, heads, n, width) are needed."
        )
    if values.shape[2] < 1:
        raise InvalidValue(f"the sequence is empty (values {tuple(values.shape)}): at least one token is needed.")
    if not (scores.is_floating_point() and values.is_floating_point()):
        raise InvalidType(f"scores and values must be floating, not {scores.dtype} and {values.dtype}.")
    if not isinstance(block, int) or block < 2:
        raise InvalidValue(f"block={block!r} is not possible: a whole number of at least 2 is needed.")
    if state is None:
        return
    batch, heads, _, width = values.shape
    for name, value, shape in zip("muw", state, ((batch, heads), (batch, heads), (batch, heads, width)), strict=True):
        if tuple(value.shape) != shape:
            raise InvalidValue(f"state.{name} has shape {tuple(value.shape)}: it must be {shape} for these values.")
