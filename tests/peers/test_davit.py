"""DaViT against timm's, and the encoder of Florence-2 against transformers': values of ``record_davit.py``."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from foveate.errors import InvalidValue
from foveate.models.official import load_official
from foveate.models.vision.davit import DaViT

from .record_davit import CASES, FILE, FLORENCE

with safe_open(FILE, "pt") as file:
    RECORDED = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)


def case(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs of a case, and its parameters under the peer's names."""
    own = {key.removeprefix(f"{name}/"): value for key, value in RECORDED.items() if key.startswith(f"{name}/")}
    parameters = {key.removeprefix("param/"): value for key, value in own.items() if key.startswith("param/")}
    return {key: value for key, value in own.items() if not key.startswith("param/")}, parameters


@pytest.mark.parametrize("name", CASES)
def test_timm(name: str) -> None:
    given, parameters = case(name)
    model = DaViT(num_classes=5, **CASES[name][0]).eval()
    load_official(model, parameters, "timm")
    torch.testing.assert_close(model(given["x"]), given["y"], rtol=1e-5, atol=1e-5)
    maps = model.features_only()(given["x"])
    assert [(f.channels, m.shape[1]) for f, m in zip(model.feature_info, maps, strict=True)] == [
        (m.shape[1], m.shape[1]) for m in maps
    ]
    for i, found in enumerate(maps):
        torch.testing.assert_close(found, given[f"map{i}"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("prefix", ["", "model.vision_tower."])
def test_transformers_encoder_of_florence(prefix: str) -> None:
    given, parameters = case("transformers")
    model = DaViT(**FLORENCE).eval()
    whole = {prefix + key: value for key, value in parameters.items()}
    if prefix:
        whole["language_model.something.weight"] = torch.zeros(3)
    load_official(model, whole, "Florence-2")
    torch.testing.assert_close(model.forward_features(given["x"]), given["y"], rtol=1e-5, atol=1e-5)


def test_microsofts_names_of_the_same_encoder() -> None:
    _, parameters = case("transformers")
    first, second = DaViT(**FLORENCE), DaViT(**FLORENCE)
    load_official(first, parameters, "Florence-2")
    renamed = {}
    for key, value in parameters.items():
        if key.startswith("convs."):
            key = key.replace(".conv.", ".proj.")
        for kind in ("window_attn", "channel_attn"):
            block = {"window_attn": "spatial_block", "channel_attn": "channel_block"}[kind]
            key = key.replace(f".{kind}.", f".{kind}.fn.").replace(f".{block}.norm1.", f".{block}.{kind}.norm.")
        key = key.replace(".ffn.", ".ffn.fn.net.").replace("_block.norm2.", "_block.ffn.norm.")
        renamed["vision_tower." + key.replace(".conv1.", ".conv1.fn.dw.").replace(".conv2.", ".conv2.fn.dw.")] = value
    load_official(second, renamed, "Florence-2")
    for (name, one), (_, other) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def test_weights_of_another_size_are_refused() -> None:
    _, parameters = case("timm")
    with pytest.raises(InvalidValue, match="wrong shape"):
        load_official(DaViT(num_classes=6, **CASES["timm"][0]), parameters, "timm")
    with pytest.raises(InvalidValue, match="missing"):
        load_official(DaViT(), parameters, "timm")
