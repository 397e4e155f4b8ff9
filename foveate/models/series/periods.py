"""A series seen as 2D maps, one per period: finding periods, folding, and the convolutions over the maps.

Parts of TimesNet (Wu et al., ICLR 2023, arXiv:2210.02186).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import invalid


def fft_periods(x: Tensor, k: int, per: Literal["batch", "sample"] = "batch") -> tuple[Tensor, Tensor]:
    """The k dominant periods of a batch of series, strongest first, and how strong they are in each sample.

    The constant part never counts, not even in a constant window, where all amplitudes tie at zero.

    Args:
        x: ``(batch, length, channels)``.
        k: number of periods, at most ``length // 2``.
        per: "batch": one list, from the batch-averaged spectrum; "sample": a list for every sample.

    Returns:
        Periods int64, ``(k,)`` or, per sample, ``(batch, k)``: ``length // frequency``, so that close frequencies can
        give the same period twice. Amplitudes ``(batch, k)`` at these frequencies, at least float32; gradients reach
        ``x`` through them, none through the choice.

    Raises:
        InvalidValue: ``k`` is not in 1 .. ``length // 2``.
    """
    frequencies, spectrum = _dominant(x, k, per)
    amplitudes = spectrum.gather(1, frequencies.expand(x.shape[0], k))
    periods = x.shape[1] // frequencies
    return (periods if per == "sample" else periods[0]), amplitudes


def batch_frequencies(x: Tensor, k: int) -> tuple[int, ...]:
    """The k frequencies that :func:`fft_periods` takes from the batch-averaged spectrum, strongest first."""
    return tuple(_dominant(x, k, "batch")[0][0].tolist())


def _dominant(x: Tensor, k: int, per: Literal["batch", "sample"]) -> tuple[Tensor, Tensor]:
    """Frequencies int64 ``(1 or batch, k)``, and the spectrum ``(batch, length // 2 + 1)``."""
    length = x.shape[1]
    if not 1 <= k <= length // 2:
        raise invalid("k", k, f"a series of {length} steps has frequencies 1 to {length // 2}")
    wide = x if x.dtype == torch.float64 else x.float()  # the FFT has no 16-bit form on the CPU
    spectrum = torch.fft.rfft(wide, dim=1).abs().mean(-1)
    ranking = spectrum.detach() if per == "sample" else spectrum.detach().mean(0, keepdim=True)
    return ranking[:, 1:].topk(k, dim=1).indices + 1, spectrum


def amplitudes_at(x: Tensor, frequencies: tuple[int, ...]) -> Tensor:
    """The amplitudes of :func:`fft_periods` at given frequencies, without an FFT: ``(batch, k)``.

    A few products with sines and cosines, which every exporter knows; complex numbers have no form in ONNX.

    Args:
        x: ``(batch, length, channels)``.
        frequencies: cycles in the whole length.
    """
    length, wide = x.shape[1], x if x.dtype == torch.float64 else x.float()
    turns = torch.outer(torch.tensor(frequencies), torch.arange(length)) % length  # exact, however large
    angles = turns.to(torch.float64) * (2 * torch.pi / length)
    waves = torch.cat([angles.cos(), angles.sin()]).to(wide)
    parts = (waves @ wide).unflatten(1, (2, len(frequencies)))
    return torch.linalg.vector_norm(parts, dim=1).mean(-1)


def fold(x: Tensor, period: int) -> Tensor:
    """Fold ``(B, L, N)`` into maps ``(B, N, cycles, period)``, zero-padded at the end to whole cycles.

    The result is a view in channels-last order, the one in which convolutions over it are fast.
    """
    batch, length, channels = x.shape
    cycles = -(-length // period)
    if cycles * period > length:
        x = F.pad(x, (0, 0, 0, cycles * period - length))
    return x.reshape(batch, cycles, period, channels).permute(0, 3, 1, 2)


def unfold(maps: Tensor, length: int) -> Tensor:
    """The inverse of :func:`fold`: ``(B, N, cycles, period)`` to ``(B, length, N)``, padding dropped."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)[:, :length]


def conv2d_same(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """2D convolution that keeps the size, with a kernel cut to what the maps can reach.

    Args:
        maps: ``(B, in, rows, cols)``.
        weight: ``(out, in, 2K-1, 2K-1)``.
        bias: ``(out,)``.

    Returns:
        ``(B, out, rows, cols)``.
    """
    # A tap more than rows-1 or cols-1 away only ever meets zero padding. Maps of few cycles or of a short period are
    # common here (periods L, L/2, 2), and the cut makes them several times cheaper.
    centre = weight.shape[-1] // 2
    r, c = min(centre, maps.shape[2] - 1), min(centre, maps.shape[3] - 1)
    weight = weight[:, :, centre - r : centre + r + 1, centre - c : centre + c + 1]
    return F.conv2d(maps, weight, bias, padding=(r, c))


class InceptionBlock2d(nn.Module):
    """The mean of K parallel 2D convolutions with kernels 1, 3, ..., 2K-1, each keeping the size.

    A mean of convolutions is the convolution with the mean of their zero-padded kernels, so one convolution is run.
    The K kernels stay the parameters, as in the official code.

    Args:
        in_channels, out_channels: channels of the maps.
        num_kernels: K.
    """

    def __init__(self, in_channels: int, out_channels: int, num_kernels: int = 6) -> None:
        super().__init__()
        convs = [nn.Conv2d(in_channels, out_channels, 2 * j + 1, padding=j) for j in range(num_kernels)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.kernels = nn.ModuleList(convs)

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight ``(out, in, 2K-1, 2K-1)`` and bias ``(out,)`` of the one convolution equal to the whole block."""
        *smaller, largest = list[Any](self.kernels)
        weight, bias = largest.weight, largest.bias
        for j, conv in enumerate(smaller):
            weight = weight + F.pad(conv.weight, [len(smaller) - j] * 4)
            bias = bias + conv.bias
        return weight / len(self.kernels), bias / len(self.kernels)

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, in, rows, cols)`` to ``(B, out, rows, cols)``."""
        return conv2d_same(maps, *self.fused())

    def branchwise(self, maps: Tensor) -> Tensor:
        """The definition, branch by branch: what :meth:`forward` must equal; for tests and benchmarks."""
        return torch.stack([conv(maps) for conv in self.kernels]).mean(0)
