"""Layers as linear systems: what simulates them, when two coincide, what is refused, and the page."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.analysis.dsf import (
    Limit,
    Realization,
    coinciding_normalizers,
    compare,
    compare_systems,
    elu_plus_one,
    matrices,
    simulate,
    supported,
    tables,
    taylor_exp,
    taylor_width,
)
from foveate.analysis.dsf.page import LONGEST, render, write_page
from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import Mixer
from foveate.mixers.dsf.normalized_attention import DSFLinearAttention, NormalizedAttention
from foveate.mixers.dsf.quasi_lstm import QuasiLSTM
from foveate.mixers.dsf.s6 import S6, ScalarS6
from foveate.mixers.lightning_attention import LightningAttention
from foveate.mixers.mamba import Mamba
from foveate.mixers.mamba2 import Mamba2
from foveate.mixers.sigmoid_attention import SigmoidAttention
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.pages.heatmaps import matrix_map
from foveate.registry import find

LENGTH, DIM = 11, 8


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build(name: str, **options) -> Mixer:
    cls = find(name, "mixer").load()
    if "num_heads" in inspect.signature(cls).parameters:
        options.setdefault("num_heads", 2)
    mixer = cls(DIM, causal=True, **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return mixer.double().eval()


def tokens() -> Tensor:
    return torch.randn(2, LENGTH, DIM).double()


VARIANTS = [(name, {}) for name in supported()] + [
    ("softmax_attention", {"position": "rope"}),
    ("softmax_attention", {"position": "alibi"}),
    ("softmax_attention", {"qk_dim": 4, "num_heads": 1}),
    ("lightning_attention", {"lrpe": True, "layer": 0, "depth": 2}),
    ("normalized_attention", {"normalizer": "sigmoid", "qk_dim": 4}),
    ("quasi_lstm", {"reversed": True}),
    ("scalar_s6", {"step": "token"}),
    ("mamba2", {"num_groups": 2, "head_dim": 4, "d_state": 3}),
]


def test_the_zoo_of_the_paper_is_supported() -> None:
    wanted = {"softmax_attention", "dsf_linear_attention", "normalized_attention", "s6", "scalar_s6", "mamba", "mamba2"}
    assert wanted | {"quasi_lstm", "rg_lru", "lightning_attention", "lightning_attention_2", "aaren"} <= set(
        supported()
    )


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_both_ways_give_the_layers_output(name, options) -> None:
    mixer, x = build(name, **options), tokens()
    system, y = matrices(mixer, x), mixer(x)
    torch.testing.assert_close(simulate(system), y, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(system.readout(system.convolve()), y, rtol=1e-9, atol=1e-10)
    phi = system.mixing_matrix()
    assert phi.shape[-2:] == (LENGTH, LENGTH)
    assert phi.triu(1).abs().max() == 0


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_other_values_meet_the_same_matrices(name, options) -> None:
    system = matrices(build(name, **options), tokens())
    u = torch.randn_like(system.u)
    torch.testing.assert_close(system.run(u), system.convolve(u))
    assert not torch.allclose(system.run(u), system.run())


@pytest.mark.parametrize("name", ["aaren", "dsf_linear_attention", "normalized_attention", "s6", "scalar_s6"])
def test_written_out_with_its_projections_it_is_the_layer(name) -> None:
    mixer, x = build(name), tokens()
    system = matrices(mixer, x)
    assert isinstance(system, Realization)
    dense = system.dense(1, maps=True)
    assert dense.Lambda.shape == (LENGTH, system.state_numbers)
    assert dense.B.shape == (LENGTH, system.state_numbers, DIM + 1)
    h, outputs = torch.zeros(dense.Lambda.shape[1]).double(), []
    for t in range(LENGTH):
        given = torch.cat([x[1, t], torch.ones(1)])
        h = dense.Lambda[t] * h + dense.B[t] @ given
        outputs.append(dense.C[t] @ h + dense.D[t] @ given)
    torch.testing.assert_close(torch.stack(outputs), mixer(x)[1])


def test_the_feature_is_the_fastest_index_of_the_state() -> None:
    system = matrices(build("dsf_linear_attention"), tokens())
    assert isinstance(system, Realization)
    B = system.dense(0).B
    n, channels = int(system.features), system.u.shape[3]
    expected = torch.kron(torch.eye(channels).double(), system.write[0, 3, 1].contiguous().view(-1, 1))
    torch.testing.assert_close(B[3, channels * n :, channels:], expected)


def test_the_decay_of_an_attention_is_the_ratio_of_normalisers() -> None:
    system = matrices(build("dsf_linear_attention", num_heads=1), tokens())
    assert isinstance(system, Realization)
    assert system.eta is not None
    torch.testing.assert_close(system.decay[:, 1:, 0, 0, 0], system.eta[:, :-1, 0] / system.eta[:, 1:, 0])
    assert system.decay.isfinite().all()


def test_step_is_run_token_by_token() -> None:
    system = matrices(build("mamba"), tokens())
    assert isinstance(system, Realization)
    h = system.start()
    for t in range(LENGTH):
        y, h = system.step(h, system.u[:, t], t)
    torch.testing.assert_close(y, system.run()[:, -1])
    with pytest.raises(InvalidValue, match="t=11 is not possible: this system has matrices for tokens 0"):
        system.step(h, system.u[:, 0], LENGTH)


def test_decays_of_zero_are_fine() -> None:
    system = matrices(build("s6"), tokens())
    assert isinstance(system, Realization)
    system.decay[:, 4] = 0
    assert system.mixing_matrix().isfinite().all()
    torch.testing.assert_close(system.convolve(), system.run())


# Softmax ------------------------------------------------------------------------------------------------------------


def test_taylor_features_make_the_polynomial_of_exp() -> None:
    q, k = torch.randn(2, 7, 3).double()
    for order in range(5):
        found = (taylor_exp(q, order) * taylor_exp(k, order)).sum(-1)
        expected = sum((q * k).sum(-1) ** p / math.factorial(p) for p in range(order + 1))
        torch.testing.assert_close(found, expected)
        assert taylor_exp(q, order).shape[-1] == taylor_width(3, order) == sum(3**p for p in range(order + 1))
    torch.testing.assert_close(elu_plus_one(torch.tensor([-50.0, 0.0, 2.0])), torch.tensor([0.0, 1.0, 3.0]))


def test_softmax_is_approached_by_finite_states() -> None:
    mixer, x = build("softmax_attention", qk_dim=4), tokens() * 0.3
    limit = matrices(mixer, x)
    assert isinstance(limit, Limit)
    assert math.isinf(limit.features)
    gaps = [compare_systems(limit, matrices(mixer, x, order=p)).distance for p in range(7)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-4 < gaps[0]
    system = matrices(mixer, x, order=3)
    assert system.features == 1 + 2 + 4 + 8
    torch.testing.assert_close(simulate(system), system.readout(system.convolve()))


# Comparisons --------------------------------------------------------------------------------------------------------


def test_a_layer_coincides_with_itself_and_not_with_another() -> None:
    a, b, x = build("dsf_linear_attention"), build("dsf_linear_attention"), tokens()
    same, other = compare(a, a, x), compare(a, b, x)
    assert same.coincide
    assert all(c.holds for c in same.conditions)
    assert not other.coincide
    assert other["state expansion n"].holds
    assert not other["normalisers eta"].holds


def test_an_attention_and_a_state_space_coincide_under_the_papers_two_conditions() -> None:
    attention = matrices(build("dsf_linear_attention", num_heads=1), tokens())
    assert isinstance(attention, Realization)
    assert attention.eta is not None
    rate = 0.7
    # C_i is scaled so that the normaliser is what both conditions ask for; the weights themselves do not change.
    eta = coinciding_normalizers(attention.eta[:, 0, 0], rate, LENGTH)[..., None]
    scale = (eta / attention.eta)[..., None, None]
    before = torch.cat([eta[:, :1], eta[:, :-1]], 1)
    fields = {**vars(attention), "eta": eta, "decay": (before / eta)[..., None, None]}
    fields |= {"write": attention.write / scale, "read": attention.read * scale}
    scaled = Realization(**fields)
    torch.testing.assert_close(scaled.mixing_matrix(), attention.mixing_matrix())
    delta = 1 / eta[..., None]
    fields |= {"delta": delta, "rate": torch.full((1, 1, 1), rate).double(), "eta": None}
    fields |= {
        "decay": torch.exp(-rate * delta)[..., None],
        "write": delta[..., None] * scaled.write * eta[..., None, None],
    }
    space = Realization(**fields)
    found = compare_systems(scaled, space)
    assert found.coincide, str(found)
    assert found["eta_{i-1} / eta_i = exp(-a Delta_i)"].holds
    assert found["1 / eta_i = Delta_i"].holds
    moved = compare_systems(scaled, Realization(**{**fields, "delta": delta * 1.1, "decay": fields["decay"] ** 1.1}))
    assert not moved.coincide
    assert not moved["1 / eta_i = Delta_i"].holds


def test_coinciding_normalisers_solve_their_equation() -> None:
    for first in (1e-3, 1.0, 50.0):
        for rate in (0.0, 0.1, 5.0):
            eta = coinciding_normalizers(torch.tensor([first]), rate, 200)
            torch.testing.assert_close(eta[:, :-1], eta[:, 1:] * torch.exp(-rate / eta[:, 1:]), rtol=1e-10, atol=0)
    grown = coinciding_normalizers(torch.tensor(1000.0), 2.0, 100).diff()
    torch.testing.assert_close(grown, torch.full_like(grown, 2.0), rtol=2e-3, atol=0)


def test_a_comparison_says_what_makes_the_difference() -> None:
    found = str(compare(build("dsf_linear_attention"), build("quasi_lstm", expansion=1), tokens()))
    assert found.startswith("DSFLinearAttention and QuasiLSTM differ here: their mixing matrices are ")
    assert "state expansion n  off by 0.75" in found
    assert "skip D             holds" in found
    assert "DSFLinearAttention: 4 features a channel; its decay follows queries and keys" in found
    assert "QuasiLSTM: 1 features a channel; its decay follows a gate of its own" in found


def test_what_cannot_be_laid_side_by_side_is_infinitely_far() -> None:
    found = compare(build("dsf_linear_attention"), build("mamba", expand=2), tokens())
    assert math.isinf(found.distance)
    assert not found.coincide
    assert math.isinf(compare(build("softmax_attention"), build("s6"), tokens())["state expansion n"].gap)


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda x: matrices(SigmoidAttention(DIM, causal=True), x), InvalidType, "SigmoidAttention has no realisation"),
        (lambda x: matrices(SigmoidAttention(DIM, causal=True), x), InvalidType, "mamba2, normalized_attention, quasi"),
        (lambda x: matrices(SoftmaxAttention(DIM), x), InvalidValue, "SoftmaxAttention must be causal"),
        (lambda x: matrices(S6(DIM), x[..., :4]), InvalidValue, "x has 4 channels"),
        (lambda x: matrices(SoftmaxAttention(DIM, causal=True), x[0, 0, 0]), InvalidValue, "x has 0 axes"),
        (
            lambda x: matrices(SoftmaxAttention(DIM, causal=True), x[:, None]),
            InvalidValue,
            "a sequence is (batch, L, dim)",
        ),
        (lambda x: matrices(S6(DIM), x, order=2), InvalidValue, "order=2 is for softmax attention alone: S6 is exact."),
        (lambda x: matrices(SoftmaxAttention(DIM, causal=True), x, order=-1), InvalidValue, "order=-1 is not possible"),
        (
            lambda x: matrices(SoftmaxAttention(DIM, causal=True, num_heads=1), x, order=6),
            InvalidValue,
            "order=6 is not possible for heads of width 8: 299,593 features, 100,000 at most.",
        ),
        (
            lambda x: matrices(SoftmaxAttention(DIM, causal=True, position="alibi"), x, order=2),
            InvalidValue,
            "order= is not possible with position='alibi'",
        ),
        (lambda x: matrices(S6(DIM), x).convolve(x), InvalidValue, "u has shape (2, 11, 8); this system reads"),
        (
            lambda x: matrices(SoftmaxAttention(DIM, causal=True), x).dense(),
            InvalidType,
            "SoftmaxAttention has an infinite state: matrices(..., order=p) makes a finite one.",
        ),
        (
            lambda x: matrices(SoftmaxAttention(DIM, causal=True), x).step(x, x, 0),
            InvalidType,
            "SoftmaxAttention has an infinite state",
        ),
        (lambda x: matrices(Mamba(DIM), x).dense(maps=True), InvalidType, "Mamba: what stands around its system is"),
        (
            lambda x: matrices(Mamba2(64), x.repeat(1, 50, 8)).dense(),
            InvalidValue,
            "dense() is for at most 100,000,000",
        ),
        (
            lambda x: compare_systems(matrices(S6(DIM), x), matrices(S6(DIM), x[:, :5])),
            InvalidValue,
            "S6 and S6 are on inputs of other shapes",
        ),
        (lambda x: coinciding_normalizers(torch.zeros(1), 1.0, 5), InvalidValue, "first=[0.0] with rate=1.0"),
        (lambda x: render({}), InvalidValue, "at least one system is needed"),
    ],
)
def test_what_cannot_be_is_refused(make, error, says) -> None:
    with pytest.raises(error, match=re.escape(says)):
        make(torch.randn(2, LENGTH, DIM))


# Tables and the page ------------------------------------------------------------------------------------------------


def few() -> dict[str, Mixer]:
    return {
        "softmax": SoftmaxAttention(DIM, num_heads=2, causal=True),
        "linear": DSFLinearAttention(DIM, num_heads=2),
        "lightning": LightningAttention(DIM, num_heads=2),
        "normalised": NormalizedAttention(DIM, num_heads=2),
        "<S6>": S6(DIM, d_state=3),
        "scalar S6": ScalarS6(DIM, d_state=3),
        "quasi-LSTM": QuasiLSTM(DIM),
    }


def test_tables() -> None:
    systems = tables.systems_of(few(), torch.randn(2, LENGTH, DIM))
    rows = tables.structure(systems)
    assert {len(row) for row in rows} == {8}
    assert [row[5:7] for row in rows[1:]] == [
        ("infinite", "infinite"), ("4", "32"), ("4", "32"), ("4", "32"), ("3", "24"), ("3", "24"), ("1", "16"),
    ]  # fmt: skip
    apart = tables.distances(systems)
    assert [row[i + 1] for i, row in enumerate(apart[1:])] == ["0"] * 7
    assert apart[1][-1] == "-"
    assert tables.markdown(rows).splitlines()[1] == "|---|---|---|---|---|---|---|---|"
    assert [row[2] for row in tables.recall_sizes(64, 32)[1:]] == ["4096", "4096", "256"]


def test_the_page_shows_every_layer(tmp_path) -> None:
    file = write_page(few(), torch.randn(1, LENGTH, DIM), tmp_path / "page.html")
    text = file.read_text(encoding="utf-8")
    assert text.count('<svg class="chart heatmap"') == 7
    assert "<S6>" not in text
    assert "&lt;S6&gt;" in text
    assert "7 layers as linear systems" in text
    with pytest.raises(InvalidValue, match=f"a sequence of {LONGEST + 1} tokens is too long for a picture"):
        write_page(few(), torch.randn(1, LONGEST + 1, DIM), tmp_path / "page.html")


def test_a_heatmap_draws_each_number_once() -> None:
    names = {"title": "a", "description": "b", "row_name": "r", "column_name": "c"}
    drawing = matrix_map([[1.0, 0.0, 0.0], [1.0, 1.0, -0.25], [0.0, math.nan, 1e-9]], **names)
    assert re.findall(r'<path class="dot tone-(\d)" fill-opacity="([\d.]+)" d="([^"]+)"/>', drawing) == [
        ("1", "1", "M0 0h1v1H0zM0 1h2v1H0z"),
        ("2", "0.5", "M2 1h1v1H2z"),
    ]
    assert matrix_map([], **names) == ""


def test_the_tables_of_the_documentation_are_what_its_code_prints(tmp_path, monkeypatch, capsys) -> None:
    page = (Path(__file__).parents[2] / "docs" / "systems" / "dsf.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "tables.structure" in c)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "the example", "exec"), {})
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("|---")]
    shown = [line for line in page.splitlines() if line.startswith("| ") and line in printed]
    apart = [line for line in printed if line.endswith((" |",)) and re.match(r"\| \w+ (\| [\d.-]+ ){10}\|", line)]
    assert len(apart) == 10
    for line in (line for line in printed if line not in apart):
        assert line in shown, f"the page does not have {line}"
    for line in apart:  # another machine may round the last digit otherwise
        name, *cells = line.strip("| ").split(" | ")
        (told,) = (row for row in page.splitlines() if re.match(rf"\| {name} (\| [\d.-]+ ){{10}}\|", row))
        for ours, theirs in zip(cells, told.strip("| ").split(" | ")[1:], strict=True):
            assert float(ours) == pytest.approx(float(theirs), rel=0.1, abs=0.02), line
