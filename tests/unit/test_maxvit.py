"""MaxViT: partitions, biases, folded norms, padding, sizes and options that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from foveate.errors import InvalidValue, UnknownName
from foveate.mixers.maxvit import LogPositionMlp, MultiAxisAttention, RelativeBias, by_pair
from foveate.models.vision.maxvit import MaxViT, MBConv
from foveate.models.vision.maxvit.mbconv import strided
from foveate.models.vision.maxvit.weights import table_of

SMALL = {"depths": (1, 1), "embed_dims": (8, 16), "stem_width": (6, 8), "head_dim": 4, "num_classes": 3}


def shaken(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.data += torch.randn_like(parameter) / 5
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return module.eval()


@pytest.mark.parametrize("window", [(3,), (2, 4), (2, 3, 2)])
def test_biases_go_by_key_less_query(window: tuple[int, ...]) -> None:
    bias = RelativeBias(window, 2)
    places = torch.stack(torch.meshgrid(*map(torch.arange, window), indexing="ij"), -1).flatten(0, -2)
    found = bias()
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            entry = tuple((key - query + torch.tensor(window) - 1).tolist())
            assert torch.equal(found[:, i, j], bias.table[(slice(None), *entry)])


def test_the_network_of_biases_reads_query_less_key() -> None:
    network = LogPositionMlp((3, 2), 2).eval()
    found = network()
    distance = torch.tensor([2.0, -1.0])  # from key (0, 1) to query (2, 0)
    hidden = torch.relu(network.fc1(distance.sign() * distance.abs().log1p()))
    torch.testing.assert_close(found[:, 4, 1], network.fc2(hidden))


@pytest.mark.parametrize("partition", ["block", "grid"])
@pytest.mark.parametrize("grid", [(6, 9), (7, 5)])
def test_attention_by_its_words(partition: str, grid: tuple[int, int]) -> None:
    pad = any(size % 3 for size in grid)
    mixer = shaken(MultiAxisAttention(8, num_heads=2, window=3, partition=partition, pad=pad))  # type: ignore[arg-type]
    x = torch.randn(1, *grid, 8)
    steps = [-(-size // 3) for size in grid]
    q, k, v = mixer.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)  # type: ignore[operator]
    bias = mixer.bias()  # type: ignore[operator]

    def window_and_place(i: int, step: int) -> tuple[int, int]:
        return (i // 3, i % 3) if partition == "block" else (i % step, i // step)

    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    where = {p: [window_and_place(i, s) for i, s in zip(p, steps, strict=True)] for p in places}
    y = torch.empty_like(q)
    for p in places:
        seen = [o for o in places if [w for w, _ in where[o]] == [w for w, _ in where[p]]]
        own = where[p][0][1] * 3 + where[p][1][1]
        index = [where[o][0][1] * 3 + where[o][1][1] for o in seen]
        keys, values = (torch.stack([m[0, a, b] for a, b in seen]) for m in (k, v))
        scores = torch.einsum("hc,nhc->hn", q[0, p[0], p[1]], keys) / 2 + bias[:, own, index]
        y[0, p[0], p[1]] = torch.einsum("hn,nhc->hc", scores.softmax(-1), values)
        (look,) = mixer.look(x, p)  # type: ignore[operator]
        told = look.values[0][:, [a for a, _ in seen], [b for _, b in seen]]
        torch.testing.assert_close(told, scores.softmax(-1).detach())
    torch.testing.assert_close(mixer(x), mixer.proj(y.flatten(3)), rtol=1e-4, atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("release", ["tf", "rw"])
@pytest.mark.parametrize("shape", [(1, 12, 16, 8), (3, 4, 6, 8), (1, 2, 2, 8)])
def test_folded_norms_change_nothing(release: str, shape: tuple[int, ...]) -> None:
    module = shaken(MBConv(8, 12, stride=2, release=release))
    x = torch.randn(shape)
    with torch.no_grad():
        found = module(x)
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.0  # statistics stay, and are read by the plain form
        plain = _plain(module, x)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(x.requires_grad_()), plain, rtol=1e-4, atol=1e-5)


def _plain(module: nn.Module, x: Tensor) -> Tensor:
    """The bottleneck channels first, part by part, padded as TensorFlow pads even sides."""
    act = {"gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU()}[module.details.conv_activation]  # type: ignore[union-attr]
    x = x.movedim(-1, 1)
    y = act(module.norm1(module.conv1_1x1(module.pre_norm(x))))  # type: ignore[operator]
    sides = (0, 1, 0, 1) if module.details.same_padding else (1, 1, 1, 1)  # type: ignore[union-attr]
    conv = module.conv2_kxk
    y = nn.functional.conv2d(nn.functional.pad(y, sides), conv.weight, None, 2, groups=conv.groups)  # type: ignore[union-attr,arg-type]
    y = act(module.norm2(y))  # type: ignore[operator]
    gate = module.se.fc2(nn.functional.silu(module.se.fc1(y.mean((2, 3), keepdim=True)))).sigmoid()  # type: ignore[union-attr,operator]
    short = module.shortcut.expand(nn.functional.avg_pool2d(x, 2))  # type: ignore[union-attr,operator]
    return (module.conv3_1x1(y * gate) + short).movedim(1, -1)  # type: ignore[operator]


@pytest.mark.parametrize("size", [(6, 7), (5, 8), (4, 4), (1, 2)])
def test_strided_convolutions_pad_as_tensorflow_does(size: tuple[int, int]) -> None:
    conv, x = nn.Conv2d(4, 5, 3, 2, 1), torch.randn(2, *size, 4)
    sides = [side for n in reversed(size) for side in ((0, 1) if n % 2 == 0 else (1, 1))]
    expected = nn.functional.conv2d(nn.functional.pad(x.movedim(-1, 1), sides), conv.weight, conv.bias, 2)
    torch.testing.assert_close(strided(conv, x, same=True), expected.movedim(1, -1))


def test_batch_norms_learn_their_statistics_in_training() -> None:
    module = MBConv(8, 8).train()
    before = module.norm1.running_mean.clone()  # type: ignore[union-attr,operator]
    module(torch.randn(2, 6, 6, 8))
    assert not torch.equal(module.norm1.running_mean, before)  # type: ignore[arg-type]


def test_swins_tables_are_turned_round() -> None:
    flat = torch.arange(15.0).unsqueeze(1)  # windows of 2 x 3: 3 x 5 offsets of query from key
    table = table_of(flat, (1, 3, 5))
    bias = by_pair(table, (2, 3))
    assert bias[0, 0, 5] == flat[(0 - 1 + 1) * 5 + (0 - 2 + 2), 0]
    assert bias[0, 5, 0] == flat[(1 - 0 + 1) * 5 + (2 - 0 + 2), 0]


def test_sizes_that_windows_do_not_divide_are_refused_and_can_be_padded() -> None:
    model = MaxViT(img_size=64, **SMALL).eval()
    assert model(torch.randn(1, 3, 64, 128)).shape == (1, 3)
    with pytest.raises(InvalidValue, match=r"64 x 40 pixels is not possible.* 2 x 2 and 2 x 2 .*stage 1.* 8 x 5;"):
        model(torch.randn(1, 3, 64, 40))
    assert MaxViT(img_size=64, pad=True, **SMALL).eval()(torch.randn(1, 3, 33, 29)).shape == (1, 3)
    with pytest.raises(InvalidValue, match="34 x 32 pixels"):
        MaxViT(window_size=1, release="rw", **SMALL).eval()(torch.randn(1, 3, 34, 32))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depths": (1, 1)}, "2 depths, 4 embed_dims"),
        ({"img_size": 31}, "img_size=31"),
        ({"img_size": (224, 0)}, "img_size="),
        ({"stem_stride": 4}, "stem_stride=4"),
        ({"position": "rope"}, "position='rope'"),
        ({"head_dim": 48}, "head_dim=48"),
        ({"stem_width": (8,)}, "stem_width="),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        MaxViT(**options)


def test_an_unknown_release_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="tf"):
        MaxViT(release="torch")  # type: ignore[arg-type]


def test_a_bottleneck_widens_only_where_it_strides() -> None:
    with pytest.raises(InvalidValue, match="only with stride=2"):
        MBConv(8, 16)
