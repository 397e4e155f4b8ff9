"""Titans' hybrids: each against its equations, streams, documents and masks; titans-pytorch's transformer."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import Mixer, TokenLayout
from foveate.mixers.titans.mac import TitansMAC
from foveate.mixers.titans.mag import TitansMAG
from foveate.mixers.titans.mal import TitansMAL
from foveate.mixers.titans.parts import Preceded
from foveate.mixers.window_attention import WindowAttention
from foveate.models.language.hyper_connections import HyperConnection, sinkhorn
from foveate.models.language.language_model import LanguageModel
from foveate.models.language.titans import TitansTransformer
from foveate.models.language.titans_attention import SegmentedAttention
from foveate.models.official import load_official
from foveate.ops.positions import apply_rope

MEMORY = {"chunk": 3, "depth": 2}
HYBRIDS = [(TitansMAC, {"segment": 6}), (TitansMAG, {"window": 5}), (TitansMAL, {"window": 5})]
each_hybrid = pytest.mark.parametrize(("cls", "options"), HYBRIDS, ids=["mac", "mag", "mal"])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build(cls: type[Mixer], options: dict[str, Any], **more: Any) -> Any:
    """A small mixer in float64 with noise on its parameters."""
    mixer = cls(8, **{"num_heads": 2, "num_persistent": 2, "memory": MEMORY, **options, **more})
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return mixer.double().eval()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # angles are float32


# Against the equations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [0, 2])
def test_context_is_what_the_equations_say(persistent: int) -> None:
    mixer, x, c = build(TitansMAC, {"segment": 6}, num_persistent=persistent), torch.randn(2, 15, 8).double(), 6
    memory, outputs = mixer.memory.init_state(2), []
    for start in range(0, 15, c):
        s = x[:, start : start + c]
        h = mixer.memory.retrieve(s, memory)
        p = s[:, :0] if mixer.persistent is None else mixer.persistent.expand(2, -1, -1)
        line = torch.cat([p, h, h.new_zeros(2, c - h.shape[1], 8), s], 1)  # a short segment keeps its places
        q, k, v = (f(line).unflatten(2, (2, 4)).transpose(1, 2) for f in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        places = torch.arange(line.shape[1])
        q, k = apply_rope(q, places), apply_rope(k, places)
        rows = []
        for j in range(s.shape[1]):
            own = persistent + c + j
            seen = [*range(persistent), *range(persistent, persistent + j + 1), *range(persistent + c, own + 1)]
            weights = (q[:, :, own : own + 1] @ k[:, :, seen].mT / 2.0).softmax(-1)
            rows.append((weights @ v[:, :, seen]).transpose(1, 2).flatten(2))
        y = mixer.out_proj(torch.cat(rows, 1))
        m = []
        for token in y.unbind(1):
            recalled, memory = mixer.memory.step(token, memory)
            m.append(recalled)
        outputs.append(mixer.gate(y, torch.stack(m, 1)))
    close(mixer(x), torch.cat(outputs, 1))


def test_gate_is_what_the_equations_say() -> None:
    mixer, x = build(TitansMAG, {"window": 5}), torch.randn(2, 17, 8).double()
    m = mixer.memory(torch.cat([mixer.persistent.expand(2, -1, -1), x], 1))[:, 2:]

    def half(t: Tensor, gain: Tensor) -> Tensor:
        t = t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain
        return t * torch.sigmoid(t)

    close(mixer(x), half(mixer.attention(x), mixer.gate.attended) * half(m, mixer.gate.recalled))


def test_layer_is_what_the_equations_say() -> None:
    mixer, x = build(TitansMAL, {"window": 5}), torch.randn(2, 17, 8).double()
    close(mixer(x), mixer.attention(mixer.memory(torch.cat([mixer.persistent.expand(2, -1, -1), x], 1)))[:, 2:])


@each_hybrid
def test_far_tokens_come_through_the_memory_alone(cls: type[Mixer], options: dict) -> None:
    # Not so for windows: without what the memory learns, token 2 is out of token 29's reach.
    mixer, x = build(cls, options), torch.randn(1, 30, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x)[:, -1].sum(), x)
    assert gradient[:, 2].abs().sum() > 0
    window = WindowAttention(8, num_heads=2, window=5).double()
    (gradient,) = torch.autograd.grad(window(x)[:, -1].sum(), x)
    assert gradient[:, 2].abs().sum() == 0


@each_hybrid
def test_all_parameters_learn(cls: type[Mixer], options: dict) -> None:
    mixer = build(cls, options)
    mixer(torch.randn(2, 20, 8).double()).square().sum().backward()
    assert not [name for name, p in mixer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


# Streams, masks, documents --------------------------------------------------------------------------------------------


@each_hybrid
@pytest.mark.parametrize("more", [{}, {"num_persistent": 0}, {"memory": {"chunk": 2, "conv": 0, "momentum": False}}])
def test_a_stream_with_masks_of_any_split_equals_forward(cls: type[Mixer], options: dict, more: dict) -> None:
    mixer, x, mask = build(cls, options, **more), torch.randn(3, 40, 8).double(), torch.rand(3, 40) < 0.6
    mask[0, :17], mask[1, 10:30], mask[:, 32:] = False, False, True
    with torch.no_grad():
        expected = mixer(x, mask=mask)
        for pieces in ([40], [1, 2, 3, 26, 8], [15, 17, *[-1] * 8]):
            state, outputs, at = mixer.init_state(3), [], 0
            for piece in pieces:
                if piece < 0:
                    y, state = mixer.step(x[:, at], state)
                    y = y[:, None]
                else:
                    y, state = mixer.prefill(x[:, at : at + piece], state, mask[:, at : at + piece])
                outputs.append(y)
                at += abs(piece)
            close(torch.cat(outputs, 1), expected)


@each_hybrid
@pytest.mark.parametrize("persistent", [0, 2])
def test_packed_documents_are_those_alone(cls: type[Mixer], options: dict, persistent: int) -> None:
    mixer, x = build(cls, options, num_persistent=persistent), torch.randn(3, 40, 8).double()
    segments = torch.tensor([[0] * 7 + [1] * 20 + [0] * 13, [4] * 40, [2] * 39 + [3]])
    mask = torch.rand(3, 40) < 0.7
    mask[1, 30:] = False
    with torch.no_grad():
        for given in (None, mask):
            y = mixer(x, mask=given, layout=TokenLayout((40,), segments=segments))
            for b, cuts in enumerate([(0, 7, 27, 40), (0, 40), (0, 39, 40)]):
                for first, last in itertools.pairwise(cuts):
                    real = torch.ones(last - first, dtype=torch.bool) if given is None else mask[b, first:last]
                    if real.any():
                        close(y[b : b + 1, first:last][:, real], mixer(x[b : b + 1, first:last][:, real]))
        assert (y[~mask] == 0).all()


def test_tokens_stand_before_every_document() -> None:
    x, tokens = torch.arange(1.0, 11).view(2, 5, 1), torch.tensor([[-1.0], [-2.0]])
    wide = Preceded(x, tokens, None, torch.tensor([[0, 0, 1, 1, 1], [5, 5, 5, 5, 5]]))
    assert wide.x[0, :, 0].tolist() == [-1, -2, 1, 2, -1, -2, 3, 4, 5]
    assert wide.x[1, :7, 0].tolist() == [-1, -2, 6, 7, 8, 9, 10]
    assert wide.segments is not None
    assert wide.segments[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert torch.equal(wide.take(wide.x), x)


@each_hybrid
def test_a_state_does_not_grow(cls: type[Mixer], options: dict) -> None:
    mixer, sizes = build(cls, options), []
    with torch.no_grad():
        state = mixer.init_state(1)
        for _ in range(3):
            _, state = mixer.prefill(torch.randn(1, 60, 8).double(), state)
            sizes.append(state.nbytes)
    assert len(set(sizes)) == 1


@each_hybrid
def test_in_a_language_model_documents_are_apart(cls: type[Mixer], options: dict) -> None:
    name = {TitansMAC: "titans_mac", TitansMAG: "titans_mag", TitansMAL: "titans_mal"}[cls]
    given = {"num_heads": 2, "mixer_options": {**options, "memory": MEMORY}}
    model = LanguageModel(name, vocabulary=11, dim=8, depth=2, **given).double().eval()
    tokens, segments = torch.randint(11, (1, 25)), (torch.arange(25) >= 9).long()[None]
    with torch.no_grad():
        packed = model(tokens, segments=segments)
        close(packed, torch.cat([model(tokens[:, :9]), model(tokens[:, 9:])], 1))


# What is refused ------------------------------------------------------------------------------------------------------


@each_hybrid
@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"num_persistent": -1}, InvalidValue, "num_persistent=-1"),
        ({"memory": [1]}, InvalidType, "memory must be a dictionary of options of titans_lmm, not a list"),
        ({"memory": {"layers": 2}}, InvalidType, "layers"),
        ({"memory": {"chunk": 0}}, InvalidValue, "chunk=0"),
        ({"causal": False}, InvalidValue, "causal=False"),
        ({"position": "alibi"}, InvalidValue, "position='alibi'"),
        ({"rope_base": -1.0}, InvalidValue, "rope_base=-1.0"),
    ],
)
def test_illegal_options(cls: type[Mixer], options: dict, given: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        cls(8, **{"num_heads": 2, **options, **given})


def test_illegal_options_of_one() -> None:
    with pytest.raises(InvalidValue, match="segment=8 is not possible: it must be a multiple of the memory's chunk, 3"):
        TitansMAC(8, num_heads=2, segment=8, memory={"chunk": 3})
    with pytest.raises(InvalidValue, match="activation='relu'"):
        TitansMAG(8, num_heads=2, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="RoPE turns channel pairs"):
        TitansMAC(6, num_heads=2)


@each_hybrid
def test_states_of_others_are_refused(cls: type[Mixer], options: dict) -> None:
    mixer, x = build(cls, options), torch.randn(2, 8).double()
    with pytest.raises(InvalidType, match=f"{cls.__name__}: its state is a"):
        mixer.step(x, WindowAttention(8, num_heads=2).init_state(2))
    with pytest.raises(InvalidValue, match=r"of the state has shape \(3,"):
        mixer.step(x, mixer.init_state(3))
    wider = build(cls, options, memory={"chunk": 3, "expansion": 3.0})
    with pytest.raises(InvalidValue, match="state"):
        mixer.step(x, wider.init_state(2))


# titans-pytorch's transformer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sliding": True, "streams": 3},
        {"num_longterm": 0, "num_persistent": 0},
        {"memory_layers": (1,), "gate_attention": True, "streams": 2},
        {"memory_chunk": 2, "memory_rebase": 4},
    ],
)
def test_the_transformer_streams_in_any_split(options: dict) -> None:
    given = {"dim": 8, "depth": 2, "num_heads": 2, "head_dim": 4, "segment": 4, "num_longterm": 2, **options}
    model = TitansTransformer(vocabulary=11, **given).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        tokens = torch.randint(11, (2, 27))
        expected = model(tokens)
        for pieces in ([27], [4, 1, 3, 19], [9, *[-1] * 18]):
            state, outputs, at = model.init_state(2), [], 0
            for piece in pieces:
                if piece < 0:
                    y, state = model.step(tokens[:, at], state)
                    y = y[:, None]
                else:
                    y, state = model.prefill(tokens[:, at : at + piece], state)
                outputs.append(y)
                at += abs(piece)
            close(torch.cat(outputs, 1), expected)
        assert all(layer.attention.keys.shape[2] <= 7 for layer in state.layers)


def test_what_the_transformer_refuses() -> None:
    model = TitansTransformer(vocabulary=11, dim=8, depth=2, num_heads=2, head_dim=4, segment=4)
    tokens = torch.randint(11, (2, 5))
    for given in ({"mask": tokens > 0}, {"segments": tokens}):
        with pytest.raises(InvalidValue, match=f"takes no {next(iter(given))}"):
            model(tokens, **given)
    with pytest.raises(InvalidValue, match="takes no mask"):
        model.prefill(tokens, model.init_state(2), tokens > 0)
    with pytest.raises(InvalidValue, match="the state has 2 layers of batch 3; 2 of 2 are needed"):
        model.prefill(tokens, model.init_state(3))
    with pytest.raises(InvalidValue, match="memory_layers=\\(2,\\)"):
        TitansTransformer(vocabulary=11, depth=2, memory_layers=(2,))
    with pytest.raises(InvalidValue, match="head_dim=3"):
        SegmentedAttention(8, segment=4, head_dim=3)
    other = TitansTransformer(vocabulary=11, dim=8, depth=2, num_heads=2, head_dim=4, segment=4, memory_layers=())
    with pytest.raises(InvalidValue, match="a memory in layer 0, and the model has none there"):
        load_official(other, {"layers.0.4.to_keys.weight": torch.zeros(8, 8)}, "titans_pytorch")


def test_mixing_of_streams_is_doubly_stochastic() -> None:
    mixing = sinkhorn(torch.randn(5, 3, 3).double())
    close(mixing.sum(-1), torch.ones(5, 3).double())
    close(mixing.sum(-2), torch.ones(5, 3).double())
    connection = HyperConnection(3, 8)
    x, branch = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 8)
    _, mixed, beta = connection(x)
    torch.testing.assert_close(mixed.sum(-2), x.sum(-2), rtol=1e-4, atol=1e-5)  # nothing is lost
    assert beta is not None
    torch.testing.assert_close(connection.add(branch, mixed, beta)[:, :, 1], mixed[:, :, 1] + branch * beta[..., 1:2])
