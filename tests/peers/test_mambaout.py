"""MambaOut against timm's: values recorded by ``record_mambaout.py``."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from foveate.models.official import load_official
from foveate.models.vision.mambaout import MambaOut

from .record_mambaout import CASES, FILE

with safe_open(FILE, "pt") as file:
    RECORDED = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)


@pytest.mark.parametrize("name", CASES)
def test_timm(name: str) -> None:
    given = {key.removeprefix(f"{name}/"): value for key, value in RECORDED.items() if key.startswith(f"{name}/")}
    model = MambaOut(num_classes=5, **CASES[name][0]).eval()
    load_official(model, {k.removeprefix("param/"): v for k, v in given.items() if k.startswith("param/")}, "timm")
    torch.testing.assert_close(model(given["x"]), given["y"], rtol=1e-5, atol=1e-5)
    for i, found in enumerate(model.features_only()(given["x"])):
        torch.testing.assert_close(found, given[f"map{i}"], rtol=1e-5, atol=2e-5)
