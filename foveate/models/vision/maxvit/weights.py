"""Weights of timm's MaxViT in our order: one table form, queries before keys before values, other windows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

KEYS = {
    "timm": {
        r"((?:stem|stages)\..+\.conv\..+|stem\..+)": r"\1",
        r"(stages\..+\.attn_(?:block|grid))\.attn\.rel_pos\.relative_position_bias_table": r"\1.attn.bias.table",
        r"(stages\..+\.attn_(?:block|grid))\.attn\.rel_pos\.mlp\.(.+)": r"\1.attn.bias.\2",
        r"(stages\..+\.attn_(?:block|grid)\.attn\.(?:qkv|proj)\..+)": r"\1",
        r"(stages\..+\.attn_(?:block|grid))\.ls([12])\.gamma": r"\1.gamma\2",
        r"(stages\..+\.attn_(?:block|grid)\.(?:norm[12]|mlp)\..+)": r"\1",
        r"norm\.(.+)": r"head.norm.\1",
        r"(head\.(?:norm|fc)\..+)": r"\1",
        r"head\.pre_logits\.fc\.(.+)": r"head.fc1.\1",
    },
}


def convert(model: nn.Module, state_dict: Mapping[str, Tensor], head_dim: int, heads_first: bool) -> dict[str, Tensor]:
    """timm's state dict with the shapes and orders of ``model``.

    Args:
        model: whose tables decide about sizes.
        state_dict: timm's.
        head_dim: channels of an attention head.
        heads_first: the rows of ``qkv`` go by head, as in the ``rw`` models, and not by queries, keys and values.
    """
    own, converted = dict(model.named_parameters()), {}
    for key, value in state_dict.items():
        if heads_first and ".attn.qkv." in key and value.shape[0] % (3 * head_dim) == 0:
            value = value.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2)
        table = own.get(key.replace(".rel_pos.relative_position_bias_table", ".bias.table"))
        if table is not None and key.endswith("relative_position_bias_table"):
            value = table_of(value, tuple(table.shape))  # type: ignore[arg-type]
        converted[key] = value
    return converted


def table_of(given: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A table in our order, of this shape: ``(heads, 2 h - 1, 2 w - 1)``, by offset of key from query.

    Swin's flat order, ``((2 h - 1) (2 w - 1), heads)`` by offset of query from key, is turned round. A table of other
    windows is interpolated as timm does, along both sides even if one of them keeps its size.

    Args:
        given: the table.
        shape: of the result.
    """
    if given.ndim == 2:
        side = int(given.shape[0] ** 0.5)
        sides = shape[1:] if given.shape[0] == shape[1] * shape[2] else (side, given.shape[0] // side)
        given = given.T.unflatten(1, sides).flip(1, 2)
    if given.shape == shape or given.shape[0] != shape[0]:
        return given
    for axis, size in ((1, shape[1]), (2, shape[2])):
        given = _stretch(given, axis, size)
    return given


def _stretch(table: Tensor, axis: int, size: int) -> Tensor:
    """One axis to another size, between entries whose distances grow from the middle, as BEiT's code does it."""
    count = table.shape[axis]
    places = _places(count, size).to(table.device)
    wanted = torch.arange(size, device=table.device, dtype=torch.float32) - size // 2
    right = torch.searchsorted(places, wanted).clamp(1, count - 1)
    left, width = right - 1, places[right] - places[right - 1]
    share = ((wanted - places[left]) / width).clamp(0, 1).to(table.dtype)
    share = share.view(*[-1 if i == axis else 1 for i in range(table.ndim)])
    return torch.lerp(table.index_select(axis, left), table.index_select(axis, right), share)


def _places(count: int, size: int) -> Tensor:
    """Where ``count`` entries stand on an axis of ``size`` places, in a geometric progression from the middle."""
    low, high, ratio = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reached = (1 - ratio ** (count // 2)) / (1 - ratio)
        low, high = (low, ratio) if reached > size // 2 else (ratio, high)
    steps = torch.tensor([ratio**i for i in range(count // 2)], dtype=torch.float64)
    return torch.cat([-steps.cumsum(0).flip(0), torch.zeros(1), steps.cumsum(0)]).float()
