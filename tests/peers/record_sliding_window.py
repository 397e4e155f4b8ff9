"""Record what MONAI's sliding-window inference, Dice loss and scores answer, for ``test_sliding_window.py``.

    python tests/peers/record_sliding_window.py      # in an environment with monai

The network is a fixed function of the window (a convolution with seeded weights), so that only the windows, their
order, weights and padding are compared.
"""

from __future__ import annotations

import json
from pathlib import Path

import monai
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import compute_dice, compute_iou
from safetensors.torch import save_file

TARGET = Path(__file__).with_name("sliding_window.safetensors")
CASES = [
    {"shape": [1, 2, 33, 41], "window": [16, 16], "overlap": 0.5, "blending": "gaussian"},
    {"shape": [2, 1, 20, 37], "window": [16, 24], "overlap": 0.25, "blending": "constant"},
    {"shape": [1, 1, 17, 20, 23], "window": [8, 12, 16], "overlap": 0.5, "blending": "gaussian"},
    {"shape": [1, 2, 9, 30], "window": [16, 16], "overlap": 0.6, "blending": "gaussian"},
    {"shape": [1, 1, 7, 7, 20], "window": [8, 8, 8], "overlap": 0.0, "blending": "constant"},
]


def convolution(channels: int, rank: int) -> torch.Tensor:
    """Weights of the "network": 3 classes, edge 3."""
    return torch.randn(3, channels, *[3] * rank, generator=torch.Generator().manual_seed(rank))


def main() -> None:
    tensors = {}
    for number, case in enumerate(CASES):
        shape, rank = case["shape"], len(case["window"])
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(number))
        apply = {2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[rank]
        weight = convolution(shape[1], rank)
        y = sliding_window_inference(
            x,
            case["window"],
            3,
            lambda part, weight=weight, apply=apply: apply(part, weight, padding=1),
            overlap=case["overlap"],
            mode=case["blending"],
        )
        tensors |= {f"{number}/x": x, f"{number}/weight": weight, f"{number}/y": y.contiguous()}
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(2, 3, 12, 11, generator=generator)
    truth = torch.randint(0, 3, (2, 12, 11), generator=generator)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(logits, truth[:, None])
    one_hot = torch.nn.functional.one_hot(logits.argmax(1), 3).movedim(-1, 1)
    target = torch.nn.functional.one_hot(truth, 3).movedim(-1, 1)
    tensors |= {"logits": logits, "truth": truth, "loss": loss}
    tensors |= {
        "dice": compute_dice(one_hot, target, include_background=False),
        "iou": compute_iou(one_hot, target, include_background=False),
    }
    save_file(tensors, TARGET, metadata={"monai": monai.__version__, "cases": json.dumps(CASES)})
    print(TARGET, TARGET.stat().st_size)


if __name__ == "__main__":
    main()
