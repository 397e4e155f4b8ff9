"""The significance test: its size on autocorrelated errors, its power, seeds, ties; Pareto front and ranks."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.compare.statistics import (
    Comparison,
    _seed_variance,
    _student_p,
    compare_systems,
    fractional_ranks,
    holm,
    pareto_front,
    sign_flip_p,
)
from foveate.errors import InvalidValue

HORIZON = 24


def overlapping(rows: int, windows: int, generator: torch.Generator, horizon: int = HORIZON) -> torch.Tensor:
    """Errors of windows that share all but one of their ``horizon`` steps: moving means of white noise."""
    noise = torch.randn(rows, windows + horizon - 1, generator=generator, dtype=torch.float64)
    return noise.unfold(1, horizon, 1).mean(2)


def p_of(errors: dict[str, torch.Tensor], **options) -> float:
    compared = compare_systems(errors, **options)
    return float(compared.p[0, 1])


def test_identical_errors_tie():
    errors = torch.rand(500, generator=torch.Generator().manual_seed(0))
    compared = compare_systems({"a": errors, "b": errors.clone(), "c": errors.clone()})
    assert compared.p.eq(1).all()
    assert compared.ranks() == [1, 1, 1]
    assert all(compared.tied(i) for i in range(3))


def test_a_clearly_worse_system_is_not_tied_and_a_slightly_worse_one_is():
    generator = torch.Generator().manual_seed(1)
    noise = overlapping(3, 1000, generator)
    errors = {"best": 1 + noise[0], "close": 1.005 + noise[1], "far": 2 + noise[2]}
    compared = compare_systems(errors, overlap=HORIZON)
    assert [compared.tied(i) for i in range(3)] == [True, True, False]
    assert compared.ranks() == [1, 1, 3]
    assert compared.beaten_by(2) == ["best", "close"]


def test_pairing_finds_what_the_spread_over_samples_hides():
    generator = torch.Generator().manual_seed(2)
    shared, own = 5 * overlapping(1, 1000, generator)[0], 0.05 * overlapping(1, 1000, generator)[0]
    assert p_of({"a": shared, "b": shared + own + 0.05}, overlap=HORIZON) < 0.001


@pytest.mark.parametrize(("windows", "overlap"), [(1000, 24), (600, 48), (400, 1)])
def test_false_positives_are_near_the_nominal_five_percent(windows: int, overlap: int):
    generator = torch.Generator().manual_seed(3)
    trials = 400
    noise = overlapping(2 * trials, windows, generator, horizon=overlap).reshape(trials, 2, windows)
    found = sum(p_of({"a": a, "b": b}, overlap=overlap) < 0.05 for a, b in noise)
    assert 0.02 < found / trials < 0.085
    if overlap > 1:  # what a plain paired t test would say
        difference = noise[:, 0] - noise[:, 1]
        naive = difference.mean(1).abs() > 1.96 * difference.std(1) / math.sqrt(windows)
        assert naive.double().mean() > 0.5


def test_picking_the_best_row_does_not_raise_false_positives():
    generator = torch.Generator().manual_seed(4)
    trials, systems, windows = 150, 8, 600
    noise = overlapping(trials * systems, windows, generator).reshape(trials, systems, windows)
    wrong = 0
    for table in noise:
        compared = compare_systems({str(i): row for i, row in enumerate(table)}, overlap=HORIZON)
        wrong += not all(compared.tied(i) for i in range(systems))
    # Comparing with the best row only, this would be about 0.12.
    assert wrong / trials < 0.09


def test_few_independent_windows_show_nothing():
    generator = torch.Generator().manual_seed(5)
    a, b = overlapping(2, 60, generator, horizon=48)
    compared = compare_systems({"a": a, "b": b + 0.3}, overlap=48)
    assert compared.freedom == 1
    assert compared.tied(1)


def test_one_sample_is_no_test():
    compared = compare_systems({"a": torch.tensor([1.0]), "b": torch.tensor([9.0])})
    assert compared.freedom == 0
    assert compared.ranks() == [1, 1]


def test_seed_luck_is_not_significance():
    """Two systems differ by half of what each of them varies with its seed."""
    generator = torch.Generator().manual_seed(6)
    base = 1 + 0.01 * overlapping(1, 1000, generator)[0]
    a = torch.stack([base - 0.02, base + 0.02])
    b = torch.stack([base, base + 0.04]) + 0.001 * overlapping(2, 1000, generator)
    assert p_of({"a": a, "b": b}, overlap=HORIZON) > 0.2
    assert p_of({"a": a, "b": b}, overlap=HORIZON, fixed={"a", "b"}) < 0.001


def test_seeds_that_agree_by_luck_count_as_the_median_system():
    table = {
        "lucky": torch.tensor([[1.0, 1.0], [1.0002, 1.0]], dtype=torch.float64),
        "usual": torch.tensor([[1.0, 1.0], [1.1, 1.1]], dtype=torch.float64),
        "other": torch.tensor([[2.0, 2.0], [2.1, 2.1]], dtype=torch.float64),
        "once": torch.tensor([[3.0, 3.0]], dtype=torch.float64),
        "naive": torch.tensor([[3.0, 3.0]], dtype=torch.float64),
    }
    lucky, usual, other, once, naive = _seed_variance(table, {"naive"}).tolist()
    assert lucky == pytest.approx(usual) == pytest.approx(other)
    assert once == pytest.approx(2 * usual)  # one seed instead of two
    assert naive == 0
    assert _seed_variance({"a": table["once"], "b": table["naive"]}, set()).tolist() == [0, 0]


def test_series_measured_at_the_same_time_are_not_independent():
    generator = torch.Generator().manual_seed(7)
    a, b = overlapping(2, 300, generator)
    b = b - b.mean() + a.mean() + 0.16
    single = p_of({"a": a, "b": b}, overlap=HORIZON)
    copies = {"a": a.repeat(5), "b": b.repeat(5)}
    assert p_of(copies, overlap=HORIZON, groups=torch.arange(300).repeat(5)) == pytest.approx(single)
    assert p_of(copies, overlap=HORIZON) < single / 5


def test_samples_without_truth_are_left_out():
    generator = torch.Generator().manual_seed(8)
    a, b = overlapping(2, 200, generator)
    holes = [torch.cat([x[:50], torch.tensor([math.nan, math.nan]), x[50:]]) for x in (a, b)]
    assert p_of({"a": holes[0], "b": holes[1]}) == p_of({"a": a, "b": b})
    groups = torch.cat([torch.arange(50), torch.tensor([0, 0]), torch.arange(50, 200)])
    assert p_of({"a": holes[0], "b": holes[1]}, groups=groups) == pytest.approx(p_of({"a": a, "b": b}))


def test_what_cannot_be_compared_is_refused():
    good = torch.ones(10)
    with pytest.raises(InvalidValue, match="a has 10, b has 9"):
        compare_systems({"a": good, "b": good[:9]})
    with pytest.raises(InvalidValue, match="errors of 'b' are not all finite"):
        compare_systems({"a": good, "b": good / 0})
    with pytest.raises(InvalidValue, match="overlap=0 is not possible"):
        compare_systems({"a": good}, overlap=0)
    with pytest.raises(InvalidValue, match="nothing to compare"):
        compare_systems({})
    with pytest.raises(InvalidValue, match=r"groups=.* one number for each of 10 samples"):
        compare_systems({"a": good}, groups=torch.arange(9))


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(12.706, 1, 0.05), (4.303, 2, 0.05), (2.228, 10, 0.05), (2.145, 14, 0.05), (2.878, 18, 0.01)],
)
def test_student_distribution(t: float, freedom: int, p: float):
    assert float(_student_p(torch.tensor([t], dtype=torch.float64), freedom)) == pytest.approx(p, rel=2e-3)
    assert float(_student_p(torch.tensor([math.inf], dtype=torch.float64), freedom)) == pytest.approx(0, abs=1e-12)
    assert float(_student_p(torch.zeros(1, dtype=torch.float64), freedom)) == 1


def test_holm():
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64)
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(torch.tensor([0.6, 0.7], dtype=torch.float64)).tolist() == [1, 1]


def test_ranks_are_shared_by_equals_and_skip_as_in_sport():
    p = torch.ones(5, 5, dtype=torch.float64)
    for better, worse in [(0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (1, 4), (2, 4), (3, 4)]:
        p[better, worse] = p[worse, better] = 0.001
    compared = Comparison(("a", "b", "c", "d", "e"), (1.0, 1.1, 2.0, 2.1, 3.0), p, 100, 20)
    assert compared.ranks() == [1, 1, 3, 3, 5]


def test_a_noisy_system_tied_with_the_best_is_first_even_if_a_steady_one_beats_it():
    p = torch.ones(3, 3, dtype=torch.float64)
    p[0, 1] = p[1, 0] = p[1, 2] = p[2, 1] = 0.001
    compared = Comparison(("a", "b", "c"), (1.0, 1.1, 1.2), p, 100, 20)
    assert compared.beaten_by(2) == ["b"]
    assert compared.ranks() == [1, 3, 1]


def test_pareto_front():
    points = [(0.30, 10.0, 400.0), (0.31, 2.0, 350.0), (0.35, 3.0, 360.0), (0.50, 0.1, 300.0), (0.31, 2.0, 350.0)]
    assert pareto_front(points) == [True, True, False, True, True]
    # A cost that is two per cent lower does not make a worse system interesting; a fifth does.
    assert pareto_front([(0.30, 1.00), (0.31, 0.98)]) == [True, False]
    assert pareto_front([(0.30, 1.00), (0.31, 0.80)]) == [True, True]
    assert pareto_front([(0.30, math.inf), (0.31, 5.0), (0.4, 0.0)]) == [True, True, True]
    assert pareto_front([(0.30, 1.0), (0.29, math.inf), (0.31, math.inf)]) == [True, True, False]
    assert pareto_front([]) == []


def test_fractional_ranks():
    assert fractional_ranks([1, 1, 3, 4, 4, 4]) == [1.5, 1.5, 3, 5, 5, 5]
    assert fractional_ranks([math.inf, 1, math.inf]) == [2.5, 1, 2.5]


def test_sign_flips_over_data_sets():
    assert sign_flip_p([1] * 5) == 2 / 2**5
    assert sign_flip_p([1] * 6) == 2 / 2**6
    assert sign_flip_p([1, -1, 0, 0]) == 1
    assert sign_flip_p([]) == 1
    assert sign_flip_p([1] * 30) < 1e-4
    assert sign_flip_p([1] * 30) > 0
