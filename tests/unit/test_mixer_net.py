"""MixerNet: the backbone around a mixer, its readers and heads."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from foveate.mixers import Mixer, MixerSpec, TokenLayout
from foveate.models import MixerNet, resolve
from foveate.models.mixer_stack import MixerStack
from foveate.models.readers import SeriesReader

INFO = SimpleNamespace(
    task="forecast", lookback=30, horizon=7, channels=3, targets=(0, 1, 2), season=24, freq="h", marks=4
)


class Landmarks(Mixer):
    """Puts a special token after every fourth one and writes the mean of the sequence there, for the tests."""

    spec = MixerSpec(layout=True)

    def __init__(self, dim: int, *, causal: bool = False) -> None:
        super().__init__(dim, causal=causal)

    def plan_tokens(self, grid):
        source = []
        for i in range(grid[0]):
            source.append(i)
            if i % 4 == 3:
                source.append(-1)
        return TokenLayout(tuple(grid), torch.tensor(source), ("landmark",), (1,))

    def forward(self, x, *, mask=None, context=None, layout=None):
        assert layout is not None
        assert x.shape[1] == layout.length
        return torch.where(layout.role_mask("landmark")[:, None], x.mean(1, keepdim=True), 0.0)


def test_forecaster_is_equivariant_to_scale_and_shift():
    torch.manual_seed(0)
    model = MixerNet.for_task(INFO, mixer="softmax_attention", dim=16, num_heads=2, dropout=0.0).eval()
    x = torch.randn(2, 30, 3)
    scale, shift = torch.tensor([2.0, 0.5, 7.0]), torch.tensor([-3.0, 100.0, 0.0])
    torch.testing.assert_close(model(x * scale + shift), model(x) * scale + shift, rtol=2e-3, atol=2e-3)


def test_channels_do_not_mix():
    torch.manual_seed(0)
    model = MixerNet.for_task(INFO, mixer="softmax_attention", dim=16, num_heads=2).eval()
    x = torch.randn(2, 30, 3)
    other = x.clone()
    other[..., 1] = torch.randn(2, 30)
    torch.testing.assert_close(model(other)[..., [0, 2]], model(x)[..., [0, 2]], rtol=0, atol=0)
    assert not torch.equal(model(other)[..., 1], model(x)[..., 1])


def test_series_reader_pads_in_front_with_the_first_value():
    reader = SeriesReader(length=10, patch=4, dim=3)
    with torch.no_grad():
        reader.project.weight.copy_(torch.eye(3, 4))
        reader.project.bias.zero_()
    x = torch.arange(10.0).reshape(1, 10, 1)
    tokens, (mean, deviation) = reader(x)
    z = (x - mean) / deviation
    assert tokens.shape == (1, 3, 3)
    torch.testing.assert_close(tokens[0, 0], torch.stack([z[0, 0, 0], z[0, 0, 0], z[0, 0, 0]]))
    torch.testing.assert_close(tokens[0, 2], z[0, 6:9, 0])


@pytest.mark.parametrize(
    ("reads", "size", "shape"), [("image", (8, 12), (2, 3, 8, 12)), ("video", (4, 8, 8), (2, 3, 4, 8, 8))]
)
def test_images_and_videos_become_classes(reads, size, shape):
    model = MixerNet(
        "softmax_attention",
        reads=reads,
        answers="classes",
        size=size,
        channels=3,
        outputs=5,
        dim=16,
        num_heads=2,
        patch=4,
    )
    assert model(torch.randn(shape)).shape == (2, 5)
    assert model.forward_features(torch.randn(shape)).shape == (2, *(s // 4 for s in size), 16)


def test_a_mixer_of_sequences_reads_an_image_row_by_row():
    model = MixerNet(
        "lightning_attention",
        reads="image",
        answers="classes",
        size=(8, 8),
        channels=1,
        outputs=2,
        dim=16,
        num_heads=2,
        patch=4,
    )
    assert model(torch.randn(1, 1, 8, 8)).shape == (1, 2)


def test_special_tokens_are_inserted_learned_and_taken_out():
    stack = MixerStack(Landmarks, 8, 2)
    x = torch.randn(2, 10, 8)
    y = stack(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert stack.special["landmark"].shape == (1, 8)
    layout = stack.layers[0].mixer.plan_tokens((10,))
    wide = layout.insert(x, dict(stack.special.items()))
    assert wide.shape == (2, 12, 8)
    torch.testing.assert_close(layout.extract(wide), x, rtol=0, atol=0)
    torch.testing.assert_close(wide[:, 4], stack.special["landmark"].expand(2, -1), rtol=0, atol=0)


class Sized(Landmarks):
    """Wants a table of the grid's size."""

    def __init__(self, dim: int, *, causal: bool = False, places: int = 0) -> None:
        super().__init__(dim, causal=causal)
        self.places = places

    @classmethod
    def options_for(cls, grid):
        return {"places": grid[0]}


