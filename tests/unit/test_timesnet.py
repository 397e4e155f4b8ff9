"""TimesNet as a whole: sizes, all tasks, the embedding, loading, and what it refuses."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from foveate.errors import FoveateError, InvalidType, InvalidValue, UnknownName
from foveate.models.official import load_official
from foveate.models.series.embedding import FREQ_MARKS, SeriesEmbedding, sinusoid
from foveate.models.series.timesnet import PUBLISHED, TASKS, TimesNet

SMALL = {"d_model": 6, "d_ff": 5, "e_layers": 1, "top_k": 3, "num_kernels": 3, "enc_in": 4}
INFO = SimpleNamespace(task="forecast", lookback=24, horizon=12, channels=4, targets=(0,), season=24, freq="h", marks=4)


def small(task: str = "forecast", **options: object) -> TimesNet:
    torch.manual_seed(1)
    needed = {"forecast": {"pred_len": 12}, "classify-series": {"num_class": 3}}.get(task, {})
    return TimesNet(**{"task": task, "seq_len": 24, **SMALL, **needed, **options}).eval()


# Sizes and gradients


def test_published_size_has_the_published_number_of_parameters():
    model = TimesNet(task="forecast", seq_len=96, pred_len=96, enc_in=7, **PUBLISHED["forecast/ETTh1"])
    assert sum(p.numel() for p in model.parameters()) == 605_479
    model = TimesNet(task="forecast", seq_len=96, pred_len=96, enc_in=7, **PUBLISHED["forecast/ETTm1"])
    assert sum(p.numel() for p in model.parameters()) == 4_708_167


def test_published_sizes_are_legal_for_their_tasks():
    assert {name.split("/")[0] for name in PUBLISHED} == set(TASKS)
    for name, options in PUBLISHED.items():
        if options["d_model"] <= 32:
            task = name.split("/")[0]
            extra = {"forecast": {"pred_len": 8}, "classify-series": {"num_class": 2}}.get(task, {})
            TimesNet(task=task, seq_len=16, enc_in=2, **options, **extra)


def test_gradients_of_the_whole_model():
    model = small(seq_len=8, pred_len=3, d_model=3, d_ff=2, enc_in=2).double()
    x = torch.randn(2, 8, 2, dtype=torch.float64, requires_grad=True)
    marks = torch.rand(2, 8, 4, dtype=torch.float64) - 0.5

    def run(x: Tensor) -> Tensor:  # the mean is a constant to the gradient as published: shift it out of the check
        return model(x - x.mean(1, keepdim=True), marks)

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)


# Tasks


@pytest.mark.parametrize("marks", [None, 4])
def test_shapes(marks):
    x = torch.randn(3, 24, 4)
    stamps = None if marks is None else torch.rand(3, 24, marks) - 0.5
    seen = torch.rand(3, 24, 4) > 0.3
    assert small()(x, stamps).shape == (3, 12, 4)
    assert small("impute")(x, stamps, seen).shape == (3, 24, 4)
    assert small("classify-series")(x).shape == (3, 3)
    assert small("detect-anomalies")(x).shape == (3, 24, 4)
    assert small("detect-anomalies").anomaly_score(x).shape == (3, 24)


def test_anomaly_score_is_the_squared_error_averaged_over_variables():
    model, x = small("detect-anomalies"), torch.randn(2, 24, 4)
    torch.testing.assert_close(model.anomaly_score(x), (model(x) - x).pow(2).sum(-1) / 4)


def test_marks_matter_and_come_in_through_the_embedding():
    model, x = small(), torch.randn(2, 24, 4)
    marks = torch.rand(2, 24, 4) - 0.5
    assert not torch.allclose(model(x, marks), model(x))
    torch.testing.assert_close(model(x, torch.zeros(2, 24, 4)), model(x))


@pytest.mark.parametrize("task", ["forecast", "impute", "detect-anomalies"])
def test_output_follows_scale_and_shift_of_every_variable(task):
    torch.manual_seed(0)
    model = small(task).double()
    x = torch.randn(2, 24, 4, dtype=torch.float64)
    scale, shift = torch.rand(2, 1, 4).double() * 10 + 1, torch.randn(2, 1, 4).double() * 10
    mask = {"mask": torch.rand(2, 24, 4) > 0.3} if task == "impute" else {}
    torch.testing.assert_close(model(scale * x + shift, **mask), scale * model(x, **mask) + shift, rtol=1e-4, atol=1e-4)


def test_what_is_masked_has_no_influence_on_imputation():
    model, x = small("impute"), torch.randn(2, 24, 4)
    mask = torch.rand(2, 24, 4) > 0.3
    clean = model(x.masked_fill(~mask, 0), mask=mask)
    assert torch.equal(model(x, mask=mask), clean)
    assert torch.equal(model(x.masked_fill(~mask, math.nan), mask=mask), clean)
    assert not torch.allclose(model(x, mask=torch.ones_like(mask)), clean)


def test_padded_steps_do_not_reach_the_classifier():
    model, x = small("classify-series"), torch.randn(2, 24, 4)
    mask = torch.ones(2, 24, dtype=torch.bool)
    torch.testing.assert_close(model(x, mask=mask), model(x))
    assert torch.allclose(model(x, mask=torch.zeros_like(mask)), model.head.bias.expand(2, 3))


def test_constant_windows_are_forecast_as_finite_values():
    y = small()(torch.full((2, 24, 4), 3.0))
    assert y.isfinite().all()
    assert (y - 3).abs().max() < 0.1


def test_bfloat16_is_close_to_float32():
    model, x = small(), torch.randn(2, 24, 4)
    y = model(x)
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - y).abs().mean() < 0.1 * y.abs().mean()


# Embedding


def test_value_embedding_is_circular():
    embed = SeriesEmbedding(2, 5, 9, "timeF", "h", 4, 0.0)
    x = torch.randn(1, 9, 2)
    h = embed(x) - embed.positions
    torch.testing.assert_close(embed(x.roll(3, 1)) - embed.positions, h.roll(3, 1))


def test_sinusoid():
    code = sinusoid(10, 5)
    assert code.shape == (10, 5)
    torch.testing.assert_close(code[3, :2], torch.tensor([math.sin(3), math.cos(3)]))
    torch.testing.assert_close(code[3, 2], torch.tensor(math.sin(3 * 10000 ** (-2 / 5))))


@pytest.mark.parametrize("freq", ["h", "t"])
@pytest.mark.parametrize("embed", ["fixed", "learned"])
def test_calendar_tables(embed, freq):
    model = small(embed=embed, freq=freq)
    columns = [12, 31, 6, 23] + ([3] if freq == "t" else [])
    marks = torch.tensor(columns).expand(2, 24, -1)
    x = torch.randn(2, 24, 4)
    assert model(x, marks).shape == (2, 12, 4)
    trained = [n for n, p in model.named_parameters() if "time" in n and p.requires_grad]
    assert len(trained) == (len(columns) if embed == "learned" else 0)
    tables = dict(model.embedding.time.items())
    expected = sum(tables[name].weight[i] for name, i in zip(tables, columns, strict=True))
    torch.testing.assert_close(model.embedding(x, marks) - model.embedding(x), expected.expand(2, 24, -1))
    with pytest.raises(
        InvalidValue, match="calendar mark is out of range: the columns are month below 13, day below 32"
    ):
        model(x, marks + 1)


@pytest.mark.parametrize("freq", list(FREQ_MARKS))
def test_frequency_letters_set_the_number_of_time_features(freq):
    assert small(freq=freq).embedding.time.in_features == FREQ_MARKS[freq]


# Building, saving, loading


def test_for_task():
    model = TimesNet.for_task(INFO, d_model=4, d_ff=4)
    assert model(torch.randn(2, 24, 4), torch.rand(2, 24, 4)).shape == (2, 12, 4)
    tiny = SimpleNamespace(**{**vars(INFO), "lookback": 4, "horizon": 1, "marks": 0})
    model = TimesNet.for_task(tiny)
    assert model.blocks[0].top_k == 2
    assert model(torch.randn(2, 4, 4), torch.empty(2, 4, 0)).shape == (2, 1, 4)
    assert TimesNet.for_task(INFO, "forecast/ETTh2").norm.normalized_shape == (32,)
    classify = SimpleNamespace(task="classify-series", lookback=29, channels=4, classes=3, marks=0)
    assert TimesNet.for_task(classify)(torch.randn(2, 29, 4)).shape == (2, 3)


def test_save_and_load(tmp_path):
    model, x = small(periods="sample"), torch.randn(2, 24, 4)
    model.save_pretrained(tmp_path)
    loaded = TimesNet.from_pretrained(tmp_path).eval()
    assert loaded.blocks[0].periods == "sample"
    assert torch.equal(loaded(x), model(x))


def official_names(model: TimesNet) -> dict[str, Tensor]:
    """A state dict as the official release writes it, position table included."""
    renames = {
        r"embedding\.value\.": "enc_embedding.value_embedding.tokenConv.",
        r"embedding\.time\.weight": "enc_embedding.temporal_embedding.embed.weight",
        r"embedding\.time\.(\w+)\.weight": r"enc_embedding.temporal_embedding.\1_embed.emb.weight",
        r"blocks\.(\d)\.expand": r"model.\1.conv.0",
        r"blocks\.(\d)\.reduce": r"model.\1.conv.2",
        "extend": "predict_linear",
        "norm": "layer_norm",
        "head": "projection",
    }
    state = {"enc_embedding.position_embedding.pe": sinusoid(5000, 6)[None]}
    for key, value in model.state_dict().items():
        for ours, official in renames.items():
            if re.match(ours, key):
                state[re.sub("^" + ours, official, key)] = value
                break
    return state


@pytest.mark.parametrize("options", [{}, {"embed": "fixed"}, {"task": "classify-series"}, {"task": "impute"}])
def test_official_weights_load(options):
    torch.manual_seed(5)
    source = small(**options)
    torch.manual_seed(6)
    target = small(**options)
    for p in target.parameters():
        torch.nn.init.zeros_(p)
    load_official(target, official_names(source))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
    with pytest.raises(InvalidValue, match=r"missing head\.bias"):
        load_official(target, {k: v for k, v in official_names(source).items() if k != "projection.bias"})


# Refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "forcast"}, "unknown task 'forcast': did you mean 'forecast'?"),
        ({"seq_len": 0}, "seq_len=0 is not possible: it must be at least 1."),
        ({"num_kernels": 0}, "num_kernels=0 is not possible: it must be at least 1."),
        ({"pred_len": 0}, "pred_len=0 is not possible: at least 1 step is forecast."),
        ({"task": "impute", "pred_len": 3}, "pred_len=3 is not possible: task='impute' forecasts nothing, leave it 0."),
        ({"top_k": 19}, "top_k=19 is not possible: 36 steps have frequencies 1 to 18."),
        ({"top_k": 0}, "top_k=0 is not possible: 36 steps have frequencies 1 to 18."),
        (
            {"task": "classify-series", "num_class": None},
            "num_class=None is not possible: classification needs at least 2 classes.",
        ),
        ({"num_class": 3}, "num_class=3 is not possible: task='forecast' has no classes."),
        ({"c_out": 5}, "c_out=5 is not possible: the output has the variables of the input, enc_in=4."),
        ({"embed": "sine"}, "embed='sine' is not possible: it must be one of timeF, fixed, learned."),
        ({"freq": "hourly"}, "freq='hourly' is not possible: it must be one of h, t, s, m, a, w, d, b."),
        ({"periods": "mine"}, "periods='mine' is not possible: it must be one of batch, sample."),
    ],
)
def test_illegal_options(options, says):
    with pytest.raises(FoveateError) as found:
        small(**options)
    assert str(found.value) == says


X, MARKS = torch.zeros(2, 24, 4), torch.zeros(2, 24, 4)
SEEN = torch.ones(2, 24, 4, dtype=torch.bool)
UNSEEN = SEEN.clone()
UNSEEN[1, :, 2] = False


@pytest.mark.parametrize(
    ("task", "arguments", "says"),
    [
        ("forecast", (X[:, 1:],), "TimesNet: x has shape (2, 23, 4); it must be (batch, 24, 4)."),
        ("forecast", (X.long(),), "TimesNet: x must be floating point, not torch.int64."),
        ("forecast", (X / 0,), "TimesNet: x holds NaN or infinite values: fill them, or impute them with a mask."),
        ("forecast", (X, MARKS[..., 1:]), "TimesNet: marks have shape (2, 24, 3); they must be (2, 24, 4)."),
        ("forecast", (X, None, SEEN), "TimesNet: task='forecast' takes no mask: leave it out."),
        ("detect-anomalies", (X, MARKS), "TimesNet: task='detect-anomalies' reads no marks: leave them out."),
        ("impute", (X,), "TimesNet: task='impute' needs a mask: bool like x, True = observed."),
        (
            "impute",
            (X, None, SEEN.float()),
            "TimesNet: mask must be bool (True = observed or real), not torch.float32.",
        ),
        ("impute", (X, None, SEEN[..., 0]), "TimesNet: mask has shape (2, 24); it must be (2, 24, 4)."),
        ("classify-series", (X, None, SEEN), "TimesNet: mask has shape (2, 24, 4); it must be (2, 24)."),
        (
            "impute",
            (X, None, UNSEEN),
            "TimesNet: variable 2 of window 1 has no observed value: drop it or widen the window.",
        ),
    ],
)
def test_illegal_inputs(task, arguments, says):
    with pytest.raises(FoveateError) as found:
        small(task)(*arguments)
    assert str(found.value) == says


def test_illegal_uses():
    with pytest.raises(InvalidType, match="task='forecast' has no anomaly score: build it for 'detect-anomalies'"):
        small().anomaly_score(X)
    with pytest.raises(UnknownName, match="unknown published configuration 'forecast/ETTh'"):
        TimesNet.for_task(INFO, "forecast/ETTh")
    with pytest.raises(InvalidValue, match="embed='fixed' is not possible: the forecast task gives time features"):
        TimesNet.for_task(INFO, embed="fixed")
    with pytest.raises(InvalidType, match="'timesnet' has no option 'width': its options are task, seq_len"):
        TimesNet.for_task(INFO, width=3)
    with pytest.raises(InvalidType, match="TimesNet has no streaming form"):
        small().init_state(1)
