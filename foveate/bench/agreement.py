"""What does not agree with its definition is not timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.backend import backend
from .cases import OURS, Problem
from .peers import Contender

#: Largest difference, over the largest number of the definition's result: sums of thousands of float32 terms in
#: another order.
TOLERANCE = 1e-3


def under(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` with this backend in force."""

    def run(**inputs: Tensor) -> Any:
        with backend(name):
            return call(**inputs)

    return run


def our_contenders(problem: Problem, forms: Sequence[str]) -> dict[str, Contender]:
    """Ours as "auto" chooses, then the further forms."""
    parameters = () if problem.module is None else tuple(problem.module.parameters())
    found = {OURS: Contender(problem.ours, parameters)}
    for form in forms:
        call = definition(problem) if form == "reference" else under(form, problem.ours)
        found[f"{OURS}, {form} form"] = Contender(call, parameters)
    return found


def definition(problem: Problem) -> Callable[..., Tensor]:
    """The readable form that everything is held against."""
    return under("reference", problem.ours) if problem.reference is None else problem.reference


def trainable(problem: Problem, contender: Contender) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The inputs as leaves of a graph, and everything that is differentiated."""
    inputs = {k: m.detach().requires_grad_(m.is_floating_point()) for k, m in problem.inputs.items()}
    leaves = [m for m in (*inputs.values(), *contender.parameters) if m.requires_grad]
    return inputs, leaves


def answers(problem: Problem, contender: Contender, backward: bool) -> list[Tensor]:
    """The output, and with ``backward`` the gradients of the inputs (zeros where there is none)."""
    if not backward:
        with torch.no_grad():
            return [contender.call(**problem.inputs)]
    inputs, _ = trainable(problem, contender)
    y = contender.call(**inputs)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    leaves = [m for m in inputs.values() if m.requires_grad]
    found = torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True)
    return [y.detach(), *(torch.zeros_like(m) if g is None else g for m, g in zip(leaves, found, strict=True))]


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest difference relative to each result's largest number; NaN and wrong shapes count as infinite."""
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        if a.shape != b.shape or not bool(torch.isfinite(a).all()):
            return float("inf")
        scale = float(b.abs().max()) or 1.0
        worst = max(worst, float((a - b).abs().max()) / scale)
    return worst


def first_line(error: Exception) -> str:
    """What went wrong, on one line: compilers write pages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def disagreements(
    problem: Problem, contenders: Mapping[str, Contender], passes: Sequence[str], same: Mapping[str, bool]
) -> dict[str, str]:
    """Why a contender must not be timed, by name; ours is held against its definition, a peer against that too.

    Args:
        problem: of a size that the definition can do.
        contenders: ours (:data:`OURS`) and all others.
        passes: with "forward+backward" gradients are compared as well.
        same: whether a contender computes the same function; others are only run.
    """
    found: dict[str, str] = {}
    backward = any("backward" in name for name in passes)
    wanted: dict[bool, list[Tensor]] = {}
    for name, contender in contenders.items():
        # Gradients where the contender has them.
        deep = backward and not contender.no_backward
        try:
            if deep not in wanted:
                wanted[deep] = answers(problem, Contender(definition(problem)), deep)
            result = answers(problem, contender, deep)
        except Exception as error:  # whatever goes wrong in a form or a foreign library is the reason it is not timed
            found[name] = (
                f"it fails: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )
            continue
        if same.get(name, True):
            worst = difference(result, wanted[deep])
            if not worst <= TOLERANCE:
                what = "output and gradients differ" if deep else "its output differs"
                found[name] = f"{what} from the definition by {worst:.2g} of the largest number"
    return found
