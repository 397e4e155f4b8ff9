"""Record ``davit.safetensors``: timm's DaViT and transformers' encoder of Florence-2 with tiny random weights.

    python -m tests.peers.record_davit

timm (1.0.31) and transformers (5.x) must be installed. Keys of the file: ``CASE/param/*`` (the peer's own names),
``CASE/x``, ``CASE/y`` and the maps of all stages, ``CASE/map0`` and so on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("davit.safetensors")
#: Our options of each case of timm's, and the size of its image: sides that strides and windows do not divide.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "timm": ({"depths": (1, 1), "embed_dims": (4, 12), "num_heads": (2, 4), "window_size": 3}, (45, 50)),
    "timm-one-attention": (
        {
            "depths": (1, 1),
            "embed_dims": (8, 12),
            "num_heads": (1, 3),
            "window_size": 5,
            "attention_types": ("channel",),
            "qkv_bias": False,
            "ffn": False,
        },
        (38, 71),
    ),
    "timm-florence": (
        {
            "depths": (1, 1),
            "embed_dims": (4, 12),
            "num_heads": (2, 2),
            "window_size": 4,
            "overlapped_patch": True,
            "scores": "qk",
            "mlp_ratio": 2.0,
        },
        (53, 34),
    ),
}
FLORENCE = {
    "depths": (1, 1),
    "embed_dims": (4, 12),
    "num_heads": (2, 2),
    "window_size": 4,
    "overlapped_patch": True,
    "scores": "qk",
    "num_classes": 0,
}


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights away from their starts."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def of_timm(options: dict[str, Any], size: tuple[int, int]) -> dict[str, Tensor]:
    """timm's answer and maps."""
    from timm.models.davit import DaVit

    florence = options.get("scores") == "qk"
    names = {"attention_types": "attn_types"}
    given = {names.get(k, k): v for k, v in options.items() if k not in ("overlapped_patch", "scores")}
    if florence:
        given |= {"down_kernel_size": 3, "channel_attn_v2": True, "named_blocks": True}
    model = shaken(DaVit(num_classes=5, **given))
    x = torch.randn(1, 3, *size)
    maps = model.forward_intermediates(x, intermediates_only=True)
    return {"x": x, "y": model(x), **{f"map{i}": m for i, m in enumerate(maps)}, **parameters(model)}


def of_transformers() -> dict[str, Tensor]:
    """The last map of transformers' encoder of Florence-2."""
    from transformers import Florence2VisionConfig
    from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

    config = Florence2VisionConfig(
        depths=FLORENCE["depths"],
        embed_dim=FLORENCE["embed_dims"],
        num_heads=FLORENCE["num_heads"],
        num_groups=FLORENCE["num_heads"],
        window_size=FLORENCE["window_size"],
        patch_size=(7, 3),
        patch_stride=(4, 2),
        patch_padding=(3, 1),
        patch_prenorm=(False, True),
    )
    model = shaken(Florence2VisionBackbone(config))
    x = torch.randn(1, 3, 61, 44)
    y = model(x)
    return {"x": x, "y": getattr(y, "last_hidden_state", y), **parameters(model)}


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {f"param/{name}": value for name, value in model.state_dict().items()}


def main() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        cases = {name: of_timm(*case) for name, case in CASES.items()}
        cases["transformers"] = of_transformers()
    save_file({f"{case}/{name}": v.clone().contiguous() for case, t in cases.items() for name, v in t.items()}, FILE)


if __name__ == "__main__":
    main()
