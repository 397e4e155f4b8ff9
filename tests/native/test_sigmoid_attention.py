"""Sigmoid attention through the kernel against its definition."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from foveate.measure.isolated import peak_bytes_of
from foveate.ops import backend
from foveate.ops.native import call
from foveate.ops.native import sigmoid_attention as native
from foveate.ops.sigmoid_attention import sigmoid_attention
from tests.agreement import Maker, agree, dtypes, examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def attentions(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag = draw(dtypes), st.booleans()
    real = torch.float64 if dtype == torch.float64 else torch.float32
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    length, causal = draw(st.integers(2, 20 if draw(flag) else 150)), draw(flag)
    # The gradients of a single key are sums over all queries that may cancel, the definition's in float32 as well.
    keys = length + draw(st.integers(0, 120)) if causal else draw(st.integers(1 if dtype == torch.float64 else 8, 250))
    width, value_width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    if draw(flag) and draw(flag):
        width, value_width = draw(st.integers(64, 140)), draw(st.integers(64, 140))
    make = Maker(draw(st.integers(0, 2**31)), dtype)
    mask = make.tensor(batch, keys, dtype=torch.float32) < draw(st.sampled_from((-1.0, 0.0, 1.0)))
    window = (draw(st.sampled_from((-1, 0, 5, 70))), draw(st.sampled_from((-1, 0, 5, 70)))) if draw(flag) else (-1, -1)
    return {
        "q": make.tensor(batch, heads, length, width),
        "k": make.tensor(batch, heads, keys, width),
        "v": make.tensor(batch, heads, keys, value_width),
        "causal": causal,
        "window": window,
        "mask": (mask if draw(flag) else mask[:, None, None]) if draw(flag) else None,
        "bias": draw(st.sampled_from((None, -1.5, make.tensor(heads, dtype=real), make.tensor(dtype=real)))),
        # The gradient of a scale is a sum that cancels: in float32 the definition itself is off by more than its limit.
        "scale": draw(st.sampled_from((None, 0.4, *([make.tensor(1)] if dtype == torch.float64 else [])))),
    }, dtype


@given(attentions())
@examples(60)
def test_equals_the_definition(case: tuple[dict[str, Any], torch.dtype]):
    given, dtype = case
    agree(lambda **arguments: [sigmoid_attention(**arguments)], given, dtype)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    inputs = [make.tensor(2, 2, n, w).requires_grad_() for n, w in ((5, 3), (7, 3), (7, 4))]
    learned = [make.tensor(2).requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)]
    mask = torch.rand(2, 7) > 0.3

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        return sigmoid_attention(q, k, v, bias=bias, scale=scale, causal=True, mask=mask, window=(3, -1))

    with backend("native"):
        assert torch.autograd.gradcheck(run, [*inputs, *learned])
        assert torch.autograd.gradgradcheck(run, [*inputs, *learned], fast_mode=True)


def test_what_is_masked_may_be_anything():
    make, mask = Maker(0, torch.float32), torch.rand(2, 200) > 0.5
    q, k, v = (make.tensor(2, 2, 200, 8) for _ in range(3))
    with backend("native"):
        expected = sigmoid_attention(q, k, v, mask=mask)
        for m in (k, v):
            m.masked_fill_(~mask[:, None, :, None], math.nan)
        q, k, v = (m.requires_grad_() for m in (q, k, v))
        found = sigmoid_attention(q, k, v, mask=mask)
    assert torch.equal(found, expected)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), (q, k, v)))


def test_no_exponential_overflows():
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(1, 2, 150, 16).mul(size).requires_grad_() for size in (1e6, 1e6, 1.0))
    with backend("native"):
        o = sigmoid_attention(q, k, v, causal=True)
    p = (q @ k.mT + torch.full((150, 150), -math.inf).triu(1)).sigmoid()
    torch.testing.assert_close(o, p @ v, rtol=1e-4, atol=1e-4)
    assert all(g.isfinite().all() for g in torch.autograd.grad(o.sum(), (q, k, v)))


def test_later_keys_change_no_bit():
    make, length, keys = Maker(0, torch.float32), 60, 130
    q, k, v = make.tensor(1, 2, length, 16), make.tensor(1, 2, keys, 16), make.tensor(1, 2, keys, 16)
    with backend("native"):
        before = sigmoid_attention(q, k, v, causal=True)
        for t in (0, 15, 16, 17, 58):
            other_k, other_v = k.clone(), v.clone()
            other_k[:, :, keys - length + t + 1 :] -= 0.5
            other_v[:, :, keys - length + t + 1 :] += 5
            after = sigmoid_attention(q, other_k, other_v, causal=True)
            assert torch.equal(after[:, :, : t + 1], before[:, :, : t + 1])
            assert (after[:, :, t + 1 :] != before[:, :, t + 1 :]).any(-1).all()


@pytest.mark.parametrize(("length", "keys", "there"), [(256, 256, True), (31, 4096, False), (32, 32, False)])
@pytest.mark.parametrize("processor", [True, False])
def test_auto_chooses_by_processor_and_sizes(length, keys, there, processor, monkeypatch):
    called = []
    monkeypatch.setattr(native, "call", lambda *given: called.append(given) or call(*given))
    monkeypatch.setattr(native, "PAYS", processor)
    q, k, v = (torch.randn(1, 2, n, 64) for n in (length, keys, keys))
    sigmoid_attention(q, k, v)
    assert len(called) == int(there and processor)


@pytest.mark.parametrize(
    "options",
    [
        {"alibi_slopes": torch.ones(2)},
        {"segments": torch.zeros(1, 64).long()},
        {"mask": torch.ones(1, 1, 64, 64).bool()},
    ],
)
def test_what_the_kernel_does_not_take_goes_to_torch(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    called = []
    monkeypatch.setattr(native, "call", lambda *given: called.append(given) or call(*given))
    q, k, v = torch.randn(3, 1, 2, 64, 64)
    with backend("native"):
        sigmoid_attention(q, k, v, **options)
        assert not called
        sigmoid_attention(q, k, v)
    assert called


def test_memory_grows_with_the_length():
    setup = """
