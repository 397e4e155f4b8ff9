"""TCNCA and MEGA: the ops against their definitions, reach, moving averages, layers, streams, what is refused."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.mixers import TokenLayout
from foveate.mixers.chunked_attention import RotaryBias
from foveate.mixers.damped_ema import MultiHeadEMA
from foveate.mixers.dilated_tcn import DilatedTCN
from foveate.mixers.tcnca import TCNCA, Mega, TCNCASimple
from foveate.models.language.tcnca import (
    FeedForward,
    GatedLayer,
    MegaLanguageModel,
    TCNCALanguageModel,
    build_norm,
)
from foveate.models.official import load_official
from foveate.ops import backend
from foveate.ops.chunked_attention import SCORES, chunked_attention
from foveate.ops.dilated_conv import dilated_conv


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def noisy(module: Any) -> Any:
    """In eval mode, with noise added to what starts at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module.eval()


def documents(length: int) -> Tensor:
    return (torch.rand(2, length) < 0.2).cumsum(1)


# Convolutions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("taps", "dilation"), [(1, 4), (2, 1), (3, 4), (4, 64)])
def test_convolutions_equal_the_definition(taps: int, dilation: int, causal: bool, dense: bool) -> None:
    for length in (1, 7, 16, 65):
        for segments in (None, documents(length)):
            leaves = [torch.randn(2, length, 6), torch.randn(6, 6 if dense else 1, taps), torch.randn(6)]
            answers = []
            for form in ("reference", "torch", "auto"):
                x, weight, bias = (leaf.double().requires_grad_() for leaf in leaves)
                with backend(form):
                    y = dilated_conv(x, weight, bias, dilation=dilation, causal=causal, segments=segments)
                answers.append((y, *torch.autograd.grad(y.sin().sum(), (x, weight, bias))))
            for expected, *others in zip(*answers, strict=True):
                for found in others:
                    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_convolution_is_that_of_pytorch() -> None:
    x, weight = torch.randn(2, 30, 6), torch.randn(5, 6, 3)
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight, dilation=4, padding=8)[..., :30].transpose(1, 2)
    torch.testing.assert_close(dilated_conv(x, weight, dilation=4), expected)
    centred = torch.nn.functional.conv1d(x.transpose(1, 2), weight, dilation=4, padding=4).transpose(1, 2)
    torch.testing.assert_close(dilated_conv(x, weight, dilation=4, causal=False), centred)


def test_a_convolution_goes_on_from_its_inputs() -> None:
    x, weight = torch.randn(2, 50, 6), torch.randn(6, 1, 4)
    whole = dilated_conv(x, weight, dilation=5)
    rest = dilated_conv(x[:, 20:], weight, dilation=5, before=x[:, 5:20])
    torch.testing.assert_close(rest, whole[:, 20:])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dilation": 0}, "dilation=0 is not possible"),
        ({"weight": torch.zeros(6, 3, 2)}, "weight has shape (6, 3, 2): it must be (6, 1, K) or (out, 6, K)"),
        ({"bias": torch.zeros(3)}, "bias has shape (3,): it must be (6,)"),
        ({"before": torch.zeros(2, 4, 6)}, "before has shape (2, 4, 6): it must be (2, 3, 6)"),
        ({"before": torch.zeros(2, 3, 6), "causal": False}, "before is for causal convolutions of one document"),
        ({"segments": torch.zeros(2, 4)}, "segments has shape (2, 4): it must be (2, 9)"),
        ({"x": torch.zeros(2, 0, 6)}, "x has shape (2, 0, 6): it must be (batch, L, channels) with L >= 1"),
    ],
)
def test_convolutions_refuse(arguments: dict[str, Any], says: str) -> None:
    given = {"x": torch.zeros(2, 9, 6), "weight": torch.zeros(6, 1, 4), **arguments}
    with pytest.raises(InvalidValue, match=re.escape(says)):
        dilated_conv(given.pop("x"), given.pop("weight"), **given)