def test_a_mixer_is_told_the_grid_and_the_caller_wins():
    assert MixerStack(Sized, 8, 1, rank=2, grid=(3, 4)).layers[0].mixer.places == 12
    assert MixerStack(Sized, 8, 1, grid=(5,), mixer_options={"places": 2}).layers[0].mixer.places == 2


def test_parameters_are_spread_over_depth():
    shallow, deep = (
        sum(p.numel() for p in MixerStack("softmax_attention", 16, depth).parameters()) for depth in (1, 3)
    )
    assert math.isclose(deep - 32, 3 * (shallow - 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "softmax_atention"}, "did you mean 'softmax_attention'"),
        ({"reads": "text"}, "reads='text' is not possible: legal are series"),
        ({"answers": "tokens"}, "answers='tokens' is not possible for series: legal is forecast or classes"),
        ({"patch": 97}, "patch=97 is not possible: it must be between 1 and the lookback 96"),
        ({"depth": 0}, "depth=0 is not possible"),
        ({"mixer_options": {"heads": 3}}, "'softmax_attention' has no option 'heads'"),
        ({"reads": "image", "answers": "classes", "size": (8, 9), "patch": 0}, "it must be positive along the axes"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError, LookupError), match=message):
        MixerNet(**{"mixer": "softmax_attention", **options})


def test_wrong_series_shapes_are_refused():
    model = MixerNet.for_task(INFO, mixer="softmax_attention", dim=16)
    with pytest.raises(ValueError, match=r"x has shape \(1, 29, 3\); it must be \(batch, 30, 3\)"):
        model(torch.randn(1, 29, 3))
    with pytest.raises(TypeError, match="must be floating point"):
        model(torch.zeros(1, 30, 3, dtype=torch.int64))


def test_names_become_contestants(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from foveate.mixers import Mixer\nclass M(Mixer):\n    pass\nx = 3\n")
    monkeypatch.chdir(tmp_path)
    assert resolve("dlinear").kind == "model"
    assert resolve("mamba").kind == "mixer"
    assert resolve("mine:M").kind == "custom"
    for name, message in [
        ("nine:M", "no module 'nine'"),
        ("mine:N", "has no 'N'"),
        ("mine:x", "must be a subclass"),
        ("dlinaer", "did you mean 'dlinear'"),
    ]:
        with pytest.raises((LookupError, TypeError), match=message):
            resolve(name)
    with pytest.raises(TypeError, match="'dlinear' has no option 'depth'"):
        resolve("dlinear").build(INFO, {"depth": 3})
    model = resolve("mamba").build(INFO, {"dim": 16, "d_state": 4})
    assert model(torch.randn(1, 30, 3)).shape == (1, 7, 3)


@pytest.mark.parametrize(("size", "mixer"), [((9, 7), "softmax_attention"), ((6, 9, 7), "softmax_attention")])
def test_maps_answer_for_every_pixel_of_a_patch(size, mixer):
    """Sizes that the patch does not divide, too."""
    info = SimpleNamespace(task="segment", size=size, channels=2, classes=3)
    model = MixerNet.for_task(info, mixer=mixer, dim=16, patch=2).eval()
    x = torch.randn(2, 2, *size)
    y = model(x)
    assert y.shape == (2, 3, *size)
    tokens = model.head.project(model.forward_features(x)).unflatten(-1, (3, *[2] * len(size)))
    for place in [(0,) * len(size), tuple(s - 1 for s in size), (3, 4, 5)[: len(size)]]:
        token, inside = tuple(p // 2 for p in place), tuple(p % 2 for p in place)
        expected = tokens[(slice(None), *token, slice(None), *inside)]
        assert torch.allclose(y[(slice(None), slice(None), *place)], expected)
    with pytest.raises(ValueError, match=r"it must be \(batch, 2, "):
        model(x[..., :-1])


def test_images_of_odd_sizes_are_classified():
    info = SimpleNamespace(task="classify-images", size=(33, 29), channels=3, classes=4)
    for mixer in ("softmax_attention", "lightning_attention"):
        model = MixerNet.for_task(info, mixer=mixer, dim=16).eval()
        assert model.reader.grid == (9, 8)
        assert model(torch.randn(2, 3, 33, 29)).shape == (2, 4)
