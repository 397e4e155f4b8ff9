"""Which differences between systems are real: a paired test, ranks with ties, and the Pareto front.

**The test.** Two systems are scored on the same test samples; what counts is the mean of the differences of their
errors, each averaged over seeds. Neighbouring windows of a series overlap, so the differences are autocorrelated and
their plain standard error is far too small. The Diebold-Mariano statistic (Diebold & Mariano, 1995) divides by the
long-run variance instead. It is estimated by the equal-weighted cosine estimator (Lazarus, Lewis, Stock & Watson,
2018, "HAR inference: recommendations for practice"), the mean of the squares of the first :math:`\\nu` cosine
coefficients of the differences :math:`d_t`,

.. math:: \\hat\\Omega = \\frac1\\nu \\sum_{j=1}^{\\nu}
    \\Big( \\sqrt{\\tfrac2N} \\sum_{t=1}^{N} d_t \\cos\\frac{\\pi j (t - 1/2)}{N} \\Big)^2 ,

because its t statistic then follows Student's distribution with :math:`\\nu` degrees of freedom, nearly exactly where
the usual normal limit fails: few windows, long overlaps. There is no random number in it. :math:`\\nu` is
:math:`0.4 N^{2/3}` as recommended there, and no larger than :math:`N / 2h` for an overlap of :math:`h` samples, so
that every frequency used is slow against the overlap.

**Seeds.** The mean error of a system also varies with its seed, which no number of test samples shows. Its variance
over :math:`K` seeds, divided by :math:`K`, is added to :math:`\\hat\\Omega / N` of both systems. Few seeds can agree by
luck, so no system's variance counts for less than the median one's.

**Many systems.** The best row was picked by the very numbers being tested, so every pair of systems counts as a
comparison (comparing only with the best row would call equals different in about one table of eight), corrected after
Holm (1979).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidValue, invalid

#: Probability of calling any two equal systems of a table different.
LEVEL = 0.05
#: More degrees of freedom than this change no p-value that matters.
_MOST_FREEDOM = 100


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs of systems, compared.

    Attributes:
        names: the systems, in the order given.
        means: mean error of each.
        p: float64 ``(systems, systems)``, symmetric: Holm-corrected two-sided p-values; 1 on the diagonal.
        samples: test samples used (groups, where groups were given).
        freedom: degrees of freedom; 0 where there were too few samples for any test.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    p: Tensor
    samples: int
    freedom: int

    @property
    def best(self) -> int:
        """Index of the system with the smallest mean error (the first of equals)."""
        return min(range(len(self.means)), key=self.means.__getitem__)

    def beaten_by(self, index: int) -> list[str]:
        """Names of the systems that are significantly better than system ``index``."""
        return [
            name
            for other, name in enumerate(self.names)
            if self.means[other] < self.means[index] and float(self.p[other, index]) < LEVEL
        ]

    def tied(self, index: int) -> bool:
        """Whether system ``index`` is not significantly worse than the best one."""
        return self.names[self.best] not in self.beaten_by(index)

    def ranks(self) -> list[int]:
        """Ranks by the number of significantly better systems (none for all that are tied with the best), shared by
        equals: 1, 1, 3, ..."""
        better = [0 if self.tied(i) else len(self.beaten_by(i)) for i in range(len(self.names))]
        return [1 + sum(other < own for other in better) for own in better]


def compare_systems(
    errors: Mapping[str, Tensor],
    *,
    overlap: int = 1,
    groups: Tensor | None = None,
    fixed: frozenset[str] | set[str] = frozenset(),
) -> Comparison:
    """Test every pair of systems on their errors over the same test samples.

    Args:
        errors: system to errors ``(seeds, samples)``, smaller is better; the numbers of seeds may differ. Samples
            that are NaN in every system had no truth and are left out.
        overlap: how many neighbouring samples share data, 1 for independent samples (windows of a series that start
            ``stride`` apart and are scored over ``horizon`` steps overlap by ``horizon / stride``).
        groups: int64 ``(samples,)``, samples with the same number are averaged first and the groups taken in
            ascending order: the start times, where several series have windows at the same time.
        fixed: systems whose result no seed changes; they have no seed variance even if run once.

    Raises:
        InvalidValue: no system, numbers of samples that differ, an overlap below 1, or a system whose error is not
            finite where others' errors are.
    """
    if not errors:
        raise InvalidValue("there is nothing to compare: give the errors of at least one system.")
    if overlap < 1:
        raise invalid("overlap", overlap, "it counts samples that share data, 1 if none do")
    table, present = _align(errors)
    if groups is not None:
        if groups.shape != present.shape:
            raise invalid("groups", tuple(groups.shape), f"one number for each of {len(present)} samples is needed")
        table = {name: _average_groups(rows, groups[present]) for name, rows in table.items()}
    series = torch.stack([rows.mean(0) for rows in table.values()])  # (systems, samples)
    samples = series.shape[1]
    freedom = max(1, int(min(0.4 * samples ** (2 / 3), samples / (2 * overlap), _MOST_FREEDOM))) if samples > 1 else 0
    means = series.mean(1)
    if freedom:
        variance = _long_run_variance(series, freedom) / samples
        own = _seed_variance(table, fixed)
        raw = _student_p(_t_statistic(means, variance + own[:, None] + own[None, :]), freedom)
    else:
        raw = torch.ones(len(table), len(table), dtype=torch.float64)
    return Comparison(tuple(table), tuple(means.tolist()), _holm_pairs(raw), samples, freedom)


def _align(errors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The errors as float64 ``(seeds, samples)`` without the samples that nobody has, and which those are."""
    table = {name: torch.as_tensor(e, dtype=torch.float64).reshape(-1, e.shape[-1]) for name, e in errors.items()}
    counts = {name: rows.shape[1] for name, rows in table.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise InvalidValue(f"a paired test needs the same samples for every system: {told}.")
    present = torch.stack([~rows.isnan().all(0) for rows in table.values()]).any(0)
    for name, rows in table.items():
        if not bool(rows[:, present].isfinite().all()):
            raise InvalidValue(f"the errors of {name!r} are not all finite: leave it out of the comparison.")
    return {name: rows[:, present] for name, rows in table.items()}, present


def _average_groups(rows: Tensor, groups: Tensor) -> Tensor:
    """Means over the samples of each group, ``(seeds, groups)``, groups in ascending order."""
    _, place, count = groups.unique(sorted=True, return_inverse=True, return_counts=True)
    return rows.new_zeros(rows.shape[0], len(count)).index_add_(1, place, rows) / count


def _long_run_variance(series: Tensor, freedom: int) -> Tensor:
    """Long-run variance of every difference of two rows, ``(systems, systems)``, by the cosine estimator."""
    samples = series.shape[1]
    phase = (torch.arange(samples, dtype=torch.float64) + 0.5) * (math.pi / samples)
    centred = series - series.mean(1, keepdim=True)  # the cosines are orthogonal to 1; this only saves digits
    coefficients = torch.stack([centred @ torch.cos(j * phase) for j in range(1, freedom + 1)])
    difference = coefficients[:, :, None] - coefficients[:, None, :]
    return difference.square().mean(0) * (2 / samples)


def _seed_variance(table: Mapping[str, Tensor], fixed: frozenset[str] | set[str]) -> Tensor:
    """Variance of each system's mean over seeds that comes from the seeds, ``(systems,)``; 0 with one seed each."""
    found: dict[str, float] = {}
    for name, rows in table.items():
        if len(rows) > 1 and name not in fixed:
            found[name] = float(rows.mean(1).var())
    # The median of a chi-square over its freedom (Wilson & Hilferty) turns median sample variances into variances.
    scaled = [v / (1 - 2 / (9 * (len(table[name]) - 1))) ** 3 for name, v in found.items() if v > 0]
    floor = float(torch.tensor(scaled, dtype=torch.float64).quantile(0.5)) if scaled else 0.0
    own = []
    for name, rows in table.items():
        no_luck_in_it = name in fixed or found.get(name) == 0.0
        own.append(0.0 if no_luck_in_it else max(found.get(name, 0.0), floor) / len(rows))
    return torch.tensor(own, dtype=torch.float64)


def _t_statistic(means: Tensor, variance: Tensor) -> Tensor:
    """Differences of means over their standard errors; equal systems give 0 even if nothing varies."""
    difference = means[:, None] - means[None, :]
    return torch.where(difference == 0, 0.0, difference / variance.clamp_min(0).sqrt())


def _student_p(t: Tensor, freedom: int) -> Tensor:
    """Two-sided p-value of Student's t for whole degrees of freedom, in closed form (Abramowitz & Stegun 26.7.3-4)."""
    angle = torch.atan(t.abs() / math.sqrt(freedom))
    sine, cosine = torch.sin(angle), torch.cos(angle)
    odd = freedom % 2 == 1
    term = cosine.clone() if odd else torch.ones_like(cosine)
    total = torch.zeros_like(cosine)
    for k in range(1, (freedom - 1) // 2 + 1 if odd else freedom // 2 + 1):
        total += term
        term = term * cosine.square() * ((2 * k) / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    inside = (angle + sine * total) * (2 / math.pi) if odd else sine * total
    return (1 - inside).clamp(0.0, 1.0)


def holm(p: Tensor) -> Tensor:
    """Holm's step-down correction of p-values ``(tests,)``: the smallest is multiplied by their number, and so on."""
    count = len(p)
    order = p.argsort()
    stepped = (p[order] * torch.arange(count, 0, -1, dtype=p.dtype)).cummax(0).values.clamp_max(1.0)
    return torch.empty_like(p).scatter_(0, order, stepped)


def _holm_pairs(raw: Tensor) -> Tensor:
    """Correct a symmetric matrix of p-values over its pairs."""
    corrected = torch.ones_like(raw)
    rows, columns = torch.triu_indices(*raw.shape, offset=1)
    if len(rows):
        corrected[rows, columns] = corrected[columns, rows] = holm(raw[rows, columns])
    return corrected


def pareto_front(points: Sequence[Sequence[float]], tolerance: float = 0.05) -> list[bool]:
    """Which points no other point dominates: at least as good in everything and better in something.

    Args:
        points: one sequence of numbers for each system, smaller is better, the first (quality) taken as it is. The
            others are costs (>= 0), compared in steps of ``tolerance`` (relative), because measured costs are never
            quite equal and a system is not interesting for being one per cent cheaper.
    """

    def step(cost: float) -> float:
        if cost <= 0 or math.isinf(cost):
            return math.inf if cost > 0 else -math.inf
        return round(math.log(cost) / math.log1p(tolerance))

    steps = [(p[0], *map(step, p[1:])) for p in points]

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return [not any(dominates(other, point) for other in steps) for point in steps]


def fractional_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, smallest first; equals share the mean of their places."""
    smaller = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) for value in values]
    return [s + (e + 1) / 2 for s, e in zip(smaller, equal, strict=True)]


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p-value of a mean difference over data sets: how often random signs give as large a sum.

    All ``2 ** n`` signs are counted up to 16 differences that are not zero; for more, 65,536 signs drawn from a fixed
    seed. Fewer than six data sets cannot reach 5 %.
    """
    moving = torch.tensor([d for d in differences if d != 0], dtype=torch.float64)
    count = len(moving)
    if count == 0:
        return 1.0
    if count <= 16:
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count)), dtype=torch.float64)
    else:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (65536, count), generator=generator, dtype=torch.float64) * 2 - 1
        signs[0] = 1.0  # the signs that came belong to the possible ones
    sums = (signs @ moving).abs()
    return float((sums >= moving.sum().abs() - 1e-9).double().mean())
