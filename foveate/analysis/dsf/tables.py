"""Tables of layers as linear systems: matrices in words, what a stream keeps, how far two layers are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...mixers.base import Mixer
from .compare import compare_systems
from .layers import build
from .system import System

Rows = list[tuple[str, ...]]


def systems_of(mixers: Mapping[str, Mixer], x: Tensor) -> dict[str, System]:
    """The systems of mixers by name, on the same ``x`` ``(batch, L, dim)``, without gradients."""
    with torch.no_grad():
        return {name: build(mixer, x, None) for name, mixer in mixers.items()}


def structure(systems: Mapping[str, System]) -> Rows:
    """Matrices and state: a row for each system below the row of headings."""
    head = ("layer", "Lambda_i", "B_i", "C_i", "D", "n", "state N", "the decay follows")
    rows: Rows = [head]
    for name, system in systems.items():
        form = system.form
        sizes = _size(system.features), _size(system.state_numbers)
        rows.append((name, form.Lambda, form.B, form.C, form.D, *sizes, form.follows))
    return rows


def distances(systems: Mapping[str, System]) -> Rows:
    """Distances of mixing matrices, relative to the largest weight of the row's system; "-": no common channels."""
    rows: Rows = [("", *systems)]
    for name, a in systems.items():
        found = (compare_systems(a, b).distance for b in systems.values())
        rows.append((name, *("-" if math.isinf(d) else f"{d:.2g}" for d in found)))
    return rows


def recall_sizes(d_model: int, d_qk: int, expansion: int = 2) -> Rows:
    """The paper's account of what two layers keep per sample, whatever the length, and its formula for each kind.

    Softmax attention is counted by its features' width as the linear one is; what it keeps, keys and values, grows.
    """
    return [
        ("layer", "formula", "numbers"),
        ("linear and normalised attention", "2 d_model d_qk", str(2 * d_model * d_qk)),
        ("S6, scalar S6", "2 d_model d_state", str(2 * d_model * d_qk)),
        ("quasi-LSTM", "2 expansion d_model", str(2 * expansion * d_model)),
    ]


def markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as a Markdown table, the first one the headings."""
    lines = ["| " + " | ".join(cell or " " for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _size(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:,.0f}"
