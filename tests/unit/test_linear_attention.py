"""The linear-attention op: fast form against its definition, known values, memory, messages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.measure.isolated import peak_bytes_of
from foveate.ops import backend, linear_attention_chunks, native
from foveate.ops.linear_attention import (
    build_slopes,
    layer_slopes,
    lightning_attention,
    lightning_state,
    lightning_step,
)
from foveate.ops.linear_attention_chunks import chunked_flops, chunks_per_piece

BLOCK = 64
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 150, 913)
SLOPES = (None, 0.0, 1e-6, 0.05, 2.0, 50.0)


@pytest.fixture(params=["torch", "native"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs with each of the fast forms."""
    if request.param == "native" and not native.AVAILABLE:
        pytest.skip("the native kernels are not built here")
    with backend(request.param):
        yield request.param


def inputs(
    n: int, *, batch: int = 2, heads: int = 3, d: int = 5, e: int = 7, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, n, d), (batch, heads, n, d), (batch, heads, n, e)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def slopes(scale: float | None, heads: int = 3, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return None if scale is None else (torch.linspace(1, 0.1, heads, dtype=dtype) * scale).requires_grad_()


def deviation(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.detach().double().abs().max())
    return float((found.detach().double() - expected.detach().double()).abs().max()) / (scale or 1.0)


def values_and_gradients(name: str, q: Tensor, k: Tensor, v: Tensor, slope: Tensor | None, **options) -> list[Tensor]:
    with backend(name):
        o, after = lightning_attention(q, k, v, slope, return_state=True, **options)
    generator = torch.Generator().manual_seed(9)
    weigh = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (o, after)]
    state = options.get("state")
    leaves = [q, k, v, *(t for t in (slope, state) if t is not None)]
    gradients = torch.autograd.grad((o * weigh[0]).sum() + (after * weigh[1]).sum(), leaves)
    return [o, after, *gradients]


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("slope", SLOPES)
def test_chunks_equal_the_definition_with_all_gradients(n: int, slope: float | None, form: str) -> None:
    q, k, v = inputs(n)
    for with_state, block in itertools.product((False, True), (BLOCK, 16)):
        state = torch.randn(2, 3, 5, 7, dtype=torch.float64).requires_grad_() if with_state else None
        found, expected = (
            values_and_gradients(name, q, k, v, slopes(slope), block=block, state=state) for name in (form, "reference")
        )
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert deviation(one, other) < 1e-8, (index, with_state, block)


@pytest.mark.parametrize("block", [1, 7, 40, 41, 1000])
def test_any_block_gives_the_same(block: int, form: str) -> None:
    q, k, v = inputs(40)
    found, expected = (values_and_gradients(b, q, k, v, slopes(0.3), block=block) for b in (form, "reference"))
    assert max(map(deviation, found, expected)) < 1e-9