@pytest.mark.parametrize("convs", [1, 2])
@pytest.mark.parametrize(("taps", "factor", "levels"), [(2, 2, 5), (3, 3, 3), (4, 4, 3), (4, 3, 4), (3, 1, 4)])
def test_the_reach_is_the_formula_without_holes(taps: int, factor: int, levels: int, convs: int) -> None:
    tcn = DilatedTCN(
        4, kernel_size=taps, levels=levels, dilation_factor=factor, convs_per_block=convs, residual=False
    ).double()
    powers = levels if factor == 1 else (factor**levels - 1) // (factor - 1)
    reach = 1 + convs * (taps - 1) * powers
    assert tcn.receptive_field == reach
    x = torch.randn(1, 2 * reach + 3, 4, dtype=torch.float64, requires_grad=True)
    t = reach + 2
    (gradient,) = torch.autograd.grad(tcn(x)[:, t].sum(), x)
    seen = (gradient != 0).all(-1)[0].nonzero().flatten()
    assert seen.tolist() == list(range(t - reach + 1, t + 1))


def test_with_a_growth_above_the_taps_there_are_holes() -> None:
    tcn = DilatedTCN(1, kernel_size=2, levels=2, dilation_factor=4, residual=False)
    x = torch.randn(1, 20, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(tcn(x)[:, 10].sum(), x)
    assert gradient[0, :, 0].nonzero().flatten().tolist() == [5, 6, 9, 10]


def test_a_stack_is_what_its_options_say() -> None:
    x = torch.randn(2, 9, 4)
    block = noisy(DilatedTCN(4, kernel_size=2, levels=1, convs_per_block=2, activation="relu"))
    first, second = block._convs()
    torch.testing.assert_close(block(x), x + second(first(x).relu()).relu())
    plain = noisy(DilatedTCN(4, kernel_size=2, levels=2, residual=False, activation="silu", bias=False))
    first, second = plain._convs()
    torch.testing.assert_close(plain(x), second(torch.nn.functional.silu(first(x))))
    assert first.bias is None
    assert torch.equal(DilatedTCN(4, levels=0)(x), x)


def test_weight_norm_sets_lengths() -> None:
    (conv,) = DilatedTCN(4, levels=1, convolution="dense", weight_norm=True)._convs()
    assert conv.length is not None
    plain = conv.weight.detach().clone()
    torch.testing.assert_close(conv.filters(), plain)
    with torch.no_grad():
        conv.weight.mul_(3)
        conv.length.fill_(2)
    torch.testing.assert_close(conv.filters().flatten(1).norm(dim=1), torch.full((4,), 2.0))


# Attention ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("chunk", [None, 1, 4, 8, 64])
def test_chunks_equal_the_definition(chunk: int | None, scores: Any, causal: bool) -> None:
    for length in (1, 5, 8, 29):
        for lengths, segments in itertools.product((None, torch.tensor([length, length // 2])), (None, True)):
            segments = documents(length) if segments else None
            leaves = [torch.randn(2, length, n) for n in (4, 4, 6)] + [torch.randn(2 * max(length, chunk or 1) - 1)]
            answers = []
            for form in ("reference", "torch", "auto"):
                q, k, v, bias = (leaf.double().requires_grad_() for leaf in leaves)
                options = {"lengths": lengths, "segments": segments, "causal": causal, "scores": scores}
                with backend(form):
                    o = chunked_attention(q, k, v, bias, chunk=chunk, **options)
                assert o.isfinite().all()
                real = torch.ones(2, length, dtype=torch.bool)
                if lengths is not None:
                    real = torch.arange(length) < lengths[:, None]
                o = o[real]
                answers.append((o, *torch.autograd.grad(o.sin().sum(), (q, k, v, bias))))
            for expected, *others in zip(*answers, strict=True):
                for found in others:
                    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_worked_weights() -> None:
    # Two keys, scores 0 and a bias of one half on the key itself.
    q, v, bias = torch.zeros(1, 2, 1), torch.eye(2)[None], torch.tensor([0.0, 0.5, 0.0])
    first = {"softmax": 1.0, "laplace": 0.23142, "relu2": 0.25}
    second = {"softmax": (0.37754, 0.62246), "laplace": (0.00609, 0.23142), "relu2": (0.0, 0.25)}
    for scores in SCORES:
        o = chunked_attention(q, q, v, bias, scores=scores, causal=True)[0]
        torch.testing.assert_close(o[0], torch.tensor([first[scores], 0.0]), rtol=0, atol=1e-5)
        torch.testing.assert_close(o[1], torch.tensor(second[scores]), rtol=0, atol=1e-5)


def test_the_rotary_bias_is_the_product_of_turned_vectors() -> None:
    bias, n = RotaryBias(6).double(), 7
    with torch.no_grad():
        bias.alpha.normal_()
        bias.beta.normal_()
    found = bias.distances(n)
    angle = torch.arange(n)[:, None] * 10000.0 ** (-torch.arange(3) / 3).double()

    def turned(row: Tensor) -> Tensor:
        a, b = row.expand(n, -1).chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    expected = turned(bias.alpha) @ turned(bias.beta).T
    place = torch.arange(n)
    torch.testing.assert_close(found[n - 1 + place - place[:, None]], expected)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scores": "tanh"}, "scores='tanh' is not possible"),
        ({"chunk": 0}, "chunk=0 is not possible"),
        ({"bias": torch.zeros(8)}, "an odd number of distances, at least 17"),
        ({"bias": torch.zeros(7), "chunk": 5}, "at least 9 for chunks of 5"),
        ({"v": torch.zeros(2, 8, 6)}, "v (2, 8, 6) do not fit"),
        ({"lengths": torch.zeros(3)}, "lengths has shape (3,): it must be (2,)"),
    ],
)
def test_attention_refuses(arguments: dict[str, Any], says: str) -> None:
    given = {"v": torch.zeros(2, 9, 6), "bias": torch.zeros(17), **arguments}
    q = torch.zeros(2, 9, 4)
    with pytest.raises(InvalidValue, match=re.escape(says)):
        chunked_attention(q, q, given.pop("v"), given.pop("bias"), **given)


# Moving averages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 50])
def test_the_scan_equals_the_released_convolution(length: int, causal: bool) -> None:
    ema, x = MultiHeadEMA(5, n_dim=3, causal=causal).double(), torch.randn(2, length, 5).double()
    torch.testing.assert_close(ema(x), ema.by_fft(x), rtol=1e-10, atol=1e-10)


def test_an_average_is_the_recurrence() -> None:
    ema, x = MultiHeadEMA(1, n_dim=2).double(), torch.randn(1, 9, 1).double()
    p, damping = ema.alpha.sigmoid()[0, :, 0], ema.delta.sigmoid()[0, :, 0]
    h, expected = torch.zeros(2).double(), []
    for x_t in x[0, :, 0]:
        h = (1 - p * damping) * h + p * ema.beta[0, :, 0] * x_t
        expected.append((ema.gamma[0] * h).sum() / 2**0.5 + ema.omega[0] * x_t)
    torch.testing.assert_close(ema(x)[0, :, 0], torch.nn.functional.silu(torch.stack(expected)))


# Mixers, layers, models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [TCNCA, TCNCASimple, Mega])
@pytest.mark.parametrize("attention", SCORES)
@pytest.mark.parametrize("chunk", [None, 1, 5, 64])
def test_streams_of_every_chunk_equal_forward(cls: Any, attention: Any, chunk: int | None) -> None:
    mixer = noisy(cls(8, causal=True, chunk_size=chunk, attention=attention)).double()
    x, mask = torch.randn(3, 23, 8).double(), torch.rand(3, 23) < 0.7
    mask[:, -6:], mask[1, :9] = True, False
    for given in (None, mask):
        expected, state, outputs = mixer(x, mask=given), mixer.init_state(3), []
        for start, stop in itertools.pairwise((0, 1, 7, 8, 17)):
            part = None if given is None else given[:, start:stop]
            y, state = mixer.prefill(x[:, start:stop], state, part)
            outputs.append(y)
        for x_t in x[:, 17:].unbind(1):
            y, state = mixer.step(x_t, state)
            outputs.append(y[:, None])
        torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cls", [TCNCA, TCNCASimple, Mega])
@pytest.mark.parametrize("causal", [False, True])
def test_documents_are_as_if_alone(cls: Any, causal: bool) -> None:
    mixer, x = noisy(cls(8, causal=causal, chunk_size=4)).double(), torch.randn(2, 40, 8).double()
    borders = (0, 3, 4, 9, 25, 40)
    segments = torch.repeat_interleave(torch.tensor([0, 1, 0, 2, 1]), torch.tensor(borders).diff()).expand(2, -1)
    packed = mixer(x, layout=TokenLayout((40,), segments=segments))
    alone = torch.cat([mixer(x[:, a:b]) for a, b in itertools.pairwise(borders)], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)


def test_without_convolutions_one_chunk_is_full_attention() -> None:
    mixer, x = noisy(TCNCA(8, levels=0, chunk_size=64)), torch.randn(2, 19, 8)
    u, zr, candidate = mixer.mx_proj(x).split((8, mixer.z_dim + 16, 8), -1)
    z, r = torch.nn.functional.silu(zr).split((mixer.z_dim, 16), -1)
    q, k = (z * mixer.gamma[i] + mixer.beta[i] for i in (0, 1))
    place = torch.arange(19)
    bias = mixer.rel_pos_bias.rel_pos_bias[63 + place - place[:, None]]
    weights = (q @ k.mT / mixer.z_dim**0.5 + bias).softmax(-1)
    o = weights @ torch.nn.functional.silu(mixer.v_proj(x))
    h = torch.nn.functional.silu(candidate + mixer.h_proj(o * r))
    torch.testing.assert_close(mixer(x), u.sigmoid() * (h - x), rtol=1e-4, atol=1e-5)
    assert mixer.receptive_field == 1


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "scalenorm"])
@pytest.mark.parametrize("prenorm", [False, True])
def test_a_layer_is_the_gated_mean_of_its_input_and_the_rest(prenorm: bool, norm: Any) -> None:
    layer, x = noisy(GatedLayer(Mega(8, causal=True), prenorm=prenorm, norm=norm)), torch.randn(2, 11, 8)
    read = layer.norm(x) if prenorm else x
    y = layer.mixer(read)
    # The mixer's u (h - read), u known from its projection: the layer has u (h - x).
    u = layer.mixer.mx_proj(layer.mixer.move(read))[..., :8].sigmoid()
    expected = x + y + u * (read - x)
    torch.testing.assert_close(layer(x), expected if prenorm else layer.norm(expected), rtol=1e-4, atol=1e-5)
    hidden = noisy(FeedForward(8, 12, prenorm=prenorm, norm=norm))
    inner = torch.nn.functional.silu(hidden.fc1(hidden.norm(x) if prenorm else x))
    expected = x + hidden.fc2(inner)
    torch.testing.assert_close(hidden(x), expected if prenorm else hidden.norm(expected))


def test_norms_are_the_released_ones() -> None:
    x = torch.randn(3, 8)
    scaled = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(build_norm("scalenorm", 8)(x), scaled)
    torch.testing.assert_close(build_norm("rmsnorm", 8)(x), scaled)
    assert not list(build_norm("scalenorm", 8, affine=False).parameters())
    with pytest.raises(InvalidValue, match="norm='batchnorm' is not possible"):
        build_norm("batchnorm", 8)  # type: ignore[arg-type]


def test_layers_load_the_released_names() -> None:
    layer = GatedLayer(Mega(8, causal=True, rel_bias="rotary", n_dim=3))
    official = {key.removeprefix("mixer."): value for key, value in layer.state_dict().items()}
    official = {f"norm.{key}" if key.startswith("norm.") else key: value for key, value in official.items()}
    official |= {"rel_pos_bias._float_tensor": torch.zeros(1)}
    fresh = GatedLayer(Mega(8, causal=True, rel_bias="rotary", n_dim=3))
    load_official(fresh, official, source="mega")
    x = torch.randn(1, 9, 8)
    assert torch.equal(fresh(x), layer(x))


@pytest.mark.parametrize("cls", [TCNCALanguageModel, MegaLanguageModel])
def test_a_language_model_streams_what_it_reads(cls: Any) -> None:
    options = {"chunk_size": 8}
    model = noisy(cls(vocabulary=11, dim=8, depth=2, prenorm=False, mixer_options=options)).double()
    tokens = torch.randint(11, (2, 21))
    expected = model(tokens)
    y, state = model.prefill(tokens[:, :13], model.init_state(2))
    outputs, size = [y], state.nbytes
    for token in tokens[:, 13:].unbind(1):
        y, state = model.step(token, state)
        outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-9, atol=1e-9)
    assert state.nbytes == size


