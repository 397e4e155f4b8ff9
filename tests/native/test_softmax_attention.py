"""The kernel of softmax attention against its definition."""

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
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.ops import backend
from foveate.ops.native import call
from foveate.ops.native import softmax_attention as native
from foveate.ops.softmax_attention import softmax_attention
from tests.agreement import Maker, agree, dtypes, examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def attentions(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag = draw(dtypes), st.booleans()
    real = torch.float64 if dtype == torch.float64 else torch.float32
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    length, causal = draw(st.integers(2, 20 if draw(flag) else 150)), draw(flag)
    keys = length + draw(st.integers(0, 120)) if causal else draw(st.integers(1, 250))
    if draw(flag) and draw(flag):
        length, keys = draw(st.integers(2, 64)), draw(st.integers(4096, 4500))  # keys are divided
    width, value_width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    if draw(flag) and draw(flag):
        width, value_width = draw(st.integers(64, 140)), draw(st.integers(64, 140))
    make = Maker(draw(st.integers(0, 2**31)), dtype)
    share = draw(st.sampled_from((0.1, 0.5, 0.9)))

    def broadcast(*sizes: int) -> tuple[int, ...]:
        return tuple(size if draw(flag) else 1 for size in sizes)

    def visible(*shape: int) -> Tensor:
        return make.tensor(*shape, dtype=torch.float32) < math.sqrt(2) * torch.erfinv(torch.tensor(2 * share - 1))

    mask = None
    if draw(flag):
        mask = visible(batch, keys) if draw(flag) else visible(*broadcast(batch, heads, length, keys))
    return {
        "q": make.tensor(batch, heads, length, width),
        "k": make.tensor(batch, heads, keys, width),
        "v": make.tensor(batch, heads, keys, value_width),
        "causal": causal,
        "mask": mask,
        "bias": make.tensor(*broadcast(batch, heads, length, keys), dtype=real) if draw(flag) else None,
        "scale": 0.4 if draw(flag) else None,
    }, dtype


@given(attentions())
@examples(60)
def test_equals_the_definition(case: tuple[dict[str, Any], torch.dtype]):
    given, dtype = case
    bias = given.pop("bias")  # whose gradient is torch's to find: captured, it needs none
    assert native.fits(given["q"], given["k"], given["v"], given["mask"], bias)
    agree(lambda **arguments: [softmax_attention(**arguments, bias=bias)], given, dtype)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    inputs = [make.tensor(2, 2, n, w).requires_grad_() for n, w in ((5, 3), (7, 3), (7, 4))]
    mask, pairs = torch.rand(2, 7) > 0.3, torch.rand(2, 1, 5, 7) > 0.3
    bias = make.tensor(1, 2, 5, 7)
    choices: tuple[dict[str, Any], ...] = ({}, {"causal": True, "mask": mask}, {"mask": pairs, "bias": bias})
    for options in choices:

        def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] = options) -> Tensor:
            return softmax_attention(q, k, v, **options)

        with backend("native"):
            assert torch.autograd.gradcheck(attend, inputs)
            assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("length", [5, 64, 130])
def test_a_query_without_keys_gives_zeros_and_no_gradients(length: int):
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(2, 2, length, 8).requires_grad_() for _ in range(3))
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, :3], mask[1] = False, False
    with backend("native"):
        o = softmax_attention(q, k, v, causal=True, mask=mask)
    assert (o[0, :, :3] == 0).all()
    assert (o[0, :, 3:] != 0).all()
    assert (o[1] == 0).all()
    gq, gk, gv = torch.autograd.grad(o.square().sum(), (q, k, v))
    for gradient in (gq, gk, gv):
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()
        assert (gradient[0, :, :3] == 0).all()
    assert (gv[0, :, 3:] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_key_has_no_gradient(dtype: torch.dtype):
    make = Maker(0, dtype)
    q, k, v = (make.tensor(1, 2, 70, 33).requires_grad_() for _ in range(3))
    with backend("native"):
        o = softmax_attention(q, k, v, causal=True)
    (gradient,) = torch.autograd.grad(o.square().sum(), q)
    assert (gradient[:, :, 0] == 0).all()
    assert (gradient[:, :, 1:] != 0).any(-1).all()


def test_a_bias_of_minus_infinity_hides_a_pair():
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(1, 2, 80, 8) for _ in range(3))
    pairs = torch.rand(1, 1, 80, 80) > 0.5
    pairs[..., 0] = True
    bias = torch.zeros(1, 1, 80, 80).masked_fill(~pairs, -math.inf)
    with backend("native"):
        one, two = (softmax_attention(q, k, v, **options) for options in ({"bias": bias}, {"mask": pairs}))
    assert torch.equal(one, two)


