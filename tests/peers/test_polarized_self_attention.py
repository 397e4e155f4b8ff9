"""The networks that polarized self-attention stands in, without gates, against timm's ResNet and HRNet.

Values recorded by ``record_polarized_self_attention.py``.
"""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from foveate.models.official import load_official
from foveate.models.vision.polarized_self_attention.hrnet import PolarizedHRNet
from foveate.models.vision.polarized_self_attention.resnet import PolarizedResNet

from .record_polarized_self_attention import FILES, HRNET_IMAGES, IMAGES, RESNETS, WIDTH


def recorded(file: str, start: str) -> dict[str, Tensor]:
    with safe_open(FILES[file], "pt") as opened:
        keys = [key for key in opened.keys() if key.startswith(start)]  # noqa: SIM118 (not a dictionary)
        return {key.removeprefix(start): opened.get_tensor(key) for key in keys}


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("kind", RESNETS)
def test_resnet_is_timms(kind: str, size: str) -> None:
    model = PolarizedResNet(num_classes=5, depths=RESNETS[kind], width=WIDTH, block=kind, gates="none").eval()
    load_official(model, recorded("resnet", f"{kind}/param/"), "timm")
    given = recorded("resnet", f"{kind}/{size}/")
    torch.testing.assert_close(model(given["x"]), given["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", HRNET_IMAGES)
def test_hrnet_is_timms(size: str) -> None:
    options = {"width": WIDTH, "modules": (1, 1, 1), "blocks": 1, "stem_width": WIDTH, "stem_blocks": 2}
    model = PolarizedHRNet(num_classes=0, gates="none", enlarge="nearest", **options).eval()
    load_official(model, recorded("hrnet", "hrnet/param/"), "timm")
    given = recorded("hrnet", f"hrnet/{size}/")
    maps = model.pyramid(given["x"])
    assert len(maps) == 4
    for i, found in enumerate(maps):
        scale = float(given[f"map/{i}"].abs().max())
        torch.testing.assert_close(found / scale, given[f"map/{i}"] / scale, rtol=1e-4, atol=1e-5)
