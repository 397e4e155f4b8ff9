"""The file against the module, on random inputs, before the file is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidValue
from .formats import Runner
from .subject import Subject

#: Largest deviation, relative to how far the answers spread.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
#: Batch sizes that a file with an open batch is tried with.
BATCHES = (5, 1, 3)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was tried and what was seen.

    Attributes:
        batches: batch sizes.
        grids: lengths; one where the length is fixed.
        deviation: the largest deviation, relative to how far the answers spread (by channel where there are any).
        tolerance: what was allowed.
    """

    batches: tuple[int, ...]
    grids: tuple[tuple[int, ...], ...]
    deviation: float
    tolerance: float


def grids_to_try(subject: Subject, dynamic: bool) -> tuple[tuple[int, ...], ...]:
    """The example's lengths; where lengths are open also the shortest ones, and more than twice as many."""
    if not dynamic:
        return (subject.grid,)
    rule = getattr(getattr(subject.model, "spec", None), "grid", None)
    step, least = (1, 1) if rule is None else (rule.multiple_of, rule.minimum)
    shortest = max(step, -(-least // step) * step)
    return (subject.grid, (shortest,) * len(subject.grid), tuple(2 * n + step for n in subject.grid))


def verify(run: Runner, subject: Subject, batches: Sequence[int], grids: Sequence[tuple[int, ...]]) -> Verified:
    """Compare a file's answers with the module's.

    Raises:
        InvalidValue: they differ, or the module's own are not finite.
    """
    dtypes = [p.dtype for p in subject.model.parameters() if p.is_floating_point()]
    dtypes += [x.dtype for x in subject.example.values() if x.is_floating_point()]
    tolerance = max((TOLERANCE[d] for d in dtypes if d in TOLERANCE), default=TOLERANCE[torch.float32])
    worst, spread = 0.0, None
    for grid in grids:
        for seed, batch in enumerate(batches):
            inputs = subject.inputs(batch, grid, seed)
            expected = subject.run(inputs)
            where = f"a batch of {batch}" + (f", length {' x '.join(map(str, grid))}" if grid else "")
            if not bool(expected.isfinite().all()):
                raise InvalidValue(f"{subject.name} gives answers that are not finite for {where}: nothing is written.")
            got = run(inputs)
            if got.shape != expected.shape or got.dtype != expected.dtype:
                raise InvalidValue(
                    f"the file of {subject.name} answers {got.dtype} {tuple(got.shape)} for {where}, the model "
                    f"{expected.dtype} {tuple(expected.shape)}: nothing is written."
                )
            spread = spread_of(expected, max(1, len(subject.grid))) if spread is None else spread
            found = float(((got.double() - expected.double()).abs() / spread).max())
            worst = max(worst, found)
            if not found <= tolerance:
                raise InvalidValue(
                    f"the file of {subject.name} differs from the model by {found:.2g} of the answers' spread for "
                    f"{where}; at most {tolerance:g} is allowed, so nothing is written."
                )
    return Verified(tuple(batches), tuple(g for g in grids if g), worst, tolerance)


def spread_of(answers: Tensor, grid_axes: int = 1) -> Tensor:
    """How far answers spread around their mean, float64: by channel for ``(B, *grid, C, ...)``, else as a whole.

    Channels in units of their own may differ by orders of magnitude. Where they hardly spread, a thousandth of their
    size counts, and never less than a millionth.
    """
    wide = answers.double()
    axes = tuple(range(grid_axes + 1)) if wide.ndim >= grid_axes + 2 else tuple(range(wide.ndim))
    spread = (wide - wide.mean(axes, keepdim=True)).abs().amax(axes, keepdim=True)
    return torch.maximum(spread, 1e-3 * wide.abs().amax(axes, keepdim=True)).clamp(min=1e-6)
