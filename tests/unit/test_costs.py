"""The cost model: formulas against counted FLOPs and bytes, the roofline, growth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foveate
from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.measure.cost import Cost
from foveate.measure.counted import count_bytes, count_cost
from foveate.measure.flops import count_flops, training_flops
from foveate.measure.growth import fit_growth
from foveate.measure.op_costs import known_ops, op_cost, visible_pairs
from foveate.measure.roofline import Peaks, measure_peaks, place, roofline
from foveate.ops import backend
from foveate.ops.linear_attention import lightning_attention
from foveate.registry import entries


def test_costs_add_and_multiply_in_every_field():
    one = Cost(1, 2, 3, 4, 5, 6, 7)
    assert one + one == one * 2 == Cost(2, 4, 6, 8, 10, 12, 14)


def test_traffic_is_told_or_estimated_from_weights_and_activations():
    assert Cost(parameters=10, activation_bytes=100).traffic_bytes == 4 * 10 + 2 * 100
    assert Cost(parameters=10, activation_bytes=100, moved_bytes=7).traffic_bytes == 7
    assert Cost(flops=30, elementwise=4, exps=1, moved_bytes=7).intensity == 5
    assert Cost().intensity == 0


@pytest.mark.parametrize("entry", entries("op"), ids=lambda e: e.name)
def test_every_op_has_a_formula(entry):
    assert entry.name in known_ops(), f"{entry.name} has no cost: add its formula to foveate/measure/op_costs/"


def test_attention_formulas_are_those_counted():
    q, k, v = (torch.empty(2, 3, n, e, device="meta") for n, e in ((10, 8), (14, 8), (14, 6)))
    sizes = {"batch": 2, "heads": 3, "length": 10, "key_length": 14, "d": 8, "e": 6}
    counted = count_flops(lambda: F.scaled_dot_product_attention(q, k, v))
    assert op_cost("softmax_attention", **sizes).flops == counted > 0
    for name in ("softmax_attention", "sigmoid_attention"):
        op = foveate.create(name, kind="op")
        with backend("reference"):
            counted = count_flops(lambda op=op: op(q, k, v))
        assert op_cost(name, **sizes).flops == counted, name
    # The definition's pairs, of which a dense form computes more.
    assert op_cost("softmax_attention", **sizes, causal=True).flops == 2 * 6 * (8 + 6) * (
        5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + 13 + 14
    )


def test_visible_pairs():
    for length, key_length in ((1, 1), (4, 4), (3, 7)):
        visible = torch.ones(length, key_length).tril(key_length - length)
        assert visible_pairs(length, key_length, causal=True) == int(visible.sum())
    assert visible_pairs(3, 7, causal=False) == 21


def test_fused_attention_on_the_cpu_is_counted():
    q = torch.zeros(1, 2, 8, 4)
    assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 4 * 2 * 8 * 8 * 4

    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    assert training_flops(Attend(), q) == (4 + 10) * 2 * 8 * 8 * 4  # the backward pass makes five products


def test_neighborhood_formula_counts_the_visible_pairs():
    plain = op_cost("neighborhood_attention", grid=(6, 8), window=(3, 5), d=4, heads=2)
    assert plain.exps == 2 * 48 * 15
    assert plain.flops == 4 * 4 * plain.exps
    causal = op_cost("neighborhood_attention", grid=(6,), window=(3,), d=4, causal=(True,), dilation=(2,))
    assert causal.exps == 1 + 1 + 2 + 2 + 3 + 3


def test_linear_attention_formula_is_what_a_state_needs():
    length, heads, d, block = 128, 2, 16, 32
    useful = op_cost("lightning_attention", length=length, heads=heads, d=d).flops
    q = torch.empty(1, heads, length, d, device="meta")
    with backend("torch"):
        counted = count_flops(lambda: lightning_attention(q, q, q, block=block))
    # A chunked form multiplies within chunks besides, two products of its length for each token, and joins chunks.
    assert useful <= counted <= useful + 1.2 * 4 * heads * length * block * d


def test_convolution_formula_is_that_counted():
    x, weight = torch.empty(2, 6, 20, device="meta"), torch.empty(6, 4, device="meta")
    op = foveate.create("causal_conv1d", kind="op")
    with backend("torch"):
        counted = count_flops(lambda: op(x, weight))
    assert op_cost("causal_conv1d", batch=2, channels=6, length=20, taps=4).flops == counted > 0


@pytest.mark.parametrize("dense", [False, True])
def test_dilated_convolution_formula_is_that_counted(dense: bool):
    x, weight = torch.empty(2, 24, 6, device="meta"), torch.empty(6, 6 if dense else 1, 3, device="meta")
    op = foveate.create("dilated_conv", kind="op")
    with backend("torch"):
        counted = count_flops(lambda: op(x, weight, dilation=4))
    assert op_cost("dilated_conv", batch=2, channels=6, length=24, taps=3, dense=dense).flops == counted > 0


def test_chunked_attention_formula_is_that_counted():
    q, v = torch.empty(2, 20, 4, device="meta"), torch.empty(2, 20, 6, device="meta")
    op = foveate.create("chunked_attention", kind="op")
    with backend("torch"):
        counted = count_flops(lambda: op(q, q, v, torch.empty(9, device="meta"), chunk=5))
    assert op_cost("chunked_attention", batch=2, length=20, d=4, e=6, chunk=5).flops == counted > 0
    half = op_cost("chunked_attention", batch=2, length=20, d=4, e=6, chunk=5, causal=True).flops
    assert half == counted * 15 // 25


@pytest.mark.parametrize(("length", "key_length", "window", "sinks"), [(9, 9, 4, 0), (5, 12, 4, 2), (3, 3, 7, 1)])
def test_window_attention_formula_counts_visible_pairs(length, key_length, window, sinks):
    age = np.arange(key_length - length, key_length)[:, None] - np.arange(key_length)
    pairs = int(((age >= 0) & (age < window)).sum()) + length * sinks
    sizes = {"length": length, "key_length": key_length, "window": window, "sinks": sinks, "heads": 3, "batch": 2}
    cost = op_cost("window_attention", d=4, e=6, **sizes)
    assert (cost.exps, cost.flops) == (6 * pairs, 2 * 6 * pairs * 10)


@pytest.mark.parametrize("length", [3, 5, 17])
def test_landmark_attention_formula_counts_what_is_seen(length):
    landmark = np.arange(length) % 5 == 4
    query, key = np.arange(length)[:, None], np.arange(length)
    seen = (key <= query) & ~(landmark & (query // 5 == key // 5))
    cost = op_cost("landmark_attention", length=length, block_size=4, d=4, e=6)
    assert cost.exps == seen.sum()
    assert cost.flops == 2 * (4 * seen.sum() + 6 * seen[:, ~landmark].sum())
    assert op_cost("landmark_grouped_softmax", length=3, key_length=5, heads=2).exps == 30


def test_neural_memory_formula_counts_the_memory_of_each_token():
    cost = op_cost("neural_memory", length=7, dim=3, hidden=5, depth=2, heads=2)
    forward = 2 * (3 * 5 + 5 * 3)
    assert cost.flops == 14 * (3 * forward + 2 * 5 * 3)  # keys, queries, outer products; back through the second matrix
    assert op_cost("neural_memory", length=1, dim=3, hidden=5, depth=1).state_bytes == 4 * 9 * 3


def test_scan_formula_counts_an_exponential_for_each_state():
    cost = op_cost("selective_scan", length=10, channels=6, states=4, batch=2)
    assert cost.exps == 2 * 10 * 6 * 4
    assert cost.moved_bytes == 4 * (3 * 120 + 2 * 2 * 10 * 4 + 6 * 5)
    more = op_cost("selective_scan", length=10, channels=6, states=4, batch=2, gate=True, softplus=True)
    assert more.exps == cost.exps + 3 * 120
    assert more.moved_bytes == cost.moved_bytes + 4 * 120
    step = op_cost("selective_state_update", channels=6, states=4, batch=2)
    assert step.exps == 48
    assert step.state_bytes == 4 * 48


def test_other_formulas_grow_with_their_tokens():
    for name, sizes in {
        "ssd": {"heads": 2, "width": 4, "states": 8},
        "s4d": {"channels": 4, "states": 8},
        "prefix_attention": {"width": 4},
    }.items():
        one, two = (op_cost(name, length=length, **sizes) for length in (64, 128))
        assert two.flops == 2 * one.flops
        assert two.elementwise == 2 * one.elementwise > 0
        assert two.state_bytes == one.state_bytes > 0
    assert op_cost("gated_rms_norm", tokens=10, channels=4).exps == 40


def test_wrong_names_and_sizes_are_told_in_one_sentence():
    with pytest.raises(UnknownName, match="unknown op 'softmax': did you mean 'softmax_attention'"):
        op_cost("softmax")
    with pytest.raises(InvalidType, match=r"the cost of 'ssd' missing .* 'states'"):
        op_cost("ssd", length=4, heads=1, width=1)
    with pytest.raises(InvalidType, match="the cost of 'ssd' got an unexpected keyword argument 'depth'"):
        op_cost("ssd", length=4, heads=1, width=1, states=1, depth=2)


def test_bytes_moved_are_those_of_operators_not_of_views():
    a, b = torch.zeros(4, 8), torch.zeros(8, 2)
    assert count_bytes(lambda: a @ b) == 4 * (32 + 16 + 8)
    assert count_bytes(lambda: a.T[:3].unsqueeze(0)) == 0
    row = torch.zeros(1, 8)
    assert count_bytes(lambda: a + row.expand(4, 8)) == 4 * (32 + 8 + 32)  # what is broadcast is read once


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_cost_of_any_module_is_counted(device: str):
    net = nn.Sequential(nn.Linear(16, 32), nn.Sigmoid(), nn.Linear(32, 4)).to(device)
    x = torch.zeros(10, 16, device=device, requires_grad=True)
    cost = count_cost(net, x)
    assert cost.flops == 2 * 10 * (16 * 32 + 32 * 4)
    assert cost.parameters == 16 * 32 + 32 + 32 * 4 + 4
    assert cost.activation_bytes == 4 * 10 * (16 + 32)
    assert cost.exps == 10 * 32
    assert cost.state_bytes == 0
    assert cost.moved_bytes >= 4 * (160 + 512 + 320 + 320 + 320 + 128 + 40)


def test_the_counted_state_is_that_of_the_mixer():
    mixer = foveate.create("mamba", kind="mixer", dim=16)
    with backend("torch"):
        cost = count_cost(mixer, torch.zeros(3, 20, 16))
    assert cost.state_bytes == mixer.init_state(3).nbytes == mixer.cost((20,), 3).state_bytes
    assert cost.flops == mixer.cost((20,), 3).flops


def test_the_estimated_traffic_of_mixers_is_within_what_operators_move():
    for name in ("softmax_attention", "gated_conv", "lstm"):
        mixer = foveate.create(name, kind="mixer", dim=32).to("meta")
        with backend("torch"):
            moved = count_cost(mixer, torch.zeros(2, 64, 32, device="meta")).moved_bytes
        estimate = mixer.cost((64,), 2).traffic_bytes
        assert 0.3 * estimate <= moved <= 12 * estimate, name


# ----- roofline


def test_peaks_of_this_machine_are_plausible():
    peaks = measure_peaks(seconds=0.02)
    assert peaks.threads == 1
    assert 1e8 < peaks.gemm_flops < 1e13
    assert 1e6 < peaks.exps < peaks.gemm_flops
    assert 1e7 < peaks.stream_bytes < 1e13


def test_a_place_is_under_the_lowest_roof():
    peaks = Peaks(threads=1, gemm_flops=1e9, exps=1e8, stream_bytes=1e9)
    assert place(Cost(flops=10**9, moved_bytes=10), peaks).bound == "gemm"
    assert place(Cost(exps=10**9, moved_bytes=10), peaks).bound == "exp"
    found = place(Cost(flops=10, moved_bytes=2 * 10**9), peaks, seconds=4.0)
    assert (found.bound, found.least_seconds, found.share) == ("memory", 2.0, 0.5)
    assert place(Cost(flops=30, moved_bytes=10), peaks).intensity == 3
    with pytest.raises(InvalidValue, match="seconds=0 is not possible: a measured time is positive"):
        place(Cost(flops=1), peaks, seconds=0)


def test_the_roofline_has_a_slope_and_a_top():
    assert roofline(2.0, peak=100.0, bandwidth=10.0) == 20.0
    assert roofline(50.0, peak=100.0, bandwidth=10.0) == 100.0


# ----- growth


def test_growth_of_power_laws():
    sizes = [100, 200, 400, 800]
    found = fit_growth(sizes, [3e-4 * n**1.5 for n in sizes])
    assert found.exponent == pytest.approx(1.5)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.text() == "1.50 ±0.00"
    noisy = fit_growth(sizes, [n * f for n, f in zip(sizes, (1, 1.2, 0.9, 1.1), strict=True)])
    assert abs(noisy.exponent - 1) < 3 * (noisy.error or 0)
    assert fit_growth([1, 2], [5, 20]).error is None


def test_growth_needs_sizes_and_positive_values():
    with pytest.raises(InvalidValue, match="2 values at 1 sizes: growth needs a value for each of two or more sizes"):
        fit_growth([4, 4], [1, 2])
    with pytest.raises(InvalidValue, match="not positive"):
        fit_growth([1, 2], [0, 2])
