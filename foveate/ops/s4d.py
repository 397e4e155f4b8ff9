"""S4D: a linear state-space model with a diagonal, complex, time-invariant state.

Gu, Gupta, Goel and Re, "On the Parameterization and Initialization of Diagonal State Space Models" (NeurIPS 2022, arXiv
2206.11893). Every channel keeps N complex numbers, which stand for themselves and their conjugates::

    x_t = dA x_{t-1} + dB u_t,        y_t = 2 Re(sum_n C_n x_{t,n})

with dA, dB from the continuous A and a step size dt, by zero-order hold ``dA = exp(dt A), dB = (dA - 1) / A`` or the
bilinear rule ``dA = (1 + dt A / 2) / (1 - dt A / 2), dB = dt / (1 - dt A / 2)``. Over a whole sequence this is a
convolution with the kernel ``K_l = 2 Re(sum_n C_n dB_n dA_n^l)`` (section 3.1).

The paper convolves with an FFT, which spreads rounding errors of later inputs to earlier outputs. :func:`s4d`, which is
causal to the last bit, works in chunks instead: inside a chunk a product with the kernel's Toeplitz matrix, between
chunks the state, O(n). :func:`convolve_both_ways` uses the FFT. :func:`_reference` is the recurrence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue, invalid
from ..registry import register
from .backend import choose
from .handwritten import Results, handwritten, sum_dtype

Rule = Literal["zoh", "bilinear"]
#: Inputs of a chunk unless told: on CPU the fastest of 16, 32, 64 and 128 with 32 numbers of state.
BLOCK = 64


class Discrete(NamedTuple):
    """The recurrence of all channels, complex ``(channels, N)``.

    Attributes:
        log_decay: logarithm of the factor dA per step, so that powers are exponentials.
        weight: dB, that of the input.
    """

    log_decay: Tensor
    weight: Tensor

    def powers(self, exponents: Tensor) -> Tensor:
        """``dA`` to each of ``(n,)`` exponents: ``(channels, N, n)``."""
        return torch.exp(self.log_decay.unsqueeze(-1) * exponents)


def discretise(A: Tensor, dt: Tensor, rule: Rule = "zoh") -> Discrete:
    """The recurrence of a continuous model.

    Args:
        A: complex ``(channels, N)``, real parts negative.
        dt: ``(channels,)``, positive.
        rule: "zoh" (zero-order hold) or "bilinear".

    Raises:
        InvalidValue: shapes that do not fit, or an unknown rule.
        InvalidType: A is not complex.
    """
    if rule not in get_args(Rule):
        raise invalid("rule", rule, "it must be 'zoh' or 'bilinear'")
    if not A.is_complex():
        raise InvalidType(f"A must be complex, not {A.dtype}.")
    if A.ndim != 2 or tuple(dt.shape) != (A.shape[0],):
        raise InvalidValue(f"A {tuple(A.shape)} and dt {tuple(dt.shape)} must be (channels, N) and (channels,).")
    step = dt.unsqueeze(-1) * A
    if rule == "zoh":
        return Discrete(step, _expm1(step) / A)
    return Discrete(torch.log((1 + step / 2) / (1 - step / 2)), dt.unsqueeze(-1) / (1 - step / 2))


def _expm1(z: Tensor) -> Tensor:
    """``exp(z) - 1`` without cancellation near 0: ``e^a cos b - 1 = (e^a - 1) cos b - 2 sin^2(b / 2)``."""
    a, b = z.real, z.imag
    return torch.complex(torch.expm1(a) * b.cos() - 2 * (b / 2).sin().square(), a.exp() * b.sin())


@register("op", "s4d", system="s4d")
def s4d(
    u: Tensor,
    A: Tensor,
    C: Tensor,
    dt: Tensor,
    *,
    rule: Rule = "zoh",
    initial_state: Tensor | None = None,
    return_state: bool = False,
    lengths: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor | tuple[Tensor, Tensor]:
    """The state-space model over a whole sequence, from the past only.

    Args:
        u: ``(batch, channels, L)``, L >= 1.
        A, C: complex ``(channels, N)``: the state's rates, with negative real parts, and what is read from it.
        dt: step sizes ``(channels,)``, positive.
        rule: "zoh" or "bilinear", see :func:`discretise`.
        initial_state: complex ``(batch, channels, N)``, what earlier inputs left; None: zeros.
        return_state: also return the state after the last input.
        lengths: int64 ``(batch,)``: the returned state is that after so many inputs; those behind must be zeros. None:
            after all.
        block: inputs of a chunk of the fast form, at least 1. Changes speed only.

    Returns:
        ``(batch, channels, L)`` in u's dtype, or that and the state, complex ``(batch, channels, N)``. Sums are made in
        float32 (float64 for float64 ``u``).

    Raises:
        InvalidValue: shapes that do not fit together, an unknown rule, an illegal block.
        InvalidType: A or C that is not complex, or a state that is not.
    """
    _check(u, A, C, initial_state, lengths, block)
    real = sum_dtype(u.dtype)
    wide = torch.complex128 if real == torch.float64 else torch.complex64
    model = discretise(A.to(wide), dt.to(real), rule)
    state = None if initial_state is None else initial_state.to(wide)
    wants_state = return_state and lengths is None
    y, after = choose(_reference, _chunked)(u.to(real), model, C.to(wide), state, block, wants_state)
    if return_state and lengths is not None:
        after = _state_after(u.to(real), model, state, lengths, block)
    if not return_state:
        return y.to(u.dtype)
    assert after is not None
    return y.to(u.dtype), after


def s4d_step(
    u_t: Tensor, A: Tensor, C: Tensor, dt: Tensor, state: Tensor, *, rule: Rule = "zoh"
) -> tuple[Tensor, Tensor]:
    """One step of the recurrence.

    Args:
        u_t: ``(batch, channels)``.
        state: complex ``(batch, channels, N)``; it is not changed.

    The other arguments are those of :func:`s4d`.

    Returns:
        The output ``(batch, channels)`` in u_t's dtype, and the new state.
    """
    model = discretise(A.to(state.dtype), dt.to(state.real.dtype), rule)
    state = torch.exp(model.log_decay) * state + model.weight * u_t.to(state.real.dtype).unsqueeze(-1)
    return 2 * (C.to(state.dtype) * state).real.sum(-1).to(u_t.dtype), state


def s4d_kernel(A: Tensor, C: Tensor, dt: Tensor, length: int, *, rule: Rule = "zoh", block: int = BLOCK) -> Tensor:
    """The convolution kernel ``(channels, length)``, real, in the precision of A.

    Powers up to any length are products of two short rows of powers, so that nothing of size N times length is made.
    """
    model = discretise(A, dt, rule)
    run = choose(_kernel_reference, _kernel)
    return run(C * model.weight, model.log_decay, length, min(block, length))[0]


def _kernel_reference(weight: Tensor, log_dA: Tensor, length: int, size: int) -> tuple[Tensor]:
    """The definition: all powers at once."""
    powers = torch.exp(log_dA.unsqueeze(-1) * torch.arange(length, device=weight.device))
    return (2 * (weight.unsqueeze(-1) * powers).real.sum(1),)


def _rows_of_powers(log_dA: Tensor, length: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Exponents ``starts + place`` as a column and a row, and the powers to each: ``(channels, N, n)``."""
    starts = torch.arange(0, length, size, device=log_dA.device)
    place = torch.arange(size, device=log_dA.device)
    model = Discrete(log_dA, log_dA)
    return starts, place, model.powers(starts), model.powers(place)


