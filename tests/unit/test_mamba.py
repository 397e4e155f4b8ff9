"""Mamba and Mamba-2: initial values, gaps, streams, cost, memory and refusals."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import InvalidValue
from foveate.measure.memory import saved_bytes
from foveate.mixers import Mixer, TokenLayout
from foveate.mixers.mamba import Mamba
from foveate.mixers.mamba2 import Mamba2
from foveate.mixers.ssm import Packing
from foveate.models.official import load_official
from foveate.ops import backend

BOTH = pytest.mark.parametrize("cls", [Mamba, Mamba2])


def build(cls: type[Mixer], dim: int = 12, **options: object) -> Mixer:
    """A small mixer whose state lasts: step sizes are large enough to matter, small enough not to forget at once."""
    torch.manual_seed(0)
    small = {"d_state": 4} if cls is Mamba else {"d_state": 8, "head_dim": 6, "num_groups": 2, "chunk_size": 8}
    return cls(dim, **(small | options))  # type: ignore[arg-type]


def tokens(length: int, dim: int = 12, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(seed))


# Initial values


@BOTH
def test_step_sizes_begin_log_uniform(cls: type[Mixer]):
    torch.manual_seed(0)
    mixer = cls(256, **({} if cls is Mamba else {"head_dim": 1}))  # type: ignore[arg-type]
    bias = mixer.dt_proj.bias if isinstance(mixer, Mamba) else mixer.dt_bias  # type: ignore[union-attr]
    steps = F.softplus(bias).detach()
    assert steps.numel() == 512
    assert 1e-3 * 0.999 <= steps.min() < 1.1e-3
    assert 0.09 < steps.max() <= 0.1 * 1.001
    assert steps.log().mean().item() == pytest.approx((math.log(1e-3) + math.log(0.1)) / 2, abs=0.15)


def test_mamba_begins_as_published():
    mixer = Mamba(48)
    assert mixer.dt_rank == 3
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1, 17.0).expand(96, -1))
    assert (mixer.D == 1).all()
    assert mixer.dt_proj.weight.abs().max() <= 3**-0.5
    assert {id(p) for p in mixer.no_weight_decay()} == {id(mixer.A_log), id(mixer.D)}
    parts = (48 * 192, 96 * 4 + 96, 96 * (3 + 32), 3 * 96 + 96, 96 * 16, 96, 96 * 48)
    assert mixer.cost((5,)).parameters == sum(parts)


def test_mamba2_begins_as_published():
    torch.manual_seed(0)
    mixer = Mamba2(256, head_dim=4)
    rates = mixer.A_log.exp()
    assert 1 <= rates.min() < 2
    assert 15 < rates.max() <= 16
    assert (mixer.D == 1).all()
    assert {id(p) for p in mixer.no_weight_decay()} == {id(mixer.A_log), id(mixer.D), id(mixer.dt_bias)}


@pytest.mark.parametrize(("dim", "head_dim"), [(16, 32), (32, 64), (48, 48), (37, 37), (768, 64)])
def test_default_heads_are_the_widest_up_to_64(dim: int, head_dim: int):
    with torch.device("meta"):
        mixer = Mamba2(dim)
    assert mixer.head_dim == head_dim
    assert mixer.num_heads == 2 * dim // head_dim


@BOTH
def test_official_weights_must_fit(cls: type[Mixer]):
    mixer, other = build(cls), build(cls)
    weights = {name: torch.randn_like(value) for name, value in mixer.state_dict().items()}
    load_official(other, weights)
    assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())
    with pytest.raises(InvalidValue, match=r"left over conv1d\.gamma"):
        load_official(other, weights | {"conv1d.gamma": torch.zeros(1)})
    del weights["A_log"]
    with pytest.raises(InvalidValue, match="missing A_log"):
        load_official(other, weights)


# Gaps and documents


def test_packing_goes_there_and_back():
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    x = torch.arange(15.0).view(3, 5, 1)
    packing = Packing.of(mask)
    packed = packing.pack(x)
    assert packed[..., 0].tolist() == [[1, 2, 4, 0, 0], [5, 6, 7, 8, 9], [0, 0, 0, 0, 0]]
    assert torch.equal(packing.unpack(packed), x * mask[..., None])
    last = packing.last(packed, torch.tensor([-2.0, -1.0]).expand(3, 1, 2), 2)
    assert last[:, 0].tolist() == [[2, 4], [8, 9], [-2, -1]]


@BOTH
def test_masked_tokens_are_as_if_never_there(cls: type[Mixer]):
    mixer, x = build(cls), tokens(29)
    mask = torch.rand(2, 29, generator=torch.Generator().manual_seed(3)) < 0.5
    y = mixer(torch.where(mask[..., None], x, float("nan")), mask=mask)
    assert (y[~mask] == 0).all()
    for sample in range(2):
        alone = mixer(x[sample : sample + 1, mask[sample]])
        torch.testing.assert_close(y[sample, mask[sample]], alone[0])


@BOTH
def test_masked_tokens_get_no_gradient(cls: type[Mixer]):
    mixer, x = build(cls), tokens(20).requires_grad_()
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, 3:9] = mask[1, -4:] = False
    mixer(x, mask=mask).square().sum().backward()
    assert x.grad is not None
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask] != 0).any(-1).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@BOTH
def test_padded_prompts_stream_on_as_if_unpadded(cls: type[Mixer]):
    # Prompts of 5, 9 and 2 tokens in one batch, padded on the right or on the left, then 6 more tokens each.
    mixer, lengths = build(cls), (5, 9, 2)
    x, more = tokens(9, batch=3), tokens(6, batch=3, seed=2)
    for right in (True, False):
        mask = torch.zeros(3, 9, dtype=torch.bool)
        for sample, length in enumerate(lengths):
            mask[sample, slice(0, length) if right else slice(9 - length, None)] = True
        _, state = mixer.prefill(x, mixer.init_state(3), mask)
        outputs = []
        for t in range(6):
            y, state = mixer.step(more[:, t], state)
            outputs.append(y)
        found = torch.stack(outputs, 1)
        for sample in range(3):
            whole = torch.cat((x[sample, mask[sample]], more[sample]))[None]
            torch.testing.assert_close(found[sample], mixer(whole)[0, -6:])


@BOTH
def test_garbage_behind_the_end_changes_nothing_before_it(cls: type[Mixer]):
    mixer, x = build(cls), tokens(21)
    longer = torch.cat((x, 100 * tokens(12, seed=4)), 1)
    y, state = mixer.prefill(x, mixer.init_state(2))
    y_longer, after = mixer.prefill(longer, mixer.init_state(2))
    torch.testing.assert_close(y_longer[:, :21], y)
    assert not torch.allclose(after.ssm, state.ssm)
    mask = torch.arange(33).expand(2, -1) < 21
    y_longer, after = mixer.prefill(longer, mixer.init_state(2), mask)
    torch.testing.assert_close(y_longer[:, :21], y)
    torch.testing.assert_close(after.ssm, state.ssm)
    torch.testing.assert_close(after.conv, state.conv)


@BOTH
def test_documents_with_gaps_are_apart(cls: type[Mixer]):
    mixer, x = build(cls), tokens(30)
    segments = (torch.arange(30) >= 11).long().expand(2, -1)
    mask = torch.rand(2, 30, generator=torch.Generator().manual_seed(5)) < 0.7
    layout = TokenLayout((30,), segments=segments)
    y = mixer(x, mask=mask, layout=layout)
    torch.testing.assert_close(y[:, :11], mixer(x[:, :11], mask=mask[:, :11]))
    torch.testing.assert_close(y[:, 11:], mixer(x[:, 11:], mask=mask[:, 11:]))


# Streaming


@BOTH
def test_ten_thousand_steps_equal_forward(cls: type[Mixer]):
    mixer, x = build(cls, 4, **({} if cls is Mamba else {"head_dim": 2})), tokens(10_000, 4, batch=1)
    with torch.no_grad():
        expected, state, outputs = mixer(x), mixer.init_state(1), []
        size = state.nbytes
        for x_t in x.unbind(1):
            y, state = mixer.step(x_t, state)
            outputs.append(y)
    found = torch.stack(outputs, 1)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert state.nbytes == size == mixer.cost((10_000,)).state_bytes
    assert state.ssm.dtype == torch.float32


@BOTH
def test_pieces_equal_the_whole(cls: type[Mixer]):
    mixer, x = build(cls).double(), tokens(40).double()
    expected, last = mixer.prefill(x, mixer.init_state(2))
    torch.testing.assert_close(expected, mixer(x))
    state, outputs, at = mixer.init_state(2), [], 0
    for size in (1, 2, 8, 9, 3, 17):
        y, state = mixer.prefill(x[:, at : at + size], state)
        outputs.append(y)
        at += size
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state.ssm, last.ssm, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state.conv, last.conv)


@BOTH
def test_half_precision_streams_keep_float32_states(cls: type[Mixer]):
    mixer = build(cls).bfloat16()
    state = mixer.init_state(2)
    y, state = mixer.prefill(tokens(5).bfloat16(), state)
    y_t, state = mixer.step(tokens(1)[:, 0].bfloat16(), state)
    assert y.dtype == y_t.dtype == state.conv.dtype == torch.bfloat16
    assert state.ssm.dtype == torch.float32


# Options


@BOTH
@pytest.mark.parametrize("options", [{"bias": True}, {"conv_bias": False, "d_conv": 3}, {"expand": 3}, {"d_conv": 1}])
def test_options_stream_and_agree(cls: type[Mixer], options: dict[str, object]):
    mixer, x = build(cls, **options), tokens(19)
    y = mixer(x)
    with backend("reference"):
        torch.testing.assert_close(mixer(x), y)
    state = mixer.init_state(2)
    for t in range(19):
        y_t, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y_t, y[:, t])


@pytest.mark.parametrize("options", [{"norm": False}, {"dt_limit": (0.01, 0.05)}, {"num_groups": 4}, {"chunk_size": 1}])
def test_options_of_mamba2_stream_and_agree(options: dict[str, object]):
    test_options_stream_and_agree(Mamba2, options)
    x = tokens(19)
    same = torch.allclose(build(Mamba2, **options)(x), build(Mamba2)(x), rtol=1e-4, atol=1e-5)
    assert same == ("chunk_size" in options)


def test_masked_steps_are_zero_whatever_their_limit():
    mixer, x = build(Mamba2, dt_limit=(0.1, 0.5)), tokens(12)
    mask = torch.arange(12).expand(2, -1) != 4
    y = mixer(x, mask=mask)
    torch.testing.assert_close(y[:, [*range(4), *range(5, 12)]], mixer(x[:, [*range(4), *range(5, 12)]]))


# Cost and memory


@BOTH
@pytest.mark.parametrize("options", [{}, {"bias": True}])
@pytest.mark.parametrize(("batch", "length"), [(2, 7), (1, 1000), (3, 137)])
def test_activation_bytes_are_those_kept(cls: type[Mixer], options: dict[str, object], batch: int, length: int):
    mixer, x = build(cls, **options), tokens(length, batch=batch).requires_grad_()
    with backend("torch"):
        assert mixer.cost((length,), batch).activation_bytes == saved_bytes(mixer, x)


@pytest.mark.parametrize("options", [{"norm": False}, {"dt_limit": (0.0, 0.1)}])
def test_activation_bytes_of_mamba2_options(options: dict[str, object]):
    mixer, x = build(Mamba2, **options), tokens(100).requires_grad_()
    assert mixer.cost((100,), 2).activation_bytes == saved_bytes(mixer, x)


@pytest.mark.parametrize(("name", "limit"), [("mamba", 0.5), ("mamba2", 0.75)])
def test_memory_of_a_long_sequence(name: str, limit: float):
    """Forward and backward over 65,536 tokens of width 64, above the idle process (promised: 1 GiB)."""
    script = f"""