def test_a_published_size_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        mega, tcnca = MegaLanguageModel.of_size("enwik8"), TCNCALanguageModel.of_size("enwik8")
    assert 35e6 < sum(p.numel() for p in mega.parameters()) < 41e6
    assert 35e6 < sum(p.numel() for p in tcnca.parameters()) < 41e6
    with pytest.raises(UnknownName, match="enwik8"):
        MegaLanguageModel.of_size("enwik9")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kernel_size": 0}, "kernel_size=0 is not possible"),
        ({"dilation_factor": 0}, "dilation_factor=0 is not possible"),
        ({"levels": -1}, "levels=-1 is not possible"),
        ({"chunk_size": 0}, "chunk_size=0 is not possible"),
        ({"z_dim": 3, "rel_bias": "rotary"}, "rel_bias='rotary' is not possible: it turns pairs of channels"),
        ({"attention": "tanh"}, "attention='tanh' is not possible"),
        ({"dropout": 1.0}, "dropout=1.0 is not possible"),
    ],
)
def test_mixers_refuse(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        TCNCA(8, **options)


def test_more_tokens_than_distances_are_refused() -> None:
    mixer = TCNCA(8, causal=True, chunk_size=None, max_positions=16)
    with pytest.raises(InvalidValue, match="17 tokens are more than the learned bias has distances for"):
        mixer(torch.randn(1, 17, 8))
    _, state = mixer.prefill(torch.randn(1, 16, 8), mixer.init_state(1))
    with pytest.raises(InvalidValue, match="max_positions"):
        mixer.step(torch.randn(1, 8), state)
    assert TCNCA(8, chunk_size=None, max_positions=16, rel_bias="rotary")(torch.randn(1, 17, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (TCNCA(8, causal=True, h_dim=4), "values of the state has shape (2, 127, 4); it must be (2, 127, 16)"),
        (TCNCA(8, causal=True, chunk_size=7), "keys of the state has shape (2, 6, "),
        (TCNCA(8, causal=True, levels=2), "inputs of the state has"),
        (Mega(8, causal=True), "move of the state is a EMAState; it must be a TCNState"),
    ],
)
def test_a_state_of_another_mixer_is_refused(other: Any, says: str) -> None:
    mixer = TCNCA(8, causal=True)
    with pytest.raises(InvalidValue, match=re.escape(says)):
        mixer.step(torch.randn(2, 8), other.init_state(2))


def test_a_state_of_another_batch_is_refused() -> None:
    mixer = Mega(8, causal=True)
    with pytest.raises(InvalidValue, match=r"averages of the state has shape \(3, 8, 16\); it must be \(2, 8, 16\)"):
        mixer.prefill(torch.randn(2, 5, 8), mixer.init_state(3))
    with pytest.raises(InvalidType, match="its state is a ChunkState, not a int"):
        mixer.step(torch.randn(2, 8), 3)  # type: ignore[arg-type]