from foveate.ops import backend
from foveate.ops.sigmoid_attention import sigmoid_attention
def run(length, keys):
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (length, keys, keys))
    mask = torch.arange(keys)[None] > 5
    with backend("native"):
        torch.autograd.grad(sigmoid_attention(q, k, v, causal=True, mask=mask).sum(), (q, k, v))
run(64, 64)
"""
    assert peak_bytes_of("run(6000, 8000)", setup) < 6000 * 8000 / 2


CODE = """
import hashlib, sys, torch
from foveate.ops import backend
from foveate.ops.sigmoid_attention import sigmoid_attention
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
q, k, v = (torch.randn(1, 2, 1100, 16, requires_grad=True) for _ in range(3))
bias = torch.zeros(2, requires_grad=True)
with backend("native"):
    y = sigmoid_attention(q, k, v, causal=True, bias=bias)
for m in (y, *torch.autograd.grad(y, (q, k, v, bias), y.detach())):
    print(hashlib.sha256(m.detach().contiguous().numpy().tobytes()).hexdigest())
"""


def test_bits_do_not_depend_on_threads():
    one, two = (
        subprocess.run([sys.executable, "-c", CODE, n], capture_output=True, text=True, check=True).stdout
        for n in ("1", "2")
    )
    assert len(one.splitlines()) == 5
    assert one == two


def test_the_compiled_op_is_sound():
    make = Maker(0, torch.float64)
    q, k, v = (make.tensor(2, n, 2, w).requires_grad_() for n, w in ((6, 3), (9, 3), (9, 4)))
    bias, scale = make.tensor(2).requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    op = torch.ops.foveate.sigmoid_attention_native.default
    opcheck(op, (q, k, v, bias, scale, None, 2, 0, True))
    opcheck(op, (q, k, v, bias.detach(), scale.detach(), torch.rand(2, 9) > 0.5, -1, -1, False))


def test_compiles_as_one_graph():
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(2, 2, 70, 8).requires_grad_() for _ in range(3))
    mask = torch.rand(2, 70) > 0.2
    torch.compiler.reset()
    with backend("native"):
        call = lambda *given: sigmoid_attention(*given, causal=True, mask=mask)  # noqa: E731
        one, two = torch.compile(call, backend="aot_eager", fullgraph=True)(q, k, v), call(q, k, v)
        torch.testing.assert_close(one, two)
        for found, want in zip(*(torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (one, two)), strict=True):
            torch.testing.assert_close(found, want)
    torch.compiler.reset()
