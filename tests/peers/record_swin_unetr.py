"""Record ``swin_unetr.safetensors``: monai's Swin UNETR with weights by a formula.

    python -m tests.peers.record_swin_unetr

monai (1.6.1) must be installed. The smallest network has two million weights, so a file holds none: they follow from
their names and shapes (:func:`weights`), which stand in the file's metadata, and inputs likewise. Keys of the file:
``CASE/y``, every third place of the answer along each axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

FILE = Path(__file__).with_name("swin_unetr.safetensors")
STEP = 3
#: Our options of each case, and the size of what it reads.
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "volume": ({"in_chans": 1, "num_classes": 2, "feature_size": 12}, (64, 32, 32)),
    "volume-v2": (
        {"in_chans": 2, "num_classes": 3, "feature_size": 12, "downsample": "mergingv2", "use_v2": True},
        (32, 64, 32),
    ),
    "volume-24": (
        {
            "in_chans": 4,
            "num_classes": 2,
            "feature_size": 24,
            "window_size": (5, 4, 3),
            "qkv_bias": False,
            "patch_norm": True,
            "mlp_ratio": 2.0,
        },
        (32, 32, 64),
    ),
    "image": ({"in_chans": 3, "num_classes": 4, "spatial_dims": 2}, (96, 64)),
    "image-v2": (
        {
            "in_chans": 1,
            "num_classes": 2,
            "spatial_dims": 2,
            "feature_size": 12,
            "depths": (1, 2, 1, 3),
            "window_size": 5,
            "norm_name": ("instance", {"affine": True}),
            "normalize": False,
            "use_v2": True,
        },
        (64, 160),
    ),
    "image-group-norm": (
        {"in_chans": 2, "num_classes": 2, "spatial_dims": 2, "norm_name": ("group", {"num_groups": 3})},
        (160, 32),
    ),
}
NAMES = {"in_chans": "in_channels", "num_classes": "out_channels", "drop_path_rate": "dropout_path_rate"}


def noise(count: int, seed: int) -> Tensor:
    """Numbers in (-1, 1) that look random, the same on every machine."""
    wave = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + seed * 78.233) * 43758.5453
    return 2 * (wave - wave.floor()) - 1


def weights(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Tensors of these shapes: sizes that keep a signal's, weights of norms around 1."""
    made = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        values = noise(math.prod(shape), number)
        if len(shape) == 1:
            values = values / 5 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif not name.endswith("table"):
            values = values * math.sqrt(3 / math.prod(shape[1:]))
        made[name] = values.float().view(shape)
    return made


def given(case: str) -> Tensor:
    """The input of a case, a batch of two."""
    options, size = CASES[case]
    shape = (2, options["in_chans"], *size)
    return noise(math.prod(shape), 1000 + len(case)).float().view(shape)


def every_third(y: Tensor) -> Tensor:
    """Of ``(B, C, *size)``."""
    return y[(slice(None), slice(None), *[slice(None, None, STEP)] * (y.ndim - 2))]


def main() -> None:
    from monai.networks.nets import SwinUNETR

    found, metadata = {}, {}
    for case, (options, _) in CASES.items():
        model = SwinUNETR(**{NAMES.get(k, k): v for k, v in options.items()}).eval()
        learned = {k: list(v.shape) for k, v in model.state_dict().items() if v.is_floating_point()}
        model.load_state_dict(weights(learned), strict=False)
        with torch.no_grad():
            found[f"{case}/y"] = every_third(model(given(case))).contiguous()
        metadata[case] = json.dumps(learned)
    save_file(found, FILE, metadata)


if __name__ == "__main__":
    main()
