"""Swin: windows, shifts, biases, sizes that do not fit, layouts of weights, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.swin import ShiftedWindows, position_index
from foveate.models.official import load_official
from foveate.models.vision.swin import Swin

SMALL = {"size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "patch_size": 2}


@pytest.mark.parametrize("window", [(5,), (2, 3), (2, 3, 2)])
def test_the_index_is_of_differences(window):
    places = torch.cartesian_prod(*map(torch.arange, window)).view(-1, len(window))
    index = position_index(window).view(len(places), -1)
    seen = {}
    for i, one in enumerate(places.tolist()):
        for j, other in enumerate(places.tolist()):
            difference = tuple(a - b for a, b in zip(one, other, strict=True))
            assert seen.setdefault(difference, int(index[i, j])) == int(index[i, j])
    assert sorted(seen.values()) == list(range(len(seen)))


@pytest.mark.parametrize(("window", "grid"), [((4,), (12,)), ((4, 2), (8, 8)), ((2, 2, 2), (4, 4, 6))])
@torch.no_grad()
def test_every_second_layer_is_shifted_and_crosses_borders(window, grid):
    x = torch.randn(1, *grid, 8)
    changed = x.clone()
    changed[(0, *(0,) * len(grid))] += 1
    reach = []
    for index in (0, 1):
        mixer = ShiftedWindows.for_layer(index, 2, 8, num_heads=2, window=window)
        assert mixer.shift == tuple(index * w // 2 for w in window)
        moved = (mixer(x) != mixer(changed)).any(-1)[0]
        reach.append(int(moved.sum()))
        assert moved[tuple(slice(w) for w in window)].sum() == reach[-1]
    tokens = torch.tensor(window).prod()
    assert reach == [tokens, tokens // 2 ** len(window)]  # the corner's part of its window after a shift


@torch.no_grad()
def test_a_map_of_one_window_is_not_shifted_unless_asked():
    plain, shifted = (ShiftedWindows(8, num_heads=2, window=4, shift=s) for s in (0, 2))
    kept = ShiftedWindows(8, num_heads=2, window=4, shift=2, always_shift=True)
    for other in (shifted, kept):
        other.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 8, 8)
    assert plain(x).equal(shifted(x))
    assert not torch.allclose(plain(x), kept(x))


@pytest.mark.parametrize("pad_first", [True, False])
@torch.no_grad()
def test_padding_is_seen_as_tokens_of_zeros(pad_first):
    """A padded map is what the same layer makes of the map with zeros behind its ends."""
    mixer = ShiftedWindows(8, num_heads=2, window=4, shift=2 if pad_first else 0, pad_first=pad_first)
    mixer.qkv.bias.normal_()
    x = torch.randn(1, 6, 11, 8)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 2))
    torch.testing.assert_close(mixer(x), mixer(padded)[:, :6, :11])


@torch.no_grad()
def test_padding_late_rolls_what_there_is():
    mixer = ShiftedWindows(8, num_heads=2, window=4, shift=(2, 1), pad_first=False, always_shift=True)
    early = ShiftedWindows(8, num_heads=2, window=4, shift=(2, 1), always_shift=True)
    early.load_state_dict(mixer.state_dict())
    whole, odd = torch.randn(1, 8, 8, 8), torch.randn(1, 7, 9, 8)
    torch.testing.assert_close(mixer(whole), early(whole))
    assert not torch.allclose(mixer(odd), early(odd))


@pytest.mark.parametrize("pad_first", [True, False])
def test_looks(pad_first):
    mixer = ShiftedWindows(8, num_heads=2, window=4, shift=2, pad_first=pad_first)
    x = torch.randn(2, 9, 6, 8)
    for query in (None, (3, 5)):
        weights, window = mixer.look(x, query)
        assert weights.values.shape == (2, 2, 9, 6)
        torch.testing.assert_close(weights.values.sum((2, 3)), torch.ones(2, 2))
        assert window.values.shape == (2, 1, 9, 6)
    assert not (weights.values[window.values.expand(-1, 2, -1, -1).logical_not()] > 0).any()
    assert int(window.values[0].sum()) <= 16
    assert window.values[0, 0, 3, 5]
    with pytest.raises(InvalidValue, match=r"query=\(9, 0\) is not on the grid"):
        mixer.look(x, (9, 0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": ()}, InvalidValue, r"window=\(\) is not possible: it must have 1, 2 or 3 entries"),
        ({"window": 4, "shift": 4}, InvalidValue, "shift=4 is not possible"),
        ({"window": 0}, InvalidValue, "is not possible"),
        ({"window": (4, 2.5)}, InvalidType, "whole number"),
        ({"num_heads": 3}, InvalidValue, "it must divide dim=8"),
        ({"causal": True}, InvalidValue, "has no causal form"),
    ],
)
def test_illegal_options_of_the_layer(options, error, message):
    with pytest.raises(error, match=message):
        ShiftedWindows(8, **{"num_heads": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "zeros"}, "init='zeros' is not possible: it must be one of published, fan_in"),
        ({"rules": "mmseg"}, "rules='mmseg' is not possible: it must be one of official, timm"),
        ({"depths": (2,)}, "one entry for each stage"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 is not possible"),
        ({"num_classes": -1}, "num_classes=-1 is not possible"),
    ],
)
def test_illegal_options_of_the_network(options, message):
    with pytest.raises(InvalidValue, match=message):
        Swin(**{**SMALL, **options})


def official(model: Swin) -> dict[str, torch.Tensor]:
    """The release's layout: merging at the end of a stage, and buffers."""
    renamed = {k.replace("layers.1.downsample", "layers.0.downsample"): v for k, v in model.state_dict().items()}
    buffers = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16)}
    return {**renamed, **buffers, "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}


def hub(model: Swin) -> dict[str, torch.Tensor]:
    """The names of transformers' repos, which its own classes rename when they load."""
    names = {
        "patch_embed.proj": "swin.embeddings.patch_embeddings.projection",
        "patch_embed.norm": "swin.embeddings.norm",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "attn.relative": "attention.self.relative",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "layers.1.downsample": "layers.0.downsample",
    }
    found = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        key = f"swin.encoder.{key}" if key.startswith("layers") else key
        key = f"swin.layernorm.{key[5:]}" if key.startswith("norm.") else key.replace("head.", "classifier.")
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[key.replace("attn.qkv", f"attention.self.{name}")] = part
        else:
            found[key] = value
    return found


@pytest.mark.parametrize(("layout", "source"), [(official, "official"), (hub, "transformers")])
def test_layouts_that_are_not_recorded(layout, source):
    model, other = Swin(num_classes=3, **SMALL), Swin(num_classes=3, **SMALL)
    load_official(other, layout(model), source)
    for name, value in model.state_dict().items():
        assert value.equal(other.state_dict()[name]), name


def test_windows_of_the_sizes_say_what_tables_there_are():
    """Published windows, cut to maps of the size; timm's axes are cut each for itself."""
    model = Swin(size=(12, 24), window=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), patch_size=2)
    assert [stage.blocks[1].attn.window for stage in model.layers] == [(4, 4), (3, 3)]
    model = Swin(size=(12, 24), window=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), patch_size=2, rules="timm")
    assert [stage.blocks[1].attn.window for stage in model.layers] == [(4, 4), (3, 4)]
    assert [stage.blocks[1].attn.shift for stage in model.layers] == [(2, 2), (0, 2)]


