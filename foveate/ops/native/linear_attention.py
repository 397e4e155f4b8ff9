"""Linear attention with decays through its CPU kernel.

The op is that of :mod:`foveate.ops.linear_attention`. The kernel knows one recurrence, ``S <- exp(a_t) S + k_t^T v_t``
and ``o_t = q_t S``. Here ``a`` is constant for each head; in ``ssd.py`` it differs from position to position.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from ..handwritten import Results, handwritten, sum_dtype
from ..linear_attention_chunks import backward
from . import SCALARS, address, call, fresh, rows, takes, whole

#: Positions of a chunk, and chunks between the states that the forward pass leaves for the backward pass.
BLOCK, EVERY = 48, 10
#: Heads that share keys and queries are taken together up to this number.
MOST_HEADS = 8
#: Value columns are divided in multiples of these.
COLUMNS = 32
#: Units of work that the backward pass is divided into where there are fewer heads. Their sums are added up afterwards,
#: so that the number must not depend on the threads: results would.
UNITS = 4
#: Fewer numbers than these are not divided.
DIVIDED_FROM = 32768


class _Arguments(ctypes.Structure):
    """``LinearArguments`` of kernels/linear_attention.cpp, field for field."""

    _numbers = (
        "scalar batch length groups per_group keys values block every span slice constant q_batch q_time q_group "
        "k_batch k_time k_group v_batch v_time v_head decay_batch decay_time decay_head dt_batch dt_time dt_head "
        "state_key state_value out_batch out_time out_head grad_batch grad_time grad_group"
    )
    _pointers = (
        "q k v decay dt skip initial reset out last starts grad_out grad_last grad_q grad_k grad_v grad_decay grad_dt "
        "grad_skip grad_initial"
    )
    _fields_ = [(n, c_int64) for n in _numbers.split()] + [(n, c_void_p) for n in _pointers.split()]


class Prepared:
    """The inputs as the kernel wants them, and the structure that points at them.

    Holds every tensor that a pointer of the structure points into.

    Args:
        q, k: ``(batch, n, groups, d)``.
        v: ``(batch, n, heads, e)``.
        decay: logarithms, ``(heads,)`` or ``(batch, n, heads)``.
        dt: ``(batch, n, heads)``: weights of the values.
        skip: ``(heads, e)``.
        initial: states ``(batch, heads, d, e)``.
        reset: bool ``(batch, n)``, True where nothing is seen of what came before.
        backward: which of the two passes it is for.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        decay: Tensor,
        dt: Tensor | None,
        skip: Tensor | None,
        initial: Tensor | None,
        reset: Tensor | None,
        every: int,
        backward: bool,
    ) -> None:
        self.real = real = sum_dtype(v.dtype)
        self.backward = backward
        batch, length, groups, keys = q.shape
        heads, values = v.shape[2:]
        self.sizes = batch, length, groups, heads, keys, values
        q, k, v = (rows(m) for m in (q, k, v))
        decay, dt = decay.to(real), None if dt is None else dt.to(real)
        self.inputs = {"q": q, "k": k, "v": v, "decay": decay, "dt": dt, "skip": whole(skip, real)}
        self.inputs["reset"] = None if reset is None else reset.to(torch.uint8).contiguous()
        wanted = 1 if v.numel() < DIVIDED_FROM else UNITS if backward else torch.get_num_threads()
        self.span, self.slice = _divided(batch * groups, heads // groups, values, wanted)
        self.arguments = arguments = _Arguments(
            scalar=SCALARS[v.dtype],
            batch=batch,
            length=length,
            groups=groups,
            per_group=heads // groups,
            keys=keys,
            values=values,
            block=BLOCK,
            every=every,
            span=self.span,
            slice=self.slice,
            constant=decay.ndim == 1,
        )
        self._strides("q", q, "group")
        self._strides("k", k, "group")
        self._strides("v", v, "head")
        if decay.ndim == 1:
            arguments.decay_head = decay.stride(0)
        else:
            self._strides("decay", decay, "head")
        if dt is not None:
            self._strides("dt", dt, "head")
        self.give(**self.inputs)
        if initial is not None:
            self.states(initial=initial)

    @property
    def slices(self) -> int:
        """Units that the columns of a head are divided into."""
        return -(-self.sizes[5] // self.slice)

    @property
    def shares(self) -> int:
        """Units that each leave a share of the gradients of ``q`` and ``k``."""
        _, _, groups, heads, _, _ = self.sizes
        return -(-heads // groups // self.span) * self.slices

    def _strides(self, name: str, m: Tensor, last: str) -> None:
        for axis, stride in zip(("batch", "time", last), m.stride(), strict=False):
            setattr(self.arguments, f"{name}_{axis}", stride)

    def give(self, **rooms: Tensor | None) -> None:
        """Point the structure at where results go, or at further inputs."""
        for name, room in rooms.items():
            setattr(self.arguments, name, address(room))
        self.inputs |= rooms

    def states(self, **states: Tensor | None) -> None:
        """The same for states ``(..., batch, heads, d, e)`` in one layout of the caller's, dense but for its order."""
        for state in states.values():
            if state is not None:
                self.arguments.state_key, self.arguments.state_value = state.stride()[-2:]
        self.give(**states)

    def outputs(self, **outputs: Tensor) -> None:
        """The same for tensors like ``v``, all with the same strides."""
        for output in outputs.values():
            self._strides("out", output, "head")
        self.give(**outputs)

    def gradients(self, grad_q: Tensor, grad_k: Tensor) -> None:
        """The same for the gradients ``(shares, batch, n, groups, d)``, dense but for their order."""
        for axis, stride in zip(("batch", "time", "group"), grad_q.stride()[1:], strict=False):
            setattr(self.arguments, f"grad_{axis}", stride)
        self.give(grad_q=grad_q, grad_k=grad_k)

    def room(self, *shape: int) -> Tensor:
        """Memory for sums."""
        return fresh(torch.empty(shape, dtype=self.real))

    def run(self) -> None:
        """Call the kernel."""
        call("foveate_linear_attention", self.arguments, int(self.backward))


def total(shares: Tensor) -> Tensor:
    """The sum over the first axis."""
    return shares[0] if len(shares) == 1 else shares.sum(0)


def chunks_between_states() -> int:
    """After how many chunks the forward pass keeps a state: without a backward pass, none but the first."""
    return EVERY if torch.is_grad_enabled() else 2**20


def pieces(length: int, every: int) -> int:
    """How many states the forward pass leaves for the backward pass."""
    return -(-length // (BLOCK * every))


def _divided(groups: int, per_group: int, values: int, wanted: int) -> tuple[int, int]:
    """Heads and value columns of a unit of work, so that there are as many as wanted; columns are divided last."""
    span = min(MOST_HEADS, -(-per_group // min(per_group, -(-wanted // groups))))
    units = groups * -(-per_group // span)
    columns = -(-values // COLUMNS)
    return span, min(values, COLUMNS * -(-columns // min(columns, -(-wanted // units))))


def fits(q: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel takes these: real numbers on the CPU, in a storage type that it knows."""
    return q.dtype in SCALARS and takes(q, *others)


def _prepared(
    q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor | None, run: Tensor | None, every: int, backward: bool
) -> Prepared:
    reset = None if run is None else torch.diff(run, dim=1, prepend=run[:, :1]) != 0
    q, k, v = (m.transpose(1, 2) for m in (q, k, v))
    return Prepared(q, k, v, -slope, None, None, whole(state, slope.dtype), reset, every, backward)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    state: Tensor | None,
    run: Tensor | None,
    block: int,
    return_state: bool,
    learn_slope: bool,
    every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    o, after, starts = map(fresh, _shapes(q, k, v, slope, state, run, block, return_state, learn_slope, every))
    given = _prepared(q, k, v, slope, state, run, every, backward=False)
    given.outputs(out=o.transpose(1, 2))
    given.states(last=after if return_state else None, starts=starts)
    given.run()
    return o, after, starts


def _backward(
    do: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    state: Tensor | None,
    run: Tensor | None,
    block: int,
    return_state: bool,
    learn_slope: bool,
    every: int,
    starts: Tensor,
) -> Results:
    if torch.is_grad_enabled():  # to be differentiated once more: by what autograd sees through
        return backward(do, dstate, q, k, v, slope, state, run, block, return_state, learn_slope)
    given = _prepared(q, k, v, slope, state, run, every, backward=True)
    batch, heads, n, d = q.shape
    dv = fresh(torch.empty(v.shape, dtype=v.dtype))
    given.outputs(grad_out=do.to(v.dtype).contiguous().transpose(1, 2), grad_v=dv.transpose(1, 2))
    dq, dk = (given.room(given.shares, batch, heads, n, d) for _ in range(2))
    given.gradients(dq.transpose(2, 3), dk.transpose(2, 3))
    dpast = None if state is None else torch.empty(state.shape, dtype=given.real)
    given.states(starts=starts, grad_last=whole(dstate, given.real) if return_state else None, grad_initial=dpast)
    decays = given.room(given.slices, batch, n, heads) if learn_slope else None
    given.give(grad_decay=decays)
    given.run()
    dslope = torch.zeros_like(slope) if decays is None else -decays.sum((0, 1, 2))
    return total(dq), total(dk), dv, dslope, dpast, None


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    state: Tensor | None,
    run: Tensor | None,
    block: int,
    return_state: bool,
    learn_slope: bool,
    every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, n, d = q.shape
    after = (batch, heads, d, v.shape[-1])
    return (
        torch.empty(v.shape, dtype=v.dtype, device=v.device),
        slope.new_empty(after if return_state else (0,)),
        slope.new_empty(pieces(n, every), *after),
    )


_op = handwritten(
    "lightning_attention_native",
    "Tensor q, Tensor k, Tensor v, Tensor slope, Tensor? state, Tensor? run, "
    "int block, bool return_state, bool learn_slope, int every",
    outputs=2,
    extras=1,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
)


def linear_attention_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    state: Tensor | None,
    run: Tensor | None,
    block: int,
    return_state: bool,
    learn_slope: bool,
) -> tuple[Tensor, Tensor]:
    """As :data:`foveate.ops.linear_attention_chunks.chunked`, for what :func:`fits`.

    ``block`` is read only where the result is differentiated twice.
    """
    o, after = _op(q, k, v, slope, state, run, block, return_state, learn_slope, chunks_between_states())
    return o, after
