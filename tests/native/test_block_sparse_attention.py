"""The kernel of block-sparse attention against its definition."""

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
from foveate.ops.block_sparse_attention import BlockIndices, block_sparse_attention, blocks_to_indices
from foveate.ops.native import block_sparse_attention as native
from foveate.ops.native import call
from tests.agreement import Maker, agree, dtypes, examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def attentions(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag = draw(dtypes), st.booleans()
    batch, key_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads = key_heads * group
    length, causal = draw(st.integers(2, 20 if draw(flag) else 150)), draw(flag)
    window = draw(st.sampled_from((0, 0, 1, 5, 70)))
    keys = length + draw(st.integers(0, 120)) if causal or window else draw(st.integers(1, 250))
    size = (draw(st.sampled_from((1, 7, 16, 64, 100))), draw(st.sampled_from((1, 2, 13, 64))))
    width, value_width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    make = Maker(draw(st.integers(0, 2**31)), dtype)

    def visible(*shape: int) -> Tensor:
        share = draw(st.sampled_from((0.1, 0.5, 0.9)))
        return make.tensor(*shape, dtype=torch.float32) < math.sqrt(2) * torch.erfinv(torch.tensor(2 * share - 1))

    shape = (batch if draw(flag) else 1, heads if draw(flag) else 1)
    blocks: Any = visible(*shape, -(-length // size[0]), -(-keys // size[1]))
    options: dict[str, Any] = {"return_lse": draw(flag), "return_block_max": draw(flag)}
    if draw(flag):
        # The gradient of a bias is a sum over all pairs that may cancel, the definition's in float32 as well.
        learned = dtype == torch.float64 and draw(flag)
        options = {"weights": "sigmoid", "bias": make.tensor(heads if draw(flag) else 1) if learned else -0.7}
    return {
        "q": make.tensor(batch, heads, length, width),
        "k": make.tensor(batch, key_heads, keys, width),
        "v": make.tensor(batch, key_heads, keys, value_width),
        "blocks": blocks_to_indices(blocks) if draw(flag) else blocks,
        "block_size": size,
        "causal": causal,
        "window": window,
        "sinks": draw(st.sampled_from((0, 0, 1, 30))),
        "mask": visible(batch, keys) if draw(flag) else None,
        "scale": 0.4 if draw(flag) else None,
        **options,
    }, dtype


def attend(**arguments: Any) -> list[Tensor]:
    results = block_sparse_attention(**arguments)
    results = list(results) if isinstance(results, tuple) else [results]
    return [r.masked_fill(r == -math.inf, 0.0) for r in results]


@given(attentions())
@examples(80)
def test_equals_the_definition(case: tuple[dict[str, Any], torch.dtype]):
    given, dtype = case
    agree(attend, given, dtype)


OPTIONS: tuple[dict[str, Any], ...] = (
    {"return_lse": True},
    {"weights": "sigmoid"},
    {"weights": "sigmoid", "bias": torch.randn(2, dtype=torch.float64, requires_grad=True)},
)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_by_differences(options: dict[str, Any]):
    make = Maker(0, torch.float64)
    inputs = [make.tensor(2, h, n, w).requires_grad_() for h, n, w in ((2, 7, 3), (1, 9, 3), (1, 9, 4))]
    blocks, mask = torch.rand(1, 2, 3, 5) < 0.5, torch.rand(2, 9) < 0.8
    blocks[..., 0], mask[:, 0] = True, True

    def run(*given: Tensor) -> Any:
        return block_sparse_attention(*given, blocks, block_size=(3, 2), window=2, mask=mask, **options)

    with backend("native"):
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
@pytest.mark.parametrize("length", [5, 64, 130])
def test_a_query_without_keys_gives_zeros_and_no_gradients(length: int, weights: Any):
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(2, 2, length, 8).requires_grad_() for _ in range(3))
    n = -(-length // 4)
    blocks = torch.rand(1, 2, n, n) < 0.5
    blocks[:, :, 0] = False
    blocks[:, :, 1] = True
    with backend("native"):
        o = block_sparse_attention(q, k, v, blocks, block_size=4, weights=weights)
    assert (o[:, :, :4] == 0).all()
    assert (o[:, :, 4:8] != 0).all()
    gradients = torch.autograd.grad(o.square().sum(), (q, k, v))
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][:, :, :4] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_key_has_no_gradient(dtype: torch.dtype):
    make = Maker(0, dtype)
    q, k, v = (make.tensor(1, 2, 70, 33).requires_grad_() for _ in range(3))
    with backend("native"):
        o = block_sparse_attention(q, k, v, torch.eye(70).bool()[None, None], block_size=1)
    (gradient,) = torch.autograd.grad(o.square().sum(), q)
    assert (gradient == 0).all()


@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
def test_what_is_hidden_may_be_anything(weights: Any):
    make, length = Maker(0, torch.float32), 130
    mask, blocks = torch.rand(2, length) > 0.5, torch.rand(1, 1, 9, 9) < 0.5
    blocks[..., 3] = False
    q, k, v = (make.tensor(2, 2, length, 8) for _ in range(3))
    options: dict[str, Any] = {"block_size": 15, "mask": mask, "weights": weights}
    with backend("native"):
        expected = block_sparse_attention(q, k, v, blocks, **options)
        for m in (k, v):
            m.masked_fill_(~mask[:, None, :, None], math.nan)
            m[:, :, 45:60] = math.nan
        q, k, v = (m.requires_grad_() for m in (q, k, v))
        found = block_sparse_attention(q, k, v, blocks, **options)
    assert torch.equal(found, expected)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), (q, k, v)))


