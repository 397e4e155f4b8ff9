"""The causal depthwise convolution against the loop over positions and against torch's convolution."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from foveate.errors import InvalidValue
from foveate.ops import backend
from foveate.ops import causal_conv1d as module
from foveate.ops.causal_conv1d import causal_conv1d, causal_conv1d_update


def make(length: int, width: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = {"x": (2, 6, length), "weight": (6, width), "bias": (6,), "initial_state": (2, 6, width)}
    return {n: torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for n, s in shapes.items()}


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 16, 17, 53])
def test_blocks_equal_the_loop(length: int, width: int, activation: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 2 * 6 * 16)  # blocks of 16 positions
    given = make(length, width)
    seq_idx = (torch.rand(2, length, generator=torch.Generator().manual_seed(1)) < 0.3).cumsum(1) % 2
    bare = {name: given[name] for name in ("x", "weight")}
    for arguments, documents in itertools.product((given, bare), (None, seq_idx)):
        results = []
        for form in ("reference", "torch"):
            with backend(form):
                y, state = causal_conv1d(**arguments, activation=activation, return_state=True, seq_idx=documents)
            loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + state.square().sum()
            results.append((y, state, *torch.autograd.grad(loss, list(arguments.values()), materialize_grads=True)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_is_the_padded_convolution_cut_short():
    given = make(20, 4)
    x, weight, bias = given["x"], given["weight"], given["bias"]
    expected = F.silu(F.conv1d(F.pad(x, (3, 0)), weight[:, None], bias, groups=6))
    torch.testing.assert_close(causal_conv1d(x, weight, bias, "silu"), expected)


@pytest.mark.parametrize("pieces", [[20], [1, 1, 2, 16], [13, 7]])
def test_pieces_and_steps_equal_the_whole(pieces: list[int]):
    given = make(20, 4)
    x, rest = given["x"], {"weight": given["weight"], "bias": given["bias"], "activation": "silu"}
    expected, last = causal_conv1d(x, initial_state=given["initial_state"], return_state=True, **rest)
    state, outputs, at = given["initial_state"], [], 0
    for size in pieces:
        y, state = causal_conv1d(x[..., at : at + size], initial_state=state, return_state=True, **rest)
        outputs.append(y)
        at += size
    torch.testing.assert_close(torch.cat(outputs, -1), expected)
    torch.testing.assert_close(state, last)

    state = given["initial_state"]
    for t in range(20):
        kept = state.clone()
        y, state_after = causal_conv1d_update(x[..., t], state, **rest)
        assert torch.equal(state, kept)
        state = state_after
        torch.testing.assert_close(y, expected[..., t])
    torch.testing.assert_close(state, last)


def test_a_short_sequence_pads_its_state():
    given = make(2, 4)
    _, state = causal_conv1d(given["x"], given["weight"], return_state=True)
    torch.testing.assert_close(state, F.pad(given["x"], (2, 0)))


def test_documents_are_apart_and_so_is_the_state():
    given = make(10, 4)
    seq_idx = torch.tensor([0] * 4 + [1] * 4 + [0] * 2).expand(2, -1)
    y, state = causal_conv1d(**given, return_state=True, seq_idx=seq_idx)
    alone = [causal_conv1d(given["x"][..., a:b], given["weight"], given["bias"]) for a, b in ((4, 8), (8, 10))]
    first = causal_conv1d(**(given | {"x": given["x"][..., :4]}))
    torch.testing.assert_close(y, torch.cat([first, *alone], -1))
    torch.testing.assert_close(state, F.pad(given["x"][..., 8:], (2, 0)))


def test_gradcheck_and_tools():
    given = make(7, 3)
    assert torch.autograd.gradcheck(
        lambda *v: causal_conv1d(v[0], v[1], v[2], "silu", v[3], return_state=True),
        list(given.values()),
        fast_mode=True,
    )
    x, weight, bias = (given[n].detach().float().requires_grad_() for n in ("x", "weight", "bias"))
    opcheck(torch.ops.foveate.causal_conv1d.default, (x.mT, weight, bias, None, None, True))
    half = causal_conv1d(x.bfloat16(), weight, bias, "silu")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), causal_conv1d(x, weight, bias, "silu"), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("x", torch.zeros(2, 6), r"x has shape \(2, 6\).*\(batch, channels, L\)"),
        ("x", torch.zeros(2, 6, 0), "L >= 1"),
        ("weight", torch.zeros(5, 4), r"weight has shape \(5, 4\): it must be \(6, K\)"),
        ("bias", torch.zeros(5), r"bias has shape \(5,\): it must be \(6,\)"),
        ("initial_state", torch.zeros(2, 6, 3), r"initial_state has shape .* \(2, 6, 4\)"),
        ("seq_idx", torch.zeros(2, 9), r"seq_idx has shape .* \(2, 8\)"),
        ("activation", "gelu", "activation='gelu'.*'silu' and None"),
    ],
)
def test_refuses_what_does_not_fit(name: str, value: object, says: str):
    with pytest.raises(InvalidValue, match=says):
        causal_conv1d(**({**make(8, 4), name: value}))  # type: ignore[arg-type]


def test_a_step_refuses_more_than_one_position():
    weight, state = torch.zeros(6, 4), torch.zeros(2, 6, 4)
    with pytest.raises(InvalidValue, match=r"x has shape \(2, 6, 1\): a step takes one position"):
        causal_conv1d_update(torch.zeros(2, 6, 1), state, weight)
    with pytest.raises(InvalidValue, match=r"state has shape \(2, 6, 3\): it must be \(2, 6, 4\)"):
        causal_conv1d_update(torch.zeros(2, 6), state[..., 1:], weight)
