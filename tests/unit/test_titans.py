"""The neural memory of Titans: both forms against their definitions, framing, gates, errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import TokenLayout
from foveate.mixers.titans import NeuralMemory, TitansLMM
from foveate.mixers.titans.frame import Frame
from foveate.ops import backend
from foveate.ops.memory_updates import linear_scan, orthogonalise, soft_clamp
from foveate.ops.neural_memory import initial_weights, neural_memory, neural_memory_step
from foveate.ops.neural_memory_chunks import products, safe_log


def given(length: int, depth: int = 2, norm: bool = False, dim: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v, the gates, and weights, in double precision."""
    torch.manual_seed(length + depth)
    q, k = (F.normalize(torch.randn(2, 2, length, dim, dtype=torch.float64), dim=-1) for _ in range(2))
    gates = [torch.rand(2, 2, length, dtype=torch.float64) * most for most in (0.3, 1.0, 0.2)]
    widths = [dim, *[9] * (depth - 1), dim]
    weights = [torch.randn(2, a, b, dtype=torch.float64) / a**0.5 for a, b in itertools.pairwise(widths)]
    weights += [0.1 * torch.randn(2, dim, dtype=torch.float64)] * norm
    return [q, k, torch.randn(2, 2, length, dim, dtype=torch.float64), *gates], weights


@pytest.mark.parametrize("loss", ["sum", "mean"])
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize(("depth", "norm"), [(1, False), (2, True), (3, False), (4, True)])
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (3, 4), (13, 4), (13, 1)])
def test_chunks_are_the_recurrence(length: int, chunk: int, depth: int, norm: bool, momentum: bool, loss: Any) -> None:
    inputs, weights = given(length, depth, norm)
    leaves = [t.requires_grad_() for t in (*inputs, *weights)]
    found = []
    for form in ("reference", "torch"):
        q, k, v, forget, eta, step, *start = leaves
        with backend(form):
            y, state = neural_memory(
                q, k, v, forget, eta if momentum else None, step, start,
                chunk=chunk, norm=norm, loss=loss, largest=0.7, return_state=True,
            )  # fmt: skip
        assert isinstance(y, Tensor)
        flat = [t for part in state if part is not None for t in part]
        by = [t for t in leaves if momentum or t is not eta]
        found.append([y, *flat, *torch.autograd.grad(y.pow(3).sum() + sum(t.square().sum() for t in flat), by)])
    for ours, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("momentum", [True, False])
def test_steps_and_pieces_are_one_call(momentum: bool) -> None:
    (q, k, v, forget, eta, step), weights = given(11)
    expected = neural_memory(q, k, v, forget, eta if momentum else None, step, weights, chunk=4)
    assert isinstance(expected, Tensor)
    start = initial_weights(weights, 2, torch.float64)
    state: Any = (start, tuple(map(torch.zeros_like, start)) if momentum else None, start)
    for t in range(11):
        alpha, theta = forget[:, :, t], step[:, :, t]
        at = eta[:, :, t] if momentum else None
        ends = torch.full((2,), t % 4 == 3)
        y, state = neural_memory_step(q[:, :, t], k[:, :, t], v[:, :, t], alpha, at, theta, state, ends)
        torch.testing.assert_close(y, expected[:, :, t])


def test_without_queries_only_the_state_is_made() -> None:
    (q, k, v, forget, eta, step), weights = given(7)
    y, state = neural_memory(None, k, v, forget, eta, step, weights, chunk=4, return_state=True)
    assert y is None
    wanted = neural_memory(q, k, v, forget, eta, step, weights, chunk=4, return_state=True)[1]
    torch.testing.assert_close(state, wanted)


def test_gates_at_their_limits_give_numbers_and_gradients() -> None:
    (q, k, v, forget, eta, step), weights = given(8)
    for alpha, momentum in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        edge = [torch.full_like(forget, alpha).requires_grad_(), torch.full_like(eta, momentum).requires_grad_()]
        y = neural_memory(q, k, v, edge[0], edge[1], step, weights, chunk=4)
        assert isinstance(y, Tensor)
        assert y.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), edge))


def test_products_of_many_small_factors_do_not_underflow_into_nan() -> None:
    log = safe_log(torch.tensor([1e-30] * 20 + [0.0] + [0.5] * 3))
    found = products(log)
    assert found.isfinite().all()
    torch.testing.assert_close(found[-1, 20:], torch.tensor([0.125, 0.25, 0.5, 1.0]))
    assert found[-1, 0] == 0


