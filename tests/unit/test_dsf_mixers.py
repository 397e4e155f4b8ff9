"""Normalised and linear attention, S6 and the gated recurrences against their definitions, and what is refused."""

from __future__ import annotations

import re
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import InvalidValue
from foveate.mixers import Mixer, TokenLayout
from foveate.mixers.dsf.normalized_attention import DSFLinearAttention, NormalizedAttention
from foveate.mixers.dsf.quasi_lstm import RGLRU, QuasiLSTM
from foveate.mixers.dsf.s6 import S6, ScalarS6
from foveate.mixers.softmax_attention import SoftmaxAttention

M = TypeVar("M", bound=Mixer)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def loud(mixer: M) -> M:
    """Parameters that start at zero or one would hide faults."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return mixer.double().eval()


def heads(layer: nn.Module, x: Tensor, number: int) -> Tensor:
    return layer(x).unflatten(-1, (number, -1)).transpose(1, 2)


@pytest.mark.parametrize("normalizer", ["exp", "softplus", "sigmoid"])
@pytest.mark.parametrize("qk_dim", [None, 8, 24])
def test_normalized_attention_is_its_definition(normalizer, qk_dim) -> None:
    mixer = loud(NormalizedAttention(12, num_heads=2, qk_dim=qk_dim, normalizer=normalizer))
    x = torch.randn(2, 70, 12).double()
    q, k = (m.unflatten(-1, (2, -1)).transpose(1, 2) for m in mixer.qk_proj(x).chunk(2, -1))
    eta = {"exp": torch.exp, "softplus": F.softplus, "sigmoid": torch.sigmoid}[normalizer](mixer.n_proj(x)).mT
    weights = (q @ k.mT).tril() / eta[..., None]
    y = mixer.out_proj((weights @ heads(mixer.v_proj, x, 2)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), y, rtol=1e-9, atol=1e-10)


def test_linear_attention_is_its_definition() -> None:
    mixer = loud(DSFLinearAttention(12, num_heads=2, qk_dim=8))
    x = torch.randn(2, 70, 12).double()
    q, k = (F.elu(m.unflatten(-1, (2, -1)).transpose(1, 2)) + 1 for m in mixer.qk_proj(x).chunk(2, -1))
    weights = (q @ k.mT).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    y = mixer.out_proj((weights @ heads(mixer.v_proj, x, 2)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), y, rtol=1e-9, atol=1e-10)


def test_a_learned_normaliser_does_not_overflow_where_its_inverse_does_not() -> None:
    mixer = NormalizedAttention(8, num_heads=2)
    with torch.no_grad():
        mixer.n_proj.bias.fill_(200.0)  # exp(200) is infinite in float32, exp(-200) is 0
    y = mixer(torch.randn(1, 9, 8))
    torch.testing.assert_close(y, mixer.out_proj.bias.expand_as(y))


def test_softmax_attention_with_narrow_keys_is_its_definition() -> None:
    mixer = loud(SoftmaxAttention(12, num_heads=2, qk_dim=8, causal=True, bias=False, out_bias=True))
    assert mixer.q_proj.bias is None
    assert mixer.out_proj.bias is not None
    x = torch.randn(2, 9, 12).double()
    q, k, v = (heads(m, x, 2) for m in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    later = torch.ones(9, 9, dtype=torch.bool).triu(1)
    weights = (q @ k.mT / 2).masked_fill(later, -torch.inf).softmax(-1)
    torch.testing.assert_close(mixer(x), mixer.out_proj((weights @ v).transpose(1, 2).flatten(2)))
    y, state = mixer.prefill(x[:, :5], mixer.init_state(2))
    assert state.keys.shape[-1] == 4
    assert state.values.shape[-1] == 6
    pieces = [y, *(mixer.prefill(x[:, 5:], state)[:1])]
    torch.testing.assert_close(torch.cat(pieces, 1), mixer(x))
    assert mixer.cost((9,), 2).flops == 2 * 2 * 9 * 12 * (8 + 8 + 12 + 12) + 2 * 2 * 2 * 81 * (4 + 6)


def scan(x: Tensor, delta: Tensor, A: Tensor, b: Tensor, c: Tensor, D: Tensor) -> Tensor:
    h, outputs = torch.zeros(x.shape[0], *A.shape).double(), []
    for t in range(x.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * x[:, t])[..., None] * b[:, t, None]
        outputs.append((h * c[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, 1)


def test_s6_is_its_definition() -> None:
    mixer, x = loud(S6(20, d_state=5)), torch.randn(2, 30, 20).double()
    r, b, c = mixer.x_proj(x).split((2, 5, 5), -1)
    y = scan(x, F.softplus(mixer.dt_proj(r)), -mixer.A_log.exp(), b, c, mixer.D)
    torch.testing.assert_close(mixer(x), mixer.out_proj(y))


@pytest.mark.parametrize("step", ["channel", "token"])
def test_scalar_s6_is_its_definition(step) -> None:
    mixer, x = loud(ScalarS6(6, d_state=5, step=step)), torch.randn(2, 30, 6).double()
    r, b, c = mixer.x_proj(x).split((1, 5, 5), -1)
    delta = F.softplus(r + mixer.dt_bias).expand(2, 30, 6)
    assert mixer.dt_bias.numel() == (6 if step == "channel" else 1)
    y = scan(x, delta, -mixer.A_log.exp().expand(6, 5), b, c, mixer.D)
    torch.testing.assert_close(mixer(x), mixer.out_proj(y))


def recurrence(decay: Tensor, written: Tensor) -> Tensor:
    h, states = torch.zeros_like(written[:, 0]), []
    for t in range(written.shape[1]):
        h = decay[:, t] * h + written[:, t]
        states.append(h)
    return torch.stack(states, 1)


def streams(mixer: QuasiLSTM | RGLRU, x: Tensor) -> tuple[Tensor, Tensor]:
    g, u = mixer.input(x).chunk(2, -1)
    u = F.conv1d(u.mT, mixer.conv.weight, mixer.conv.bias, padding=mixer.kernel - 1, groups=mixer.inner)
    return g, u[..., : x.shape[1]].mT


@pytest.mark.parametrize("reversed", [False, True])
def test_quasi_lstm_is_its_definition(reversed) -> None:
    mixer, x = loud(QuasiLSTM(6, expansion=1.5, kernel=3, reversed=reversed)), torch.randn(2, 40, 6).double()
    assert mixer.inner == 9
    g, u = streams(mixer, x)
    forget, write, read = mixer.gates(u).chunk(3, -1)
    decay = torch.sigmoid(-forget) ** mixer.alpha if mixer.alpha is not None else torch.sigmoid(forget)
    h = recurrence(decay, torch.sigmoid(write) * u)
    torch.testing.assert_close(mixer(x), mixer.output(F.gelu(g) * torch.sigmoid(read) * h))


@pytest.mark.parametrize("reversed", [False, True])
def test_saturated_gates_have_finite_gradients(reversed) -> None:
    mixer, x = QuasiLSTM(6, reversed=reversed), torch.randn(2, 40, 6, requires_grad=True)
    with torch.no_grad():
        mixer.gates.bias[:12] = torch.tensor([300.0, -300.0]).repeat(6)
    mixer(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("num_heads", [1, 3])
def test_rg_lru_is_its_definition(num_heads) -> None:
    mixer, x = loud(RGLRU(6, num_heads=num_heads)), torch.randn(2, 40, 6).double()
    g, u = streams(mixer, x)
    said = torch.einsum("blhi,hio->blho", u.unflatten(-1, (num_heads, -1)), mixer.gate_weight) + mixer.gate_bias
    recur, write = (m.flatten(2) for m in said.sigmoid().chunk(2, -1))
    decay = torch.sigmoid(mixer.decay_logit) ** (8 * recur)
    h = recurrence(decay, (1 - decay**2).sqrt() * write * u)
    torch.testing.assert_close(mixer(x), mixer.output(F.gelu(g) * h))


def test_decays_of_rg_lru_start_where_published() -> None:
    decay = torch.sigmoid(RGLRU(512).decay_logit) ** 8
    assert decay.min() >= 0.9 - 1e-4
    assert decay.max() <= 0.999 + 1e-4
    assert decay.std() > 0.02


NEW = [NormalizedAttention, DSFLinearAttention, S6, ScalarS6, QuasiLSTM, RGLRU]


@pytest.mark.parametrize("cls", NEW)
def test_documents_are_apart(cls) -> None:
    mixer, x = loud(cls(8)), torch.randn(2, 50, 8).double()
    numbers = (torch.arange(50) >= 23).long().expand(2, -1)
    y = mixer(x, layout=TokenLayout((50,), segments=numbers))
    torch.testing.assert_close(y, torch.cat([mixer(x[:, :23]), mixer(x[:, 23:])], 1))
    mask = torch.rand(2, 50) < 0.6
    y = mixer(x, mask=mask, layout=TokenLayout((50,), segments=numbers))
    parts = [mixer(x[:, part], mask=mask[:, part]) for part in (slice(0, 23), slice(23, 50))]
    torch.testing.assert_close(y, torch.cat(parts, 1))


@pytest.mark.parametrize("cls", NEW)
def test_a_state_of_another_size_is_refused(cls) -> None:
    mixer, other = cls(8), cls(16)
    with pytest.raises(InvalidValue, match=rf"{cls.__name__}: \w+ of the state has shape"):
        mixer.prefill(torch.zeros(2, 3, 8), other.init_state(2))
    with pytest.raises(InvalidValue, match=rf"{cls.__name__}: \w+ of the state has shape"):
        mixer.step(torch.zeros(3, 8), mixer.init_state(2))


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        (NormalizedAttention, {"qk_dim": 9}, "qk_dim=9 is not possible: a positive multiple of num_heads=8 is needed."),
        (NormalizedAttention, {"normalizer": "tanh"}, "normalizer='tanh' is not possible: it must be one of exp, soft"),
        (DSFLinearAttention, {"num_heads": 3}, "num_heads=3 is not possible: it must divide dim=16."),
        (DSFLinearAttention, {"causal": False}, "causal=False is not possible: DSFLinearAttention is causal"),
        (SoftmaxAttention, {"qk_dim": 0}, "qk_dim=0 is not possible"),
        (S6, {"d_state": 0}, "d_state=0 is not possible"),
        (S6, {"dt_rank": -1}, "dt_rank=-1 is not possible"),
        (ScalarS6, {"step": "layer"}, "step='layer' is not possible: it must be one of channel, token."),
        (QuasiLSTM, {"expansion": 0.05}, "expansion=0.05 is not possible: expansion * dim must be at least 1"),
        (QuasiLSTM, {"kernel": 0}, "kernel=0 is not possible"),
        (RGLRU, {"num_heads": 5}, "num_heads=5 is not possible: it must divide dim=16."),
    ],
)
def test_illegal_options_are_refused(cls, options, says) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        cls(16, **options)
