"""Lightning attention as a mixer, its parts, and TransNormerLLM: values, streams, memory, weights, messages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.measure.flops import count_flops
from foveate.measure.isolated import peak_bytes_of
from foveate.measure.memory import saved_bytes
from foveate.mixers import TokenLayout
from foveate.mixers.lightning_attention import LightningAttention, Lrpe
from foveate.mixers.lightning_attention_2 import TnlAttention
from foveate.mixers.linear_attention import LinearAttention
from foveate.mixers.parts import SGLU, SRMSNorm
from foveate.models.language.lightning_attention import TransNormerLLM
from foveate.models.official import load_official
from foveate.ops import backend


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def deviation(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.detach().double().abs().max())
    return float((found.detach().double() - expected.detach().double()).abs().max()) / (scale or 1.0)


def seeded(cls: type[nn.Module], *args, **options) -> nn.Module:
    torch.manual_seed(0)
    return cls(*args, **options)


VARIANTS = [
    pytest.param(LightningAttention, {}, id="tnl"),
    pytest.param(LightningAttention, {"lrpe": True, "bias": True}, id="lrpe"),
    pytest.param(LightningAttention, {"lrpe": True, "layer": 3, "depth": 4}, id="last-layer"),
    pytest.param(LightningAttention, {"decay": "none"}, id="no-decay"),
    pytest.param(TnlAttention, {"bias": True}, id="tnl-2"),
]


# The mixers -----------------------------------------------------------------------------------------------------------


def test_the_layer_is_its_equations() -> None:
    mixer = seeded(LightningAttention, 12, num_heads=3, lrpe=True, bias=True, layer=1, depth=4).double()
    x, (n, d) = draw(1, 9, 12, dtype=torch.float64), (9, 4)
    q, k, v, u = (x @ mixer.qkvu_proj.weight.T + mixer.qkvu_proj.bias).split(12, -1)
    q, k = (m / (1 + torch.exp(-m)) for m in (q, k))
    slopes = [(1 - 1 / 3 + 1e-5) * s for s in (2**-4, 2**-8, 2**-2)]
    o = torch.zeros_like(x)
    for h in range(3):
        part = slice(h * d, h * d + d)
        for t in range(n):
            for j in range(t + 1):
                turned = torch.cos((t - j) * mixer.lrpe.theta[h, 0])
                weight = math.exp(-slopes[h] * (t - j)) * (q[0, t, part] * k[0, j, part] * turned).sum()
                o[0, t, part] += weight * v[0, j, part]
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert deviation(mixer(x), (u * o) @ mixer.out_proj.weight.T + mixer.out_proj.bias) < 1e-10


@pytest.mark.parametrize(("cls", "options"), VARIANTS)
@pytest.mark.parametrize("where", ["left", "right", "inside"])
def test_padding_anywhere_is_a_shorter_sequence_also_in_a_stream(
    cls: type[LinearAttention], options: dict, where: str
) -> None:
    mixer = seeded(cls, 16, num_heads=2, **options)
    short, tail = draw(1, 10, 16), draw(1, 3, 16, seed=1)
    keep = {"left": range(4, 14), "right": range(10), "inside": [0, 1, 5, 6, 7, 8, 9, 10, 12, 13]}[where]
    mask = torch.zeros(1, 14, dtype=torch.bool)
    mask[:, list(keep)] = True
    prompt = torch.full((1, 14, 16), math.nan)
    prompt[mask] = short[0]
    assert deviation(mixer(prompt, mask=mask)[mask], mixer(short)[0]) < 1e-5
    first, state = mixer.prefill(prompt[:, :6], mixer.init_state(1), mask[:, :6])
    second, state = mixer.prefill(prompt[:, 6:], state, mask[:, 6:])
    outputs = [torch.cat([first, second], 1)[mask]]
    for t in range(3):
        y, state = mixer.step(tail[:, t], state)
        outputs.append(y)
    assert deviation(torch.cat(outputs), mixer(torch.cat([short, tail], 1))[0]) < 1e-5
    assert state.position.tolist() == [13]


@pytest.mark.slow  # five seconds each; the contract suite steps through shorter sequences
@pytest.mark.parametrize(("cls", "options"), VARIANTS)
def test_ten_thousand_steps_equal_forward(cls: type[LinearAttention], options: dict) -> None:
    mixer, x = seeded(cls, 16, num_heads=2, **options).eval(), draw(1, 10_000, 16)
    with torch.no_grad():
        state, outputs, held = mixer.init_state(1), [], set()
        for t in range(10_000):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y)
            held.add(state.nbytes)
        assert deviation(torch.stack(outputs, 1), mixer(x)) < 2e-5
    assert held == {mixer.cost((1,)).state_bytes}


@pytest.mark.parametrize(("cls", "options"), VARIANTS)
def test_costs_are_those_counted(cls: type[LinearAttention], options: dict) -> None:
    for batch, length in ((1, 700), (40, 70)):
        with torch.device("meta"), backend("torch"):
            mixer, x = cls(32, num_heads=2, **options), torch.empty(batch, length, 32)
            counted = count_flops(lambda mixer=mixer, x=x: mixer(x))
            kept = saved_bytes(mixer, x.requires_grad_())
        cost = mixer.cost((length,), batch)
        assert cost.flops == counted
        assert cost.parameters == sum(p.numel() for p in mixer.parameters())
        assert cost.activation_bytes == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("lrpe", [False, True])
def test_training_on_65536_tokens_stays_below_a_gibibyte(lrpe: bool) -> None:
    setup = (
        "from foveate.mixers.lightning_attention import LightningAttention\n"
        f"mixer = LightningAttention(64, num_heads=4, lrpe={lrpe})\n"
        "def train(n): mixer(torch.randn(1, n, 64).requires_grad_()).square().mean().backward()\n"
        "train(64)"
    )
    assert peak_bytes_of("train(65_536)", setup) < (0.75 if lrpe else 0.5) * 2**30


def test_layers_of_a_stack_forget_more_slowly_and_the_first_is_turned() -> None:
    layers = [LightningAttention.for_layer(i, 3, 32, num_heads=4) for i in range(3)]
    assert [layer.lrpe is not None for layer in layers] == [True, False, False]
    assert layers[1].rates == pytest.approx([0.50001 * 4.0**-i for i in range(1, 5)])
    assert layers[2].rates == pytest.approx([1e-5 * 4.0**-i for i in range(1, 5)])
    assert LightningAttention.for_layer(0, 3, 32, num_heads=4, lrpe=False).lrpe is None
    assert LightningAttention.for_layer(2, 3, 32, num_heads=4, decay="none").rates is None


def test_rates_survive_bfloat16() -> None:
    # exp(-rate * t) over thousands of steps shows a rate that lost its digits.
    options = {"num_heads": 2, "layer": 1, "depth": 3}
    half, full = seeded(LightningAttention, 16, **options).bfloat16(), seeded(LightningAttention, 16, **options)
    assert half.rates == full.rates
    assert half.init_state(1).kv.dtype == torch.float32
    assert half.double().init_state(1).kv.dtype == torch.float64


def test_positions_of_a_layout_turn_but_do_not_decay() -> None:
    x, mask = draw(2, 12, 16), torch.arange(12) < torch.tensor([[12], [7]])
    mixer = seeded(LightningAttention, 16, num_heads=2, lrpe=True)
    shifted, spread = (TokenLayout((12,), positions=p) for p in (torch.arange(12) + 9, torch.arange(12) * 3))
    assert deviation(mixer(x, layout=shifted), mixer(x)) < 1e-5
    assert deviation(mixer(x, layout=spread), mixer(x)) > 1e-2
    assert deviation(mixer(x, mask=mask, layout=spread)[1, :7], mixer(x, layout=spread)[1, :7]) < 1e-5
    plain = seeded(LightningAttention, 16, num_heads=2)
    assert torch.equal(plain(x, layout=spread), plain(x))


def test_lrpe_starts_with_one_frequency_per_channel_of_all_heads() -> None:
    theta = Lrpe(2, 4).theta.flatten().tolist()
    assert theta == pytest.approx([10_000 ** (-2 * j / 8) for j in range(8)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": 5}, "num_heads=5 is not possible: it must divide dim=16"),
        ({"decay": "fast"}, "decay='fast' is not possible: it must be one of official, paper, none"),
        ({"depth": 0}, "depth=0 is not possible"),
        ({"layer": 2, "depth": 2}, "layer=2 is not possible: it must be in 0 ... depth - 1 = 1"),
        ({"block": 0}, "block=0 is not possible"),
        ({"causal": False}, "causal=False is not possible"),
    ],
)
@pytest.mark.parametrize("cls", [LightningAttention, TnlAttention])
def test_messages_of_the_mixers(cls: type[LinearAttention], options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        cls(16, **options)


def test_a_state_or_token_that_does_not_fit_is_refused() -> None:
    mixer = LightningAttention(16, num_heads=2)
    state = LightningAttention(16, num_heads=2, lrpe=True).init_state(2)
    says = r"LightningAttention: kv of the state has shape \(2, 2, 16, 8\); it must be \(2, 2, 8, 8\)"
    with pytest.raises(InvalidValue, match=says):
        mixer.step(draw(2, 16), state)
    with pytest.raises(InvalidValue, match=says):
        mixer.prefill(draw(2, 3, 16), state)
    with pytest.raises(InvalidValue, match=r"step takes one token, \(batch, 16\), not \(2, 1, 16\)"):
        mixer.step(draw(2, 1, 16), mixer.init_state(2))


# Parts ----------------------------------------------------------------------------------------------------------------


def test_srmsnorm_is_rms_norm_without_weights() -> None:
    x = draw(3, 5, 16) * 10
    assert not list(SRMSNorm().parameters())
    assert deviation(SRMSNorm()(x), nn.RMSNorm(16, eps=1e-6, elementwise_affine=False)(x)) < 1e-6
    assert deviation(SRMSNorm(0.0)(x), x / (x.norm(dim=-1, keepdim=True) / 4)) < 1e-6  # as the paper prints it
    assert SRMSNorm()(x.bfloat16()).dtype == torch.bfloat16
    assert SRMSNorm()(torch.zeros(2, 4)).abs().max() == 0
    with pytest.raises(InvalidValue, match="eps=nan is not possible"):
        SRMSNorm(math.nan)


def test_sglu_multiplies_two_linear_maps() -> None:
    part, x = seeded(SGLU, 6, 10, bias=True), draw(2, 6)
    expected = part.l3((x @ part.l1.weight.T + part.l1.bias) * (x @ part.l2.weight.T + part.l2.bias))
    assert deviation(part(x), expected) < 1e-6
    with pytest.raises(InvalidValue, match="glu_dim=0 is not possible"):
        SGLU(6, 0)


# The model ------------------------------------------------------------------------------------------------------------


def model(**options) -> TransNormerLLM:
    torch.manual_seed(0)
    made = TransNormerLLM(**{"vocabulary": 50, "dim": 32, "depth": 3, "num_heads": 4, "glu_dim": 48, **options})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"lrpe_layers": (1, 2), "tie": True, "scale_embedding": False, "bias": True}])
def test_the_model_streams_as_it_reads(options: dict) -> None:
    lm, text = model(**options), tokens(2, 90)
    expected = lm(text)
    assert expected.shape == (2, 90, 50)
    first, state = lm.prefill(text[:, :70], lm.init_state(2))
    second, state = lm.prefill(text[:, 70:80], state)
    outputs = [first, second]
    for t in range(80, 90):
        logits, state = lm.step(text[:, t], state)
        outputs.append(logits[:, None])
    assert deviation(torch.cat(outputs, 1), expected) < 1e-4
    assert lm.init_state(2).nbytes == state.nbytes
    swapped, _ = lm.step(text[:, 0].flip(0), state.reorder(torch.tensor([1, 0])))
    straight, _ = lm.step(text[:, 0], state)
    assert deviation(swapped.flip(0), straight) < 1e-5


def test_two_prompts_one_after_the_other_do_not_meet() -> None:
    # The released code keeps a position on the module: a second prompt continues where the first ended.
    lm, text = model(lrpe_layers=(0, 1, 2)), tokens(2, 30)
    lm.prefill(text, lm.init_state(2))
    _, state = lm.prefill(text[:, :5], lm.init_state(2))
    logits, _ = lm.step(text[:, 5], state)
    assert deviation(logits, lm(text)[:, 5]) < 1e-4


def test_the_model_looks_back_only_and_masks_count_for_nothing() -> None:
    lm, text = model(), tokens(1, 40)
    other = text.clone()
    other[:, 20:] = tokens(1, 20, seed=5)
    assert torch.equal(lm(other)[:, :20], lm(text)[:, :20])
    assert not torch.equal(lm(other)[:, 20:], lm(text)[:, 20:])
    padded, mask = torch.cat([tokens(1, 7, seed=6), text], 1), torch.arange(47)[None] >= 7
    assert deviation(lm(padded, mask)[:, 7:], lm(text)) < 1e-4


def test_options_of_the_two_releases() -> None:
    plain, scaled = model(scale_embedding=False), model()
    with torch.no_grad():
        plain.embed.weight.mul_(math.sqrt(32))
    assert deviation(plain(tokens(1, 9)), scaled(tokens(1, 9))) < 1e-5
    assert model(tie=True).lm_head is None
    count = sum(p.numel() for p in model(tie=True).parameters())
    assert count == sum(p.numel() for p in model().parameters()) - 50 * 32


def test_published_sizes() -> None:
    with torch.device("meta"):
        lm = TransNormerLLM.of_size("TNL-385M")
        nano = TransNormerLLM.of_size("nanoTransNormer", depth=2, lrpe_layers=(1,))
    blocks = sum(p.numel() for p in lm.blocks.parameters())
    assert blocks == 24 * (5 * 1024**2 + 3 * 1024 * 2816) + 1024
    assert lm.embed.weight.numel() == lm.lm_head.weight.numel() == 65_536_000
    assert nano.lm_head is None
    assert nano.blocks[1].token_mixer.lrpe is not None
    with pytest.raises(UnknownName, match="unknown published size 'TNL-7': did you mean 'TNL-7B'"):
        TransNormerLLM.of_size("TNL-7")


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    lm = model(lrpe_layers=(0, 2))
    lm.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["options"]["lrpe_layers"] == [0, 2]
    again = TransNormerLLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens(1, 9)), lm(tokens(1, 9)))
    created = foveate.create("transnormer_llm", vocabulary=10, dim=16, depth=1, num_heads=2)
    assert isinstance(created, TransNormerLLM)


def released(lm: TransNormerLLM) -> dict[str, Tensor]:
    """The weights under the names of the released models."""
    names = {"embed.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    return {names.get(k, k.replace("blocks.", "model.layers.")): v for k, v in lm.state_dict().items()}


def test_weights_of_the_released_models_load_and_none_may_be_left_over() -> None:
    source, target = model(), TransNormerLLM(vocabulary=50, dim=32, depth=3, num_heads=4, glu_dim=48)
    load_official(target, released(source))
    assert torch.equal(target(tokens(1, 9)), source(tokens(1, 9)))
    with pytest.raises(InvalidValue, match=r"missing blocks.1.channel_mixer.l1.weight; left over nothing"):
        load_official(target, {k: v for k, v in released(source).items() if "1.channel_mixer.l1" not in k})
    with pytest.raises(InvalidValue, match=r"left over model\.norm\.weight"):
        load_official(target, {**released(source), "model.norm.weight": torch.ones(32)})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vocabulary": 0}, "vocabulary=0 is not possible"),
        ({"depth": 0}, "depth=0 is not possible"),
        ({"num_heads": 3}, "num_heads=3 is not possible: it must divide dim=32"),
        ({"lrpe_layers": (0, 3)}, r"lrpe_layers=\(0, 3\) is not possible: layers are 0 ... 2"),
        ({"glu_dim": -1}, "glu_dim=-1 is not possible"),
        ({"decay": "fast"}, "decay='fast' is not possible"),
    ],
)
def test_messages_of_the_model(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        model(**options)


def test_tokens_that_are_none_are_refused() -> None:
    lm = model()
    with pytest.raises(InvalidType, match=r"tokens must be int64, not torch\.float32"):
        lm(torch.zeros(2, 5))
    with pytest.raises(InvalidValue, match=r"tokens have shape \(5,\); they must be \(batch, length\)"):
        lm(tokens(5))
    with pytest.raises(InvalidValue, match=r"tokens have shape \(2, 1\); they must be \(batch,\)"):
        lm.step(tokens(2, 1), lm.init_state(2))
    with pytest.raises(InvalidType, match="TransNormerLLM cannot be built for the task 'forecast'"):
        TransNormerLLM.for_task(SimpleNamespace(task="forecast"))