@pytest.mark.parametrize("size", [1e-3, 300.0])
def test_from_nearly_equal_weights_to_a_single_one(size: float):
    make = Maker(0, torch.float64)
    q, k, v = (make.tensor(1, 2, 150, 16) for _ in range(3))
    given = {"q": q * size, "k": k, "v": v}
    agree(lambda **arguments: [softmax_attention(**arguments, causal=True, scale=1.0)], given, torch.float64)


@pytest.mark.parametrize("causal", [False, True])
def test_no_exponential_overflows(causal: bool):
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(1, 2, 150, 16).mul(size).requires_grad_() for size in (1e6, 1e6, 1.0))
    with backend("native"):
        o = softmax_attention(q, k, v, causal=causal)
    best = (q @ k.mT + (torch.full((150, 150), -math.inf).triu(1) if causal else 0)).argmax(-1)
    assert torch.equal(o, v.gather(2, best[..., None].expand_as(v)))
    assert all(g.isfinite().all() for g in torch.autograd.grad(o.sum(), (q, k, v)))


@pytest.mark.parametrize("length", [64, 200])
def test_what_is_masked_may_be_anything(length: int):
    make, mask = Maker(0, torch.float32), torch.rand(2, length) > 0.5
    mask[:, 0] = True
    q, k, v = (make.tensor(2, 2, length, 8) for _ in range(3))
    with backend("native"):
        expected = softmax_attention(q, k, v, mask=mask)
        for m in (k, v):
            m.masked_fill_(~mask[:, None, :, None], math.nan)
        q, k, v = (m.requires_grad_() for m in (q, k, v))
        found = softmax_attention(q, k, v, mask=mask)
    assert torch.equal(found, expected)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), (q, k, v)))


@pytest.mark.parametrize("keys", [130, 4200])
def test_later_keys_change_no_bit(keys: int):
    make, length = Maker(0, torch.float32), 60
    q, k, v = make.tensor(1, 2, length, 16), make.tensor(1, 2, keys, 16), make.tensor(1, 2, keys, 16)
    with backend("native"):
        before = softmax_attention(q, k, v, causal=True)
        for t in (0, 15, 16, 17, 58):
            k[:, :, keys - length + t + 1 :] -= 0.5
            v[:, :, keys - length + t + 1 :] += 5
            after = softmax_attention(q, k, v, causal=True)
            assert torch.equal(after[:, :, : t + 1], before[:, :, : t + 1])
            assert (after[:, :, t + 1 :] != before[:, :, t + 1 :]).any(-1).all()
            k, v = k.clone(), v.clone()
            before = after


def test_other_samples_and_heads_change_no_bit():
    make = Maker(0, torch.float32)
    for length, keys in ((130, 130), (20, 5000)):
        q, k, v = (make.tensor(3, 4, n, 16) for n in (length, keys, keys))
        with backend("native"):
            together = softmax_attention(q, k, v, causal=True)
            alone = softmax_attention(*(m[1:2, 2:3] for m in (q, k, v)), causal=True)
        assert torch.equal(together[1:2, 2:3], alone)


@pytest.mark.parametrize(
    ("length", "keys", "width", "there"),
    [(256, 256, 64, True), (31, 4096, 64, False), (32, 32, 999, False), (48, 48, 64, False)],
)
@pytest.mark.parametrize("processor", [True, False])
def test_auto_chooses_by_processor_and_sizes(length, keys, width, there, processor, monkeypatch):
    called = []
    monkeypatch.setattr(native, "call", lambda *given: called.append(given) or call(*given))
    monkeypatch.setattr(native, "PAYS", processor)
    monkeypatch.setattr(native, "PAYS_BESIDE_MKL", False)
    q, k, v = (torch.randn(1, 2, n, width) for n in (length, keys, keys))
    softmax_attention(q, k, v)
    assert len(called) == int(there and processor)


@pytest.mark.parametrize(
    ("length", "width", "causal", "gradient", "there"),
    [
        (197, 64, False, False, True),
        (197, 64, True, True, True),
        (197, 64, False, True, False),
        (197, 128, False, False, False),
        (64, 64, False, False, False),
    ],
)
@pytest.mark.parametrize("processor", [True, False])
def test_auto_chooses_beside_a_fast_mkl(length, width, causal, gradient, there, processor, monkeypatch):
    called = []
    monkeypatch.setattr(native, "call", lambda *given: called.append(given) or call(*given))
    monkeypatch.setattr(native, "PAYS", False)
    monkeypatch.setattr(native, "PAYS_BESIDE_MKL", processor)
    q, k, v = (torch.randn(1, 4, length, width, requires_grad=gradient) for _ in range(3))
    softmax_attention(q, k, v, causal=causal)
    assert len(called) == int(there and processor)


