"""DaViT, its blocks and its attentions against the authors' code."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cases import Answer, Case
from torch import Tensor, nn

from foveate.mixers.davit import ChannelAttention, WindowAttention
from foveate.models.official import load_official
from foveate.models.vision.davit import Block, DaViT

TOLERANCE = 1e-5

#: Arguments of the official classes that its own code does not read, or that only say how weights begin.
WITHOUT_EFFECT = ("img_size", "drop_rate", "attn_drop_rate", "weight_init", "act_layer", "norm_layer")
MODEL = (
    "in_chans",
    "num_classes",
    "depths",
    "patch_size",
    "embed_dims",
    "num_heads",
    "window_size",
    "mlp_ratio",
    "qkv_bias",
    "drop_path_rate",
    "attention_types",
    "ffn",
    "overlapped_patch",
)


def _size(case: Case, tokens: int) -> tuple[int, int]:
    """Height and width of a map that is given as a sequence: in the configuration, the inputs or the notes."""
    told: list[Any] = [case.meta.get(key, case.config.get(key)) for key in ("size", "hw", "HW", "grid", "resolution")]
    told += [[case.config.get(a), case.config.get(b)] for a, b in (("H", "W"), ("height", "width"))]
    told += [value.tolist() for value in case.inputs.values() if value.numel() == 2]
    told += [list(map(int, pair)) for pair in re.findall(r"(\d+)\s*[x*,]\s*(?:W\s*=\s*)?(\d+)", case.notes)]
    for pair in told:
        if isinstance(pair, list | tuple) and len(pair) == 2 and None not in pair and pair[0] * pair[1] == tokens:
            return int(pair[0]), int(pair[1])
    raise NotImplementedError(f"the height and width of {tokens} tokens are not told")


def _official_block_name(name: str) -> str:
    return re.sub(r"^cpe([12])\.", lambda m: f"cpe.{int(m[1]) - 1}.", name)


def run(case: Case) -> Answer:
    config, given, kind = case.config, case.params, case.official_class
    x = case.inputs["x"].requires_grad_()
    for name in WITHOUT_EFFECT:
        config.pop(name, None)
    if kind == "DaViT":
        model = DaViT(**{name: config.pop(name) for name in MODEL if name in config}).eval()
        _all_known(config)
        load_official(model, given, "davit")
        logits = model(x)
        return {"logits": logits, "y": logits}, case.gradients(
            logits.square().mean(), {"x": x, **_parameters(model, given)}
        )
    if kind not in ("ChannelAttention", "WindowAttention", "ChannelBlock", "SpatialBlock"):
        pytest.skip(f"{kind} is not built")
    spatial, dim, heads = kind in ("WindowAttention", "SpatialBlock"), config.pop("dim"), config.pop("num_heads", 8)
    bias = config.pop("qkv_bias", spatial)
    if spatial:
        window = config.pop("window_size", 7)
        window = window[0] if isinstance(window, list) else window
        attn: nn.Module = WindowAttention(dim, num_heads=heads, window=window, qkv_bias=bias)
    else:
        attn = ChannelAttention(dim, num_heads=heads, qkv_bias=bias)
    if kind in ("ChannelAttention", "WindowAttention"):
        _all_known(config)
        attn.load_state_dict(given)
        grid = (window, window) if spatial else (x.shape[1],)
        y = attn(x.unflatten(1, grid)).flatten(1, -2)
        return {"y": y}, case.gradients(y.square().mean(), {"x": x, **dict(attn.named_parameters())})
    hidden = int(dim * config.pop("mlp_ratio", 4.0))
    block = Block(dim, attn, hidden if config.pop("ffn", True) else None, config.pop("drop_path", 0.0)).eval()  # type: ignore[arg-type]
    size = _size(case, x.shape[1]) if x.ndim == 3 else x.shape[1:3]
    for name in ("H", "W", "size", "hw", "HW", "grid", "resolution", "height", "width"):
        config.pop(name, None)
    _all_known(config)
    own = {_official_block_name(name): parameter for name, parameter in block.named_parameters()}
    block.load_state_dict({ours: given[_official_block_name(ours)] for ours in block.state_dict()})
    assert own.keys() == given.keys()
    y = block(x.unflatten(1, size) if x.ndim == 3 else x)
    y = y.flatten(1, 2) if x.ndim == 3 else y
    return {"y": y}, case.gradients(y.square().mean(), {"x": x, **own})


def _all_known(config: dict[str, Any]) -> None:
    if config:
        raise NotImplementedError(f"options {sorted(config)} of the official code are not known")


def _parameters(model: DaViT, official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours by their official names."""
    own, found = dict(model.named_parameters()), {}
    for key in official:
        for pattern, ours in model.official_keys["davit"].items():
            match = re.fullmatch(pattern, key)
            if match:
                found[key] = own[match.expand(ours)]
                break
    return found
