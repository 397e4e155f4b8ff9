"""Record ``swin.safetensors``, ``vit.safetensors``, ``convnext.safetensors``: two peers with tiny random weights.

    python -m tests.peers.record_image_backbones

timm (1.0.31) and transformers (5.24, with torchvision) must be installed. Keys of a file: ``CASE/param/*`` (the peer's
own names), ``CASE/x``, ``CASE/y`` (logits) and, of timm, ``CASE/map.0`` and so on (what features_only gives, channels
first). The options of our model for each case stand in :data:`CASES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
CLASSES = 3
_SWIN = {"embed_dim": 4, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "patch_size": 2}
_VIT = {"dim": 12, "depth": 2, "num_heads": 2, "patch_size": 4}
_CONVNEXT = {"dims": (4, 6, 8, 10), "depths": (1, 1, 2, 1)}

#: By model and case (a peer's name first): our options, and the size of the images; a peer is built for ``size``.
CASES: dict[str, dict[str, tuple[dict[str, Any], tuple[int, int]]]] = {
    "swin": {
        "timm-plain": ({**_SWIN, "size": (32, 32)}, (32, 32)),
        "timm-padded": ({**_SWIN, "size": (28, 36), "rules": "timm"}, (28, 36)),  # grids of 14 x 18 and 7 x 9
        "timm-other-size": ({**_SWIN, "size": (32, 32), "rules": "timm"}, (22, 42)),
        "timm-small-map": ({**_SWIN, "size": (12, 20), "rules": "timm"}, (12, 20)),  # a stage of 3 x 5
        "timm-whole-windows": ({**_SWIN, "size": (12, 20), "rules": "timm", "always_partition": True}, (12, 20)),
        "transformers-plain": ({**_SWIN, "size": (32, 32)}, (32, 32)),
        "transformers-odd": ({**_SWIN, "size": (33, 45)}, (33, 45)),
        "transformers-one-window": ({**_SWIN, "size": (16, 24)}, (16, 24)),  # a stage of 4 x 6: no shift
    },
    "vit": {
        "timm-plain": ({**_VIT, "size": 16}, (16, 16)),
        "timm-larger": ({**_VIT, "size": (16, 20)}, (28, 24)),
        "timm-smaller-odd": ({**_VIT, "size": 24}, (11, 17)),
        "timm-average": ({**_VIT, "size": 16, "pool": "avg", "class_token": False}, (20, 16)),
        "timm-average-token": ({**_VIT, "size": 16, "pool": "avg", "qkv_bias": False}, (16, 16)),
        "transformers-plain": ({**_VIT, "size": 16}, (16, 16)),
        "transformers-other-size": ({**_VIT, "size": 16, "antialias": False}, (24, 20)),
    },
    "convnext": {
        "timm-plain": (_CONVNEXT, (32, 64)),
        "timm-odd": (_CONVNEXT, (39, 45)),
        "transformers-plain": (_CONVNEXT, (32, 32)),
        "transformers-odd": (_CONVNEXT, (50, 35)),
    },
}


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights away from their starts."""
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def timm_swin(options: dict[str, Any]) -> nn.Module:
    """timm's Swin with our options."""
    from timm.models.swin_transformer import SwinTransformer

    given = {k: v for k, v in options.items() if k not in ("size", "window", "rules")}
    return SwinTransformer(
        img_size=options["size"], window_size=options["window"], num_classes=CLASSES, strict_img_size=False, **given
    )


def timm_vit(options: dict[str, Any]) -> nn.Module:
    """timm's ViT with our options."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=options["size"],
        patch_size=options["patch_size"],
        embed_dim=options["dim"],
        depth=options["depth"],
        num_heads=options["num_heads"],
        class_token=options.get("class_token", True),
        global_pool=options.get("pool", "token"),
        qkv_bias=options.get("qkv_bias", True),
        num_classes=CLASSES,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )


def timm_convnext(options: dict[str, Any]) -> nn.Module:
    """timm's ConvNeXt with our options."""
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=CLASSES, **options)


def transformers_swin(options: dict[str, Any]) -> nn.Module:
    """transformers' Swin with our options."""
    from transformers import SwinConfig, SwinForImageClassification

    names = {"embed_dim": "embed_dim", "depths": "depths", "num_heads": "num_heads", "window": "window_size"}
    given = {theirs: options[ours] for ours, theirs in names.items()}
    config = SwinConfig(image_size=options["size"], patch_size=options["patch_size"], num_labels=CLASSES, **given)
    return SwinForImageClassification(config)


def transformers_vit(options: dict[str, Any]) -> nn.Module:
    """transformers' ViT with our options."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=options["size"],
            patch_size=options["patch_size"],
            hidden_size=options["dim"],
            num_hidden_layers=options["depth"],
            num_attention_heads=options["num_heads"],
            intermediate_size=4 * options["dim"],
            num_labels=CLASSES,
        )
    )


def transformers_convnext(options: dict[str, Any]) -> nn.Module:
    """transformers' ConvNeXt with our options."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=list(options["dims"]), depths=list(options["depths"]), num_labels=CLASSES)
    )


def answers(name: str, case: str, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Logits and, of timm, maps."""
    if case.startswith("transformers"):
        more = {"interpolate_pos_encoding": True} if "other-size" in case else {}
        return {"y": model(x, **more).logits}
    maps = model.forward_intermediates(x, intermediates_only=True)  # type: ignore[operator]
    return {"y": model(x), **{f"map.{i}": m for i, m in enumerate(maps)}}


def main() -> None:
    torch.manual_seed(0)
    makers: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
        "timm-swin": timm_swin,
        "timm-vit": timm_vit,
        "timm-convnext": timm_convnext,
        "transformers-swin": transformers_swin,
        "transformers-vit": transformers_vit,
        "transformers-convnext": transformers_convnext,
    }
    for name, cases in CASES.items():
        found = {}
        for case, (options, size) in cases.items():
            model = shaken(makers[f"{case.split('-')[0]}-{name}"](options))
            x = torch.randn(1, 3, *size)
            with torch.no_grad():
                found |= {f"{case}/{key}": value for key, value in answers(name, case, model, x).items()}
            found[f"{case}/x"] = x
            found |= {f"{case}/param/{key}": value for key, value in model.state_dict().items()}
        file = HERE / f"{name}.safetensors"
        save_file({key: value.clone().contiguous() for key, value in found.items()}, file)
        file.chmod(0o644)


if __name__ == "__main__":
    main()
