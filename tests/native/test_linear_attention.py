"""The kernel of linear attention with a decay per head against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.ops import backend
from foveate.ops.linear_attention import build_slopes, lightning_attention
from foveate.ops.native import linear_attention as kernel
from tests.agreement import Maker, agree, answers, dtypes, examples, needs_kernels

pytestmark = needs_kernels


@st.composite
def attentions(draw: st.DrawFn) -> tuple[dict[str, Any], torch.dtype]:
    dtype, flag = draw(dtypes), st.booleans()
    batch, heads, n = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 200))
    width = st.one_of(st.integers(1, 40), st.sampled_from([16, 32, 64]))
    d, e, make = draw(width), draw(width), Maker(draw(st.integers(0, 2**31)), dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    scale = draw(st.sampled_from([None, 0.0, 1e-4, 0.05, 1.0, 50.0]))
    return {
        "q": make.tensor(batch, heads, n, d) / d,
        "k": make.tensor(batch, heads, n, d),
        "v": make.tensor(batch, heads, n, e),
        "slope": None if scale is None else scale * make.tensor(heads, dtype=real).abs(),
        "state": make.tensor(batch, heads, d, e, dtype=real) if draw(flag) else None,
        "segments": make.documents(batch, n) if draw(flag) else None,
        "return_state": draw(flag),
    }, dtype


def run(**arguments: Any) -> tuple[torch.Tensor, ...]:
    # The gradient of a slope is one number, a sum in which nearly everything may cancel, in the reference as well: its
    # size says how near is equal only where a few heads have one each.
    if arguments["slope"] is not None and len(arguments["slope"]) < 3:
        arguments["slope"] = arguments["slope"].detach()
    found = lightning_attention(**arguments)
    return found if isinstance(found, tuple) else (found,)


@given(attentions())
@examples(60)
def test_equals_the_masked_product(case: tuple[dict[str, Any], torch.dtype]):
    agree(run, *case)


def test_gradients_by_differences():
    make = Maker(0, torch.float64)
    q, k, v = (make.tensor(2, 2, 7, width).requires_grad_() for width in (3, 3, 2))
    slope, state = make.tensor(2).abs().requires_grad_(), make.tensor(2, 2, 3, 2).requires_grad_()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor, state: torch.Tensor) -> Any:
        return lightning_attention(q, k, v, slope, state=state, return_state=True)

    with backend("native"):
        assert torch.autograd.gradcheck(attend, (q, k, v, slope, state))


# One head of one sample is divided by columns, more of them are not.
@pytest.mark.parametrize(("heads", "e"), [(1, 96), (1, 40), (3, 64), (5, 200)])
def test_the_number_of_threads_changes_no_bit(heads: int, e: int):
    make = Maker(1, torch.float32)
    given = {"q": make.tensor(1, heads, 1100, 24), "k": make.tensor(1, heads, 1100, 24)}
    given |= {"v": make.tensor(1, heads, 1100, e), "slope": build_slopes(heads), "return_state": True}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results, gradients = answers(run, given, "native")
            found.append(results + gradients)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("heads", [1, 3])
def test_work_that_is_divided_equals_the_masked_product(heads: int):
    make = Maker(2, torch.float32)
    given = {"q": make.tensor(1, heads, 700, 33) / 33, "k": make.tensor(1, heads, 700, 33)}
    given |= {"v": make.tensor(1, heads, 700, 130), "slope": build_slopes(heads), "return_state": True}
    assert given["v"].numel() > kernel.DIVIDED_FROM
    agree(run, given, torch.float32)


def test_without_gradients_no_states_are_kept_and_outputs_are_the_same():
    q, k, v = (torch.randn(1, 2, 3000, 8).requires_grad_() for _ in range(3))
    with backend("native"):
        kept = lightning_attention(q, k, v, build_slopes(2))
        with torch.no_grad():
            free = lightning_attention(q, k, v, build_slopes(2))
    assert torch.equal(kept, free)
    assert [len(m) for m in kernel._shapes(q, k, v, build_slopes(2), None, None, 64, False, False, 2**20)[2:]] == [1]


@pytest.mark.parametrize("slope", [1e-7, 1e-5, 1e-3, 0.1])
def test_a_slow_decay_is_right_after_65536_tokens(slope: float):
    # The first token, read by all later ones: its weight is the decay alone, multiplied once for each chunk.
    n = 65_536
    q, v = torch.ones(1, 1, n, 1), torch.ones(1, 1, n, 1)
    k = torch.zeros(1, 1, n, 1)
    k[:, :, 0] = 1
    with backend("native"):
        o, after = lightning_attention(q, k, v, torch.tensor([slope]), return_state=True)
    exact = torch.exp(-torch.tensor([slope]).double() * torch.arange(n))
    near = exact > 1e-30
    error = (o[0, 0, :, 0].double() / exact - 1).abs()[near].max()
    assert error < 2e-5, f"the weights deviate by {error:.1e}"
    assert float(after) == pytest.approx(math.exp(-torch.tensor(slope).item() * (n - 1)), rel=2e-5, abs=1e-30)


def test_float32_is_as_near_as_the_torch_form_after_65536_tokens():
    make = Maker(3, torch.float32)
    q, k = (make.tensor(1, 2, 65_536, 8).sigmoid() for _ in range(2))  # sums that grow
    v, slope = make.tensor(1, 2, 65_536, 8), torch.tensor([1e-6, 1e-2])
    given = {"q": q, "k": k, "v": v, "slope": slope, "return_state": True}
    with backend("torch"):
        exact = run(**{name: m.double() if isinstance(m, torch.Tensor) else m for name, m in given.items()})
    errors = {}
    for form in ("native", "torch"):
        with backend(form):
            found = run(**given)
        errors[form] = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True))
    assert errors["native"] < max(2 * errors["torch"], 1e-5), errors
