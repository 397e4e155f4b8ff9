"""Memory of this process, and the bytes that a module keeps for its backward pass."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss


def peak_resident_bytes() -> int:
    """Largest resident memory that this process has had.

    On Linux this is ``VmHWM``: unlike ``getrusage``, it does not inherit the parent's peak through fork and exec.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def saved_bytes(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Bytes that one call of ``module`` keeps for its backward pass, its parameters excluded.

    Storages are counted, each once: ten views of one tensor keep one tensor alive, and a view of a large tensor keeps
    all of it. Works on the meta device as well. What a custom autograd function keeps outside of
    ``save_for_backward`` is not seen.

    Args:
        module: called as ``module(*args, **kwargs)``, in the mode (train or eval) it is in, with gradients enabled.
    """
    own = {_storage_key(p) for p in module.parameters()}
    kept: dict[int, Tensor] = {}  # holding the tensors also keeps their storages from being freed and reused

    def pack(tensor: Tensor) -> Tensor:
        if _storage_key(tensor) not in own:
            kept.setdefault(_storage_key(tensor), tensor)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        module(*args, **kwargs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage_key(tensor: Tensor) -> int:
    """Identity of the storage: views share it. (The data pointer would not do: it is 0 on the meta device.)"""
    return tensor.untyped_storage()._cdata