def _kernel_forward(weight: Tensor, log_dA: Tensor, length: int, size: int) -> tuple[Tensor]:
    _, _, heads, tails = _rows_of_powers(log_dA, length, size)
    # Re(a b) as a real product over [Re, Im] pairs, of half the cost of a complex one.
    rows = torch.view_as_real((weight.unsqueeze(-1) * heads).transpose(1, 2).contiguous()).flatten(2)
    columns = torch.view_as_real(tails.conj().resolve_conj()).transpose(2, 3).flatten(1, 2)
    return ((2 * (rows @ columns)).flatten(1)[:, :length].contiguous(),)


def _kernel_backward(grad: Tensor, weight: Tensor, log_dA: Tensor, length: int, size: int) -> Results:
    """With ``E_l`` the l-th power: the weight's gradient is ``2 sum_l g_l conj(E_l)``, the exponent's has l too."""
    starts, place, heads, tails = _rows_of_powers(log_dA, length, size)
    cut = F.pad(grad, (0, len(starts) * size - length)).unflatten(-1, (-1, size)).to(weight.dtype)
    tails = tails.conj().transpose(1, 2)
    of_tails, of_places = cut @ tails, (cut * place) @ tails
    heads = heads.conj().transpose(1, 2)
    grad_weight = 2 * (heads * of_tails).sum(1)
    grad_power = 2 * (heads * (starts[:, None] * of_tails + of_places)).sum(1)
    return grad_weight, grad_power * weight.conj()


def _kernel_shapes(weight: Tensor, log_dA: Tensor, length: int, size: int) -> tuple[Tensor]:
    return (weight.real.new_empty(weight.shape[0], length),)


