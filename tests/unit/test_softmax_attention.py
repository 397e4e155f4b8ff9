"""Softmax attention: the op against its definition, positions against known values, the mixer's cache."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.measure.memory import saved_bytes
from foveate.mixers import TokenLayout
from foveate.mixers.kv_cache import KVCache, capacity
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.ops import backend
from foveate.ops.positions import alibi_bias, alibi_slopes, apply_rope
from foveate.ops.softmax_attention import softmax_attention


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def deviation(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.detach().double().abs().max())
    return float((found.detach().double() - expected.detach().double()).abs().max()) / (scale or 1.0)


# The op ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "keys"), [(1, 1), (1, 9), (7, 7), (5, 33), (130, 130), (64, 200)])
@pytest.mark.parametrize("width", [1, 5, 64, 300])
def test_fast_form_equals_the_definition_with_gradients(length: int, keys: int, width: int) -> None:
    q, k, v = (draw(2, 3, n, width, seed=i).requires_grad_() for i, n in enumerate((length, keys, keys)))
    some_keys = draw(2, keys, seed=4) > -0.5
    some_pairs = draw(2, 1, length, keys, seed=5) > 0
    bias = draw(1, 3, length, keys, seed=6)
    for causal, mask, b in itertools.product((False, True), (None, some_keys, some_pairs), (None, bias)):
        results = []
        for name in ("torch", "reference"):
            with backend(name):
                o = softmax_attention(q, k, v, causal=causal, mask=mask, bias=b)
            results.append((o, *torch.autograd.grad((o * draw(*o.shape, seed=7)).sum(), (q, k, v))))
        for found, expected in zip(*results, strict=True):
            assert deviation(found, expected) < 1e-4, (causal, mask is None, b is None)


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_a_query_without_keys_gives_zeros_and_no_nan_gradients(name: str) -> None:
    q, k, v = (draw(2, 2, 6, 4, seed=i).requires_grad_() for i in range(3))
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :3], mask[1] = False, False
    for bias in (None, draw(1, 2, 6, 6)):
        with backend(name):
            o = softmax_attention(q, k, v, causal=True, mask=mask, bias=bias)
        assert (o[0, :, :3] == 0).all()
        assert (o[1] == 0).all()
        assert (o[0, :, 3:] != 0).all()
        gradients = torch.autograd.grad(o.square().sum(), (q, k, v))
        assert all(g.isfinite().all() for g in gradients)
        assert all((g[1] == 0).all() for g in gradients)


def test_fewer_queries_than_keys_are_the_last() -> None:
    q, k, v = (draw(1, 2, 20, 8, seed=i) for i in range(3))
    whole = softmax_attention(q, k, v, causal=True)
    for count in (1, 2, 19):
        assert deviation(softmax_attention(q[:, :, -count:], k, v, causal=True), whole[:, :, -count:]) < 1e-6


def test_known_values() -> None:
    k = torch.tensor([[0.0], [math.log(3.0)]])[None, None]
    v = torch.tensor([[1.0], [5.0]])[None, None]
    assert softmax_attention(torch.ones(1, 1, 1, 1), k, v).item() == pytest.approx(0.25 + 0.75 * 5)
    assert softmax_attention(torch.ones(1, 1, 1, 1), k, v, scale=0.0).item() == pytest.approx(3.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    q, k, v = (draw(2, 3, 50, 16, seed=i).to(dtype) for i in range(3))
    o = softmax_attention(q, k, v, causal=True, bias=draw(1, 3, 50, 50))
    assert o.dtype == dtype
    with backend("reference"):
        exact = softmax_attention(q.float(), k.float(), v.float(), causal=True, bias=draw(1, 3, 50, 50))
    assert deviation(o, exact) < 2e-2


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"q": torch.zeros(2, 3, 8)}, InvalidValue, "q, k and v must have 4 axes"),
        ({"k": torch.zeros(2, 3, 6, 7)}, InvalidValue, "must agree in batch and heads"),
        ({"v": torch.zeros(2, 3, 5, 8)}, InvalidValue, "k and v in length"),
        ({"k": torch.zeros(2, 3, 0, 8), "v": torch.zeros(2, 3, 0, 8)}, InvalidValue, "a sequence is empty"),
        ({"v": torch.zeros(2, 3, 6, 8).double()}, InvalidType, "share one floating dtype"),
        ({"q": torch.zeros(2, 3, 7, 8), "causal": True}, InvalidValue, "causal=True .* more queries than keys"),
        ({"mask": torch.zeros(2, 6)}, InvalidType, r"mask must be bool \(True = visible\), not torch.float32"),
        ({"mask": torch.zeros(3, 6).bool()}, InvalidValue, r"mask has shape \(3, 6\); for keys \(2, 6\)"),
        ({"mask": torch.zeros(2, 1, 3, 6).bool()}, InvalidValue, r"must broadcast to \(2, 3, 4, 6\)"),
        ({"bias": torch.zeros(4, 6)}, InvalidValue, r"bias has shape \(4, 6\); it must broadcast"),
    ],
)
def test_messages_of_the_op(change: dict, error: type[Exception], says: str) -> None:
    given = {"q": torch.zeros(2, 3, 4, 8), "k": torch.zeros(2, 3, 6, 8), "v": torch.zeros(2, 3, 6, 8)}
    with pytest.raises(error, match=says):
        softmax_attention(**{**given, **change})


# Positions ------------------------------------------------------------------------------------------------------------


def test_rope_is_a_complex_rotation() -> None:
    x, positions = draw(2, 3, 11, 8, dtype=torch.float64), torch.arange(11) * 7
    frequencies = 500.0 ** (-2 * torch.arange(4, dtype=torch.float64) / 8)
    turn = torch.polar(torch.ones(11, 4, dtype=torch.float64), positions[:, None] * frequencies)
    pairs = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()) * turn).flatten(-2)
    assert deviation(apply_rope(x, positions, 500.0, interleaved=True), pairs) < 1e-6
    halves = torch.view_as_real(torch.complex(x[..., :4], x[..., 4:]) * turn)
    assert deviation(apply_rope(x, positions, 500.0), torch.cat(halves.unbind(-1), -1)) < 1e-6


def test_rope_products_depend_on_distance_only() -> None:
    q, k = draw(1, 1, 1, 16, dtype=torch.float64), draw(1, 1, 1, 16, seed=1, dtype=torch.float64)

    def product(t: int, j: int) -> float:
        return float((apply_rope(q, torch.tensor([t])) * apply_rope(k, torch.tensor([j]))).sum())

    assert product(5, 3) == pytest.approx(product(105, 103), abs=1e-4)
    assert abs(product(5, 3) - product(5, 4)) > 1e-2


def test_rope_positions_may_differ_between_samples() -> None:
    x, positions = draw(2, 3, 4, 8), torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])
    turned = apply_rope(x, positions)
    for sample in (0, 1):
        alone = apply_rope(x[sample : sample + 1], positions[sample])
        assert torch.equal(turned[sample : sample + 1], alone)


@pytest.mark.parametrize(
    ("width", "positions", "base", "error", "says"),
    [
        (7, torch.arange(4), 10.0, InvalidValue, "head_dim=7 is not possible"),
        (8, torch.arange(4), 0.0, InvalidValue, "base=0.0 is not possible"),
        (8, torch.arange(5), 10.0, InvalidValue, r"positions have shape \(5,\); \(4,\) or \(2, 4\) is legal"),
        (8, torch.arange(4.0), 10.0, InvalidType, "positions must be int64, not torch.float32"),
    ],
)
def test_messages_of_rope(width: int, positions: Tensor, base: float, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        apply_rope(torch.zeros(2, 1, 4, width), positions, base)


def test_alibi_is_minus_slope_times_distance_for_all_samples_at_once() -> None:
    bias = alibi_bias(alibi_slopes(2), torch.tensor([3, 4]), torch.arange(5))
    assert bias.shape == (1, 2, 2, 5)
    assert bias[0, 0].tolist() == [[-3 / 16, -2 / 16, -1 / 16, 0, -1 / 16], [-4 / 16, -3 / 16, -2 / 16, -1 / 16, 0]]
    assert bias[0, 1, 0, 0] == -3 / 256
    assert alibi_bias(alibi_slopes(2), torch.zeros(3, 4).long(), torch.zeros(3, 5).long()).shape == (3, 2, 4, 5)
    with pytest.raises(InvalidValue, match="heads=0 is not possible"):
        alibi_slopes(0)


# The mixer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_pytorchs_multi_head_attention(causal: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = SoftmaxAttention(24, num_heads=3, causal=causal), nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in (ours.q_proj, ours.k_proj, ours.v_proj)]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in (ours.q_proj, ours.k_proj, ours.v_proj)]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x, mask = draw(2, 30, 24), torch.arange(30) < torch.tensor([[30], [21]])
    later = torch.ones(30, 30, dtype=torch.bool).triu(1) if causal else None
    expected = theirs(x, x, x, key_padding_mask=~mask, attn_mask=later, need_weights=False)[0]
    assert deviation(ours(x, mask=mask), expected * mask[..., None]) < 1e-5


@pytest.mark.parametrize("position", ["none", "rope", "alibi"])
@pytest.mark.parametrize("where", ["left", "right", "inside"])
def test_padding_anywhere_is_a_shorter_sequence_also_in_a_stream(position: str, where: str) -> None:
    torch.manual_seed(0)
    mixer = SoftmaxAttention(16, num_heads=2, causal=True, position=position)
    short, tail = draw(1, 10, 16), draw(1, 3, 16, seed=1)
    keep = {"left": range(4, 14), "right": range(10), "inside": [0, 1, 5, 6, 7, 8, 9, 10, 12, 13]}[where]
    mask = torch.zeros(1, 14, dtype=torch.bool)
    mask[:, list(keep)] = True
    prompt = torch.full((1, 14, 16), math.nan)
    prompt[mask] = short[0]
    with torch.no_grad():
        assert deviation(mixer(prompt, mask=mask)[mask], mixer(short)[0]) < 1e-5
        expected = mixer(torch.cat([short, tail], 1))[0]
        first, state = mixer.prefill(prompt[:, :6], mixer.init_state(1), mask[:, :6])
        second, state = mixer.prefill(prompt[:, 6:], state, mask[:, 6:])
        outputs = [torch.cat([first, second], 1)[mask]]
        for t in range(3):
            y, state = mixer.step(tail[:, t], state)
            outputs.append(y)
    assert deviation(torch.cat(outputs), expected) < 1e-5
    assert state.position.tolist() == [13]


@pytest.mark.parametrize("position", ["none", "rope", "alibi"])
def test_samples_of_different_length_share_a_stream(position: str) -> None:
    torch.manual_seed(0)
    mixer, lengths = SoftmaxAttention(16, num_heads=2, causal=True, position=position), [9, 4]
    x, following = draw(2, 9, 16), draw(2, 5, 16, seed=1)
    mask = torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]
    with torch.no_grad():
        _, state = mixer.prefill(x, mixer.init_state(2), mask)
        state = state.reorder(torch.tensor([1, 0, 1]))
        y, state = mixer.prefill(following[[1, 0, 1]], state)
        for row, sample in enumerate((1, 0, 1)):
            alone = torch.cat([x[sample, mask[sample]], following[sample]])[None]
            assert deviation(y[row], mixer(alone)[0, lengths[sample] :]) < 1e-5
    assert state.position.tolist() == [9, 14, 9]


def test_the_cache_doubles_and_says_what_it_holds() -> None:
    mixer = SoftmaxAttention(16, num_heads=2, causal=True)
    state, sizes, buffers = mixer.init_state(3), [], set()
    with torch.no_grad():
        for _ in range(70):
            _, state = mixer.step(torch.randn(3, 16), state)
            sizes.append(state.keys.shape[2])
            buffers.add(state.keys.data_ptr())
    assert sizes == [capacity(n) for n in range(1, 71)]
    assert sizes[-1] == 128
    assert len(buffers) <= 8, "a buffer was made anew though it had room"
    assert state.nbytes == mixer.cost((70,), 3).state_bytes == 2 * 3 * 16 * 128 * 4 + 3 * 8 + 8
    assert [capacity(n) for n in (0, 1, 2, 3, 64, 65)] == [0, 1, 2, 4, 64, 128]


def test_two_futures_of_one_state_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    mixer, x = SoftmaxAttention(16, num_heads=2, causal=True), draw(3, 2, 20, 16)
    with torch.no_grad():
        _, state = mixer.prefill(x[0, :, :5], mixer.init_state(2))
        mine = theirs = state
        ours = [mixer.step(x[0, :, 5], mine), mixer.step(x[1, :, 5], theirs)]
        for t in range(6, 20):
            ours = [mixer.step(x[i, :, t], ours[i][1]) for i in (0, 1)]
        again, _ = mixer.prefill(x[0, :, 5:], state)
        alone = mixer(torch.cat([x[0, :, :5], x[1, :, 5:]], 1))[:, -1]
    assert deviation(ours[1][0], alone) < 1e-6
    assert deviation(ours[0][0], mixer(x[0])[:, -1]) < 1e-6
    assert deviation(again[:, -1], ours[0][0]) < 1e-6


def test_gradients_flow_through_a_stream_and_survive_later_steps() -> None:
    torch.manual_seed(0)
    mixer = SoftmaxAttention(16, num_heads=2, causal=True, position="rope").double()
    mixer.k_proj.requires_grad_(False)
    x = draw(2, 7, 16, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(mixer(x)[:, :6].square().sum(), x)
    first, state = mixer.prefill(x[:, :5], mixer.init_state(2))
    second, state = mixer.step(x[:, 5], state)
    with torch.no_grad():
        mixer.step(x[:, 6], state)  # there is room in the buffer, but the graph will read it
    (found,) = torch.autograd.grad(torch.cat([first, second[:, None]], 1).square().sum(), x)
    assert deviation(found, expected) < 1e-10


def test_gradients_flow_after_a_prompt_that_was_read_without() -> None:
    torch.manual_seed(0)
    mixer, x = SoftmaxAttention(16, num_heads=2, causal=True).double(), draw(2, 7, 16, dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer.prefill(x[:, :5], mixer.init_state(2))
    following, outputs = x[:, 5:].clone().requires_grad_(), []
    (expected,) = torch.autograd.grad(mixer(torch.cat([x[:, :5], following], 1))[:, 5:].square().sum(), following)
    for t in range(2):
        y, state = mixer.step(following[:, t], state)
        outputs.append(y)
    (found,) = torch.autograd.grad(torch.stack(outputs).square().sum(), following)
    assert deviation(found, expected) < 1e-10


@pytest.mark.parametrize("position", ["none", "rope", "alibi"])
def test_costs_are_those_counted(position: str) -> None:
    mixer = SoftmaxAttention(32, num_heads=2, causal=True, position=position)
    x = draw(3, 150, 32).requires_grad_()
    cost = mixer.cost((150,), 3)
    with backend("torch"):  # whose saved bytes costs count; the kernel's outputs need no copy to be merged
        assert cost.activation_bytes == pytest.approx(saved_bytes(mixer, x), rel=0.05)
    with torch.device("meta"), backend("torch"):
        twin = SoftmaxAttention(32, num_heads=2, causal=True, position=position)
        assert cost.flops == count_flops(lambda: twin(torch.empty(3, 150, 32)))
    assert SoftmaxAttention(32, num_heads=2).cost((150,), 3).state_bytes == 0


def test_positions_of_a_layout_are_read() -> None:
    x, positions = draw(1, 12, 16), torch.tensor([0, 1, 2, 3, 4, 5, 50, 51, 52, 53, 54, 55])
    for position in ("rope", "alibi"):
        torch.manual_seed(0)
        mixer = SoftmaxAttention(16, num_heads=2, position=position)
        spread = mixer(x, layout=TokenLayout((12,), positions=positions))
        assert deviation(mixer(x, layout=TokenLayout((12,), positions=positions + 7)), spread) < 1e-4
        assert deviation(spread, mixer(x)) > 1e-3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"position": "sinus"}, "position='sinus' is not possible: it must be one of none, rope, alibi"),
        ({"position": "rope", "num_heads": 16}, "position='rope' is not possible: .* a head has 1 channels"),
        ({"rope_base": 0.0}, "rope_base=0.0 is not possible"),
        ({"rope_base": math.inf}, "rope_base=inf is not possible"),
    ],
)
def test_messages_of_the_mixer(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        SoftmaxAttention(16, **options)


def test_what_does_not_go_together_is_refused() -> None:
    x, image = draw(2, 5, 16), draw(2, 4, 4, 16)
    rope, causal, plain = (SoftmaxAttention(16, num_heads=2, **o) for o in ({"position": "rope"}, {"causal": True}, {}))
    with pytest.raises(InvalidValue, match=r"SoftmaxAttention: x has 4 axes, shape \(2, 4, 4, 16\)"):
        rope(image)
    with pytest.raises(InvalidValue, match="SoftmaxAttention takes no context"):
        rope(x, context=x)
    layout = TokenLayout((5,), segments=torch.zeros(2, 5).long())
    for mixer, more in ((causal, {}), (plain, {"layout": layout})):
        with pytest.raises(InvalidValue, match="a context goes with neither causality nor segments"):
            mixer(x, context=x, **more)
    with pytest.raises(InvalidValue, match=r"a stream is \(batch, length, dim\), not \(2, 4, 4, 16\)"):
        causal.prefill(image, causal.init_state(2))
    with pytest.raises(InvalidValue, match=r"keys of the state has shape \(3, 2, 0, 8\); it must be \(2, 2, any, 8\)"):
        causal.prefill(x, causal.init_state(3))
    with pytest.raises(InvalidType, match="SoftmaxAttention has no streaming form with causal=False"):
        plain.prefill(x, KVCache.empty(2, 2, 8, None, torch.float32))
