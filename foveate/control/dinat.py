"""transformers' DiNAT on this library's neighborhood attention.

transformers runs its ``DinatModel`` (Hassani and Shi, arXiv 2209.15001) on two functions that natten removed in its
version 0.20, and refuses to build one where natten is absent. :func:`enable_dinat` puts
:func:`~foveate.ops.neighborhood_attention.neighborhood_attention` in their place::

    from transformers import AutoModel
    from foveate.control import enable_dinat

    enable_dinat()
    model = AutoModel.from_pretrained("shi-labs/dinat-mini-in1k-224")

It changes transformers' class for the whole process, so it is a function and not a :class:`~foveate.control.Control`:
without it there is no network to attach to.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import MissingExtra
from ..mixers.neighborhood import window_weights
from ..ops.neighborhood_attention import neighborhood_attention
from ..ops.neighborhood_windows import axes_of


def enable_dinat() -> None:
    """Let transformers' ``DinatModel`` and its heads run, without natten or with any version of it.

    Calling it again changes nothing.

    Raises:
        MissingExtra: transformers is not installed, or has no DiNAT.
    """
    modeling = _modeling()
    modeling.NeighborhoodAttention.forward = _forward
    if modeling.requires_backends is not _requires_others:
        _OTHERS.append(modeling.requires_backends)
        modeling.requires_backends = _requires_others


def _modeling() -> Any:
    """The module with transformers' DiNAT; its import fails where natten is installed without the old functions."""
    try:
        utils: Any = importlib.import_module("transformers.utils")
    except ImportError as error:
        raise MissingExtra("enable_dinat needs transformers: pip install transformers.") from error
    asked, utils.is_natten_available = utils.is_natten_available, lambda: False
    try:
        return importlib.import_module("transformers.models.dinat.modeling_dinat")
    except ModuleNotFoundError as error:
        raise MissingExtra("this version of transformers has no DiNAT: install one that has.") from error
    finally:
        utils.is_natten_available = asked


#: transformers' own check, kept for whatever else a model asks for.
_OTHERS: list[Callable[[Any, list[str]], None]] = []


def _requires_others(model: Any, backends: list[str]) -> None:
    _OTHERS[0](model, [name for name in backends if name != "natten"])


def _forward(self: Any, hidden_states: Tensor, output_attentions: bool | None = False) -> tuple[Tensor, ...]:
    """``NeighborhoodAttention.forward``: ``(batch, height, width, dim)`` to the same.

    With ``output_attentions`` the attention of every query to its ``kernel_size ** 2`` keys comes too, ``(batch, heads,
    height, width, kernel_size ** 2)``, as natten gave it; it is then computed apart from the fused op.
    """
    # Heads before the grid. (transformers 5 exchanges the first two axes of the grid instead, so its own forward would
    # be wrong with natten's old functions too.)
    heads = self.num_attention_heads
    q, k, v = (
        m(hidden_states).unflatten(-1, (heads, -1)).permute(0, 3, 1, 2, 4) for m in (self.query, self.key, self.value)
    )
    dropping = self.training and self.dropout.p > 0
    if not (output_attentions or dropping):
        options = {"dilation": self.dilation, "bias": self.rpb.to(q.dtype)}
        return (_joined(neighborhood_attention(q, k, v, self.kernel_size, **options)),)  # type: ignore[arg-type]
    axes = axes_of(tuple(q.shape[2:4]), self.kernel_size, self.dilation)
    weights, seen = window_weights(q, k, axes, self.rpb, None)
    values = v.flatten(2, 3)[:, :, seen]  # (batch, heads, queries, keys, head_dim)
    out = (self.dropout(weights)[..., None, :] @ values)[..., 0, :].unflatten(2, hidden_states.shape[1:3])
    found = _joined(out), weights.unflatten(2, hidden_states.shape[1:3])
    return found if output_attentions else found[:1]


def _joined(out: Tensor) -> Tensor:
    """``(batch, heads, height, width, head_dim)`` to ``(batch, height, width, dim)``."""
    return out.permute(0, 2, 3, 1, 4).flatten(-2)