_kernel = handwritten(
    "s4d_kernel",
    "Tensor weight, Tensor log_dA, int length, int size",
    outputs=1,
    extras=0,
    forward=_kernel_forward,
    backward=_kernel_backward,
    shapes=_kernel_shapes,
)


def convolve_both_ways(u: Tensor, kernel: Tensor, kernel_back: Tensor) -> Tensor:
    """``y_t = sum_{s <= t} kernel_{t-s} u_s + sum_{s > t} kernel_back_{s-t-1} u_s``, by one FFT.

    Args:
        u: ``(batch, channels, L)``.
        kernel, kernel_back: real ``(channels, L)``.

    Returns:
        ``(batch, channels, L)`` in u's dtype; computed in the kernels' precision.
    """
    length = u.shape[-1]
    size = 1 << (2 * length - 1).bit_length()  # no shorter than 2 L, so that the two ends never meet
    both = F.pad(kernel, (0, size - length)) + F.pad(kernel_back.flip(-1), (size - length, 0))
    spectrum = torch.fft.rfft(u.to(kernel.dtype), size) * torch.fft.rfft(both)
    return torch.fft.irfft(spectrum, size)[..., :length].to(u.dtype)


class Part(NamedTuple):
    """Consecutive chunks of equal size, whether there is a state before them, and whether the one behind is needed."""

    start: int
    chunks: int
    size: int
    has_state: bool
    needed: bool

    @property
    def inputs(self) -> slice:
        return slice(self.start, self.start + self.chunks * self.size)

    @property
    def reads(self) -> bool:
        """Whether any chunk reads a state."""
        return self.chunks > 1 or self.has_state

    @property
    def writes(self) -> bool:
        """Whether the chunks' contributions to the state are computed."""
        return self.chunks > 1 or self.needed


def _parts(length: int, block: int, has_state: bool, wants_state: bool) -> Iterator[Part]:
    """Full chunks, then the rest as one short chunk."""
    chunks, rest = divmod(length, block)
    if chunks:
        yield Part(0, chunks, block, has_state, wants_state or rest > 0)
    if rest:
        yield Part(chunks * block, 1, rest, has_state or chunks > 0, wants_state)


def s4d_flops(length: int, channels: int, n: int, batch: int = 1, block: int = BLOCK) -> int:
    """FLOPs of the matrix products of :func:`s4d` without initial and returned states, 2 per multiply-add."""
    macs = 0
    for part in _parts(length, block, False, False):
        macs += batch * channels * part.chunks * part.size * (part.size + 2 * n * (part.reads + part.writes))
    return 2 * macs


def s4d_saved(length: int, channels: int, n: int, batch: int = 1, block: int = BLOCK) -> int:
    """Numbers that :func:`s4d` keeps for its backward pass: inputs in chunks, states twice, and tables per channel."""
    saved = 24 * channels * n
    for part in _parts(length, block, False, False):
        saved += batch * channels * part.chunks * (part.size + 4 * n * part.reads)
        saved += channels * part.size * (part.size + 2 * n * (1 + part.reads + part.writes)) + 2 * part.size**2
    return saved


def both_ways_saved(length: int, channels: int, n: int, batch: int = 1) -> int:
    """Numbers that two kernels and :func:`convolve_both_ways` keep for the backward pass: padded inputs and spectra."""
    size = 1 << (2 * length - 1).bit_length()
    return 2 * size * channels * (batch + 1) + 24 * channels * n