@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
def test_no_exponential_overflows(weights: Any):
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(1, 2, 150, 16).mul(size).requires_grad_() for size in (1e6, 1e6, 1.0))
    blocks = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with backend("native"):
        o = block_sparse_attention(q, k, v, blocks, block_size=64, weights=weights)
    p = (q @ k.mT + torch.full((150, 150), -math.inf).triu(1)).double()
    p = p.softmax(-1) if weights == "softmax" else p.sigmoid()
    torch.testing.assert_close(o.double(), p @ v.double(), rtol=1e-4, atol=1e-4)
    assert all(g.isfinite().all() for g in torch.autograd.grad(o.sum(), (q, k, v)))


@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
def test_later_keys_change_no_bit(weights: Any):
    make, length, keys = Maker(0, torch.float32), 60, 130
    q, k, v = make.tensor(1, 2, length, 16), make.tensor(1, 2, keys, 16), make.tensor(1, 2, keys, 16)
    blocks = torch.rand(1, 2, 2, 9) < 0.5
    blocks[..., -1] = True
    options: dict[str, Any] = {"block_size": (40, 15), "weights": weights, "window": 3}
    with backend("native"):
        before = block_sparse_attention(q, k, v, blocks, **options)
        for t in (0, 15, 16, 17, 58):
            other_k, other_v = k.clone(), v.clone()
            other_k[:, :, keys - length + t + 1 :] -= 0.5
            other_v[:, :, keys - length + t + 1 :] += 5
            after = block_sparse_attention(q, other_k, other_v, blocks, **options)
            assert torch.equal(after[:, :, : t + 1], before[:, :, : t + 1])
            assert (after[:, :, t + 1 :] != before[:, :, t + 1 :]).any()


def test_other_samples_and_heads_change_no_bit():
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(3, h, 130, 16) for h in (4, 2, 2))
    blocks = torch.rand(3, 4, 9, 9) < 0.5
    with backend("native"):
        together = block_sparse_attention(q, k, v, blocks, block_size=15)
        alone = block_sparse_attention(q[1:2, 2:3], k[1:2, 1:], v[1:2, 1:], blocks[1:2, 2:3], block_size=15)
    assert torch.equal(together[1:2, 2:3], alone)


def test_illegal_block_numbers_read_no_other_memory():
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(1, 1, 16, 8) for _ in range(3))
    wrong = torch.tensor([[[[3, -7, 3, 1, 10**9], [0, 0, 2, 99, 1]]]], dtype=torch.int32)
    right = torch.tensor([[[[3, 3, 3, 3, 3], [0, 2, 2, 2, 2]]]], dtype=torch.int32)
    given = (None, torch.zeros(()), 8, 4, True, 0, 0, 0.3, False, False)
    one = native.block_sparse_attention_native(q, k, v, wrong, torch.tensor([[[99, 5]]], dtype=torch.int32), *given)
    two = native.block_sparse_attention_native(q, k, v, right, torch.tensor([[[1, 2]]], dtype=torch.int32), *given)
    assert torch.equal(one[0], two[0])


