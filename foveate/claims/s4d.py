"""Claims of "On the Parameterization and Initialization of Diagonal State Space Models" (arXiv 2206.11893)."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from ..measure.isolated import allocated_bytes_of
from ..mixers.s4d import S4D, Start
from ..ops import backend
from ..ops.s4d import convolve_both_ways, s4d, s4d_kernel
from . import Measurement, claim


def _model() -> tuple[Tensor, Tensor, Tensor]:
    """Rates, read-outs and step sizes of four channels as they start out, in float64."""
    mixer = S4D(4, causal=True, d_state=16).double()
    A, C, dt = mixer._model(torch.float64)
    return A.detach(), C[0].detach(), dt.detach()


def _values(found: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


@claim("s4d", kind="exact", says="One model, three views: recurrence, convolution and chunks give the same outputs.")
def views_agree() -> Measurement:
    """Seen failing with the kernel shifted by one step, and with the state's factor left out of a chunk."""
    u, (A, C, dt), worst = torch.randn(2, 4, 300, dtype=torch.float64), _model(), 0.0
    for rule in ("zoh", "bilinear"):
        with backend("reference"):
            expected = _values(s4d(u, A, C, dt, rule=rule))
        kernel = s4d_kernel(A, C, dt, 300, rule=rule)
        for found in (_values(s4d(u, A, C, dt, rule=rule)), convolve_both_ways(u, kernel, torch.zeros_like(kernel))):
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return Measurement.at_most(worst, 1e-12, "largest relative deviation in float64, both discretisations")


@claim("s4d", kind="exact", says="Zero-order hold is exact for inputs that are constant within a step.")
def zero_order_hold_is_exact() -> Measurement:
    """Seen failing with the weight dt instead of (exp(dt A) - 1) / A: the first step is then wrong by dt A / 2."""
    A, C, dt = _model()
    u = torch.ones(1, 4, 200, dtype=torch.float64)
    found = _values(s4d(u, A, C, dt))
    # The solution of x' = A x + 1 from zero, at the end of each step: (exp(A t) - 1) / A.
    t = dt[:, None, None] * torch.arange(1, 201)
    expected = 2 * (C[..., None] * torch.expm1(A[..., None] * t) / A[..., None]).real.sum(1)
    return Measurement.at_most(
        float((found[0] - expected).abs().max() / expected.abs().max()), 1e-12, "of a step input"
    )


@claim("s4d", kind="exact", says="Rates start at -1/2 + i pi n (lin), -1/2 + i N/pi (N/(2n+1) - 1) (inv) or -(n+1).")
def initial_rates() -> Measurement:
    """Seen failing with N the number of rates instead of twice that."""
    n, worst = torch.arange(8.0), 0.0
    expected = {
        "lin": torch.complex(torch.full((8,), -0.5), math.pi * n),
        "inv": torch.complex(torch.full((8,), -0.5), 16 / math.pi * (16 / (2 * n + 1) - 1)),
        "real": torch.complex(-(n + 1), torch.zeros(8)),
    }
    for init in get_args(Start):
        rates, A = expected[init], S4D(3, d_state=16, init=init)._model(torch.float32)[0].detach()
        worst = max(worst, float((A - rates).abs().max()))
    return Measurement.at_most(worst, 1e-4, "largest deviation of any rate")


@claim("s4d", kind="exact", says="A stream's state has d_state numbers per channel, whatever the length.")
def constant_state() -> Measurement:
    """Seen failing with a state that keeps its tokens."""
    with torch.no_grad():
        mixer = S4D(8, causal=True, d_state=16)
        sizes = [mixer.prefill(torch.randn(1, n, 8), mixer.init_state(1))[1].nbytes for n in (10, 10_000)]
    passed = sizes[0] == sizes[1] == 4 * 8 * 16
    return Measurement(sizes[1], 4 * 8 * 16, passed, f"bytes after 10 tokens {sizes[0]}, after 10,000 {sizes[1]}")


@claim("s4d", kind="scaling", says="Training on 65,536 tokens takes memory linear in the length.")
def memory_is_linear() -> Measurement:
    """Seen failing (exponent near 2) with the Toeplitz matrix of the whole kernel."""
    setup = "from foveate.mixers.s4d import S4D\nmixer = S4D(32, causal=True)\n"
    setup += "def train(n): mixer(torch.randn(1, n, 32).requires_grad_()).square().mean().backward()\ntrain(200)"
    peaks = allocated_bytes_of([f"train({n})" for n in (16_384, 65_536)], setup)
    exponent = math.log(peaks[1] / peaks[0]) / math.log(4)
    sizes = " and ".join(f"{p / 2**20:.0f} MiB" for p in peaks)
    return Measurement.at_most(exponent, 1.1, f"exponent of what tensors hold at the peak, {sizes}")


@claim("s4d", kind="needs-pretrained", says="S4D reaches 85 % on average on the Long Range Arena, near S4.")
def long_range_arena() -> Measurement:
    """Not run here: the benchmark's data and days of training on a GPU are needed."""
    return Measurement(
        math.nan, 85.5, False, "not measured: it would take the Long Range Arena and GPU-days of training"
    )
