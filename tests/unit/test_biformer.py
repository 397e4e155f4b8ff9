"""BiFormer: the op's forms, regions, what is refused, what a look shows, models of all layouts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.measure.isolated import allocated_bytes_of
from foveate.measure.op_costs import op_cost
from foveate.mixers.biformer import BiLevelRoutingAttention, LePEAttention, RegionalRoutingAttention, best_regions
from foveate.mixers.biformer.regions import from_regions, to_regions
from foveate.models.vision.biformer import BiFormer
from foveate.ops import backend, native
from foveate.ops.routed_region_attention import routed_region_attention


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


FORMS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not native.AVAILABLE, reason="no kernels are built here")),
]


def given(regions: int = 6, n: int = 3, m: int = 4, topk: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(regions)
    q, k, v = (
        torch.randn(2, 3, regions, many, width, generator=generator, dtype=torch.float64).requires_grad_()
        for many, width in ((n, 4), (m, 4), (m, 5))
    )
    routes = torch.rand(2, regions, regions, generator=generator).topk(topk, -1).indices
    return {"q": q, "k": k, "v": v, "routes": routes}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_op_agree(form: str):
    answers = []
    for name in ("reference", form):
        tensors = given()
        with backend(name):
            y = routed_region_attention(**tensors)
        assert isinstance(y, Tensor)
        answers.append([y, *torch.autograd.grad(y.square().sum(), [tensors[n] for n in "qkv"])])
    for expected, found in zip(*answers, strict=True):
        agree(found, expected)


def test_a_region_reads_the_tokens_of_its_routes():
    tensors = given()
    y, attention = routed_region_attention(**tensors, return_attention=True)
    q, k, v, routes = (tensors[n] for n in ("q", "k", "v", "routes"))
    keys = torch.cat([k[1, 2, r] for r in routes[1, 4]])
    values = torch.cat([v[1, 2, r] for r in routes[1, 4]])
    weights = (q[1, 2, 4] @ keys.mT / 2).softmax(-1)
    agree(y[1, 2, 4], weights @ values)
    agree(attention[1, 2, 4], weights)


def test_weights_multiply_keys_and_values():
    tensors = given()
    ones = torch.ones(2, 6, 2, dtype=torch.float64)
    agree(routed_region_attention(**tensors, weights=ones), routed_region_attention(**tensors))
    halved = {**tensors, "k": tensors["k"] / 2, "v": tensors["v"] / 2}
    agree(routed_region_attention(**tensors, weights=ones / 2), routed_region_attention(**halved))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"routes": torch.zeros(2, 6, 2)}, InvalidType, "int64"),
        ({"routes": torch.zeros(2, 5, 2, dtype=torch.int64)}, InvalidValue, "topk"),
        ({"routes": torch.zeros(2, 6, 9, dtype=torch.int64)}, InvalidValue, "at most the 6"),
        ({"weights": torch.ones(2, 6, 3)}, InvalidValue, "weights"),
        ({"v": torch.zeros(2, 3, 6, 4, 5)}, InvalidType, "dtype"),
        ({"v": torch.zeros(2, 3, 7, 4, 5, dtype=torch.float64)}, InvalidValue, "agree"),
    ],
)
def test_the_op_refuses(change: dict[str, Any], error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        routed_region_attention(**{**given(), **change})


def test_the_formula_is_what_is_counted():
    q, k, v = (torch.empty(2, 3, 6, many, width, device="meta") for many, width in ((3, 4), (4, 4), (4, 5)))
    routes = torch.empty(2, 6, 2, dtype=torch.int64, device="meta")
    with backend("torch"):
        counted = count_flops(lambda: routed_region_attention(q, k, v, routes))
    sizes = {"regions": 6, "tokens": 3, "key_tokens": 4, "topk": 2, "d": 4, "e": 5, "heads": 3, "batch": 2}
    assert op_cost("routed_region_attention", **sizes).flops == counted > 0


def test_memory_does_not_grow_with_routes():
    setup = """
import torch
from foveate.ops.routed_region_attention import routed_region_attention
q, k, v = (torch.randn(1, 2, 256, 16, 16) for _ in range(3))
def attend(topk):
    routed_region_attention(q, k, v, torch.arange(topk).expand(1, 256, topk).contiguous())
