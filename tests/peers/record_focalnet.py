"""Record ``focalnet.safetensors``: timm's and transformers' FocalNet with tiny random weights, at odd sizes too.

    python -m tests.peers.record_focalnet

timm (1.x), transformers (5.x) and torchvision must be installed. Keys of the file: ``CASE/param/*`` (the peer's own
names), ``CASE/x``, ``CASE/y`` (logits) and of timm ``CASE/map/*``; the options that build ours as JSON in the header.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("focalnet.safetensors")
#: Options of ours by case, the peer in front, and the size of the images.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "timm-srf": ({"depths": [1, 2], "focal_levels": [2, 2], "focal_windows": [3, 3]}, (37, 30)),
    "timm-large": (
        {
            "depths": [1, 1, 1],
            "focal_levels": [3, 2, 1],
            "focal_windows": [5, 3, 3],
            "use_conv_embed": True,
            "use_layerscale": True,
            "layerscale_value": 0.5,
            "use_postln": True,
            "use_postln_in_modulation": True,
            "normalize_modulator": True,
        },
        (43, 34),
    ),
    "transformers-srf": (
        {"depths": [2, 1], "focal_levels": [2, 3], "focal_windows": [3, 3], "fill_up": True},
        (37, 30),
    ),
    "transformers-large": (
        {
            "depths": [1, 1],
            "focal_levels": [3, 2],
            "focal_windows": [5, 3],
            "use_conv_embed": True,
            "use_layerscale": True,
            "layerscale_value": 0.5,
            "use_postln": True,
            "use_postln_in_modulation": True,
            "normalize_modulator": True,
            "fill_up": True,
        },
        (35, 42),
    ),
}
COMMON = {"embed_dim": 6, "num_classes": 5, "mlp_ratio": 2.0}


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode, its weights away from their starts."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def timm_model(options: dict[str, Any]) -> nn.Module:
    from timm.models.focalnet import FocalNet

    names = {
        "use_conv_embed": "use_overlap_down",
        "use_postln": "use_post_norm",
        "use_postln_in_modulation": "use_post_norm_in_modulation",
    }
    given = {names.get(name, name): value for name, value in options.items()}
    if not given.pop("use_layerscale", False):
        given.pop("layerscale_value", None)
    return FocalNet(**given)


def port(options: dict[str, Any]) -> nn.Module:
    from transformers import FocalNetConfig, FocalNetForImageClassification

    names = {
        "use_postln": "use_post_layernorm",
        "use_postln_in_modulation": "use_post_layernorm_in_modulation",
        "num_classes": "num_labels",
    }
    given = {names.get(name, name): value for name, value in options.items() if name != "fill_up"}
    return FocalNetForImageClassification(FocalNetConfig(image_size=64, **given))


def main() -> None:
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for case, (own, size) in CASES.items():
            peer = case.split("-")[0]
            model = shaken((timm_model if peer == "timm" else port)({**COMMON, **own}))
            x = torch.randn(1, 3, *size)
            y = model(x)
            found = {"x": x, "y": y if isinstance(y, Tensor) else y.logits}
            found |= {f"param/{name}": value for name, value in model.state_dict().items()}
            if peer == "timm":
                maps = model.forward_intermediates(x, intermediates_only=True)  # type: ignore[operator]
                found |= {f"map/{i}": value for i, value in enumerate(maps)}
            tensors |= {f"{case}/{name}": value.clone().contiguous() for name, value in found.items()}
    save_file(tensors, FILE, {"options": json.dumps({case: {**COMMON, **own} for case, (own, _) in CASES.items()})})


if __name__ == "__main__":
    main()