def test_the_bound_on_gradients() -> None:
    (q, k, v, forget, _, step), weights = given(1, depth=1)
    zero = torch.zeros_like(forget)
    for largest in (1e-3, 1.0, 1e6):
        state = neural_memory(
            q, k, 100 * v, zero, None, torch.ones_like(step), weights, largest=largest, return_state=True
        )[1]
        moved = (state[0][0] - weights[0]).flatten(2).norm(dim=-1)
        full = 2 * ((k @ weights[0]) - 100 * v).norm(dim=-1)[..., 0]
        torch.testing.assert_close(moved, full / (1 + (full / largest) ** 2).sqrt())


@pytest.mark.parametrize("length", [1, 16, 17, 50])
def test_scan_over_chunks(length: int) -> None:
    torch.manual_seed(length)
    factors, x, y = torch.rand(3, length), torch.randn(3, length, 2, 4), torch.randn(3, 2, 4)
    found = linear_scan(factors, x, y)
    for c in range(length):
        y = factors[:, c, None, None] * y + x[:, c]
        torch.testing.assert_close(found[:, c], y, rtol=1e-5, atol=1e-5)


def test_clamp_and_orthogonalise() -> None:
    torch.manual_seed(0)
    sizes = soft_clamp(torch.randn(2, 5, 3, 4) * torch.logspace(-3, 3, 5).view(1, 5, 1, 1), 2.0).flatten(2).norm(dim=-1)
    assert bool((sizes >= 1.0 - 1e-5).all())
    assert bool((sizes <= 2.0 + 1e-5).all())
    assert bool((soft_clamp(torch.zeros(1, 1, 3), 2.0) == 0).all())
    found = orthogonalise(torch.randn(2, 5, 7, 4))
    values = torch.linalg.svdvals(found)
    assert 0.4 < float(values.min()) <= float(values.max()) < 1.4
    vector = torch.randn(2, 5, 7)
    assert orthogonalise(vector) is vector


# Frames -------------------------------------------------------------------------------------------------------------


def test_a_frame_begins_documents_at_borders() -> None:
    segments = torch.tensor([[5, 5, 5, 5, 5, 2, 2, 5], [0, 0, 1, 1, 1, 1, 7, 7]])
    real = torch.tensor([[True] * 8, [True] * 7 + [False]])
    frame = Frame.of(real, 4, segments=segments)
    assert frame.slots[0].tolist() == [0, 1, 2, 3, 4, 8, 9, 12]
    assert frame.slots[1].tolist() == [0, 1, 4, 5, 6, 7, 8, frame.size]
    assert frame.size == 16
    assert frame.starts is not None
    assert frame.starts.tolist() == [[False, False, True, True], [False, True, True, False]]
    x = torch.randn(2, 8, 3)
    torch.testing.assert_close(frame.take(frame.place(x))[real], x[real])
    assert int(frame.valid.sum()) == 15


def test_a_frame_goes_on_inside_a_chunk() -> None:
    frame = Frame.of(torch.ones(2, 3, dtype=torch.bool), 4, phase=torch.tensor([0, 3]))
    assert frame.slots.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert frame.size == 8


# Mixers -------------------------------------------------------------------------------------------------------------

MIXERS: dict[str, Callable[..., Any]] = {
    "lmm": TitansLMM,
    "pytorch": NeuralMemory,
    "pytorch, re-based": lambda dim, **o: NeuralMemory(dim, chunk=4, rebase=8, max_lr=0.1, **o),
}


@pytest.mark.parametrize("name", MIXERS)
def test_three_packed_documents(name: str) -> None:
    torch.manual_seed(0)
    mixer, lengths = MIXERS[name](16, num_heads=2), (5, 21, 14)
    x = torch.randn(2, sum(lengths), 16)
    segments = torch.repeat_interleave(torch.tensor([3, 1, 3]), torch.tensor(lengths)).expand(2, -1)
    y = mixer(x, layout=TokenLayout((x.shape[1],), segments=segments))
    alone = torch.cat([mixer(part) for part in x.split(lengths, 1)], 1)
    torch.testing.assert_close(y, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXERS)
def test_masked_pieces_of_a_stream(name: str) -> None:
    torch.manual_seed(0)
    mixer, x = MIXERS[name](16, num_heads=2), torch.randn(2, 40, 16)
    mask = torch.rand(2, 40) < 0.7
    mask[1, 10:20] = False  # a piece without tokens
    expected, state, found = mixer(x, mask=mask), mixer.init_state(2), []
    for piece, real in zip(x.split(10, 1), mask.split(10, 1), strict=True):
        y, state = mixer.prefill(piece, state, real)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-5)
    assert state.count.tolist() == mask.sum(1).tolist()


