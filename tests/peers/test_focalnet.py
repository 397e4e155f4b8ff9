"""FocalNet against timm and transformers: values recorded by ``record_focalnet.py``."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from foveate.models.official import load_official
from foveate.models.vision.focalnet import FocalNet

from .record_focalnet import CASES, FILE

with safe_open(FILE, "pt") as file:
    OPTIONS = json.loads(file.metadata()["options"])
    RECORDED = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)


@pytest.mark.parametrize("case", CASES)
def test_a_peer_with_its_weights(case: str) -> None:
    own = {key.removeprefix(f"{case}/"): value for key, value in RECORDED.items() if key.startswith(f"{case}/")}
    parameters = {key.removeprefix("param/"): value for key, value in own.items() if key.startswith("param/")}
    model = FocalNet(**OPTIONS[case]).eval()
    load_official(model, parameters, case.split("-")[0])
    torch.testing.assert_close(model(own["x"]), own["y"], rtol=1e-5, atol=1e-5)
    maps = [own[key] for key in sorted(own) if key.startswith("map/")]
    for found, expected in zip(model.pyramid(own["x"]), maps, strict=False):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(maps) in (0, len(model.feature_info))
