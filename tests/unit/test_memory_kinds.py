"""The networks of titans-pytorch's memories: gradients by hand, and memories that ask other layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidValue
from foveate.mixers.titans import NeuralMemory
from foveate.models.language.titans import TitansTransformer
from foveate.ops.memory_kinds import KINDS, Kind, matrices, network


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_hand_are_autograd_s(kind: Kind, norm: bool) -> None:
    net = network(kind, 6, 2, 1.5, 4, 8.0, norm)
    weights = [torch.randn(3, *shape, dtype=torch.float64).requires_grad_() for shape in net.shapes]
    x, target = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    step = torch.rand(3, 8, 1, dtype=torch.float64)
    y, back = net.run(weights, x, 4)
    expected = torch.autograd.grad((step * (y - target).square()).sum(), weights, retain_graph=True)
    pairs = back(2 * step * (y - target))
    assert len(pairs) == len(weights) == len(net.names)
    assert len(matrices(net)) == sum(given is not None for given, _ in pairs)
    for (given, delta), wanted in zip(pairs, expected, strict=True):
        found = delta.sum(1) if given is None else given.mT @ delta
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_given_apart_do_not_meet(kind: Kind) -> None:
    net = network(kind, 6, 2, 1.5, 4, 8.0, True)
    weights, x = [torch.randn(2, *shape) for shape in net.shapes], torch.randn(2, 9, 6)
    y = net.run(weights, x, 3)[0]
    torch.testing.assert_close(net.run(weights, x[:, 3:6], 3)[0], y[:, 3:6], rtol=1e-4, atol=1e-5)
    alone = net.run(weights, x, 1)[0]
    assert torch.allclose(alone, y, rtol=1e-4, atol=1e-5) != net.mixes


def memory_of(**options: Any) -> NeuralMemory:
    memory = NeuralMemory(8, **{"num_heads": 2, "chunk": 3, "expansion": 2.0, **options}).double()
    for weight in memory.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return memory


def stream(memory: NeuralMemory, x: Tensor, other: tuple[Tensor, ...] | None, pieces: list[int]) -> Tensor:
    state, outputs, at = memory.init_state(len(x)), [], 0
    for piece in x.split(pieces, 1):
        # Weights of the other memory before the chunks that this piece touches.
        first, last = at // memory.chunk, -(-(at + piece.shape[1]) // memory.chunk)
        spare = -(-(piece.shape[1] + memory.chunk - 1) // memory.chunk) - (last - first)
        given = None if other is None else tuple(torch.cat([w[:, first:last], w[:, :spare]], 1) for w in other)
        y, state, _ = memory.read_views(piece, state, given)
        outputs.append(y)
        at += piece.shape[1]
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("options", [{}, {"rebase": 6}, {"network": "attention"}], ids=str)
def test_a_memory_that_asks_others_streams(options: dict[str, Any]) -> None:
    first = memory_of(**options)
    memory = memory_of(**options, extras={"accept_weight_residual": True, "qkv_receives_diff_views": True})
    x, views = torch.randn(2, 13, 8, dtype=torch.float64), torch.randn(2, 13, 24, dtype=torch.float64)
    with torch.no_grad():
        other = first.read_views(x)[2]
        assert other[0].shape[1] == 5
        expected = memory.read_views(views, None, other)[0]
        for pieces in ([13], [4, 1, 8], [1] * 13):
            torch.testing.assert_close(stream(memory, views, other, pieces), expected)
        changed = memory.read_views(views, None, tuple(w + 1 for w in other))[0]
    assert torch.equal(changed[:, :2], expected[:, :2])
    assert not torch.allclose(changed[:, 3:], expected[:, 3:])


def test_the_same_view_three_times_is_the_token() -> None:
    plain, views = memory_of(), memory_of(extras={"qkv_receives_diff_views": True})
    views.load_state_dict(plain.state_dict())
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(views(x), plain(x))
    torch.testing.assert_close(views.prefill(x, views.init_state(2))[0], plain(x))
    assert views.init_state(2).pending.shape == (2, 2, 24)


def test_what_others_say_is_asked_for() -> None:
    memory, x = memory_of(extras={"accept_weight_residual": True}), torch.randn(2, 6, 8, dtype=torch.float64)
    with pytest.raises(InvalidValue, match="NeuralMemory needs the weights of the memory before it"):
        memory(x)
    with pytest.raises(InvalidValue, match="NeuralMemory takes no weights of the memory before it"):
        memory_of().read_views(x, None, memory_of().read_views(x)[2])
    with pytest.raises(InvalidValue, match=r"x has shape \(2, 6, 8\); \(batch, length, 24\) is needed"):
        memory_of(extras={"qkv_receives_diff_views": True}).read_views(x)
    with pytest.raises(InvalidValue, match="network='lstm' is not possible: it must be one of mlp, factorized"):
        memory_of(network="lstm")
    with pytest.raises(InvalidValue, match="scale=0 is not possible"):
        memory_of(network="attention", scale=0)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_transformer_whose_memories_ask_each_other_streams(streams: int) -> None:
    model = TitansTransformer(
        vocabulary=11,
        dim=8,
        depth=3,
        num_heads=2,
        head_dim=4,
        segment=4,
        num_longterm=1,
        memory_chunk=3,
        memory={"network": "attention"},
        weight_residual=True,
        choose_views=True,
        streams=streams,
    ).double()
    tokens = torch.randint(11, (2, 15))
    with torch.no_grad():
        expected = model(tokens)
        for pieces in ([6, 1, 8], [1] * 15):
            state, outputs = model.init_state(2), []
            for piece in tokens.split(pieces, 1):
                logits, state = model.prefill(piece, state)
                outputs.append(logits)
            torch.testing.assert_close(torch.cat(outputs, 1), expected)