@pytest.mark.parametrize(("length", "width", "there"), [(256, 64, True), (15, 64, False), (64, 999, True)])
@pytest.mark.parametrize("processor", [True, False])
def test_auto_chooses_by_processor_and_sizes(length, width, there, processor, monkeypatch):
    called = []
    monkeypatch.setattr(native, "call", lambda *given: called.append(given) or call(*given))
    monkeypatch.setattr(native, "PAYS", processor)
    q, k, v = (torch.randn(1, 2, n, width) for n in (length, 256, 256))
    rows = -(-length // 32)
    block_sparse_attention(q, k, v, torch.ones(1, 1, rows, 8, dtype=torch.bool), block_size=32)
    assert len(called) == int(there and processor)


def test_projections_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch):
    packed, addresses = torch.randn(2, 90, 3, 4, 16), []
    monkeypatch.setattr(native, "call", lambda name, a, back: addresses.extend((a.q, a.k, a.v)) or call(name, a, back))
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    with backend("native"):
        o = block_sparse_attention(q, k, v, torch.ones(1, 1, 6, 6, dtype=torch.bool), block_size=16)
    assert addresses == [m.data_ptr() for m in (q, k, v)]
    assert isinstance(o, Tensor)
    assert o.transpose(1, 2).flatten(2).data_ptr() == o.data_ptr(), "joining heads copies"


def test_memory_is_that_of_kept_pairs():
    setup = """
from foveate.ops import backend
from foveate.ops.block_sparse_attention import BlockIndices, block_sparse_attention
def run(length):
    q, k, v = (torch.randn(1, 2, length, 16, requires_grad=True) for _ in range(3))
    rows = torch.arange(length // 64, dtype=torch.int32)[None, None, :, None]
    blocks = BlockIndices(rows, torch.ones_like(rows[..., 0]))
    with backend("native"):
        o = block_sparse_attention(q, k, v, blocks, block_size=64, window=64, sinks=4)
        torch.autograd.grad(o.sum(), (q, k, v))
run(64)
"""
    length = 16384
    assert peak_bytes_of(f"run({length})", setup) < length**2 / 4  # a bit for each pair and head


CODE = """
import hashlib, sys, torch
from foveate.ops import backend
from foveate.ops.block_sparse_attention import block_sparse_attention
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
for weights in ("softmax", "sigmoid"):
    q, k, v = (torch.randn(1, h, 1100, 16, requires_grad=True) for h in (2, 1, 1))
    blocks = torch.rand(1, 2, 18, 35) < 0.5
    with backend("native"):
        y = block_sparse_attention(q, k, v, blocks, block_size=(64, 32), window=5, weights=weights)
    for m in (y, *torch.autograd.grad(y, (q, k, v), y.detach())):
        print(hashlib.sha256(m.detach().contiguous().numpy().tobytes()).hexdigest())
"""


def test_bits_do_not_depend_on_threads():
    one, two = (
        subprocess.run([sys.executable, "-c", CODE, n], capture_output=True, text=True, check=True).stdout
        for n in ("1", "2")
    )
    assert len(one.splitlines()) == 8
    assert one == two


def test_the_compiled_op_is_sound():
    make = Maker(0, torch.float64)
    q, k, v = (make.tensor(2, n, h, w).requires_grad_() for n, h, w in ((6, 4, 3), (9, 2, 3), (9, 2, 4)))
    blocks, bias = torch.rand(1, 4, 3, 4) > 0.3, make.tensor(4).requires_grad_()
    op = torch.ops.foveate.block_sparse_attention_native.default
    mask = torch.rand(2, 9) > 0.5
    opcheck(op, (q, k, v, blocks, None, mask, bias.detach(), 2, 3, True, 2, 1, 0.5, False, True))
    opcheck(op, (q, k, v, *blocks_to_indices(blocks), None, bias, 2, 3, False, 0, 0, 0.5, True, False))


def test_compiles_as_one_graph():
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(2, 2, 70, 8).requires_grad_() for _ in range(3))
    mask, blocks = torch.rand(2, 70) > 0.2, torch.rand(1, 2, 5, 5) < 0.5
    torch.compiler.reset()
    with backend("native"):
        for given in (blocks, BlockIndices(*blocks_to_indices(blocks))):
            call = lambda *m, given=given: block_sparse_attention(*m, given, block_size=16, window=1, mask=mask)  # noqa: E731
            one, two = torch.compile(call, backend="aot_eager", fullgraph=True)(q, k, v), call(q, k, v)
            torch.testing.assert_close(one, two)
            for found, want in zip(*(torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (one, two)), strict=True):
                torch.testing.assert_close(found, want)
    torch.compiler.reset()
