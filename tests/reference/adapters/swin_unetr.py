"""Swin UNETR's blocks, encoder, mergings and whole networks against monai."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import Answer, Case
from torch import Tensor, nn

from foveate.mixers.swin_unetr import ShrinkingWindows
from foveate.models.official import load_official
from foveate.models.vision.swin_unetr import PatchMerging, SwinEncoder, SwinUNETR, VolumeBlock

TOLERANCE = 1e-5

#: monai's names of options that are called otherwise here.
OTHER = {"in_channels": "in_chans", "out_channels": "num_classes", "dropout_path_rate": "drop_path_rate"}
OTHER |= {"embed_dim": "feature_size"}
#: Options that do not change an answer, or are of what is not built, with the values that are let by.
IDLE: dict[str, Any] = {"use_flash_attention": None, "img_size": None, "use_hyena": False, "hyena_stages": None}


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Options under our names, lists as tuples."""
    found = {}
    for name, value in config.items():
        if name in IDLE:
            assert IDLE[name] is None or not value, f"{name}={value!r} is not built"
            continue
        if name == "patch_size" and isinstance(value, list):
            assert len(set(value)) == 1, f"patches {value} are not cubes"
            value = value[0]
        found[OTHER.get(name, name)] = tuple(value) if isinstance(value, list) else value
    return found


def run(case: Case) -> Answer:
    name = case.official_class
    if case.has_param(r"reduction\.weight$") and not case.has_param(r"(?:qkv|patch_embed)"):
        return mergings(case)
    if "SwinTransformerBlock" in name:
        return block(case)
    if "SwinUNETR" in name:
        return network(case)
    if "SwinTransformer" in name:
        return encoder(case)
    pytest.skip(f"{name} is not built")


def block(case: Case) -> Answer:
    config = plain(case.config)
    window, shift = config.pop("window_size"), config.pop("shift_size", 0)
    dim, rates = config.pop("dim"), {"attn_drop": config.pop("attn_drop", 0.0), "proj_drop": config.pop("drop", 0.0)}
    mixer = ShrinkingWindows(
        dim,
        num_heads=config.pop("num_heads"),
        window=window,
        shift=shift,
        qkv_bias=config.pop("qkv_bias", True),
        **rates,
    )
    ratio, path = config.pop("mlp_ratio", 4.0), config.pop("drop_path", 0.0)
    checkpoint = config.pop("use_checkpoint", False)
    assert not config, f"unknown options {sorted(config)}"
    made = VolumeBlock(dim, mixer, ratio, path, rates["proj_drop"], checkpoint).eval()
    load_official(made, case.params)
    x = case.inputs["x"].requires_grad_()
    y = made(x)
    return {"y": y}, case.gradients(y.square().mean(), {"x": x, **official_names(made)})


def official_names(module: nn.Module) -> dict[str, Tensor]:
    return {re.sub(r"mlp\.fc(\d)", r"mlp.linear\1", key): p for key, p in module.named_parameters()}


def encoder(case: Case) -> Answer:
    config = plain(case.config)
    normalize = config.pop("normalize", True)
    made = SwinEncoder(config.pop("in_chans"), config.pop("feature_size"), **config).eval()
    given = case.params or by_formula(case, made)
    load_official(made, given, "monai")
    (name,) = case.inputs
    x = case.inputs[name].requires_grad_()
    maps = made(x, normalize)
    loss = sum((m.square().mean() for m in maps), torch.zeros(()))
    return {f"x{i}": m for i, m in enumerate(maps)}, case.gradients(loss, {name: x})


def network(case: Case) -> Answer:
    made = SwinUNETR(**plain(case.config)).eval()
    load_official(made, case.params or by_formula(case, made), "monai")
    (name,) = case.inputs
    x = case.inputs[name].requires_grad_()
    y = made(x)
    answers = {key: y for key in case.outputs if y.shape == case.outputs[key].shape}
    return answers, case.gradients(y.square().mean(), {name: x})


def mergings(case: Case) -> Answer:
    """One state dict, all orders; an output's name says which order it is of."""
    (name,) = case.inputs
    x = case.inputs[name].requires_grad_()
    config = plain(case.config)
    dim = config.pop("dim", x.shape[-1])
    assert config.pop("spatial_dims", x.ndim - 2) == x.ndim - 2
    assert "norm_layer" not in config, "another norm is not built"
    given, answers = {key.rsplit("downsample.", 1)[-1]: value for key, value in case.params.items()}, {}
    for output in case.outputs:
        made = PatchMerging(x.ndim - 2, dim, order_of(output, config.get("downsample", "merging")))
        load_official(made, given, "monai")
        answers[output] = made(x)
    loss = sum((y.square().mean() for y in answers.values()), torch.zeros(()))
    return answers, case.gradients(loss, {name: x})


def order_of(output: str, otherwise: str) -> Any:
    if re.search(r"legacy|old|0[._]?9|1[._]?4|pre", output):
        return "merging_legacy"
    if re.search(r"v2|V2", output):
        return "mergingv2"
    return "merging" if "merging" in output else otherwise


def by_formula(case: Case, made: nn.Module) -> dict[str, Tensor]:
    """Weights that the recording does not hold."""
    pytest.fail(f"{case.official_class} was recorded without weights, and how they are made is not read: {case.meta}")
