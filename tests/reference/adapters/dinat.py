"""DiNAT's attention, and whole networks, against the authors' code on NATTEN's CPU kernels."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cases import Answer, Case

from foveate.mixers.dinat import NeighborhoodAttention
from foveate.mixers.faster_neighborhood_attention import FasterNeighborhoodAttention
from foveate.models.official import load_official
from foveate.models.vision.dinat import DiNAT

TOLERANCE = 1e-5

#: Options that are called the same here.
SAME = {"embed_dim", "mlp_ratio", "depths", "num_heads", "drop_path_rate", "in_chans", "kernel_size", "dilations"}
SAME |= {"num_classes", "qkv_bias", "drop_rate", "attn_drop_rate", "patch_size", "rel_pos_bias", "layer_scale"}


def per_axis(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def refuse_unknown(config: dict[str, Any]) -> None:
    """What does not change the network is let by: the size of an image that it never asks for, its name."""
    left = set(config) - {"img_size", "pretrain_img_size", "norm_layer", "name", "model", "arch", "variant"}
    assert not left, f"unknown options {sorted(left)}"


def run(case: Case) -> Answer:
    if "NeighborhoodAttention2D" in case.official_class:
        return attention(case)
    if case.has_param(r"^patch_embed\.proj"):
        return network(case)
    pytest.skip(f"{case.official_class} is not built")


def attention(case: Case) -> Answer:
    config = case.config
    causal = per_axis(config.pop("is_causal", False))
    options = {
        "num_heads": config.pop("num_heads"),
        "window": per_axis(config.pop("kernel_size")),
        "dilation": per_axis(config.pop("dilation", None) or 1),
        "qkv_bias": config.pop("qkv_bias", True),
        "scale": config.pop("qk_scale", None) or None,
        "proj_drop": config.pop("proj_drop", 0.0),
    }
    dim, biased, attn_drop = config.pop("dim"), case.has_param(r"^rpb$"), config.pop("attn_drop", 0.0)
    assert config.pop("rel_pos_bias", biased) == config.pop("bias", biased) == biased
    refuse_unknown(config)
    if any(causal) if isinstance(causal, tuple) else causal:
        assert not biased, "a bias with a causal axis is not defined"
        mixer: Any = FasterNeighborhoodAttention(dim, causal=causal, **options)
    else:
        mixer = NeighborhoodAttention(dim, rel_pos_bias=biased, attn_drop=attn_drop, **options)
    load_official(mixer, case.params)
    x = case.inputs["x"].requires_grad_()
    y = mixer.eval()(x)
    return {"y": y}, case.gradients(y.square().mean(), {"x": x, **dict(mixer.named_parameters())})


def network(case: Case) -> Answer:
    config, given = case.config, case.params
    options = {name: config.pop(name) for name in SAME & set(config)}
    options.setdefault("rel_pos_bias", case.has_param(r"\.rpb$"))
    options.setdefault("num_classes", given["head.weight"].shape[0] if "head.weight" in given else 0)
    options["qk_scale"] = config.pop("qk_scale", None) or None
    if "levels" in config or "num_levels" in config:
        assert config.pop("levels", config.pop("num_levels", None)) == len(options["depths"])
    patches = "patch_embed.proj.weight" in given
    assert config.pop("patch_norm", True), "tokens without a norm are not built"
    if patches and "depth" in config:  # isotropic: one level, whose odd layers are dilated
        assert "dilations" not in options
        options |= {"depths": (config.pop("depth"),), "num_heads": (options["num_heads"],)}
        options["dilations"] = (config.pop("dilation", None) or 1,)
    refuse_unknown(config)
    model = DiNAT(tokens="patches" if patches else "convolutions", **options).eval()
    load_official(model, given, "DiNAT")
    (name,) = case.inputs
    x = case.inputs[name].requires_grad_()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    y = model(x)
    isotropic = r"layers.\1" if patches else r"levels.0.blocks.\1"
    own = {official(key, given, isotropic): p for key, p in model.named_parameters()}
    return {"y": y, "logits": y, "features": pooled}, case.gradients(y.square().mean(), {name: x, **own})


def official(key: str, given: dict[str, Any], isotropic: str) -> str:
    """The release's name of a parameter, for gradients."""
    names = (key, key.replace("levels.", "layers."), re.sub(r"levels\.0\.blocks\.(.+)", isotropic, key))
    return next(name for name in names if name in given)
