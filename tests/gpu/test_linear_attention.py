"""The Triton form of linear attention with decay against its definition, in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are first imported

from foveate.ops import backend
from foveate.ops.linear_attention import lightning_attention
from tests.agreement import Maker, agree

kernels = pytest.importorskip("foveate.ops.triton.linear_attention", reason="triton is not installed")

CASES = {
    "plain": {},
    "stateful": {"state": True, "return_state": True},
    "left": {"return_state": True, "length": 32},
    "without decay": {"slopes": None, "state": True},
    "steep": {"slopes": (80.0, 3.0), "state": True, "return_state": True},
    "fixed slopes": {"learned": False, "state": True},
    "documents": {"documents": True, "state": True, "return_state": True},
    "documents alone": {"documents": True, "length": 70},
    "double": {"dtype": torch.float64, "state": True, "return_state": True, "documents": True},
    "bfloat16": {"dtype": torch.bfloat16, "state": True, "return_state": True},
    "short": {"length": 1, "keys": 1, "values": 1, "state": True, "return_state": True},
}


def make(
    *,
    length: int = 43,
    keys: int = 5,
    values: int = 35,
    slopes: tuple[float, ...] | None = (0.4, 0.0),
    learned: bool = True,
    dtype: torch.dtype = torch.float32,
    **given: bool,
) -> dict[str, Any]:
    make = Maker(length, dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    rates = None if slopes is None else torch.tensor(slopes, dtype=real)
    return {
        "q": make.tensor(2, 2, length, keys),
        "k": make.tensor(2, 2, length, keys),
        "v": make.tensor(2, 2, length, values),
        "slope": rates if learned or rates is None else rates.tolist(),  # a list is not differentiated
        "state": make.tensor(2, 2, keys, values, dtype=real) if given.get("state") else None,
        "segments": make.documents(2, length) if given.get("documents") else None,
        "return_state": given.get("return_state", False),
    }


def run(**given: Any) -> tuple[torch.Tensor, ...]:
    if isinstance(given["slope"], list):
        given["slope"] = torch.tensor(given["slope"])
    found = lightning_attention(**given)
    return found if given["return_state"] else (found,)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_product_under_a_mask(case: str, monkeypatch: pytest.MonkeyPatch):
    taken, form = [], kernels.linear_attention_triton
    monkeypatch.setattr(kernels, "linear_attention_triton", lambda *values: taken.append(1) or form(*values))
    monkeypatch.setattr(kernels, "BLOCK", 16)  # several chunks, the last one not full
    monkeypatch.setattr(kernels, "VALUES", 16)  # several programs, the last one not full
    given = make(**CASES[case])
    agree(run, given, given["q"].dtype, "triton")
    assert taken


def test_float16():
    given = make(dtype=torch.float16, state=True, return_state=True)
    agree(run, given, torch.bfloat16, "triton")


def test_what_needs_a_gradient_of_the_gradient_gets_it():
    make = Maker(0, torch.float64)
    given = [make.tensor(1, 2, 5, width).requires_grad_() for width in (3, 3, 2)]
    given.append(torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True))
    with backend("triton"):
        assert torch.autograd.gradgradcheck(lambda *inputs: lightning_attention(*inputs), given, fast_mode=True)


def test_wide_keys_are_left_to_torch():
    q, v = torch.zeros(1, 1, 2, 129, dtype=torch.float64), torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    assert kernels.fits(q[..., :128], q[..., :128], v, torch.zeros(1, dtype=torch.float64))
    assert not kernels.fits(q, q, v, torch.zeros(1, dtype=torch.float64))