@pytest.mark.parametrize("form", ["torch"], indirect=True)
@pytest.mark.parametrize("most", [1, 2, 3, 16])
@pytest.mark.parametrize("n", [16, 47, 48, 49, 160])
def test_any_number_of_chunks_in_a_piece_gives_the_same(n: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(n)
    state = torch.randn(2, 3, 5, 7, dtype=torch.float64).requires_grad_()
    segments = (torch.arange(n) >= 33).long().expand(2, -1)
    monkeypatch.setattr(linear_attention_chunks, "NUMBERS", most * 2 * 3 * 16 * 7)
    for marks in (None, segments):
        found, expected = (
            values_and_gradients(b, q, k, v, slopes(0.1), block=16, state=state, segments=marks)
            for b in ("torch", "reference")
        )
        assert max(map(deviation, found, expected)) < 1e-9


@pytest.mark.parametrize("form", ["torch"], indirect=True)
def test_pieces_fit_the_cache_and_are_constant_in_a_graph() -> None:
    sizes = [chunks_per_piece(batch, 8, 32, 16) for batch in (1, 2, 8, 32, 256)]
    assert sizes == [16, 16, 4, 1, 1]
    traced = torch.compile(lambda x: x * chunks_per_piece(256, 8, 32, 16), backend="eager", fullgraph=True)
    assert traced(torch.ones(())) == 16


@pytest.mark.parametrize("n", [1, 63, 65, 600])
def test_float32_is_near_float64(n: int, form: str) -> None:
    q, k, v = inputs(n)
    exact = values_and_gradients("reference", q, k, v, slopes(0.3))
    single = [t.detach().float().requires_grad_() for t in (q, k, v, slopes(0.3))]
    found = values_and_gradients(form, *single)
    assert max(map(deviation, found, exact)) < 1e-4
    assert all(t.dtype == torch.float32 for t in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    q, k, v = inputs(3000, batch=1, dtype=dtype)
    k = (k.detach().abs() / 30).requires_grad_()
    v = v.detach().abs().requires_grad_()  # sums grow: a state in half precision would stop growing
    o, state = lightning_attention(q, k, v, return_state=True)
    assert o.dtype == dtype
    assert state.dtype == torch.float32
    with backend("reference"):
        exact = lightning_attention(q.double(), k.double(), v.double(), return_state=True)[1]
    assert deviation(state, exact) < 1e-5
    assert torch.autograd.grad(o.float().sum(), q)[0].dtype == dtype


@pytest.mark.parametrize("runs", [[913], [1, 912], [64, 64, 785], [100, 1, 1, 500, 311]])
def test_segments_equal_documents_alone(runs: list[int], form: str) -> None:
    q, k, v = inputs(sum(runs), batch=1)
    segments = torch.repeat_interleave(torch.arange(len(runs)), torch.tensor(runs))[None]
    # The state belongs to the first run, and what is returned to the last one.
    state = torch.randn(1, 3, 5, 7, dtype=torch.float64).requires_grad_()
    slope = slopes(0.05)
    packed = values_and_gradients(form, q, k, v, slope, block=BLOCK, state=state, segments=segments)
    again = values_and_gradients("reference", q, k, v, slope, state=state, segments=segments)
    assert max(map(deviation, packed, again)) < 1e-9
    outputs, after = [], None
    for index, piece in enumerate(zip(*(t.split(runs, 2) for t in (q, k, v)), strict=True)):
        o, after = lightning_attention(*piece, slope, state=None if index else state, return_state=True)
        outputs.append(o)
    assert after is not None
    assert deviation(packed[0], torch.cat(outputs, 2)) < 1e-10
    assert deviation(packed[1], after) < 1e-10


def test_a_segment_number_that_comes_again_is_a_new_segment() -> None:
    q, k, v = inputs(30, batch=1)
    numbers = torch.tensor([0] * 10 + [1] * 10 + [0] * 10)[None]
    apart = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)[None]
    found, expected = (lightning_attention(q, k, v, slopes(0.1), segments=s) for s in (numbers, apart))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("cut", [1, 64, 500, 912])
def test_a_state_continues_a_sequence(cut: int) -> None:
    q, k, v = inputs(913)
    slope = slopes(0.02)
    whole, after = lightning_attention(q, k, v, slope, return_state=True)
    first, state = lightning_attention(*(t[:, :, :cut] for t in (q, k, v)), slope, return_state=True)
    second, last = lightning_attention(*(t[:, :, cut:] for t in (q, k, v)), slope, state=state, return_state=True)
    assert deviation(torch.cat([first, second], 2), whole) < 1e-10
    assert deviation(last, after) < 1e-10


def test_steps_are_the_recurrence() -> None:
    q, k, v = inputs(70)
    slope = slopes(0.3)
    whole, after = lightning_attention(q, k, v, slope, return_state=True)
    state, outputs = torch.zeros_like(after), []
    for t in range(70):
        o, state = lightning_step(q[:, :, t], k[:, :, t], v[:, :, t], slope, state)
        outputs.append(o)
    assert deviation(torch.stack(outputs, 2), whole) < 1e-10
    assert deviation(state, after) < 1e-10


def test_states_of_samples_of_different_length() -> None:
    q, k, v = inputs(50, batch=3)
    before, slope = torch.randn(3, 3, 5, 7, dtype=torch.float64), slopes(0.3)
    found = lightning_state(k, v, slope, torch.tensor([0, 17, 50]), before)
    assert deviation(found[0], before[0]) < 1e-12
    for sample, count in ((1, 17), (2, 50)):
        cut = [t[sample : sample + 1, :, :count] for t in (q, k, v)]
        _, expected = lightning_attention(*cut, slope, state=before[sample : sample + 1], return_state=True)
        assert deviation(found[sample], expected[0]) < 1e-10


def test_decay_between_neighbours_across_a_block_border() -> None:
    # Off by one between blocks is the classical fault: token B reads token B - 1 at weight exp(-2) exactly.
    n, slope = BLOCK + 1, torch.tensor([2.0])
    k = torch.zeros(1, 1, n, 1)
    k[..., BLOCK - 1, :] = 1
    o = lightning_attention(torch.ones(1, 1, n, 1), k, torch.ones(1, 1, n, 1), slope, block=BLOCK)
    assert float(o[0, 0, BLOCK, 0]) == pytest.approx(math.exp(-2), rel=1e-6)
    assert o[0, 0, : BLOCK - 1].abs().max() == 0


def test_steep_decays_neither_overflow_nor_lose_the_present() -> None:
    q, k, v = inputs(300)
    o = lightning_attention(q, k, v, torch.tensor([1e3, 1e30, 3e38], dtype=torch.float64))
    assert deviation(o, (q * k).sum(-1, keepdim=True) * v) < 1e-12


def test_without_decay_it_is_a_running_sum() -> None:
    q, k, v = inputs(200)
    sums = (k[..., :, None] * v[..., None, :]).cumsum(2)
    assert deviation(lightning_attention(q, k, v), torch.einsum("bhnd,bhnde->bhne", q, sums)) < 1e-10


def test_it_is_differentiable_twice() -> None:
    q, k, v = inputs(9, batch=1, heads=2, d=2, e=3)
    state = torch.randn(1, 2, 2, 3, dtype=torch.float64).requires_grad_()

    def call(q, k, v, slope, state):
        return lightning_attention(q, k, v, slope, block=4, state=state, return_state=True)

    given = (q, k, v, slopes(0.5, heads=2), state)
    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def test_autocast_does_not_reach_the_sums(form: str) -> None:
    q, k, v = inputs(100, dtype=torch.float32)
    plain = lightning_attention(q, k, v, slopes(0.1))
    for name in (form, "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16), backend(name):
            o = lightning_attention(q, k, v, slopes(0.1))
        assert o.dtype == torch.float32
        assert deviation(o, plain) < 1e-5


def test_memory_at_65536_tokens_is_below_a_gibibyte(form: str) -> None:
    # Heads of width 64, the wide reading of "width 64, 4 heads"; inputs, outputs and gradients are 512 MiB of it.
    setup = (
        "from foveate.ops import backend\n"
        "from foveate.ops.linear_attention import build_slopes, lightning_attention\n"
        "def train(n):\n"
        "    q, k, v = (torch.randn(1, 4, n, 64).requires_grad_() for _ in range(3))\n"
        f"    with backend({form!r}):\n"
        "        o = lightning_attention(q, k, v, build_slopes(4))\n"
        "        o.backward(torch.ones_like(o))\n"
        "train(64)"
    )
    assert peak_bytes_of("train(65_536)", setup) < 2**30


def test_flops_are_linear_and_those_counted() -> None:
    for n, stateful in itertools.product((1, 31, 32, 33, 64, 513, 1024, 1500), (False, True)):
        with torch.device("meta"), backend("torch"):
            q, k, v = (torch.empty(2, 3, n, width) for width in (5, 5, 7))
            state = torch.empty(2, 3, 5, 7) if stateful else None
            counted = count_flops(
                lambda q=q, k=k, v=v, state=state, stateful=stateful: lightning_attention(
                    q, k, v, block=32, state=state, return_state=stateful
                )
            )
        assert counted == chunked_flops(n, 3, 5, 7, 32, 2, stateful=stateful), (n, stateful)
    assert chunked_flops(2**20, 4, 64, 64, 64) / chunked_flops(2**14, 4, 64, 64, 64) == pytest.approx(64, rel=1e-2)


def test_slopes_are_the_published_ones() -> None:
    assert build_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert build_slopes(1).tolist() == [2.0**-8]
    # Not a power of two: those of 4 heads, then every second one of 8.
    assert build_slopes(6).tolist() == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert layer_slopes(4, 0, 3).tolist() == pytest.approx([s * (1 + 1e-5) for s in (0.25, 2**-4, 2**-6, 2**-8)])
    assert layer_slopes(4, 2, 3).tolist() == pytest.approx([s * 1e-5 for s in (0.25, 2**-4, 2**-6, 2**-8)])
    assert layer_slopes(4, 0, 1).tolist() == build_slopes(4).tolist()
    assert layer_slopes(4, 1, 2, "paper").tolist() == [1, 2, 3, 4]
    assert layer_slopes(4, 1, 2, "none").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"q": torch.zeros(2, 3, 4)}, InvalidValue, "q, k and v must have 4 axes"),
        ({"q": torch.zeros(2, 3, 4, 6)}, InvalidValue, r"q \(2, 3, 4, 6\), k \(2, 3, 4, 5\)"),
        ({"v": torch.zeros(2, 3, 5, 7)}, InvalidValue, r"v \(2, 3, 5, 7\)"),
        ({"v": torch.zeros(2, 3, 4, 7).double()}, InvalidType, "share one floating dtype, not torch.float32"),
        ({"slope": torch.zeros(2)}, InvalidValue, r"slope has shape \(2,\); one rate per head, \(3,\)"),
        ({"slope": torch.tensor([0.0, -1.0, 0.0])}, InvalidValue, r"slope=\[0.0, -1.0, 0.0\] is not possible"),
        ({"slope": torch.tensor([0.0, math.inf, 0.0])}, InvalidValue, "finite and not negative"),
        ({"slope": torch.tensor([0.0, math.nan, 0.0])}, InvalidValue, "finite and not negative"),
        ({"block": 0}, InvalidValue, "block=0 is not possible"),
        ({"state": torch.zeros(2, 3, 7, 5)}, InvalidValue, r"state has shape \(2, 3, 7, 5\); .* \(2, 3, 5, 7\)"),
        ({"segments": torch.zeros(2, 5).long()}, InvalidValue, r"segments have shape \(2, 5\); .* \(2, 4\)"),
        ({"segments": torch.zeros(2, 4)}, InvalidType, "segments must be int64, not torch.float32"),
    ],
)
def test_messages(change: dict, error: type[Exception], says: str) -> None:
    given = {"q": torch.zeros(2, 3, 4, 5), "k": torch.zeros(2, 3, 4, 5), "v": torch.zeros(2, 3, 4, 7)}
    with pytest.raises(error, match=says):
        lightning_attention(**{**given, **change})


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(InvalidValue, match="the sequence is empty"):
        lightning_attention(*(torch.zeros(2, 3, 0, 4) for _ in range(3)))


@pytest.mark.parametrize(("layer", "depth", "rule"), [(-1, 2, "official"), (2, 2, "official"), (0, 1, "fast")])
def test_slopes_that_do_not_exist(layer: int, depth: int, rule: str) -> None:
    with pytest.raises(InvalidValue, match="rule='fast'" if rule == "fast" else f"layer={layer}"):
        layer_slopes(4, layer, depth, rule)