def test_biases_do_not_decay():
    assert Swin(**SMALL).layers[0].blocks[0].attn.no_weight_decay() == {"relative_position_bias_table"}


@torch.no_grad()
def test_varied_windows_begin_as_windows():
    """Without shifts, and with rectangles and convolutions of zero, both are one network; then they are not."""
    plain = Swin(3, 5, **{**SMALL, "depths": (1, 1)}).eval()
    for parameter in plain.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    varied = Swin(3, 5, **{**SMALL, "depths": (1, 1)}, attention="vsa").eval()
    missing, unexpected = varied.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {key.rpartition("blocks.0.")[2].partition(".")[0] for key in missing} == {"pos", "attn"}
    for block in (varied.layers[0].blocks[0], varied.layers[1].blocks[0]):
        block.pos.weight.zero_(), block.pos.bias.zero_()
    x = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(varied(x), plain(x))
    varied.layers[0].blocks[0].attn.scales.bias.fill_(0.5)
    assert (varied(x) - plain(x)).abs().max() > 1e-3


def test_a_narrow_network_begins_with_weights_of_its_width():
    info = SimpleNamespace(task="classify-images", size=(28, 28), channels=1, classes=10)
    spreads = []
    for given in ({}, {"init": "published"}):
        block = Swin.for_task(info, **given).layers[0].blocks[0]
        parts = block.mlp.fc1.weight, block.attn.relative_position_bias_table
        spreads += [float(part.detach().std()) for part in parts]
    assert spreads == pytest.approx([32**-0.5, 1.0, 0.02, 0.02], rel=0.12)
