"""DaViT: channel and window attention, padding, options that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidValue
from foveate.mixers.davit import ChannelAttention, WindowAttention
from foveate.models.vision.davit import Block, ConvPosEnc, DaViT


@pytest.mark.parametrize("scores", ["kv", "qk"])
def test_channel_attention_by_its_words(scores: str) -> None:
    mixer, x = ChannelAttention(12, num_heads=3, scores=scores), torch.randn(2, 5, 4, 12)  # type: ignore[arg-type]
    q, k, v = mixer.qkv(x).flatten(1, 2).chunk(3, -1)
    expected = torch.empty(2, 20, 12)
    for h in range(3):
        own = slice(4 * h, 4 * h + 4)
        first, second, mixed = (k, v, q) if scores == "kv" else (q, k, v)
        scale = 4**-0.5 if scores == "kv" else 20**-0.5
        matrix = torch.softmax(scale * torch.einsum("bnc,bnd->bcd", first[..., own], second[..., own]), -1)
        expected[..., own] = torch.einsum("bcd,bnd->bnc", matrix, mixed[..., own])
    torch.testing.assert_close(mixer(x), mixer.proj(expected).view_as(x))
    torch.testing.assert_close(mixer.attention(x).sum(-1), torch.ones(2, 3, 4))


def _padded_windows(mixer: WindowAttention, x: Tensor) -> Tensor:
    """Pad the map with zeros, cut it, project and attend, as the official code does."""
    size, w = x.shape[1:3], mixer.window
    x = torch.nn.functional.pad(x, (0, 0, 0, -size[1] % w, 0, -size[0] % w))
    rows, columns = x.shape[1] // w, x.shape[2] // w
    x = x.unflatten(2, (columns, w)).unflatten(1, (rows, w)).transpose(2, 3).flatten(3, 4)
    q, k, v = mixer.qkv(x).unflatten(-1, (3, mixer.num_heads, -1)).movedim(-2, -4).unbind(-2)
    y = torch.softmax(q @ k.mT * mixer.head_dim**-0.5, -1) @ v
    y = mixer.proj(y.movedim(3, -2).flatten(-2)).unflatten(3, (w, w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return y[:, : size[0], : size[1]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("grid", [(6, 9), (8, 11), (2, 2)])
def test_padding_is_seen_as_in_the_official_code(grid: tuple[int, int], bias: bool) -> None:
    mixer, x = WindowAttention(12, num_heads=2, window=3, qkv_bias=bias), torch.randn(2, *grid, 12)
    for parameter in mixer.parameters():
        parameter.data += torch.randn_like(parameter) / 4
    torch.testing.assert_close(mixer(x), _padded_windows(mixer, x), rtol=1e-4, atol=1e-5)


def test_the_position_convolution_adds_its_input() -> None:
    module, x = ConvPosEnc(8), torch.randn(2, 5, 6, 8)
    torch.testing.assert_close(module(x), x + module.proj(x.movedim(-1, 1)).movedim(1, -1), rtol=1e-5, atol=1e-6)


def test_looks_tell_what_is_read() -> None:
    window, x = WindowAttention(12, num_heads=2, window=3), torch.randn(1, 7, 8, 12)
    (seen,) = window.look(x, (6, 7))
    assert (seen.values[0, 0] > 0).nonzero().tolist() == [[6, 6], [6, 7]]
    torch.testing.assert_close(seen.values.sum((2, 3)), torch.ones(1, 2))
    (share,) = ChannelAttention(12, num_heads=2).look(x)
    assert (share.values > 0).all()


def test_without_feed_forwards_their_convolution_stays() -> None:
    block = Block(8, ChannelAttention(8, num_heads=2), None)
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"cpe1", "norm1", "attn", "cpe2"}


def test_rates_of_stochastic_depth_rise_by_attention() -> None:
    model = DaViT(depths=(1, 1), embed_dims=(8, 8), num_heads=(2, 2), drop_path_rate=0.3)
    rates = [b.drop_path.rate for stage in model.stages for dual in stage.blocks for b in dual]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depths": (1, 1)}, "2 depths, 4 embed_dims, 4 num_heads"),
        ({"depths": (), "embed_dims": (), "num_heads": ()}, "0 depths"),
        ({"attention_types": ("spatial", "temporal")}, "attention_types"),
        ({"attention_types": ()}, "attention_types"),
        ({"patch_size": 16}, "patch_size=16"),
        ({"num_heads": (3, 5, 12, 24)}, "num_heads=5"),
        ({"scores": "kq"}, "scores='kq'"),
        ({"window_size": 0}, "window=0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        DaViT(**options)