import torch
from foveate import create
from foveate.measure.meter import MemoryMeter
mixer = create("{name}", kind="mixer", dim=64)
mixer(torch.randn(1, 8, 64)).sum().backward()
meter = MemoryMeter()
x = torch.randn(1, 65_536, 64, requires_grad=True)
mixer(x).square().mean().backward()
assert x.grad.isfinite().all()
print(meter.peak_bytes())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= limit * 2**30, f"{int(run.stdout) / 2**20:.0f} MiB"


# Refusals


@BOTH
def test_step_takes_one_token(cls: type[Mixer]):
    mixer = build(cls)
    state = mixer.init_state(2)
    with pytest.raises(InvalidValue, match=rf"{cls.__name__}: step takes one token, \(batch, 12\), not \(2, 3, 12\)"):
        mixer.step(tokens(3), state)
    with pytest.raises(InvalidValue, match=r"not \(2, 11\)"):
        mixer.step(torch.zeros(2, 11), state)


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        (Mamba, {"causal": False}, "Mamba is causal by construction"),
        (Mamba, {"d_state": 0}, "d_state=0 .*positive whole number"),
        (Mamba, {"d_conv": 2.5}, r"d_conv=2\.5"),
        (Mamba, {"expand": -1}, "expand=-1"),
        (Mamba, {"dt_rank": "full"}, "dt_rank='full'"),
        (Mamba, {"dt_min": 0.2}, r"dt_min=0\.2 and dt_max=0\.1"),
        (Mamba, {"dt_max": float("nan")}, "dt_max=nan"),
        (Mamba2, {"causal": False}, "Mamba2 is causal by construction"),
        (Mamba2, {"head_dim": 5}, r"head_dim=5 .*divide expand \* dim = 24"),
        (Mamba2, {"head_dim": 24, "num_groups": 2}, "num_groups=2 .*number of heads, 1"),
        (Mamba2, {"dt_limit": (0.5, 0.1)}, r"dt_limit=\(0\.5, 0\.1\)"),
        (Mamba2, {"chunk_size": 0}, "chunk_size=0"),
        (Mamba2, {"dt_min": 0.0}, r"dt_min=0\.0"),
    ],
)
def test_refuses_illegal_options(cls: type[Mixer], options: dict[str, object], says: str):
    with pytest.raises(InvalidValue, match=says):
        cls(12, **options)  # type: ignore[arg-type]
