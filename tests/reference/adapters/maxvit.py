"""MaxViT, its bottleneck and its attentions against timm's configuration for the authors' weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cases import Answer, Case
from torch import Tensor, nn

from foveate.models.official import load_official
from foveate.models.vision.maxvit import MaxViT, MBConv, PartitionAttention

TOLERANCE = 1e-5

#: What the authors' configuration fixes: another value would be another model.
FIXED = {
    "act": "gelu_tanh",
    "act_layer": "gelu_tanh",
    "padding": "same",
    "rel_pos_type": "bias_tf",
    "head_first": False,
    "expand_output": True,
    "output_bias": True,
    "stem_bias": True,
    "block_type": ("M", ["M"]),
    "stride_mode": "dw",
    "pool_type": "avg2",
}


def _fixed(config: dict[str, Any]) -> None:
    for name, value in FIXED.items():
        if name in config and name != "block_type":
            found = config.pop(name)
            if found != value:
                raise NotImplementedError(f"{name}={found!r} is not in the authors' configuration")
    if set(config.pop("block_type", "M")) != {"M"}:
        raise NotImplementedError("only blocks 'M' are in the authors' configuration")


def _all_known(config: dict[str, Any]) -> None:
    if config:
        raise NotImplementedError(f"options {sorted(config)} of the official code are not known")


def _named(module: nn.Module, keys: dict[str, str]) -> dict[str, Tensor]:
    """Our parameters by their official names."""
    own = dict(module.named_parameters())
    return {theirs: own[ours] for theirs, ours in keys.items() if ours in own}


def _ours(key: str) -> str:
    key = re.sub(r"attn\.rel_pos\.relative_position_bias_table", "attn.bias.table", key)
    return re.sub(r"ls([12])\.gamma", r"gamma\1", key)


def run(case: Case) -> Answer:
    config, given, kind = case.config, case.params, case.official_class
    x = case.inputs["x"].requires_grad_()
    _fixed(config)
    if "MbConvBlock" in kind:
        eps = config.pop("norm_eps", 1e-3)
        module: nn.Module = MBConv(
            config.pop("in_chs"),
            config.pop("out_chs"),
            stride=config.pop("stride", 1),
            expansion=config.pop("expand_ratio", 4.0),
            se_ratio=config.pop("se_ratio", config.pop("attn_ratio", None)),
            drop_path=config.pop("drop_path", 0.0),
        )
        _eps(module, nn.BatchNorm2d, eps)
        y_of = lambda: module(x.movedim(1, -1)).movedim(-1, 1)  # noqa: E731
    elif "PartitionAttentionCl" in kind:
        eps, partition = config.pop("norm_eps", 1e-5), config.pop("partition_type", "block")
        window = config.pop("window_size")
        grid = config.pop("grid_size", window)
        module = PartitionAttention(
            config.pop("dim"),
            partition,
            tuple(window if partition == "block" else grid),
            head_dim=config.pop("dim_head", 32),
            expansion=config.pop("expand_ratio", 4.0),
            layer_scale=config.pop("init_values", None),
        )
        _eps(module, nn.LayerNorm, eps)
        y_of = lambda: module(x)  # noqa: E731
    elif "MaxxVit" in kind or "MaxViT" in kind or "maxvit" in kind.lower():
        return _network(case, config, x)
    else:
        pytest.skip(f"{kind} is not built")
    _all_known(config)
    keys = {key: _ours(key) for key in given}
    module.eval().load_state_dict({ours: given[theirs] for theirs, ours in keys.items()})
    y = y_of()
    return {"y": y}, case.gradients(y.square().mean(), {"x": x, **_named(module, keys)})


def _eps(module: nn.Module, kind: type[nn.Module], eps: float) -> None:
    for part in module.modules():
        if isinstance(part, kind):
            part.eps = eps  # type: ignore[assignment]


def _network(case: Case, config: dict[str, Any], x: Tensor) -> Answer:
    given = case.params
    config = {name.removeprefix("transformer_"): value for name, value in config.items()}
    norm = config.pop("norm_eps", None)
    conv_eps, ln_eps = config.pop("conv_norm_eps", norm or 1e-3), norm or 1e-5
    stem = config.pop("stem_width", 64)
    model = MaxViT(
        config.pop("in_chans", 3),
        config.pop("num_classes", 1000),
        img_size=config.pop("img_size", 224),
        depths=config.pop("depths"),
        embed_dims=config.pop("embed_dim", None) or config.pop("embed_dims"),
        stem_width=[stem, stem] if isinstance(stem, int) else stem,
        window_size=config.pop("window_size", None),
        grid_size=config.pop("grid_size", None),
        head_dim=config.pop("dim_head", 32),
        expansion=config.pop("expand_ratio", 4.0),
        se_ratio=config.pop("se_ratio", config.pop("attn_ratio", None)),
        head_hidden=config.pop("head_hidden_size", 0) or 0,
        drop_path_rate=config.pop("drop_path_rate", 0.0),
    ).eval()
    _eps(model, nn.BatchNorm2d, conv_eps)
    _eps(model, nn.LayerNorm, ln_eps)
    _all_known(config)
    load_official(model, given, "timm")
    logits = model(x)
    outputs = {"logits": logits, "y": logits, "features": model.forward_features(x)}
    return outputs, case.gradients(logits.square().mean(), {"x": x})
