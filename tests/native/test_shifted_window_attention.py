"""The kernel of shifted window attention against its definition."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from foveate.measure.isolated import peak_bytes_of
from foveate.ops import backend
from foveate.ops.shifted_window_attention import shifted_window_attention
from tests.agreement import Maker, agree, dtypes, examples, needs_kernels

pytestmark = needs_kernels

#: The largest window, and the most windows along an axis, by rank.
LARGEST = {1: (130, 4), 2: (13, 3), 3: (7, 2)}


@st.composite
def windows(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag, rank = draw(dtypes), st.booleans(), draw(st.integers(1, 3))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    largest, most = LARGEST[rank]
    window = [draw(st.integers(1, largest)) for _ in range(rank)]
    count = [draw(st.integers(1, most)) for _ in range(rank)]
    grid = [max(1, w * n - draw(st.integers(0, w - 1)) * draw(flag)) for w, n in zip(window, count, strict=True)]
    dilated = draw(flag) and draw(flag)
    shift = [0 if dilated or draw(flag) else draw(st.integers(0, w - 1)) for w in window]
    batch, heads, width, value_width = (draw(st.integers(1, n)) for n in (2, 3, 40, 40))
    make = Maker(draw(st.integers(0, 2**31)), dtype)
    tokens, windows = 1, 1
    for w, n in zip(window, grid, strict=True):
        tokens, windows = tokens * w, windows * -(-n // w)
    bias = None
    if draw(flag):
        shape = [draw(st.sampled_from((1, n))) for n in (windows, heads, tokens, tokens)]
        bias = make.tensor(*shape[draw(st.integers(0, 1)) :], dtype=real)
    return {
        "q": make.tensor(batch, heads, *grid, width),
        "k": make.tensor(batch, heads, *grid, width),
        "v": make.tensor(batch, heads, *grid, value_width),
        "window": tuple(window),
        "shift": tuple(shift),
        "partition": "grid" if dilated else "blocks",
        "padding": draw(st.sampled_from(("tokens", "masked"))),
        "bias": bias,
        "scale": 0.4 if draw(flag) else None,
        "pad_k": make.tensor(heads, width) if draw(flag) else None,
        "pad_v": make.tensor(heads, value_width, dtype=real) if draw(flag) else None,
    }, dtype


@given(windows())
@examples(60)
def test_equals_attention_in_windows(case: tuple[dict[str, Any], torch.dtype]):
    agree(lambda **arguments: (shifted_window_attention(**arguments),), *case)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("window", [7, 8, 12])
def test_usual_sizes(window: int, width: int):
    make = Maker(window, torch.float32)
    given = {name: make.tensor(1, 2, 2 * window, 2 * window, width) for name in "qkv"}
    given["bias"] = make.tensor(2, window**2, window**2)
    agree(lambda **g: (shifted_window_attention(**g, window=window, shift=window // 2),), given, torch.float32)


def test_whole_volumes():
    make = Maker(0, torch.float32)
    given = {name: make.tensor(1, 1, 7, 14, 9, 8) for name in "qkv"} | {"bias": make.tensor(1, 343, 343)}
    agree(lambda **g: (shifted_window_attention(**g, window=7, shift=(0, 3, 3)),), given, torch.float32)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    inputs = [make.tensor(1, 2, 5, 7, 3).requires_grad_() for _ in range(3)]
    inputs += [make.tensor(*shape).requires_grad_() for shape in ((2, 12, 12), (2, 3), (2, 3))]

    def attend(q: Any, k: Any, v: Any, bias: Any, pad_k: Any, pad_v: Any) -> torch.Tensor:
        return shifted_window_attention(q, k, v, (3, 4), shift=(1, 2), bias=bias, pad_k=pad_k, pad_v=pad_v)

    with backend("native"):
        assert torch.autograd.gradcheck(attend, inputs)
        assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)


#: Lines that become no numbers, and lines that do not see them: of windows elsewhere, and beside them in a window of
#: what came round the edge; between them on a dilated grid.
UNSEEN: dict[str, tuple[int, slice, list[slice]]] = {
    "blocks": (2, slice(0, 2), [slice(2, 10), slice(10, 12)]),
    "grid": (0, slice(0, None, 3), [slice(1, None, 3), slice(2, None, 3)]),
}


@pytest.mark.parametrize("partition", UNSEEN)
def test_what_is_not_seen_may_be_anything(partition: str):
    # A weight of zero times NaN would be NaN: nothing that is not seen may be multiplied at all.
    make = Maker(1, torch.float32)
    q, k, v = (make.tensor(1, 2, 12, 16, 8) for _ in range(3))
    shift, bad, good = UNSEEN[partition]
    with backend("native"):
        expected = shifted_window_attention(q, k, v, 4, shift=shift, partition=partition)
        for m in (q, k, v):
            m[:, :, bad] = float("nan")
        found = shifted_window_attention(q, k, v, 4, shift=shift, partition=partition)
    assert found[:, :, bad].isnan().all()
    for lines in good:
        assert torch.equal(found[:, :, lines], expected[:, :, lines])


def test_a_key_that_a_bias_hides_has_no_weight():
    make = Maker(2, torch.float32)
    q, k, v = (make.tensor(1, 1, 14, 8) for _ in range(3))
    bias = torch.zeros(1, 7, 7)
    bias[:, :, 3] = float("-inf")
    with backend("native"):
        y = shifted_window_attention(q, k, v, 7, bias=bias)
        v[:, :, 3] += 100
        v[:, :, 10] -= 100
        assert torch.equal(shifted_window_attention(q, k, v, 7, bias=bias), y)


def test_nothing_is_copied():
    setup = """
from foveate.ops.shifted_window_attention import shifted_window_attention
given = torch.randn(1, 96, 96, 3, 4, 32)
def run(shift):
    shifted_window_attention(*given.permute(3, 0, 4, 1, 2, 5), 7, shift=shift)
with torch.no_grad():
    run(0)
"""
    out = 96 * 96 * 4 * 32 * 4
    assert peak_bytes_of("with torch.no_grad(): run(3)", setup) < 1.5 * out


def test_the_compiled_op_is_sound():
    make = Maker(3, torch.float64)
    q, k, v = (make.tensor(2, 5, 6, 3, 4).requires_grad_() for _ in range(3))
    bias, pad = make.tensor(1, 3, 12, 12).requires_grad_(), make.tensor(3, 4).requires_grad_()
    op = torch.ops.foveate.shifted_window_attention_native.default
    opcheck(op, (q, k, v, bias, pad, None, [3, 4], [1, 0], False, False, 0.5))


CODE = """
import hashlib, sys, torch
from foveate.ops.shifted_window_attention import shifted_window_attention
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
q, k, v = (torch.randn(2, 3, 8, 21, 30, 16, requires_grad=True) for _ in range(3))
bias = torch.randn(3, 105, 105, requires_grad=True)
pad_k, pad_v = (torch.randn(3, 16, requires_grad=True) for _ in range(2))
y = shifted_window_attention(q, k, v, (3, 5, 7), shift=(1, 2, 3), bias=bias, pad_k=pad_k, pad_v=pad_v)
for m in (y, *torch.autograd.grad(y, (q, k, v, bias, pad_k, pad_v), y.detach())):
    print(hashlib.sha256(m.detach().contiguous().numpy().tobytes()).hexdigest())
"""


def test_bits_do_not_depend_on_threads():
    one, two = (
        subprocess.run([sys.executable, "-c", CODE, n], capture_output=True, text=True, check=True).stdout
        for n in ("1", "2")
    )
    assert len(one.splitlines()) == 7
    assert one == two
