"""The CPU kernels and their loader. Optional: where they are absent, every op has its torch form.

The sources in ``kernels/`` are compiled once for each level of instructions (x86-64-v2, v3; ARMv8) into a plain shared
library without Python or torch in it, so one build serves every version of both. It is loaded with ctypes, after torch,
whose OpenMP runtime it then shares. What a kernel takes stands beside its user: see ``selective_scan.py`` here for the
pattern (a ctypes structure, a predicate ``fits``, and two functions that :func:`foveate.ops.handwritten.handwritten`
makes into an op).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from ...errors import InvalidValue

#: Choose another level than the best that this processor has, or "none".
ENVIRONMENT_VARIABLE = "FOVEATE_NATIVE"
#: Levels by architecture, best first, with what torch must call the processor's capability.
_LEVELS = {
    "x86_64": {"v4": ("AVX512",), "v3": ("AVX2", "AVX512"), "v2": ("DEFAULT", "NO AVX", "AVX2", "AVX512")},
    "aarch64": {"armv8": ()},
}
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_SLOWER = "runs in its torch form, several times slower on CPUs (benchmarks/results.md)"
_STATUS = ("", "a size is not positive", "a stride is negative", "a pointer is null", "unknown scalar", "no memory")


def levels() -> list[str]:
    """Levels that this architecture knows, best first."""
    machine = platform.machine().lower()
    return list(_LEVELS.get(_ARCHITECTURES.get(machine, machine), {}))


def built() -> dict[str, Path]:
    """The levels that are built here, and their files."""
    folder = Path(__file__).parent
    return {level: file for level in levels() for file in folder.glob(f"_kernels_{level}.*")}


def chosen() -> str:
    """The level in use: the best that is built and that this processor runs; "" if there is none.

    Raises:
        InvalidValue: the environment variable names a level that is not built here.
    """
    found = built()
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if wanted == "none":
        return ""
    if wanted:
        if wanted not in found:
            legal = ", ".join([*found, "none"])
            raise InvalidValue(f"{ENVIRONMENT_VARIABLE}={wanted!r} is not built here: legal are {legal}.")
        return wanted
    capability = torch.backends.cpu.get_cpu_capability()
    for capabilities in _LEVELS.values():
        for level, runs_on in capabilities.items():
            if level in found and (not runs_on or capability in runs_on):
                return level
    return ""


def state() -> dict[str, Any]:
    """What is built here, for people and for records.

    Returns:
        "level" (the one in use; "" for none), "built" (all that are there), "kernels" (their names) and "advice" (what
        is missing, what that costs and what to do; "" if nothing is).
    """
    level, found = chosen(), list(built())
    if level:
        advice = ""
    elif os.environ.get(ENVIRONMENT_VARIABLE) == "none":
        advice = f"they are switched off: unset {ENVIRONMENT_VARIABLE} to use them; until then every op {_SLOWER}."
    elif not levels():
        advice = f"there are none for {platform.machine()}: every op {_SLOWER}."
    elif found:
        advice = f"{', '.join(found)} is for other processors: install foveate again; until then every op {_SLOWER}."
    elif shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        advice = f"they are not built: 'pip install -v' on foveate's sources shows why; until then every op {_SLOWER}."
    else:
        advice = f"there is no C++ compiler: install one and install foveate again; until then every op {_SLOWER}."
    return {"level": level, "built": found, "kernels": kernels(), "advice": advice}


def kernels() -> list[str]:
    """Names of the kernel families: their Python sides, beside this file."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))


def _load() -> ctypes.CDLL | None:
    level = chosen()
    return ctypes.CDLL(str(built()[level])) if level else None


#: The kernels of the chosen level, None if there are none, and whether there are (what compilers can look at).
LIBRARY = _load()
AVAILABLE = LIBRARY is not None


def takes(*tensors: Tensor | None) -> bool:
    """Whether a kernel can be given these tensors: there are kernels, and all are real and on the CPU.

    Under ``torch.compile`` only their descriptions are looked at; outside it they must have memory. Tracers
    (``torch.jit.trace``) see nothing of what a kernel does.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.jit.is_tracing():
        return False
    for t in tensors:  # a loop, since a generator costs more than the questions, which every layer asks
        if t is not None and (not t.is_cpu or t.is_complex() or not (compiling or _has_memory(t))):
            return False
    return AVAILABLE


def takes_float32(*tensors: Tensor | None) -> bool:
    """Whether a kernel that knows float32 alone, and is no op that dispatch modes (counters of operators) see, can be
    given these tensors."""
    if torch._C._len_torch_dispatch_stack():
        return False
    for m in tensors:
        if m is not None and m.dtype != torch.float32:
            return False
    return takes(*tensors)


def _has_memory(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided


def rows(m: Tensor) -> Tensor:
    """With neighbouring numbers along the last axis; other axes may have any stride."""
    return m if m.stride(-1) == 1 or m.shape[-1] == 1 else m.contiguous()


def matrix(m: Tensor) -> tuple[Tensor, int]:
    """The same numbers as rows of neighbouring numbers, and how far it is from one row to the next; 0 for one axis."""
    if m.ndim == 1:
        return rows(m), 0
    if m.is_contiguous():  # strides along axes of one place may be anything
        return m, m.shape[-1]
    m = rows(m.flatten(0, -2))
    return m, m.stride(0)


@overload
def whole(m: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def whole(m: None, dtype: torch.dtype) -> None: ...
@overload
def whole(m: Tensor | None, dtype: torch.dtype) -> Tensor | None: ...
def whole(m: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous, in another dtype; None stays None."""
    return None if m is None else m.to(dtype).contiguous()


#: New tensors of at least this many bytes are asked to lie in large pages.
LARGE = 2**22
_HUGE_PAGE = 2**21
_madvise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_HUGEPAGE") else None


def fresh(tensor: Tensor) -> Tensor:
    """The same new, unwritten tensor, in large pages where it is large and the system has them.

    The first write to a page of new memory is a fault: with small pages those take as long as a kernel itself.
    """
    if _madvise is not None and tensor.nbytes >= LARGE:
        start = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        stop = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE * _HUGE_PAGE
        # A hint: where it is not taken, pages stay small.
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_HUGEPAGE)
    return tensor


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's first number lies; None (a null pointer) for None."""
    return None if tensor is None else tensor.data_ptr()


def call(name: str, arguments: ctypes.Structure, *more: int) -> None:
    """Run a kernel.

    Raises:
        RuntimeError: it refused its arguments; a defect of ours, since ops check what users give.
        MemoryError: it had no room for its workspace.
    """
    status = getattr(LIBRARY, name)(ctypes.byref(arguments), *more)
    if status == len(_STATUS) - 1:
        raise MemoryError(f"the kernel {name} had no memory for its workspace.")
    if status:
        raise RuntimeError(f"the kernel {name} refused its arguments: {_STATUS[status]}.")


def through_autograd(
    definition: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor | None], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients as autograd makes them of an op's definition, for whoever differentiates a backward pass once more.

    Args:
        definition: called with the inputs; its results.
        inputs: of the op.
        gradients: of the results.

    Returns:
        One for each input that needs one, None for the others.
    """
    # Views, so that nothing is asked about how the inputs themselves came to be.
    own = [None if m is None else m.view_as(m) for m in inputs]
    asked = [m for m in own if m is not None and m.requires_grad]
    found = torch.autograd.grad(definition(*own), asked, gradients, create_graph=True, materialize_grads=True)
    each = iter(found)
    return [next(each) if m is not None and m.requires_grad else None for m in own]
