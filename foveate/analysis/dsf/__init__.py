"""The Dynamical Systems Framework: attention, state spaces and gated recurrences as one linear time-varying system.

    from foveate.analysis.dsf import compare, matrices, simulate

    system = matrices(mixer, x)          # Lambda, B, C, D of this mixer on this input, as factors
    y = simulate(system)                 # the mixer's output, by the recurrence
    print(compare(mixer, other, x))      # when the two coincide, and how far apart they are

Paper: Sieber et al., NeurIPS 2024, arXiv 2405.15731.
"""

from __future__ import annotations

from torch import Tensor

from ...mixers.base import Mixer
from ...mixers.softmax_attention import SoftmaxAttention
from .compare import Comparison, Condition, coinciding_normalizers, compare_systems
from .features import elu_plus_one, taylor_exp, taylor_width
from .layers import build, supported
from .system import Affine, Dense, Form, Limit, Realization, System

__all__ = [
    "Affine",
    "Comparison",
    "Condition",
    "Dense",
    "Form",
    "Limit",
    "Realization",
    "System",
    "coinciding_normalizers",
    "compare",
    "compare_systems",
    "elu_plus_one",
    "matrices",
    "simulate",
    "supported",
    "taylor_exp",
    "taylor_width",
]


def matrices(mixer: Mixer, x: Tensor, *, order: int | None = None) -> System:
    """A mixer's system on an input.

    Args:
        mixer: one of :func:`supported`, causal.
        x: ``(batch, L, dim)``, what the mixer reads.
        order: for softmax attention: keep the features of exp's Taylor polynomial of this degree, a finite state of
            ``sum_p width^p`` features; None: all of them, whose mixing matrix is exact and whose state is infinite.

    Returns:
        A :class:`Realization`, or for softmax attention without ``order`` a :class:`Limit`.

    Raises:
        InvalidType: this mixer has no realisation.
        InvalidValue: it is not causal, x does not fit, a negative or too large order, or one for another mixer.
    """
    return build(mixer, x, order)


def simulate(system: System, u: Tensor | None = None) -> Tensor:
    """The layer's output ``(batch, L, dim)`` by its system.

    Args:
        system: of :func:`matrices`.
        u: other values ``(batch, L, heads, channels)``, read with the same matrices; None: the layer's own.
    """
    return system.simulate(u)


def compare(a: Mixer, b: Mixer, x: Tensor, *, order: int | None = None, tolerance: float = 1e-5) -> Comparison:
    """Under which condition two mixers coincide on an input, and how far apart they are.

    Args:
        a, b: mixers of :func:`supported`.
        x: ``(batch, L, dim)``, read by both.
        order: for whichever is softmax attention, see :func:`matrices`.
        tolerance: largest deviation, relative to the largest number of the first, that counts as none.

    Raises:
        InvalidType, InvalidValue: as :func:`matrices`.
    """
    systems = (matrices(m, x, order=order if isinstance(m, SoftmaxAttention) else None) for m in (a, b))
    return compare_systems(*systems, tolerance=tolerance)
