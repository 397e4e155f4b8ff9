"""TCNCA's trunk against ``MovingAverageGatedAttention`` of facebookresearch/mega, with the recorded convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Answer, Case

import foveate.mixers.chunked_attention as trunk
from foveate.mixers.tcnca import TCNCA, Mega
from foveate.models.language.tcnca import GatedLayer
from foveate.models.official import load_official

TOLERANCE = 1e-5

#: Options of the official constructor that change nothing without training, and the recorded length.
WITHOUT_EFFECT = {"n", "dropout", "attention_dropout", "hidden_dropout", "feature_dropout", "truncation", "export"}


def build(case: Case) -> GatedLayer:
    """The layer of the recorded configuration; a key that says something unknown fails."""
    config = {key: value for key, value in case.config.items() if key not in WITHOUT_EFFECT}
    truncation = case.config.get("truncation")
    if truncation is not None and 0 < truncation < case.inputs["x"].shape[0]:
        pytest.skip("a moving average cut off before the sequence ends is not built")
    if config.pop("activation", "silu") != "silu":
        pytest.skip("gates other than silu are not built")
    norm = config.pop("norm_type", "layernorm")
    if norm in ("batchnorm", "syncbatchnorm"):
        pytest.skip("batch norm is not built: it would mix tokens across samples")
    causal = config.pop("causal", None)
    bidirectional = config.pop("bidirectional", None)
    if causal is None:
        causal = not bidirectional
    layer = {
        "prenorm": config.pop("prenorm", True),
        "affine": config.pop("norm_affine", True),
        "norm": norm,
    }
    chunk = config.pop("chunk_size", -1)
    dim, averages = config.pop("embed_dim"), config.pop("ndim", None)
    common: dict[str, Any] = {
        "causal": causal,
        "chunk_size": None if chunk < 0 else chunk,
        "z_dim": config.pop("zdim"),
        "h_dim": config.pop("hdim"),
        "attention": config.pop("attention_activation", "softmax"),
        "rel_bias": config.pop("rel_pos_bias", "simple"),
        "max_positions": config.pop("max_positions", 1024),
    }
    if case.has_param(r"^rel_pos_bias\.rel_pos_bias$") and chunk < 0:
        common["max_positions"] = (case.params["rel_pos_bias.rel_pos_bias"].numel() + 1) // 2
    assert not config, f"unknown in the configuration: {config}"
    if case.has_param(r"^move\.omega$"):
        return GatedLayer(Mega(dim, n_dim=averages or case.params["move.gamma"].shape[1], **common), **layer).eval()
    return GatedLayer(TCNCA(dim, **convolutions(case), **common), **layer).eval()


def convolutions(case: Case) -> dict[str, Any]:
    """The recorded stand-in for the moving average: causal convolutions with silu between them, dilation 1, 3, ..."""
    weights = [value for key, value in sorted(case.params.items()) if key.startswith("move.w")]
    width = weights[0].shape[2]
    return {
        "kernel_size": width,
        "levels": len(weights),
        "dilation_factor": 3,
        "convolution": "depthwise" if weights[0].shape[1] == 1 else "dense",
        "residual": False,
        "activation": "silu",
        "tcn_bias": False,
    }


def run(case: Case) -> Answer:
    layer = build(case)
    names = {f"move.w{i}": f"move.convs.{i}.weight" for i in range(len(case.params))}
    load_official(layer, {names.get(key, key): value for key, value in case.params.items()}, source="mega")
    move = layer.mixer.move
    if case.has_param(r"^move\.w0$"):
        move.causal = True  # the recorded convolutions look back also where attention looks both ways
    moved: list[torch.Tensor] = []
    move.register_forward_hook(lambda module, given, y: moved.append(y))  # type: ignore[arg-type]
    x = case.inputs["x"].requires_grad_()
    padding = case.inputs.get("padding_mask")
    mask = None if padding is None else ~padding.bool()
    y = layer(x.transpose(0, 1), mask).transpose(0, 1)
    outputs = {"out": y, "mx": moved[0].transpose(0, 1), "attn": weights(layer, x.transpose(0, 1), mask)}
    tensors = {"x": x, **official_parameters(layer, names)}
    return outputs, case.gradients(y.square().mean(), tensors)


def official_parameters(layer: GatedLayer, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Our parameters by their official names."""
    back = {ours: official for official, ours in names.items()}
    found = {}
    for key, value in layer.named_parameters():
        key = key.removeprefix("mixer.")
        key = f"norm.{key}" if key.startswith("norm.") else key
        found[back.get(key, key)] = value
    return found


def weights(layer: GatedLayer, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The weights ``(batch, chunks, chunk, chunk)``: what the layer makes of values that are the identity matrix."""
    length, size = x.shape[1], min(layer.mixer.chunk_size or x.shape[1], x.shape[1])
    identity, attention, found = torch.eye(size).repeat(length // size, 1), trunk.chunked_attention, []

    def with_identity(q: Any, k: Any, v: Any, *others: Any, **options: Any) -> torch.Tensor:
        found.append(attention(q, k, identity.expand(len(q), -1, -1), *others, **options))
        return attention(q, k, v, *others, **options)

    trunk.chunked_attention = with_identity
    try:
        layer(x, mask)
    finally:
        trunk.chunked_attention = attention
    return found[0].unflatten(1, (-1, size))
