"""The networks of Aaren's paper: the layer against PyTorch's, streams, scaling, masks, and what is refused."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.aaren import Aaren
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.models.build import resolve
from foveate.models.post_norm import PostNormBlock, PostNormStack
from foveate.models.series.aaren import AarenEncoder
from foveate.models.series.embedding import sinusoid
from foveate.models.series.softmax_attention import TransformerEncoder
from foveate.models.series.step_encoder import StepEncoder

NETWORKS = (AarenEncoder, TransformerEncoder)
each = pytest.mark.parametrize("network", NETWORKS)


def small(network: type[StepEncoder], task: str = "forecast", **options: object) -> StepEncoder:
    torch.manual_seed(0)
    sizes = {"seq_len": 40, "enc_in": 3, "outputs": 5, "dim": 16, "num_heads": 2, "hidden": 24, **options}
    return network(task=task, **sizes).eval()


def marks_for(x: Tensor) -> Tensor:
    return torch.rand(*x.shape[:2], 4) - 0.5


@pytest.mark.parametrize("causal", [False, True])
def test_the_layer_is_pytorchs(causal: bool) -> None:
    torch.manual_seed(0)
    ours = PostNormBlock(SoftmaxAttention(16, num_heads=4, causal=causal), 32, 0.0)
    theirs = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    mixer, x = ours.mixer, torch.randn(2, 9, 16)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.self_attn.out_proj.load_state_dict(mixer.out_proj.state_dict())
        for to, of in (("linear1", "expand"), ("linear2", "reduce"), ("norm1", "mixer_norm"), ("norm2", "feed_norm")):
            getattr(theirs, to).load_state_dict(getattr(ours, of).state_dict())
        later = torch.ones(9, 9, dtype=torch.bool).triu(1) if causal else None
        torch.testing.assert_close(ours(x), theirs(x, src_mask=later))


@each
def test_features_do_not_look_ahead(network: type[StepEncoder]) -> None:
    model, x = small(network), torch.randn(2, 40, 3)
    features = model.forward_features(x)
    x[:, 25:] = torch.randn(2, 15, 3) * 10
    assert torch.equal(model.forward_features(x)[:, :25], features[:, :25])


def test_a_transformer_may_look_ahead() -> None:
    model, x = small(TransformerEncoder, causal=False), torch.randn(2, 40, 3)
    features = model.forward_features(x)
    x[:, 25:] += 1
    assert not torch.allclose(model.forward_features(x)[:, :25], features[:, :25])


@each
def test_a_window_read_as_a_stream_has_the_forecast_of_forward(network: type[StepEncoder]) -> None:
    model, x = small(network, marks=4), torch.randn(2, 40, 3) * 5 + 7
    marks = marks_for(x)
    with torch.no_grad():
        found, _ = model.prefill(x, model.init_state(2), marks=marks)
        torch.testing.assert_close(found, model(x, marks))


@each
def test_a_forecasters_stream_goes_on_in_its_first_scale(network: type[StepEncoder]) -> None:
    model, x = small(network, marks=4), torch.randn(2, 60, 3)
    marks = marks_for(x)
    with torch.no_grad():
        first, state = model.prefill(x[:, :40], model.init_state(2), marks=marks[:, :40])
        expected, _ = model.prefill(x[:, 40:], state, marks=marks[:, 40:])
        for t in range(40, 60):
            first, state = model.step(x[:, t], state, marks=marks[:, t])
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
        # By hand: positions count on, the scale is that of the first 40 steps.
        mean, deviation = x[:, :40].mean(1, keepdim=True), x[:, :40].std(1, unbiased=False, keepdim=True)
        feature = model.forward_features((x - mean) / deviation, marks)[:, -1]
        by_hand = model.head(feature).view(2, 5, 3) * deviation + mean
    torch.testing.assert_close(expected, by_hand, rtol=1e-3, atol=1e-4)


@each
def test_a_classifiers_stream_answers_for_all_it_read(network: type[StepEncoder]) -> None:
    model, x = small(network, "classify-series"), torch.randn(2, 40, 3)
    mask = torch.arange(40) < torch.tensor([[40], [17]])
    with torch.no_grad():
        _, state = model.prefill(x[:, :10], model.init_state(2), mask[:, :10])
        found, _ = model.prefill(x[:, 10:], state, mask[:, 10:])
        torch.testing.assert_close(found, model(x, mask=mask), rtol=1e-4, atol=1e-5)
        state, found = model.init_state(2), None
        for t in range(40):
            found, state = model.step(x[:, t], state)
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


def test_states_grow_for_the_transformer_only() -> None:
    sizes = {}
    for network in NETWORKS:
        model = small(network)
        with torch.no_grad():
            states = [model.prefill(torch.randn(1, n, 3), model.init_state(1))[1] for n in (10, 1000)]
        sizes[network] = [state.nbytes for state in states]
    assert sizes[AarenEncoder] == [4 * (2 * (16 + 2 * 2) + 2 * 3)] * 2  # two layers; mean and deviation
    assert sizes[TransformerEncoder][1] > 50 * sizes[TransformerEncoder][0]


@each
def test_forecasts_follow_scale_and_shift(network: type[StepEncoder]) -> None:
    model = small(network).double()
    x = torch.randn(2, 40, 3, dtype=torch.float64)
    scale, shift = 1 + 10 * torch.rand(2, 1, 3).double(), 10 * torch.randn(2, 1, 3).double()
    torch.testing.assert_close(model(scale * x + shift), scale * model(x) + shift, rtol=1e-4, atol=1e-4)


@each
def test_masked_steps_have_no_influence(network: type[StepEncoder]) -> None:
    model, x = small(network, "classify-series"), torch.randn(2, 40, 3)
    mask = torch.arange(40) < torch.tensor([[40], [17]])
    logits = model(x, mask=mask)
    torch.testing.assert_close(logits[0], model(x)[0])
    with torch.no_grad():
        torch.testing.assert_close(logits[1:], model.prefill(x[1:, :17], model.init_state(1))[0])
    assert torch.equal(model(x.masked_fill(~mask[..., None], torch.nan), mask=mask), logits)


def test_marks_matter() -> None:
    model, x = small(AarenEncoder, marks=4), torch.randn(2, 40, 3)
    assert not torch.allclose(model(x, marks_for(x)), model(x))
    torch.testing.assert_close(model(x, torch.zeros(2, 40, 4)), model(x))


def test_positions_from_a_later_start() -> None:
    torch.testing.assert_close(sinusoid(5, 6, start=3), sinusoid(8, 6)[3:])


def test_built_for_a_task() -> None:
    info = SimpleNamespace(task="forecast", lookback=30, horizon=12, channels=4, marks=2)
    model = AarenEncoder.for_task(info, depth=3, dim=8)
    assert model(torch.randn(2, 30, 4), torch.zeros(2, 30, 2)).shape == (2, 12, 4)
    assert len(model.encoder.layers) == 3
    info = SimpleNamespace(task="classify-series", lookback=30, classes=7, channels=4, marks=0)
    assert TransformerEncoder.for_task(info)(torch.randn(2, 30, 4)).shape == (2, 7)
    with pytest.raises(InvalidType, match="'TransformerEncoder' has no option 'patch'"):
        TransformerEncoder.for_task(info, patch=8)


def test_the_mixers_keep_their_names() -> None:
    assert resolve("aaren").kind == resolve("softmax_attention").kind == "mixer"
    assert resolve("aaren_encoder").target is AarenEncoder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "impute"}, "task='impute' is not possible: it must be one of forecast, classify-series"),
        ({"seq_len": 0}, "seq_len=0 is not possible: it must be at least 1"),
        ({"outputs": 0}, "outputs=0 is not possible: it must be at least 1"),
        ({"marks": -1}, "marks=-1 is not possible: it is a number of columns"),
        ({"depth": 0}, "depth=0 is not possible: at least one layer"),
        ({"hidden": 0}, "hidden=0 is not possible: the feed-forward needs"),
        ({"num_heads": 3}, "num_heads=3 is not possible: it must divide dim=16"),
        ({"causal": False}, "causal=False is not possible: Aaren is causal by construction"),
    ],
)
def test_refuses_options(change: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(says)):
        small(AarenEncoder, **{"task": "forecast", **change})


def test_refuses_inputs() -> None:
    forecaster, classifier = small(AarenEncoder), small(AarenEncoder, "classify-series")
    x = torch.randn(2, 40, 3)
    with pytest.raises(InvalidValue, match=re.escape("marks have shape (2, 40, 4); they must be (2, 40, 0)")):
        forecaster(x, marks_for(x))
    with pytest.raises(InvalidValue, match="AarenEncoder takes no mask for forecasts"):
        forecaster(x, mask=torch.ones(2, 40).bool())
    with pytest.raises(InvalidType, match="mask must be bool"):
        classifier(x, mask=torch.ones(2, 40))
    with pytest.raises(InvalidValue, match=re.escape("mask has shape (2, 39); it must be (2, 40)")):
        classifier(x, mask=torch.ones(2, 39).bool())
    with pytest.raises(InvalidValue, match=re.escape("x has shape (2, 40); it must be (batch, steps, 3)")):
        forecaster.prefill(x[..., 0], forecaster.init_state(2))
    with pytest.raises(InvalidValue, match="step takes one token"):
        forecaster.step(x, forecaster.init_state(2))
    with pytest.raises(InvalidType, match="no streaming form with causal=False"):
        small(TransformerEncoder, causal=False).init_state(2)


def test_a_stack_of_any_mixer_streams() -> None:
    torch.manual_seed(0)
    stack, x = PostNormStack(Aaren, 8, 2, num_heads=2, causal=True, hidden=16, dropout=0.0), torch.randn(2, 12, 8)
    _, state = stack.prefill(x[:, :11], stack.init_state(2))
    last, _ = stack.step(x[:, 11], state)
    torch.testing.assert_close(last, stack(x)[:, 11], rtol=1e-4, atol=1e-5)