"""
    few, many = peaks = allocated_bytes_of(["attend(2)", "attend(64)"], setup)
    copies = 64 * 2 * 256 * 16 * 16 * 2 * 4  # keys and values once for each route
    assert many < copies / 4, peaks
    assert few < copies / 4, peaks


@pytest.mark.parametrize(("grid", "size"), [((6,), (2,)), ((6, 8), (3, 2)), ((4, 6, 2), (2, 3, 1))])
def test_regions_are_counted_row_by_row_and_joined_again(grid: tuple[int, ...], size: tuple[int, ...]):
    x = torch.arange(2 * torch.Size(grid).numel()).view(2, *grid, 1)
    cut = to_regions(x, size)
    assert torch.equal(from_regions(cut, grid), x)
    assert torch.equal(cut[0, 0], x[(0, *(slice(n) for n in size))])
    if len(grid) == 2:
        assert torch.equal(cut[0, 1], x[0, :3, 2:4])


@pytest.mark.parametrize("kind", [BiLevelRoutingAttention, RegionalRoutingAttention, LePEAttention])
@pytest.mark.parametrize("grid", [(9,), (5, 7), (3, 4, 5)])
def test_grids_of_any_rank(kind: type, grid: tuple[int, ...]):
    options = {"n_win": 2, "topk": 2} if kind is not LePEAttention else {}
    x = torch.randn(2, *grid, 16)
    assert kind(16, num_heads=2, rank=len(grid), **options)(x).shape == x.shape


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"topk": 50}, "49 regions"),
        ({"num_heads": 3}, "num_heads"),
        ({"qk_dim": 15}, "qk_dim"),
        ({"side_dwconv": 4}, "odd"),
        ({"n_win": 0}, "n_win"),
        ({"routing": "harder"}, "routing"),
        ({"kv_downsample_mode": "conv"}, "kv_downsample_mode"),
    ],
)
def test_the_mixer_refuses(options: dict[str, Any], says: str):
    with pytest.raises(InvalidValue, match=says):
        BiLevelRoutingAttention(16, **{"num_heads": 2, **options})


def test_a_look_shows_the_routed_regions_and_what_is_read():
    mixer = BiLevelRoutingAttention(16, num_heads=2, n_win=4, topk=3)
    x = torch.randn(2, 8, 8, 16)
    visible, weights = mixer.look(x, (3, 5))
    routes = mixer.route(x).routes[1, int(mixer.region_of((8, 8))[3, 5])]
    assert int(visible.values[1].sum()) == 3 * 4
    assert all(visible.values[1, 0, 2 * (r // 4), 2 * (r % 4)] for r in routes.tolist())
    agree(weights.values.sum((2, 3)), torch.ones(2, 2))
    assert not weights.values.masked_select(~visible.values.expand_as(weights.values)).any()
    agree(mixer.look(x)[1].values.sum((2, 3)), torch.ones(2, 2))
    assert len(mixer.look(torch.randn(1, 7, 8, 16), (0, 0))) == 1


def test_the_best_number_of_regions_follows_the_cube_root():
    assert best_regions((56, 56)) == pytest.approx((4 * 56**4) ** (1 / 6), abs=5)
    assert best_regions((1, 1)) == 1


@pytest.mark.parametrize("layout", ["biformer", "stl", "stl_nchw"])
def test_a_pyramid_tells_its_maps(layout: str):
    norm = "layer" if layout == "stl_nchw" else "batch"
    options = {"depth": (1, 1), "embed_dim": (16, 32), "n_win": 2, "topks": (2, -2), "head_dim": 8}
    model = BiFormer(3, 5, layout=layout, norm=norm, **options).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 3, 40, 52)
    maps = model.features_only()(x)
    assert [(m.shape[1], 40 // m.shape[2]) for m in maps] == [(f.channels, f.reduction) for f in model.feature_info]
    assert model(x).shape == (2, 5)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 32)


def test_maps_that_regions_do_not_divide_are_padded_or_refused():
    options = {"depth": (1, 1), "embed_dim": (16, 32), "n_win": 4, "topks": (2, -2), "head_dim": 8}
    model = BiFormer(3, 5, auto_pad=False, **options).eval()
    other = BiFormer(3, 5, **options).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 48)
    agree(other(x), model(x))
    assert other(x[..., :45]).shape == (1, 5)
    with pytest.raises(InvalidValue, match=r"8 x 11 in stage 0, which n_win=4 does not divide"):
        model(x[..., :44])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": (1,)}, "depth"),
        ({"topks": (1, 4, 16, -3)}, "topks"),
        ({"head_dim": 48}, "head_dim"),
        ({"stem_stride": 3}, "stem_stride"),
        ({"layout": "swin"}, "layout"),
        ({"before_attn_dwconv": 5}, "before_attn_dwconv"),
    ],
)
def test_the_model_refuses(options: dict[str, Any], says: str):
    with pytest.raises(InvalidValue, match=says):
        BiFormer(**options)


@pytest.mark.parametrize(("size", "channels"), [((28, 28), 1), ((33, 29), 3), ((96, 64), 3)])
def test_small_forms_are_small(size: tuple[int, int], channels: int):
    info = SimpleNamespace(task="classify-images", size=size, channels=channels, classes=10)
    model = BiFormer.for_task(info).eval()
    assert sum(p.numel() for p in model.parameters()) < 500_000
    assert model(torch.randn(2, channels, *size)).shape == (2, 10)
