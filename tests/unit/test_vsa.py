"""Varied-size windows: where they read, both forms, what is refused; ViTAEv2's pyramid and sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidValue
from foveate.mixers.vsa import VariedSizeWindowAttention
from foveate.models.vision.vsa import ViTAEv2


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


SMALL: dict[str, Any] = {
    "embed_dims": (8, 8),
    "token_dims": (16, 32),
    "downsample_ratios": (4, 2),
    "kernel_sizes": (7, 3),
    "dilations": ((1, 2), (1, 2)),
    "rc_heads": (2, 2),
    "nc_heads": (2, 4),
    "rc_groups": (1, 4),
    "nc_groups": (1, 4),
    "depths": (1, 2),
    "window_size": 3,
}


def mixer(**options: Any) -> VariedSizeWindowAttention:
    torch.manual_seed(0)
    return VariedSizeWindowAttention(16, **{"num_heads": 2, "window_size": 4, **options})


def random_windows(**options: Any) -> VariedSizeWindowAttention:
    made = mixer(**options)
    with torch.no_grad():
        for layer in (made.offsets, made.scales):
            layer.weight.normal_(std=0.5)
            layer.bias.normal_(std=0.5)
    return made.double()


@pytest.mark.parametrize("form", ["classification", "detection"])
@pytest.mark.parametrize("size", [(8, 12), (9, 13)])
def test_training_and_inference_sample_alike(form: str, size: tuple[int, int]):
    layer = random_windows(form=form)
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    trained = layer(x)
    with torch.no_grad():
        agree(layer(x), trained.detach())


def test_forms_agree_on_square_maps_that_windows_divide():
    first, second = random_windows(), random_windows(form="detection")
    second.load_state_dict(first.state_dict())
    for size, alike in (((8, 8), True), ((8, 12), False), ((9, 9), False)):
        x = torch.randn(1, *size, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(first(x), second(x)) == alike, size


def test_windows_without_scale_and_offset_are_the_windows():
    boxes = mixer().windows(torch.randn(1, 8, 12, 16))
    assert boxes.shape == (1, 2, 2, 3, 4)
    agree(boxes[0, 1, 1, 2], torch.tensor([8.0, 4.0, 12.0, 8.0]))
    agree(boxes[0, 0, 0, 0], torch.tensor([0.0, 0.0, 4.0, 4.0]))


def test_x_comes_before_y_and_heads_before_both():
    layer = mixer()
    with torch.no_grad():
        layer.offsets.bias[2] = 0.5  # the second head's x
        layer.scales.bias[3] = -0.5  # its y
    boxes = layer.windows(torch.randn(1, 8, 16, 16))
    moved = 0.5 / 4 * 15 / 2
    agree(boxes[0, 1, 0, 0], torch.tensor([moved, 1.0, 4 + moved, 3.0]))
    agree(boxes[0, 0, 0, 0], torch.tensor([0.0, 0.0, 4.0, 4.0]))


def test_a_look_shows_the_rectangle_of_the_query():
    layer = random_windows()
    x = torch.randn(1, 8, 12, 16, dtype=torch.float64)
    (everything,), (one,) = layer.look(x), layer.look(x, (5, 9))
    assert everything.values.shape == (1, 2, 6, 4)
    agree(one.values[:, :, 0], layer.windows(x)[:, :, 1, 2].detach())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window_size": 0}, "window_size"),
        ({"num_heads": 3}, "num_heads"),
        ({"form": "segmentation"}, "form"),
        ({"proj_drop": 1.0}, "proj_drop"),
        ({"qk_scale": -1.0}, "qk_scale"),
    ],
)
def test_the_mixer_refuses(options: dict[str, Any], says: str):
    with pytest.raises(InvalidValue, match=says):
        mixer(**options)


def test_a_map_smaller_than_a_window_is_refused():
    with pytest.raises(InvalidValue, match="at least 4"):
        mixer()(torch.randn(1, 8, 3, 16))
    with pytest.raises(InvalidValue, match="at least 2"):
        mixer(window_size=1)(torch.randn(1, 1, 4, 16))


def test_other_widths_come_out():
    assert mixer(out_dim=24)(torch.randn(2, 5, 6, 16)).shape == (2, 5, 6, 24)


def test_a_pyramid_tells_its_maps_and_images_are_padded():
    model = ViTAEv2(3, 5, **SMALL).eval()
    maps = model.features_only()(torch.randn(2, 3, 41, 56))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 12, 14), (32, 6, 7)]
    assert [(f.channels, f.reduction) for f in model.feature_info] == [(16, 4), (32, 8)]
    x = torch.randn(1, 3, 41, 56)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 7))
    agree(model(x), model(padded))


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(InvalidValue, match="at least 17"):
        ViTAEv2(3, 5, **SMALL)(torch.randn(1, 3, 16, 40))
    assert ViTAEv2(3, 5, **SMALL)(torch.randn(2, 3, 17, 40)).shape == (2, 5)


@pytest.mark.parametrize(("change", "says"), [({"depths": (1,)}, "depths"), ({"downsample_ratios": (3, 2)}, "ratios")])
def test_the_model_refuses(change: dict[str, Any], says: str):
    with pytest.raises(InvalidValue, match=says):
        ViTAEv2(**{**SMALL, **change})


def test_it_begins_with_plain_windows_unless_told_otherwise():
    for zero in (True, False):
        model = ViTAEv2(3, 5, **SMALL, zero_init=zero)
        assert all(
            (not bool(m.offsets.weight.any())) == zero
            for m in model.modules()
            if isinstance(m, VariedSizeWindowAttention)
        )


@pytest.mark.parametrize(("size", "channels"), [((28, 28), 1), ((33, 29), 3), ((96, 64), 3)])
def test_small_forms_are_small(size: tuple[int, int], channels: int):
    info = SimpleNamespace(task="classify-images", size=size, channels=channels, classes=10)
    model = ViTAEv2.for_task(info).eval()
    assert sum(p.numel() for p in model.parameters()) < 500_000
    assert model(torch.randn(2, channels, *size)).shape == (2, 10)
