"""ViM2: MambaMixer's mixers on maps, their orders, readings and cost, and the image backbone made of them."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.measure.memory import saved_bytes
from foveate.mixers import Mixer
from foveate.mixers.mamba_mixer import GridChannelMixer, GridTokenMixer, SelectiveChannelMixer, SelectiveTokenMixer
from foveate.mixers.mamba_mixer.grid_scans import GRID_SCANS
from foveate.mixers.selective_block import ScanBranch
from foveate.models.official import load_official
from foveate.models.vision.mamba_mixer import ViM2
from foveate.ops import backend

READINGS = ("channels", "per_token", "all_tokens")


def noisy(module: nn.Module, scale: float = 0.1, seed: int = 0) -> nn.Module:
    """Parameters away from where they start: zeros would hide faults."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


def places(*grid: int, dim: int = 12, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, *grid, dim, generator=torch.Generator().manual_seed(seed))


# Orders


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("rows", [0, 1, 2, 3, 4, 5]),
        ("columns", [0, 3, 1, 4, 2, 5]),
        ("serpentine_rows", [0, 1, 2, 5, 4, 3]),
        ("serpentine_columns", [3, 0, 1, 4, 5, 2]),
    ],
)
def test_orders_of_places(name: str, order: list[int]) -> None:
    x, grid = torch.arange(6)[None], (2, 3)
    for told, expected in ((name, order), (f"{name}_backward", order[::-1])):
        take, back = GRID_SCANS[told]
        assert take(x, grid)[0].tolist() == expected
        assert back(take(x, grid), grid).tolist() == x.tolist()
        wide = places(2, 3).flatten(1, 2)
        assert torch.equal(take(wide, grid), wide[:, expected])


