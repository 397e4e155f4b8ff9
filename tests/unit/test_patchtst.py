"""PatchTST: patches, layers, masks, sizes, and what it refuses; official answers are in ``tests/peers``."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from foveate.errors import FoveateError, InvalidType
from foveate.models.series.patches import PatchEmbedding, PatchLayer, TokenBatchNorm, patch_count
from foveate.models.series.patchtst import PUBLISHED, RELEASES, TASKS, PatchTST

SMALL = {"seq_len": 24, "enc_in": 3, "d_model": 8, "n_heads": 2, "d_ff": 12, "e_layers": 2}
NEEDED = {"forecast": {"pred_len": 6}, "classify-series": {"num_class": 4}}


def small(task: str = "forecast", **options: object) -> PatchTST:
    torch.manual_seed(1)
    return PatchTST(**{"task": task, **SMALL, **NEEDED.get(task, {}), **options}).eval()


# ----- parts


@pytest.mark.parametrize(
    ("length", "patch_len", "stride"), [(24, 16, 8), (25, 16, 8), (29, 6, 5), (7, 7, 3), (9, 2, 7)]
)
def test_patches_by_hand(length: int, patch_len: int, stride: int) -> None:
    embedding = PatchEmbedding(length, patch_len, stride, 4, learned=True, dropout=0.0)
    x = torch.randn(2, length)
    padded = torch.cat([x] + [x[:, -1:]] * stride, 1)
    starts = range(0, length + stride - patch_len + 1, stride)
    assert patch_count(length, patch_len, stride) == len(starts) == len(embedding.positions)
    expected = [embedding.value(padded[:, s : s + patch_len]) + embedding.positions[i] for i, s in enumerate(starts)]
    torch.testing.assert_close(embedding(x), torch.stack(expected, 1))


def test_batch_norm_takes_samples_and_tokens_together() -> None:
    norm, x = TokenBatchNorm(4), 3 * torch.randn(5, 6, 4) + 1
    expected = (x - x.mean((0, 1))) / (x.var((0, 1), unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("residual", [False, True])
def test_attention_by_definition(residual: bool) -> None:
    torch.manual_seed(0)
    layer = PatchLayer(8, 2, 12, batch_norm=False, residual=residual, dropout=0.0).eval()
    x, before = torch.randn(3, 5, 8), torch.randn(3, 2, 5, 5) if residual else None
    q, k, v = (f(x).view(3, 5, 2, 4).transpose(1, 2) for f in (layer.query, layer.key, layer.value))
    scores = q @ k.transpose(2, 3) / math.sqrt(4)
    scores = scores if before is None else scores + before
    attended = x + layer.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(3, 5, 8))
    h = layer.attention_norm(attended)
    y = layer.feed_norm(h + layer.down(torch.nn.functional.gelu(layer.up(h))))
    result, handed_on = layer(x, before)
    torch.testing.assert_close(result, y)
    if residual:
        torch.testing.assert_close(handed_on, scores)
    else:
        assert handed_on is None


def test_scores_are_handed_on_only_where_the_release_does() -> None:
    x = torch.randn(2, 24, 3)
    with_them, without = small(), small(residual=False)
    without.load_state_dict(with_them.state_dict())
    assert not torch.allclose(with_them(x), without(x), atol=1e-6)
    assert all(layer.residual for layer in with_them.layers)
    assert not any(layer.residual for layer in small(release="Time-Series-Library").layers)


# ----- the network


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("task", TASKS)
def test_shapes(task: str, release: str) -> None:
    x = torch.randn(2, 24, 3)
    mask = torch.rand(2, 24, 3) > 0.3 if task == "impute" else None
    shape = {"forecast": (2, 6, 3), "classify-series": (2, 4)}.get(task, (2, 24, 3))
    model = small(task, release=release)
    assert model(x, mask=mask).shape == shape
    if task == "detect-anomalies":
        torch.testing.assert_close(model.anomaly_score(x), (model(x) - x).pow(2).mean(-1))


def test_marks_are_not_read() -> None:
    model, x = small(), torch.randn(2, 24, 3)
    assert torch.equal(model(x, torch.randn(2, 24, 4)), model(x))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("hidden", [math.nan, 1e6])
def test_what_is_hidden_has_no_influence(release: str, hidden: float) -> None:
    x, seen = torch.randn(2, 24, 3), torch.rand(2, 24, 3) > 0.4
    model = small("impute", release=release)
    assert torch.equal(model(x.masked_fill(~seen, hidden), mask=seen), model(x, mask=seen))
    real = torch.arange(24) < torch.tensor([[24], [15]])
    model = small("classify-series", release=release)
    assert torch.equal(model(x.masked_fill(~real[..., None], hidden), mask=real), model(x, mask=real))
    assert not torch.allclose(model(x, mask=real), model(x), atol=1e-6)


def test_statistics_are_those_of_what_is_seen() -> None:
    """A window whose seen values are scaled and shifted comes back scaled and shifted."""
    model, x, seen = small("impute").double(), torch.randn(2, 24, 3, dtype=torch.float64), torch.rand(2, 24, 3) > 0.4
    torch.testing.assert_close(model(50 * x + 7, mask=seen), 50 * model(x, mask=seen) + 7, rtol=1e-4, atol=1e-3)


def test_the_scale_and_shift_of_revin_are_undone() -> None:
    model, x = small(affine=True), torch.randn(2, 24, 3)
    before = model(x)
    with torch.no_grad():
        model.affine_weight.fill_(2.0)
        model.affine_bias.fill_(0.5)
        tokens_differ = not torch.allclose(model(x), before, atol=1e-5)
        for parameter in (model.head.weight, model.head.bias):
            parameter.zero_()
        expected = x.mean(1, keepdim=True) - 0.25 * (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert tokens_differ
    torch.testing.assert_close(model(x), expected.expand(2, 6, 3))


def test_gradients_reach_the_deviation_only_in_the_library() -> None:
    """A scale of the input that the normalisation undoes, but for the gradient that is let through or not."""

    def gradient(release: str) -> Tensor:
        model, x = small(release=release).double(), torch.randn(2, 24, 3, dtype=torch.float64)
        scale = torch.ones(2, 1, 3, dtype=torch.float64, requires_grad=True)
        x = x - x.mean(1, keepdim=True)
        y = model(scale * x)
        return torch.autograd.grad(y.sum(), scale)[0] - y.detach().sum(1, keepdim=True)

    assert gradient("Time-Series-Library").abs().max() < 1e-3
    assert gradient("PatchTST").abs().max() > 1e-2


def test_published_sizes() -> None:
    def parameters(name: str, lookback: int) -> int:
        model = PatchTST(task="forecast", seq_len=lookback, pred_len=96, enc_in=7, **PUBLISHED[name])
        return sum(p.numel() for p in model.parameters())

    layer = 4 * (512 * 512 + 512) + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    assert parameters("forecast/ETTh1", 96) == 16 * 512 + layer + 2 * 512 + 12 * 512 * 96 + 96
    small_layer = 4 * (16 * 16 + 16) + 2 * 16 * 128 + 128 + 16 + 4 * 16
    assert parameters("forecast/ETTh1-long", 336) == 17 * 16 + 42 * 16 + 3 * small_layer + 42 * 16 * 96 + 96


@pytest.mark.parametrize("lookback", [1, 2, 5, 15, 16, 40])
def test_short_windows_get_short_patches(lookback: int) -> None:
    info = SimpleNamespace(task="forecast", lookback=lookback, horizon=3, channels=2, marks=4)
    assert PatchTST.for_task(info).eval()(torch.randn(2, lookback, 2)).shape == (2, 3, 2)
    assert PatchTST.for_task(info, d_model=4, n_heads=1).head.in_features % 4 == 0


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: small("forcast"), "unknown task 'forcast'"),
        (lambda: small(release="official"), "unknown release 'official'"),
        (lambda: small(d_ff=0), "d_ff=0 is not possible: it must be at least 1."),
        (lambda: small(n_heads=3), "n_heads=3 is not possible: it must divide d_model=8."),
        (lambda: small(patch_len=25), "patch_len=25 is not possible: a window has 24 steps."),
        (lambda: small(pred_len=0), "pred_len=0 is not possible: at least 1 step is forecast."),
        (lambda: small("impute", pred_len=3), "pred_len=3 is not possible: task='impute' forecasts nothing."),
        (lambda: small("classify-series", num_class=1), "num_class=1 is not possible: at least 2 classes are needed."),
        (lambda: small(num_class=2), "num_class=2 is not possible: task='forecast' has no classes."),
        (lambda: small()(torch.zeros(1, 24, 2)), "PatchTST: x has shape (1, 24, 2); it must be (batch, 24, 3)."),
        (lambda: small("impute")(torch.zeros(1, 24, 3)), "PatchTST: task='impute' needs a mask"),
        (
            lambda: small()(torch.zeros(1, 24, 3), mask=torch.ones(1, 24, 3, dtype=torch.bool)),
            "PatchTST: task='forecast' takes no mask: leave it out.",
        ),
        (
            lambda: small("impute")(torch.zeros(1, 24, 3), mask=torch.ones(1, 24, 3)),
            "PatchTST: mask must be bool (True = observed or real), not torch.float32.",
        ),
        (
            lambda: small("impute")(torch.zeros(1, 24, 3), mask=torch.ones(1, 24).bool()),
            "PatchTST: mask has shape (1, 24); it must be (1, 24, 3).",
        ),
        (lambda: small().anomaly_score(torch.zeros(1, 24, 3)), "PatchTST: task='forecast' has no anomaly score"),
    ],
)
def test_refusals(build, says: str) -> None:
    with pytest.raises(FoveateError) as found:
        build()
    assert str(found.value).startswith(says)


def test_unknown_options_are_refused_by_name() -> None:
    info = SimpleNamespace(task="forecast", lookback=24, horizon=3, channels=2, marks=4)
    with pytest.raises(InvalidType, match="'patchtst' has no option 'depth'"):
        PatchTST.for_task(info, depth=3)
    with pytest.raises(FoveateError, match="unknown published configuration 'ETTh9'"):
        PatchTST.for_task(info, published="ETTh9")