def test_store_and_retrieve_are_the_halves_of_prefill() -> None:
    torch.manual_seed(0)
    mixer, x = TitansLMM(16, num_heads=2, conv=0), torch.randn(2, 21, 16)
    y, after = mixer.prefill(x, mixer.init_state(2))
    stored = mixer.store(x, mixer.init_state(2))
    for ours, wanted in zip(tree_leaves(stored), tree_leaves(after), strict=True):
        torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(mixer.retrieve(x[:, -1:], stored)[:, 0], y[:, -1])


def test_a_memory_shorter_than_a_chunk_is_its_start() -> None:
    mixer, x = NeuralMemory(16, num_heads=2, chunk=8), torch.randn(1, 7, 16)
    state = mixer.prefill(x, mixer.init_state(1))[1]
    torch.testing.assert_close(state.memory, mixer.init_state(1).memory)


def test_detached_states_stop_gradients() -> None:
    mixer = TitansLMM(8, num_heads=1)
    state = mixer.prefill(torch.randn(1, 20, 8), mixer.init_state(1))[1]
    assert state.memory[0].requires_grad
    assert not state.detach().memory[0].requires_grad


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TitansLMM(16, chunk=0), "chunk=0"),
        (lambda: TitansLMM(16, depth=0), "depth=0"),
        (lambda: TitansLMM(16, conv=-1), "conv=-1"),
        (lambda: TitansLMM(16, max_lr=0), "max_lr=0"),
        (lambda: TitansLMM(16, max_grad=-1.0), "max_grad=-1.0"),
        (lambda: TitansLMM(16, expansion=0.1), "expansion=0.1"),
        (lambda: NeuralMemory(16, num_heads=1, head_dim=8), "head_dim=8"),
        (lambda: NeuralMemory(16, chunk=4, rebase=6), "rebase=6 is not possible: a multiple of chunk=4"),
        (lambda: NeuralMemory(16, extras={"learned_momentum_combine": True}), "learned_momentum_combine=True"),
        (lambda: NeuralMemory(16, chunk=1, extras={"attn_pool_chunks": True}), "attn_pool_chunks=True"),
        (lambda: NeuralMemory(16, extras={"max_grad_norm": 0.0}), "max_grad_norm=0.0"),
    ],
)
def test_illegal_options(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        make()


def test_an_unknown_extra() -> None:
    with pytest.raises(InvalidType, match=r"extras has no momentum_orders: legal are momentum_order,"):
        NeuralMemory(16, extras={"momentum_orders": 2})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": torch.zeros(2, 2, 3)}, "k has shape"),
        ({"v": torch.zeros(2, 2, 7, 5)}, "v has shape"),
        ({"step": torch.zeros(2, 7)}, "step has shape"),
        ({"chunk": 0}, "chunk=0"),
        ({"q": None}, "q=None is not possible without return_state"),
        ({"loss": "max"}, "loss='max'"),
        ({"largest": 0.0}, "largest=0.0"),
        ({"weights": [torch.zeros(2, 6, 5)]}, "weights have the shapes"),
    ],
)
def test_the_op_refuses_what_does_not_fit(change: dict[str, Any], says: str) -> None:
    (q, k, v, forget, eta, step), weights = given(7)
    call = {"q": q, "k": k, "v": v, "forget": forget, "momentum": eta, "step": step, "weights": weights, **change}
    with pytest.raises(InvalidValue, match=says):
        neural_memory(**call)


def test_a_state_of_another_memory() -> None:
    mixer, x = TitansLMM(16, num_heads=2, conv=0), torch.randn(1, 5, 16)
    with pytest.raises(InvalidValue, match="memory of the state has 3 parts"):
        mixer.prefill(x, TitansLMM(16, num_heads=2, depth=3, conv=0).init_state(1))
    with pytest.raises(
        InvalidValue, match=r"memory of the state has shape \(1, 2, 8, 32\); it must be \(1, 2, 8, 16\)"
    ):
        mixer.prefill(x, TitansLMM(16, num_heads=2, expansion=4.0, conv=0).init_state(1))
    with pytest.raises(InvalidValue, match="TitansLMM: the state has no momentum; this mixer needs one with"):
        mixer.prefill(x, TitansLMM(16, num_heads=2, momentum=False, conv=0).init_state(1))
    with pytest.raises(InvalidValue, match="NeuralMemory: the state has momentum; this mixer needs one without"):
        NeuralMemory(16, num_heads=2, momentum=False).step(x[:, 0], NeuralMemory(16, num_heads=2).init_state(1))
