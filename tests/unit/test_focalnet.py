"""Focal modulation and FocalNet: the formula, masks, pictures, sizes of images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from foveate.errors import InvalidValue
from foveate.mixers.focalnet import FocalModulation
from foveate.models.official import load_official
from foveate.models.vision.focalnet import FocalNet


def test_the_layer_is_its_formula():
    torch.manual_seed(0)
    mixer = FocalModulation(6, focal_level=2, focal_window=3, use_postln_in_modulation=True, normalize_modulator=True)
    x = torch.randn(2, 7, 5, 6)
    q, context, gates = mixer.f(x).split((6, 6, 3), -1)
    gathered = torch.zeros_like(x)
    for level, layer in enumerate(mixer.focal_layers):
        assert layer.weight.shape[-1] == 3 + 2 * level
        context = F.gelu(layer(context.movedim(-1, 1)).movedim(1, -1))
        gathered = gathered + context * gates[..., level : level + 1]
    gathered = gathered + F.gelu(context.mean((1, 2), keepdim=True)) * gates[..., 2:]
    expected = mixer.proj(mixer.ln(q * mixer.h(gathered / 3)))
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focal_window": 4}, "focal_window=4 is not possible"),
        ({"focal_level": 0}, "focal_level=0 is not possible"),
        ({"focal_factor": 1}, "focal_factor=1 is not possible"),
        ({"rank": 0}, "rank=0 is not possible"),
        ({"proj_drop": 1.0}, "proj_drop=1.0 is not possible"),
    ],
)
def test_illegal_options_of_the_layer(options, message):
    with pytest.raises(InvalidValue, match=message):
        FocalModulation(8, **options)


def test_a_masked_frame_is_a_smaller_map():
    torch.manual_seed(0)
    mixer = FocalModulation(8, focal_level=3)
    x = torch.randn(1, 9, 8, 8)
    mask = torch.zeros(1, 9, 8, dtype=torch.bool)
    mask[:, :6, :5] = True
    torch.testing.assert_close(mixer(x, mask=mask)[:, :6, :5], mixer(x[:, :6, :5]))


def test_pictures_are_gates_and_strength():
    mixer = FocalModulation(8, focal_level=3)
    gates, strength = mixer.look(torch.randn(2, 5, 6, 8))
    assert gates.values.shape == (2, 4, 5, 6)
    assert strength.values.shape == (2, 1, 5, 6)
    assert (strength.values >= 0).all()


def test_what_patches_do_not_divide_is_left_out_or_filled_up():
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": (1, 1), "focal_levels": (1, 1), "focal_windows": (3, 3), "num_classes": 3}
    model, filling = FocalNet(**sizes).eval(), FocalNet(**sizes, fill_up=True).eval()
    filling.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 23, 18)
    torch.testing.assert_close(model(x), model(x[..., :20, :16]))
    assert [tuple(m.shape[2:]) for m in filling.pyramid(x)] == [(6, 5), (3, 3)]
    torch.testing.assert_close(filling.pyramid(x)[0], model.pyramid(F.pad(x, (0, 2, 0, 1)))[0])
    with pytest.raises(InvalidValue, match="an image of 7 x 30 pixels is too small: each side needs at least 8"):
        model(torch.randn(1, 3, 7, 30))
    assert filling(torch.randn(1, 3, 1, 2)).shape == (1, 3)


def test_overlapping_embeddings_take_images_of_three_pixels():
    model = FocalNet(embed_dim=8, use_conv_embed=True, num_classes=2).eval()
    assert model(torch.randn(1, 3, 3, 4)).shape == (1, 2)
    with pytest.raises(InvalidValue, match="at least 3"):
        model(torch.randn(1, 3, 2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focal_levels": (2,)}, "one entry for each stage"),
        ({"focal_windows": (3, 3)}, "one entry for each stage"),
        ({"patch_size": 2, "use_conv_embed": True}, "patch_size=2 is not possible"),
        ({"depths": ()}, "one entry for each stage"),
    ],
)
def test_illegal_options_of_the_backbone(options, message):
    with pytest.raises(InvalidValue, match=message):
        FocalNet(**options)


def test_weights_of_another_size_are_refused():
    small = FocalNet(embed_dim=8)
    with pytest.raises(InvalidValue, match="wrong shape"):
        load_official(FocalNet(embed_dim=16), small.state_dict())
    with pytest.raises(InvalidValue, match="left over"):
        load_official(FocalNet(embed_dim=8, depths=(1, 1, 1, 1)), small.state_dict())
