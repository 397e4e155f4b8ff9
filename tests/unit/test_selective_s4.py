"""Selective S4: what is kept, the copy, gradients through the choice, the S4 kernel, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.s4 import S4
from foveate.mixers.selective_s4 import SelectiveS4
from foveate.models.series.selective_s4 import ViS4mer
from foveate.ops.s4_kernel import hippo_legs, s4_kernel, s4_matrices


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def kept(y: Tensor) -> Tensor:
    """Bool ``(batch, length)``: tokens that have an output."""
    return (y != 0).any(-1)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.95])
def test_the_best_are_kept_and_read_in_their_order(ratio: float) -> None:
    mixer, x = SelectiveS4(8, keep_ratio=ratio).eval(), torch.randn(3, 21, 8)
    y, count = mixer(x), max(1, int(ratio * 21 + 0.5))
    assert kept(y).sum(1).tolist() == [count] * 3 == [mixer.kept_of(21)] * 3
    p = mixer.logits(x).softmax(-1)[..., 1]
    for sample in range(3):
        chosen = kept(y)[sample]
        assert p[sample][chosen].min() >= p[sample][~chosen].max()
        torch.testing.assert_close(y[sample][chosen], mixer.s4(x[sample : sample + 1, chosen])[0])


def test_of_equal_tokens_the_first_are_kept() -> None:
    mixer = SelectiveS4(8).eval()
    with torch.no_grad():
        mixer.generator.score.weight.zero_()
    assert kept(mixer(torch.randn(1, 10, 8)))[0].tolist() == [True] * 5 + [False] * 5


def test_masked_tokens_are_not_counted() -> None:
    mixer, x = SelectiveS4(8, keep_ratio=0.5).eval(), torch.randn(3, 20, 8)
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[0, 3:17:2], mask[1, 5] = True, True
    y = mixer(x, mask=mask)
    assert kept(y).sum(1).tolist() == [4, 1, 0]
    torch.testing.assert_close(y[0, mask[0]], mixer(x[:1, mask[0]])[0])


def test_all_kept_is_the_dense_layer_to_the_bit() -> None:
    for causal in (False, True):
        mixer, x = SelectiveS4(8, keep_ratio=1, causal=causal), torch.randn(2, 21, 8)
        assert torch.equal(mixer(x), mixer.s4(x))
        assert torch.equal(mixer.eval()(x), mixer.s4(x))
        assert not mixer.aux_losses
    y, _ = mixer.prefill(x, mixer.init_state(2))
    torch.testing.assert_close(y, mixer.s4(x))


def test_a_causal_choice_is_by_probability_and_running_mean() -> None:
    mixer, x = SelectiveS4(8, causal=True).eval(), torch.randn(2, 30, 8)
    logits = mixer.logits(x)
    z = mixer.generator.features(mixer.guide(x))
    for t in (0, 7, 29):
        torch.testing.assert_close(logits[:, t], mixer.generator.logits(z[:, t], z[:, : t + 1].mean(1)))
    assert torch.equal(kept(mixer(x)), logits.softmax(-1)[..., 1] > 0.5)
    assert 0 < kept(mixer(x)).double().mean() < 1, "nothing was chosen"


def test_the_copy_follows_and_has_no_gradient() -> None:
    mixer, x = SelectiveS4(8, momentum=0.9), torch.randn(2, 9, 8)
    before = {name: value.clone() for name, value in mixer.guide.state_dict().items()}
    assert all(torch.equal(value, mixer.s4.state_dict()[name]) for name, value in before.items())
    assert not list(mixer.guide.parameters())
    optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
    mixer(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in mixer.guide.state_dict().items())
    mixer.after_step()
    for name, value in mixer.guide.state_dict().items():
        theta = mixer.s4.state_dict()[name]
        assert not torch.equal(theta, before[name])
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * theta, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_hard_choice_has_the_gradient_of_the_soft_one(causal: bool, gather: bool) -> None:
    mixer, x = SelectiveS4(8, causal=causal, gather=gather), torch.randn(2, 40, 8)
    y = mixer(x)
    assert 0.2 < kept(y).double().mean() < 0.8
    loss = y.square().sum()
    for total in (loss, mixer.aux_losses["keep_ratio"]):
        found = torch.autograd.grad(total, list(mixer.generator.parameters()), retain_graph=True)
        assert all(float(g.abs().max()) > 0 for g in found)
    share = kept(y).double().mean()
    assert float(mixer.aux_losses["keep_ratio"].detach()) == pytest.approx(float((share - 0.5) ** 2), abs=1e-6)


def test_what_is_dropped_is_a_zero_in_its_place_or_gone() -> None:
    x = torch.randn(1, 30, 8)
    for gather in (False, True):
        torch.manual_seed(1)
        mixer = SelectiveS4(8, gather=gather)
        y = mixer(x)
        chosen = kept(y)
        if gather:
            torch.testing.assert_close(y[chosen], mixer.s4(x[:, chosen[0]])[0])
        else:
            dense = mixer.s4(x * chosen.unsqueeze(-1))
            torch.testing.assert_close(y[chosen], dense[chosen])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep_ratio": 0}, "keep_ratio=0 is not possible: it must be above 0 and at most 1"),
        ({"keep_ratio": 1.1}, "keep_ratio=1.1 is not possible"),
        ({"momentum": -0.1}, "momentum=-0.1 is not possible: it must be in 0 ... 1"),
        ({"tau": 0}, "tau=0 is not possible"),
        ({"hidden": 0}, "hidden=0 is not possible"),
    ],
)
def test_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        SelectiveS4(8, **options)


def test_another_state_is_refused() -> None:
    mixer = SelectiveS4(8, causal=True)
    with pytest.raises(InvalidValue, match=r"ssm of the state has shape \(3, 8, 32, 2\); it must be \(2, 8, 32, 2\)"):
        mixer.step(torch.randn(2, 8), mixer.init_state(3))
    with pytest.raises(InvalidType, match="its state is a SelectiveS4State, not a S4DState"):
        mixer.prefill(torch.randn(2, 5, 8), mixer.s4.init_state(2))  # type: ignore[arg-type]


# The kernel of S4 ---------------------------------------------------------------------------------------------------


def model(channels: int, rank: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w, B, C and dt of LegS, the further factors of a higher rank drawn."""
    w, b, p = hippo_legs(8)
    B, C = (torch.randn(channels, 1 + rank, 4, dtype=torch.complex128) * 0.3 for _ in range(2))
    B[:, 0], B[:, 1], C[:, 1] = b, p, p
    return w, B, C, torch.rand(channels).double() * 0.1 + 0.01


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 16, 17, 60])
def test_the_kernel_is_the_answer_to_an_impulse(length: int, rank: int) -> None:
    w, B, C, dt = model(3, rank)
    dA, x, read = s4_matrices(w, B, C, dt, length)
    expected = []
    for _ in range(length):
        expected.append((read * x).sum(-1).real)
        x = (dA @ x.unsqueeze(-1)).squeeze(-1)
    found = s4_kernel(w, B, C, dt, length, released=False)
    torch.testing.assert_close(found, torch.stack(expected, -1), rtol=1e-8, atol=1e-8)
    if length % 2 == 0:
        assert torch.equal(s4_kernel(w, B, C, dt, length), found)


