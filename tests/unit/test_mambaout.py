"""MambaOut: the gated convolution, its fast form, options that are refused, the criterion."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from foveate.errors import InvalidValue
from foveate.mixers.mambaout import GatedCNN, attention_ratio, is_long_sequence
from foveate.models.vision.mambaout import MambaOut


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_the_block_by_its_words(ratio: float, activation: str) -> None:
    mixer = GatedCNN(10, conv_ratio=ratio, kernel_size=5, activation=activation)  # type: ignore[arg-type]
    x = torch.randn(2, 6, 7, 10)
    rows, hidden, channels = mixer.fc1(x), int(8 / 3 * 10), int(ratio * 10)
    gate, passed, mixed = rows[..., :hidden], rows[..., hidden : 2 * hidden - channels], rows[..., -channels:]
    mixed = F.conv2d(mixed.movedim(-1, 1), mixer.conv.weight, mixer.conv.bias, padding=2, groups=channels)
    act = F.gelu if activation == "gelu" else F.silu
    expected = mixer.fc2(act(gate) * torch.cat([passed, mixed.movedim(1, -1)], -1))
    torch.testing.assert_close(mixer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), expected)


def test_masked_tokens_are_as_if_outside_of_the_grid() -> None:
    mixer, x = GatedCNN(8, kernel_size=3), torch.randn(1, 5, 6, 8)
    mask = torch.ones(1, 5, 6, dtype=torch.bool)
    mask[:, :, 4:] = False
    torch.testing.assert_close(mixer(x, mask=mask)[:, :, :4], mixer(x[:, :, :4]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kernel_size": 4}, "kernel_size=4"),
        ({"conv_ratio": 3.0}, "conv_ratio=3.0"),
        ({"conv_ratio": 0.01}, "conv_ratio=0.01"),
        ({"expansion_ratio": -1.0}, "expansion_ratio=-1.0"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"rank": 4}, "rank=4"),
    ],
)
def test_options_of_the_mixer_that_cannot_be_are_refused(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        GatedCNN(16, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depths": (1, 2)}, "2 depths, 4 dims"),
        ({"depths": (1,), "dims": (9,)}, "must be even"),
        ({"stem_stride": 8}, "stem_stride=8"),
        ({"release": "timm"}, "release='timm'"),
        ({"activation": "relu"}, "activation='relu'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        MambaOut(**options)


def test_images_below_four_pixels_are_refused() -> None:
    model = MambaOut(depths=(1,), dims=(8,), num_classes=2)
    assert model(torch.randn(1, 3, 4, 4)).shape == (1, 2)
    with pytest.raises(InvalidValue, match="3 x 8 pixels is too small"):
        model(torch.randn(1, 3, 3, 8))


def test_what_the_official_features_are() -> None:
    model, x = MambaOut(depths=(1, 1), dims=(8, 12), num_classes=0).eval(), torch.randn(2, 3, 33, 29)
    assert model.forward_features(x).shape == (2, 12, 5, 4)
    assert model.pooled(x).shape == (2, 12)
    assert model(x).shape == (2, 48)


def test_the_criterion_of_long_sequences() -> None:
    assert not is_long_sequence(2304, 384)
    assert is_long_sequence(2305, 384)
    assert attention_ratio(196, 384) == pytest.approx(0.085, abs=5e-4)
    with pytest.raises(InvalidValue, match="num_tokens=0"):
        is_long_sequence(0, 384)
    with pytest.raises(InvalidValue, match=r"dim=1\.5"):
        is_long_sequence(10, 1.5)  # type: ignore[arg-type]
