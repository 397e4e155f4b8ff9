"""The parts of TimesNet that see a series as 2D maps: periods, folding, fused convolutions, the block."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.errors import InvalidValue
from foveate.models.series.periods import InceptionBlock2d, conv2d_same, fft_periods, fold, unfold
from foveate.models.series.timesnet import TimesBlock


def sines(length: int, amplitudes: dict[int, float]) -> Tensor:
    """One channel: sines of whole frequencies (cycles per window) with the given amplitudes."""
    t = torch.arange(length, dtype=torch.float64)
    waves = [a * torch.sin(2 * math.pi * f * t / length + f) for f, a in amplitudes.items()]
    return torch.stack(waves).sum(0)[None, :, None]


def block_by_definition(block: TimesBlock, h: Tensor) -> Tensor:
    """The block for one sample at a time, kernel by kernel and period by period."""
    rows = []
    ranked_by = h if block.periods == "batch" else None
    for i in range(len(h)):
        one = h[i : i + 1]
        spectrum = torch.fft.rfft(one if ranked_by is None else ranked_by, dim=1).abs().mean((0, 2))
        spectrum[0] = 0
        chosen = spectrum.topk(block.top_k).indices
        weights = torch.fft.rfft(one, dim=1).abs().mean(2)[0, chosen].softmax(0)
        out = one
        for f, weight in zip(chosen.tolist(), weights, strict=True):
            period = h.shape[1] // f
            padded = F.pad(one, (0, 0, 0, -h.shape[1] % period))
            maps = padded.reshape(1, -1, period, h.shape[2]).permute(0, 3, 1, 2)
            maps = block.reduce.branchwise(F.gelu(block.expand.branchwise(maps)))
            out = out + weight * maps.permute(0, 2, 3, 1).reshape(1, -1, h.shape[2])[:, : h.shape[1]]
        rows.append(out)
    return torch.cat(rows)


# Periods


@pytest.mark.parametrize("length", [48, 97])
def test_periods_are_those_of_the_strongest_sines_in_order(length):
    x = sines(length, {3: 1.0, 7: 3.0, 11: 2.0, 20: 0.5})
    periods, amplitudes = fft_periods(x, 4)
    assert periods.tolist() == [length // f for f in (7, 11, 3, 20)]
    torch.testing.assert_close(amplitudes[0] * 2 / length, torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64))


def test_the_mean_is_never_a_period():
    periods, _ = fft_periods(sines(48, {4: 1.0, 6: 0.5}) + 1e4, 2)
    assert periods.tolist() == [12, 8]


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_constant_window_has_periods(per):
    periods, amplitudes = fft_periods(torch.zeros(2, 10, 3), 5, per)
    assert periods.min() >= 2
    assert not amplitudes.any()


def test_periods_of_the_batch_and_of_each_sample():
    x = torch.cat([sines(48, {4: 3.0, 6: 1.0}), sines(48, {8: 2.0, 12: 1.5})])
    assert fft_periods(x, 3)[0].tolist() == [12, 6, 4]
    periods, amplitudes = fft_periods(x, 2, "sample")
    assert periods.tolist() == [[12, 8], [6, 4]]
    torch.testing.assert_close(amplitudes / 24, torch.tensor([[3.0, 1.0], [2.0, 1.5]], dtype=torch.float64))


def test_too_many_periods_are_refused():
    with pytest.raises(
        InvalidValue, match=re.escape("k=6 is not possible: a series of 11 steps has frequencies 1 to 5.")
    ):
        fft_periods(torch.zeros(1, 11, 1), 6)


# Folding and convolution


@pytest.mark.parametrize("period", [1, 2, 7, 12, 23, 24])
def test_unfold_undoes_fold(period):
    x = torch.randn(2, 24, 3)
    maps = fold(x, period)
    assert maps.shape == (2, 3, math.ceil(24 / period), period)
    assert torch.equal(unfold(maps, 24), x)
    assert torch.equal(maps[:, :, 0, 0], x[:, 0])
    if maps.shape[2] > 1:
        assert torch.equal(maps[:, :, 1, 0], x[:, period])
    assert not maps.permute(0, 2, 3, 1).flatten(1, 2)[:, 24:].any()


@pytest.mark.parametrize("rows_cols", [(1, 1), (1, 30), (2, 9), (30, 1), (5, 5), (6, 6), (11, 3), (13, 14)])
@pytest.mark.parametrize("kernels", [1, 2, 6])
def test_fused_inception_equals_its_branches(rows_cols, kernels):
    torch.manual_seed(0)
    block = InceptionBlock2d(3, 4, kernels).double()
    for conv in block.kernels:
        torch.nn.init.normal_(conv.bias)
    maps = torch.randn(2, 3, *rows_cols, dtype=torch.float64, requires_grad=True)
    inputs = [maps, *block.parameters()]
    fused, branches = block(maps), block.branchwise(maps)
    torch.testing.assert_close(fused, branches)
    probe = torch.randn_like(fused)
    torch.testing.assert_close(torch.autograd.grad(fused, inputs, probe), torch.autograd.grad(branches, inputs, probe))


def test_the_kernel_is_cut_only_where_it_meets_padding():
    weight, bias = torch.randn(1, 1, 11, 11), torch.zeros(1)
    maps = torch.zeros(1, 1, 3, 4)
    maps[0, 0, 2, 3] = 1
    corner = conv2d_same(maps, weight, bias)[0, 0, 0, 0]
    assert corner == weight[0, 0, 5 + 2, 5 + 3]


# The block


@pytest.mark.parametrize("periods", ["batch", "sample"])
@pytest.mark.parametrize("length", [24, 29])
def test_block_equals_its_definition(periods, length):
    torch.manual_seed(0)
    block = TimesBlock(3, 4, top_k=length // 2 - 2, num_kernels=3, periods=periods).double()
    h = (0.3 * torch.randn(4, length, 3, dtype=torch.float64)).requires_grad_()
    assert len(set(fft_periods(h, block.top_k)[0].tolist())) < block.top_k, "some periods should coincide here"
    inputs = [h, *block.parameters()]
    ours, definition = block(h), block_by_definition(block, h)
    torch.testing.assert_close(ours, definition)
    probe = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, probe), torch.autograd.grad(definition, inputs, probe))


def test_parameters_of_a_block_do_not_depend_on_the_number_of_periods():
    counts = {sum(p.numel() for p in TimesBlock(5, 7, top_k=k).parameters()) for k in (1, 3, 9)}
    assert counts == {2 * 5 * 7 * 286 + 6 * (5 + 7)}


@pytest.mark.parametrize(("periods", "independent"), [("sample", True), ("batch", False)])
def test_periods_of_the_batch_tie_samples_together_and_own_periods_do_not(periods, independent):
    torch.manual_seed(0)
    block = TimesBlock(4, 3, top_k=2, num_kernels=3, periods=periods)
    h = torch.cat([sines(24, {2: 1.0, 3: 0.5}), sines(24, {6: 5.0, 4: 3.0})]).expand(2, 24, 4).float()
    assert torch.allclose(block(h)[:1], block(h[:1]), atol=1e-5) is independent
