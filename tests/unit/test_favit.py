"""FaViT: the layer by the words of its paper, its two ways to fold windows, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import InvalidValue
from foveate.mixers.favit import FaSA
from foveate.models.vision.favit import FaViT


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def by_unfolding(mixer: FaSA, x: Tensor) -> list[Tensor]:
    """Folded keys before their projections, window by window: ``(batch, heads, M^2, e)`` for each local group."""
    first, *widths = mixer.widths
    conv, mix = mixer.kv_l.depth_conv, mixer.kv_l.point_conv
    mixed = mix(conv(x[..., first:].movedim(-1, 1)).movedim(1, -1)).movedim(-1, 1)
    found = []
    for width, dilation, part in zip(widths, mixer.dilations, mixed.split(widths, 1), strict=True):
        extent = dilation * (mixer.window_size - 1) + 1
        part = F.pad(part, (0, -part.shape[3] % extent, 0, -part.shape[2] % extent), mode="reflect")
        windows = F.unfold(part, mixer.window_size, dilation, 0, extent)
        e, keys = width // mixer.num_heads, mixer.window_size**2
        windows = windows.view(len(x), mixer.num_heads, e, keys, -1)
        if mixer.fusion == "mean":
            found.append(windows.mean(-1).transpose(2, 3))
        else:
            written = windows.permute(0, 1, 3, 4, 2).flatten(3)
            found.append(F.adaptive_avg_pool1d(written.flatten(0, 2), e).view(len(x), mixer.num_heads, keys, e))
    return found


@pytest.mark.parametrize("fusion", ["code", "mean"])
@pytest.mark.parametrize(("ratio", "grid"), [(1, (7, 7)), (1, (9, 4)), (2, (14, 15)), (3, (30, 21))])
def test_windows_are_folded_as_unfolding_says(ratio: int, grid: tuple[int, int], fusion: str) -> None:
    mixer = FaSA(32, num_heads=2, sr_ratio=ratio, fusion=fusion).double()
    seen = []
    for layer in mixer.fcs:
        layer.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    x = torch.randn(2, *grid, 32, dtype=torch.float64)
    mixer(x)
    for ours, expected in zip(seen, by_unfolding(mixer, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_one_window_is_folded_alike() -> None:
    options = {"num_heads": 2, "sr_ratio": 1}
    code, mean = FaSA(32, **options), FaSA(32, fusion="mean", **options)
    mean.load_state_dict(code.state_dict())
    one, four = torch.randn(1, 7, 7, 32), torch.randn(1, 14, 14, 32)
    torch.testing.assert_close(code(one), mean(one))
    assert not torch.allclose(code(four), mean(four), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dim": 24, "num_heads": 2, "sr_ratio": 2}, "dim=24"),
        ({"dim": 32, "num_heads": 2, "sr_ratio": 0}, "sr_ratio=0"),
        ({"dim": 32, "num_heads": 3}, "num_heads=3"),
        ({"dim": 16, "num_heads": 16}, "num_heads=16"),
        ({"dim": 32, "num_heads": 2, "fusion": "sum"}, "fusion='sum'"),
        ({"dim": 32, "num_heads": 2, "proj_drop": 1.0}, "proj_drop=1.0"),
    ],
)
def test_illegal_options(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        FaSA(**options)


def test_small_maps_and_images_are_refused() -> None:
    with pytest.raises(InvalidValue, match="at least 13"):
        FaSA(32, num_heads=2, sr_ratio=4)(torch.randn(1, 12, 40, 32))
    FaSA(32, num_heads=2, sr_ratio=4)(torch.randn(1, 13, 13, 32))
    model = FaViT(
        embed_dims=(32, 64), depths=(1, 1), num_heads=(1, 2), mlp_ratios=(2, 2), sr_ratios=(4, 2), num_classes=3
    )
    assert model.minimum_size == 49
    assert model(torch.randn(1, 3, 49, 60)).shape == (1, 3)
    with pytest.raises(InvalidValue, match="at least 49"):
        model(torch.randn(1, 3, 48, 60))


def test_lists_of_stages_must_agree() -> None:
    with pytest.raises(InvalidValue, match="one entry for each stage"):
        FaViT(embed_dims=(32, 64))


def test_looks_sum_to_one() -> None:
    mixer, x = FaSA(32, num_heads=2, sr_ratio=2), torch.randn(2, 15, 14, 32)
    for query in (None, (3, 4)):
        looks = mixer.look(x, query)
        assert [look.label for look in looks] == ["reduced map", "windows, 1 apart", "windows, 2 apart"]
        for look in looks:
            sums = look.values.flatten(2).sum(-1)
            torch.testing.assert_close(sums, torch.ones_like(sums))
    assert float(mixer.look(x)[0].values[..., 14, :].abs().max()) == 0, "the reduced map has no odd row"
