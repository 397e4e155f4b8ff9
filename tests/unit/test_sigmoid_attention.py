"""Sigmoid attention: tiles against the definition, the layer's options, streams, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.measure.isolated import allocated_bytes_of
from foveate.measure.memory import saved_bytes
from foveate.mixers import TokenLayout
from foveate.mixers.sigmoid_attention import SigmoidAttention
from foveate.models.official import load_official
from foveate.ops import backend
from foveate.ops.positions import alibi_slopes
from foveate.ops.sigmoid_attention import recommended_bias, sigmoid_attention, sigmoid_flops


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def qkv(length: int, key_length: int | None = None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    key_length = length if key_length is None else key_length
    sizes = ((length, 6), (key_length, 6), (key_length, 5))
    return tuple(torch.randn(3, 2, n, width, dtype=dtype) for n, width in sizes)


def test_worked_numbers() -> None:
    # The numbers of the specification.
    q, k, v = (torch.tensor(x).view(1, 1, 2, 1) for x in ([1.0, -1.0], [2.0, 0.5], [3.0, -1.0]))
    full = sigmoid_attention(q, k, v, bias=-math.log(2), scale=1.0)
    torch.testing.assert_close(full.flatten(), torch.tensor([1.909095, -0.042560]), rtol=0, atol=1e-6)
    causal = sigmoid_attention(q, k, v, bias=-math.log(2), scale=1.0, causal=True)
    torch.testing.assert_close(causal.flatten(), torch.tensor([2.360958, -0.042560]), rtol=0, atol=1e-6)
    assert torch.equal(sigmoid_attention(q, k, v, scale=1.0), full), "the default bias is -ln of the number of keys"


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (5, 2)},
    "causal window": {"causal": True, "window": (7, -1)},
    "window ahead": {"window": (-1, 3)},
    "alibi": {"alibi": True},
    "key mask": {"keys": True},
    "pair mask": {"pairs": True, "causal": True},
    "everything": {"causal": True, "window": (11, 0), "alibi": True, "keys": True, "segments": True},
}


@pytest.mark.parametrize("block", [1, 7, 16, 64])
@pytest.mark.parametrize("name", OPTIONS)
def test_tiles_equal_the_definition(name: str, block: int) -> None:
    options = dict(OPTIONS[name])
    q, k, v = (x.requires_grad_() for x in qkv(37))
    bias, scale = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([-2.0, -3.0], [0.4]))
    leaves = [q, k, v, bias, scale]
    if options.pop("keys", False):
        options["mask"] = torch.rand(3, 37) < 0.6
        options["mask"][0] = False
    if options.pop("pairs", False):
        options["mask"] = torch.rand(1, 2, 37, 37) < 0.6
    if options.pop("segments", False):
        options["segments"] = (torch.arange(37) > 20).long().expand(3, -1)
    if options.pop("alibi", False):
        options["alibi_slopes"] = alibi_slopes(2).double().requires_grad_()
        options["positions"] = options["key_positions"] = torch.randint(50, (3, 37))
        leaves.append(options["alibi_slopes"])
    answers = []
    for form in ("reference", "torch"):
        with backend(form):
            o = sigmoid_attention(q, k, v, bias=bias, scale=scale, block=block, **options)
        answers.append((o, *torch.autograd.grad((o * torch.arange(5)).sin().sum(), leaves)))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("length", "key_length"), [(1, 9), (5, 40), (40, 13)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (4, 4)}, {"alibi_slopes": alibi_slopes(2)}])
def test_other_numbers_of_keys(length: int, key_length: int, options: dict) -> None:
    if options.get("causal") and length > key_length:
        return
    q, k, v = qkv(length, key_length)
    with backend("reference"):
        expected = sigmoid_attention(q, k, v, **options)
    torch.testing.assert_close(sigmoid_attention(q, k, v, block=8, **options), expected)
    if options.get("causal"):  # the queries are the last: those of a whole sequence
        whole = sigmoid_attention(
            torch.cat([torch.randn(3, 2, key_length - length, 6).double(), q], 2), k, v, **options
        )
        torch.testing.assert_close(whole[:, :, -length:], expected)


def test_gradients_are_those_of_finite_differences() -> None:
    given = [x[:1].requires_grad_() for x in qkv(9)]
    assert torch.autograd.gradcheck(lambda *x: sigmoid_attention(*x, causal=True, block=4), given)


def test_a_query_without_keys_gives_zeros() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(6))
    o = sigmoid_attention(q, k, v, mask=torch.zeros(3, 6, dtype=torch.bool))
    o.sum().backward()
    assert o.eq(0).all()
    assert q.grad is not None
    assert q.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    # 20,000 equal weights of 1/20,000: half-precision sums would stop growing on the way.
    n = 20_000
    q, k, v = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, n, 4), torch.ones(1, 1, n, 2)
    o = sigmoid_attention(q.to(dtype), k.to(dtype), v.to(dtype))
    assert o.dtype == dtype
    torch.testing.assert_close(o.float(), torch.ones(1, 1, 1, 2), rtol=5e-3, atol=0)


def test_large_scores_saturate() -> None:
    q, k, v = qkv(50, dtype=torch.float32)
    leaf = (q * 1e6).requires_grad_()
    o = sigmoid_attention(leaf, k, v)
    o.sum().backward()
    assert o.isfinite().all()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_flops_are_those_of_visible_tiles() -> None:
    for length, key_length, options in (
        (100, 100, {"causal": True}),
        (100, 150, {"window": (30, 5)}),
        (9, 64, {"causal": True}),
    ):
        with torch.device("meta"), backend("torch"):
            q, k, v = qkv(length, key_length, torch.float32)
            found = count_flops(lambda q=q, k=k, v=v, o=options: sigmoid_attention(q, k, v, block=16, **o))
        assert found == sigmoid_flops(length, key_length, 2, 6, 5, 3, block=16, **options)
    full, half = sigmoid_flops(4096, 4096, 1, 8, 8), sigmoid_flops(4096, 4096, 1, 8, 8, causal=True)
    assert half < 0.55 * full
    assert sigmoid_flops(8192, 8192, 1, 8, 8, window=(256, 0)) < 0.15 * sigmoid_flops(8192, 8192, 1, 8, 8)


def test_weights_are_never_kept() -> None:
    mixer, x = SigmoidAttention(16, num_heads=4, causal=True), torch.randn(1, 2000, 16, requires_grad=True)
    assert saved_bytes(mixer, x) < 2000 * 16 * 4 * 6  # one matrix of weights would be 16 MB a head


# The layer ----------------------------------------------------------------------------------------------------------

VARIANTS = [
    {"pos": "rope"},
    {"pos": "alibi", "attn_temp": 0.3, "bias": True},
    {"qk_norm": True, "layer_scale": 0.1, "hybrid_norm": True},
    {"activation": "seq_len_normalized_sigmoid", "pos": "alibi"},
    {"activation": "sqrt_seq_len_normalized_sigmoid"},
    {"activation": "softmax", "pos": "alibi", "attn_temp": -0.2},
    {"activation": "softmax", "pos": "rope"},
]


def ids(options: dict) -> str:
    return " ".join(map(str, options.values()))


@pytest.mark.parametrize("options", VARIANTS, ids=ids)
def test_every_variant_streams_and_keeps_documents_and_masks_apart(options: dict) -> None:
    mixer = SigmoidAttention(16, num_heads=2, causal=True, **options).double()
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    mask = torch.rand(2, 30) < 0.7
    y = mixer(x, mask=mask)
    first, state = mixer.prefill(x[:, :20], mixer.init_state(2), mask[:, :20])
    last, state = mixer.prefill(x[:, 20:], state, mask[:, 20:])
    torch.testing.assert_close(torch.cat([first, last], 1), y)
    assert y[~mask].eq(0).all()
    positions = torch.cat([torch.arange(12), torch.arange(18)])
    layout = TokenLayout((30,), positions=positions, segments=(torch.arange(30) >= 12).long().expand(2, -1))
    alone = torch.cat([mixer(x[:, :12]), mixer(x[:, 12:])], 1)
    torch.testing.assert_close(mixer(x, layout=layout), alone)


@pytest.mark.parametrize("options", VARIANTS, ids=ids)
def test_every_variant_costs_what_it_says(options: dict) -> None:
    for causal in (False, True):
        with torch.device("meta"), backend("torch"):
            mixer, x = SigmoidAttention(16, num_heads=2, causal=causal, **options), torch.empty(3, 40, 16)
            if options.get("activation") != "softmax":  # which kernel a softmax takes is PyTorch's choice
                assert count_flops(lambda m=mixer, x=x: m(x)) == mixer.cost((40,), 3).flops
        assert mixer.cost((40,)).parameters == sum(p.numel() for p in mixer.parameters())
        mixer, x = SigmoidAttention(16, num_heads=2, causal=causal, **options), torch.randn(3, 400, 16)
        if options.get("activation") != "softmax":
            kept, claimed = saved_bytes(mixer, x.requires_grad_()), mixer.cost((400,), 3).activation_bytes
            assert claimed / 1.4 <= kept <= claimed * 1.4, (kept, claimed)


def test_the_temperature_scales_linear_biases_too() -> None:
    mixer = SigmoidAttention(16, num_heads=2, causal=True, pos="alibi", attn_temp=0.7, attn_bias=-2.0)
    x = torch.randn(2, 9, 16)
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in mixer.qkv(x).chunk(3, -1))
    distance = torch.arange(9)[:, None] - torch.arange(9)
    scores = q @ k.transpose(-1, -2) * 8**-0.5 - alibi_slopes(2)[:, None, None] * distance
    weights = (torch.sigmoid(scores * math.exp(0.7) - 2.0)).tril()
    torch.testing.assert_close(mixer(x), mixer.proj((weights @ v).transpose(1, 2).flatten(2)))


def test_options_for_a_grid() -> None:
    assert SigmoidAttention.options_for((8, 16)) == {"attn_bias": recommended_bias(128)}
    mixer = SigmoidAttention(8, num_heads=2, **SigmoidAttention.options_for((128,)))
    assert float(mixer.attn_bias) == pytest.approx(-math.log(128))
    assert set(dict(mixer.named_buffers())) == {"attn_bias", "attn_temp"}


def test_context_equals_attention_over_both_projections() -> None:
    mixer = SigmoidAttention(16, num_heads=2, bias=True, pos="rope", causal=True)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    q = mixer.qkv(x)[..., :16].unflatten(-1, (2, 8)).transpose(1, 2)
    k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in mixer.qkv(context)[..., 16:].chunk(2, -1))
    expected = mixer.proj(sigmoid_attention(q, k, v, bias=mixer.attn_bias).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, context=context), expected)


def test_masked_content_may_be_anything() -> None:
    mixer, x = SigmoidAttention(16, num_heads=2, bias=True), torch.randn(2, 9, 16)
    mask = torch.arange(9).expand(2, -1) % 3 != 0
    y = mixer(x, mask=mask)
    x[~mask] = torch.nan
    assert torch.equal(mixer(x, mask=mask), y)


def test_official_keys_must_all_be_there() -> None:
    mixer = SigmoidAttention(8, num_heads=2, qk_norm=True)
    state = mixer.state_dict()
    load_official(mixer, state)
    with pytest.raises(InvalidValue, match="missing attn_bias"):
        load_official(mixer, {k: v for k, v in state.items() if k != "attn_bias"})
    with pytest.raises(InvalidValue, match="left over extra"):
        load_official(mixer, {**state, "extra": torch.zeros(1)})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": 3}, "num_heads=3 is not possible: it must divide dim=16"),
        ({"num_heads": 16, "pos": "rope"}, "pos='rope' is not possible: it turns pairs of channels"),
        ({"pos": "sincos"}, "pos='sincos' is not possible: it must be 'rope', 'alibi' or None"),
        ({"activation": "relu"}, "activation='relu' is not possible: it must be one of sigmoid, "),
        ({"attn_bias": math.nan}, "attn_bias=nan is not possible: a finite number"),
        ({"attn_temp": math.inf}, "attn_temp=inf is not possible: a finite number"),
    ],
)
def test_the_layer_refuses(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        SigmoidAttention(16, **options)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"q": torch.zeros(2, 3, 4)}, InvalidValue, "must have 4 axes (batch, heads, length, width), not q (2, 3, 4)"),
        ({"q": torch.zeros(2, 3, 4, 7)}, InvalidValue, "q and k in width, k and v in length"),
        ({"k": torch.zeros(2, 3, 0, 5), "v": torch.zeros(2, 3, 0, 5)}, InvalidValue, "a sequence is empty"),
        ({"v": torch.zeros(2, 3, 4, 5).double()}, InvalidType, "must share one floating dtype"),
        ({"q": torch.zeros(2, 3, 6, 5), "causal": True}, InvalidValue, "not possible with more queries than keys"),
        ({"bias": math.nan}, InvalidValue, "bias=nan is not possible"),
        ({"bias": torch.zeros(4)}, InvalidValue, "bias has shape (4,): one number or one per head, (3,)"),
        ({"scale": torch.zeros(3)}, InvalidValue, "scale has shape (3,): one number is needed"),
        ({"window": (-2, 0)}, InvalidValue, "window=(-2, 0) is not possible"),
        ({"block": 0}, InvalidValue, "block=0 is not possible"),
        ({"mask": torch.ones(2, 4)}, InvalidType, "mask must be bool (True = visible), not torch.float32"),
        ({"mask": torch.ones(2, 5).bool()}, InvalidValue, "mask has shape (2, 5): (2, 4) fits"),
        ({"alibi_slopes": torch.zeros(2)}, InvalidValue, "alibi_slopes have shape (2,): one per head, (3,)"),
        ({"segments": torch.zeros(2, 4)}, InvalidType, "segments must be int64, not torch.float32"),
        ({"segments": torch.zeros(1, 4).long()}, InvalidValue, "segments have shape (1, 4): (2, 4) is needed"),
        ({"positions": torch.zeros(3).long()}, InvalidValue, "positions have shape (3,): (4,) or (2, 4) is needed"),
        (
            {"q": torch.zeros(2, 3, 2, 5), "segments": torch.zeros(2, 2).long()},
            InvalidValue,
            "segments are not possible with 2 queries and 4 keys",
        ),
    ],
)
def test_the_op_refuses(change: dict, error: type[Exception], says: str) -> None:
    given = {**{name: torch.zeros(2, 3, 4, 5) for name in "qkv"}, **change}
    with pytest.raises(error, match=re.escape(says)):
        sigmoid_attention(given.pop("q"), given.pop("k"), given.pop("v"), **given)


@pytest.mark.slow
def test_memory_is_linear_up_to_64k_tokens() -> None:
    setup = """
from foveate.ops.sigmoid_attention import sigmoid_attention
def run(n):
    q, k, v = (torch.randn(1, 1, n, 64, requires_grad=True) for _ in range(3))
    sigmoid_attention(q, k, v, causal=True).square().mean().backward()
run(300)
"""
    short, long = allocated_bytes_of(["run(8_192)", "run(65_536)"], setup)
    assert long <= 8 * short
    assert long < 2**28  # one matrix of weights would take 16 GiB


def test_a_bias_for_no_keys_is_refused() -> None:
    with pytest.raises(InvalidValue, match="n=0 is not possible"):
        recommended_bias(0)