def test_transforms_look_into_torchs_form(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "PAYS", True)
    q, k, v = (torch.randn(3, 1, 2, 256, 64) for _ in range(3))
    each = torch.stack([softmax_attention(*m, causal=True) for m in zip(q, k, v, strict=True)])
    attend = lambda *given: softmax_attention(*given, causal=True)  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(attend)(q, k, v), each)
    found = torch.func.grad(lambda v: attend(q[0], k[0], v).square().sum())(v[0])
    v = v.requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(attend(q[0], k[0], v[0]).square().sum(), v)[0][0])


def test_a_learned_bias_gets_its_gradient():
    make = Maker(0, torch.float32)
    given = {"q": make.tensor(1, 2, 64, 8), "k": make.tensor(1, 2, 64, 8), "v": make.tensor(1, 2, 64, 8)}
    agree(
        lambda **arguments: [softmax_attention(**arguments)],
        {**given, "bias": make.tensor(1, 2, 64, 64)},
        torch.float32,
    )


def test_a_step_enters_no_kernel(monkeypatch: pytest.MonkeyPatch):
    called = []
    monkeypatch.setattr(native, "call", lambda *given: called.append(given) or call(*given))
    mixer, x = SoftmaxAttention(32, num_heads=4, causal=True), torch.randn(2, 40, 32)
    with torch.no_grad(), backend("native"):
        _, state = mixer.prefill(x[:, :39], mixer.init_state(2))
        assert len(called) == 1
        mixer.step(x[:, 39], state)
    assert len(called) == 1


def test_projections_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch):
    packed, addresses = torch.randn(2, 90, 3, 4, 16), []
    monkeypatch.setattr(native, "call", lambda name, a, back: addresses.extend((a.q, a.k, a.v)) or call(name, a, back))
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    with backend("native"):
        o = softmax_attention(q, k, v)
    assert addresses == [m.data_ptr() for m in (q, k, v)]
    assert o.transpose(1, 2).flatten(2).data_ptr() == o.data_ptr(), "joining heads copies"


def test_memory_grows_with_the_length():
    setup = """
from foveate.ops import backend
from foveate.ops.softmax_attention import softmax_attention
def run(length, keys):
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (length, keys, keys))
    mask = torch.arange(keys)[None] > 5
    with backend("native"):
        torch.autograd.grad(softmax_attention(q, k, v, causal=True, mask=mask).sum(), (q, k, v))
run(64, 64)
"""
    matrix = 6000 * 8000  # bytes, if it had but one for each pair
    assert peak_bytes_of("run(6000, 8000)", setup) < matrix / 2


CODE = """
import hashlib, sys, torch
from foveate.ops import backend
from foveate.ops.softmax_attention import softmax_attention
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
for length, keys in ((1100, 1100), (33, 6000)):
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (length, keys, keys))
    with backend("native"):
        y = softmax_attention(q, k, v, causal=True)
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
    q, k, v = (make.tensor(2, n, 2, w).requires_grad_() for n, w in ((6, 3), (9, 3), (9, 4)))
    pairs, bias = torch.rand(2, 1, 6, 9) > 0.5, make.tensor(1, 2, 6, 9)
    op = torch.ops.foveate.softmax_attention_native.default
    opcheck(op, (q, k, v, None, pairs, bias, True, 0.5))
    opcheck(op, (q, k, v, torch.rand(2, 9) > 0.5, None, None, False, 0.5))


def test_compiles_as_one_graph():
    make = Maker(0, torch.float32)
    q, k, v = (make.tensor(2, 2, 70, 8).requires_grad_() for _ in range(3))
    mask, bias = torch.rand(2, 70) > 0.2, make.tensor(1, 2, 70, 70)
    torch.compiler.reset()
    with backend("native"):
        call = lambda *given: softmax_attention(*given, causal=True, mask=mask, bias=bias)  # noqa: E731
        one, two = torch.compile(call, backend="aot_eager", fullgraph=True)(q, k, v), call(q, k, v)
        torch.testing.assert_close(one, two)
        for found, want in zip(*(torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (one, two)), strict=True):
            torch.testing.assert_close(found, want)
    torch.compiler.reset()
