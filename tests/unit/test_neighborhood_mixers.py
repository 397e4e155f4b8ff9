"""Layers and backbones of neighborhood attention: small grids, streams, extra tokens, pictures, weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foveate
from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.dinat import NeighborhoodAttention
from foveate.mixers.faster_neighborhood_attention import FasterNeighborhoodAttention
from foveate.models.official import load_official
from foveate.models.vision.dinat import DiNAT


def noisy(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module.eval()


def test_a_small_map_is_filled_up_before_the_projection():
    layer = noisy(NeighborhoodAttention(8, num_heads=2, window=3, dilation=3))
    x = torch.randn(2, 5, 11, 8)
    expected = layer(F.pad(x, (0, 0, 0, 0, 0, 4)))[:, :5]
    torch.testing.assert_close(layer(x), expected)
    strict = NeighborhoodAttention(8, num_heads=2, window=3, dilation=3, pad_small=False)
    strict.load_state_dict(layer.state_dict())
    with pytest.raises(InvalidValue, match=r"NeighborhoodAttention: grid \(5, 11\) is not possible"):
        strict(x)


def test_dropout_on_weights_keeps_the_mean_and_is_off_in_eval():
    layer = noisy(NeighborhoodAttention(8, num_heads=2, window=3, attn_drop=0.5))
    x = torch.randn(1, 6, 6, 8)
    plain = layer(x).detach()
    layer.train()
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([layer(x) for _ in range(400)])
    assert not torch.equal(drawn[0], drawn[1])
    assert float((drawn.mean(0) - plain).abs().max()) < 6 * float(drawn.std(0).max()) / 20
    layer.attn_drop = 1e-9
    torch.testing.assert_close(layer(x), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "window=4 is not possible"),
        ({"window": 1}, "every axis needs at least 2"),
        ({"dilation": 0}, "every axis needs at least 1"),
        ({"rank": 4}, "rank=4 is not possible"),
        ({"causal": True}, "causal=True is not possible"),
        ({"window": (3, 3, 3)}, "has 3 entries"),
        ({"scale": 0.0}, "scale=0.0 is not possible"),
        ({"attn_drop": 1.0}, "attn_drop=1.0 is not possible"),
    ],
)
def test_illegal_options_of_the_layer(options, message):
    with pytest.raises(InvalidValue, match=message):
        NeighborhoodAttention(8, **{"num_heads": 2, **options})


def test_layers_take_turns_and_grids_decide():
    options = NeighborhoodAttention.options_for((14, 30))
    assert options == {"rank": 2, "window": 7, "dilation": 2}
    assert NeighborhoodAttention.options_for((4,)) == {"rank": 1, "window": 3, "dilation": 1}
    made = [NeighborhoodAttention.for_layer(i, 4, 16, num_heads=2, **options).dilation for i in range(4)]
    assert made == [(1, 1), (2, 2), (1, 1), (2, 2)]


def test_windows_take_what_an_axis_has_room_for():
    layer = FasterNeighborhoodAttention(8, num_heads=2, window=7, dilation=3, stride=2)
    sizes = {size: layer.axes((size,))[0][1:] for size in (1, 5, 7, 15, 21)}
    assert sizes == {
        1: (2, 3, 2, True),
        5: (5, 1, 2, False),
        7: (7, 1, 2, False),
        15: (7, 2, 2, False),
        21: (7, 3, 2, False),
    }


@pytest.mark.parametrize("length", [1, 4, 13])
def test_a_causal_axis_is_cut_whatever_its_length(length):
    layer = noisy(FasterNeighborhoodAttention(8, num_heads=2, causal=True, window=5, dilation=2, num_registers=2))
    x = torch.randn(1, 40, 8)
    torch.testing.assert_close(layer(x[:, :length]), layer(x)[:, :length])


def test_extra_tokens_are_seen_by_all_and_registers_are_such_tokens():
    layer = noisy(FasterNeighborhoodAttention(8, num_heads=4, num_kv_heads=2, window=3, num_registers=2))
    plain = FasterNeighborhoodAttention(8, num_heads=4, num_kv_heads=2, window=3).eval()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "registers"})
    x = torch.randn(2, 5, 6, 8)
    torch.testing.assert_close(plain.read_with(x, layer.registers.expand(2, -1, -1)), layer(x))
    assert not torch.allclose(layer.read_with(x, torch.randn(2, 3, 8)), layer(x))
    with pytest.raises(InvalidValue, match=r"extra has shape \(1, 3, 8\); it must be \(2, n, 8\)"):
        layer.read_with(x, torch.randn(1, 3, 8))


def test_a_stride_ends_the_stream():
    with pytest.raises(InvalidType, match="no streaming form"):
        FasterNeighborhoodAttention(8, num_heads=2, causal=True, window=4, stride=2).init_state(1)


def test_positions_need_a_sequence_without_registers():
    for options in ({"num_registers": 1}, {"window": (3, 3)}):
        with pytest.raises(InvalidValue, match="position='rope' is not possible"):
            FasterNeighborhoodAttention(8, num_heads=2, position="rope", **options)


@pytest.mark.parametrize("dilation", [1, 2])
def test_pictures_show_the_weights(dilation):
    layer = noisy(NeighborhoodAttention(8, num_heads=2, window=3, dilation=dilation))
    x = torch.randn(1, 7, 8, 8)
    weights, visible = layer.look(x, (0, 4))
    assert weights.values.shape == (1, 2, 7, 8)
    torch.testing.assert_close(weights.values.sum((2, 3)), torch.ones(1, 2))
    rows, columns = visible.values[0, 0].any(1).nonzero()[:, 0], visible.values[0, 0].any(0).nonzero()[:, 0]
    assert rows.tolist() == [0, dilation, 2 * dilation]
    assert columns.tolist() == [4 - dilation, 4, 4 + dilation]
    values = layer.qkv(x)[..., 16:].unflatten(-1, (2, 4))
    read = torch.einsum("bhyx,byxhd->bhd", weights.values, values).flatten(1)
    torch.testing.assert_close(layer.proj(read), layer(x)[:, 0, 4])
    torch.testing.assert_close(layer.look(x)[0].values.sum((2, 3)), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("size", "kernel", "dilations"), [((40, 56), 3, [[1, 2], [1, 1]]), ((33, 29), 5, [[1, 2], [1, 3]])]
)
def test_transformers_weights_give_its_logits(size, kernel, dilations):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from foveate.control import enable_dinat

    enable_dinat()
    sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "dilations": dilations, "kernel_size": kernel}
    config = transformers.DinatConfig(**sizes, drop_path_rate=0.0, num_labels=5, layer_scale_init_value=0.1)
    port = noisy(transformers.DinatForImageClassification(config))
    model = DiNAT(num_classes=5, mlp_ratio=3.0, layer_scale=0.1, **sizes).eval()
    load_official(model, port.state_dict(), "transformers")
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(model(x), port(x).logits, rtol=1e-5, atol=1e-5)
    lacking = {k: v for k, v in port.state_dict().items() if not k.endswith("self.key.weight")}
    with pytest.raises(InvalidValue, match=r"missing .*attn\.qkv\.weight"):
        load_official(model, lacking, "transformers")


def test_isotropic_and_swin_like_sizes_load_their_releases_names():
    isotropic = foveate.create("dinat_isotropic_small", embed_dim=8, num_heads=(2,), depths=(2,), num_classes=3)
    given = {k.replace("levels.0.blocks.", "layers."): v for k, v in isotropic.state_dict().items()}
    load_official(isotropic, given)
    swin = foveate.create("dinat_s_tiny", embed_dim=8, num_heads=(1, 2, 4, 8), num_classes=3)
    load_official(swin, {k.replace("levels.", "layers."): v for k, v in swin.state_dict().items()})
    assert swin(torch.randn(1, 3, 50, 37)).shape == (1, 3)


def test_patches_are_merged_column_by_column():
    swin = noisy(DiNAT(embed_dim=8, depths=(1, 1), num_heads=(1, 1), tokens="patches"))
    merging = swin.levels[0].downsample
    x = torch.randn(1, 5, 4, 8)
    padded = F.pad(x, (0, 0, 0, 0, 0, 1))
    four = [padded[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    torch.testing.assert_close(merging(x), merging.reduction(merging.norm(torch.cat(four, -1))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "pixels"}, "tokens='pixels' is not possible"),
        ({"patch_size": 3}, "patch_size=3 is not possible"),
        ({"num_heads": (3,)}, "there are 4 depths, 1 num_heads"),
        ({"dilations": (1, 2)}, "4 depths, 4 num_heads, 2 dilations"),
        ({"dilations": ((1,), 1, 1, 1)}, "a level of 2 blocks needs as many"),
    ],
)
def test_illegal_options_of_the_backbone(options, message):
    with pytest.raises(InvalidValue, match=message):
        DiNAT(**options)
