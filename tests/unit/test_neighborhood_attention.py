"""Neighborhood attention: the rule against a loop, the boxes against the definition, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.measure.isolated import allocated_bytes_of
from foveate.ops import backend, native
from foveate.ops.neighborhood_attention import neighborhood_attention, neighborhood_mask
from foveate.ops.neighborhood_windows import axes_of, boxes, neighborhood_pairs

FORMS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not native.AVAILABLE, reason="no kernels are built here")),
]
each_form = pytest.mark.parametrize("form", FORMS)


def make(
    grid: tuple[int, ...], *, heads: int = 4, key_heads: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """q, k and v with gradients; values are narrower than keys."""
    generator = torch.Generator().manual_seed(sum(grid))
    sizes = ((heads, 6), (key_heads, 6), (key_heads, 5))
    return [torch.randn(2, n, *grid, width, generator=generator, dtype=dtype).requires_grad_() for n, width in sizes]


# The rule


def seen_by_hand(i: int, size: int, window: int, dilation: int, stride: int, causal: bool) -> list[int]:
    """The keys of one query on one axis, in the words of the specification."""
    group, p = i % dilation, i // dilation
    n = size // dilation + (1 if group < size % dilation else 0)
    if causal:
        leader = min(p // stride * stride + stride - 1, n - 1)
        seen = range(max(leader - window + 1, 0), p + 1)
    else:
        right = window // 2 + window % 2 - 1
        leader = min(p // stride * stride + stride // 2, n - 1)
        start = max(leader - window // 2, 0) + (n - right - leader - 1 if leader + right >= n else 0)
        seen = range(start, start + window)
    return [m * dilation + group for m in seen]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "dilation"), [(2, 1), (3, 1), (4, 1), (5, 2), (4, 3), (13, 1)])
def test_the_rule_of_one_axis(window: int, dilation: int, causal: bool):
    for size, stride in itertools.product((window * dilation, window * dilation + 1, 29), range(1, window + 1)):
        if size < window * dilation:
            continue
        mask = neighborhood_mask((size,), window, dilation=dilation, stride=stride, causal=causal)
        for i in range(size):
            assert mask[i].nonzero().flatten().tolist() == seen_by_hand(i, size, window, dilation, stride, causal)
        assert mask.diagonal().all(), "a query does not see itself"


def test_a_grid_is_seen_along_every_axis():
    options: dict[str, Any] = {"dilation": (1, 2, 1), "stride": (2, 1, 3), "causal": (True, False, False)}
    axes = axes_of((4, 6, 5), (2, 3, 4), **options)
    mask = neighborhood_mask((4, 6, 5), (2, 3, 4), **options).view(4, 6, 5, 4, 6, 5)
    for q, k in itertools.product(itertools.product(range(4), range(6), range(5)), repeat=2):
        expected = all(k[i] in seen_by_hand(q[i], *axis) for i, axis in enumerate(axes))
        assert bool(mask[(*q, *k)]) == expected
    assert neighborhood_pairs(axes) == int(mask.sum())


def test_the_whole_axis_is_dense_attention():
    q, k, v = make((6, 7), key_heads=4)
    flat = [m.flatten(2, 3) for m in (q, k, v)]
    expected = F.scaled_dot_product_attention(*flat).unflatten(2, (6, 7))  # type: ignore[arg-type]
    torch.testing.assert_close(neighborhood_attention(q, k, v, (6, 7)), expected)
    q, k, v = make((19,), key_heads=4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(neighborhood_attention(q, k, v, 19, causal=True), expected)


def test_a_stride_of_the_window_is_blocked_windows():
    q, k, v = make((6, 10), key_heads=4)

    def blocks(m: Tensor) -> Tensor:
        return m.unflatten(3, (2, 5)).unflatten(2, (2, 3)).transpose(3, 4).flatten(4, 5).transpose(1, 3)

    inside = F.scaled_dot_product_attention(blocks(q), blocks(k), blocks(v)).transpose(1, 3)
    expected = inside.unflatten(4, (3, 5)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    torch.testing.assert_close(neighborhood_attention(q, k, v, (3, 5), stride=(3, 5)), expected)


def test_a_dilation_is_attention_within_residues():
    q, k, v = make((11, 14), key_heads=4)
    y = neighborhood_attention(q, k, v, 3, dilation=(3, 4))
    for a, b in itertools.product(range(3), range(4)):
        here = (slice(None), slice(None), slice(a, None, 3), slice(b, None, 4))
        torch.testing.assert_close(y[here], neighborhood_attention(q[here], k[here], v[here], 3))  # type: ignore[index]


def test_a_bias_is_by_key_minus_query():
    q, k, v = make((9,), heads=1, key_heads=1)
    bias = torch.zeros(1, 5, dtype=torch.float64)
    bias[0, 2 + 1] = 100.0  # the next position
    y = neighborhood_attention(q, k, v, 3, bias=bias)
    torch.testing.assert_close(y[:, :, :8], v[:, :, 1:])  # type: ignore[index]


# The fast forms

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "line": ((37,), {"window": 7}),
    "even": ((37,), {"window": 6, "stride": 4}),
    "causal line": ((50,), {"window": 12, "causal": True, "stride": 5}),
    "dilated line": ((53,), {"window": 5, "dilation": 7}),
    "plane": ((13, 18), {"window": (5, 7)}),
    "plane of residues": ((14, 17), {"window": (3, 4), "dilation": (4, 2), "causal": (False, True)}),
    "blocks": ((12, 16), {"window": (4, 8), "stride": (4, 8)}),
    "video": ((5, 8, 9), {"window": (3, 5, 4), "causal": (True, False, False), "stride": (1, 2, 1)}),
    "dilated video": ((7, 8, 9), {"window": (3, 2, 3), "dilation": (2, 3, 1)}),
}


@each_form
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("name", CASES)
def test_forms_equal_the_definition(name: str, biased: bool, form: str):
    grid, options = CASES[name]
    leaves = make(grid)
    generator = torch.Generator().manual_seed(1)
    axes = axes_of(grid, **options)
    if biased:
        if any(axis.causal or axis.window % 2 == 0 for axis in axes):
            pytest.skip("a bias is for odd windows without causal axes")
        shape = (4, *(2 * axis.window - 1 for axis in axes))
        options = {**options, "bias": torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()}
        leaves.append(options["bias"])
    else:
        for name, width in (("extra_k", 6), ("extra_v", 5)):
            options = {**options, name: torch.randn(2, 2, 3, width, generator=generator, dtype=torch.float64)}
            leaves.append(options[name].requires_grad_())
    answers = []
    for one in ("reference", form):
        with backend(one):
            y, lse = neighborhood_attention(*leaves[:3], **options, return_lse=True)
        loss = (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() + lse.sin().sum()
        answers.append((y, lse, *torch.autograd.grad(loss, leaves)))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_boxes_hold_every_pair_once():
    axes = axes_of((11, 14), (3, 5), dilation=(2, 1), stride=(1, 2))
    counted = torch.zeros(11, 14, 11, 14, dtype=torch.int64)
    for box in boxes(axes, 4):
        here = counted[box.queries + box.keys]
        here += box.seen.view(here.shape)
    mask = neighborhood_mask((11, 14), (3, 5), dilation=(2, 1), stride=(1, 2))
    assert torch.equal(counted.view(mask.shape), mask.long())


@each_form
def test_gradcheck(form: str):
    given = [m.detach()[:1, :2, :, :, :3].clone().requires_grad_() for m in make((5, 6))]
    given.append(torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True))

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return neighborhood_attention(q, k, v, 3, bias=bias, return_lse=True)  # type: ignore[return-value]

    with backend(form):
        assert torch.autograd.gradcheck(attend, given, fast_mode=True)


@each_form
def test_causality_is_strict_to_the_bit(form: str):
    torch.manual_seed(0)
    q, k, v = (m.detach().float() for m in make((40, 9), key_heads=4))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, (8, 5), stride=(3, 2), causal=(True, False))  # type: ignore[return-value]

    for t in (1, 7, 8, 9, 23, 39):
        changed = [m.clone() for m in (q, k, v)]
        for m in changed:
            m[:, :, t:] = torch.randn_like(m[:, :, t:])
        with backend(form):
            one, two = (attend(*given) for given in ((q, k, v), changed))
        assert torch.equal(one[:, :, :t], two[:, :, :t])  # type: ignore[index]
        assert not torch.equal(one[:, :, t:], two[:, :, t:])  # type: ignore[index]


@each_form
def test_memory_does_not_grow_with_the_window(form: str):
    setup = (
        "from foveate.ops import backend\n"
        "from foveate.ops.neighborhood_attention import neighborhood_attention\n"
        "q, k, v = (torch.randn(1, 2, 48, 48, 16, requires_grad=True) for _ in range(3))"
    )
    works = [
        f"with backend({form!r}):\n"
        f"    y = neighborhood_attention(q, k, v, {window})\n"
        "torch.autograd.grad(y.sum(), (q, k, v))"
        for window in (5, 33)
    ]
    small, large = allocated_bytes_of(works, setup)
    dense = 2 * (48 * 48) ** 2 * 4
    # A box of 8 x 8 queries sees 40 x 40 keys: small beside the 42 MB that one matrix of all pairs would have.
    assert large < dense / 6
    assert large <= small * (1.2 if form == "native" else 4)


def test_flops_are_linear_in_the_grid():
    def flops(side: int) -> int:
        q = torch.empty(1, 2, side, side, 16, device="meta")
        return count_flops(lambda: neighborhood_attention(q, q, q, 7))

    small, large = flops(32), flops(64)
    assert 3.5 < large / small < 4.7  # a box at the edge sees fewer keys that are not its own
    assert large < 4 * 64**4 * 2 * 16 / 8


# Dtypes and tools


@each_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype, form: str):
    q, k, v = (m.detach().to(dtype) for m in make((9, 12)))
    full, full_lse = neighborhood_attention(q.float(), k.float(), v.float(), 5, return_lse=True)
    with backend(form):
        y, lse = neighborhood_attention(q, k, v, 5, return_lse=True)
    assert y.dtype == dtype
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse, full_lse, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.float(), full, rtol=2e-2, atol=2e-2)


def test_heads_lie_behind_the_grid_in_memory():
    y = neighborhood_attention(*make((9, 12)), 5)
    assert isinstance(y, Tensor)
    assert y.movedim(1, -2).flatten(-2).data_ptr() == y.data_ptr(), "joining heads copies"


@pytest.mark.parametrize("name", ["neighborhood_attention", "neighborhood_attention_native"])
def test_the_compiled_op_is_sound(name: str):
    if name.endswith("native") and not native.AVAILABLE:
        pytest.skip("no kernels are built here")
    q, k, v = make((5, 6))
    bias = torch.randn(4, 5, 5, dtype=torch.float64, requires_grad=True)
    opcheck(getattr(torch.ops.foveate, name).default, (q, k, v, bias, [3, 3], [1, 1], [1, 2], [False, False], 0.5))


def test_compiles_as_one_graph():
    q, k, v = make((9, 10), dtype=torch.float32)
    torch.compiler.reset()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, (3, 5), causal=(True, False))  # type: ignore[return-value]

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    one, two = compiled(q, k, v), call(q, k, v)
    torch.testing.assert_close(one, two)
    for found, want in zip(*(torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (one, two)), strict=True):
        torch.testing.assert_close(found, want)
    torch.compiler.reset()


def test_shapes_on_meta():
    q, k, v = (m.detach().to("meta") for m in make((4, 6, 7)))
    y, lse = neighborhood_attention(q, k, v, (2, 3, 5), return_lse=True)
    assert y.is_meta
    assert (y.shape, lse.shape) == ((2, 4, 4, 6, 7, 5), (2, 4, 4, 6, 7))


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"window": 1}, InvalidValue, r"window=\(1, 1\) is not possible: every axis needs at least 2"),
        ({"window": (3, 3, 3)}, InvalidValue, r"window=\(3, 3, 3\) has 3 entries.*here 2"),
        ({"window": 3.0}, InvalidType, r"window=3\.0.*whole number"),
        ({"window": True}, InvalidType, "window=True.*whole number"),
        ({"window": 9}, InvalidValue, r"window=\(9, 9\) with dilation=\(1, 1\) does not fit the grid \(8, 9\)"),
        ({"dilation": (1, 4)}, InvalidValue, r"dilation=\(1, 4\) does not fit the grid \(8, 9\)"),
        ({"dilation": 0}, InvalidValue, r"dilation=\(0, 0\).*at least 1"),
        ({"stride": 4}, InvalidValue, r"stride=\(4, 4\).*between 1 and the window, \(3, 3\)"),
        ({"stride": (0, 1)}, InvalidValue, "stride"),
        ({"causal": 1}, InvalidType, "causal=1 is not possible: it must be True or False"),
        ({"bias": torch.zeros(4, 5, 4)}, InvalidValue, r"bias has shape \(4, 5, 4\): it must be \(4, 5, 5\)"),
        ({"bias": torch.zeros(4, 5, 5), "causal": True}, InvalidValue, "odd windows without causal axes"),
        ({"bias": torch.zeros(4, 7, 7), "window": 4}, InvalidValue, "odd windows without causal axes"),
        ({"extra_k": torch.zeros(2, 2, 3, 6)}, InvalidValue, "extra_k and extra_v belong together"),
        (
            {"extra_k": torch.zeros(2, 2, 3, 6), "extra_v": torch.zeros(2, 2, 4, 5)},
            InvalidValue,
            r"extra_v has shape \(2, 2, 4, 5\): it must be .* \(2, 2, extra, 5\)",
        ),
        (
            {"extra_k": torch.zeros(2, 2, 3, 6).half(), "extra_v": torch.zeros(2, 2, 3, 5)},
            InvalidType,
            r"extra_k must be torch\.float32",
        ),
        ({"k": torch.zeros(2, 3, 8, 9, 6)}, InvalidValue, "agree in batch and grid"),
        ({"k": torch.zeros(2, 3, 8, 9, 6), "v": torch.zeros(2, 3, 8, 9, 5)}, InvalidValue, "heads of k must divide"),
        ({"q": torch.zeros(2, 4, 8, 9, 6).half()}, InvalidType, "share one floating dtype"),
        ({"q": torch.zeros(4, 8, 9)}, InvalidValue, r"\(batch, heads, \*grid, width\)"),
    ],
)
def test_refuses_what_does_not_fit(options: dict[str, Any], error: type[Exception], says: str):
    q, k, v = (m.detach().float() for m in make((8, 9)))
    with pytest.raises(error, match=says):
        neighborhood_attention(**{"q": q, "k": k, "v": v, "window": 3, **options})


def test_a_grid_has_one_to_three_axes():
    with pytest.raises(InvalidValue, match=r"the grid \(2, 2, 2, 2\) has 4 axes"):
        neighborhood_mask((2, 2, 2, 2), 2)
