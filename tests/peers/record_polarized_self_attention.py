"""Record ``polarized_self_attention*.safetensors``: timm's ResNet and HRNet, with tiny random weights.

    python -m tests.peers.record_polarized_self_attention

timm (1.x) must be installed. They are the networks without gates: what polarized self-attention is put in. Of HRNet
the body is recorded, all branches behind the last stage; its stem and first stage are made narrower than timm's options
allow. Keys of the file: ``CASE/param/*`` (timm's own names), ``CASE/x`` and ``CASE/y`` or ``CASE/map/*``; sizes as JSON
in the header.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .record_patchtst import shaken

FILES = {
    "resnet": Path(__file__).with_name("polarized_self_attention.safetensors"),
    "hrnet": Path(__file__).with_name("polarized_self_attention_hrnet.safetensors"),
}
#: Kinds of blocks, and blocks of each stage.
RESNETS = {"bottleneck": (1, 1, 1, 1), "basic": (2, 1, 1, 1)}
WIDTH = 4
#: Images of the ResNets; HRNet's sides are multiples of 32 in timm.
IMAGES = {"square": (24, 24), "uneven": (33, 47)}
HRNET_IMAGES = {"wide": (32, 64)}


def resnet(kind: str) -> nn.Module:
    """timm's ResNet with a stem as narrow as its first stage."""
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    block, layers = (Bottleneck if kind == "bottleneck" else BasicBlock), RESNETS[kind]
    model = ResNet(block, layers, num_classes=5, channels=[WIDTH * 2**i for i in range(4)])
    model.conv1, model.bn1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTH)
    wide = WIDTH * block.expansion
    shortcut = nn.Sequential(nn.Conv2d(WIDTH, wide, 1, bias=False), nn.BatchNorm2d(wide))
    model.layer1[0] = block(WIDTH, WIDTH, downsample=shortcut if wide != WIDTH else None)
    return shaken(model)


def hrnet() -> nn.Module:
    """timm's HRNet of one module in each stage, with a narrow stem and first stage."""
    from timm.models.hrnet import Bottleneck, HighResolutionNet

    def stage(branches: int) -> dict[str, object]:
        sizes = {"num_branches": branches, "num_blocks": (1,) * branches}
        sizes["num_channels"] = tuple(WIDTH * 2**i for i in range(branches))
        return {"num_modules": 1, "block_type": "BASIC", "fuse_method": "SUM", **sizes}

    first = {"num_modules": 1, "num_branches": 1, "block_type": "BOTTLENECK", "num_blocks": (2,)}
    config = {"stem_width": WIDTH, "stage1": {**first, "num_channels": (WIDTH,), "fuse_method": "SUM"}}
    config |= {f"stage{i}": stage(i) for i in (2, 3, 4)}
    model = HighResolutionNet(config, head="none", num_classes=0)
    model.conv2, model.bn2 = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH)
    model.layer1 = model._make_layer(Bottleneck, WIDTH, WIDTH, 2)
    model.transition1 = model._make_transition_layer([4 * WIDTH], [WIDTH, 2 * WIDTH])
    return shaken(model)


@torch.no_grad()
def main() -> None:
    """Write the files."""
    import timm

    torch.manual_seed(0)
    found: dict[str, dict[str, Tensor]] = {"resnet": {}, "hrnet": {}}
    for kind in RESNETS:
        model = resnet(kind)
        found["resnet"] |= {f"{kind}/param/{key}": value for key, value in model.state_dict().items()}
        for size, pixels in IMAGES.items():
            x = torch.randn(1, 3, *pixels)
            found["resnet"] |= {f"{kind}/{size}/x": x, f"{kind}/{size}/y": model(x)}
    model = hrnet()
    found["hrnet"] |= {f"hrnet/param/{key}": value for key, value in model.state_dict().items()}
    for size, pixels in HRNET_IMAGES.items():
        x = torch.randn(1, 3, *pixels)
        found["hrnet"][f"hrnet/{size}/x"] = x
        stem = model.act2(model.bn2(model.conv2(model.act1(model.bn1(model.conv1(x))))))
        found["hrnet"] |= {f"hrnet/{size}/map/{i}": y for i, y in enumerate(model.stages(stem))}
    for name, tensors in found.items():
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, FILES[name], {"timm": timm.__version__})


if __name__ == "__main__":
    main()
