"""Ops whose backward pass is written by hand, because autograd's would keep too much.

A recurrence that autograd differentiates stores every intermediate state. Written by hand, its backward pass needs the
inputs and a few checkpoints. :func:`handwritten` turns the two plain functions into an op in two dresses with the same
arithmetic: an ``autograd.Function`` made of aten operations (eager mode and ``backend("torch")``, what export and FLOP
counters look into), and a ``torch.library`` custom op that ``torch.compile`` keeps as one node, so that compile time
does not grow with the sequence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .backend import current_backend

Results = Sequence[Tensor | None]


def handwritten(
    name: str,
    arguments: str,
    outputs: int,
    extras: int,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., Results],
    shapes: Callable[..., tuple[Tensor, ...]],
    reads_outputs: bool = False,
    constants: Sequence[str] = (),
) -> Callable[..., tuple[Tensor, ...]]:
    """Make an op of a forward and a backward function.

    Args:
        name: the op is ``foveate::<name>`` in compiled graphs.
        arguments: their schema, such as ``"Tensor x, Tensor? bias, bool silu"``.
        outputs: number of results that the caller gets.
        extras: results after those, saved for the backward pass only.
        forward: ``(*arguments) -> outputs + extras``, all newly made; called without autograd and without autocast.
        backward: ``(*gradients of the outputs, *arguments, *extras)`` -> one gradient per tensor argument, in its
            shape; None where the argument is None or has no gradient.
        shapes: ``(*arguments) -> outputs + extras``, empty, with the shapes and dtypes that ``forward`` returns.
        reads_outputs: ``backward`` gets the outputs too, before the extras.
        constants: tensors among the arguments that have no gradient, though they are floating.

    Returns:
        The op, differentiable once: ``(*arguments) -> outputs`` (a tuple).
    """
    kinds = [argument.split()[0] for argument in arguments.split(", ")]
    is_tensor = [kind.startswith("Tensor") for kind in kinds]
    is_fixed = [argument.split()[1] in constants for argument in arguments.split(", ")]
    incoming = [f"Tensor grad_{i}" for i in range(outputs)]
    first_kept = 0 if reads_outputs else outputs
    kept = [f"Tensor kept_{i}" for i in range(outputs - first_kept + extras)]

    def run_forward(*values: Any) -> tuple[Tensor, ...]:
        with _full_precision(values[0]):
            return forward(*values)

    def run_backward(*values: Any) -> tuple[Tensor, ...]:
        inputs = [v for v, tensor in zip(values[outputs:], is_tensor, strict=False) if tensor]
        with _full_precision(values[0]):
            found = backward(*values)
        # A schema has no optional results: an absent gradient travels as an empty tensor.
        return tuple(
            values[0].new_empty(0) if g is None else g.to(v.dtype).contiguous()
            for g, v in zip(found, inputs, strict=True)
        )

    def backward_shapes(*values: Any) -> tuple[Tensor, ...]:
        inputs = [(v, f) for v, t, f in zip(values[outputs:], is_tensor, is_fixed, strict=False) if t]
        return tuple(
            torch.empty(v.shape, dtype=v.dtype, device=v.device)
            if _differentiable(v) and not fixed
            else values[0].new_empty(0)
            for v, fixed in inputs
        )

    def schema(given: Sequence[str], results: int) -> str:
        return f"({', '.join(given)}) -> ({', '.join(['Tensor'] * results)})"

    def custom_op(
        name: str, run: Callable[..., tuple[Tensor, ...]], fake: Callable[..., tuple[Tensor, ...]], signature: str
    ) -> Any:
        op = torch.library.custom_op(f"foveate::{name}", _bare(run), mutates_args=(), schema=signature)
        op.register_fake(_bare(fake))
        return op

    forward_op = custom_op(name, run_forward, shapes, schema([arguments], outputs + extras))
    backward_op = custom_op(
        f"{name}_backward", run_backward, backward_shapes, schema([*incoming, arguments, *kept], sum(is_tensor))
    )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        output = _as_tuple(output)
        tensors = [v if tensor else None for v, tensor in zip(inputs, is_tensor, strict=True)]
        ctx.save_for_backward(*tensors, *output[first_kept:])
        ctx.constants = [None if tensor else v for v, tensor in zip(inputs, is_tensor, strict=True)]

    def differentiate(ctx: Any, gradients: Sequence[Tensor], run: Callable[..., Any]) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs = [s if t else c for s, c, t in zip(saved, ctx.constants, is_tensor, strict=False)]
        found = iter(_as_tuple(run(*gradients[:outputs], *inputs, *saved[len(is_tensor) :])))
        return tuple(
            (g if _differentiable(v) and not fixed else None) if t else None
            for v, t, fixed, g in (
                (v, t, fixed, next(found) if t else None)
                for v, t, fixed in zip(inputs, is_tensor, is_fixed, strict=True)
            )
        )

    forward_op.register_autograd(
        lambda ctx, *gradients: differentiate(ctx, gradients, backward_op), setup_context=setup
    )

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*values: Any) -> tuple[Tensor, ...]:
            # Export inlines this function and forgets that nothing in it is differentiated: detaching says so again.
            return run_forward(*(v.detach() if isinstance(v, Tensor) else v for v in values))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            setup(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
            return differentiate(ctx, gradients, run_backward)

    # Where nothing needs a gradient, dynamo calls ``forward`` itself and counts its parameters to know whether it takes
    # a context.
    named = [inspect.Parameter(f"value_{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(len(is_tensor))]
    Function.forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]

    def call(*values: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling() and current_backend() != "torch":
            return _as_tuple(forward_op(*values))[:outputs]
        if not torch.is_grad_enabled():
            return run_forward(*values)[:outputs]
        return Function.apply(*values)[:outputs]

    return call


def sample_groups(batch: int, size: int) -> list[slice]:
    """Cut a batch into groups of at most ``size`` samples, so that what is computed at once stays in the cache.

    Compilers and exporters see one group: the number of samples may be unknown to them.
    """
    if torch.compiler.is_compiling():
        return [slice(None)]
    size = max(1, size)
    return [slice(start, start + size) for start in range(0, batch, size)]


def planning_batch(x: Tensor) -> int:
    """The batch size that block lengths may depend on: 1 for compilers and exporters, who may not know it."""
    return 1 if torch.compiler.is_compiling() else x.shape[0]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of states and sums for inputs of this dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _bare(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """``run`` as a custom op returns it: a single result without its tuple."""

    def bare(*values: Any) -> Any:
        results = run(*values)
        return results[0] if len(results) == 1 else results

    return bare


def _as_tuple(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def _differentiable(value: Tensor | None) -> bool:
    return value is not None and (value.is_floating_point() or value.is_complex())


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast off: recurrences choose their own precision (float32 states)."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
