"""Where a model's time, arithmetic and memory traffic go: by kind of operator, by module, by length over depth.

After the characterisation of Golden et al., "Generative AI Beyond LLMs: System Implications of Multi-Modal Generation"
(ISPASS 2024, arXiv 2312.14385). Any PyTorch model is run as it is, and every operator that PyTorch dispatches is
recorded; what a native kernel does inside one call is not seen, so run foveate's own models under
``foveate.ops.backend("torch")``. FLOPs are 2 per multiply-add.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InvalidType, InvalidValue, invalid, unknown_name
from ..measure.counted import bytes_of, moves_data, tensors_of
from ..measure.flops import FLOPS
from .operators import KINDS, Record, find_attention, kind_of
from .report import Report

#: More of the time outside of PyTorch's operators than this is told.
UNATTRIBUTED = 0.05


def profile(
    model: nn.Module,
    inputs: Sequence[Any] | Callable[[int], Sequence[Any]],
    *,
    steps: int = 1,
    warmup: int = 1,
    repeats: int = 3,
    fused_attention: bool = True,
    kinds: Mapping[type[nn.Module], str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Run a model without gradients and record its operators.

    Args:
        model: in the mode (train or eval) it is in; called as ``model(*inputs)``.
        inputs: arguments, or a function from the step to the arguments (denoising, decoding with a growing cache).
        steps: calls that are recorded; the report is of all of them together.
        warmup: calls of the first step before anything is timed.
        repeats: each step is timed so often; times are medians.
        fused_attention: False: ``scaled_dot_product_attention`` runs as products and a softmax.
        kinds: classes of modules whose operators all count as one kind of :data:`~foveate.analysis.operators.KINDS`.
        clock: seconds; ``time.process_time`` counts no waiting for other processes.

    Returns:
        The :class:`~foveate.analysis.report.Report`.

    Raises:
        InvalidValue: a number that is not possible, or no operator ran.
        InvalidType: ``inputs`` is a single tensor.
        UnknownName: ``kinds`` names an unknown kind.
    """
    for option, value, least in (("steps", steps, 1), ("warmup", warmup, 0), ("repeats", repeats, 1)):
        if value < least:
            raise invalid(option, value, f"at least {least} is needed")
    if isinstance(inputs, torch.Tensor):
        raise InvalidType("inputs is a tensor: give the arguments as a tuple, (x,).")
    for kind in (kinds or {}).values():
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
    given = inputs if callable(inputs) else lambda _: inputs
    chosen: AbstractContextManager[Any] = nullcontext() if fused_attention else sdpa_kernel(SDPBackend.MATH)
    records: list[Record] = []
    outside: list[float] = []
    wall = 0.0
    with torch.no_grad(), chosen, _layers_in_parts():
        for _ in range(warmup):
            model(*given(0))
        for step in range(steps):
            arguments = given(step)
            runs = [_trace(model, arguments, kinds or {}, clock) for _ in range(repeats)]
            records += _shifted(_medians([run for run, _ in runs]), len(records))
            wall += statistics.median(seconds for _, seconds in runs)
            outside += [1 - sum(r.seconds for r in run) / seconds for run, seconds in runs]
    if not records:
        raise InvalidValue("no operator ran: the model computes nothing with PyTorch's operators.")
    unattributed = max(0.0, statistics.median(outside))
    if unattributed > UNATTRIBUTED and not any(p.is_meta for p in model.parameters()):
        warnings.warn(
            f"{100 * unattributed:.0f} % of the time was spent outside of PyTorch's operators (Python, native "
            "kernels): shares are of the rest.",
            stacklevel=2,
        )
    parameters = sum(p.numel() for p in model.parameters())
    return Report(tuple(records), wall, unattributed, parameters, steps)


@contextmanager
def _layers_in_parts() -> Iterator[None]:
    """Torch's transformer layers otherwise run as one operator each, of no kind."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _medians(runs: Sequence[Sequence[Record]]) -> list[Record]:
    """The first run's records with the median times of all, where all ran the same operators."""
    first = list(runs[0])
    if all([r.name for r in run] == [r.name for r in first] for run in runs):
        for i, record in enumerate(first):
            record.seconds = statistics.median(run[i].seconds for run in runs)
    return first


def _shifted(records: list[Record], by: int) -> list[Record]:
    for record in records:
        record.sources = tuple(source + by for source in record.sources)
        record.part_of += by if record.part_of >= 0 else 0
    return records


def _trace(
    model: nn.Module, arguments: Sequence[Any], kinds: Mapping[type[nn.Module], str], clock: Callable[[], float]
) -> tuple[list[Record], float]:
    """The operators of a call, and the call's seconds less those of recording."""
    with _followed(model) as stack, _Tracer(model, stack, kinds, clock) as tracer:
        before = clock()
        model(*arguments)
        seconds = clock() - before - tracer.own_seconds
    find_attention(tracer.records)
    return tracer.records, seconds


@contextmanager
def _followed(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """The modules that are being called now, the innermost last; the hooks are gone afterwards."""
    stack: list[tuple[str, nn.Module]] = []
    hooks = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, _: Any, name: str = name) -> None:
            stack.append((name, module))

        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


class _Tracer(TorchDispatchMode):
    """Records every operator, and from which earlier ones its inputs come.

    Tensors are followed by their storage: views of a tensor are the same numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: list[tuple[str, nn.Module]],
        kinds: Mapping[type[nn.Module], str],
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.own_seconds = 0.0
        self._stack, self._kinds, self._clock = stack, kinds, clock
        self._parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self._maker: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self._clock()
        out = func(*args, **kwargs)
        after = self._clock()
        read, written = tensors_of((args, kwargs)), tensors_of(out)
        name, module = self._stack[-1] if self._stack else ("", None)
        keys = [t.untyped_storage()._cdata for t in read]
        fixed = next((self._kinds[type(m)] for _, m in reversed(self._stack) if type(m) in self._kinds), None)
        kind = kind_of(func, not self._parameters.isdisjoint(keys), type(module).__name__)
        moved = sum(bytes_of(t) for t in (*read, *written)) if moves_data(func) else 0
        packet = func.overloadpacket
        record = Record(
            packet.__name__,
            name,
            fixed or kind,
            after - before,
            FLOPS[packet](*args, **kwargs, out_val=out) if packet in FLOPS else 0,
            moved,
            tuple(tuple(t.shape) for t in read),
            tuple(written[0].shape) if written else (),
            tuple(dict.fromkeys(self._maker[k] for k in keys if k in self._maker)),
            fixed=fixed is not None,
        )
        if kind == "attention" and len(read) > 2:
            *front, queries, _ = read[0].shape
            record.lengths = (int(torch.Size(front).numel()), queries, read[1].shape[-2])
        for tensor in written:
            self._maker[tensor.untyped_storage()._cdata] = len(self.records)
        self.records.append(record)
        self.own_seconds += self._clock() - after
        return out
