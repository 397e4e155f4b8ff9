"""Every registered mixer, through one generic case: width 256, one sample, causal where that is all there is."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import torch

from ...registry import Entry, entries
from ...spec import MixerSpec
from ..cases import Problem, case

DIM, HEADS = 256, 8
TOKENS = (512, 1024, 2048, 4096)
#: Further forms of a mixer that are timed beside its defaults: name of the case, mixer, options.
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("mamba2_state64", "mamba2", {"d_state": 64}),
    ("softmax_attention_causal", "softmax_attention", {"causal": True}),
)


def grid_of(spec: MixerSpec, tokens: int) -> tuple[int, ...]:
    """A legal grid of about so many tokens, of the lowest rank."""
    if spec.grid.fixed is not None:
        return spec.grid.fixed
    rank, step = min(spec.ranks), spec.grid.multiple_of
    edge = max(round(tokens ** (1 / rank) / step) * step, step, -(-spec.grid.minimum // step) * step)
    return (edge,) * rank


def mixer_problem(entry: Entry, options: dict[str, Any], tokens: int) -> Problem:
    """A mixer on a grid of about ``tokens`` tokens."""
    cls, grid = entry.load(), grid_of(entry.spec, tokens)
    given = {"causal": not entry.spec.bidirectional, **cls.options_for(grid), **options}
    if "num_heads" in inspect.signature(cls).parameters:
        given.setdefault("num_heads", HEADS)
    mixer = cls(DIM, **given).eval()
    return Problem(
        inputs={"x": torch.randn(1, *grid, DIM)},
        ours=mixer,
        module=mixer,
        sizes={"grid": grid, "heads": HEADS, **given},
        cost=mixer.cost(grid),
    )


def _add(name: str, entry: Entry, options: dict[str, Any]) -> None:
    fixed = entry.spec.grid.fixed
    # Time and memory of the definitions grow fast: agreement is tested on the smallest grid.
    case(
        name,
        kind="mixer",
        about=f"width {DIM}" + "".join(f", {k} {v}" for k, v in options.items()),
        sizes=TOKENS if fixed is None else (math.prod(fixed),),
        reference_up_to=TOKENS[0] if fixed is None else math.inf,
    )(functools.partial(mixer_problem, entry, options))


for _entry in entries("mixer"):
    _add(_entry.name, _entry, {})
    for _name, _mixer, _options in VARIANTS:
        if _mixer == _entry.name:
            _add(_name, _entry, _options)
