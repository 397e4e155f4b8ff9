"""When Triton's kernels can be asked for."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import InvalidValue
from foveate.ops import backend, triton


def test_without_triton_the_backend_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton, "INSTALLED", False)
    with pytest.raises(InvalidValue, match="triton is not installed"), backend("triton"):
        pass


def test_without_a_gpu_the_backend_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton, "INSTALLED", True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidValue, match="there is no GPU"), backend("triton"):
        pass


def test_auto_never_takes_a_triton_form():
    assert triton.form("selective_scan", ()) is None


@pytest.mark.parametrize(("size", "power"), [(1, 1), (2, 2), (3, 4), (16, 16), (17, 32)])
def test_blocks_have_a_power_of_two(size: int, power: int):
    assert triton.power_of_two(size) == power