def test_legs_is_normal_plus_rank_one() -> None:
    n = 8
    w, b, p = hippo_legs(n)
    row = torch.arange(n).double()
    A = torch.where(row[:, None] > row, -((2 * row[:, None] + 1) * (2 * row + 1)).sqrt(), 0.0) - torch.diag(row + 1)
    both = torch.cat([w, w.conj()])
    low = torch.cat([p, p.conj()])
    again = torch.diag(both) - low[:, None] * low.conj()
    # Equal up to the basis: the same characteristic polynomial, the same answers to an impulse.
    torch.testing.assert_close(
        torch.linalg.eigvals(again).real.sort().values, torch.linalg.eigvals(A).real.sort().values, rtol=1e-3, atol=1e-3
    )
    read = torch.cat([b, b.conj()])
    root = (2 * row + 1).sqrt()
    for power in range(4):
        ours = (read.conj() * (torch.linalg.matrix_power(again, power) @ read)).sum().real
        theirs = root @ torch.linalg.matrix_power(A, power) @ root
        torch.testing.assert_close(ours, theirs)


def test_a_layer_is_its_convolution() -> None:
    layer, x = S4(3, 12, d_state=8), torch.randn(2, 9, 3)
    kernel = layer.kernel()
    v = torch.zeros(2, 9, 3)
    for t in range(9):
        v[:, t] = sum(kernel[:, t - s] * x[:, s] for s in range(t + 1)) + layer.D * x[:, t]
    torch.testing.assert_close(layer(x), layer.out(torch.nn.functional.gelu(v)), rtol=1e-4, atol=1e-5)


