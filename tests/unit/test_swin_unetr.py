"""Swin UNETR: windows that shrink, corners of mergings, layouts of weights, small forms, and what is refused."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.swin import ShiftedWindows
from foveate.mixers.swin_unetr import ShrinkingWindows
from foveate.models.official import load_official
from foveate.models.vision.swin_unetr import PatchMerging, SwinEncoder, SwinUNETR
from foveate.models.vision.swin_unetr.convolutions import Pointwise, channels_last, make_norm, normed

SMALL = {"feature_size": 12, "depths": (2,), "num_heads": (3,), "window_size": 4}


def shaken(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module.eval()


def by_the_words(mixer: ShrinkingWindows, x: Tensor, window: tuple[int, ...]) -> Tensor:
    """One window that covers the map, its biases by slots of the full window."""
    n = x[0, ..., 0].numel()
    full = list(itertools.product(*(range(w) for w in mixer.window)))[:n]
    sides = [2 * w - 1 for w in mixer.window]
    q, k, v = mixer.qkv(x.flatten(1, -2)).unflatten(-1, (3, mixer.num_heads, -1)).movedim(-2, 1).unbind(-2)
    scores = q @ k.mT / mixer.head_dim**0.5
    for (i, one), (j, other) in itertools.product(enumerate(full), repeat=2):
        row = 0
        for a, b, w, side in zip(one, other, mixer.window, sides, strict=True):
            row = row * side + a - b + w - 1
        scores[:, :, i, j] += mixer.relative_position_bias_table[row]
    return mixer.proj((scores.softmax(-1) @ v).movedim(1, -2).flatten(-2)).view_as(x)


@pytest.mark.parametrize(("window", "grid"), [((4, 4), (3, 2)), ((3, 4, 2), (2, 3, 2)), ((5,), (3,)), ((3, 3), (3, 3))])
@torch.no_grad()
def test_windows_as_long_as_the_map_take_the_first_slots(window, grid):
    mixer = shaken(ShrinkingWindows(8, num_heads=2, window=window, shift=tuple(w // 2 for w in window)))
    x = torch.randn(2, *grid, 8)
    torch.testing.assert_close(mixer(x), by_the_words(mixer, x, window), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_large_maps_are_swins():
    own = shaken(ShrinkingWindows(8, num_heads=2, window=(4, 3), shift=(2, 1)))
    other = ShiftedWindows(8, num_heads=2, window=(4, 3), shift=(2, 1))
    other.load_state_dict(own.state_dict())
    x = torch.randn(1, 9, 7, 8)
    torch.testing.assert_close(own(x), other(x))


@torch.no_grad()
def test_an_axis_that_a_window_covers_is_not_shifted():
    mixer = shaken(ShrinkingWindows(8, num_heads=2, window=(4, 4), shift=2))
    x = torch.randn(1, 4, 12, 8)
    changed = x.clone()
    changed[0, 0, 3] += 1
    moved = (mixer(x) != mixer(changed)).any(-1)[0]
    assert moved[:, 2:6].all()  # all of the short axis, the shifted window along the other
    assert not moved[:, :2].any()
    assert not moved[:, 6:].any()


def test_dropped_weights_are_right_on_average_and_only_in_training():
    torch.manual_seed(0)
    mixer = shaken(ShrinkingWindows(8, num_heads=2, window=(3, 3), shift=1, attn_drop=0.3))
    x = torch.randn(1, 5, 5, 8)
    still = mixer(x)
    assert torch.equal(still, mixer(x))
    mixer.train()
    drawn = torch.stack([mixer(x) for _ in range(2000)])
    assert drawn.std(0).min() > 0
    assert (drawn.mean(0) - still).abs().max() < 0.1 * still.abs().max()


@pytest.mark.parametrize("order", ["merging", "merging_legacy", "mergingv2"])
@torch.no_grad()
def test_corners_of_a_merging(order):
    merge = shaken(PatchMerging(3, 2, order))
    x = torch.randn(1, 3, 4, 5, 2)
    padded = torch.zeros(1, 4, 4, 6, 2)
    padded[:, :3, :, :5] = x
    corners = {
        "merging": "000 100 010 001 110 101 011 111",
        "merging_legacy": "000 100 010 001 101 010 001 111",
        "mergingv2": "000 001 010 011 100 101 110 111",
    }[order]
    y = merge(x)
    assert y.shape == (1, 2, 2, 3, 4)
    for d, h, w in itertools.product(range(2), range(2), range(3)):
        parts = [padded[0, 2 * d + int(c[0]), 2 * h + int(c[1]), 2 * w + int(c[2])] for c in corners.split()]
        torch.testing.assert_close(y[0, d, h, w], merge.reduction(merge.norm(torch.cat(parts))))


@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_of_channels_last_memory_is_the_modules(affine):
    norm = make_norm(("instance", {"affine": affine}), 3, 5)
    shaken(norm)
    x = torch.randn(2, 5, 4, 3, 6, requires_grad=True)
    expected = norm(x)
    y = normed(norm, channels_last(x))
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    one, other = (torch.autograd.grad((m * weights).sum(), x)[0] for m in (y, expected))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_one_channel_lies_channels_last_too():
    for shape in ((2, 1, 4, 6), (2, 1, 4, 6, 3)):
        x = torch.randn(shape)
        assert channels_last(x).stride(1) == 1
        assert torch.equal(channels_last(x), x)


def test_single_places_are_a_convolution():
    point = Pointwise(3, 4, 6, bias=True)
    x = torch.randn(2, 4, 3, 5, 2)
    torch.testing.assert_close(point(x), nn.functional.conv3d(x, point.weight, point.bias))


def test_blocks_that_are_computed_again_have_the_same_gradients():
    torch.manual_seed(0)
    kept = SwinUNETR(1, 2, spatial_dims=2, **SMALL)
    again = SwinUNETR(1, 2, spatial_dims=2, **SMALL, use_checkpoint=True)
    again.load_state_dict(kept.state_dict())
    x = torch.randn(1, 1, 16, 16)
    for model in (kept, again):
        model(x).square().mean().backward()
    for (name, one), other in zip(kept.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_weights_of_pretraining_go_into_the_encoder():
    torch.manual_seed(0)
    options = {"depths": (1, 1, 1, 1), "window_size": 3}
    first, second = SwinEncoder(1, 12, **options), SwinEncoder(1, 12, **options)

    def theirs(key: str) -> str:
        key = re.sub(r"stages\.(\d)\.", lambda m: f"layers{int(m[1]) + 1}.0.", key)
        return "module." + key.replace(".merge.", ".downsample.")

    given = {theirs(key): value for key, value in first.state_dict().items()}
    given["module.layers1.0.blocks.0.attn.relative_position_index"] = torch.zeros(27, 27, dtype=torch.int64)
    given |= {"module.norm.weight": torch.ones(192), "module.rotation_head.weight": torch.ones(4, 192)}
    load_official(second, given, "ssl")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InvalidValue, match=r"left over module\.something"):
        load_official(second, {**given, "module.something": torch.ones(1)}, "ssl")


def test_the_encoder_takes_its_part_of_a_network():
    model = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2)
    given = {"out.conv.conv.bias": torch.zeros(2)}
    for key, value in model.encoder.state_dict().items():
        stem = re.sub(r"stages\.(\d)\.", lambda m: f"layers{int(m[1]) + 1}.0.", key)
        given["swinViT." + stem.replace(".merge.", ".downsample.").replace("mlp.fc", "mlp.linear")] = value
    other = SwinEncoder(1, 12, depths=(1, 1, 1, 1), spatial_dims=2)
    load_official(other, given, "monai")
    for one, two in zip(model.encoder.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("size", "stages"), [((48, 48), 2), ((32, 32, 32), 2), ((20, 36), 1), ((8, 8), 1)])
def test_small_forms_fit_the_patch(size, stages):
    info = SimpleNamespace(task="segment", size=size, channels=1, classes=3)
    model = SwinUNETR.for_task(info)
    assert len(model.encoder.stages) == stages
    assert sum(p.numel() for p in model.parameters()) < 5e5
    assert model(torch.randn(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"spatial_dims": 4}, "spatial_dims=4"),
        ({"feature_size": 16}, "feature_size=16"),
        ({"depths": (2, 2)}, "one entry for each stage"),
        ({"num_heads": (5, 6, 12, 24)}, "num_heads=5"),
        ({"drop_rate": 1.5}, "drop_rate=1.5"),
        ({"attn_drop_rate": -0.1}, "attn_drop_rate=-0.1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"downsample": "max"}, "downsample='max'"),
        ({"window_size": (7, 7)}, "window_size"),
        ({"norm_name": "layer"}, "norm_name='layer'"),
        ({"norm_name": ("group", {"num_groups": 5})}, "norm_name"),
        ({"norm_name": ("instance", {"groups": 5})}, "norm_name"),
        ({"patch_size": 1}, "patch_size=1"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(InvalidValue, match=re.escape(says)):
        SwinUNETR(**options)


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (torch.zeros(1, 1, 64, 64, 48), InvalidValue, "multiple of 32"),
        (torch.zeros(1, 1, 32, 32, 32), InvalidValue, "at least 64"),
        (torch.zeros(1, 2, 64, 64, 64), InvalidValue, "(batch, 1, depth, height, width)"),
        (torch.zeros(1, 64, 64, 64), InvalidValue, "has shape"),
        (torch.zeros(1, 1, 64, 32, 32, dtype=torch.int64), InvalidType, "floating point"),
    ],
)
def test_volumes_that_do_not_fit_are_refused(x, error, says):
    model = SwinUNETR(1, 2, feature_size=12)
    with pytest.raises(error, match=re.escape(says)):
        model(x)


def test_what_a_task_cannot_have_is_refused():
    with pytest.raises(InvalidType, match="classify-images"):
        SwinUNETR.for_task(SimpleNamespace(task="classify-images", size=(32, 32), channels=1, classes=2))
    info = SimpleNamespace(task="segment", size=(33, 32), channels=1, classes=2)
    with pytest.raises(InvalidValue, match="multiple of 4"):
        SwinUNETR.for_task(info)
