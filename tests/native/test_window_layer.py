"""Whole window attention layers, by one kernel or with one between two products, against the steps in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate.measure.allocated import peak_allocated_bytes
from foveate.mixers.davit import WindowAttention
from foveate.mixers.swin import ShiftedWindows
from foveate.mixers.swin_unetr import ShrinkingWindows
from foveate.ops import backend
from foveate.ops.native.window_layer import MOST_CHANNELS, Biases, fits, window_attention, window_layer
from foveate.ops.shifted_window_attention import shifted_window_attention
from foveate.ops.shifted_windows import Axis
from tests.agreement import Maker, examples, needs_kernels

pytestmark = needs_kernels

#: The largest window, and the most windows along an axis, by rank.
LARGEST = {1: (130, 4), 2: (13, 3), 3: (6, 2)}


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    flag, rank = st.booleans(), draw(st.integers(1, 3))
    largest, most = LARGEST[rank]
    axes = []
    for _ in range(rank):
        window = draw(st.integers(1, largest))
        size = max(1, window * draw(st.integers(1, most)) - draw(st.integers(0, window - 1)) * draw(flag))
        axes.append(Axis(size, window, draw(st.integers(0, window - 1)) * draw(flag)))
    heads, width = draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 8, 16, 20, 32, 48]))
    make, dim = Maker(draw(st.integers(0, 2**31)), torch.float32), heads * width
    tokens, entries = math.prod(a.window for a in axes), draw(st.integers(1, 200))
    index = torch.randint(entries, (tokens, tokens + make.number(4)), generator=make.generator)[:, :tokens]
    biases = Biases(make.tensor(entries, heads), index)
    return {
        "x": make.tensor(draw(st.integers(1, 2)), *(a.size for a in axes), dim),
        "in_weight": make.tensor(3 * dim, dim) / math.sqrt(dim),
        "in_bias": make.tensor(3 * dim) if draw(flag) else None,
        "out_weight": make.tensor(dim, dim) / math.sqrt(dim),
        "out_bias": make.tensor(dim) if draw(flag) else None,
        "biases": biases if draw(flag) else None,
        "axes": tuple(axes),
        "heads": heads,
    }


def by_steps(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    biases: Biases | None,
    axes: tuple[Axis, ...],
    heads: int,
) -> Tensor:
    """The layer in float64, padding by the biases of keys and values."""
    bias = None if biases is None else biases.table[biases.index].permute(2, 0, 1)
    wide = [None if m is None else m.double() for m in (x, in_weight, in_bias, out_weight, out_bias, bias)]
    x, in_weight, in_bias, out_weight, out_bias, bias = wide  # type: ignore[assignment]
    parts = F.linear(x, in_weight, in_bias).unflatten(-1, (3, heads, -1)).movedim(-2, 1)
    q, k, v = parts.unbind(-2)
    _, pad_k, pad_v = (None,) * 3 if in_bias is None else in_bias.view(3, heads, -1)
    window, shift = tuple(a.window for a in axes), tuple(a.shift for a in axes)
    with backend("reference"):
        y = shifted_window_attention(q, k, v, window, shift=shift, bias=bias, pad_k=pad_k, pad_v=pad_v)
    return F.linear(y.movedim(1, -2).flatten(-2), out_weight, out_bias)


@given(layers())
@examples(60)
def test_equals_the_steps(case: dict[str, Any]):
    expected = by_steps(**case)
    qkv = F.linear(case["x"], case["in_weight"], case["in_bias"]).contiguous()
    between = window_attention(qkv, case["in_bias"], case["biases"], case["axes"], case["heads"])
    for found in (window_layer(**case), F.linear(between, case["out_weight"], case["out_bias"])):
        assert found.is_contiguous()
        assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max() + 1)


@pytest.mark.parametrize("grid", [(14, 14), (15, 9), (7, 7), (5, 30)])
@pytest.mark.parametrize("dim", [32, 96, 192, 194, 384])
def test_mixers_take_it_and_answer_as_by_steps(grid: tuple[int, int], dim: int, monkeypatch: pytest.MonkeyPatch):
    taken = []
    for kernel in (window_layer, window_attention):
        counted = lambda *given, run=kernel: taken.append(run) or run(*given)  # noqa: E731
        monkeypatch.setattr(f"foveate.mixers.windows.{kernel.__name__}", counted)
    window = {"window": (7, 7), "shift": (3, 3)}
    makers = (ShiftedWindows, window), (ShrinkingWindows, window), (WindowAttention, {})
    for maker, options in makers:
        mixer, x = maker(dim, num_heads=2, **options), torch.randn(2, *grid, dim)
        for parameter in mixer.parameters():
            torch.nn.init.normal_(parameter, std=dim**-0.5)
        with torch.no_grad():
            y = mixer(x)
            with backend("torch"):
                torch.testing.assert_close(y, mixer(x), rtol=1e-4, atol=1e-5)
    assert taken == [window_layer if dim <= MOST_CHANNELS else window_attention] * len(makers)


def test_whoever_watches_a_map_sees_it():
    mixer, seen = ShiftedWindows(32, num_heads=2), []
    mixer.qkv.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        mixer(torch.randn(1, 14, 14, 32))
    assert seen


def test_results_do_not_depend_on_the_threads():
    mixer, x, threads = ShiftedWindows(64, num_heads=2, shift=3), torch.randn(2, 30, 26, 64), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            with torch.no_grad():
                found.append(mixer(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_queries_keys_and_values_are_never_kept():
    mixer, x = ShiftedWindows(96, num_heads=3, shift=3), torch.randn(1, 112, 112, 96)

    def peak() -> int:
        with torch.inference_mode():
            return peak_allocated_bytes(lambda: mixer(x))

    whole = peak()
    with backend("torch"):
        assert whole < peak() / 4
    assert whole < 1.2 * x.nbytes


def test_what_it_takes():
    x, axes = torch.randn(1, 14, 14, 96), (Axis(14, 7, 0),) * 2
    assert fits(x, axes, x, None)
    assert not fits(x.double(), axes)
    assert not fits(x, axes, x.bfloat16())
    assert not fits(torch.randn(0, 14, 14, 96), axes)
