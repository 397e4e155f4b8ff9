"""Record ``mambaout.safetensors``: timm's MambaOut, official and ``rw`` forms, with tiny random weights.

    python -m tests.peers.record_mambaout

timm (1.0.31) must be installed. Keys of the file: ``CASE/param/*`` (timm's names), ``CASE/x``, ``CASE/y`` and the maps
of all stages, ``CASE/map0`` and so on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("mambaout.safetensors")
#: Our options of each case, and the size of its image.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "official": ({"depths": (1, 2), "dims": (6, 10)}, (45, 50)),
    "rw": (
        {
            "depths": (1, 1, 1),
            "dims": (4, 6, 8),
            "expansion_ratio": 2.5,
            "conv_ratio": 1.25,
            "kernel_size": 5,
            "activation": "silu",
            "release": "rw",
            "layer_scale": 1e-6,
        },
        (37, 66),
    ),
    "rw-gelu": (
        {"depths": (1, 1), "dims": (4, 6), "expansion_ratio": 3.0, "release": "rw", "layer_scale": 1e-6},
        (64, 31),
    ),
}


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights away from their starts."""
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def of_timm(options: dict[str, Any], size: tuple[int, int]) -> dict[str, Tensor]:
    """timm's answer and maps."""
    from timm.models.mambaout import MambaOut

    names = {"activation": "act_layer", "layer_scale": "ls_init_value"}
    given = {names.get(k, k): v for k, v in options.items() if k != "release"}
    if options.get("release") == "rw":
        given |= {"stem_mid_norm": False, "downsample": "conv_nf", "head_fn": "norm_mlp"}
    given.setdefault("act_layer", "gelu")
    model = shaken(MambaOut(num_classes=5, **given))
    x = torch.randn(1, 3, *size)
    maps = model.forward_intermediates(x, intermediates_only=True)
    answers = {"x": x, "y": model(x), **{f"map{i}": m for i, m in enumerate(maps)}}
    return answers | {f"param/{name}": value for name, value in model.state_dict().items()}


def main() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        cases = {name: of_timm(*case) for name, case in CASES.items()}
    save_file({f"{case}/{name}": v.clone().contiguous() for case, t in cases.items() for name, v in t.items()}, FILE)


if __name__ == "__main__":
    main()
