"""When two systems coincide: the conditions one by one, each with how far it is from holding.

A realisation is not unique (a factor may move from B to C), so two systems with other matrices may still mix alike:
the verdict is that of the mixing matrices, and the conditions say what makes the difference. For an attention and a
state space these are the paper's two (arXiv 2405.15731, section 3.2): the decay of the one must be the ratio of
normalisers of the other, and the step size must be the inverse of the normaliser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InvalidValue
from .system import Realization, System


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of two systems coinciding.

    Attributes:
        name: what must be equal.
        gap: largest deviation, relative to the largest number of the first system; infinite where the two have no
            common shape, or one state is infinite.
        holds: the gap is within the tolerance.
    """

    name: str
    gap: float
    holds: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """What :func:`compare_systems` found.

    Attributes:
        names: of the two layers.
        coincide: their mixing matrices are the same.
        distance: of the mixing matrices, as a condition's gap.
        conditions: all that could be asked of the two.
        follows: what each one's decay is tied to.
        features: state expansion of each.
    """

    names: tuple[str, str]
    coincide: bool
    distance: float
    conditions: tuple[Condition, ...]
    follows: tuple[str, str]
    features: tuple[float, float]

    def __getitem__(self, name: str) -> Condition:
        """The condition of this name."""
        return next(c for c in self.conditions if c.name == name)

    def __str__(self) -> str:
        a, b = self.names
        verdict = "coincide" if self.coincide else "differ"
        lines = [f"{a} and {b} {verdict} here: their mixing matrices are {self.distance:.2g} apart"]
        width = max(len(c.name) for c in self.conditions)
        lines += [f"  {c.name:{width}}  {'holds' if c.holds else f'off by {c.gap:.2g}'}" for c in self.conditions]
        for name, follows, n in zip(self.names, self.follows, self.features, strict=True):
            lines.append(f"  {name}: {n:g} features a channel; its decay follows {follows}")
        return "\n".join(lines)


def compare_systems(a: System, b: System, *, tolerance: float = 1e-5) -> Comparison:
    """Compare two systems; see :func:`foveate.analysis.dsf.compare`.

    Raises:
        InvalidValue: they are of other batches or lengths.
    """
    if a.u.shape[:2] != b.u.shape[:2]:
        raise InvalidValue(
            f"{a.name} and {b.name} are on inputs of other shapes, (batch, L) = {tuple(a.u.shape[:2])} and "
            f"{tuple(b.u.shape[:2])}: take both on the same one."
        )
    n, m = a.features, b.features
    gaps = {"state expansion n": 0.0 if n == m else math.inf if math.isinf(n) else abs(n - m) / n}
    if isinstance(a, Realization) and isinstance(b, Realization):
        gaps["decay Lambda"] = _deviation(_wide(a, a.decay)[:, 1:], _wide(b, b.decay)[:, 1:])
        gaps["input map B"] = _deviation(_wide(a, a.write), _wide(b, b.write))
        gaps["output map C"] = _deviation(_wide(a, a.read), _wide(b, b.read))
        gaps["skip D"] = _deviation(*(_wide(s, s.skip[None, None, :, :, None]) for s in (a, b)))
    gaps |= _ties(a, b) | _ties(b, a)
    if a.eta is not None and b.eta is not None:
        gaps["normalisers eta"] = _deviation(a.eta, b.eta)
    gaps["values u"] = _deviation(a.u.flatten(2), b.u.flatten(2))
    distance = _deviation(*(_by_channel(s, s.mixing_matrix()) for s in (a, b)))
    return Comparison(
        names=(a.name, b.name),
        coincide=distance <= tolerance,
        distance=distance,
        conditions=tuple(Condition(name, gap, gap <= tolerance) for name, gap in gaps.items()),
        follows=(a.form.follows, b.form.follows),
        features=(a.features, b.features),
    )


def _ties(attention: System, space: System) -> dict[str, float]:
    """The paper's two conditions, for an attention and a state space."""
    if attention.eta is None or space.delta is None or space.rate is None:
        return {}
    ratio = (attention.eta[:, :-1] / attention.eta[:, 1:])[..., None, None]
    decay = torch.exp(-space.delta[..., None] * space.rate)[:, 1:]
    eta = _wide(attention, attention.eta[..., None, None])
    return {
        "eta_{i-1} / eta_i = exp(-a Delta_i)": _deviation(_wide(attention, ratio), _wide(space, decay)),
        "1 / eta_i = Delta_i": _deviation(1 / eta, _wide(space, space.delta[..., None])),
    }


def _wide(system: System, m: Tensor) -> Tensor:
    """``(batch, L, heads, channels or 1, k)`` for the channels of all heads: ``(batch, L, D, k)``."""
    return m.expand(*m.shape[:3], system.u.shape[3], m.shape[4]).flatten(2, 3)


def _by_channel(system: System, phi: Tensor) -> Tensor:
    """A mixing matrix for every channel of all heads, ``(batch, D, L, L)``."""
    return phi.expand(-1, -1, system.u.shape[3], -1, -1).flatten(1, 2)


def _deviation(a: Tensor, b: Tensor) -> float:
    """Largest deviation relative to the largest magnitude of ``a`` (of ``b`` where ``a`` is zero)."""
    if a.ndim != b.ndim or any(m != n and 1 not in (m, n) for m, n in zip(a.shape, b.shape, strict=True)):
        return math.inf
    if not a.numel():
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    scale = float(a.abs().max()) or float(b.abs().max()) or 1.0
    return float((a - b).abs().max()) / scale


def coinciding_normalizers(first: Tensor, rate: float, length: int) -> Tensor:
    """The normalisers with which an attention is a state space of decay rate a: both conditions at once.

    ``eta_{i-1} = eta_i exp(-a / eta_i)`` has one solution for each eta_{i-1} > 0. For large eta it is nearly ``eta_i =
    eta_{i-1} + a``: the two coincide where every token adds about the same amount to the normaliser.

    Args:
        first: eta_0 > 0, ``(...)``.
        rate: a >= 0.
        length: number of tokens.

    Returns:
        ``(..., length)`` in float64.

    Raises:
        InvalidValue: an eta_0 that is not positive, or a negative rate.
    """
    if not bool((first > 0).all()) or not rate >= 0:
        raise InvalidValue(
            f"first={first.tolist()!r} with rate={rate!r} is not possible: first > 0, rate >= 0 is needed."
        )
    eta = [first.double()]
    for _ in range(length - 1):
        # log eta_i - a / eta_i = log eta_{i-1}, by Newton in l = log eta_i: increasing and concave, from below.
        target = eta[-1].log()
        log = target
        for _ in range(60):
            slope = rate * torch.exp(-log)
            log = log - (log - slope - target) / (1 + slope)
        eta.append(log.exp())
    return torch.stack(eta, -1)
