"""Sliding-window attention: blocks against the definition, sinks, documents, streams, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.mixers import TokenLayout
from foveate.mixers.window_attention import WindowAttention
from foveate.ops import backend
from foveate.ops.window_attention import window_attention, window_flops


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def qkv(length: int, keys: int | None = None, batch: int = 2) -> list[Tensor]:
    sizes = ((length, 6), (keys or length, 6), (keys or length, 5))
    return [torch.randn(batch, 3, n, width, dtype=torch.float64) for n, width in sizes]


@pytest.mark.parametrize("window", [1, 4, 7, 100])
@pytest.mark.parametrize(("length", "keys"), [(1, 1), (1, 9), (4, 4), (29, 29), (28, 31), (20, 26), (20, 60), (3, 5)])
@pytest.mark.parametrize("extras", ["plain", "sinks", "segments", "both"])
def test_blocks_equal_the_definition_with_gradients(length: int, keys: int, window: int, extras: str) -> None:
    tensors, segments = [x.requires_grad_() for x in qkv(length, keys)], None
    options = {}
    if extras in ("sinks", "both"):
        options = {"sink_k": torch.randn(3, 2, 6).double(), "sink_v": torch.randn(3, 2, 5).double()}
        tensors += [x.requires_grad_() for x in options.values()]
    if extras in ("segments", "both"):
        segments = torch.stack([(torch.arange(keys) > keys // 2).long(), (torch.arange(keys) > 2).long() - 1])
    answers = []
    for form in ("reference", "torch"):
        with backend(form):
            o = window_attention(*tensors[:3], window, segments=segments, **options)
        answers.append((o, *torch.autograd.grad((o * torch.arange(5)).sin().sum(), tensors)))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_gradients_are_those_of_finite_differences() -> None:
    given = [x[:1].requires_grad_() for x in qkv(9)]
    assert torch.autograd.gradcheck(lambda *x: window_attention(*x, 3), given)


@pytest.mark.parametrize(("length", "keys", "window"), [(64, 64, 16), (60, 75, 16), (60, 200, 16), (9, 9, 16)])
def test_flops_are_those_of_the_blocks(length: int, keys: int, window: int) -> None:
    with torch.device("meta"), backend("torch"):
        q, k, v = (x.float() for x in qkv(length, keys))
        sinks = {"sink_k": torch.empty(3, 4, 6), "sink_v": torch.empty(3, 4, 5)}
        found = count_flops(lambda: window_attention(q, k, v, window, **sinks))
    assert found == window_flops(length, keys, window, 4, 3, 6, 5, 2)


def test_packed_documents_are_those_alone_with_sinks_and_masks() -> None:
    mixer, x = WindowAttention(16, num_heads=2, window=5, num_sinks=3), torch.randn(2, 40, 16)
    segments = torch.tensor([0] * 7 + [1] * 20 + [0] * 13).expand(2, -1)  # a number that comes again is another one
    mask = torch.rand(2, 40) < 0.7
    y = mixer(x, mask=mask, layout=TokenLayout((40,), segments=segments))
    for b in range(2):
        for part in (slice(0, 7), slice(7, 27), slice(27, 40)):
            real = mask[b, part]
            alone = mixer(x[b : b + 1, part][:, real])
            torch.testing.assert_close(y[b : b + 1, part][:, real], alone, rtol=1e-4, atol=1e-6)
    assert (y[~mask] == 0).all()


def test_sinks_are_seen_from_everywhere_and_have_no_position() -> None:
    mixer, x = WindowAttention(16, num_heads=2, window=4, num_sinks=2), torch.randn(1, 4, 16).repeat(1, 50, 1)
    y = mixer(x)  # the same four tokens over and over: the same windows over and over
    torch.testing.assert_close(y[:, 100:104], y[:, 196:200], rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(y[:, -1].sum(), mixer.sinks)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"num_sinks": 2}, {"window": 1}, {"position": "none"}, {"window": 64}])
def test_a_stream_with_masks_of_any_split_equals_forward(options: dict) -> None:
    mixer = WindowAttention(16, num_heads=2, **{"window": 6, **options}).double().eval()
    x, mask = torch.randn(3, 50, 16).double(), torch.rand(3, 50) < 0.6
    mask[0, :20], mask[1, 10:30], mask[:, 40:] = False, False, True
    with torch.no_grad():
        expected = mixer(x, mask=mask)
        for pieces in ([50], [1, 2, 3, 34, 10], [20, 20, 1, 9], [40, *[-1] * 10]):
            state, outputs, at = mixer.init_state(3), [], 0
            for piece in pieces:
                if piece < 0:
                    y, state = mixer.step(x[:, at], state)
                    y = y[:, None]
                elif at >= 40:  # no mask at all after pieces with one
                    y, state = mixer.prefill(x[:, at : at + piece], state)
                else:
                    y, state = mixer.prefill(x[:, at : at + piece], state, mask[:, at : at + piece])
                outputs.append(y)
                at += abs(piece)
            torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-4, atol=1e-6)  # float32 angles


def test_a_state_holds_one_window_whatever_was_read() -> None:
    mixer = WindowAttention(16, num_heads=2, window=8)
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(1, 1000, 16), mixer.init_state(1))
    assert state.keys.shape == (1, 2, 7, 8)
    assert state.keys.untyped_storage().nbytes() == state.keys.nbytes, "a view would keep all 1,000"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 0}, "window=0"),
        ({"num_sinks": -1}, "num_sinks=-1"),
        ({"position": "alibi"}, "position='alibi'"),
        ({"num_heads": 16}, "RoPE turns channel pairs"),
        ({"num_heads": 8, "num_sinks": 1}, "half of it with sinks"),
        ({"rope_base": 0.0}, "rope_base=0.0"),
        ({"causal": False}, "causal=False"),
    ],
)
def test_illegal_options(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        WindowAttention(16, **options)


def test_illegal_tensors() -> None:
    q, k, v = qkv(5)
    for given, says in (
        (lambda: window_attention(q[0], k, v, 2), "4 axes"),
        (lambda: window_attention(q[:1], k, v, 2), "agree in batch"),
        (lambda: window_attention(q, k[:, :, :3], v[:, :, :3], 2), "last of the keys"),
        (lambda: window_attention(q, k, v, 0), "window=0"),
        (lambda: window_attention(q, k, v, 2, sink_k=k[0]), "come together"),
        (lambda: window_attention(q, k, v, 2, sink_k=k[0, :2], sink_v=v[0, :2]), "sink_k has shape"),
        (lambda: window_attention(q, k, v, 2, segments=torch.zeros(2, 4).long()), "segments have shape"),
    ):
        with pytest.raises(InvalidValue, match=says):
            given()
    with pytest.raises(InvalidType, match="one floating dtype"):
        window_attention(q.float(), k, v, 2)
    with pytest.raises(InvalidType, match="segments must be int64"):
        window_attention(q, k, v, 2, segments=torch.zeros(2, 5))


def test_states_of_others_are_refused() -> None:
    mixer, x = WindowAttention(16, num_heads=2, window=8), torch.randn(2, 20, 16)
    wider = WindowAttention(16, num_heads=2, window=12)
    for other in (
        wider.prefill(x, wider.init_state(2))[1],
        WindowAttention(16, num_heads=4, window=8).init_state(2),
        mixer.init_state(3),
    ):
        with pytest.raises(InvalidValue, match="WindowAttention: keys of the state has"):
            mixer.step(x[:, 0], other)