@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (1, 6), (6, 1)])
@pytest.mark.parametrize("name", ["serpentine_rows", "serpentine_columns"])
def test_serpentines_go_to_neighbours(name: str, grid: tuple[int, int]) -> None:
    order = GRID_SCANS[name][0](torch.arange(grid[0] * grid[1])[None], grid)[0]
    steps = (order // grid[1]).diff().abs() + (order % grid[1]).diff().abs()
    assert (steps == 1).all()


# The token mixer


@pytest.mark.parametrize("scans", [("rows",), ("rows", "columns_backward"), None])
def test_scans_add_up_and_each_has_weights_of_its_own(scans: tuple[str, ...] | None) -> None:
    mixer, x = noisy(GridTokenMixer(12, scans=scans)), places(3, 5)
    assert isinstance(mixer, GridTokenMixer)
    assert len(mixer.scans) == len(mixer.branches) == (4 if scans is None else len(scans))
    total = torch.zeros_like(x)
    for name, branch in zip(mixer.scans, mixer.branches, strict=True):
        one = GridTokenMixer(12, scans=(name,))
        own = {k: v for k, v in mixer.state_dict().items() if not k.startswith("branches")}
        one.load_state_dict(own | {f"branches.0.{k}": v for k, v in branch.state_dict().items()})
        total += one(x)
    torch.testing.assert_close(mixer(x), total)


def test_a_turned_map_read_in_columns_is_the_map_read_in_rows() -> None:
    rows, columns = noisy(GridTokenMixer(12, scans=("rows",))), GridTokenMixer(12, scans=("columns",))
    weights = rows.state_dict()
    columns.load_state_dict(weights | {"conv.weight": weights["conv.weight"].transpose(2, 3)})
    x = places(3, 5)
    torch.testing.assert_close(columns(x.transpose(1, 2)).transpose(1, 2), rows(x))


def test_a_new_order_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(x: Tensor, grid: tuple[int, ...]) -> Tensor:
        return x.roll(1, 1)

    monkeypatch.setitem(GRID_SCANS, "rolled", (swap, lambda x, grid: x.roll(-1, 1)))
    assert GridTokenMixer(8, scans=("rolled",))(places(3, 4, dim=8)).shape == (2, 3, 4, 8)


@pytest.mark.parametrize("norm", [True, False])
def test_masked_places_are_as_if_outside_of_the_map(norm: bool) -> None:
    mixer, x = noisy(GridTokenMixer(8, norm=norm, bias=True)), places(5, 6, dim=8)
    mask = torch.ones(2, 5, 6, dtype=torch.bool)
    mask[:, :, 4:] = mask[:, 3:] = False
    x = x.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    y = mixer(x, mask=mask)
    torch.testing.assert_close(y[:, :3, :4], mixer(x[:, :3, :4]))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_vmambas_weights_are_loaded_whole() -> None:
    mixer = noisy(GridTokenMixer(8, norm=True, d_state=3))
    state = mixer.state_dict()
    official = {"in_proj.weight": state["in_proj.weight"], "out_proj.weight": state["out_proj.weight"]}
    official |= {f"conv2d.{k}": state[f"conv.{k}"] for k in ("weight", "bias")}
    official |= {f"out_norm.{k}": state[f"norm.{k}"] for k in ("weight", "bias")}
    for theirs, ours, join in (
        ("x_proj_weight", "x_proj.weight", torch.stack),
        ("dt_projs_weight", "dt_proj.weight", torch.stack),
        ("dt_projs_bias", "dt_proj.bias", torch.stack),
        ("A_logs", "A_log", torch.cat),
        ("Ds", "D", torch.cat),
    ):
        official[theirs] = join([state[f"branches.{i}.{ours}"] for i in range(4)])
    other = GridTokenMixer(8, norm=True, d_state=3)
    load_official(other, official)
    assert torch.equal(other(places(4, 3, dim=8)), mixer(places(4, 3, dim=8)))


# The channel mixer


def test_all_tokens_are_the_mixer_of_sequences() -> None:
    maps = noisy(GridChannelMixer(9, cw_linear="all_tokens", grid=(3, 4), expand=2))
    rows = SelectiveChannelMixer(9, seq_len=12)
    rows.load_state_dict(maps.state_dict())
    x = places(3, 4, dim=9)
    torch.testing.assert_close(maps(x).flatten(1, 2), rows(x.flatten(1, 2)))
    with pytest.raises(InvalidValue, match=r"GridChannelMixer: grid \(4, 3\) is not possible: it must be \(3, 4\)"):
        maps(places(4, 3, dim=9))


@pytest.mark.parametrize("patch", [1, 2])
def test_per_token_is_the_token_mixer_of_the_channels(patch: int) -> None:
    maps = noisy(GridChannelMixer(9, cw_linear="per_token", patch=patch))
    assert isinstance(maps, GridChannelMixer)
    turned = SelectiveTokenMixer(patch**2, expand=1)
    turned.block.load_state_dict(maps.block.state_dict())
    x, expected = places(4, 6, dim=9), torch.empty(2, 4, 6, 9)
    for i in range(0, 4, patch):
        for j in range(0, 6, patch):
            square = x[:, i : i + patch, j : j + patch].flatten(1, 2)
            mixed = turned(square.transpose(1, 2)).transpose(1, 2).unflatten(1, (patch, patch))
            expected[:, i : i + patch, j : j + patch] = mixed
    torch.testing.assert_close(maps(x), expected)
    if patch > 1:
        with pytest.raises(InvalidValue, match="a multiple of 2"):
            maps(places(4, 5, dim=9))


def test_linear_layers_over_the_channels_stand_around_the_scans() -> None:
    mixer, x = noisy(GridChannelMixer(9, expand=2)), places(2, 3, dim=9)
    assert isinstance(mixer, GridChannelMixer)
    enter, leave = mixer.block.in_proj, mixer.block.out_proj
    u, z = enter(x).flatten(0, 2).unsqueeze(-1).chunk(2, 1)
    forward, backward = (cast(ScanBranch, branch) for branch in mixer.block.branches)
    there = forward.scan_core(u, z, None, None, None)[0]
    back = backward.scan_core(u.flip(1), z.flip(1), None, None, None)[0].flip(1)
    expected = leave((there + back).squeeze(-1)).view_as(x)
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize("reading", READINGS)
def test_who_sees_whom(reading: str) -> None:
    mixer = noisy(GridChannelMixer(6, cw_linear=reading, grid=(2, 3)).double(), 0.3)  # type: ignore[arg-type]
    x = places(2, 3, dim=6, batch=1).double()
    matrix = cast(Tensor, torch.autograd.functional.jacobian(mixer, x))[0, :, :, :, 0]
    found = matrix.flatten(3, 4).flatten(0, 1) != 0
    between = found.transpose(1, 2).flatten(2).all(-1) if reading == "all_tokens" else found.any(-1).any(1)
    expected = torch.ones(6, 6) if reading == "all_tokens" else torch.eye(6)
    assert found.shape == (6, 6, 6, 6)
    assert torch.equal(between, expected.bool())


# Both


@pytest.mark.parametrize(
    "mixer",
    [
        GridTokenMixer(12),
        GridTokenMixer(12, scans=("rows",), bias=True),
        GridChannelMixer(12),
        GridChannelMixer(12, bidirectional=False, bias=True),
        GridChannelMixer(12, cw_linear="per_token"),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_activation_bytes_are_about_those_kept(mixer: Mixer, batch: int) -> None:
    kept = saved_bytes(mixer, places(4, 5, batch=batch).requires_grad_())
    assert mixer.cost((4, 5), batch).activation_bytes == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize(
    "mixer", [GridTokenMixer(12), GridChannelMixer(12), GridChannelMixer(12, cw_linear="per_token")]
)
def test_backends_agree(mixer: Mixer) -> None:
    noisy(mixer)
    y = mixer(places(4, 5))
    with backend("reference"):
        torch.testing.assert_close(mixer(places(4, 5)), y)


@pytest.mark.parametrize("mixer", [GridTokenMixer(12), GridChannelMixer(12)])
def test_a_map_is_not_streamed(mixer: Mixer) -> None:
    name = type(mixer).__name__
    with pytest.raises(InvalidType, match=f"{name} has no streaming form"):
        mixer.init_state(2)
    with pytest.raises(InvalidType, match=f"{name} has no streaming form"):
        mixer.step(torch.randn(2, 12), None)


@pytest.mark.parametrize(
    ("cls", "options", "error", "says"),
    [
        (GridTokenMixer, {"scans": ("diagonals",)}, UnknownName, "unknown scan 'diagonals'"),
        (GridTokenMixer, {"scans": ()}, InvalidValue, r"scans=\(\) .*at least one"),
        (GridTokenMixer, {"scans": ("rows", "rows")}, InvalidValue, "different names"),
        (GridTokenMixer, {"d_conv": 4}, InvalidValue, "d_conv=4"),
        (GridTokenMixer, {"d_state": 0}, InvalidValue, "d_state=0 .*positive whole number"),
        (GridTokenMixer, {"causal": True}, InvalidValue, "GridTokenMixer has no causal form"),
        (GridChannelMixer, {"causal": True}, InvalidValue, "GridChannelMixer has no causal form"),
        (GridChannelMixer, {"cw_linear": "tokens"}, InvalidValue, "cw_linear='tokens'"),
        (GridChannelMixer, {"patch": 2}, InvalidValue, "patch=2 .*per_token"),
        (GridChannelMixer, {"cw_linear": "all_tokens", "grid": (3,)}, InvalidValue, r"grid=\(3,\)"),
        (GridChannelMixer, {"expand": 0}, InvalidValue, "expand=0"),
    ],
)
def test_refuses_illegal_options(cls: type[Mixer], options: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        cls(12, **options)


# The backbone


def tiny(**options: object) -> ViM2:
    return ViM2(**{"num_classes": 3, "depths": (2, 3), "dims": (8, 12), "d_state": 2, **options}).eval()  # type: ignore[arg-type]


def test_a_channel_mixer_stands_behind_every_second_token_mixer() -> None:
    with torch.device("meta"):
        model = foveate.create("vim2_tiny")
    found = [[block.channel is not None for block in stage.stack.blocks] for stage in model.stages]
    assert found == [[False, True], [False, True], [False, True] * 3, [False, True]]
    every = tiny(channel_every=1)
    assert all(block.channel is not None for stage in every.stages for block in stage.stack.blocks)  # type: ignore[union-attr]


def test_maps_of_any_image() -> None:
    model, x = tiny(), torch.randn(2, 3, 45, 30)
    maps = model.features_only()(x)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 12, 8), (2, 12, 6, 4)]
    assert [(f.channels, f.reduction) for f in model.feature_info] == [(8, 4), (12, 8)]
    torch.testing.assert_close(model.forward_head(maps[-1]), model(x))


@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_classifies(reading: str) -> None:
    model = tiny(cw_linear=reading, img_size=32)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    other = torch.randn(1, 3, 40, 32)
    if reading == "all_tokens":
        with pytest.raises(InvalidValue, match=r"grid \(10, 8\) is not possible: it must be \(8, 8\)"):
            model(other)
    else:
        assert model(other).shape == (1, 3)


def test_channel_mixing_may_be_an_mlp_or_nothing() -> None:
    for kind, expected in (("selective", "GridChannelMixer"), ("mlp", "Mlp"), ("none", "NoneType")):
        model = tiny(channel_mixer=kind)
        assert type(model.stages[0].stack.blocks[1].channel).__name__ == expected  # type: ignore[union-attr,index]
        assert model(torch.randn(1, 3, 16, 16)).shape == (1, 3)


def test_every_parameter_learns() -> None:
    model = noisy(tiny(residual=False)).train()
    model(torch.randn(2, 3, 24, 24)).pow(3).mean().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert not still


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depths": (1, 1)}, "2 depths, 4 dims"),
        ({"depths": (2, 0, 6, 2)}, r"depths\[1\]=0"),
        ({"channel_every": 0}, "channel_every=0"),
        ({"channel_mixer": "attention"}, "channel_mixer='attention'"),
        ({"patch_size": 8}, "patch_size=8"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio=0\.0"),
        ({"img_size": 0}, "img_size=0"),
        ({"cw_linear": "tokens"}, "cw_linear='tokens'"),
    ],
)
def test_options_of_the_backbone_that_cannot_be_are_refused(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        ViM2(**options)
