"""ConvNeXt: maps, small images, layouts, drop path."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import InvalidValue
from foveate.models.official import load_official
from foveate.models.vision.convnext import ConvNeXt

SMALL = {"num_classes": 3, "dims": (4, 6, 8), "depths": (1, 2, 1)}


@torch.no_grad()
def test_strides_cut_what_they_do_not_divide():
    model = ConvNeXt(**SMALL).eval()
    assert [tuple(m.shape) for m in model.pyramid(torch.randn(2, 3, 39, 50))] == [
        (2, 4, 9, 12),
        (2, 6, 4, 6),
        (2, 8, 2, 3),
    ]
    x = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(model(torch.nn.functional.pad(x, (0, 3, 0, 2))), model(x))
    with pytest.raises(InvalidValue, match="an image of 15 x 40 pixels is too small: each side needs at least 16"):
        model(torch.randn(1, 3, 15, 40))


def test_layers_need_depths():
    with pytest.raises(InvalidValue, match="one entry for each stage"):
        ConvNeXt(dims=(4, 8), depths=(1,))


def test_the_releases_names():
    model, other = ConvNeXt(**SMALL), ConvNeXt(**SMALL)
    names = {
        "stem.conv": "downsample_layers.0.0",
        "stem.norm": "downsample_layers.0.1",
        ".conv_dw": ".dwconv",
        ".mlp.fc": ".pwconv",
        ".blocks.": ".",
    }
    found = {}
    for key, value in model.state_dict().items():
        for stage in range(3):
            key = key.replace(f"stages.{stage}.downsample.norm", f"downsample_layers.{stage}.0")
            key = key.replace(f"stages.{stage}.downsample.conv", f"downsample_layers.{stage}.1")
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[key] = value
    load_official(other, found, "official")
    for name, value in model.state_dict().items():
        assert value.equal(other.state_dict()[name]), name


def test_depth_is_stochastic_in_training_alone():
    torch.manual_seed(0)
    model, x = ConvNeXt(**SMALL, layer_scale=1.0, drop_path_rate=0.9), torch.randn(4, 3, 32, 32)
    assert not torch.allclose(model(x), model(x))
    model.eval()
    assert model(x).equal(model(x))
