"""Swin UNETR against monai's: values of ``record_swin_unetr.py``."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from foveate.errors import InvalidValue
from foveate.models.official import load_official
from foveate.models.vision.swin_unetr import SwinUNETR
from foveate.ops import backend

from .record_swin_unetr import CASES, FILE, every_third, given, weights

with safe_open(FILE, "pt") as file:
    RECORDED = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
    SHAPES = {case: json.loads(shapes) for case, shapes in file.metadata().items()}


def loaded(case: str) -> SwinUNETR:
    model = SwinUNETR(**CASES[case][0]).eval()
    load_official(model, weights(SHAPES[case]), "monai")
    return model


def assert_as_recorded(y: Tensor, case: str) -> None:
    expected = RECORDED[f"{case}/y"]
    torch.testing.assert_close(every_third(y), expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_monai(case: str) -> None:
    assert_as_recorded(loaded(case)(given(case)), case)


def test_the_forms_that_training_and_other_processors_use() -> None:
    model, x = loaded("image-v2"), given("image-v2")
    assert_as_recorded(model(x).detach(), "image-v2")
    with backend("reference"), torch.no_grad():
        assert_as_recorded(model(x), "image-v2")


def test_the_old_order_takes_the_same_weights_and_answers_otherwise() -> None:
    case = "volume"
    other = SwinUNETR(**CASES[case][0], downsample="merging_legacy").eval()
    load_official(other, weights(SHAPES[case]), "monai")
    with torch.no_grad():
        apart = every_third(other(given(case))) - RECORDED[f"{case}/y"]
    assert apart.abs().max() > 0.1


def test_weights_of_another_form_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"missing .*; left over"):
        load_official(SwinUNETR(spatial_dims=2), weights(SHAPES["image-v2"]), "monai")
    with pytest.raises(InvalidValue, match="wrong shape"):
        load_official(SwinUNETR(), weights(SHAPES["volume"]), "monai")
