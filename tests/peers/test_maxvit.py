"""MaxViT against timm's: values recorded by ``record_maxvit.py``."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from foveate.models.official import load_official
from foveate.models.vision.maxvit import MaxViT

from .record_maxvit import CASES, FILE, OTHER

with safe_open(FILE, "pt") as file:
    RECORDED = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)


def case(name: str, group: str) -> dict[str, Tensor]:
    """Tensors of a case whose names begin with ``group``, without that."""
    start = f"{name}/{group}"
    return {key.removeprefix(start): value for key, value in RECORDED.items() if key.startswith(start)}


@pytest.mark.parametrize("name", CASES)
def test_timm(name: str) -> None:
    given = case(name, "")
    model = MaxViT(num_classes=5, **CASES[name][0]).eval()
    load_official(model, case(name, "param/"), "timm")
    y = model(given["x"])  # with a gradient nothing is fused
    torch.testing.assert_close(y, given["y"], rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(model(given["x"]), given["y"], rtol=1e-5, atol=1e-5)
        for i, found in enumerate(model.features_only()(given["x"])):
            torch.testing.assert_close(found, given[f"map{i}"], rtol=1e-5, atol=5e-5)


def test_tables_of_other_windows_are_fitted_as_timm_does() -> None:
    model = MaxViT(num_classes=5, **{**CASES["tf"][0], "window_size": OTHER, "grid_size": OTHER})
    load_official(model, case("tf", "param/"), "timm")
    own = model.state_dict()
    fitted = case("tf", "other/")
    assert fitted
    for name, value in fitted.items():
        ours = name.replace("rel_pos.relative_position_bias_table", "bias.table")
        torch.testing.assert_close(own[ours], value, rtol=1e-5, atol=1e-6)
