"""Sliding windows, the loss and the scores of `segment` give MONAI's numbers (``record_sliding_window.py``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from foveate.tasks.segment.scores import dice_and_cross_entropy, overlaps
from foveate.tasks.segment.windows import sliding_window

FILE = Path(__file__).with_name("sliding_window.safetensors")
with safe_open(FILE, framework="pt") as _file:
    CASES = json.loads(_file.metadata()["cases"])
    RECORDED = {name: _file.get_tensor(name) for name in _file.keys()}  # noqa: SIM118 (not a mapping)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_windows(number):
    case = CASES[number]
    apply = {2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[len(case["window"])]
    weight = RECORDED[f"{number}/weight"]
    options = {"overlap": case["overlap"], "blending": case["blending"], "at_once": 2}
    y = sliding_window(lambda part: apply(part, weight, padding=1), RECORDED[f"{number}/x"], case["window"], **options)
    torch.testing.assert_close(y, RECORDED[f"{number}/y"], rtol=1e-5, atol=1e-5)


def test_loss():
    loss = dice_and_cross_entropy(RECORDED["logits"], RECORDED["truth"])
    torch.testing.assert_close(loss, RECORDED["loss"], rtol=1e-5, atol=1e-6)


def test_scores():
    for answer, truth, dice, iou in zip(
        RECORDED["logits"].argmax(1), RECORDED["truth"], RECORDED["dice"], RECORDED["iou"], strict=True
    ):
        ours = overlaps(answer, truth, 3)
        torch.testing.assert_close(ours[0].float(), dice)
        torch.testing.assert_close(ours[1].float(), iou)
