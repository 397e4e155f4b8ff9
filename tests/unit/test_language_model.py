"""LanguageModel: the decoder around a causal mixer, its positions, special tokens, documents and streams."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import foveate
from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import Mixer, TokenLayout
from foveate.models.language.language_model import LanguageModel
from foveate.registry import entries
from foveate.spec import MixerSpec

CAUSAL = [e.name for e in entries("mixer") if e.spec.causal == "strict" and 1 in e.spec.ranks]
STREAMING = [e.name for e in entries("mixer") if e.name in CAUSAL and e.spec.streaming == "exact"]
PACKING = [e.name for e in entries("mixer") if e.name in CAUSAL and e.spec.segments]


@dataclass(frozen=True)
class Info:
    task: str = "language"
    vocabulary: int = 11
    context: int = 64
    packed: bool = False


def model_of(mixer, **options):
    torch.manual_seed(0)
    return LanguageModel(mixer, **{"vocabulary": 11, "dim": 16, "depth": 2, "num_heads": 2, **options}).eval()


@pytest.mark.parametrize("positions", ["none", "learned"])
@pytest.mark.parametrize("mixer", STREAMING)
def test_streams_in_any_pieces(mixer, positions):
    model = model_of(mixer, positions=positions)
    ids = torch.randint(11, (2, 21))
    expected = model(ids)
    state = model.init_state(2)
    for begin, end in ((0, 1), (1, 9), (9, 17)):
        logits, state = model.prefill(ids[:, begin:end], state)
        torch.testing.assert_close(logits, expected[:, begin:end], rtol=1e-4, atol=1e-5)
    for t in range(17, 21):
        logits, state = model.step(ids[:, t], state)
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-4, atol=1e-5)
    swapped = state.reorder(torch.tensor([1, 0]))
    torch.testing.assert_close(model.step(ids[:, 0], swapped)[0].flip(0), model.step(ids[:, 0].flip(0), state)[0])


@pytest.mark.parametrize("positions", ["none", "learned"])
@pytest.mark.parametrize("mixer", PACKING)
def test_packed_documents_are_as_apart(mixer, positions):
    model = model_of(mixer, positions=positions)
    ids = torch.randint(11, (1, 23))
    apart = torch.cat([model(ids[:, :9]), model(ids[:, 9:10]), model(ids[:, 10:])], 1)
    segments = torch.tensor([[3] * 9 + [1] + [3] * 13])
    torch.testing.assert_close(model(ids, segments=segments), apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_padding_has_no_influence(positions):
    model = model_of("softmax_attention", positions=positions)
    assert model.masks
    ids = torch.randint(11, (1, 9))
    padded, mask = torch.cat([ids.new_zeros(1, 4), ids], 1), torch.arange(13)[None] >= 4
    torch.testing.assert_close(model(padded, mask=mask)[:, 4:], model(ids), rtol=1e-4, atol=1e-5)
    logits, state = model.prefill(padded, model.init_state(1), mask)
    torch.testing.assert_close(logits[:, 4:], model(ids), rtol=1e-4, atol=1e-5)
    longer = torch.cat([ids, ids[:, :1]], 1)
    torch.testing.assert_close(model.step(ids[:, 0], state)[0], model(longer)[:, -1], rtol=1e-4, atol=1e-5)


class Counting(Mixer):
    """Causal, with a landmark after every four tokens; the output is the mean of the real slots so far."""

    spec = MixerSpec(causal="strict", streaming="own", layout=True)

    def __init__(self, dim, *, causal=True):
        super().__init__(dim, causal=causal)

    def plan_tokens(self, grid):
        source = [s for i in range(grid[0]) for s in ([i, -1] if i % 4 == 3 else [i])]
        return TokenLayout(tuple(grid), torch.tensor(source), ("landmark",), (2,))

    def forward(self, x, *, mask=None, context=None, layout=None):
        self.check_input(x, mask, context, layout)
        return self.prefill(x, self.init_state(x.shape[0]), mask)[0]

    def init_state(self, batch_size, device=None, dtype=None):
        return (torch.zeros(batch_size, self.dim), torch.zeros(batch_size, 1))

    def prefill(self, x, state, mask=None):
        mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        total, slots = state
        sums, counts = total[:, None] + (x * mask[..., None]).cumsum(1), slots[:, None] + mask[..., None].cumsum(1)
        return sums / counts.clamp(min=1) * mask[..., None], (sums[:, -1], counts[:, -1])

    def step(self, x_t, state):
        y, state = self.prefill(x_t[:, None], state)
        return y[:, 0], state


def test_special_tokens_are_fed_to_a_stream():
    model = model_of(Counting, depth=1)
    with torch.no_grad():
        model.stack.special["landmark"].add_(torch.tensor([[1.0], [-2.0]]))
    ids = torch.randint(11, (2, 17))
    expected, state = model(ids), model.init_state(2)
    for begin, end in ((0, 4), (4, 12)):
        logits, state = model.prefill(ids[:, begin:end], state)
        torch.testing.assert_close(logits, expected[:, begin:end], rtol=1e-4, atol=1e-5)
    for t in range(12, 17):
        logits, state = model.step(ids[:, t], state)
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-4, atol=1e-5)
    assert state.stack.layers[0][1].tolist() == [[17 + 4], [17 + 4]]


@pytest.mark.parametrize("positions", ["none", "learned"])
@pytest.mark.parametrize("mixer", [Counting, "landmark_attention"])
def test_a_mask_and_special_tokens_go_together(mixer, positions):
    options = {} if mixer is Counting else {"mixer_options": {"block_size": 4, "chunk": 5, "top_k": 9}}
    model = model_of(mixer, positions=positions, **options)
    assert model.masks
    assert not model.pads
    with torch.no_grad():
        model.stack.special["landmark"].normal_()
    ids, mask = torch.randint(11, (3, 21)), torch.ones(3, 21, dtype=torch.bool)
    mask[0, :6], mask[1, 13:], mask[2] = False, False, False
    expected = model(ids, mask=mask)
    torch.testing.assert_close(expected[1, :13], model(ids[1:2, :13])[0], rtol=1e-4, atol=1e-5)
    other = torch.where(mask, ids, (ids + 1) % 11)
    torch.testing.assert_close(model(other, mask=mask)[mask], expected[mask], rtol=0, atol=0)
    state = model.init_state(3)
    for begin, end in ((0, 1), (1, 9), (9, 21)):
        logits, state = model.prefill(ids[:, begin:end], state, mask[:, begin:end])
        torch.testing.assert_close(logits[:2], expected[:2, begin:end], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(expected).all()
    longer = model(torch.cat([ids, ids[:, :1]], 1), mask=torch.cat([mask, mask[:, :1] | True], 1))
    torch.testing.assert_close(model.step(ids[:, 0], state)[0][:2], longer[:2, -1], rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidValue, match=r"mask has shape \(3, 20\); the tokens have \(3, 21\)"):
        model(ids, mask=mask[:, 1:])
    with pytest.raises(InvalidType, match="mask must be bool"):
        model.prefill(ids, model.init_state(3), mask.long())


def test_is_built_for_a_task_and_saved(tmp_path):
    model = LanguageModel.for_task(Info(), mixer="mamba", dim=16, depth=1).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(11, (1, 5))
    opened = foveate.load(tmp_path)
    assert type(opened) is LanguageModel
    torch.testing.assert_close(opened(ids), model(ids), rtol=0, atol=0)


def test_context_reaches_the_mixer():
    model = model_of("sigmoid_attention", context=100)
    assert float(model.stack.layers[0].mixer.attn_bias) == pytest.approx(-torch.log(torch.tensor(100.0)).item())


class Both(Mixer):
    """Looks both ways."""

    spec = MixerSpec()


class NoDocuments(Mixer):
    """Causal, without documents."""

    spec = MixerSpec(causal="strict")

    def __init__(self, dim, *, causal=True):
        super().__init__(dim, causal=causal)


def test_refuses_what_it_cannot():
    with pytest.raises(InvalidValue, match="strictly causal"):
        model_of(Both)
    with pytest.raises(InvalidType, match="cannot keep them apart"):
        LanguageModel.for_task(Info(packed=True), mixer=NoDocuments)
    with pytest.raises(InvalidType, match="cannot be built for the task 'forecast'"):
        LanguageModel.for_task(Info(task="forecast"), mixer="mamba")
    with pytest.raises(InvalidValue, match="vocabulary=0"):
        model_of("mamba", vocabulary=0)
    with pytest.raises(InvalidValue, match="positions='sine'"):
        model_of("mamba", positions="sine")
    model = model_of("mamba", positions="learned", context=4)
    with pytest.raises(InvalidValue, match="there are 4 learned positions"):
        model(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(InvalidValue, match="no tokens"):
        model(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(InvalidType, match="must be int64"):
        model(torch.zeros(1, 3))
    with pytest.raises(InvalidValue, match=r"must be \(batch,\)"):
        model.step(torch.zeros(1, 1, dtype=torch.int64), model.init_state(1))
