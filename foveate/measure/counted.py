"""The cost of any module, counted while it runs; on the meta device nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import FoveateError
from .cost import Cost
from .flops import count_flops
from .memory import saved_bytes

#: Operators whose every output number takes a function that processors compute by a polynomial.
_EXPS = {
    "exp", "exp2", "expm1", "log", "log2", "log1p", "sigmoid", "log_sigmoid_forward", "tanh", "silu", "gelu", "erf",
    "softplus", "mish", "elu", "_softmax", "_log_softmax", "logsumexp", "sin", "cos", "pow",
}  # fmt: skip


class _Counter(TorchDispatchMode):
    """Adds up what operators without any fusion move and compute."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = self.exps = self.elementwise = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = tensors_of((args, kwargs)), tensors_of(out)
        if moves_data(func):
            self.moved += sum(bytes_of(t) for t in read) + sum(bytes_of(t) for t in written)
        count = sum(t.numel() for t in written)
        if func.overloadpacket.__name__.removesuffix("_") in _EXPS:
            self.exps += count
        elif torch.Tag.pointwise in func.tags:
            self.elementwise += count
        return out


def tensors_of(values: Any) -> list[Tensor]:
    """All tensors in nested arguments or results."""
    return [v for v in tree_leaves(values) if isinstance(v, Tensor)]


def bytes_of(tensor: Tensor) -> int:
    """Bytes of memory that a tensor's numbers take; what is broadcast counts once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride or not size else 1
    return numbers * tensor.element_size()


def moves_data(func: Any) -> bool:
    """Whether an operator reads or writes numbers: not a view, nor a room that is left empty."""
    if func.is_view or func.overloadpacket.__name__ in ("detach", "_unsafe_view", "_reshape_alias", "lift_fresh"):
        return False
    return not func.overloadpacket.__name__.startswith(("empty", "new_empty", "sym_", "is_"))


def count_bytes(call: Callable[[], Any]) -> int:
    """Bytes that the operators of one call read and write, each for itself, without gradients.

    An upper bound of what passes through memory: neighbouring operators find some of it in the cache, and fused ones
    never write it.
    """
    return _counted(call).moved


def _counted(call: Callable[[], Any]) -> _Counter:
    with torch.no_grad(), _Counter() as counter:
        call()
    return counter


def count_cost(module: nn.Module, *args: Any, **kwargs: Any) -> Cost:
    """The cost of ``module(*args, **kwargs)`` in the mode (train or eval) it is in.

    Ask for torch's own operators first (``with foveate.ops.backend("torch")``): what a native kernel does is not seen.

    Args:
        module: any; with module and inputs on the meta device nothing is computed.

    Returns:
        All fields of :class:`Cost`; bytes moved are those of :func:`count_bytes`, the state is that of a mixer or model
        for this batch size.
    """
    counter = _counted(lambda: module(*args, **kwargs))
    state = 0
    if hasattr(module, "init_state"):
        try:
            state = module.init_state(len(tensors_of((args, kwargs))[0])).nbytes  # type: ignore[operator]
        except FoveateError:  # it has no streaming form
            state = 0
    return Cost(
        flops=count_flops(lambda: module(*args, **kwargs)),
        parameters=sum(p.numel() for p in module.parameters()),
        activation_bytes=saved_bytes(module, *args, **kwargs),
        state_bytes=state,
        elementwise=counter.elementwise,
        exps=counter.exps,
        moved_bytes=counter.moved,
    )
