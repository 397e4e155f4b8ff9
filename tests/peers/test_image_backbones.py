"""Swin, ViT and ConvNeXt against timm and transformers: values recorded by ``record_image_backbones.py``."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from foveate.models.official import load_official
from foveate.models.vision.backbone import Backbone
from foveate.registry import find

from .record_image_backbones import CASES, CLASSES, HERE

every_case = pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases], ids="-".join
)


def build(name: str, case: str) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """Our model with the case's weights, and what else was recorded of it."""
    options, _ = CASES[name][case]
    start = f"{case}/"
    file = load_file(HERE / f"{name}.safetensors")
    own = {key.removeprefix(start): value for key, value in file.items() if key.startswith(start)}
    weights = {k.removeprefix("param/"): own.pop(k) for k in list(own) if k.startswith("param/")}
    model = find(name, "model").load()(num_classes=CLASSES, **options).eval()
    load_official(model, weights, case.split("-")[0])
    return model, own


@every_case
@torch.no_grad()
def test_logits(name: str, case: str) -> None:
    model, recorded = build(name, case)
    torch.testing.assert_close(model(recorded["x"]), recorded["y"], rtol=1e-5, atol=1e-5)


@every_case
@torch.no_grad()
def test_maps(name: str, case: str) -> None:
    model, recorded = build(name, case)
    wanted = [recorded[key] for key in sorted(recorded) if key.startswith("map.")]
    if not wanted:
        pytest.skip("transformers has no maps of this kind")
    found = model.features_only()(recorded["x"])
    assert len(found) == len(wanted)
    for ours, theirs, info in zip(found, wanted, model.feature_info, strict=True):
        assert info.channels == theirs.shape[1]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