def kernel_flops(length: int, channels: int, n: int, block: int = BLOCK) -> int:
    """FLOPs of the matrix product of :func:`s4d_kernel`."""
    size = min(block, length)
    return 2 * channels * -(-length // size) * size * 2 * n


def _reference(
    u: Tensor, model: Discrete, C: Tensor, state: Tensor | None, block: int, wants_state: bool
) -> tuple[Tensor, Tensor]:
    """The recurrence, one input after the other."""
    state, y = _or_zeros(u, model, state), []
    for u_t in u.unbind(-1):
        state = torch.exp(model.log_decay) * state + model.weight * u_t.unsqueeze(-1)
        y.append(2 * (C * state).real.sum(-1))
    return torch.stack(y, -1), state


def _or_zeros(u: Tensor, model: Discrete, state: Tensor | None) -> Tensor:
    return model.weight.new_zeros(*u.shape[:2], model.weight.shape[1]) if state is None else state


def _chunked(
    u: Tensor, model: Discrete, C: Tensor, state: Tensor | None, block: int, wants_state: bool
) -> tuple[Tensor, Tensor | None]:
    outputs = []
    for part in _parts(u.shape[-1], block, state is not None, wants_state):
        y, state = _chunks(u, part, model, C, state)
        outputs.append(y)
    return torch.cat(outputs, -1), state


def _cut(u: Tensor, part: Part) -> Tensor:
    """The part's inputs ``(channels, batch * chunks, size)``: one matrix product over samples and chunks each."""
    return u[..., part.inputs].unflatten(-1, (-1, part.size)).transpose(0, 1).reshape(u.shape[1], -1, part.size)


def _chunks(u: Tensor, part: Part, model: Discrete, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Outputs of a part, and the state after it if it is needed."""
    batch, channels, size = u.shape[0], u.shape[1], part.size
    powers = model.powers(torch.arange(size + 1, device=u.device))
    kernel = 2 * ((C * model.weight).unsqueeze(-1) * powers[..., :-1]).real.sum(1)
    place = torch.arange(size, device=u.device)
    lag = place - place[:, None]  # of the output (columns) behind the input (rows)
    toeplitz = kernel[:, lag.clamp(min=0)] * (lag >= 0)
    cut = _cut(u, part)
    y, after = cut @ toeplitz, state
    if part.reads or part.writes:
        states, after = _states(cut, part, model, powers, _or_zeros(u, model, state))
        if part.reads:
            # 2 Re(C dA^(i + 1) x) over [Re, Im] pairs of the state: the row [Re, -Im] of what it meets.
            reads = torch.view_as_real((C.unsqueeze(-1) * powers[..., 1:]).conj().resolve_conj())
            y = y + 2 * (states @ reads.transpose(2, 3).flatten(1, 2))
    return y.view(channels, batch, -1).transpose(0, 1), after


def _states(cut: Tensor, part: Part, model: Discrete, powers: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States before each chunk, as pairs ``(channels, batch * chunks, 2 N)``, and the one after the last if needed."""
    channels, (batch, _, n) = cut.shape[0], state.shape
    states = [state]
    if part.writes:
        weights = (model.weight.unsqueeze(-1) * powers[..., :-1]).flip(-1).transpose(1, 2).contiguous()
        totals = (cut @ torch.view_as_real(weights).flatten(2)).view(channels, batch, -1, n, 2)
        for total in torch.view_as_complex(totals).unbind(2):
            states.append(powers[..., -1] * states[-1] + total.transpose(0, 1))
        state = states.pop()
    before = torch.view_as_real(torch.stack(states, 2)).flatten(3)
    return before.transpose(0, 1).reshape(channels, -1, 2 * n), state


def _state_after(u: Tensor, model: Discrete, state: Tensor | None, lengths: Tensor, block: int) -> Tensor:
    """The state after ``lengths`` inputs per sample: as if the sequence ended there, zeros in front of it."""
    source = torch.arange(u.shape[-1], device=u.device) - (u.shape[-1] - lengths)[:, None]
    u = u.gather(2, source.clamp(min=0)[:, None].expand_as(u)).masked_fill((source < 0)[:, None], 0.0)
    after = _or_zeros(u, model, None)
    for part in _parts(u.shape[-1], block, False, True):
        powers = model.powers(torch.arange(part.size + 1, device=u.device))
        after = _states(_cut(u, part), part, model, powers, after)[1]
    return after if state is None else after + torch.exp(model.log_decay * lengths[:, None, None]) * state


def _check(u: Tensor, A: Tensor, C: Tensor, initial_state: Tensor | None, lengths: Tensor | None, block: int) -> None:
    if u.ndim != 3 or u.shape[2] < 1 or not u.is_floating_point():
        raise InvalidValue(f"u has shape {tuple(u.shape)} and type {u.dtype}: floating (batch, channels, L >= 1) fits.")
    if A.ndim != 2 or A.shape[0] != u.shape[1] or A.shape != C.shape:
        raise InvalidValue(
            f"A has shape {tuple(A.shape)} and C {tuple(C.shape)}: both must be ({u.shape[1]}, N) for this u."
        )
    for name, given in (("A", A), ("C", C), ("initial_state", initial_state)):
        if given is not None and not given.is_complex():
            raise InvalidType(f"{name} must be complex, not {given.dtype}.")
    wanted = {"initial_state": (initial_state, (*u.shape[:2], A.shape[1])), "lengths": (lengths, (u.shape[0],))}
    for name, (given, shape) in wanted.items():
        if given is not None and tuple(given.shape) != shape:
            raise InvalidValue(f"{name} has shape {tuple(given.shape)}: it must be {shape} for this u and A.")
    if not isinstance(block, int) or block < 1:
        raise invalid("block", block, "a positive whole number is needed")
