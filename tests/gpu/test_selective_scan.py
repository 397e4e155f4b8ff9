"""The Triton form of the selective scan against its definition, in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are first imported

from foveate.ops.selective_scan import selective_scan
from tests.agreement import Maker, agree

kernels = pytest.importorskip("foveate.ops.triton.selective_scan", reason="triton is not installed")

CASES = {
    "varying": {"D": True, "bias": True, "softplus": True},
    "gated": {"D": True, "z": True, "initial": True, "softplus": True},
    "grouped": {"groups": 2, "z": True, "documents": True},
    "constant": {"maps": "constant", "initial": True},
    "mixed": {"maps": "mixed", "D": True, "softplus": True},
    "double": {"dtype": torch.float64, "D": True, "z": True, "bias": True, "softplus": True},
    "half": {"dtype": torch.bfloat16, "D": True, "softplus": True},
    "short": {"length": 1, "states": 1, "channels": 1},
}


def make(
    *,
    length: int = 11,
    channels: int = 6,
    states: int = 3,
    groups: int = 1,
    maps: str = "varying",
    dtype: torch.dtype = torch.float32,
    softplus: bool = False,
    **given: bool,
) -> dict[str, Any]:
    make = Maker(length, dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    varying = make.tensor(2, groups, states, length), make.tensor(2, groups, states, length)
    constant = make.tensor(channels, states, dtype=real)
    B, C = {"varying": varying, "constant": (constant, constant), "mixed": (constant, varying[0])}[maps]
    delta = make.tensor(2, channels, length)
    return {
        "u": make.tensor(2, channels, length),
        "delta": delta if softplus else 0.1 * delta.abs(),
        "A": -make.tensor(channels, states, dtype=real).abs(),
        "B": B,
        "C": C,
        "D": make.tensor(channels, dtype=real) if given.get("D") else None,
        "z": make.tensor(2, channels, length) if given.get("z") else None,
        "delta_bias": make.tensor(channels, dtype=real) if given.get("bias") else None,
        "initial_state": make.tensor(2, channels, states, dtype=real) if given.get("initial") else None,
        "seq_idx": make.documents(2, length) if given.get("documents") else None,
        "delta_softplus": softplus,
    }


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop(case: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "BLOCK", 4)  # several blocks, the last one not full
    monkeypatch.setattr(kernels, "CHANNELS", 4)  # several programs, the last one not full
    given = make(**CASES[case])
    dtype = given["u"].dtype
    agree(lambda **inputs: selective_scan(**inputs, return_last_state=True), given, dtype, "triton")