def test_the_layer_and_its_kernel_refuse() -> None:
    with pytest.raises(InvalidValue, match="d_state=5 is not possible"):
        S4(3, 12, d_state=5)
    with pytest.raises(InvalidValue, match=r"\(batch, length, 3\) of at most l_max=12 tokens is needed"):
        S4(3, 12)(torch.randn(1, 13, 3))
    w, B, C, dt = model(3)
    with pytest.raises(InvalidType, match="w, B and C must be complex"):
        s4_kernel(w.real, B, C, dt, 8)
    with pytest.raises(InvalidValue, match="do not fit"):
        s4_kernel(w, B, C, dt[:2], 8)
    with pytest.raises(InvalidValue, match="length=0 is not possible"):
        s4_kernel(w, B, C, dt, 0)


# ViS4mer -------------------------------------------------------------------------------------------------------------


def vis4mer(**options: Any) -> ViS4mer:
    return ViS4mer(**{"d_input": 3, "l_max": 21, "d_output": 4, "d_model": 16, "n_layers": 2, **options}).eval()


@pytest.mark.parametrize("prenorm", [True, False])
def test_every_layer_halves_length_and_width(prenorm: bool) -> None:
    model, x = vis4mer(prenorm=prenorm), torch.randn(2, 21, 3)
    found = model.encoder(x)
    for layer in model.layers:
        mixed = found + layer.s4(layer.norm(found) if prenorm else found)
        mixed = mixed if prenorm else layer.norm(mixed)
        count = mixed.shape[1] // 2
        found = torch.nn.functional.gelu(layer.linear((mixed[:, 0 : 2 * count : 2] + mixed[:, 1 : 2 * count : 2]) / 2))
    assert found.shape == (2, 5, 4)
    torch.testing.assert_close(model(x), model.decoder(found.mean(1)))


@pytest.mark.parametrize("prenorm", [True, False])
def test_steps_behind_the_end_have_no_influence(prenorm: bool) -> None:
    model, x = vis4mer(l_max=24, prenorm=prenorm), torch.randn(3, 24, 3)
    mask = torch.arange(24) < torch.tensor([[24], [12], [0]])
    y = model(x.masked_fill(~mask[..., None], torch.nan), mask=mask)
    torch.testing.assert_close(y[:1], model(x[:1]))
    torch.testing.assert_close(y[1:2], model.decoder(model.forward_features(x[1:2, :12])))
    torch.testing.assert_close(y[2], model.decoder.bias)


def test_a_network_of_the_input_s_width_has_no_encoder() -> None:
    model = vis4mer(d_input=16)
    assert model.encoder is None
    assert not any(name.startswith("encoder") for name in model.state_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"l_max": 3}, "l_max=3 is not possible: 2 layers halve it, so it must be at least 4"),
        ({"d_model": 2}, "d_model=2 is not possible: 2 layers halve it"),
        ({"n_layers": 0}, "n_layers=0 is not possible"),
        ({"d_output": 0}, "d_output=0 is not possible"),
        ({"d_state": 3}, "d_state=3 is not possible"),
    ],
)
def test_a_network_that_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        vis4mer(**options)


def test_a_network_refuses_what_it_cannot_read() -> None:
    model, x = vis4mer(), torch.randn(2, 21, 3)
    with pytest.raises(InvalidValue, match=re.escape("(batch, length, 3) of 4 to 21 tokens is needed")):
        model.forward_features(x[:, :3])
    with pytest.raises(InvalidType, match="mask must be bool"):
        model(x, mask=torch.ones(2, 21))
    with pytest.raises(InvalidValue, match=r"mask has shape \(2, 20\); it must be \(2, 21\)"):
        model(x, mask=torch.ones(2, 20, dtype=torch.bool))
