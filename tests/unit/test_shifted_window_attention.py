"""Shifted window attention: the definition against loops and Swin's own steps, its forms, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.measure.op_costs import op_cost
from foveate.ops import backend, native
from foveate.ops.shifted_window_attention import shifted_window_attention, window_mask
from foveate.ops.shifted_windows import axes_of, from_windows, to_windows

FORMS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not native.AVAILABLE, reason="no kernels are built here")),
]
each_form = pytest.mark.parametrize("form", FORMS)


def make(grid: tuple[int, ...], *, heads: int = 3, dtype: torch.dtype = torch.float64, batch: int = 2) -> list[Tensor]:
    """q, k and v with gradients, as views of one channels-last projection; values are narrower than keys."""
    generator = torch.Generator().manual_seed(sum(grid))
    projection = torch.randn(batch, *grid, heads, 17, generator=generator, dtype=dtype)
    return [m.movedim(-2, 1).requires_grad_() for m in projection.split((6, 6, 5), -1)]


# The definition


def seen_by_hand(position: tuple[int, ...], other: tuple[int, ...], axes: Any, partition: str) -> bool:
    """Whether two places of the padded grid see each other, in the words of the papers."""
    for p, o, axis in zip(position, other, axes, strict=True):
        p, o = (p - axis.shift) % axis.padded, (o - axis.shift) % axis.padded
        if partition == "grid":
            if p % axis.count != o % axis.count:
                return False
            continue
        edge = axis.padded - axis.shift
        if p // axis.window != o // axis.window or (p >= edge) != (o >= edge):
            return False
    return True


@pytest.mark.parametrize(
    ("grid", "window", "shift", "partition"),
    [
        ((11,), 4, 2, "blocks"),
        ((5, 6), (3, 4), (1, 3), "blocks"),
        ((7, 6), (3, 2), 0, "grid"),
        ((2, 5, 3), 2, 1, "blocks"),
    ],
)
@pytest.mark.parametrize("padding", ["tokens", "masked"])
def test_who_sees_whom(grid: tuple[int, ...], window: Any, shift: Any, partition: str, padding: str):
    q, k, v = make(grid)
    pad_k, pad_v = (torch.randn(3, width, dtype=torch.float64) for width in (6, 5))
    with backend("reference"):
        options: dict[str, Any] = {"shift": shift, "partition": partition, "padding": padding}
        y = shifted_window_attention(q, k, v, window, pad_k=pad_k, pad_v=pad_v, **options)
    axes = axes_of(grid, window, shift, partition)
    for position in itertools.product(*map(range, grid)):
        keys, values = [], []
        for other in itertools.product(*(range(axis.padded) for axis in axes)):
            real = all(o < axis.size for o, axis in zip(other, axes, strict=True))
            if seen_by_hand(position, other, axes, partition) and (real or padding == "tokens"):
                keys.append(k[(..., *other, slice(None))] if real else pad_k.expand(2, 3, 6))
                values.append(v[(..., *other, slice(None))] if real else pad_v.expand(2, 3, 5))
        query = q[(..., *position, slice(None))][:, :, None]
        expected = F.scaled_dot_product_attention(query, torch.stack(keys, 2), torch.stack(values, 2))[:, :, 0]
        torch.testing.assert_close(y[(..., *position, slice(None))], expected)


def test_is_what_swin_does():
    """Normalise, pad with zeros, roll, cut, project, attend with -100 between regions, and back."""
    torch.manual_seed(0)
    size, heads, window, shift = (10, 13), 2, 4, 2
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    qkv = torch.nn.Linear(8, 24).double()
    bias = torch.randn(heads, 16, 16, dtype=torch.float64)

    def cut(m: Tensor) -> Tensor:
        return m.unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).transpose(2, 3).flatten(3, 4).flatten(0, 2)

    padded = F.pad(x, (0, 0, 0, 3, 0, 2)).roll((-shift, -shift), (1, 2))
    q, k, v = qkv(cut(padded)).unflatten(-1, (3, heads, 4)).permute(2, 0, 3, 1, 4)
    numbers = torch.zeros(1, 12, 16, 1)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, (rows, columns) in enumerate(itertools.product(slices, slices)):
        numbers[:, rows, columns] = i
    numbers = cut(numbers)[..., 0]
    mask = (numbers[:, None] != numbers[:, :, None]).double() * -100
    scores = ((q * 4**-0.5) @ k.mT + bias).unflatten(0, (2, -1)) + mask[:, None]
    o = (scores.softmax(-1).flatten(0, 1) @ v).transpose(1, 2).flatten(2)
    o = o.view(2, 3, 4, 4, 4, 8).transpose(2, 3).reshape(2, 12, 16, 8).roll((shift, shift), (1, 2))[:, :10, :13]

    q, k, v = qkv(x).unflatten(-1, (3, heads, 4)).permute(3, 0, 4, 1, 2, 5)
    pad_k, pad_v = qkv.bias.view(3, heads, 4)[1:]
    y = shifted_window_attention(q, k, v, window, shift=shift, bias=bias, pad_k=pad_k, pad_v=pad_v)
    torch.testing.assert_close(y.movedim(1, -2).flatten(-2), o)


def test_one_window_is_dense_attention():
    q, k, v = make((4, 5))
    expected = F.scaled_dot_product_attention(*(m.flatten(2, 3) for m in (q, k, v))).unflatten(2, (4, 5))  # type: ignore[arg-type]
    for partition in ("blocks", "grid"):
        torch.testing.assert_close(shifted_window_attention(q, k, v, (4, 5), partition=partition), expected)


def test_a_grid_is_blocks_of_the_transposed_axes():
    q, k, v = make((6, 8))

    def swap(m: Tensor, counts: tuple[int, int]) -> Tensor:
        return (
            m.unflatten(3, (-1, counts[1]))
            .unflatten(2, (-1, counts[0]))
            .transpose(2, 3)
            .transpose(4, 5)
            .flatten(4, 5)
            .flatten(2, 3)
        )

    y = shifted_window_attention(q, k, v, (3, 4), partition="grid")
    swapped = shifted_window_attention(*(swap(m, (2, 2)) for m in (q, k, v)), (3, 4))  # type: ignore[misc]
    torch.testing.assert_close(swap(y, (2, 2)), swapped)


@pytest.mark.parametrize("partition", ["blocks", "grid"])
@pytest.mark.parametrize("grid", [(6,), (6, 8), (4, 6, 8)])
def test_cut_and_put_together(grid: tuple[int, ...], partition: str):
    axes = axes_of(grid, 2, 0, partition)
    x = torch.randn(2, 3, *grid, 5)
    back = from_windows(to_windows(x, axes, partition), axes, partition)
    assert torch.equal(back.movedim(-2, 1), x)


def test_bias_may_differ_by_window():
    q, k, v = make((4, 6))
    bias = torch.zeros(6, 1, 4, 4, dtype=torch.float64)
    bias[3, :, :, 2] = 1000.0  # window (1, 0): everybody reads its third token, at (3, 0)
    y = shifted_window_attention(q, k, v, 2, bias=bias)
    plain = shifted_window_attention(q, k, v, 2)
    torch.testing.assert_close(y[:, :, 2:, :2], v[:, :, 3:, :1].expand(-1, -1, 2, 2, -1))
    assert torch.equal(y[:, :, :2], plain[:, :, :2])
    assert torch.equal(y[:, :, 2:, 2:], plain[:, :, 2:, 2:])


# The fast forms

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "line": ((37,), {"window": 7}),
    "shifted line": ((24,), {"window": 6, "shift": 2}),
    "plane": ((14, 21), {"window": 7}),
    "shifted plane": ((14, 21), {"window": (7, 3), "shift": (3, 1)}),
    "shifted and padded": ((9, 16), {"window": (4, 5), "shift": (2, 3)}),
    "shifted along one axis": ((9, 16), {"window": 4, "shift": (0, 2)}),
    "masked": ((9, 16), {"window": (4, 5), "shift": (2, 3), "padding": "masked"}),
    "masked, not shifted": ((9, 16), {"window": (4, 5), "padding": "masked"}),
    "grid": ((12, 10), {"window": (4, 5), "partition": "grid"}),
    "padded grid": ((11, 9), {"window": (4, 5), "partition": "grid"}),
    "masked grid": ((11, 9), {"window": (4, 5), "partition": "grid", "padding": "masked"}),
    "volume": ((5, 6, 7), {"window": 3, "shift": (1, 0, 1)}),
    "wider than the grid": ((5, 3), {"window": 7, "shift": 3}),
    "one token": ((5, 3), {"window": 1}),
}


@each_form
@pytest.mark.parametrize("extra", ["plain", "bias", "bias by window", "pads"])
@pytest.mark.parametrize("name", CASES)
def test_forms_equal_the_definition(name: str, extra: str, form: str):
    grid, options = CASES[name]
    q, k, v = make(grid)
    generator = torch.Generator().manual_seed(1)
    axes = axes_of(grid, options["window"], options.get("shift", 0), options.get("partition", "blocks"))
    tokens, windows = 1, 1
    for axis in axes:
        tokens, windows = tokens * axis.window, windows * axis.count
    shapes: dict[str, tuple[int, ...]] = {}
    if extra.startswith("bias"):
        shapes["bias"] = (3, tokens, tokens) if extra == "bias" else (windows, 1, tokens, tokens)
    if extra == "pads":
        shapes |= {"pad_k": (3, 6), "pad_v": (3, 5)}
    double: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    given: dict[str, Any] = {n: torch.randn(s, **double).requires_grad_() for n, s in shapes.items()}
    leaves, answers = [q, k, v, *given.values()], []
    for one in ("reference", form):
        with backend(one):
            y = shifted_window_attention(q, k, v, **options, **given)
        loss = (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()
        answers.append((y, *torch.autograd.grad(loss, leaves, materialize_grads=True)))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@each_form
def test_gradcheck(form: str):
    given = [m.detach()[:1, :2, :, :, :3].clone().requires_grad_() for m in make((4, 5))]
    given += [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 6, 6), (2, 3), (2, 3))]

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, pad_k: Tensor, pad_v: Tensor) -> Tensor:
        return shifted_window_attention(q, k, v, (2, 3), shift=(1, 1), bias=bias, pad_k=pad_k, pad_v=pad_v)

    with backend(form):
        assert torch.autograd.gradcheck(attend, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(attend, given, fast_mode=True)


def test_the_products_are_those_of_the_formula():
    def flops(side: int, shift: int) -> int:
        q = torch.empty(2, 3, side, side, 8, device="meta")
        return count_flops(lambda: shifted_window_attention(q, q, q, 7, shift=shift))

    for shift in (0, 3):
        assert (
            flops(14, shift)
            == op_cost("shifted_window_attention", grid=(14, 14), window=(7, 7), d=8, heads=3, batch=2).flops
        )
        assert flops(28, shift) == 4 * flops(14, shift)
    assert flops(13, 0) == flops(14, 0), "padding is computed with"


# Dtypes and tools


@each_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype, form: str):
    q, k, v = (m.detach().to(dtype) for m in make((9, 12)))
    with backend("reference"):
        full = shifted_window_attention(q.float(), k.float(), v.float(), 4, shift=2)
    with backend(form):
        y = shifted_window_attention(q, k, v, 4, shift=2)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), full, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("form", ["reference", *FORMS])
@pytest.mark.parametrize("window", [3, 5])
def test_heads_lie_behind_the_grid_in_memory(form: str, window: int):
    with backend(form):
        y = shifted_window_attention(*make((9, 12)), window)  # type: ignore[misc]
    assert y.movedim(1, -2).flatten(-2).data_ptr() == y.data_ptr(), "joining heads copies"


def test_compiles_as_one_graph():
    q, k, v = make((9, 10), dtype=torch.float32)
    bias = torch.randn(3, 12, 12, requires_grad=True)
    torch.compiler.reset()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return shifted_window_attention(q, k, v, (3, 4), shift=(1, 2), bias=bias)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    one, two = compiled(q, k, v), call(q, k, v)
    torch.testing.assert_close(one, two)
    for found, want in zip(*(torch.autograd.grad(y.sin().sum(), (q, k, v, bias)) for y in (one, two)), strict=True):
        torch.testing.assert_close(found, want)
    torch.compiler.reset()


def test_shapes_on_meta():
    q, k, v = (m.detach().to("meta") for m in make((4, 6, 7)))
    y = shifted_window_attention(q, k, v, (2, 3, 5), shift=1)
    assert y.is_meta
    assert y.shape == (2, 3, 4, 6, 7, 5)


def test_the_mask_is_there_only_where_something_is_hidden():
    assert window_mask(axes_of((9, 12), 4, 0, "blocks"), "blocks", "tokens") is None
    assert window_mask(axes_of((8, 12), 4, 0, "blocks"), "blocks", "masked") is None
    mask = window_mask(axes_of((8,), 4, 1, "blocks"), "blocks", "tokens")
    assert mask is not None
    assert mask[0].all()
    assert mask[1].tolist() == [[(i < 3 and j < 3) or i == j == 3 for j in range(4)] for i in range(4)]


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"window": 0}, InvalidValue, "window=0 is not possible: every axis needs at least 1"),
        ({"window": (3, 3, 3)}, InvalidValue, r"window=\(3, 3, 3\) has 3 entries.*here 2"),
        ({"window": 3.0}, InvalidType, r"window=3\.0.*whole number"),
        ({"window": True}, InvalidType, "window=True.*whole number"),
        ({"shift": 3}, InvalidValue, r"shift=3 is not possible.*below the window, \(3, 3\)"),
        ({"shift": (0, -1)}, InvalidValue, r"shift=\(0, -1\).*at least 0"),
        ({"shift": 1, "partition": "grid"}, InvalidValue, "shift=1 is not possible with partition='grid'"),
        ({"partition": "rows"}, InvalidValue, "partition='rows' is not possible: legal are blocks, grid"),
        ({"padding": "zeros"}, InvalidValue, "padding='zeros' is not possible: legal are tokens, masked"),
        (
            {"bias": torch.zeros(3, 9, 8)},
            InvalidValue,
            r"bias has shape \(3, 9, 8\): it must broadcast.* \(9, 3, 9, 9\)",
        ),
        ({"bias": torch.zeros(9, 9)}, InvalidValue, r"bias has shape \(9, 9\)"),
        (
            {"pad_k": torch.zeros(3, 5)},
            InvalidValue,
            r"pad_k has shape \(3, 5\): it must be \(heads, width\) = \(3, 6\)",
        ),
        ({"pad_v": torch.zeros(2, 5)}, InvalidValue, r"pad_v has shape \(2, 5\)"),
        ({"k": torch.zeros(2, 3, 8, 8, 6)}, InvalidValue, "agree in all but the width of v"),
        ({"q": torch.zeros(2, 3, 8, 9, 6).half()}, InvalidType, "share one floating dtype"),
        ({"q": torch.zeros(3, 8, 9)}, InvalidValue, r"\(batch, heads, \*grid, width\)"),
    ],
)
def test_refuses_what_does_not_fit(options: dict[str, Any], error: type[Exception], says: str):
    q, k, v = (m.detach().float() for m in make((8, 9)))
    with pytest.raises(error, match=says):
        shifted_window_attention(**{"q": q, "k": k, "v": v, "window": 3, **options})
